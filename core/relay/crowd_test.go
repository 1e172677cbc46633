package relay

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

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
