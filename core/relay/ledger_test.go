package relay

import "testing"

// ledger is what a fixture keeps of all events, to be balanced when its engine
// has ended.
type ledger struct {
	opened, closed int // ProxyConns
	ended, refused int // streams, and PublicConns that never became one
	up, down       uint64
	forgotten      bool // a tunnel may have been, and its counters with it
	handed         bool // to another engine, or from one: the sums are not of this one alone
	exhausted      bool // refusals were not told one by one
	unreasoned     []Event
}

// Submit notes the commands by which tunnels are forgotten.
func (f *fixture) Submit(c Command) {
	f.mu.Lock()
	switch c.(type) {
	case Unlisten, ClosePool, DropTarget:
		f.ledger.forgotten = true
	case Freeze, Adopt:
		f.ledger.handed = true
	default:
	}
	f.mu.Unlock()
	f.Engine.Submit(c)
}

func (b *ledger) enter(ev Event) {
	var why Reason
	switch ev := ev.(type) {
	case ConnOpened:
		b.opened++
		return
	case ConnClosed:
		b.closed++
		why = ev.Reason
	case StreamEnded:
		b.ended++
		b.up += ev.Up
		b.down += ev.Down
		why = ev.Reason
	case Refused:
		b.refused++
		why = ev.Reason
	case PrefaceFailed:
		why = ev.Reason
	case Exhausted:
		b.exhausted = true
		return
	default:
		return
	}
	if why == 0 || reasonNames[why] == "" {
		b.unreasoned = append(b.unreasoned, ev)
	}
}

// balance wants every conn and every stream to have ended once, for a reason
// that has a name, and the events to add up to the counters. It holds for
// every engine of the tests, whatever was done to it.
func (f *fixture) balance() {
	f.tb.Helper()
	b := &f.ledger
	if f.EventsDropped() > 0 {
		return // nobody can tell
	}
	if len(b.unreasoned) > 0 {
		f.tb.Errorf("ends without a reason: %+v", b.unreasoned)
	}
	if b.handed {
		return
	}
	if b.opened != b.closed {
		f.tb.Errorf("%d conns opened, %d closed", b.opened, b.closed)
	}
	if n := f.conns.Load(); n != 0 {
		f.tb.Errorf("%d PublicConns are still counted", n)
	}
	for _, l := range f.loops {
		if n := l.visitors.Load(); n != 0 {
			f.tb.Errorf("%d PublicConns are still counted in loop %d", n, l.id)
		}
	}
	if b.forgotten {
		return
	}
	var sum TunnelStats
	for _, s := range f.Stats() {
		sum.Opened += s.Opened
		sum.Ended += s.Ended
		sum.Refused += s.Refused
		sum.Up += s.Up
		sum.Down += s.Down
	}
	if sum.Opened != sum.Ended || sum.Ended != uint64(b.ended) || sum.Up != b.up || sum.Down != b.down {
		f.tb.Errorf("told of %d ends, %d up, %d down; counted %+v", b.ended, b.up, b.down, sum)
	}
	if sum.Refused != uint64(b.refused) && !b.exhausted {
		f.tb.Errorf("told of %d refusals, counted %d", b.refused, sum.Refused)
	}
}

// The ledger sees what is not in order.
func TestLedger(t *testing.T) {
	for name, events := range map[string][]Event{
		"conn closed twice":    {ConnOpened{}, ConnClosed{Reason: Closed}, ConnClosed{Reason: Closed}},
		"conn never closed":    {ConnOpened{}},
		"stream of no counter": {StreamEnded{Reason: Done}},
		"bytes of no counter":  {StreamEnded{Reason: Done, Up: 1}},
		"no reason":            {ConnOpened{}, ConnClosed{}},
		"refusal not counted":  {Refused{Reason: Cut}},
	} {
		t.Run(name, func(t *testing.T) {
			quiet := &quietTB{TB: t}
			f := &fixture{Engine: New(Options{Loops: 1}), tb: quiet}
			for _, ev := range events {
				f.ledger.enter(ev)
			}
			if f.balance(); !quiet.failed {
				t.Error("balanced")
			}
		})
	}
}

// quietTB takes failures that are wanted.
type quietTB struct {
	testing.TB
	failed bool
}

func (q *quietTB) Errorf(string, ...any) { q.failed = true }

// A conn that is on its way between two loops when the engine stops is told of
// like any other.
func TestConnOnItsWayIsTold(t *testing.T) {
	for donated, want := range map[bool]Event{
		true:  ConnClosed{Pool: linkPool, Reason: Stopped},
		false: PrefaceFailed{Reason: Stopped},
	} {
		l := stillLoop(t)
		sh := l.openPool(ServerSide)
		p, _ := l.member(t, sh, proxyIdle)
		p.opening = &opening{}
		l.detach(p)
		l.inbox.post(moved{conn: p, pool: linkPool, donated: donated})
		l.discardAll()
		if len(l.work.events) != 1 || l.work.events[0] != want {
			t.Errorf("told %+v, want %+v", l.work.events, want)
		}
	}
}
