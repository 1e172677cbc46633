package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
)

// soaking tells whether the long tests run in full: RELAY_SOAK=1. Without it
// each runs for some seconds.
func soaking() bool { return os.Getenv("RELAY_SOAK") != "" }

// parting is how a party ends its part of a talk.
type parting uint8

const (
	orderly      parting = iota // shuts down when it has written, and reads to the end
	resetWriting                // RST when it has written, whatever it has read
	resetReading                // RST when it has read so much, whatever it has written
	leavesEarly                 // closes when it has written, and reads no more
)

// party is one end of a talk: what it is to do, drawn from the talk's number,
// and what came of it.
type party struct {
	content uint64 // what it writes; every byte belongs to this number alone
	size    int    // how much of it
	enough  int    // for resetReading
	stalls  bool   // before it resets, until bytes wait everywhere on the way
	way     parting
	sent    atomic.Int64 // at most so many bytes left this end
	shut    atomic.Bool  // with a FIN behind them
	got     int64        // bytes of the other's content, in their order
	ran     bool         // was connected at all
	err     error        // how reading ended: nil is an orderly end
	broken  bool         // writing failed: who writes and who reads are not both told of a reset
}

// errWrong is a byte that is not the other's.
var errWrong = errors.New("a byte that does not belong here")

// talk is one stream, known to both of its ends by the visitor's address.
type talk struct {
	number  uint64
	source  netip.AddrPort
	visitor party
	service party
	rough   bool // may be cut at any time

	mu     sync.Mutex
	served who
	ends   [2][]Event // what the engines told: the server's, the client's
}

// who served a talk, once it is known.
type who uint8

const (
	nobodyYet who = iota
	honestOne
	hostileOne
)

// drawSize is mostly small; some are large enough to be spliced.
func drawSize(rng *rand.Rand) int {
	switch n := rng.IntN(100); {
	case n < 5:
		return 0
	case n < 60:
		return rng.IntN(1 << 10)
	case n < 90:
		return rng.IntN(16 << 10)
	case n < 97:
		return rng.IntN(64 << 10)
	default:
		return rng.IntN(512 << 10)
	}
}

func (p *party) draw(content uint64, rng *rand.Rand, other int) {
	p.content, p.size = content, drawSize(rng)
	switch rng.IntN(16) {
	case 0:
		p.way, p.size = resetWriting, rng.IntN(p.size+1)
	case 1:
		p.way, p.enough = resetReading, rng.IntN(other+1)
	case 2:
		p.way = leavesEarly
	}
}

// stall makes p reset a bulk transfer that it has let fill every buffer.
func (p *party) stall(from *party) {
	p.way, p.enough, p.stalls = resetReading, 1, true
	from.way, from.size = orderly, 16<<20
}

// run plays the part on a connection until both directions have ended; other
// is what the other end writes.
func (p *party) run(c *net.TCPConn, other uint64, rng *rand.Rand, m *crowd) {
	p.ran = true
	var writing sync.WaitGroup
	mine := rand.New(rand.NewPCG(rng.Uint64(), 1))
	writing.Go(func() { p.write(c, mine, m) })
	p.read(c, other, rng, m)
	writing.Wait()
	drop(c)
}

func (p *party) write(c *net.TCPConn, rng *rand.Rand, m *crowd) {
	from := content(p.content)
	b := make([]byte, 1<<(4+rng.IntN(13)))
	if p.size > 1<<20 {
		b = make([]byte, 64<<10)
	}
	for left := p.size; left > 0; {
		piece := b[:min(left, 1+rng.IntN(len(b)))]
		_, _ = io.ReadFull(from, piece)
		n, err := c.Write(piece)
		p.sent.Add(int64(n))
		if left -= n; err != nil {
			p.broken = true
			return
		}
		m.pause(rng)
	}
	switch p.way {
	case resetWriting:
		_ = c.SetLinger(0)
		drop(c)
	case leavesEarly:
		p.shut.Store(true)
		drop(c)
	case orderly, resetReading:
		p.shut.Store(true)
		p.broken = c.CloseWrite() != nil
	}
}

func (p *party) read(c *net.TCPConn, other uint64, rng *rand.Rand, m *crowd) {
	want := content(other)
	b := make([]byte, 1<<(4+rng.IntN(11)))
	expected := make([]byte, len(b))
	for {
		if p.way == resetReading && p.got >= int64(p.enough) {
			if p.stalls {
				m.passed(20)
			}
			_ = c.SetLinger(0)
			drop(c)
			p.err = net.ErrClosed
			return
		}
		n, err := c.Read(b[:1+rng.IntN(len(b))])
		_, _ = io.ReadFull(want, expected[:n])
		if !bytes.Equal(b[:n], expected[:n]) {
			p.err = fmt.Errorf("%w: near %d: %x", errWrong, p.got, b[:min(n, 32)])
			return
		}
		p.got += int64(n)
		if err != nil {
			if !errors.Is(err, io.EOF) {
				p.err = err
			}
			return
		}
		m.pause(rng)
	}
}

// check holds what a party read against what the other wrote: never a byte of
// somebody else, and an orderly end only where there was one, behind all bytes.
func (p *party) check(from *party) error {
	sent := from.sent.Load()
	switch {
	case !p.ran:
		return nil
	case errors.Is(p.err, errWrong):
		return p.err
	case p.got > sent:
		return fmt.Errorf("%d bytes of %d", p.got, sent)
	case errors.Is(p.err, os.ErrDeadlineExceeded):
		return fmt.Errorf("not told how it ended after %d of %d bytes", p.got, sent)
	case p.err == nil && !p.broken && (!from.shut.Load() || p.got != sent):
		return fmt.Errorf("an orderly end after %d of %d bytes, FIN sent: %v", p.got, sent, from.shut.Load())
	}
	return nil
}

func (p *party) String() string {
	way := [...]string{"orderly", "resets when it has written", "resets when it has read", "leaves early"}[p.way]
	return fmt.Sprintf("%s: sent %d of %d, shut down %v, got %d (wants %d), then %v", way, p.sent.Load(), p.size, p.shut.Load(), p.got, p.enough, p.err)
}

func (t *talk) String() string {
	return fmt.Sprintf("\tvisitor %v\n\tLocalServer %v\n\ttold on the server %+v\n\ttold on the client %+v", &t.visitor, &t.service, t.ends[0], t.ends[1])
}

// whole tells whether nobody gave the talk a reason to end early.
func (t *talk) whole() bool { return !t.rough && t.visitor.way == orderly && t.service.way == orderly }

// check tells what is wrong with a talk that is over.
func (t *talk) check() error {
	if err := t.visitor.check(&t.service); err != nil {
		return fmt.Errorf("the visitor got %w", err)
	}
	if err := t.service.check(&t.visitor); err != nil {
		return fmt.Errorf("the LocalServer got %w", err)
	}
	if !t.whole() || t.served == hostileOne {
		return nil
	}
	for _, p := range []*party{&t.visitor, &t.service} {
		if !p.ran || p.err != nil || p.sent.Load() != int64(p.size) {
			return fmt.Errorf("%d of %d bytes left, and reading ended with %w", p.sent.Load(), p.size, p.err)
		}
	}
	return nil
}

// checkEnd holds what an engine counted against what the ends saw.
func (t *talk) checkEnd(side Side) error {
	ends := t.ends[side-ServerSide]
	if len(ends) != 1 {
		return fmt.Errorf("%d ends: %+v", len(ends), ends)
	}
	if _, refused := ends[0].(Refused); refused {
		if t.visitor.way == orderly || t.visitor.got+t.service.got > 0 {
			return fmt.Errorf("%+v", ends[0])
		}
		return nil
	}
	ev := ends[0].(StreamEnded)
	sent, answered := uint64(t.visitor.sent.Load()), uint64(t.service.sent.Load())
	switch {
	case ev.Reason == Done && (ev.Up != sent || ev.Down != answered || !t.visitor.shut.Load() || !t.service.shut.Load()):
	case ev.Reason != Done && t.whole() && t.served == honestOne:
	case ev.Up > sent || ev.Up < uint64(t.service.got) || ev.Down > answered || ev.Down < uint64(t.visitor.got):
	default:
		return nil
	}
	return fmt.Errorf("%+v, want %d up, %d down", ev, sent, answered)
}
