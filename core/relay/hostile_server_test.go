package relay

import (
	"bytes"
	"io"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// header is eight bytes as they stand on the wire.
func header(b ...byte) []byte { return b }

// What no peer may send, whatever the state of its conn.
var malformed = map[string][]byte{
	"type zero":          header(0, 0, 0, 0, 0, 0, 0, 0),
	"type unknown":       header(99, 0, 0, 0, 0, 0, 0, 0),
	"text":               []byte("GET / HTTP/1.1\r\n\r\n"),
	"flags":              header(byte(frame.Fin), 1, 0, 1, 0, 0, 0, 0),
	"empty DATA":         header(byte(frame.Data), 0, 0, 1, 0, 0, 0, 0),
	"DATA of 1 MiB + 1":  header(byte(frame.Data), 0, 0, 1, 0, 0x10, 0, 1),
	"DATA of 4 GiB":      header(byte(frame.Data), 0, 0, 1, 0xff, 0xff, 0xff, 0xff),
	"FIN with a payload": header(byte(frame.Fin), 0, 0, 1, 0, 0, 0, 1),
	"short RESET":        header(byte(frame.Reset), 0, 0, 1, 0, 0, 0, 3),
}

// How a conn ends in a stream: the end of the connection is not that of the
// stream.
var losses = map[string]func(p *peer){
	"FIN":              func(p *peer) { _ = p.CloseWrite() },
	"FIN in a header":  func(p *peer) { p.send(bare(frame.Fin, 1)[:5]); _ = p.CloseWrite() },
	"FIN in a payload": func(p *peer) { p.send(dataFrame(1, "whole")[:10]); _ = p.CloseWrite() },
	"RST":              func(p *peer) { reset(p.tb, p.TCPConn) },
}

// refuses sends what an idle conn may not carry: it is closed without an answer.
func (f *fixture) refuses(p *peer, bytes []byte) {
	p.tb.Helper()
	p.send(bytes)
	if got := p.rest(); len(got) != 0 {
		p.tb.Fatalf("answered with %v", got)
	}
	if ev := await[ConnClosed](f); ev.Reason != ProtocolError {
		p.tb.Fatalf("closed with %+v", ev)
	}
}

// with gives both tables as one.
func with(a, b map[string][]byte) map[string][]byte {
	all := make(map[string][]byte)
	maps.Copy(all, a)
	maps.Copy(all, b)
	return all
}

// served proves that a server engine still serves others.
func (n *near) served(t *testing.T) {
	t.Helper()
	p := n.peer(t)
	visitor := dialTCP(t, n.public)
	p.want(frame.Start, 1)
	p.send(dataFrame(1, "welcome"), bare(frame.Fin, 1))
	wantRest(t, visitor, "welcome")
	drop(visitor)
	p.want(frame.Fin, 1)
	drop(p)
	if ev := awaitThat(n.fixture, func(ev StreamEnded) bool { return ev.Reason == Done }); ev.Down != 7 {
		t.Fatalf("ended with %+v", ev)
	}
	awaitThat(n.fixture, func(ev ConnClosed) bool { return ev.Reason == ProxyLost })
}

func TestServerRefusesOnIdleConn(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	for name, bytes := range with(malformed, map[string][]byte{
		"DATA":                dataFrame(0, "x"),
		"DATA of next stream": dataFrame(1, "x"),
		"FIN":                 bare(frame.Fin, 0),
		"START":               startFrame(1, linkWire),
		"READY":               readyFrame(1),
		"PING":                bare(frame.Ping, 0),
		"CLOSE":               bare(frame.Close, 0),
		"START with bad size": header(byte(frame.Start), 0, 0, 1, 0, 0, 0, 39),
	}) {
		t.Run(name, func(t *testing.T) {
			p := n.peer(t)
			n.refuses(p, bytes)
		})
	}
	n.served(t)
}

func TestServerRefusesInStream(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	for name, bytes := range with(malformed, map[string][]byte{
		"DATA with old seq":  dataFrame(0, "x"),
		"DATA with next seq": dataFrame(2, "x"),
		"FIN with wrong seq": bare(frame.Fin, 2),
		"DATA after FIN":     append(bare(frame.Fin, 1), dataFrame(1, "x")...),
		"FIN after FIN":      append(bare(frame.Fin, 1), bare(frame.Fin, 1)...),
		"DATA after RESET":   append(resetFrame(1, frame.ResetPeer), dataFrame(1, "x")...),
		"START":              startFrame(2, linkWire),
		"READY":              readyFrame(1),
		"PING":               bare(frame.Ping, 1),
		"CLOSE":              bare(frame.Close, 1),
	}) {
		t.Run(name, func(t *testing.T) {
			p := n.peer(t)
			visitor := dialTCP(t, n.public)
			p.want(frame.Start, 1)
			p.send(dataFrame(1, "so far "), dataFrame(1, "so good"))
			hear(t, visitor, "so far so good")
			p.send(bytes)
			if got := readAll(t, visitor); len(got) != 0 {
				t.Fatalf("the visitor got %q", got)
			}
			p.rest()
			if ev := await[ConnClosed](n.fixture); ev.Reason != ProtocolError {
				t.Fatalf("closed with %+v", ev)
			}
			if ev := await[StreamEnded](n.fixture); ev.Reason == Done {
				t.Fatalf("ended with %+v", ev)
			}
		})
	}
	n.served(t)
}

func TestServerLosesConnInStream(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	for name, lose := range losses {
		t.Run(name, func(t *testing.T) {
			p := n.peer(t)
			visitor := dialTCP(t, n.public)
			p.want(frame.Start, 1)
			p.send(dataFrame(1, "half a mess"))
			hear(t, visitor, "half a mess")
			lose(p)
			wantReset(t, visitor)
			if ev := await[StreamEnded](n.fixture); ev.Reason != ProxyLost {
				t.Fatalf("ended with %+v", ev)
			}
			if ev := await[ConnClosed](n.fixture); ev.Reason != ProxyLost {
				t.Fatalf("closed with %+v", ev)
			}
		})
	}
	n.served(t)
}

// A RESET that crossed the end of its stream means nothing to those that
// follow on the conn.
func TestServerIgnoresLateReset(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	p := n.peer(t)
	for seq := uint16(1); seq <= 3; seq++ {
		p.send(resetFrame(seq-1, frame.ResetPeer), resetFrame(seq+1, frame.ResetPeer))
		n.passed()
		visitor := dialTCP(t, n.public)
		p.want(frame.Start, seq)
		p.send(resetFrame(seq-1, frame.ResetPeer), dataFrame(seq, "unharmed"), bare(frame.Fin, seq))
		wantRest(t, visitor, "unharmed")
		drop(visitor)
		p.want(frame.Fin, seq)
	}
	if n := total[ConnClosed](n.fixture); n != 0 {
		t.Fatalf("%d conns closed", n)
	}
}

func TestServerTakesReset(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	p := n.peer(t)
	for code, want := range map[frame.ResetCode]Reason{
		frame.ResetPeer: RemoteReset, frame.ResetDial: DialError, frame.ResetTunnel: UnknownTunnel, frame.ResetTimeout: RemoteReset,
		frame.ResetExhausted: NoDescriptors, frame.ResetClosed: Cut, 4711: RemoteReset,
	} {
		t.Run(code.String(), func(t *testing.T) {
			visitor := dialTCP(t, n.public)
			g, err := p.next()
			if err != nil || g.Type != frame.Start {
				t.Fatalf("got %v, %v", g, err)
			}
			p.send(resetFrame(g.Seq, code))
			p.wantReset(g.Seq, frame.ResetAcknowledge)
			wantReset(t, visitor)
			if ev := await[StreamEnded](n.fixture); ev.Reason != want {
				t.Fatalf("ended with %+v, want %v", ev, want)
			}
		})
	}
}

// RESET after FIN still tells that the stream failed, and leaves the conn
// usable.
func TestServerTakesResetAfterFin(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	p := n.peer(t)
	visitor := dialTCP(t, n.public)
	p.want(frame.Start, 1)
	p.send(bare(frame.Fin, 1))
	wantRest(t, visitor, "")
	p.send(resetFrame(1, frame.ResetPeer))
	p.wantReset(1, frame.ResetAcknowledge)
	wantBroken(t, visitor)
	next := dialTCP(t, n.public)
	p.want(frame.Start, 2)
	p.send(dataFrame(2, "next"), bare(frame.Fin, 2))
	wantRest(t, next, "next")
}

// When the visitor resets, what is under way is dropped up to a bound.
func TestServerDropsAfterReset(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	begin := func(t *testing.T, p *peer, seq uint16) {
		t.Helper()
		visitor := dialTCP(t, n.public)
		p.want(frame.Start, seq)
		reset(t, visitor)
		p.wantReset(seq, frame.ResetPeer)
	}
	t.Run("little", func(t *testing.T) {
		p := n.peer(t)
		begin(t, p, 1)
		p.send(dataFrame(1, strings.Repeat("x", maxDropped)), resetFrame(1, frame.ResetAcknowledge))
		begin(t, p, 2) // the conn is used again
		p.send(dataFrame(2, "some more"), bare(frame.Fin, 2))
		begin(t, p, 3)
	})
	t.Run("too much", func(t *testing.T) {
		p := n.peer(t)
		begin(t, p, 1)
		p.send(dataFrame(1, strings.Repeat("x", maxDropped+1)))
		p.rest()
		awaitThat(n.fixture, func(ev ConnClosed) bool { return ev.Reason == Closed })
	})
	t.Run("nothing, for ever", func(t *testing.T) {
		set := DefaultSettings()
		set.Connect = 50 * time.Millisecond
		n.Submit(Configure{Settings: set})
		p := n.peer(t)
		begin(t, p, 1)
		wantReset(t, p) // which overtakes what the client may be blocked behind
	})
}

func TestServerRetires(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	t.Run("idle", func(t *testing.T) {
		p := n.peer(t)
		p.send(bare(frame.Retire, 0))
		p.want(frame.Close, 0)
		if got, err := io.ReadAll(p); err != nil || len(got) != 0 {
			t.Fatalf("after CLOSE came %x, %v", got, err)
		}
	})
	t.Run("in a stream", func(t *testing.T) {
		p := n.peer(t)
		visitor := dialTCP(t, n.public)
		p.want(frame.Start, 1)
		p.send(bare(frame.Retire, 0), dataFrame(1, "first this"))
		hear(t, visitor, "first this")
		say(t, visitor, "and that")
		p.wantData(1, "and that")
		drop(visitor)
		p.want(frame.Fin, 1)
		p.send(bare(frame.Fin, 1))
		p.want(frame.Close, 0)
		if got, err := io.ReadAll(p); err != nil || len(got) != 0 {
			t.Fatalf("after CLOSE came %x, %v", got, err)
		}
	})
}

// Frames arrive as the network cuts them: at every byte, and many at once.
func TestServerReassembles(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	p := n.peer(t)
	talk := func(seq uint16) []byte {
		return bytes.Join([][]byte{resetFrame(seq-1, 1), dataFrame(seq, "one"), dataFrame(seq, "two"), bare(frame.Fin, seq)}, nil)
	}
	seq := uint16(0)
	hold := func(cut func(b []byte)) {
		seq++
		visitor := dialTCP(t, n.public)
		closeWrite(t, visitor)
		p.want(frame.Start, seq)
		p.want(frame.Fin, seq)
		cut(talk(seq))
		wantRest(t, visitor, "onetwo")
	}
	for i := 1; i < len(talk(1)); i++ {
		hold(func(b []byte) {
			p.send(b[:i])
			n.passed()
			p.send(b[i:])
		})
	}
	hold(func(b []byte) {
		for i := range b {
			p.send(b[i : i+1])
			n.passed()
		}
	})
	if n := total[ConnClosed](n.fixture); n != 0 {
		t.Fatalf("%d conns closed", n)
	}
}

// stranger is a connection to the proxy port that has sent nothing.
func (n *near) stranger(tb testing.TB) *net.TCPConn {
	tb.Helper()
	return dialTCP(tb, n.proxy)
}

func TestBadPrefaces(t *testing.T) {
	n := startNear(t, linkOptions{}, nil)
	good := prefaceOf(1).Seal(frame.NewKey(linkKey), frame.Exporter{})
	forged := prefaceOf(1).Seal(frame.NewKey([]byte("another key")), frame.Exporter{})
	for name, first := range map[string][]byte{
		"TLS":            {frame.TLSHandshake},
		"text":           []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"other version":  []byte("CPX\x02"),
		"zeros":          make([]byte, frame.PrefaceSize),
		"forged MAC":     forged[:],
		"frames at once": startFrame(1, linkWire),
	} {
		t.Run(name, func(t *testing.T) {
			c := n.stranger(t)
			if _, err := c.Write(first); err != nil {
				t.Fatal(err)
			}
			if got := readAll(t, c); len(got) != 0 {
				t.Fatalf("answered with %x", got)
			}
			ev := await[PrefaceFailed](n.fixture)
			want := BadPreface
			if name == "TLS" {
				want = TLSPreface
			}
			if ev.Reason != want || ev.Peer.String() != c.LocalAddr().String() {
				t.Fatalf("got %+v", ev)
			}
		})
	}
	t.Run("gone in the middle", func(t *testing.T) {
		c := n.stranger(t)
		_, _ = c.Write(good[:40])
		drop(c)
		if ev := await[PrefaceFailed](n.fixture); ev.Reason != BadPreface {
			t.Fatalf("got %+v", ev)
		}
	})
	t.Run("cut at every byte", func(t *testing.T) {
		for i := 1; i < frame.PrefaceSize; i++ {
			p := &peer{TCPConn: n.stranger(t), tb: t}
			p.send(good[:i])
			n.passed()
			p.send(good[i:])
			p.want(frame.Ready, 0)
			drop(p)
		}
	})
	n.served(t)
}
