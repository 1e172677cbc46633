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

	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	lowest, err := unix.Dup(l.poll.wakefd)
	if err != nil {
		t.Fatal(err)
	}
	closefd(lowest)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(lowest) + 1, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	a.ready(l, 0) // to the first comes the last number there is
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	wantReset(t, first)
	wantReset(t, second)
	if n := a.tunnel.cells[0].refused.Load(); n != 2 || l.spare != lowest || l.lobby.len() != 0 || !a.resting {
		t.Errorf("%d refused, spare %d of %d, %d in the lobby, resting %v", n, l.spare, lowest, l.lobby.len(), a.resting)
	}
}
