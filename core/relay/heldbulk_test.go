package relay

import (
	"testing"

	"golang.org/x/sys/unix"
)

// heldBuffers are the buffers of an engine that wait for receivers.
type heldBuffers struct{ large, small int }

// heldBy counts them where they are: at the sockets.
func heldBy(f *fixture) (all heldBuffers) {
	count := func(h *buffer) {
		switch {
		case h == nil || len(h.bytes()) == 0:
		case cap(h.b) > heldSlab:
			all.large++
		default:
			all.small++
		}
	}
	for i := range f.loops {
		f.inLoop(i, func(l *loop) {
			for h := range l.poll.handlers() {
				switch h := h.(type) {
				case *rawConn:
					count(h.out)
				case *proxyConn:
					count(h.out)
					count(h.in.held)
				}
			}
		})
	}
	return all
}

// fewInFlight makes the sockets of an engine take much at a time and little on
// their way out, so that what a receiver does not take waits in the engine.
func fewInFlight(t *testing.T, f *fixture) {
	t.Helper()
	f.eachSocket(func(_ *loop, k *socket, _ bool) {
		for name, size := range map[int]int{unix.SO_RCVBUF: bulkBuffer, unix.SO_SNDBUF: 4 << 10} {
			if err := unix.SetsockoptInt(k.fd, unix.SOL_SOCKET, name, size); err != nil {
				t.Error(err)
			}
		}
	})
}

// More receivers stall, without pipes, than a loop keeps large buffers for: what
// the others have read waits in small ones, all of it arrives in the end, and
// then large ones are used again.
func TestLargeBuffersAreFew(t *testing.T) {
	const stalled = maxHeldBulk + 32
	t.Run("link", func(t *testing.T) {
		s := localServer(t, nil)
		k := startLink(t, linkOptions{conns: stalled, target: s.target})
		testLargeBuffersAreFew(t, stalled, route{public: k.public, local: s, engines: []*fixture{k.server.fixture, k.client.fixture}})
	})
	t.Run("forwarder", func(t *testing.T) {
		s := localServer(t, nil)
		f := startEngine(t, 1, DefaultSettings(), nil)
		testLargeBuffersAreFew(t, stalled, route{public: f.listen(linkTunnel, ToTarget{Target: s.target}), local: s, engines: []*fixture{f}})
	})
}

func testLargeBuffersAreFew(t *testing.T, stalled int, r route) {
	t.Helper()
	const size = 3 << 19
	resume := make(chan struct{})
	all := []func() error{func() error {
		defer close(resume)
		// The first engine is where most wait: behind it is more room for less.
		eventually(t, "every receiver has stalled", func() bool {
			held := heldBy(r.engines[0])
			return held.large >= maxHeldBulk && held.large+held.small == stalled
		})
		r.stuck()
		for i, f := range r.engines {
			if held := heldBy(f); held.large > maxHeldBulk {
				t.Errorf("engine %d keeps %d large buffers and %d small ones", i, held.large, held.small)
			}
		}
		return nil
	}}
	for i := range uint64(stalled) {
		visitor, service := r.connect(t)
		all = append(all,
			func() error { return sendContent(visitor, i, size) },
			func() error {
				<-resume
				if err := wantContent(service, i, size); err != nil {
					return err
				}
				return service.CloseWrite()
			},
		)
	}
	for _, f := range r.engines {
		fewInFlight(t, f)
		f.broadcast(func() message { return noPipes{} })
	}
	parallel(t, all...)
	for range stalled {
		wantDone(t, r.engines)
	}
	for _, f := range r.engines {
		f.inLoop(0, func(l *loop) {
			if n := len(l.sending(bulkBegins)); n < bulkBuffer {
				t.Errorf("bulk is copied in pieces of %d bytes although nothing is kept", n)
			}
		})
	}
}
