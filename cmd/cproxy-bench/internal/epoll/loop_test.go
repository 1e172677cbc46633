//go:build linux

package epoll

import (
	"bytes"
	"context"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 4)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

// startLoop runs a loop until the test ends.
func startLoop(t *testing.T) *Loop {
	t.Helper()
	l, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("loop ended with %v", err)
		}
		l.Close()
	})
	return l
}

// on runs do in the loop and waits for it.
func on(l *Loop, do func()) {
	done := make(chan struct{})
	l.Post(func() { do(); close(done) })
	<-done
}

type handlerFunc func(events uint32)

func (f handlerFunc) Ready(events uint32) { f(events) }

func TestPostKeepsOrder(t *testing.T) {
	l := startLoop(t)
	var got []int
	for i := range 1000 {
		l.Post(func() { got = append(got, i) })
	}
	on(l, func() {})
	for i, v := range got {
		if i != v {
			t.Fatalf("task %d ran as number %d", v, i)
		}
	}
	if len(got) != 1000 {
		t.Errorf("%d tasks ran", len(got))
	}
}

// A loop that nothing happens in ends all the same.
func TestRunEndsWithContext(t *testing.T) {
	l, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestTCP(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			l := startLoop(t)
			listener, bound, err := Listen(netip.MustParseAddrPort(address))
			if err != nil {
				t.Skipf("no such address here: %v", err)
			}
			got := make(chan []byte, 1)
			on(l, func() { acceptOne(l, listener, got) })
			client, err := Connect(bound)
			if err != nil {
				t.Fatal(err)
			}
			connected := make(chan error, 1)
			on(l, func() {
				err := l.Add(client, handlerFunc(func(events uint32) {
					if events&unix.EPOLLHUP != 0 { // always reported, at the end
						l.Drop(client)
						return
					}
					connected <- Connected(client)
					l.Watch(client, 0)
				}), unix.EPOLLOUT)
				if err != nil {
					t.Error(err)
				}
			})
			if err := <-connected; err != nil {
				t.Fatal(err)
			}
			on(l, func() {
				if n, errno := Send(client, []byte("hello")); n != 5 || errno != 0 {
					t.Errorf("sent %d, %v", n, errno)
				}
				ShutdownWrite(client)
			})
			if b := <-got; !bytes.Equal(b, []byte("lo")) {
				t.Errorf("received %q behind three discarded bytes", b)
			}
		})
	}
}

// acceptOne discards three bytes of a connection, and reports the rest.
func acceptOne(l *Loop, listener int, got chan<- []byte) {
	_ = l.Add(listener, handlerFunc(func(uint32) {
		fd, errno := Accept(listener)
		if errno != 0 {
			return
		}
		var all []byte
		discarded := 0
		_ = l.Add(fd, handlerFunc(func(uint32) {
			if discarded < 3 {
				n, _ := Discard(fd, 3-discarded)
				discarded += n
				return
			}
			b := make([]byte, 10)
			n, errno := Receive(fd, b)
			all = append(all, b[:n]...)
			if n == 0 && !Again(errno) {
				l.Drop(fd)
				got <- all
			}
		}), unix.EPOLLIN)
	}), unix.EPOLLIN)
}

// An event of a descriptor that was closed and opened again in the same batch
// belongs to nobody.
func TestStaleEvent(t *testing.T) {
	l := startLoop(t)
	called := 0
	on(l, func() {
		fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC)
		if err != nil {
			t.Error(err)
			return
		}
		if err := l.Add(fd, handlerFunc(func(uint32) { called++; l.Drop(fd) }), unix.EPOLLIN); err != nil {
			t.Error(err)
		}
		l.dispatch(&unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd), Pad: l.entries[fd].gen - 1})
		if called != 0 {
			t.Error("an event of an older generation was delivered")
		}
		l.dispatch(&unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd), Pad: l.entries[fd].gen})
		l.dispatch(&unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd), Pad: l.entries[fd].gen})
	})
	if called != 1 {
		t.Errorf("delivered %d times", called)
	}
}

func TestConnectRefused(t *testing.T) {
	fd, bound, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	Close(fd)
	client, err := Connect(bound)
	if err != nil {
		return // refused at once
	}
	defer Close(client)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(client), Events: unix.POLLOUT}}, 10000); err != nil {
		t.Fatal(err)
	}
	if Connected(client) == nil {
		t.Error("connected to nobody")
	}
}

func TestClock(t *testing.T) {
	c := NewClock()
	a := c.Now()
	if b := c.Now(); a < 0 || b < a || b > time.Hour {
		t.Errorf("%v, then %v", a, b)
	}
}
