package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/cproxy/cproxy/core/wire"
)

func TestFirstMessage(t *testing.T) {
	tests := []struct {
		name   string
		change func(p *peer, h *wire.Hello) *wire.ClientMessage
		code   wire.Code
		says   string
	}{
		{"no version", func(_ *peer, h *wire.Hello) *wire.ClientMessage {
			h.Version = 0
			return h.ClientMessage()
		}, wire.CodeVersion, "upgrade cproxy-client"},
		{"not Hello", func(*peer, *wire.Hello) *wire.ClientMessage {
			return (&wire.RegisterTunnel{Spec: spec("web", 0)}).ClientMessage()
		}, wire.CodeProtocol, "first message is not Hello"},
		{"of no known kind", func(*peer, *wire.Hello) *wire.ClientMessage { return &wire.ClientMessage{} }, wire.CodeProtocol, "not Hello"},
		{"bad name", func(_ *peer, h *wire.Hello) *wire.ClientMessage {
			h.Name = "two\nlines"
			return h.ClientMessage()
		}, wire.CodeBadRequest, "name"},
		{"short instance", func(_ *peer, h *wire.Hello) *wire.ClientMessage {
			h.Instance = h.Instance[1:]
			return h.ClientMessage()
		}, wire.CodeBadRequest, "instance"},
		{"no credential", func(_ *peer, h *wire.Hello) *wire.ClientMessage {
			h.Auth = nil
			return h.ClientMessage()
		}, wire.CodeBadRequest, "neither credential nor proof"},
		{"wrong secret", func(_ *peer, h *wire.Hello) *wire.ClientMessage {
			h.GetCredential().Secret[0] ^= 1
			return h.ClientMessage()
		}, wire.CodeBadCredential, "token add"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				t := w.t
				p := w.dial()
				p.say(test.change(p, p.hello()))
				if g := p.refused(test.code); !strings.Contains(g.GetRefusal().GetReason(), test.says) {
					t.Errorf("%v does not say %q", g, test.says)
				}
				if log := w.log.String(); !strings.Contains(log, "refused") || strings.Contains(log, "secret of") {
					t.Errorf("logged %q", log)
				}
				w.empty()
				w.dial().login()
			})
		})
	}
}

// A client that is newer than the server is told the server's version, and
// decides for itself.
func TestFutureVersion(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		p := w.dial()
		h := p.hello()
		h.Version = wire.Version + 7
		p.enter(h)
	})
}

func TestBadBytes(t *testing.T) {
	oversized := protowire.AppendVarint(nil, wire.MaxMessage+1)
	malformed := []byte{3, 0xff, 0xff, 0xff}
	tests := []struct {
		name  string
		bytes []byte
	}{
		{"oversized", oversized},
		{"oversized, and it comes", append(oversized, make([]byte, wire.MaxMessage+1)...)},
		{"malformed", malformed},
		{"length without end", []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
	}
	for _, test := range tests {
		t.Run(test.name+" at first", func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				p := w.dial()
				go func() { _, _ = p.conn.Write(test.bytes) }() // the far end may close before all is written
				p.refused(wire.CodeProtocol)
				w.empty()
			})
		})
		t.Run(test.name+" later", func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				t := w.t
				p := w.dial().login()
				p.register(spec("web", 8080))
				go func() { _, _ = p.conn.Write(test.bytes) }()
				p.refused(wire.CodeProtocol)
				if c := w.control(p); c == nil || c.link != nil || len(c.tunnels) != 1 {
					t.Error("its tunnels do not wait for it")
				}
				q := w.dial()
				q.enter(q.proof(p, 2))
			})
		})
	}
}

func TestTruncatedMessage(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial()
		if _, err := p.conn.Write([]byte{200, 1, 10}); err != nil {
			t.Fatal(err)
		}
		p.leave()
		synctest.Wait()
		if log := w.log.String(); !strings.Contains(log, "read hello: ") {
			t.Errorf("logged %q", log)
		}
		q := w.dial().login()
		if _, err := q.conn.Write([]byte{200, 1, 10}); err != nil {
			t.Fatal(err)
		}
		q.leave()
		if c := w.control(q); c == nil || c.link != nil {
			t.Error("the Control does not wait for its client")
		}
	})
}

// endOf reads until conn ends, and tells how long that took.
func endOf(t *testing.T, conn net.Conn) time.Duration {
	t.Helper()
	start := time.Now()
	n, err := io.Copy(io.Discard, conn)
	if n > 0 || err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read %d bytes, %v", n, err)
	}
	return time.Since(start)
}

func TestSilence(t *testing.T) {
	hello := clientHello(t)
	inWorld(t, testPolicy(), func(w *world) { // from the first
		t := w.t
		if took := endOf(t, w.connect()); took != defaultHandshakeTimeout {
			t.Errorf("closed after %v", took)
		}
	})
	inWorld(t, testPolicy(), func(w *world) { // a byte now and then
		t := w.t
		conn := w.connect()
		w.tasks.Go(func() {
			for _, b := range hello {
				if _, err := conn.Write([]byte{b}); err != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
		if took := endOf(t, conn); took != defaultHandshakeTimeout {
			t.Errorf("slow ClientHello: closed after %v", took)
		}
	})
	inWorld(t, testPolicy(), func(w *world) { // after the handshake
		t := w.t
		start := time.Now()
		p := w.dial()
		time.Sleep(defaultHandshakeTimeout - time.Nanosecond)
		p.silent()
		time.Sleep(time.Nanosecond)
		p.ended()
		if took := time.Since(start); took != defaultHandshakeTimeout {
			t.Errorf("no Hello: closed after %v", took)
		}
	})
}

// A peer that stops in the middle of its handshake takes nothing from others.
func TestHalfHandshakes(t *testing.T) {
	hello := clientHello(t)
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		for range 4 * handshakeSlots {
			conn := w.connect()
			if _, err := conn.Write(hello); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, conn) }() // it hears the answer, and says no more
		}
		synctest.Wait()
		start := time.Now()
		w.dial().login()
		if waited := time.Since(start); waited > 0 {
			t.Errorf("a client had to wait for %v", waited)
		}
	})
}

func TestGarbage(t *testing.T) {
	tests := []struct{ name, bytes string }{
		{"HTTP", "GET / HTTP/1.1\r\nHost: example\r\n\r\n"},
		{"zeros", strings.Repeat("\x00", 100)},
		{"TLS alert", "\x15\x03\x03\x00\x02\x02\x28"},
		{"record too long", "\x16\x03\x01\xff\xff"},
		{"hello of nonsense", "\x16\x03\x01\x00\x08\x01\x00\x00\x04abcd"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				t := w.t
				start := time.Now()
				conn := w.connect()
				go func() { _, _ = io.WriteString(conn, test.bytes) }()
				_, _ = io.Copy(io.Discard, conn) // an alert at most
				if waited := time.Since(start); waited > 0 {
					t.Errorf("closed after %v", waited)
				}
				if !strings.Contains(w.log.String(), "control connection refused") {
					t.Error("nothing was logged")
				}
			})
		})
	}
}

func TestFailedLoginsAreLimited(t *testing.T) {
	policy := testPolicy()
	policy.Heartbeat = time.Hour
	inWorld(t, policy, func(w *world) {
		var inside *peer
		for i := range 3 * failureBurst { // successes cost nothing
			inside = w.dial()
			inside.name = fmt.Sprint("host", i)
			inside.login()
		}
		fail := func(want wire.Code) {
			p := w.dial()
			h := p.hello()
			h.GetCredential().Secret[0] ^= 1
			p.say(h.ClientMessage())
			p.refused(want)
		}
		for range failureBurst {
			fail(wire.CodeBadCredential)
		}
		fail(wire.CodeRate)
		// Whoever is inside goes on, and comes back.
		inside.register(spec("web", 8080))
		inside.leave()
		q := w.dial()
		q.enter(q.proof(inside, 2))
		time.Sleep(failureEvery)
		w.dial().login()
		fail(wire.CodeBadCredential)
		fail(wire.CodeRate)
	})
}

// Silent peers cannot keep others out: the one that waits longest makes room.
func TestTooManyUnadmitted(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		w.door.room = newWaitingRoom(2)
		ln := &oneConn{conns: make(chan net.Conn, 1)}
		w.tasks.Go(func() { w.door.serve(w.ctx, ln) })
		var silent []net.Conn
		for range 2 {
			near, far := net.Pipe()
			ln.conns <- far
			synctest.Wait()
			silent = append(silent, near)
		}
		ln.conns <- nil // an error: accepting goes on after it
		near, far := net.Pipe()
		ln.conns <- far
		newPeer(t, near, func() { time.Sleep(2 * acceptPause); synctest.Wait() }).login()
		if took := endOf(t, silent[0]); took > 0 {
			t.Errorf("the oldest was closed after %v more", took)
		}
		if took := endOf(t, silent[1]); took == 0 {
			t.Error("the other was closed too")
		}
		close(ln.conns)
	})
}

// oneConn is a listener that accepts what it is given; nil stands for an error.
type oneConn struct {
	net.Listener
	conns chan net.Conn
}

func (l *oneConn) Accept() (net.Conn, error) {
	c, ok := <-l.conns
	switch {
	case !ok:
		return nil, net.ErrClosed
	case c == nil:
		return nil, errors.New("too many open files")
	}
	return c, nil
}
