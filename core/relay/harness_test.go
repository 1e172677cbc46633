package relay

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 8)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

// patience bounds every wait of the tests: reached only when one fails.
const patience = 30 * time.Second

var loopback = netip.MustParseAddr("127.0.0.1")

// fixture is a running engine with what it told.
type fixture struct {
	*Engine
	tb    testing.TB
	react func(Event) // called with every event before it can be awaited
	stop  func()      // ends the engine and waits for that

	mu     sync.Mutex
	told   []Event // not awaited yet
	totals map[reflect.Type]int
	ledger ledger
	news   chan struct{} // closed and made anew with every batch
}

// startEngine runs an engine until the test ends. react may be nil.
func startEngine(tb testing.TB, loops int, set Settings, react func(Event)) *fixture {
	tb.Helper()
	f := &fixture{
		Engine: New(Options{Loops: loops, Settings: set}), tb: tb, react: react,
		totals: make(map[reflect.Type]int), news: make(chan struct{}),
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := f.Run(ctx); err != nil {
			tb.Errorf("engine ended with %v", err)
		}
	})
	running.Go(func() {
		for batch := range f.Events() {
			f.take(batch)
		}
	})
	f.stop = func() { cancel(); running.Wait() }
	tb.Cleanup(func() { f.stop(); f.tb = tb; f.balance() })
	return f
}

func (f *fixture) take(batch []Event) {
	if f.react != nil {
		for _, ev := range batch {
			f.react(ev)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, batch...)
	for _, ev := range batch {
		f.totals[reflect.TypeOf(ev)]++
		f.ledger.enter(ev)
	}
	close(f.news)
	f.news = make(chan struct{})
}

// find takes the first event of type E that suits out of what was told.
func find[E Event](f *fixture, suits func(E) bool) (ev E, ok bool, news chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, any := range f.told {
		if e, is := any.(E); is && (suits == nil || suits(e)) {
			f.told = slices.Delete(f.told, i, i+1)
			return e, true, nil
		}
	}
	return ev, false, f.news
}

// await gives the next event of type E that nobody awaited yet. Others stay.
func await[E Event](f *fixture) E {
	f.tb.Helper()
	return awaitThat[E](f, nil)
}

func awaitThat[E Event](f *fixture, suits func(E) bool) E {
	f.tb.Helper()
	limit := time.After(patience)
	for {
		ev, ok, news := find(f, suits)
		if ok {
			return ev
		}
		select {
		case <-news:
		case <-limit:
			f.tb.Fatalf("no event %T in time; told: %v", ev, f.describe())
		}
	}
}

// total is how many events of type E were told so far, awaited or not.
func total[E Event](f *fixture) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.totals[reflect.TypeFor[E]()]
}

func (f *fixture) describe() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, ev := range f.told[max(0, len(f.told)-20):] {
		all = append(all, fmt.Sprintf("%T%+v", ev, ev))
	}
	return all
}

// reuse turns the fixture over to another test: failures are its own, and what
// was told so far is dropped.
func (f *fixture) reuse(tb testing.TB) {
	tb.Helper()
	f.tb = tb
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = nil
}

// passed returns when every loop has been through whole turns since the call,
// so that what was submitted or had arrived before has been acted upon.
func (f *fixture) passed() {
	f.tb.Helper()
	for range 3 {
		done := make(chan struct{}, len(f.loops))
		f.broadcast(func() message { return mark(done) })
		for range f.loops {
			select {
			case <-done:
			case <-time.After(patience):
				f.tb.Fatal("a loop stands still")
			}
		}
	}
}

type mark chan struct{}

func (m mark) apply(*loop) { m <- struct{}{} }

// inLoop runs a function on the thread of one loop.
func (f *fixture) inLoop(i int, run func(l *loop)) {
	f.tb.Helper()
	done := make(chan struct{})
	f.loops[i].inbox.post(call(func(l *loop) { run(l); close(done) }))
	select {
	case <-done:
	case <-time.After(patience):
		f.tb.Fatal("a loop stands still")
	}
}

type call func(l *loop)

func (m call) apply(l *loop) { m(l) }

func (f *fixture) listen(tunnel TunnelID, r Route) netip.AddrPort {
	f.tb.Helper()
	f.Submit(Listen{Tunnel: tunnel, Binds: []netip.Addr{loopback}, Ports: []uint16{0}, Route: r})
	ev := awaitThat(f, func(ev Listening) bool { return ev.Tunnel == tunnel })
	if ev.Err != nil {
		f.tb.Fatal(ev.Err)
	}
	return ev.Addresses[0]
}

// stats gives the totals of one tunnel.
func (f *fixture) stats(tunnel TunnelID) TunnelStats {
	for _, s := range f.Stats() {
		if s.Tunnel == tunnel {
			return s
		}
	}
	return TunnelStats{}
}

// descriptors counts the open descriptors of this process.
func descriptors(tb testing.TB) int {
	tb.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(d)
}

// eventually waits for what no event tells: counters, the kernel's tables, other
// processes. Nothing wakes it, so it sleeps between two looks.
func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	for limit := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			tb.Fatalf("never: %s", what)
		}
	}
}
