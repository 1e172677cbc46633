package server

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/identity"
)

// noon is a moment by the wall clock alone.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ownerNamed(tunnel string) portOwner { return portOwner{"alice", "host", tunnel} }

// sound expects that all indexes of a memory tell the same.
func (m *portMemory) sound(t *testing.T) {
	t.Helper()
	open, ports, subjects := 0, 0, make(map[string][2]int)
	for o, k := range m.owners {
		if k.owner != o || !slices.Contains(m.ports[k.port], k) {
			t.Fatalf("entry %v is indexed wrongly", k)
		}
		n := subjects[o.subject]
		n[0]++
		if k.idle == nil {
			open++
		} else {
			n[1]++
		}
		subjects[o.subject] = n
	}
	for port, list := range m.ports {
		if ports += len(list); len(list) == 0 {
			t.Fatalf("port %d is nobody's", port)
		}
	}
	if open != m.open || ports != len(m.owners) || len(subjects) != len(m.subjects) || len(m.owners) > maxRemembered {
		t.Fatalf("%d entries, %d ports, %d of %d open, %d of %d subjects", len(m.owners), ports, m.open, open, len(m.subjects), len(subjects))
	}
	for name, s := range m.subjects {
		if got := [2]int{s.ports, s.idle.Len()}; got != subjects[name] || s.ports > maxRememberedSubject {
			t.Fatalf("subject %q has %v, want %v", name, got, subjects[name])
		}
		var last time.Time
		for e := s.idle.Front(); e != nil; e = e.Next() {
			k, ok := e.Value.(*keptPort)
			if !ok || k.idle != e || k.used.Before(last) {
				t.Fatalf("subject %q: %v is out of order", name, e.Value)
			}
			last = k.used
		}
	}
}

func TestMemoryOfPortsLastsADay(t *testing.T) {
	tests := []struct {
		name   string
		closed time.Duration // after it was opened; negative: it stays open
		asked  time.Duration
		known  bool
	}{
		{"open", -1, 0, true},
		{"open for a week", -1, 7 * keepPort, true},
		{"just closed", time.Hour, time.Hour, true},
		{"closed for almost a day", time.Hour, time.Hour + keepPort - 1, true},
		{"closed for a day", time.Hour, time.Hour + keepPort, false},
		{"closed after a week, for almost a day", 7 * keepPort, 8*keepPort - 1, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := newPortMemory()
			m.opened(ownerNamed("web"), 5000)
			if test.closed >= 0 {
				m.closed(ownerNamed("web"), noon.Add(test.closed))
			}
			now := noon.Add(test.asked)
			own := m.port(ownerNamed("web"), now)
			unused, held := m.held(5000, ownerNamed("ssh"), now)
			if (own == 5000) != test.known || held != test.known {
				t.Errorf("own port %d, held for others: %v", own, held)
			}
			if want := test.asked - test.closed; held && test.closed >= 0 && unused != want {
				t.Errorf("unused for %v, want %v", unused, want)
			}
			if _, held := m.held(5000, ownerNamed("web"), now); held {
				t.Error("its port is kept from its owner")
			}
			if got := len(m.list(now, 0).ports); (got == 1) != test.known || len(m.owners) != got {
				t.Errorf("%d entries are listed, %d stay", got, len(m.owners))
			}
			m.sound(t)
		})
	}
}

func TestMemoryFollowsTheLastPort(t *testing.T) {
	m := newPortMemory()
	web, ssh := ownerNamed("web"), ownerNamed("ssh")
	m.opened(web, 5000)
	m.closed(web, noon)
	m.closed(web, noon.Add(time.Hour)) // it was not open
	m.opened(ssh, 5000)                // as a fixed port, say
	if unused, held := m.held(5000, ownerNamed("api"), noon.Add(time.Minute)); !held || unused != 0 {
		t.Errorf("a port in use counts as unused for %v", unused)
	}
	m.opened(web, 5001)
	if m.port(web, noon) != 5001 || m.port(ssh, noon) != 5000 {
		t.Errorf("ports %d and %d", m.port(web, noon), m.port(ssh, noon))
	}
	if _, held := m.held(5000, ssh, noon); held {
		t.Error("the former port of a tunnel is still its own")
	}
	m.sound(t)
	for range 2 { // one message is enough
		m.mark()
	}
	<-m.changed
	select {
	case <-m.changed:
		t.Error("a change is told twice")
	default:
	}
}

// Whatever happens, the memory is that of a model that never forgets.
func TestMemoryLikeModel(t *testing.T) {
	for seed := range uint64(200) {
		draw := rand.New(rand.NewPCG(seed, 4))
		m, now := newPortMemory(), noon
		type state struct {
			port uint16
			used time.Time
			open bool
		}
		model := make(map[portOwner]state)
		for range 300 {
			now = now.Add(time.Duration(draw.Int64N(int64(3 * time.Hour))))
			o := portOwner{fmt.Sprint(draw.IntN(3)), fmt.Sprint(draw.IntN(2)), fmt.Sprint(draw.IntN(5))}
			s := model[o]
			switch draw.IntN(5) {
			case 0, 1:
				s = state{port: uint16(1 + draw.IntN(20)), open: true}
				m.opened(o, s.port)
			case 2, 3:
				if s.open {
					s.open, s.used = false, now
				}
				m.closed(o, now)
			default: // a restart
				l := m.list(now, saveOpen)
				m = newPortMemory()
				until := now.Add(saveOpen) // what is in use is taken to be so until then
				if now = now.Add(time.Duration(draw.Int64N(int64(2 * time.Hour)))); until.After(now) {
					until = now
				}
				m.restore(l.ports, now)
				for o, s := range model {
					if s.open {
						model[o] = state{port: s.port, used: until}
					}
				}
				s = model[o]
			}
			model[o] = s
			m.sound(t)
			for o, s := range model {
				want := s.port
				if !s.open && now.Sub(s.used) >= keepPort {
					want = 0
				}
				if got := m.port(o, now); got != want {
					t.Fatalf("seed %d: port of %v is %d, want %d", seed, o, got, want)
				}
			}
		}
	}
}

// Candidates keep away from what others have had, as long as they can.
func TestCandidatesGoByTheMemory(t *testing.T) {
	for seed := range uint64(400) {
		draw := rand.New(rand.NewPCG(seed, 5))
		m, now := newPortMemory(), noon
		size := 1 + draw.IntN(300)
		many := draw.IntN(size + 20)
		for i := range many {
			o := portOwner{fmt.Sprint(i % 4), "host", fmt.Sprint(i)}
			now = now.Add(time.Duration(draw.Int64N(int64(20 * time.Minute))))
			m.opened(o, uint16(1000+draw.IntN(size+10)))
			if draw.IntN(4) > 0 {
				m.closed(o, now)
			}
		}
		p := placement{
			policy: Policy{Ports: []identity.PortRange{{First: 1000, Last: uint16(999 + size)}}}, memory: m, now: now.Add(time.Hour),
			owner: portOwner{"0", "host", fmt.Sprint(4 * draw.IntN(many+10))},
		}
		without := identity.PortRange{}
		if draw.IntN(2) == 0 {
			without = identity.PortRange{First: 1000, Last: 1010}
		}
		got := p.candidates(1, 65535, without)
		fresh, all := 0, 0
		for port := uint16(1000); port < uint16(1000+size); port++ {
			if without.First > 0 && without.Contains(port) {
				continue
			}
			all++
			if _, held := m.held(port, p.owner, p.now); !held && port != m.port(p.owner, p.now) {
				fresh++
			}
		}
		if all == 0 {
			continue
		}
		rest := got
		if own := m.port(p.owner, p.now); contains(p.policy.Ports, own) {
			if len(got) == 0 || got[0] != own {
				t.Fatalf("seed %d: candidates %v, want %d first", seed, got, own)
			}
			rest = got[1:]
		}
		if want := min(fresh, maxCandidates-len(got)+len(rest)); !slices.IsSortedFunc(rest, func(a, b uint16) int {
			return rank(m, b, p) - rank(m, a, p)
		}) || slices.IndexFunc(append(slices.Clone(rest), 0), func(port uint16) bool { return port == 0 || rank(m, port, p) < freshRank }) != want {
			t.Fatalf("seed %d: of %d fresh ports there should be %d, then the others by their age: %v", seed, fresh, want, rest)
		}
		if len(got) < min(all, maxCandidates) {
			t.Fatalf("seed %d: %d candidates of %d ports", seed, len(got), all)
		}
	}
}

const freshRank = int(48 * time.Hour / time.Minute)

// rank is higher for a port that comes sooner.
func rank(m *portMemory, port uint16, p placement) int {
	unused, held := m.held(port, p.owner, p.now)
	if !held {
		return freshRank
	}
	return int(unused / time.Minute)
}

func TestRememberedPortNeedsToBeAllowed(t *testing.T) {
	tests := []struct {
		name            string
		policy, granted string
		first, last     uint16
		first64         bool // the remembered port comes first
	}{
		{"any", "5000-9000", "1-65535", 1, 65535, true},
		{"in the range", "5000-9000", "1-65535", 6000, 6100, true},
		{"outside the range", "5000-9000", "1-65535", 6001, 6100, false},
		{"not the server's any more", "7000-9000", "1-65535", 1, 65535, false},
		{"not granted any more", "5000-9000", "7000-9000", 1, 65535, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := placement{
				policy: Policy{Ports: ranges(t, test.policy)}, grants: identity.Grants{Ports: ranges(t, test.granted)},
				owner: ownerNamed("web"), memory: newPortMemory(), now: noon,
			}
			p.memory.opened(p.owner, 6000)
			p.memory.closed(p.owner, noon)
			// Outside the ephemeral range is only a wish.
			got := p.candidates(test.first, test.last, identity.PortRange{First: 6000, Last: 6000})
			if slices.Contains(got, 6000) != test.first64 || test.first64 && got[0] != 6000 {
				t.Errorf("candidates %v", got)
			}
		})
	}
}

// Clients that come under ever new names push out nobody but themselves.
func TestMemoryIsBounded(t *testing.T) {
	m, now := newPortMemory(), noon
	later := func() time.Time { now = now.Add(time.Millisecond); return now }
	honest := portOwner{"honest", "host", "web"}
	m.opened(honest, 5000)
	m.closed(honest, later())
	attack := func(subject string, n int) {
		for i := range n {
			o := portOwner{subject, fmt.Sprint(i), "web"}
			m.opened(o, uint16(10000+i%20000))
			m.closed(o, later())
		}
	}
	attack("mallory", maxRememberedSubject+100)
	m.sound(t)
	if n := m.subjects["mallory"].ports; n != maxRememberedSubject {
		t.Errorf("one subject has %d entries, want %d", n, maxRememberedSubject)
	}
	if m.port(portOwner{"mallory", "99", "web"}, now) != 0 || m.port(portOwner{"mallory", "100", "web"}, now) == 0 {
		t.Error("it was not the oldest that was forgotten")
	}
	attack("mallet", maxRememberedSubject+100)
	m.sound(t)
	if len(m.owners) != maxRemembered || m.port(honest, now) != 5000 {
		t.Errorf("%d entries in all; the port of an honest client: %d", len(m.owners), m.port(honest, now))
	}
	other := portOwner{"late", "host", "web"}
	if m.opened(other, 5001); m.port(other, now) != 5001 {
		t.Error("an honest client comes too late")
	}
	m.sound(t)
}

func TestFullMemoryOfPortsInUse(t *testing.T) {
	m := newPortMemory()
	for i := range maxRemembered {
		m.opened(portOwner{fmt.Sprint(i % 2), fmt.Sprint(i), "web"}, uint16(1+i))
	}
	m.sound(t)
	for _, o := range []portOwner{{"0", "more", "web"}, {"more", "host", "web"}} {
		m.opened(o, 5000)
		m.closed(o, noon)
		if m.port(o, noon) != 0 {
			t.Errorf("%v is remembered in the place of one that is in use", o)
		}
	}
	m.closed(portOwner{"1", "1", "web"}, noon)
	more := portOwner{"more", "host", "web"}
	if m.opened(more, 5000); m.port(more, noon) != 5000 {
		t.Error("there is room, and it is not used")
	}
	m.sound(t)
}

func TestOddSubjectsAreNotRemembered(t *testing.T) {
	m := newPortMemory()
	for subject, want := range map[string]bool{
		"alice": true, "cn=Jörg, o=<ex&ample>": true, strings.Repeat("x", maxSubject): true, "": true,
		strings.Repeat("x", maxSubject+1): false, "a\nb": false, "a\x7f": false, "\xff": false,
	} {
		o := portOwner{subject, "host", "web"}
		m.opened(o, 5000)
		m.closed(o, noon)
		if got := m.port(o, noon) == 5000; got != want {
			t.Errorf("subject %q is remembered: %v", subject, got)
		}
	}
	m.sound(t)
}

// The times of ports survive a restart, and clocks that are set.
func TestMemoryOverRestart(t *testing.T) {
	tests := []struct {
		name  string
		open  bool
		ahead time.Duration
		down  time.Duration // by the wall clock
		later time.Duration // the age that counts after it; negative: forgotten
	}{
		{"idle", false, saveOpen, time.Hour, 11 * time.Hour},
		{"idle for a day together", false, saveOpen, 14 * time.Hour, -1},
		{"clock set back", false, saveOpen, -100 * time.Hour, 0},
		{"clock set back to before", false, saveOpen, -5 * time.Hour, 5 * time.Hour},
		{"crashed in use", true, saveOpen, time.Hour, time.Hour - saveOpen},
		{"crashed in use just now", true, saveOpen, time.Second, 0},
		{"stopped in use", true, 0, time.Hour, time.Hour},
		{"stopped in use for a day", true, 0, keepPort, -1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := ownerNamed("web")
				m := newPortMemory()
				m.opened(o, 5000)
				if !test.open {
					m.closed(o, time.Now())
					time.Sleep(10 * time.Hour)
				}
				l := m.list(time.Now(), test.ahead)
				if l.open != test.open || len(l.ports) != 1 {
					t.Fatalf("listed %v", l)
				}
				for i := range l.ports { // as if the clock had moved on by that
					l.ports[i].Used = l.ports[i].Used.Round(0).Add(-test.down)
				}
				again := newPortMemory()
				again.restore(l.ports, time.Now())
				again.sound(t)
				if again.open > 0 || again.unsaved {
					t.Error("what was restored counts as in use, or as news")
				}
				unused, held := again.held(5000, ownerNamed("ssh"), time.Now())
				if held != (test.later >= 0) || held && unused != test.later {
					t.Errorf("held %v, unused for %v, want %v", held, unused, test.later)
				}
			})
		})
	}
}
