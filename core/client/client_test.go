package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

func validOptions() Options {
	return Options{
		Name: "office", Loops: 1, Log: discard(),
		Reloadable: Reloadable{Servers: []string{"tunnel.example:7000"}, TokenName: "token", Settings: relay.DefaultSettings(), Tunnels: []Tunnel{local("web")}},
	}
}

func TestNewChecksOptions(t *testing.T) {
	tests := []struct {
		name   string
		change func(o *Options)
		want   string // empty: valid
	}{
		{"valid", func(*Options) {}, ""},
		{"no tunnels", func(o *Options) { o.Reloadable.Tunnels = nil }, ""},
		{"unix socket", func(o *Options) { o.Reloadable.Tunnels[0].Network = "unix" }, ""},
		{"server without port", func(o *Options) { o.Reloadable.Servers = []string{"tunnel.example"} }, "want host:port"},
		{"server without host", func(o *Options) { o.Reloadable.Servers = []string{":7000"} }, "want host:port"},
		{"several servers", func(o *Options) { o.Reloadable.Servers = []string{"a:1", "[::1]:2"} }, ""},
		{"a second server without port", func(o *Options) { o.Reloadable.Servers = []string{"a:1", "b"} }, `server "b": want host:port`},
		{"server twice", func(o *Options) { o.Reloadable.Servers = []string{"a:1", "b:1", "a:1"} }, "server a:1: it is named twice"},
		{"no server", func(o *Options) { o.Reloadable.Servers = nil }, "server is missing"},
		{"name", func(o *Options) { o.Name = "of fice" }, "client: name"},
		{"loops", func(o *Options) { o.Loops = 0 }, "0 loops"},
		{"logger", func(o *Options) { o.Log = nil }, "logger"},
		{"token", func(o *Options) { o.Reloadable.TokenName = "" }, "token: name"},
		{"pool", func(o *Options) { o.Reloadable.PoolMax = -1 }, "pool of -1"},
		{"settings", func(o *Options) { o.Reloadable.Settings = relay.Settings{} }, "settings"},
		{"tunnel's name", func(o *Options) { o.Reloadable.Tunnels[0].Name = "" }, "tunnel: name"},
		{"ports", func(o *Options) { o.Reloadable.Tunnels[0].First = 9 }, "ports 9 to 0"},
		{"twice", func(o *Options) { o.Reloadable.Tunnels = append(o.Reloadable.Tunnels, local("web")) }, "used twice"},
		{"network", func(o *Options) { o.Reloadable.Tunnels[0].Network = "udp" }, `network "udp"`},
		{"unix path", func(o *Options) { o.Reloadable.Tunnels[0] = Tunnel{Name: "a", Network: "unix"} }, "path"},
		{"local host", func(o *Options) { o.Reloadable.Tunnels[0].Address = ":80" }, "want host:port"},
		{"local port", func(o *Options) { o.Reloadable.Tunnels[0].Address = "a:0" }, "want a port"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := validOptions()
			tt.change(&o)
			_, err := New(o)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("New = %v, want %q", err, tt.want)
			}
		})
	}
}

// All mistakes are reported together.
func TestNewReportsEverything(t *testing.T) {
	_, err := New(Options{})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"server", "client", "loops", "logger", "token", "settings"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}

func TestOptionsHideSecret(t *testing.T) {
	o := validOptions()
	o.Reloadable.Secret = identity.TokenSecret{0xab, 0xcd}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		if text := fmt.Sprintf(format, o); strings.Contains(text, "171") || strings.Contains(strings.ToLower(text), "abcd") {
			t.Errorf("%s shows the secret: %s", format, text)
		}
	}
}

func TestDestination(t *testing.T) {
	tests := []struct {
		network, address string
		literal          string
		name             string
		port             uint16
	}{
		{"tcp", "127.0.0.1:80", "127.0.0.1:80", "", 0},
		{"tcp", "[::1]:80", "[::1]:80", "", 0},
		{"tcp", "[::ffff:10.0.0.1]:80", "10.0.0.1:80", "", 0},
		{"tcp", "localhost:80", "", "localhost", 80},
		{"unix", "/run/a:b", "/run/a:b", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.address, func(t *testing.T) {
			literal, name, port, err := Tunnel{Network: tt.network, Address: tt.address}.destination()
			if err != nil || name != tt.name || port != tt.port || (len(literal) > 0) != (tt.literal != "") {
				t.Fatalf("got %v, %q, %d, %v", literal, name, port, err)
			}
			if len(literal) > 0 && literal[0].Unix != tt.literal && literal[0].TCP.String() != tt.literal {
				t.Errorf("got %v, want %s", literal[0], tt.literal)
			}
		})
	}
}

func TestReachable(t *testing.T) {
	c := &session{server: "tunnel.example:7000"}
	six := &session{server: "[2001:db8::1]:7000"}
	tests := []struct {
		session    *session
		bound, got string
	}{
		{c, "[::]:80", "tunnel.example:80"},
		{c, "0.0.0.0:80", "tunnel.example:80"},
		{c, "192.0.2.1:80", "192.0.2.1:80"},
		{c, "other.example:80", "other.example:80"},
		{six, "[::]:80", "[2001:db8::1]:80"},
	}
	for _, tt := range tests {
		if got := tt.session.reachable(tt.bound); got != tt.got {
			t.Errorf("reachable(%s) = %s, want %s", tt.bound, got, tt.got)
		}
	}
}

// remote is a connection to some address.
type remote struct {
	net.Conn
	address string
}

func (r remote) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(r.address))
}

func TestProxyAddress(t *testing.T) {
	both := []netip.Addr{netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("192.0.2.7")}
	tests := []struct {
		name, peer, address, want string
		found                     []netip.Addr
	}{
		{"host of the control connection", "192.0.2.1:7000", ":7001", "192.0.2.1:7001", nil},
		{"mapped", "[::ffff:192.0.2.1]:7000", ":7001", "192.0.2.1:7001", nil},
		{"literal", "192.0.2.1:7000", "[2001:db8::2]:7001", "[2001:db8::2]:7001", nil},
		{"name, as IPv4", "192.0.2.1:7000", "proxy.example:7001", "192.0.2.7:7001", both},
		{"name, as IPv6", "[2001:db8::1]:7000", "proxy.example:7001", "[2001:db8::7]:7001", both},
		{"name in the other family", "192.0.2.1:7000", "proxy.example:7001", "[2001:db8::7]:7001", both[:1]},
		{"name without address", "192.0.2.1:7000", "proxy.example:7001", "", []netip.Addr{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := &Client{lookup: func(context.Context, string, string) ([]netip.Addr, error) { return tt.found, nil }}
			got, err := c.proxyAddress(t.Context(), remote{address: tt.peer}, tt.address)
			if (err == nil) != (tt.want != "") || err == nil && got.String() != tt.want {
				t.Errorf("got %v, %v, want %s", got, err, tt.want)
			}
		})
	}
}

func TestAdvised(t *testing.T) {
	tests := []struct {
		err  error
		want string
	}{
		{&net.DNSError{Err: "no such host", Name: "x"}, "DNS"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "ctl_listen"},
		{context.DeadlineExceeded, "firewalls"},
		{io.EOF, "closed the connection"},
		{tls.RecordHeaderError{Msg: "no TLS"}, "control port"},
		{&tls.CertificateVerificationError{Err: errors.New("unknown authority")}, "pin"},
		{errors.New("odd"), "network"},
	}
	for _, tt := range tests {
		got := advised(tt.err)
		if !strings.Contains(got.Error(), tt.want) || !errors.Is(got, tt.err) {
			t.Errorf("advised(%v) = %v, want %q", tt.err, got, tt.want)
		}
	}
	pin := &identity.PinError{}
	if got := advised(pin); got.Error() != pin.Error() {
		t.Errorf("advised(%v) = %v", pin, got)
	}
}

func TestPrintable(t *testing.T) {
	tests := []struct{ in, want string }{
		{"host", "host"},
		{"ho\x1b[st\n", "ho[st"},
		{"a\xffb", "ab"},
		{"ééééé", "éééé"},
		{"123456789", "12345678"},
		{"1234567é", "1234567"},
	}
	for _, tt := range tests {
		if got := printable(tt.in, 8); got != tt.want {
			t.Errorf("printable(%q) = %q, want %q", tt.in, got, tt.want)
		}
	}
}

// The bound on ProxyConns under way delays those beyond it and loses none.
func TestDialBound(t *testing.T) {
	c, err := New(validOptions())
	if err != nil {
		t.Fatal(err)
	}
	o := newOwner(c)
	o.link.conn = &ctlConn{}
	o.session = &session{key: sessionKey(1), proxy: netip.MustParseAddrPort("127.0.0.1:1")}
	o.pool = pool{id: 3, most: 10}
	check := func(what string, want pool) {
		t.Helper()
		want.id, want.most, want.ref = 3, 10, o.session.proxyID
		if o.pool != want {
			t.Errorf("%s: %+v, want %+v", what, o.pool, want)
		}
	}
	o.pool.need(25)
	o.dial()
	check("asked", pool{wanted: 15, pending: 10})
	o.handleEvents([]relay.Event{
		relay.ConnOpened{Pool: 3},
		relay.ConnOpened{Pool: 3},
		relay.DialFailed{Pool: 3, Err: io.EOF},
		relay.ConnOpened{Pool: 2},
		relay.ConnClosed{Pool: 2},
		relay.DialFailed{Pool: 2, Err: io.EOF}, // of a former pool
	})
	check("answered", pool{wanted: 12, pending: 10, open: 2})
	o.handleEvents([]relay.Event{relay.ConnClosed{Pool: 3}})
	check("closed", pool{wanted: 12, pending: 10, open: 1})
	o.link.conn = nil
	o.handleEvents([]relay.Event{relay.ConnOpened{Pool: 3}})
	check("without a connection", pool{wanted: 12, pending: 9, open: 2})
	o.pool.need(1 << 20)
	check("asked for too much", pool{wanted: maxWanted, pending: 9, open: 2})
	if o.session.proxyID != 13 {
		t.Errorf("%d ids were used for 13 conns", o.session.proxyID)
	}
}

// pipe gives both ends of a TLS connection in memory.
func pipe(t *testing.T, id *identity.ServerIdentity) (*ctlConn, *tls.Conn) {
	t.Helper()
	pin := id.Pin()
	config, err := identity.ClientTLS(identity.Trust{Pins: []identity.Pin{pin}}, "", wire.ALPN)
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	server := tls.Server(far, identity.ServerTLS(id, wire.ALPN))
	client := tls.Client(near, config)
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	return newCtlConn(client), server
}

// run starts both goroutines of c, as the owner does, and gives the error that
// the reader ends with.
func run(t *testing.T, c *ctlConn) error {
	t.Helper()
	messages := make(chan received)
	go c.write(10 * time.Second)
	go c.read(t.Context(), messages)
	for m := range messages {
		if m.err != nil {
			c.close()
			<-c.ended
			return m.err
		}
	}
	return nil
}

func TestConnDeadlines(t *testing.T) {
	id, err := identity.LoadOrCreateServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		prepare func(c *ctlConn)
		want    error
		after   time.Duration
	}{
		{"silent server", func(*ctlConn) {}, errSilent, 75 * time.Second},
		{"server that does not read", func(c *ctlConn) {
			c.send((&wire.Pong{}).ClientMessage())
		}, os.ErrDeadlineExceeded, 10 * time.Second},
		{"too much unread", func(c *ctlConn) {
			for range maxUnsent + 1 {
				c.send((&wire.Pong{}).ClientMessage())
			}
		}, errUnread, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, server := pipe(t, id)
				defer server.NetConn().Close()
				c.patience = 75 * time.Second
				tt.prepare(c)
				began := time.Now()
				if err := run(t, c); !errors.Is(err, tt.want) {
					t.Errorf("ended with %v, want %v", err, tt.want)
				}
				if got := time.Since(began); got != tt.after {
					t.Errorf("ended after %v, want %v", got, tt.after)
				}
				c.send((&wire.Pong{}).ClientMessage()) // has no effect any more
				c.close()
			})
		})
	}
}
