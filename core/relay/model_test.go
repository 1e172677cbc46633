package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// end is what one end of a stream does, drawn from a seed: it writes pieces,
// reads or stalls, and at last shuts down, resets, or waits for the other.
type end struct {
	name    string
	conn    *net.TCPConn
	rng     *rand.Rand
	engines []*fixture
	content []byte
	cuts    bool // resets when it has written

	sent     int
	writeErr error
	reset    atomic.Bool
	got      []byte
	readErr  error // nil after an orderly end
}

func newEnd(name string, c *net.TCPConn, engines []*fixture, rng *rand.Rand) *end {
	return &end{
		name: name, conn: c, engines: engines, content: randomBytes(rng, 1<<(4+rng.IntN(18))),
		cuts: rng.IntN(4) == 0, rng: rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64())),
	}
}

// stall lets the engines go on for some turns without this end.
func (e *end) stall(rng *rand.Rand) {
	if rng.IntN(6) == 0 {
		for range rng.IntN(20) {
			e.engines[rng.IntN(len(e.engines))].passed()
		}
	}
}

func (e *end) write() {
	for e.sent < len(e.content) {
		piece := e.content[e.sent:]
		n, err := e.conn.Write(piece[:min(len(piece), 1+e.rng.IntN(1<<(1+e.rng.IntN(17))))])
		e.sent += n
		if err != nil {
			e.writeErr = err
			return
		}
		e.stall(e.rng)
		if e.cuts && e.rng.IntN(8) == 0 {
			break
		}
	}
	if e.cuts {
		e.reset.Store(true)
		_ = e.conn.SetLinger(0)
		drop(e.conn)
		return
	}
	e.writeErr = e.conn.CloseWrite()
}

func (e *end) read(rng *rand.Rand) {
	b := make([]byte, 64<<10)
	for {
		n, err := e.conn.Read(b[:1+rng.IntN(len(b))])
		e.got = append(e.got, b[:n]...)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				e.readErr = err
			}
			return
		}
		e.stall(rng)
	}
}

// check compares what an end saw with the model: without a reset all of the
// other's content and its end; with one, a beginning of it, and an orderly end
// only where the other shut down first.
func (e *end) check(other *end) error {
	if !bytes.HasPrefix(other.content[:other.sent], e.got) {
		return fmt.Errorf("%s got %d bytes that are no beginning of what was sent", e.name, len(e.got))
	}
	switch {
	case e.reset.Load():
		return nil // its own doing
	case !other.reset.Load():
		if e.readErr != nil || len(e.got) != len(other.content) {
			return fmt.Errorf("%s got %d of %d bytes, then %w", e.name, len(e.got), len(other.content), e.readErr)
		}
	case e.readErr == nil && e.writeErr == nil:
		return fmt.Errorf("%s was reset after %d of %d bytes and saw an orderly end", e.name, len(e.got), len(other.content))
	case errors.Is(e.readErr, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s was not told of the reset: %w", e.name, e.readErr)
	}
	return nil
}

func runEnds(all ...*end) {
	var running sync.WaitGroup
	for _, e := range all {
		reading := rand.New(rand.NewPCG(e.rng.Uint64(), 1))
		running.Go(e.write)
		running.Go(func() { e.read(reading) })
	}
	running.Wait()
}

// seedOf gives the seed of a randomised test: RELAY_SEED to repeat one.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("RELAY_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("RELAY_SEED=%d", seed)
	return seed
}

// Random interleavings of writes, shutdowns, resets and stalls on both ends of
// several streams at once, against what a direct connection would show.
func TestModel(t *testing.T) {
	const beside, rounds = 4, 12
	seed := seedOf(t)
	set := DefaultSettings()
	set.Connect = 500 * time.Millisecond // for streams that do not settle
	eachRoute(t, set, func(t *testing.T, r route) {
		t.Helper()
		rng := rand.New(rand.NewPCG(seed, 7))
		for round := range rounds {
			var pairs [beside][2]*end
			var all []*end
			for i := range pairs {
				visitor, service := r.connect(t)
				pairs[i] = [2]*end{newEnd("visitor", visitor, r.engines, rng), newEnd("LocalServer", service, r.engines, rng)}
				all = append(all, pairs[i][:]...)
			}
			runEnds(all...)
			clean := 0
			for i, p := range pairs {
				for j, e := range p {
					if err := e.check(p[1-j]); err != nil {
						t.Errorf("round %d, stream %d: %v", round, i, err)
					}
					drop(e.conn)
				}
				if !p[0].cuts && !p[1].cuts {
					clean++
				}
			}
			for _, f := range r.engines {
				done := 0
				for range beside {
					if ev := await[StreamEnded](f); ev.Reason == Done {
						done++
					}
				}
				if done < clean {
					t.Errorf("round %d: %d streams done, want %d", round, done, clean)
				}
			}
			if t.Failed() {
				return
			}
		}
	})
}
