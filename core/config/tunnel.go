package config

import (
	"fmt"
	"net/netip"
)

// Tunnel is one LocalServer to expose.
type Tunnel struct {
	Name  string
	Local Local
	// RemotePorts is the public port or the range to take one from; zero lets
	// the server pick.
	RemotePorts PortRange
	// Bind are the server's addresses to listen on; nil leaves them to the server.
	Bind          []netip.Addr
	ProxyProtocol ProxyProtocol
}

// rawTunnel is a [[tunnel]] table as decoded.
type rawTunnel struct {
	Name          string        `koanf:"name"`
	Type          string        `koanf:"type"`
	Local         Local         `koanf:"local"`
	RemotePort    PortRange     `koanf:"remote_port"`
	Bind          []netip.Addr  `koanf:"bind"`
	ProxyProtocol ProxyProtocol `koanf:"proxy_protocol"`
}

// tunnelPlace is where one [[tunnel]] table was read.
type tunnelPlace struct {
	layer   *layer
	path    string // "tunnel[0]" in that layer
	isTable bool
}

// at gives the place of a key of the tunnel; set is false, and the place that
// of the table, if the tunnel does not have the key.
func (t tunnelPlace) at(name string) (at origin, set bool) {
	path := t.path + "." + name
	_, set = t.layer.origins[path]
	return t.layer.at(path), set
}

// tunnelPlaces lists the places in the order in which load merged the tables.
func (l *loader) tunnelPlaces() []tunnelPlace {
	var places []tunnelPlace
	for _, y := range l.layers {
		for i, element := range y.tunnels() {
			_, isTable := element.(map[string]any)
			places = append(places, tunnelPlace{y, fmt.Sprintf("%s[%d]", tunnelKey, i), isTable})
		}
	}
	return places
}

// tunnels checks the merged tables; raw and the places run in step.
func (l *loader) tunnels(raws []rawTunnel) []Tunnel {
	places := l.tunnelPlaces()
	tunnels := make([]Tunnel, 0, len(raws))
	first := make(map[string]origin)
	for i, raw := range raws[:min(len(raws), len(places))] {
		if !places[i].isTable {
			continue // decoding has reported it
		}
		l.checkTunnel(places[i], raw)
		at, _ := places[i].at("name")
		if earlier, again := first[raw.Name]; again && raw.Name != "" {
			l.checkTunnelKey(places[i], "name", &valueError{fmt.Sprintf(
				"tunnel %q is already defined at %s; rename one of the two", raw.Name, earlier)})
		} else {
			first[raw.Name] = at
		}
		tunnels = append(tunnels, Tunnel{
			Name:          raw.Name,
			Local:         raw.Local,
			RemotePorts:   raw.RemotePort,
			Bind:          raw.Bind,
			ProxyProtocol: raw.ProxyProtocol,
		})
	}
	if len(tunnels) == 0 && !l.partial {
		l.warn(l.main, tunnelKey, "there is none, so nothing is exposed; add a [[tunnel]] table")
	}
	return tunnels
}

func (l *loader) checkTunnel(t tunnelPlace, raw rawTunnel) {
	l.requireTunnelKey(t, "name", `name = "web"`)
	l.requireTunnelKey(t, "local", `local = 8080`)
	if _, set := t.at("name"); set && !validName(raw.Name) {
		l.checkTunnelKey(t, "name", badValue(wantName, raw.Name))
	}
	if _, set := t.at("type"); set && raw.Type != "tcp" {
		l.checkTunnelKey(t, "type", badValue(`"tcp", the only type; remove the key or correct it`, raw.Type))
	}
	if _, set := t.at("bind"); set {
		l.checkTunnelKey(t, "bind", checkBind(raw.Bind))
	}
}

func (l *loader) requireTunnelKey(t tunnelPlace, name, example string) {
	if at, set := t.at(name); !set && !t.layer.partial {
		l.report(at, t.path+"."+name, "is missing; write a line such as "+example)
	}
}

// checkTunnelKey reports the error of a value unless the same key of the same
// tunnel has a problem already.
func (l *loader) checkTunnelKey(t tunnelPlace, name string, err error) {
	at, _ := t.at(name)
	path := t.path + "." + name
	if err != nil && !l.bad[at.file+" "+path] {
		l.report(at, path, err.Error())
	}
}
