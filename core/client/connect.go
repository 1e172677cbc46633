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
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

// keepalive finds a dead server where heartbeats do not: while the connection
// is being opened.
const keepalive = 15 * time.Second

// login is what one attempt to connect is made with.
type login struct {
	server string // "host:port"
	access Reloadable
	epoch  uint64
	key    []byte // of the session to resume; nil logs in with the credential
}

// attempt is the outcome of one attempt: conn and welcome, or err.
type attempt struct {
	server  string
	conn    *ctlConn
	welcome *wire.Welcome
	proxy   netip.AddrPort // the ProxyPort
	proved  bool           // it was made with a proof, not with the credential
	err     error
}

// setupError is an error of this host's configuration.
type setupError struct{ err error }

func (e *setupError) Error() string { return e.err.Error() }
func (e *setupError) Unwrap() error { return e.err }

// connect makes one attempt. It blocks until it has a Welcome, failed, or ctx
// is done.
func (c *Client) connect(ctx context.Context, l login) attempt {
	a := attempt{server: l.server, proved: l.key != nil}
	ctx, cancel := context.WithTimeout(ctx, c.timing.whole(l.access.Settings.Connect))
	defer cancel()
	conn, err := c.dial(ctx, l)
	if err != nil {
		a.err = fmt.Errorf("connect to %s: %w", l.server, err)
		return a
	}
	// The deadline and the end of ctx reach a blocked read through the socket.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	a.conn = newCtlConn(conn)
	if a.welcome, err = c.greet(a.conn, l); err == nil {
		a.proxy, err = c.proxyAddress(ctx, conn, a.welcome.GetProxyAddress())
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		a.conn.close()
		a.conn = nil
		a.err = fmt.Errorf("log in to %s: %w", l.server, err)
		return a
	}
	a.conn.patience = a.welcome.Heartbeat() * 5 / 2
	return a
}

// dial opens a verified TLS connection. A host name is resolved each time; its
// address families race (RFC 8305), so that one which is broken costs little.
func (c *Client) dial(ctx context.Context, l login) (*tls.Conn, error) {
	config, err := identity.ClientTLS(l.access.Trust, hostOf(l.server), wire.ALPN)
	if err != nil {
		return nil, &setupError{err}
	}
	dialer := net.Dialer{
		Timeout:         l.access.Settings.Connect,
		Resolver:        c.resolver,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepalive, Interval: keepalive, Count: 3},
	}
	socket, err := dialer.DialContext(ctx, "tcp", l.server)
	if err != nil {
		return nil, advised(err)
	}
	conn := tls.Client(socket, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = socket.Close() // it was of no use
		return nil, fmt.Errorf("establish TLS: %w", handshakeError(conn, err))
	}
	return conn, nil
}

// greet sends Hello and reads the answer.
func (c *Client) greet(conn *ctlConn, l login) (*wire.Welcome, error) {
	hello, err := c.hello(conn.conn, l)
	if err != nil {
		return nil, err
	}
	err = conn.writer.WriteClientMessage(hello.ClientMessage())
	clear(hello.GetCredential().GetSecret())
	if err != nil {
		return nil, advised(err)
	}
	message, err := conn.reader.ReadServerMessage()
	if err != nil {
		return nil, advised(err)
	}
	welcome := message.GetWelcome()
	if welcome != nil {
		// Before Validate: a Welcome of another version may look different.
		if refusal := wire.CheckVersion(welcome.GetVersion()); refusal != nil {
			return nil, c.decline(conn, refusal)
		}
	}
	if err := message.Validate(); err != nil {
		return nil, fmt.Errorf("check the server's answer: %w", err)
	}
	switch {
	case message.GetGoodbye() != nil:
		return nil, message.GetGoodbye().Err()
	case welcome == nil:
		return nil, fmt.Errorf("the server answered Hello with %s: check that it is a cproxy-server", message.KindName())
	case welcome.GetMode() != wire.ModePlain:
		return nil, c.decline(conn, wire.NewRefusal(wire.CodeVersion,
			"the server wants encrypted ProxyConns, which this client cannot open; upgrade cproxy-client"))
	}
	return welcome, nil
}

// decline tells the server why its Welcome is of no use.
func (c *Client) decline(conn *ctlConn, refusal *wire.Refusal) error {
	conn.setWriteDeadline(c.timing.farewell)
	// The refusal matters, not whether the server hears of it.
	_ = conn.writer.WriteClientMessage(wire.NewGoodbye(refusal, 0).ClientMessage())
	return refusal.Err()
}

func (c *Client) hello(conn *tls.Conn, l login) (*wire.Hello, error) {
	hello := &wire.Hello{
		Version:       wire.Version,
		Name:          c.options.Name,
		Instance:      c.instance[:],
		Epoch:         l.epoch,
		Hostname:      printable(hostname(), wire.MaxHostname),
		ClientVersion: printable(c.options.Version, wire.MaxVersionText),
		PoolMax:       new(uint32(min(l.access.PoolMax, wire.MaxPool))),
	}
	if l.key == nil {
		secret := l.access.Secret // a copy, cleared when it was sent
		hello.Auth = &wire.Hello_Credential{Credential: &wire.Credential{Name: l.access.TokenName, Secret: secret[:]}}
		return hello, nil
	}
	state := conn.ConnectionState()
	exporter, err := state.ExportKeyingMaterial(wire.ResumeExporterLabel, nil, wire.ResumeExporterSize)
	if err != nil {
		return nil, fmt.Errorf("export keying material: %w", err)
	}
	hello.Auth = &wire.Hello_Proof{Proof: wire.ResumeProof(l.key, l.epoch, exporter)}
	return hello, nil
}

// proxyAddress finds the ProxyPort of a Welcome. A host name is resolved here,
// since nothing else may wait for DNS.
func (c *Client) proxyAddress(ctx context.Context, conn net.Conn, address string) (netip.AddrPort, error) {
	host, digits, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read proxy address %q: %w", address, err)
	}
	n, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read proxy address %q: %w", address, err)
	}
	port := uint16(n)
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("read address of the server: %w", err)
	}
	peer := remote.Addr().Unmap()
	if host == "" {
		return netip.AddrPortFrom(peer, port), nil
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(ip.Unmap(), port), nil
	}
	found, err := c.lookup(ctx, "ip", host)
	if err != nil || len(found) == 0 {
		return netip.AddrPort{}, fmt.Errorf("resolve the server's proxy address %s: %w", address, advised(err))
	}
	best := found[0].Unmap()
	for _, ip := range found {
		if ip.Unmap().Is4() == peer.Is4() { // the family that is known to work
			best = ip.Unmap()
			break
		}
	}
	return netip.AddrPortFrom(best, port), nil
}

// advised adds to an error of the network what to look at.
func advised(err error) error {
	_, wrongPin := errors.AsType[*identity.PinError](err)
	_, wrongALPN := errors.AsType[*identity.ALPNError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	_, unknown := errors.AsType[*net.DNSError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	advice := "check the network between here and the server"
	switch {
	case wrongPin, wrongALPN:
		return err // says it all
	case unknown:
		advice = "check the host name and this host's DNS"
	case noTLS:
		advice = "check that host and port are those of a cproxy-server's control port"
	case untrusted:
		advice = "pin the server's key or name the right CA file; a new join string from `cproxy-server token add` has the pin"
	case errors.Is(err, syscall.ECONNREFUSED):
		advice = "check that cproxy-server runs there and that the port is that of ctl_listen"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), isNet && timeout.Timeout():
		advice = "nothing answered in time; check host, port and firewalls"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		advice = "the other end closed the connection; check that it is a cproxy-server, and its log"
	}
	return fmt.Errorf("%w: %s", err, advice)
}

// hostname is for display; a host without a name has none.
func hostname() string {
	name, _ := os.Hostname()
	return name
}

// printable makes s fit for a message.
func printable(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, s)
	for len(s) > limit {
		s = s[:limit]
		s = strings.ToValidUTF8(s, "")
	}
	return s
}
