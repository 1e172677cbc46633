package relay

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// threads gives the thread of every loop.
func (f *fixture) threads() (all []int) {
	for i := range f.loops {
		f.inLoop(i, func(*loop) { all = append(all, unix.Gettid()) })
	}
	return all
}

// interrupting makes a signal end system calls with EINTR, which the runtime
// asks the kernel to start again.
func interrupting(tb testing.TB, sig unix.Signal) {
	tb.Helper()
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		tb.Skip("the layout of the kernel's sigaction is not known here")
	}
	var action [32]byte // handler, flags, restorer, mask: 8 bytes each
	change := func(set, get *[32]byte) {
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), 8, 0, 0)
		if errno != 0 {
			tb.Fatal(errno)
		}
	}
	change(nil, &action)
	flags := binary.NativeEndian.Uint64(action[8:])
	const restart = 0x10000000 // SA_RESTART, sigaction(2)
	if flags&restart == 0 {
		tb.Fatal("the runtime's handler is not what it was: look at this test again")
	}
	binary.NativeEndian.PutUint64(action[8:], flags&^restart)
	change(&action, nil)
	tb.Cleanup(func() {
		binary.NativeEndian.PutUint64(action[8:], flags)
		change(&action, nil)
	})
}

// storm sends signals to threads until the function it gives is called, which
// tells how many each got.
func storm(tb testing.TB, threads []int) (stop func() (each int64)) {
	tb.Helper()
	interrupting(tb, unix.SIGUSR1)
	every := unix.Timeval{Usec: 1000}
	if _, err := unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{Interval: every, Value: every}); err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	var n atomic.Int64
	sending.Go(func() {
		pid := unix.Getpid()
		for pace := time.NewTicker(50 * time.Microsecond); ; <-pace.C {
			if ctx.Err() != nil {
				pace.Stop()
				return
			}
			for _, tid := range threads {
				_ = unix.Tgkill(pid, tid, unix.SIGUSR1)
				_ = unix.Tgkill(pid, tid, unix.SIGURG)
			}
			n.Add(1)
		}
	})
	return func() int64 {
		cancel()
		sending.Wait()
		_, _ = unix.Setitimer(unix.ITIMER_REAL, unix.Itimerval{})
		return n.Load()
	}
}

// Signals that interrupt every system call of the loops, thousands of times a
// second, change nothing: bulk both ways and messages beside it arrive.
func TestSignalsChangeNothing(t *testing.T) {
	const size, messages = 32 << 20, 300
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		var threads []int
		for _, f := range r.engines {
			threads = append(threads, f.threads()...)
		}
		bulkVisitor, bulkService := r.connect(t)
		visitor, service := r.connect(t)
		stop := storm(t, threads)
		parallel(t, append(bothWays(bulkVisitor, bulkService, size),
			func() error { return pingPong(visitor, messages) },
			func() error { _, err := io.CopyN(service, service, messages*64); return err },
		)...)
		if n := stop(); n < 100 {
			t.Errorf("only %d signals for each thread", n)
		}
		if n := total[StreamEnded](r.engines[0]); n > 1 {
			t.Errorf("%d streams ended, want that of the bulk at most", n)
		}
		closeWrite(t, visitor)
		closeWrite(t, service)
		for _, f := range r.engines {
			for range 2 {
				if ev := await[StreamEnded](f); ev.Reason != Done {
					t.Errorf("ended with %+v", ev)
				}
			}
		}
	})
}

// pingPong sends messages of 64 bytes and wants each back before the next.
func pingPong(c net.Conn, messages int) error {
	from, want := content(7), content(7)
	b, expected := make([]byte, 64), make([]byte, 64)
	for range messages {
		_, _ = io.ReadFull(from, b)
		if _, err := c.Write(b); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		_, _ = io.ReadFull(want, expected)
		if string(b) != string(expected) {
			return errWrong
		}
	}
	return nil
}
