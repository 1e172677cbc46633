package config

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/cproxy/cproxy/core/rate"
)

// Server is the configuration of cproxy-server, checked and with defaults.
type Server struct {
	// CtlListen and ProxyListen are "host:port" for a listener; the host may be
	// empty (all addresses) and the port 0 (the kernel picks).
	CtlListen, ProxyListen string
	// Advertise is the "host:port" of CtlPort for join strings, or empty.
	Advertise string
	// ProxyAdvertise is the "host:port" at which clients reach ProxyPort, or empty.
	ProxyAdvertise string
	// PublicBind has at least one address; [netip.IPv6Unspecified] means IPv4 too.
	PublicBind []netip.Addr
	// StateDir is absolute. It may not exist yet.
	StateDir string
	// TokensFile is absolute unless a relative path came from a variable or flag.
	TokensFile string
	// Grace is how long public listeners outlive a lost CtlConn.
	Grace time.Duration
	// Loops is the number of relay loops, 0 for automatic.
	Loops    int
	Limits   Limits
	Pool     Pool
	Timeouts Timeouts
	Log      Log
}

// Limits bounds what clients may use. A number of 0 is no limit.
type Limits struct {
	Ports               []PortRange `koanf:"ports"`                  // at least one, none zero
	MaxTunnelsPerClient int         `koanf:"max_tunnels_per_client"` // per Control
	MaxConnsPerTunnel   int         `koanf:"max_conns_per_tunnel"`   // simultaneous PublicConns
	MaxConns            int         `koanf:"max_conns"`              // of the whole server
	RateUp              rate.Bytes  `koanf:"rate_up"`                // of one tunnel, from its visitors
	RateDown            rate.Bytes  `koanf:"rate_down"`              // of one tunnel, to its visitors
}

// Pool bounds idle ProxyConns.
type Pool struct {
	Max int `koanf:"max"` // idle ProxyConns of one Control; 0 keeps none
}

// Timeouts of streams and connections.
type Timeouts struct {
	Connect   time.Duration `koanf:"connect"`    // positive
	HalfClose time.Duration `koanf:"half_close"` // after the first FIN; positive
	Idle      time.Duration `koanf:"idle"`       // 0 is off
	Heartbeat time.Duration `koanf:"heartbeat"`  // positive; 0 in a Client, which follows the server
}

// Log says how to log.
type Log struct {
	Level  slog.Level `koanf:"level"`
	Format LogFormat  `koanf:"format"`
}

// rawServer is server.toml as decoded: types fit, meaning is not checked.
type rawServer struct {
	CtlListen      string        `koanf:"ctl_listen"`
	ProxyListen    string        `koanf:"proxy_listen"`
	Advertise      string        `koanf:"advertise"`
	ProxyAdvertise string        `koanf:"proxy_advertise"`
	PublicBind     []netip.Addr  `koanf:"public_bind"`
	StateDir       string        `koanf:"state_dir"`
	TokensFile     string        `koanf:"tokens_file"`
	Grace          time.Duration `koanf:"grace"`
	Loops          int           `koanf:"loops"`
	Limits         Limits        `koanf:"limits"`
	Pool           Pool          `koanf:"pool"`
	Timeouts       Timeouts      `koanf:"timeouts"`
	Log            Log           `koanf:"log"`
}

// LoadServer reads and checks the configuration of cproxy-server. It blocks on
// reading files only. Warnings are returned beside a configuration and beside
// an error, which is always an [*Error] with every problem found.
func LoadServer(src Source) (server *Server, warnings []Problem, err error) {
	l := newLoader(serverSchema(), src)
	var raw rawServer
	l.load(src, &raw, func() any { return new(rawServer) })
	server = l.server(raw)
	l.bounds(server.values())
	if warnings, err = l.finish(); err != nil {
		return nil, warnings, err
	}
	return server, warnings, nil
}

func (l *loader) server(raw rawServer) *Server {
	s := Server(raw)
	s.TokensFile = l.resolve("tokens_file", raw.TokensFile)
	if s.TokensFile == "" {
		s.TokensFile = filepath.Join(s.StateDir, "tokens.toml")
	}
	ctlPort, err := splitHostPort(s.CtlListen, true)
	l.check("ctl_listen", err)
	_, err = splitHostPort(s.ProxyListen, true)
	l.check("proxy_listen", err)
	if ctlPort != 0 && s.CtlListen == s.ProxyListen {
		l.check("proxy_listen", &valueError{"is the same address as ctl_listen; give the two different ports"})
	}
	if s.Advertise != "" {
		_, err = splitHostPort(s.Advertise, false)
		l.check("advertise", err)
	}
	if s.ProxyAdvertise != "" {
		_, err = splitHostPort(s.ProxyAdvertise, false)
		l.check("proxy_advertise", err)
	}
	if !filepath.IsAbs(s.StateDir) {
		l.check("state_dir", badValue("an absolute path such as \"/var/lib/cproxy\"", s.StateDir))
	}
	l.check("public_bind", checkBind(s.PublicBind))
	switch {
	case len(s.Limits.Ports) == 0:
		l.check("limits.ports", &valueError{`is empty, so no tunnel could open; list ports, or remove the key for "1024-65535"`})
	case slices.ContainsFunc(s.Limits.Ports, PortRange.IsZero):
		l.check("limits.ports", badValue("ports from 1 to 65535", int64(0)))
	}
	return &s
}

// checkBind checks the addresses of public listeners.
func checkBind(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return &valueError{`is empty; name at least one address, or remove the key for the default`}
	}
	for i, addr := range addrs {
		if slices.Contains(addrs[:i], addr) {
			return &valueError{"names " + addr.String() + " twice; remove one of the two"}
		}
	}
	return nil
}

// values gives the settings under the paths of the table of keys.
func (s *Server) values() map[string]any {
	return map[string]any{
		"ctl_listen":                    s.CtlListen,
		"proxy_listen":                  s.ProxyListen,
		"advertise":                     s.Advertise,
		"proxy_advertise":               s.ProxyAdvertise,
		"public_bind":                   s.PublicBind,
		"state_dir":                     s.StateDir,
		"tokens_file":                   s.TokensFile,
		"grace":                         s.Grace,
		"loops":                         s.Loops,
		"limits.ports":                  s.Limits.Ports,
		"limits.max_tunnels_per_client": s.Limits.MaxTunnelsPerClient,
		"limits.max_conns_per_tunnel":   s.Limits.MaxConnsPerTunnel,
		"limits.max_conns":              s.Limits.MaxConns,
		"limits.rate_up":                s.Limits.RateUp,
		"limits.rate_down":              s.Limits.RateDown,
		"pool.max":                      s.Pool.Max,
		"timeouts.connect":              s.Timeouts.Connect,
		"timeouts.half_close":           s.Timeouts.HalfClose,
		"timeouts.idle":                 s.Timeouts.Idle,
		"timeouts.heartbeat":            s.Timeouts.Heartbeat,
		"log.level":                     s.Log.Level,
		"log.format":                    s.Log.Format,
	}
}
