package relay

import (
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A conn that has missed a heartbeat is not given out: the visitor gets a new
// one, on whichever loop it lands.
func TestSuspectConnIsNotClaimed(t *testing.T) {
	for name, loops := range map[string]int{"one loop": 1, "two loops": 2} {
		t.Run(name, func(t *testing.T) {
			k := startLink(t, linkOptions{loops: loops, conns: loops, supply: true, target: localServer(t, echo).target})
			for i := range k.server.loops {
				k.server.inLoop(i, func(l *loop) {
					for _, p := range l.shards[linkPool].idle {
						p.missed = missedLimit
					}
				})
			}
			roundTrip(t, dialTCP(t, k.public), "over a new conn")
			await[ConnOpened](k.server.fixture) // else a suspect one was used
		})
	}
}

// The half-close deadline counts from the FIN, however long the stream was
// quiet before it.
func TestFinAfterQuiet(t *testing.T) {
	set := DefaultSettings()
	eachRoute(t, set, func(t *testing.T, r route) {
		t.Helper()
		visitor, service := r.connect(t)
		say(t, visitor, "hello")
		hear(t, service, "hello")
		for _, f := range r.engines {
			for i := range f.loops {
				f.inLoop(i, func(l *loop) { // as if that had been long ago
					for _, slot := range l.poll.slots {
						if c, ok := slot.h.(*rawConn); ok && c.stream != nil {
							c.stream.active -= int64(time.Hour)
						}
					}
				})
			}
		}
		if err := visitor.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(service); err != nil {
			t.Fatalf("LocalServer: %v", err)
		}
		for _, f := range r.engines {
			f.passed()
		}
		say(t, service, "answer")
		drop(service)
		if got, err := io.ReadAll(visitor); err != nil || string(got) != "answer" {
			t.Fatalf("visitor got %q, %v", got, err)
		}
		drop(visitor)
		wantDone(t, r.engines)
	})
}

// A receiver that is slow to empty the kernel's buffers is not idle.
func TestDrainingIsNotIdle(t *testing.T) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closefd(ends[0])
	defer closefd(ends[1])
	s := &stream{front: &rawConn{socket: socket{fd: ends[0]}}}
	if s.draining() {
		t.Error("draining with nothing to drain")
	}
	b := make([]byte, 10_000)
	for range 3 {
		if _, err := unix.Write(ends[0], b); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		if !s.draining() {
			t.Errorf("after %d reads: not draining", i)
		}
		if s.draining() {
			t.Errorf("after %d reads: draining although nobody reads", i)
		}
		if _, err := unix.Read(ends[1], b); err != nil {
			t.Fatal(err)
		}
	}
}

// Urgent data ends a read early and is part of the stream all the same.
func TestUrgentData(t *testing.T) {
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		visitor, service := r.connect(t)
		raw, err := visitor.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []struct {
			text  string
			flags int
		}{{"abc", 0}, {"X", unix.MSG_OOB}, {"def", 0}} {
			if err := raw.Control(func(fd uintptr) { err = unix.Send(int(fd), []byte(part.text), part.flags) }); err != nil {
				t.Fatal(err)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		hear(t, service, "abcXdef")
	})
}
