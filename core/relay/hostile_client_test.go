package relay

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// served proves that a client engine still serves others.
func (f *far) served(t *testing.T, s *local) {
	t.Helper()
	p := f.peer(t)
	p.send(startFrame(1, linkWire), dataFrame(1, "welcome"), bare(frame.Fin, 1))
	service := s.take(t)
	wantRest(t, service, "welcome")
	say(t, service, "thanks")
	drop(service)
	p.wantData(1, "thanks")
	p.want(frame.Fin, 1)
	awaitThat(f.fixture, func(ev StreamEnded) bool { return ev.Reason == Done })
	drop(p)
	awaitThat(f.fixture, func(ev ConnClosed) bool { return ev.Reason == ProxyLost })
}

func TestClientRefusesBeforeReady(t *testing.T) {
	s := localServer(t, nil)
	f := startFar(t, linkOptions{target: s.target})
	forged := readyFrame(1 << 40)
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"forged READY":            {forged, errReadyMAC},
		"forged READY and START":  {append(forged, startFrame(1, linkWire)...), errReadyMAC},
		"START":                   {startFrame(1, linkWire), nil},
		"PING":                    {bare(frame.Ping, 0), nil},
		"CLOSE":                   {bare(frame.Close, 0), nil},
		"RESET":                   {resetFrame(0, frame.ResetPeer), nil},
		"FIN":                     {bare(frame.Fin, 0), nil},
		"DATA":                    {dataFrame(0, "x"), nil},
		"text":                    {[]byte("SSH-2.0-OpenSSH_9.2\r\n"), nil},
		"READY of another length": {header(byte(frame.Ready), 0, 0, 0, 0, 0, 0, 31), nil},
	} {
		t.Run(name, func(t *testing.T) {
			p := f.dialledPeer(t)
			p.send(c.bytes)
			ev := await[DialFailed](f.fixture)
			if ev.Err == nil || c.want != nil && !errors.Is(ev.Err, c.want) || ev.Ref != f.dialled.Load() {
				t.Fatalf("got %+v", ev)
			}
			if got := p.rest(); len(got) != 0 {
				t.Fatalf("answered with %v", got)
			}
		})
	}
	t.Run("gone", func(t *testing.T) {
		drop(f.dialledPeer(t))
		if ev := await[DialFailed](f.fixture); ev.Err == nil {
			t.Fatalf("got %+v", ev)
		}
	})
	f.served(t, s)
	if n := total[ConnOpened](f.fixture); n != 1 {
		t.Fatalf("%d conns opened, want that of the last check", n)
	}
}

func TestClientRefusesOnIdleConn(t *testing.T) {
	s := localServer(t, nil)
	f := startFar(t, linkOptions{target: s.target})
	mixed := startFrame(1, linkWire)
	frame.PutStart(mixed, 1, frame.Stream{Tunnel: linkWire, Source: netip.MustParseAddrPort("[2001:db8::1]:1"), Destination: netip.MustParseAddrPort("192.0.2.1:2")})
	for name, bytes := range with(malformed, map[string][]byte{
		"DATA":                      dataFrame(0, "x"),
		"DATA before START":         append(dataFrame(1, "x"), startFrame(1, linkWire)...),
		"FIN":                       bare(frame.Fin, 0),
		"READY":                     readyFrame(1),
		"PONG":                      bare(frame.Pong, 0),
		"RETIRE":                    bare(frame.Retire, 0),
		"START with mixed families": mixed,
	}) {
		t.Run(name, func(t *testing.T) {
			p := f.peer(t)
			f.refuses(p, bytes)
		})
	}
	f.served(t, s)
}

func TestClientRefusesInStream(t *testing.T) {
	s := localServer(t, nil)
	f := startFar(t, linkOptions{target: s.target})
	for name, bytes := range with(malformed, map[string][]byte{
		"second START":       startFrame(2, linkWire),
		"DATA with next seq": dataFrame(2, "x"),
		"FIN with old seq":   bare(frame.Fin, 0),
		"DATA after FIN":     append(bare(frame.Fin, 1), dataFrame(1, "x")...),
		"READY":              readyFrame(1),
		"PING":               bare(frame.Ping, 1),
		"PONG":               bare(frame.Pong, 1),
		"RETIRE":             bare(frame.Retire, 1),
		"CLOSE":              bare(frame.Close, 1),
	}) {
		t.Run(name, func(t *testing.T) {
			p := f.peer(t)
			p.send(startFrame(1, linkWire), dataFrame(1, "so far so good"))
			service := s.take(t)
			hear(t, service, "so far so good")
			p.send(bytes)
			if got := readAll(t, service); len(got) != 0 {
				t.Fatalf("the LocalServer got %q", got)
			}
			p.rest()
			if ev := await[ConnClosed](f.fixture); ev.Reason != ProtocolError {
				t.Fatalf("closed with %+v", ev)
			}
			if ev := await[StreamEnded](f.fixture); ev.Reason != ProtocolError {
				t.Fatalf("ended with %+v", ev)
			}
		})
	}
	f.served(t, s)
}

func TestClientLosesConnInStream(t *testing.T) {
	s := localServer(t, nil)
	f := startFar(t, linkOptions{target: s.target})
	for name, lose := range losses {
		t.Run(name, func(t *testing.T) {
			p := f.peer(t)
			p.send(startFrame(1, linkWire), dataFrame(1, "half a mess"))
			service := s.take(t)
			hear(t, service, "half a mess")
			lose(p)
			wantReset(t, service)
			if ev := await[StreamEnded](f.fixture); ev.Reason != ProxyLost {
				t.Fatalf("ended with %+v", ev)
			}
		})
	}
	f.served(t, s)
}

func TestClientIdleFrames(t *testing.T) {
	f := startFar(t, linkOptions{})
	p := f.peer(t)
	for seq := range uint16(3) {
		p.send(bare(frame.Ping, seq), resetFrame(seq, frame.ResetPeer))
		p.want(frame.Pong, seq)
	}
	p.send(bare(frame.Close, 0))
	if got := p.rest(); len(got) != 0 {
		t.Fatalf("answered CLOSE with %v", got)
	}
	if ev := await[ConnClosed](f.fixture); ev.Reason != Closed {
		t.Fatalf("closed with %+v", ev)
	}
}

// A server that pings and never reads the answers costs no memory.
func TestClientPiledPings(t *testing.T) {
	f := startFar(t, linkOptions{})
	p := f.peer(t)
	pings := bytes.Repeat(bare(frame.Ping, 1), 64<<10)
	for range 16 { // 8 MiB of answers: more than the sockets hold
		p.send(pings)
	}
	f.passed()
	f.inLoop(0, func(l *loop) {
		for h := range l.poll.handlers() {
			if c, ok := h.(*proxyConn); ok && c.out != nil && len(c.out.bytes()) > 2*frame.HeaderSize {
				t.Errorf("%d bytes of answers wait", len(c.out.bytes()))
			}
		}
	})
}

// All of a stream in one segment, its end and the beginning of the next in
// another, and everything cut at every byte.
func TestClientReassembles(t *testing.T) {
	s := localServer(t, echo)
	f := startFar(t, linkOptions{target: s.target})
	p := f.peer(t)
	answer := func(seq uint16) {
		p.wantData(seq, "onetwo")
		p.want(frame.Fin, seq)
	}
	stream := func(seq uint16) []byte {
		return bytes.Join([][]byte{startFrame(seq, linkWire), dataFrame(seq, "one"), dataFrame(seq, "two"), bare(frame.Fin, seq)}, nil)
	}
	seq := uint16(1)
	p.send(stream(seq))
	answer(seq)
	for i := 1; i < len(stream(1)); i++ {
		seq++
		b := append(bare(frame.Ping, 9), stream(seq)...)
		p.send(b[:i])
		f.passed()
		p.send(b[i:])
		p.want(frame.Pong, 9)
		answer(seq)
	}
	seq++
	for _, b := range stream(seq) {
		p.send([]byte{b})
		f.passed()
	}
	answer(seq)
	if n := total[ConnClosed](f.fixture); n != 0 {
		t.Fatalf("%d conns closed", n)
	}
}

// FIN of one stream and START of the next come in one segment when the
// LocalServer ended first.
func TestClientFinAndStartTogether(t *testing.T) {
	s := localServer(t, nil)
	f := startFar(t, linkOptions{target: s.target})
	p := f.peer(t)
	p.send(startFrame(1, linkWire))
	for seq := uint16(1); seq <= 20; seq++ {
		service := s.take(t)
		closeWrite(t, service)
		p.want(frame.Fin, seq)
		p.send(dataFrame(seq, "the last of it"), bare(frame.Fin, seq), startFrame(seq+1, linkWire))
		wantRest(t, service, "the last of it")
	}
}

// RESET and START together: the next stream begins where the last was cut.
func TestClientResetAndStartTogether(t *testing.T) {
	s := localServer(t, nil)
	f := startFar(t, linkOptions{target: s.target})
	p := f.peer(t)
	p.send(startFrame(1, linkWire))
	for seq := uint16(1); seq <= 20; seq++ {
		service := s.take(t)
		closeWrite(t, service)
		p.want(frame.Fin, seq)
		p.send(resetFrame(seq, frame.ResetPeer), startFrame(seq+1, linkWire), resetFrame(seq, frame.ResetPeer))
		wantBroken(t, service)
	}
}

func TestClientDialFails(t *testing.T) {
	f := startFar(t, linkOptions{target: nobody(t)})
	p := f.peer(t)
	for seq, last := range [][]byte{resetFrame(1, frame.ResetAcknowledge), bare(frame.Fin, 2), resetFrame(3, frame.ResetPeer)} {
		seq := uint16(seq + 1)
		p.send(startFrame(seq, linkWire), dataFrame(seq, "for nobody"))
		p.wantReset(seq, frame.ResetDial)
		p.send(dataFrame(seq, "under way"), last)
	}
	p.send(startFrame(4, linkWire+1))
	p.wantReset(4, frame.ResetTunnel)
	p.send(resetFrame(4, frame.ResetAcknowledge), bare(frame.Ping, 1))
	p.want(frame.Pong, 1)
}

// The LocalServer stalls, so that RESET stands behind bytes that nobody takes:
// it is seen as soon as they are.
func TestClientResetBehindBlockedBytes(t *testing.T) {
	s := localServer(t, nil)
	f := startFar(t, linkOptions{target: s.target})
	p := f.peer(t)
	p.send(startFrame(1, linkWire))
	service := s.take(t)
	payload := strings.Repeat("x", 64<<10)
	for blocked := false; !blocked; {
		p.send(dataFrame(1, payload))
		f.inLoop(0, func(l *loop) {
			for h := range l.poll.handlers() {
				if c, ok := h.(*proxyConn); ok {
					blocked = c.in.blocked
				}
			}
		})
	}
	p.send(resetFrame(1, frame.ResetPeer))
	f.passed()
	if n := total[StreamEnded](f.fixture); n != 0 {
		t.Fatal("RESET overtook the bytes before it")
	}
	if _, err := io.Copy(io.Discard, service); err == nil {
		t.Fatal("an orderly end")
	}
	p.wantReset(1, frame.ResetAcknowledge)
	p.send(startFrame(2, linkWire), dataFrame(2, "next"))
	hear(t, s.take(t), "next")
}

// While the LocalServer is being dialled, what follows START is held and
// reading stops.
func TestClientHoldsWhileDialling(t *testing.T) {
	silent := silentTCP(t)
	f := startFar(t, linkOptions{target: Target{Addresses: []Address{silent}}})
	p := f.peer(t)
	p.send(startFrame(1, linkWire))
	b := make([]byte, 64<<10)
	_ = p.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for {
		_, err := p.Write(dataFrame(1, string(b)))
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f.inLoop(0, func(l *loop) {
		for h := range l.poll.handlers() {
			c, ok := h.(*proxyConn)
			if !ok {
				continue
			}
			if c.in.held == nil {
				t.Error("nothing is held")
			} else if n := len(c.in.held.bytes()); n > maxHeldDialing {
				t.Errorf("%d bytes are held", n)
			}
		}
	})
}
