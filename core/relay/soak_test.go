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
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// soaking tells whether the long tests run in full: RELAY_SOAK=1. Without it
// each runs for some seconds.
func soaking() bool { return os.Getenv("RELAY_SOAK") != "" }

// leaving is how a party ends its part of a talk.
type leaving uint8

const (
	orderly      leaving = iota // shuts down when it has written, and reads to the end
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
	way     leaving
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

// crowd is all talks of a test and the LocalServer they are for. Its target
// announces visitors by a PROXY header, which tells the LocalServer the talk.
type crowd struct {
	tb      testing.TB
	target  Target
	close   func() // the LocalServer, behind its last party
	seed    uint64
	base    netip.Addr // of the first visitor
	engines []*fixture
	rough   bool         // anything may be cut at any time
	hostile Side         // which side of some conns is played by a script
	strays  atomic.Int64 // ends of streams that nobody began
	serving atomic.Int64 // parties of the LocalServer that have not finished

	mu    sync.Mutex
	talks map[netip.AddrPort]*talk
}

func newCrowd(t *testing.T) *crowd {
	t.Helper()
	m := &crowd{tb: t, seed: seedOf(t), talks: make(map[netip.AddrPort]*talk)}
	// Addresses of its own, so that no talk has the address of a former one.
	m.base = netip.AddrFrom4([4]byte{127, byte(1 + m.seed%250), byte(m.seed >> 8), 1})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.target = Target{Addresses: []Address{{TCP: ln.Addr().(*net.TCPAddr).AddrPort()}}, ProxyProtocol: ProxyV2}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			serving.Go(func() { m.serve(c) })
		}
	})
	m.close = sync.OnceFunc(func() { ln.Close(); serving.Wait() })
	t.Cleanup(m.close)
	return m
}

// rng gives the random numbers of one part of the test.
func (m *crowd) rng(part uint64) *rand.Rand { return rand.New(rand.NewPCG(m.seed, part)) }

// begin makes a talk known under the visitor's address.
func (m *crowd) begin(number uint64, source netip.AddrPort) *talk {
	rng := m.rng(1<<32 | number)
	t := &talk{number: number, source: source, rough: m.rough}
	t.visitor.draw(2*number, rng, 8<<10)
	t.service.draw(2*number+1, rng, t.visitor.size)
	switch n := rng.IntN(256); { // with bytes in pipes when they end
	case m.hostile != 0: // scripts do not stall
	case n == 0:
		t.visitor.stall(&t.service)
	case n == 1:
		t.service.stall(&t.visitor)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.talks[source] = t
	return t
}

func (m *crowd) find(source netip.AddrPort, by who) *talk {
	m.mu.Lock()
	t := m.talks[source]
	m.mu.Unlock()
	if t == nil {
		m.strays.Add(1)
		return nil
	}
	if by != nobodyYet {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.served = max(t.served, by)
	}
	return t
}

// note files what an engine told about a talk.
func (m *crowd) note(side Side, source netip.AddrPort, ev Event) {
	t := m.find(source, nobodyYet)
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ends[side-ServerSide] = append(t.ends[side-ServerSide], ev)
}

// hear is what the fixture of an engine calls for its events.
func (m *crowd) hear(side Side, ev Event) {
	switch ev := ev.(type) {
	case StreamEnded:
		m.note(side, ev.Source, ev)
	case Refused:
		if ev.Source.IsValid() { // not of one that left before it was accepted
			m.note(side, ev.Source, ev)
		}
	}
}

// pause lets others go on now and then.
func (m *crowd) pause(rng *rand.Rand) {
	switch n := rng.IntN(400); {
	case n < 40:
		for range n {
			runtime.Gosched()
		}
	case n == 40:
		m.passed(1)
	}
}

// passed lets the engines make so many rounds.
func (m *crowd) passed(rounds int) {
	for range rounds {
		for _, f := range m.engines {
			f.passed()
		}
	}
}

// serve is the LocalServer.
func (m *crowd) serve(c net.Conn) {
	defer c.Close()
	source, err := readProxyHeader(c)
	if err != nil {
		return // cut before it was served
	}
	if t := m.find(source, honestOne); t != nil {
		m.serving.Add(1)
		defer m.serving.Add(-1)
		t.service.run(c.(*net.TCPConn), t.visitor.content, m.rng(2<<32|t.number), m)
	}
}

// readProxyHeader reads a version 2 header of IPv4.
func readProxyHeader(c net.Conn) (source netip.AddrPort, err error) {
	var b [28]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return source, err
	}
	if string(b[:12]) != proxySignature {
		return source, fmt.Errorf("%w: %x", errWrong, b)
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:20])), uint16(b[24])<<8|uint16(b[25])), nil
}

// visit is one visitor's talk from an address that is given once.
func (m *crowd) visit(number uint64, from, to netip.AddrPort) {
	t := m.begin(number, from)
	c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(from), net.TCPAddrFromAddrPort(to))
	if err != nil {
		t.visitor.err = err // cut before connect had returned, or else found by check
		return
	}
	_ = c.SetDeadline(time.Now().Add(2 * patience))
	t.visitor.run(c, t.service.content, m.rng(3<<32|number), m)
}

// visits runs talks on so many visitors at a time.
func (m *crowd) visits(talks, beside int, to netip.AddrPort) {
	var next atomic.Int64
	var running sync.WaitGroup
	for w, at := 0, m.base; w < beside; w, at = w+1, at.Next() {
		running.Go(func() {
			for port := uint16(5000); ; port++ {
				n := next.Add(1)
				if n > int64(talks) || m.tb.Failed() {
					return
				}
				m.visit(uint64(n), netip.AddrPortFrom(at, port), to)
			}
		})
	}
	running.Wait()
}
