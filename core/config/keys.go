package config

// key describes one setting; the tables below are the only place where that is
// written down. Bounds are inclusive and, like the default, in text form.
type key struct {
	path     string
	kind     kind
	initial  string // default; empty: none
	computed string // how the default is found, where it is not a fixed value
	min, max string // bounds; empty: none
	restart  bool   // a change needs a restart; else a reload is enough
	help     string // one sentence for the documentation
}

// serverKeys are the settings of cproxy-server, in the order of the
// documentation. It is a function because a table in a variable could be changed.
func serverKeys() []key {
	return append([]key{
		{path: "ctl_listen", kind: kindString, initial: ":7000", restart: true, help: "Address for control connections (CtlPort). Port 0 lets the kernel pick one."},
		{path: "proxy_listen", kind: kindString, initial: ":7001", restart: true, help: "Address for data connections (ProxyPort). Port 0 lets the kernel pick one."},
		{path: "advertise", kind: kindString, computed: "FQDN and CtlPort", help: "`host:port` under which clients reach CtlPort; written into join strings."},
		{path: "proxy_advertise", kind: kindString, computed: "ProxyPort beside CtlPort", help: "`host:port` at which clients reach ProxyPort, where it is not the port that is listened on: behind NAT, in a container. Counts from a client's next connection on."},
		{path: "public_bind", kind: kindAddrs, initial: "::", help: "Addresses on which public ports of tunnels open; `::` takes IPv4 as well. A change applies to tunnels registered afterwards."},
		{path: "state_dir", kind: kindString, initial: "/var/lib/cproxy", restart: true, help: "Absolute path of the folder for identity, tokens and remembered ports; belongs to the service user."},
		{path: "tokens_file", kind: kindString, computed: "`tokens.toml` in `state_dir`", restart: true, help: "File with the tokens of clients; re-read by itself when it changes."},
		{path: "grace", kind: kindDuration, initial: "30s", min: "0s", max: "24h", help: "How long public ports of a client stay open after its control connection was lost."},
		{path: "loops", kind: kindInt, initial: "0", min: "0", max: "64", restart: true, help: "Number of relay loops; 0 is one for each CPU, at most 8."},
		{path: "limits.ports", kind: kindPorts, initial: "1024-65535", help: "Public ports that tunnels may use."},
		{path: "limits.max_tunnels_per_client", kind: kindInt, initial: "100", min: "0", max: "1000000", help: "Tunnels of one client; 0 is unlimited."},
		{path: "limits.max_conns_per_tunnel", kind: kindInt, initial: "0", min: "0", max: "1000000000", help: "Simultaneous PublicConns of one tunnel, more are reset; 0 is unlimited."},
		{path: "limits.max_conns", kind: kindInt, initial: "0", min: "0", max: "1000000000", help: "Simultaneous PublicConns of the whole server, more are reset. The smaller of this and what the open files allow counts (see below); 0 leaves it to them."},
		{path: "limits.rate_up", kind: kindRate, initial: "0", help: "What the visitors of one tunnel may send together; 0 is unlimited. The smaller of this and the token's `rate_up` counts."},
		{path: "limits.rate_down", kind: kindRate, initial: "0", help: "What the visitors of one tunnel may be sent together; 0 is unlimited. The smaller of this and the token's `rate_down` counts."},
		{path: "pool.max", kind: kindInt, initial: "256", min: "0", max: "65536", help: "Idle ProxyConns kept for one client; 0 keeps none, so each visitor waits for a new one. The smaller of both sides counts."},
		{path: "timeouts.connect", kind: kindDuration, initial: "10s", min: "1ms", max: "10m", help: "How long a visitor waits for a ProxyConn."},
		{path: "timeouts.half_close", kind: kindDuration, initial: "5m", min: "1ms", max: "168h", help: "How long a stream may be quiet after the LocalServer has ended its direction."},
		{path: "timeouts.idle", kind: kindDuration, initial: "0s", min: "0s", max: "8760h", help: "Resets a stream on which nothing moved for so long; 0 is off."},
		{path: "timeouts.heartbeat", kind: kindDuration, initial: "30s", min: "100ms", max: "1h", help: "Time between pings on control connections and idle ProxyConns."},
	}, logKeys()...)
}

// clientKeys are the settings of cproxy-client, in the order of the documentation.
func clientKeys() []key {
	keys := append([]key{
		{path: "server", kind: kindServers, help: "`host:port` of the server's CtlPort, or a list of such that are tried in turn, see [Several servers](#several-servers). Required."},
		{path: "pin", kind: kindPins, help: "`sha256:` and 43 characters: fingerprint of the server's public key, or a list of such, of which any is right. Not together with `ca_file`."},
		{path: "ca_file", kind: kindString, help: "PEM file with the authorities that may sign the server's certificate. With neither `pin` nor `ca_file` those of the system count."},
		{path: "token_file", kind: kindString, help: "File that holds `NAME:SECRET`, mode 0600. Exactly one of `token_file` and `token` is required."},
		{path: "token", kind: kindSecret, help: "`NAME:SECRET` itself; the configuration file should then have mode 0600."},
		{path: "name", kind: kindString, computed: "NAME of the token", restart: true, help: "Name of this client: 1 to 64 of `A-Z a-z 0-9 . _ -`. Two hosts that share a token need two names; else only the one that was started last serves."},
		{path: "loops", kind: kindInt, initial: "0", min: "0", max: "64", restart: true, help: "Number of relay loops; 0 is one for each CPU, at most 8."},
		{path: "pool.max", kind: kindInt, initial: "256", min: "0", max: "65536", help: "Idle ProxyConns kept open; 0 keeps none, so each visitor waits for a new one. The smaller of both sides counts; the server hears of a reloaded one at the next connection."},
		{path: "timeouts.connect", kind: kindDuration, initial: "10s", min: "1ms", max: "10m", help: "How long connecting to the server or to a LocalServer may take."},
		{path: "timeouts.half_close", kind: kindDuration, initial: "5m", min: "1ms", max: "168h", help: "How long a stream may be quiet after the visitor has ended its direction."},
		{path: "timeouts.idle", kind: kindDuration, initial: "0s", min: "0s", max: "8760h", help: "Resets a stream on which nothing moved for so long; 0 is off."},
	}, logKeys()...)
	return append(keys, tunnelKeys()...)
}

func logKeys() []key {
	return []key{
		{path: "log.level", kind: kindLevel, initial: "info", help: "`debug`, `info`, `warn` or `error`."},
		{path: "log.format", kind: kindFormat, initial: "text", restart: true, help: "`text` or `json`."},
	}
}

func tunnelKeys() []key {
	return []key{
		{path: "tunnel.name", kind: kindString, help: "Name of the tunnel, unique in this client: 1 to 64 of `A-Z a-z 0-9 . _ -`. Required."},
		{path: "tunnel.type", kind: kindString, computed: "`tcp`", help: "Only `tcp`."},
		{path: "tunnel.local", kind: kindLocal, help: "LocalServer: `8080` (on 127.0.0.1), `\"host:port\"` or `\"unix:/path\"`. Required."},
		{path: "tunnel.remote_port", kind: kindPort, computed: "0", help: "Public port on the server, a range such as `\"20000-20100\"` to take one of, or 0 for any. The tunnel keeps the port it got for a day after its last use."},
		{path: "tunnel.bind", kind: kindAddrs, computed: "server's `public_bind`", help: "Addresses of the server on which the public port opens: one, or a list."},
		{path: "tunnel.proxy_protocol", kind: kindProxyProtocol, computed: "no header", help: "`v1` or `v2`: send the LocalServer a PROXY header with the visitor's address."},
	}
}
