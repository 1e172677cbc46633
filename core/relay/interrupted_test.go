package relay

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// interrupter makes calls end with EINTR that no signal interrupts at the right
// moment: threads ask it by seccomp(2) what becomes of their recvfrom, sendto
// and splice, and about every second one is interrupted before it has begun.
// So a send that cannot block is interrupted as well, header or not; the kernel
// of today never does that, but does not promise it.
type interrupter struct {
	tb      testing.TB
	ended   atomic.Bool
	running sync.WaitGroup
	seen    struct{ recv, send, header, splice atomic.Int64 } // calls interrupted
}

// startInterrupter keeps the garbage collector out until the test ends: it stops
// the world, in which a thread that asks would wait for one that is stopped.
func startInterrupter(tb testing.TB) *interrupter {
	tb.Helper()
	percent := debug.SetGCPercent(-1)
	tb.Cleanup(func() { debug.SetGCPercent(percent) })
	return &interrupter{tb: tb}
}

// finish is for when all threads that ask have ended.
func (x *interrupter) finish() {
	x.ended.Store(true)
	x.running.Wait()
}

// here has the thread of the calling goroutine ask from now on. It ends with the
// goroutine, which it is locked to for good.
func (x *interrupter) here() error {
	runtime.LockOSThread()
	const jumpEqual, give = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, unix.BPF_RET | unix.BPF_K
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call
		{Code: jumpEqual, K: unix.SYS_RECVFROM, Jt: 3},
		{Code: jumpEqual, K: unix.SYS_SENDTO, Jt: 2},
		{Code: jumpEqual, K: unix.SYS_SPLICE, Jt: 1},
		{Code: give, K: unix.SECCOMP_RET_ALLOW},
		{Code: give, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	asked, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&filter)))
	if errno != 0 {
		return errno
	}
	x.running.Go(func() { x.answer(int(asked)) })
	return nil
}

// answer decides what becomes of the calls of one thread until it has ended.
func (x *interrupter) answer(asked int) {
	defer closefd(asked)
	rng := rand.New(rand.NewPCG(1, 2))
	for {
		poll := []unix.PollFd{{Fd: int32(asked), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			x.tb.Error(err)
			return
		}
		if n <= 0 || poll[0].Revents&unix.POLLIN == 0 {
			if x.ended.Load() || n > 0 {
				return
			}
			continue
		}
		var question [80]byte // struct seccomp_notif: id, pid, flags; number, arch, place and arguments of the call
		if _, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(asked), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&question))); errno != 0 {
			continue // a signal took the question back: it comes again
		}
		var reply [24]byte // struct seccomp_notif_resp: id, result, error, flags
		copy(reply[:8], question[:8])
		if rng.IntN(2) == 0 {
			interrupted := -int32(unix.EINTR)
			binary.NativeEndian.PutUint32(reply[16:], uint32(interrupted))
			x.note(binary.NativeEndian.Uint32(question[16:]), binary.NativeEndian.Uint64(question[56:]))
		} else {
			binary.NativeEndian.PutUint32(reply[20:], unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE)
		}
		_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(asked), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&reply)))
		if errno != 0 && errno != unix.ENOENT {
			x.tb.Errorf("answer a thread: %v", errno)
			return
		}
	}
}

// note counts an interrupted call, of which it knows the fourth argument.
func (x *interrupter) note(number uint32, flags uint64) {
	switch {
	case number == unix.SYS_RECVFROM:
		x.seen.recv.Add(1)
	case number == unix.SYS_SPLICE:
		x.seen.splice.Add(1)
	case flags&unix.MSG_MORE != 0:
		x.seen.header.Add(1)
	default:
		x.seen.send.Add(1)
	}
}

// interrupt has the loops of all engines of a route ask, and ends the engines
// with the test.
func (x *interrupter) interrupt(t *testing.T, r route) {
	t.Helper()
	t.Cleanup(func() {
		for _, f := range r.engines {
			f.stop()
		}
		x.finish()
	})
	for _, f := range r.engines {
		for i := range f.loops {
			var err error
			f.inLoop(i, func(*loop) { err = x.here() })
			if err != nil {
				t.Skipf("seccomp(2) cannot ask: %v", err)
			}
		}
	}
}

// Calls of the loops that are interrupted, whichever they are, change nothing.
func TestInterruptedCallsChangeNothing(t *testing.T) {
	const size, messages = 4 << 20, 100
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		bulkVisitor, bulkService := r.connect(t)
		visitor, service := r.connect(t)
		x := startInterrupter(t)
		x.interrupt(t, r)
		parallel(t,
			func() error { return sendContent(bulkVisitor, 1, size) },
			func() error { return sendContent(bulkService, 2, size) },
			func() error { return wantContent(bulkService, 1, size) },
			func() error { return wantContent(bulkVisitor, 2, size) },
			func() error { return pingPong(visitor, messages) },
			func() error { _, err := io.CopyN(service, service, messages*64); return err },
		)
		closeWrite(t, visitor)
		closeWrite(t, service)
		for range 2 {
			wantDone(t, r.engines)
		}
		recv, send, header, splice := x.seen.recv.Load(), x.seen.send.Load(), x.seen.header.Load(), x.seen.splice.Load()
		if framed := len(r.engines) > 1; recv == 0 || send == 0 || splice == 0 || framed != (header > 0) {
			t.Errorf("interrupted: %d recvfrom, %d sendto, %d of them of headers, %d splice", recv, send+header, header, splice)
		}
	})
}

// A header whose send is interrupted still leaves with its payload.
func TestInterruptedHeaderLeavesWithPayload(t *testing.T) {
	l := stillLoop(t)
	l.openPool(ServerSide)
	x := startInterrupter(t)
	done := make(chan struct{})
	together := false
	var err error
	go func() {
		defer close(done)
		if err = x.here(); err != nil {
			return
		}
		for try := 0; try < 50 && !t.Failed() && !together; try++ {
			before := x.seen.header.Load()
			one := l.oneSegment(t)
			together = together || one && x.seen.header.Load() > before
		}
	}()
	<-done
	x.finish()
	if err != nil {
		t.Skipf("seccomp(2) cannot ask: %v", err)
	}
	if !together {
		t.Errorf("a header is a segment of its own behind each of %d interrupts", x.seen.header.Load())
	}
}
