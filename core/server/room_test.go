package server

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

func TestRoomForVisitors(t *testing.T) {
	tests := []struct {
		name                                    string
		descriptors, loops, controls, listeners int
		want                                    int
	}{
		{"unknown", 0, 2, 1, 1, 0},
		{"nearly none", 10, 2, 1, 1, 1},
		{"few", 64, 2, 1, 1, 14},
		{"default of a shell", 1024, 2, 1, 1, 434},
		{"of a service", 65536, 2, 1, 1, 30706},
		{"many clients", 65536, 2, 2000, 10000, 24707},
		{"very many", 1 << 20, 8, 0, 0, (1<<20 - 4096 - 44) / 2},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := room{descriptors: test.descriptors, loops: test.loops}
			if changed := r.fit(test.controls, test.listeners); r.visitors != test.want || changed != (test.want != 0) {
				t.Errorf("room for %d visitors (changed: %v), want %d", r.visitors, changed, test.want)
			}
			if r.fit(test.controls, test.listeners) {
				t.Error("the same again is a change")
			}
		})
	}
}

func TestRoomOrPolicy(t *testing.T) {
	for _, test := range []struct{ visitors, policy, want int }{{0, 0, 0}, {0, 7, 7}, {9, 0, 9}, {9, 7, 7}, {7, 9, 7}} {
		r := room{visitors: test.visitors}
		if got := r.settings(relay.Settings{MaxConns: test.policy}).MaxConns; got != test.want {
			t.Errorf("room for %d and a limit of %d: %d", test.visitors, test.policy, got)
		}
	}
}

// A server short of descriptors tells its engine, and names the right limit.
func TestRoomOfTheHub(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		t := w.t
		w.hub.site.room = room{descriptors: 64, loops: 2}
		p := w.dial().login()
		r := p.register(spec("web", 8080))
		time.Sleep(2 * sweepEvery)
		synctest.Wait()
		got := commands[relay.Configure](w)
		if len(got) == 0 || got[len(got)-1].Settings.MaxConns != 14 {
			t.Fatalf("configured %v, want 14 visitors", got)
		}
		changed := testPolicy()
		changed.Relay.MaxConns = 50
		if err := (&Server{hub: w.hub}).Reconfigure(t.Context(), changed); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := commands[relay.Configure](w); len(got) != 1 || got[0].Settings.MaxConns != 14 {
			t.Errorf("a reload configures %v", got)
		}
		refused := relay.Refused{Tunnel: relay.TunnelID(r.GetId()), Source: netip.MustParseAddrPort("192.0.2.7:9"), Reason: relay.ConnLimit, Whole: true}
		w.feed(refused)
		if log := w.log.String(); !strings.Contains(log, "allows 14 visitors") || !strings.Contains(log, "LimitNOFILE") {
			t.Errorf("the log does not name the limit: %s", log)
		}
	})
}

// Spare ProxyConns leave the descriptors to visitors.
func TestRoomForSpareConns(t *testing.T) {
	for _, test := range []struct {
		name        string
		descriptors int
		asked       uint32
	}{{"enough", 0, 8}, {"few", 64, 4}, {"none", 44, 0}} {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				w.hub.site.room = room{descriptors: test.descriptors, loops: 2}
				p := w.dial().login()
				pool := w.control(p).pool
				w.feed(slices.Repeat([]relay.Event{relay.ConnOpened{Pool: pool}}, 10)...)
				w.use(relay.PoolUse{Pool: pool, Idle: 0, Claims: 6, Missed: 6, Drawn: 6})
				if test.asked == 0 {
					p.silent()
				} else if got := hear(p, (*wire.ServerMessage).GetNeedProxyConn).GetN(); got != test.asked {
					w.t.Errorf("asked for %d spare ones, want %d", got, test.asked)
				}
			})
		})
	}
}

// Pools that fill the room exactly stay as they are: nothing is closed to be asked
// for again.
func TestFullRoomIsSteady(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		w.hub.site.room = room{descriptors: 64, loops: 2}
		p := w.dial().login()
		pool := w.control(p).pool
		w.feed(slices.Repeat([]relay.Event{relay.ConnOpened{Pool: pool}}, 14)...)
		w.use(relay.PoolUse{Pool: pool, Idle: 8, Claims: 12, Drawn: 12})
		w.sequence()
		for tick := range 20 * int(trimEvery/sweepEvery) {
			u := relay.PoolUse{Pool: pool, Idle: 8}
			if tick%20 == 19 {
				u.Claims, u.Drawn = 12, 12
			}
			w.use(u)
			for len(p.heard) > 0 {
				if m := p.next(); m.GetPing() == nil {
					w.t.Fatalf("heard %v at tick %d, want nothing", m, tick)
				}
				p.say((&wire.Pong{}).ClientMessage())
			}
		}
		if room, bounded := w.hub.spareRoom(); room != 0 || !bounded {
			w.t.Fatalf("there is room for %d more (bounded: %v): the test is about none", room, bounded)
		}
		if trims := commands[relay.Trim](w); len(trims) > 0 {
			w.t.Errorf("idle ProxyConns were closed: %v", trims)
		}
	})
}

func TestConfine(t *testing.T) {
	for _, test := range []struct {
		name         string
		want, room   int
		idle         int
		claims       int
		wanted, left int
	}{
		{name: "room enough", want: 9, room: 10, idle: 4, wanted: 9, left: 5},
		{name: "little room", want: 9, room: 2, idle: 4, wanted: 6, left: 0},
		{name: "exactly full", want: 9, room: 0, idle: 4, wanted: 4, left: 0},
		{name: "shrinks by itself", want: 1, room: 0, idle: 4, wanted: 1, left: 0},
		{name: "too many", want: 9, room: -3, idle: 4, wanted: 1, left: 0},
		{name: "far too many", want: 9, room: -6, idle: 4, wanted: 0, left: -2},
		{name: "too many, and gives up more", want: 1, room: -1, idle: 4, wanted: 1, left: 0},
		{name: "too many, in use", want: 9, room: -3, idle: 4, claims: 1, wanted: 4, left: -3},
	} {
		t.Run(test.name, func(t *testing.T) {
			wanted, left := confine(test.want, test.room, relay.PoolUse{Idle: test.idle, Claims: test.claims})
			if wanted != test.wanted || left != test.left {
				t.Errorf("wants %d and leaves %d, want %d and %d", wanted, left, test.wanted, test.left)
			}
		})
	}
}

func TestLimitAdvice(t *testing.T) {
	for _, test := range []struct {
		perTunnel, all, visitors int
		whole                    bool
		says                     string
	}{
		{0, 0, 0, false, "overloaded"},
		{2, 0, 9, false, "max_conns_per_tunnel"},
		{0, 5, 9, true, "raise limits.max_conns if"},
		{2, 10, 9, true, "LimitNOFILE"},
	} {
		h := &hub{policy: Policy{MaxConns: test.perTunnel, Relay: relay.Settings{MaxConns: test.all}}, site: site{room: room{visitors: test.visitors}}}
		if got := h.limitAdvice(test.whole); !strings.Contains(got, test.says) {
			t.Errorf("%+v: %s", test, got)
		}
	}
}
