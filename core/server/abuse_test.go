package server

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/wire"
)

// served proves that a client gets in, and a visitor through it.
func (r *running) served(name string) {
	r.t.Helper()
	p := r.dial()
	p.name = name
	p.login()
	at := public(r.t, p.register(spec("web", 0)))
	visit(r.t, at, []byte("hello"), func() {
		hear(p, (*wire.ServerMessage).GetNeedProxyConn)
		c := r.open(p, 1)
		_, seq := c.started()
		c.echo(seq)
		_ = c.Close()
	})
	p.say(wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ClientMessage())
	p.refused(wire.CodeDone)
	p.leave()
}

func TestThousandSilentPeers(t *testing.T) {
	if err := startServer(t, nil).stop(); err != nil { // the runtime opens what it keeps
		t.Fatal(err)
	}
	before := descriptors(t)
	r := startServer(t, func(o *Options) { // none of them is given up while others are served
		o.Policy.HandshakeTimeout, o.Policy.Relay.Preface = time.Hour, time.Hour
	})
	hello := clientHello(t)
	var silent []*net.TCPConn
	for i := range 1000 {
		to := r.ctl
		if i%2 == 1 {
			to = r.proxy
		}
		c := tcp(t, loopback, to)
		silent = append(silent, c)
		var said []byte
		switch i % 10 {
		case 2:
			said = hello[:len(hello)/2]
		case 4:
			said = hello
		case 3:
			said = []byte(frame.Magic)
		}
		if _, err := c.Write(said); err != nil {
			t.Fatal(err)
		}
	}
	r.served("host")
	if err := r.stop(); err != nil { // no silence holds up the end
		t.Fatal(err)
	}
	for _, c := range silent {
		_ = c.Close()
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func TestSilenceEnds(t *testing.T) {
	r := startServer(t, func(o *Options) {
		o.Policy.HandshakeTimeout, o.Policy.Relay.Preface = 200*time.Millisecond, 200*time.Millisecond
	})
	var conns []*net.TCPConn
	for range 50 {
		half := tcp(t, loopback, r.proxy)
		if _, err := io.WriteString(half, frame.Magic); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, tcp(t, loopback, r.ctl), tcp(t, loopback, r.proxy), half)
	}
	for _, c := range conns {
		expectEnd(t, c)
	}
	r.log.Await(t, "preface timeout")
	r.log.Await(t, "control connection refused")
	if n := strings.Count(r.log.String(), "refused"); n > 10 {
		t.Errorf("%d lines were logged", n)
	}
}

// expectEnd reads until the server ends a connection, cleanly or not.
func expectEnd(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("the connection was not closed: %v", err)
	}
}

func TestGarbageOnBothPorts(t *testing.T) {
	r := startServer(t, func(o *Options) { // only what is wrong with it can end it
		o.Policy.HandshakeTimeout, o.Policy.Relay.Preface = time.Hour, time.Hour
	})
	noise := make([]byte, 1<<16)
	_, _ = rand.Read(noise)
	noise[0] = 0xff
	almost := append([]byte(frame.Magic), bytes.Repeat([]byte{0xff}, 1<<10)...)
	tests := []struct {
		name  string
		bytes []byte
	}{
		{"noise", noise},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: example\r\n\r\n")},
		{"SSH", []byte("SSH-2.0-OpenSSH_9.9\r\n")},
		{"one byte", []byte{0}},
		{"a preface of nonsense", almost},
		{"record of nonsense", []byte("\x16\x03\x01\x00\x08\x01\x00\x00\x04abcd")},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			for _, to := range []netip.AddrPort{r.ctl, r.proxy} {
				for range 20 {
					c := tcp(t, loopback, to)
					_, _ = c.Write(test.bytes) // it may end before all is written
					expectEnd(t, c)
				}
			}
			r.served("host")
		})
	}
	// Both doors answer only in their own language.
	tlsToProxy := tcp(t, loopback, r.proxy)
	_, _ = tlsToProxy.Write(clientHello(t))
	expectEnd(t, tlsToProxy)
	if n := strings.Count(r.log.String(), "level=WARN"); n > 10 {
		t.Errorf("%d warnings", n)
	}
}

func TestBadMessagesOverTCP(t *testing.T) {
	r := startServer(t, nil)
	oversized := append(protowire.AppendVarint(nil, 1<<30), make([]byte, 1<<20)...)
	for i, b := range [][]byte{oversized, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, {2, 0xff, 0xff}} {
		for _, known := range []bool{false, true} {
			p := r.dial()
			p.name = fmt.Sprint("host", i)
			if known {
				p.login()
			}
			_, _ = p.conn.Write(b) // it may end before all is written
			code(t, hear(p, (*wire.ServerMessage).GetGoodbye).GetRefusal(), wire.CodeProtocol)
			p.ended()
		}
	}
	r.served("other")
}

func TestBadPrefacesOverTCP(t *testing.T) {
	r := startServer(t, nil)
	p := r.dial().login()
	key := p.welcome.GetSessionKey()
	good := prefaceOf(p.welcome, 1).Seal(frame.NewKey(key), frame.Exporter{})
	forged := prefaceOf(p.welcome, 2).Seal(frame.NewKey(secretOf("nobody")), frame.Exporter{})
	inTLS := prefaceOf(p.welcome, 3)
	inTLS.Mode = frame.TLS
	first := r.open(p, 1)
	tests := []struct {
		name   string
		sealed [frame.PrefaceSize]byte
	}{
		{"replay", good},
		{"forged", forged},
		{"TLS mode", inTLS.Seal(frame.NewKey(key), frame.Exporter{})},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := tcp(t, loopback, r.proxy)
			if _, err := c.Write(test.sealed[:]); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(c); len(got) > 0 {
				t.Errorf("got %x, %v", got, err)
			}
		})
	}
	at := public(t, p.register(spec("web", 0)))
	visit(t, at, []byte("hello"), func() { // the first is in the pool all the while
		_, seq := first.started()
		first.echo(seq)
	})
}

// Failed logins are limited by address; a success costs nothing, and others
// do not notice.
func TestFailedLoginsByAddress(t *testing.T) {
	r := startServer(t, nil)
	dial := func(from string) *peer {
		return newPeer(t, tcp(t, netip.MustParseAddr(from), r.ctl), nil)
	}
	inside := dial("127.0.0.2").login()
	for i := range 2 * failureBurst {
		p := dial("127.0.0.2")
		p.name = fmt.Sprint("host", i)
		p.login()
	}
	bad := 0
	for limited := false; !limited; bad++ {
		if bad > 10*failureBurst {
			t.Fatal("failed logins are never limited")
		}
		p := dial("127.0.0.2")
		h := p.hello()
		h.GetCredential().Secret[0] ^= 1
		p.say(h.ClientMessage())
		g := hear(p, (*wire.ServerMessage).GetGoodbye)
		limited = g.GetRefusal().GetCode() == wire.CodeRate
		if !limited {
			code(t, g.GetRefusal(), wire.CodeBadCredential)
		} else if g.GetRefusal().GetPermanent() || !strings.Contains(g.GetRefusal().GetReason(), "wait") {
			t.Errorf("refused with %v", g)
		}
	}
	if bad <= failureBurst {
		t.Errorf("limited after %d failures", bad-1)
	}
	p := dial("127.0.0.3")
	p.name = "elsewhere"
	p.login()
	inside.register(spec("web", 0))
	inside.leave()
	q := dial("127.0.0.2")
	q.enter(q.proof(inside, 2))
}
