package relay

import (
	"testing"

	"golang.org/x/sys/unix"
)

// A loop that lost its spare descriptor to another one does not serve the next
// visitor with the last there is: it becomes the spare, so that the others are
// reset and do not wait in silence.
func TestLastDescriptorBecomesSpare(t *testing.T) {
	l := stillLoop(t)
	a := l.door(t, ToPreface{})
	first, second := dialTCP(t, a.socket.address), dialTCP(t, a.socket.address)
	closefd(l.spare)
	l.spare = -1

	lowest := withLastDescriptor(t, func() { a.ready(l, 0) })
	wantReset(t, first)
	wantReset(t, second)
	if n := a.tunnel.cells[0].refused.Load(); n != 2 || l.spare != lowest || l.lobby.len() != 0 || !a.resting {
		t.Errorf("%d refused, spare %d of %d, %d in the lobby, resting %v", n, l.spare, lowest, l.lobby.len(), a.resting)
	}
}

// withLastDescriptor runs f while the process has one descriptor to open, whose
// number it gives.
func withLastDescriptor(t *testing.T, f func()) (number int) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	number, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	closefd(number)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(number) + 1, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	f()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	return number
}

// Every visitor that is turned away is told of, also one who met a loop without
// a spare descriptor; its own becomes the spare. The loop takes one of its own
// as soon as there is one, and then serves.
func TestVisitorOfLoopWithoutSpare(t *testing.T) {
	l := stillLoop(t)
	a := l.door(t, ToPreface{})
	visitor := dialTCP(t, a.socket.address)
	closefd(l.spare)
	l.spare = -1
	told := func() (n int) {
		for _, ev := range l.work.events {
			if ev == (Exhausted{Err: unix.EMFILE}) {
				n++
			}
		}
		return n
	}

	number := withLastDescriptor(t, func() { a.ready(l, 0) })
	wantReset(t, visitor)
	// Once for the visitor; once more because the queue could not be asked
	// whether it was the last one, so that the listener rests.
	if n := told(); n != 2 || a.tunnel.cells[0].refused.Load() != 1 || l.spare != number || !a.resting {
		t.Fatalf("told %d times, %d refused, spare %d of %d, resting %v", n, a.tunnel.cells[0].refused.Load(), l.spare, number, a.resting)
	}

	a.expired(l)
	closefd(l.spare)
	l.spare = -1
	dialTCP(t, a.socket.address)
	a.ready(l, 0)
	if told() != 2 || a.tunnel.cells[0].refused.Load() != 1 || l.spare < 0 || l.lobby.len() != 1 || a.resting {
		t.Fatalf("told %d times, %d refused, spare %d, %d served, resting %v", told(), a.tunnel.cells[0].refused.Load(), l.spare, l.lobby.len(), a.resting)
	}
}
