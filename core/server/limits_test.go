package server

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

func TestDemand(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	type step struct {
		at      time.Duration
		loop, n int // a report, unless n is negative
		arrive  int
		ask     int
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"nothing waits", []step{{n: -1, ask: 0}, {loop: 0, n: 0, ask: 0}}},
		{"as many as wait", []step{{loop: 0, n: 3, ask: 3}, {n: -1, ask: 0}}},
		{"loops add up", []step{{loop: 0, n: 3, ask: 3}, {loop: 1, n: 2, ask: 2}}},
		{"a newer report replaces", []step{{loop: 0, n: 3, ask: 3}, {loop: 0, n: 5, ask: 2}, {loop: 0, n: 4, ask: 0}}},
		{"what arrives counts twice", []step{{loop: 0, n: 3, ask: 3}, {n: -1, arrive: 2, ask: 0}, {loop: 0, n: 3, ask: 2}}},
		{"it takes from the longest queue", []step{{loop: 0, n: 1, ask: 1}, {loop: 1, n: 4, ask: 4}, {n: -1, arrive: 5, ask: 0}, {loop: 0, n: 1, ask: 1}}},
		{"arrivals without demand", []step{{n: -1, arrive: 3, ask: 0}, {loop: 0, n: 2, ask: 2}}},
		{"bounded", []step{{loop: 0, n: 1000, ask: maxNeed}, {n: -1, ask: maxNeed}, {n: -1, ask: maxNeed}, {n: -1, ask: 1000 - 3*maxNeed}, {n: -1, ask: 0}}},
		{"an old report is void", []step{{loop: 0, n: 3, ask: 3}, {at: reportLife + 1, loop: 1, n: 4, ask: 1}}},
		{"a report lives that long", []step{{loop: 0, n: 3, ask: 3}, {at: reportLife, loop: 1, n: 4, ask: 4}}},
		{"an unanswered request is void", []step{{loop: 0, n: 3, ask: 3}, {at: requestLife, loop: 0, n: 3, ask: 0}, {at: requestLife + 1, loop: 0, n: 3, ask: 3}}},
		{"a later request keeps the earlier alive", []step{{loop: 0, n: 1, ask: 1}, {at: 2 * time.Second, loop: 0, n: 2, ask: 1}, {at: 4 * time.Second, loop: 0, n: 2, ask: 0}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var d demand
			for i, s := range test.steps {
				now := start.Add(s.at)
				if s.n >= 0 {
					d.noted(s.loop, s.n, now)
				}
				for range s.arrive {
					d.arrived(now)
				}
				if got := d.ask(0, now); got != s.ask {
					t.Fatalf("step %d: asks for %d, want %d", i, got, s.ask)
				}
			}
		})
	}
}

// What is asked for is never more than what waits, and what waits is asked for
// in the end.
func TestDemandProperty(t *testing.T) {
	for seed := range uint64(200) {
		draw := rand.New(rand.NewPCG(seed, 4))
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var d demand
		for range 200 {
			now = now.Add(time.Duration(draw.IntN(800)) * time.Millisecond)
			switch draw.IntN(3) {
			case 0:
				d.noted(draw.IntN(4), draw.IntN(600), now)
			case 1:
				d.arrived(now)
			}
			n := d.ask(0, now)
			total := 0
			for _, r := range d.waiting {
				total += r.n
			}
			if n < 0 || n > maxNeed || n > 0 && d.asked > total {
				t.Fatalf("seed %d: asked for %d, %d in all, while %d wait", seed, n, d.asked, total)
			}
		}
		now = now.Add(requestLife + time.Second)
		d.noted(0, 700, now)
		got := d.ask(0, now) + d.ask(0, now) + d.ask(0, now)
		if got != 700 {
			t.Fatalf("seed %d: asked for %d of 700", seed, got)
		}
	}
}

func TestFailures(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	f := newFailures()
	for i := range failureBurst {
		if !f.allow(a, now) {
			t.Fatalf("refused after %d failures", i)
		}
		f.note(a, now)
	}
	if f.allow(a, now) {
		t.Fatal("allowed after a burst")
	}
	if !f.allow(b, now) {
		t.Fatal("a neighbour pays for it")
	}
	if f.allow(a, now.Add(failureEvery-1)) {
		t.Fatal("allowed before it paid")
	}
	now = now.Add(failureEvery)
	for range 2 {
		if !f.allow(a, now) {
			t.Fatal("successes cost something")
		}
	}
	f.note(a, now)
	if f.allow(a, now) {
		t.Fatal("allowed twice for one")
	}
	now = now.Add(failureBurst * failureEvery)
	for i := range failureBurst {
		if !f.allow(a, now) {
			t.Fatalf("refused after %d failures, although all was paid for", i)
		}
		f.note(a, now)
	}
}

func TestFailuresByNetwork(t *testing.T) {
	tests := []struct {
		name, one, other string
		shared           bool
	}{
		{"one IPv6 /64", "2001:db8:1:2::1", "2001:db8:1:2:ffff::9", true},
		{"two IPv6 /64", "2001:db8:1:2::1", "2001:db8:1:3::1", false},
		{"two IPv4", "192.0.2.1", "192.0.2.2", false},
		{"IPv4 in IPv6", "192.0.2.1", "::ffff:192.0.2.1", true},
		{"two IPv4 in IPv6", "::ffff:192.0.2.2", "::ffff:192.0.2.1", false},
	}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			f := newFailures()
			for range failureBurst {
				f.note(netip.MustParseAddr(test.one), now)
			}
			if got := !f.allow(netip.MustParseAddr(test.other), now); got != test.shared {
				t.Errorf("%s pays for %s: %v", test.other, test.one, got)
			}
		})
	}
}

func TestFailuresAreBounded(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	address := func(i int) netip.Addr {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 0x0a000000+uint32(i))
		return netip.AddrFrom4(b)
	}
	f := newFailures()
	for i := range maxAddresses - 1 {
		f.note(address(i), now)
	}
	now = now.Add(failureEvery)
	keeper := netip.MustParseAddr("192.0.2.1")
	for range failureBurst {
		f.note(keeper, now)
	}
	f.note(address(maxAddresses), now) // full: what is paid for makes room
	if f.allow(keeper, now) || len(f.until) != 2 {
		t.Fatalf("%d entries are left", len(f.until))
	}
	for i := range 3 * maxAddresses {
		f.note(address(i), now)
		if len(f.until) > maxAddresses {
			t.Fatalf("%d entries", len(f.until))
		}
	}
}

// Logins in doubt count as failed while they take their time, and those that turn
// out well cost nothing.
func TestDoubtedLogins(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		const more = 3
		gate := make(chan struct{})
		w.door.authenticator = doubtingGuard{guard: w.guard, gate: gate}
		var peers []*peer
		for i := range failureBurst + more {
			p := w.dial()
			p.name = fmt.Sprintf("doubted-%d", i)
			p.say(p.hello().ClientMessage())
			synctest.Wait()
			peers = append(peers, p)
		}
		for _, p := range peers[failureBurst:] {
			p.refused(wire.CodeRate)
		}
		close(gate)
		for _, p := range peers[:failureBurst] {
			hear(p, (*wire.ServerMessage).GetWelcome)
		}
		for i := range failureBurst + more {
			p := w.dial()
			p.name = fmt.Sprintf("later-%d", i)
			p.login()
		}
	})
}

// doubtingGuard is a guard that has doubts about everybody, until gate is closed.
type doubtingGuard struct {
	*guard
	gate chan struct{}
}

func (g doubtingGuard) Authenticate(ctx context.Context, l Login) (Identity, error) {
	l.doubt()
	select {
	case <-g.gate:
	case <-ctx.Done():
		return Identity{}, ctx.Err()
	}
	return g.guard.Authenticate(ctx, l)
}
