package relay

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A spare descriptor that could not be taken again when the listener woke is
// tried for until it is there: the next shortage needs it.
func TestSpareComesBack(t *testing.T) {
	l := stillLoop(t)
	l.engine.Submit(Listen{Tunnel: 1, Binds: []netip.Addr{loopback}, Ports: []uint16{0}, Route: ToPreface{}})
	l.once()
	a := l.doors[1][0]
	l.engine.loops[1].discardAll()
	l.exhausted(a, unix.EMFILE)
	closefd(l.spare)
	l.spare = -1

	l.now += int64(exhaustedPause)
	withoutDescriptors(t, func() { a.expired(l) })
	if l.spare >= 0 || a.resting || a.timer.when != l.after(exhaustedPause) {
		t.Fatalf("spare %d, resting %v, timer at %d", l.spare, a.resting, a.timer.when)
	}
	l.timers.stop(&a.timer)
	a.expired(l)
	if l.spare < 0 || a.resting || a.timer.pos != 0 {
		t.Fatalf("spare %d, resting %v, timer at %d", l.spare, a.resting, a.timer.when)
	}
	unlisten{Tunnel: 1}.apply(l)
}

// withoutDescriptors runs f while the process can open none.
func withoutDescriptors(t *testing.T, f func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	f()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
}
