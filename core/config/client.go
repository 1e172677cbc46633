package config

import (
	"fmt"
	"os"
	"slices"
)

// maxServers bounds the lists of servers and of their pins.
const maxServers = 16

// Client is the configuration of cproxy-client, checked and with defaults.
type Client struct {
	// Servers are the "host:port" of the CtlPort of each server, tried in turn;
	// at least one, and none twice.
	Servers []string
	// Pins are "sha256:" and the unpadded base64url of the SHA-256 of a server's
	// public key; any of them is right. Pins and CAFile are never both set; with
	// neither, the authorities of the system count.
	Pins   []string
	CAFile string
	// Token is "NAME:SECRET", read from TokenFile if that is set.
	Token     Secret
	TokenFile string
	// Name is the client's name; that of the token unless set.
	Name string
	// Loops is the number of relay loops, 0 for automatic.
	Loops    int
	Pool     Pool
	Timeouts Timeouts
	Log      Log
	// Tunnels have unique names; their order is that of the layers.
	Tunnels []Tunnel
}

// rawClient is client.toml as decoded: types fit, meaning is not checked.
type rawClient struct {
	Servers   []string    `koanf:"server"`
	Pins      []string    `koanf:"pin"`
	CAFile    string      `koanf:"ca_file"`
	TokenFile string      `koanf:"token_file"`
	Token     Secret      `koanf:"token"`
	Name      string      `koanf:"name"`
	Loops     int         `koanf:"loops"`
	Pool      Pool        `koanf:"pool"`
	Timeouts  Timeouts    `koanf:"timeouts"`
	Log       Log         `koanf:"log"`
	Tunnels   []rawTunnel `koanf:"tunnel"`
}

// LoadClient reads and checks the configuration of cproxy-client and the token
// file it names. It blocks on reading files only. Warnings are returned beside
// a configuration and beside an error, which is always an [*Error] with every
// problem found.
func LoadClient(src Source) (client *Client, warnings []Problem, err error) {
	l := newLoader(clientSchema(), src)
	var raw rawClient
	l.load(src, &raw, func() any { return new(rawClient) })
	client = l.client(raw)
	l.bounds(client.values())
	if warnings, err = l.finish(); err != nil {
		return nil, warnings, err
	}
	return client, warnings, nil
}

func (l *loader) client(raw rawClient) *Client {
	c := &Client{
		Servers:   raw.Servers,
		Pins:      raw.Pins,
		CAFile:    l.resolve("ca_file", raw.CAFile),
		TokenFile: l.resolve("token_file", raw.TokenFile),
		Name:      raw.Name,
		Loops:     raw.Loops,
		Pool:      raw.Pool,
		Timeouts:  raw.Timeouts,
		Log:       raw.Log,
	}
	l.checkServer(c)
	c.Token = l.token(raw.Token, c.TokenFile)
	if c.Name == "" {
		c.Name = tokenName(c.Token)
	} else if !validName(c.Name) {
		l.check("name", badValue(wantName, c.Name))
	}
	c.Tunnels = l.tunnels(raw.Tunnels)
	return c
}

// checkServer checks where the servers are and how they prove their identity.
func (l *loader) checkServer(c *Client) {
	if len(c.Servers) == 0 && !l.faulty("server") {
		l.missing(l.origin("server"), "server",
			`is missing; set the server's "host:7000", or let "cproxy-client join" write the configuration`)
	}
	l.checkEach("server", c.Servers, func(server string) error {
		_, err := splitHostPort(server, false)
		return err
	})
	l.checkEach("pin", c.Pins, func(pin string) error {
		if !validPin(pin) {
			return badValue("\"sha256:\" and 43 characters, copied whole from the join string", pin)
		}
		return nil
	})
	if c.CAFile == "" {
		return
	}
	if len(c.Pins) > 0 {
		l.check("ca_file", &valueError{"is set beside pin at " + l.origin("pin").String() + "; keep one of the two"})
	}
	f, err := os.Open(c.CAFile)
	if err != nil {
		l.check("ca_file", &valueError{unreadable(c.CAFile, err)})
		return
	}
	_ = f.Close() // nothing was written
}

// checkEach checks the elements of a list of texts, the place of each by itself.
func (l *loader) checkEach(path string, list []string, check func(text string) error) {
	if l.faulty(path) {
		return
	}
	if len(list) > maxServers {
		l.check(path, &valueError{fmt.Sprintf("has %d elements; remove all but %d", len(list), maxServers)})
		return
	}
	for i, text := range list {
		err := check(text)
		if err == nil && slices.Contains(list[:i], text) {
			err = &valueError{fmt.Sprintf("names %s twice; remove one of the two", text)}
		}
		if err != nil {
			l.report(l.element(path, i), path, err.Error())
		}
	}
}

// element gives the place of an element of the list that a key decides.
func (l *loader) element(path string, i int) origin {
	y, at := l.find(path)
	if y == nil {
		return at
	}
	return y.at(fmt.Sprintf("%s[%d]", path, i))
}

// values gives the settings under the paths of the table of keys, those of
// tunnels left out.
func (c *Client) values() map[string]any {
	return map[string]any{
		"server":              c.Servers,
		"pin":                 c.Pins,
		"ca_file":             c.CAFile,
		"token_file":          c.TokenFile,
		"token":               c.Token,
		"name":                c.Name,
		"loops":               c.Loops,
		"pool.max":            c.Pool.Max,
		"timeouts.connect":    c.Timeouts.Connect,
		"timeouts.half_close": c.Timeouts.HalfClose,
		"timeouts.idle":       c.Timeouts.Idle,
		"log.level":           c.Log.Level,
		"log.format":          c.Log.Format,
	}
}
