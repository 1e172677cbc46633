package config

import "os"

// Client is the configuration of cproxy-client, checked and with defaults.
type Client struct {
	// Server is the "host:port" of the server's CtlPort.
	Server string
	// Pin is "sha256:" and the unpadded base64url of the SHA-256 of the server's
	// public key, or empty. Pin and CAFile are never both set; with neither, the
	// authorities of the system count.
	Pin    string
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
	Server    string      `koanf:"server"`
	Pin       string      `koanf:"pin"`
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
		Server:    raw.Server,
		Pin:       raw.Pin,
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

// checkServer checks where the server is and how it proves its identity.
func (l *loader) checkServer(c *Client) {
	if c.Server == "" && !l.faulty("server") {
		l.missing(l.origin("server"), "server",
			`is missing; set the server's "host:7000", or let "cproxy-client join" write the configuration`)
	} else if c.Server != "" {
		_, err := splitHostPort(c.Server, false)
		l.check("server", err)
	}
	if c.Pin != "" && !validPin(c.Pin) {
		l.check("pin", badValue("\"sha256:\" and 43 characters, copied whole from the join string", c.Pin))
	}
	if c.CAFile == "" {
		return
	}
	if c.Pin != "" {
		l.check("ca_file", &valueError{"is set beside pin at " + l.origin("pin").String() + "; keep one of the two"})
	}
	f, err := os.Open(c.CAFile)
	if err != nil {
		l.check("ca_file", &valueError{unreadable(c.CAFile, err)})
		return
	}
	_ = f.Close() // nothing was written
}

// values gives the settings under the paths of the table of keys, those of
// tunnels left out.
func (c *Client) values() map[string]any {
	return map[string]any{
		"server":              c.Server,
		"pin":                 c.Pin,
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
