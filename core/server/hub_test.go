package server

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

func TestPreface(t *testing.T) {
	type preface struct {
		frame.Preface
		key []byte
		raw func(*[frame.PrefaceSize]byte)
	}
	tests := []struct {
		name  string
		spoil func(p *preface)
		says  string
	}{
		{"unknown control", func(p *preface) { p.ControlID++ }, "unknown or former session"},
		{"former epoch", func(p *preface) { p.Epoch-- }, "unknown or former session"},
		{"later epoch", func(p *preface) { p.Epoch++ }, "unknown or former session"},
		{"forged", func(p *preface) { p.key = make([]byte, wire.SessionKeySize) }, "not signed"},
		{"one bit", func(p *preface) { p.raw = func(b *[frame.PrefaceSize]byte) { b[frame.PrefaceSize-1] ^= 1 } }, "not signed"},
		{"another proxy id", func(p *preface) { p.raw = func(b *[frame.PrefaceSize]byte) { b[31]++ } }, "not signed"},
		{"TLS", func(p *preface) { p.Mode = frame.TLS }, "mode"},
		{"no mode", func(p *preface) { p.Mode = 9 }, "mode"},
		{"no magic", func(p *preface) { p.raw = func(b *[frame.PrefaceSize]byte) { b[0] = 'X' } }, "magic"},
		{"proxy id zero", func(p *preface) { p.ProxyID = 0 }, "used before"},
		{"replay", func(p *preface) { p.ProxyID = 1 }, "used before"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				t := w.t
				p := w.dial()
				p.epoch = 5
				p.login()
				key := p.welcome.GetSessionKey()
				first := prefaceOf(p.welcome, 1)
				w.sequence()
				w.feed(relay.PrefaceReceived{Conn: 100, Preface: first.Seal(frame.NewKey(key), frame.Exporter{})})
				want := relay.Park{Conn: 100, Pool: w.control(p).pool, Ready: first.Ready(frame.NewKey(key), frame.Exporter{})}
				if got := commands[relay.Park](w); len(got) != 1 || got[0] != want {
					t.Fatalf("parked %v, want %v", got, want)
				}

				bad := preface{Preface: prefaceOf(p.welcome, 2), key: key}
				test.spoil(&bad)
				sealed := bad.Seal(frame.NewKey(bad.key), frame.Exporter{})
				if bad.raw != nil {
					bad.raw(&sealed)
				}
				w.feed(relay.PrefaceReceived{Conn: 101, Preface: sealed, Peer: netip.MustParseAddrPort("192.0.2.7:9")})
				if got := commands[relay.Command](w); len(got) != 1 || got[0] != (relay.Close{Conn: 101}) {
					t.Fatalf("commands %v", got)
				}
				if log := w.log.String(); !strings.Contains(log, test.says) || !strings.Contains(log, "192.0.2.7:9") {
					t.Errorf("the log does not say %q", test.says)
				}
				// Nothing of it counts against the client.
				third := prefaceOf(p.welcome, 2)
				w.feed(relay.PrefaceReceived{Conn: 102, Preface: third.Seal(frame.NewKey(key), frame.Exporter{})})
				if got := w.sequence(); !slices.Equal(got, []string{"Park"}) {
					t.Errorf("then %v", got)
				}
			})
		})
	}
}

func TestPrefaceAfterResume(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		seal := func(wel *wire.Welcome) [frame.PrefaceSize]byte {
			return prefaceOf(wel, 1).Seal(frame.NewKey(wel.GetSessionKey()), frame.Exporter{})
		}
		w.feed(relay.PrefaceReceived{Conn: 1, Preface: seal(p.welcome)})
		q := w.dial()
		q.enter(q.proof(p, 2))
		w.sequence()
		w.feed(relay.PrefaceReceived{Conn: 2, Preface: seal(p.welcome)}, relay.PrefaceReceived{Conn: 3, Preface: seal(q.welcome)})
		if got := w.sequence(); !slices.Equal(got, []string{"Close", "Park"}) {
			t.Errorf("commands %v", got)
		}
		q.leave() // without its client a Control still takes ProxyConns
		w.feed(relay.PrefaceReceived{Conn: 4, Preface: prefaceOf(q.welcome, 2).Seal(frame.NewKey(q.welcome.GetSessionKey()), frame.Exporter{})})
		if got := w.sequence(); !slices.Equal(got, []string{"Park"}) {
			t.Errorf("commands %v", got)
		}
	})
}

func TestNeedProxyConn(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		pool := w.control(p).pool
		need := func(n uint32) {
			t.Helper()
			if got := hear(p, (*wire.ServerMessage).GetNeedProxyConn).GetN(); got != n {
				t.Fatalf("asked for %d, want %d", got, n)
			}
		}
		w.feed(relay.Needed{Pool: pool, Loop: 0, Waiting: 4})
		need(4)
		w.feed(relay.Needed{Pool: pool, Loop: 1, Waiting: 2}, relay.Needed{Pool: pool, Loop: 0, Waiting: 4})
		need(2)
		p.silent()
		w.feed(relay.ConnOpened{Pool: pool}, relay.ConnOpened{Pool: pool}, relay.ConnClosed{Pool: pool})
		if c := w.control(p); c.proxies != 1 {
			t.Errorf("%d ProxyConns are counted", c.proxies)
		}
		w.feed(relay.Needed{Pool: pool, Loop: 0, Waiting: 3})
		need(1) // 2 of loop 1 and 3 of loop 0 wait, and 4 are under way
		w.feed(relay.Needed{Pool: 999, Loop: 0, Waiting: 3}, relay.ConnOpened{Pool: 999}, relay.ConnClosed{Pool: 999})
		p.silent()

		p.leave()
		w.feed(relay.Needed{Pool: pool, Loop: 0, Waiting: 4})
		q := w.dial()
		q.enter(q.proof(p, 2))
		q.silent()
		w.feed(relay.Needed{Pool: pool, Loop: 0, Waiting: 4})
		if got := hear(q, (*wire.ServerMessage).GetNeedProxyConn).GetN(); got != 4 {
			t.Errorf("after a resume asked for %d", got)
		}
	})
}

func TestPolicyChange(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		p := w.dial().login()
		r := p.register(spec("web", 8080))
		pool := w.control(p).pool
		w.sequence()

		changed := testPolicy()
		changed.MaxConns, changed.PoolMax, changed.MaxTunnels = 7, 3, 1
		changed.Relay.MaxConns = 50
		s := &Server{hub: w.hub}
		if err := s.Reconfigure(t.Context(), changed); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.engine.mu.Lock()
		got := slices.Clone(w.engine.commands)
		w.engine.mu.Unlock()
		want := []relay.Command{
			relay.Configure{Settings: changed.Relay},
			relay.OpenPool{Pool: pool, Side: relay.ServerSide, MaxIdle: 3, Heartbeat: testPolicy().Heartbeat},
			relay.Reroute{Tunnel: relay.TunnelID(r.GetId()), Route: relay.ToPool{Pool: pool, Wire: r.GetId(), MaxConns: 7}},
		}
		if !slices.Equal(got, want) {
			t.Errorf("commands %v, want %v", got, want)
		}
		p.rejected(spec("api", 8081), wire.CodeTunnelLimit)

		if err := s.Reconfigure(t.Context(), Policy{}); err == nil || !strings.Contains(err.Error(), "no public bind") {
			t.Errorf("an empty policy: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := (&Server{hub: newHub(w.hub.options, w.engine)}).Reconfigure(ended, changed); !errors.Is(err, context.Canceled) {
			t.Errorf("a hub that does not run: %v", err)
		}
	})
}

func TestHeartbeat(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		beat := testPolicy().Heartbeat
		start := time.Now()
		p := w.dial().login()
		q := w.dial()
		q.token = "bob"
		q.login()
		for i := range 10 {
			time.Sleep(beat + sweepEvery)
			ping := hear(p, (*wire.ServerMessage).GetPing)
			p.say((&wire.Pong{Nonce: ping.GetNonce()}).ClientMessage())
			if i == 0 {
				hear(q, (*wire.ServerMessage).GetPing) // and never answered
			}
		}
		p.silent()
		q.ended()
		c := w.control(q)
		if c == nil {
			// Its grace has ended too.
			if time.Since(start) < testPolicy().Grace {
				t.Error("the silent client's Control ended within the grace")
			}
			return
		}
		if silence := c.away.Sub(start); c.link != nil || silence < 2*beat || silence > 3*beat {
			t.Errorf("the silent client was given up after %v", silence)
		}
	})
}

// A client that comes back is pinged as before, and given up as before.
func TestHeartbeatAfterResume(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		beat := testPolicy().Heartbeat
		p := w.dial().login()
		p.leave()
		q := w.dial()
		q.enter(q.proof(p, 2))
		for range 5 {
			time.Sleep(beat + sweepEvery)
			ping := hear(q, (*wire.ServerMessage).GetPing)
			q.say((&wire.Pong{Nonce: ping.GetNonce()}).ClientMessage())
		}
		q.silent()
		time.Sleep(3 * beat)
		q.ended()
		if c := w.control(q); c == nil || c.link != nil {
			w.t.Error("the client that fell silent was not given up, or its Control at once")
		}
	})
}

func TestReportsOfTheEngine(t *testing.T) {
	source := netip.MustParseAddrPort("192.0.2.7:9")
	tests := []struct {
		event relay.Event
		says  []string
	}{
		{relay.Refused{Tunnel: 77, Source: source, Reason: relay.ConnLimit, Whole: true}, []string{"visitor refused", "192.0.2.7:9", "closed tunnel 77", "raise limits.max_conns if"}},
		{relay.Refused{Source: source, Reason: relay.ConnLimit}, []string{"visitor refused", "limits.max_conns_per_tunnel"}},
		{relay.Refused{Source: source, Reason: relay.WaitTimeout}, []string{"visitor refused", "away or overloaded"}},
		{relay.Refused{Source: source, Reason: relay.VisitorLeft}, []string{"level=DEBUG", "visitor left"}},
		{relay.PrefaceFailed{Peer: source, Reason: relay.BadPreface}, []string{"proxy connection refused", "192.0.2.7:9", "bad preface"}},
		{relay.PrefaceFailed{Peer: source, Reason: relay.TLSPreface}, []string{"192.0.2.7:9", "looks like TLS", "address of ctl_listen"}},
		{relay.Exhausted{Err: errors.New("too many open files")}, []string{"level=ERROR", "LimitNOFILE", "too many open files"}},
		{relay.StreamEnded{Tunnel: 5, Source: source, Up: 3, Reason: relay.Done}, []string{"stream ended", "up=3", "done"}},
	}
	for _, test := range tests {
		inWorld(t, testPolicy(), func(w *world) {
			t := w.t
			const many = 50
			for range many {
				w.feed(test.event)
			}
			log := w.log.String()
			for _, s := range test.says {
				if !strings.Contains(log, s) {
					t.Errorf("%T: the log does not say %q: %s", test.event, s, log)
				}
			}
			if n := strings.Count(log, "\n"); n > 1 && !strings.Contains(log, "level=DEBUG") {
				t.Errorf("%T: %d lines for %d events", test.event, n, many)
			}
		})
	}
}

func TestEngineThatEnds(t *testing.T) {
	e := &fakeEngine{events: make(chan []relay.Event)}
	h := newHub(&Options{Policy: testPolicy(), Log: new(logtest.Output).Logger()}, e)
	close(e.events)
	if err := h.run(t.Context()); !errors.Is(err, errEngineEnded) {
		t.Errorf("ended with %v", err)
	}
}
