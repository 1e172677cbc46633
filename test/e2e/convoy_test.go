package e2e

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// leg is one direction of a haul: bytes of its own, counted and digested at
// both ends.
type leg struct {
	source  io.Reader
	sent    atomic.Int64
	arrived atomic.Int64
	out, in hash.Hash
	sendErr error // why sending ended before it was to end
	reached error // why receiving ended; nil after a clean end
}

// haul is a stream that is busy in both directions: ends are the visitor and the
// service, and legs[i] begins at ends[i].
type haul struct {
	id   uint64
	ends [2]stream
	legs [2]leg
}

// openHaul begins a haul through a tunnel to a manual service.
func openHaul(id uint64, address string, conns <-chan stream) (*haul, error) {
	visitor, err := dial(address)
	if err != nil {
		return nil, fmt.Errorf("haul %d: %w", id, err)
	}
	var name [8]byte
	if _, err := visitor.Write(binary.BigEndian.AppendUint64(nil, id)); err != nil {
		return nil, fmt.Errorf("haul %d: %w", id, err)
	}
	select {
	case local := <-conns:
		h := &haul{id: id, ends: [2]stream{visitor, local}}
		for i := range h.legs {
			h.legs[i].source = noise(2*id + uint64(i))
			h.legs[i].in, h.legs[i].out = sha256.New(), sha256.New()
		}
		if err := local.SetDeadline(time.Now().Add(4 * patience)); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(local, name[:]); err != nil || binary.BigEndian.Uint64(name[:]) != id {
			return nil, fmt.Errorf("haul %d: the service got %x and %w", id, name, err)
		}
		return h, nil
	case <-time.After(patience):
		return nil, fmt.Errorf("haul %d: no connection reached the local service", id)
	}
}

// push sends n more bytes of a leg.
func (l *leg) push(to net.Conn, n int) {
	if l.sendErr != nil {
		return
	}
	b := make([]byte, n)
	if _, l.sendErr = io.ReadFull(l.source, b); l.sendErr != nil {
		return
	}
	_, _ = l.out.Write(b) // never fails (hash.Hash)
	l.sent.Add(int64(n))
	_, l.sendErr = to.Write(b)
}

// receive takes a leg's bytes until it ends.
func (l *leg) receive(from net.Conn) {
	_, l.reached = io.Copy(l.in, io.TeeReader(from, counter{&l.arrived}))
}

// check tells whether all that was sent has arrived, and then a clean end.
func (l *leg) check() error {
	switch err := errors.Join(l.sendErr, l.reached); {
	case err != nil:
		return err
	case l.sent.Load() != l.arrived.Load():
		return fmt.Errorf("%d of %d bytes, then a clean end", l.arrived.Load(), l.sent.Load())
	case [sha256.Size]byte(l.in.Sum(nil)) != [sha256.Size]byte(l.out.Sum(nil)):
		return errors.New("other bytes than those that were sent")
	}
	return nil
}

// convoy keeps hauls moving, one after the other, until it is told to end them.
type convoy struct {
	hauls     []*haul
	ending    chan struct{}
	driving   sync.WaitGroup
	receiving sync.WaitGroup
}

// newConvoy moves a piece of one haul, both ways, in every interval.
func newConvoy(hauls []*haul, every time.Duration) *convoy {
	c := &convoy{hauls: hauls, ending: make(chan struct{})}
	for _, h := range hauls {
		for i := range h.legs {
			c.receiving.Go(func() { h.legs[i].receive(h.ends[1-i]) })
		}
	}
	c.driving.Go(func() { c.drive(every) })
	return c
}

func (c *convoy) drive(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-tick.C:
			c.hauls[n%len(c.hauls)].move(n)
		case <-c.ending:
			for _, h := range c.hauls {
				h.move(n)
				for _, end := range h.ends {
					_ = end.CloseWrite() // of a broken end, which the leg tells
				}
			}
			return
		}
	}
}

// move sends a piece each way: mostly messages, and now and then so much that it
// is spliced.
func (h *haul) move(n int) {
	for i := range h.legs {
		size := 100 + (n*7919+int(h.id))%4000
		if n%13 == i {
			size = 96 << 10
		}
		h.legs[i].push(h.ends[i], size)
	}
}

// sent is how much was sent on each leg.
func (c *convoy) sent() []int64 {
	var all []int64
	for _, h := range c.hauls {
		all = append(all, h.legs[0].sent.Load(), h.legs[1].sent.Load())
	}
	return all
}

// beyond waits until bytes that were sent after a mark have arrived on every
// leg.
func (c *convoy) beyond(mark []int64) error {
	return poll(func() error {
		for i, h := range c.hauls {
			for j := range h.legs {
				if got := h.legs[j].arrived.Load(); got <= mark[2*i+j] {
					return fmt.Errorf("haul %d stands still: %d bytes, sent were %d", h.id, got, mark[2*i+j])
				}
			}
		}
		return nil
	})
}

// end lets every haul come to its end, and tells what is wrong with any.
func (c *convoy) end() (lost int, err error) {
	close(c.ending)
	c.driving.Wait()
	c.receiving.Wait()
	for _, h := range c.hauls {
		broken := errors.Join(h.legs[0].check(), h.legs[1].check())
		if broken != nil {
			lost++
			err = errors.Join(err, fmt.Errorf("haul %d: %w", h.id, broken))
		}
		for _, end := range h.ends {
			_ = end.Close() // nothing is left in it
		}
	}
	return lost, err
}

// wantReset waits until every haul is broken, and at both ends by a reset.
func (c *convoy) wantReset(t *testing.T) {
	t.Helper()
	c.receiving.Wait()
	close(c.ending)
	c.driving.Wait()
	for _, h := range c.hauls {
		for i, who := range []string{"the visitor", "the local service"} {
			// The kernel tells of a reset once: to whoever asks first.
			if err := errors.Join(h.legs[i].sendErr, h.legs[1-i].reached); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s saw %v in a busy stream, want a connection reset", who, err)
			}
			_ = h.ends[i].Close() // nothing is left in it
		}
	}
}
