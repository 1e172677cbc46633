package relay

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// pipesOpen counts the pipe ends of this process.
func pipesOpen(tb testing.TB) int {
	tb.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// noPipes makes a loop find the quota used up.
type noPipes struct{}

func (noPipes) apply(l *loop) { l.pipes.refused = 1 << 50 }

func TestPipes(t *testing.T) {
	before := pipesOpen(t)
	var p pipes
	a := p.borrow()
	if a == nil {
		t.Skip("this user has no pipe quota left: run it as another, or close pipes")
	}
	if got, err := unix.FcntlInt(uintptr(a.w), unix.F_GETPIPE_SZ, 0); err != nil || got != a.size || got < minPipe {
		t.Fatalf("a pipe of %d, %v; want %d", got, err, a.size)
	}
	p.giveBack(a)
	if b := p.borrow(); b != a {
		t.Fatal("the spare pipe was not used again")
	}
	if _, err := unix.Write(a.w, []byte("left")); err != nil {
		t.Fatal(err)
	}
	a.held = 4
	p.giveBack(a)
	if b := p.borrow(); b == a {
		t.Fatal("a pipe with bytes in it was lent again")
	} else {
		p.giveBack(b)
	}
	p.trim()
	if p.open != 0 || pipesOpen(t) != before {
		t.Fatalf("%d pipes open by count, %d ends; want 0, %d", p.open, pipesOpen(t), before)
	}
	p.refused = 2
	for range 2 {
		if p.borrow() != nil {
			t.Fatal("asked the kernel again at once")
		}
	}
	if b := p.borrow(); b == nil {
		t.Fatal("did not ask the kernel again")
	} else {
		b.close()
	}
}

// withoutPipes leaves the loops of a route no quota: bulk is copied.
func (r route) withoutPipes() {
	for _, f := range r.engines {
		f.broadcast(func() message { return noPipes{} })
		f.passed()
	}
}

// pipes sums the pipes that the loops of a route have open.
func (r route) pipes() (open int) {
	for _, f := range r.engines {
		for i := range f.loops {
			f.inLoop(i, func(l *loop) { open += l.pipes.open })
		}
	}
	return open
}

// Bulk goes through pipes, which are gone when it has ended; without a quota
// the same bytes are copied.
func TestBulkThroughPipes(t *testing.T) {
	const size = 48 << 20
	for name, allowed := range map[string]bool{"pipes": true, "no quota": false} {
		t.Run(name, func(t *testing.T) {
			eachRoute(t, Settings{}, func(t *testing.T, r route) {
				t.Helper()
				if !allowed {
					r.withoutPipes()
				}
				visitor, service := r.connect(t)
				parallel(t, bothWays(visitor, service, size)...)
				r.ended(t, size, size)
				if n := r.pipes(); allowed != (n > 0) {
					t.Errorf("%d pipes right after bulk", n)
				}
				for _, f := range r.engines { // as if a while had passed
					for i := range f.loops {
						f.inLoop(i, func(l *loop) {
							l.pipes.used -= int64(keepPipes)
							l.pipes.expired(l)
						})
					}
				}
				if n := r.pipes(); n != 0 {
					t.Errorf("%d pipes a while after bulk", n)
				}
			})
		})
	}
}

// A stream that is reset while bytes of it are in a pipe destroys the pipe.
func TestResetWithBytesInPipe(t *testing.T) {
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		for range 8 {
			visitor, service := r.connect(t)
			written := make(chan error, 1)
			go func() {
				_, err := io.CopyN(service, content(3), 256<<20)
				written <- err
			}()
			r.stuck() // the visitor does not read: bytes wait everywhere, in a pipe too
			_ = visitor.SetLinger(0)
			_ = visitor.Close()
			// The reset is told once, to the writer or to the reader.
			_, err := io.ReadAll(service)
			if w := <-written; err == nil && w == nil {
				t.Error("the LocalServer saw an end, not a reset")
			}
			for _, f := range r.engines {
				if ev := await[StreamEnded](f); ev.Reason == Done {
					t.Errorf("ended with %+v", ev)
				}
			}
		}
		// Nothing of the former streams reaches the next.
		visitor, service := r.connect(t)
		parallel(t,
			func() error { return sendContent(service, 4, 4<<20) },
			func() error { return wantContent(visitor, 4, 4<<20) },
			func() error { return visitor.CloseWrite() },
			func() error { _, err := io.Copy(io.Discard, net.Conn(service)); return err },
		)
	})
}

// stuck returns when bytes have moved and no more do, however many turns the
// loops take.
func (r route) stuck() {
	for same, last := 0, uint64(0); same < 20; {
		var sum uint64
		for _, f := range r.engines {
			f.passed()
			s := f.stats(linkTunnel)
			sum += s.Up + s.Down
		}
		if sum > 0 && sum == last {
			same++
		} else {
			same = 0
		}
		last = sum
	}
}
