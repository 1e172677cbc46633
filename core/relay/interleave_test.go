package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// tap is one end of a stream, and the model of it: what it has sent and got of
// two endless contents, and what it has done.
type tap struct {
	conn   *net.TCPConn
	other  *tap
	out    io.Reader // its content
	in     io.Reader // the other's
	sent   int
	got    int
	shut   bool // has sent FIN
	gone   bool // is closed
	broken bool // was told of a reset
}

// interleaving drives both ends of one stream.
type interleaving struct {
	t     *testing.T
	r     route
	taps  [2]*tap
	ends  []int // streams that had ended on each engine before this one
	lossy bool  // somebody reset, or closed what was not read: bytes may be lost, the end may not
	cut   bool  // by a reset before both directions had ended: that is no good end
	done  []string
}

// Sizes of a write or a read in bytes; a full read makes the engine splice.
var steps = [...]int{1, 7, 100, 1000, 4096, 20_000, 64 << 10, 64<<10 + 1, 200_000}

// maxUnread is how much may be under way, so that no write blocks.
const maxUnread = 256 << 10

func interleave(t *testing.T, r route) *interleaving {
	t.Helper()
	m := &interleaving{t: t, r: r}
	for _, f := range r.engines {
		m.ends = append(m.ends, total[StreamEnded](f))
	}
	visitor, service := r.connect(t)
	a := &tap{conn: visitor, out: content(1), in: content(2)}
	b := &tap{conn: service, out: content(2), in: content(1), other: a}
	a.other = b
	m.taps = [2]*tap{a, b}
	return m
}

// quiet returns when the engines have nothing left to do.
func (m *interleaving) quiet() {
	for range len(m.r.engines) {
		for _, f := range m.r.engines {
			f.passed()
		}
	}
}

// step does what one byte says: who, what and how much.
func (m *interleaving) step(op byte) {
	who, what, size := op&1, op>>1&7, steps[int(op>>4)%len(steps)]
	p := m.taps[who]
	m.done = append(m.done, fmt.Sprintf("%d: op %d, %d bytes", who, what, size))
	if p.gone {
		return
	}
	switch what {
	case 0, 1, 2:
		m.write(p, size)
	case 3:
		m.read(p, size)
	case 4:
		m.read(p, maxUnread+1)
	case 5:
		m.shutdown(p)
	case 6:
		m.leave(p)
	case 7:
		m.reset(p)
	}
	m.quiet()
}

func (m *interleaving) fatalf(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("%s\nafter %q", fmt.Sprintf(format, args...), m.done)
}

func (m *interleaving) write(p *tap, n int) {
	if p.shut || p.sent-p.other.got+n > maxUnread {
		return
	}
	if p.other.gone {
		m.lossy = true // the kernel answers with RST
	}
	b := make([]byte, n)
	_, _ = io.ReadFull(p.out, b)
	written, err := p.conn.Write(b)
	p.sent += written
	if err == nil {
		return
	}
	if p.broken = true; !m.lossy {
		m.fatalf("write: %v", err)
	}
	p.shut = true // its content has a hole now
}

func (m *interleaving) shutdown(p *tap) {
	if p.shut {
		return
	}
	p.shut = true
	if err := p.conn.CloseWrite(); err != nil {
		if p.broken = true; !m.lossy {
			m.fatalf("shut down: %v", err)
		}
	}
}

func (m *interleaving) leave(p *tap) {
	m.lossy = m.lossy || p.got < p.other.sent
	p.shut, p.gone = true, true
	drop(p.conn)
}

func (m *interleaving) reset(p *tap) {
	m.cut = m.cut || !p.shut || !p.other.shut
	m.lossy, p.gone = true, true
	_ = p.conn.SetLinger(0)
	drop(p.conn)
}

// read wants up to n bytes of what is there, and the end when it has come.
func (m *interleaving) read(p *tap, n int) {
	if m.lossy {
		m.readSome(p, n)
		return
	}
	there := p.other.sent - p.got
	m.take(p, min(n, there))
	if n <= there {
		return
	}
	if p.other.shut {
		if k, err := p.conn.Read(make([]byte, 1)); k != 0 || !errors.Is(err, io.EOF) {
			m.fatalf("behind the last byte came %d bytes, %v", k, err)
		}
		return
	}
	if k, err := p.receive(make([]byte, 1), unix.MSG_DONTWAIT|unix.MSG_PEEK); !errors.Is(err, unix.EAGAIN) {
		m.fatalf("%d bytes, %v, where nothing was sent", k, err)
	}
}

// take wants exactly n bytes.
func (m *interleaving) take(p *tap, n int) {
	b, want := make([]byte, n), make([]byte, n)
	if k, err := io.ReadFull(p.conn, b); err != nil {
		m.fatalf("got %d of %d bytes that were sent, %v", k, n, err)
	}
	m.same(p, b, want)
}

func (m *interleaving) same(p *tap, b, want []byte) {
	_, _ = io.ReadFull(p.in, want[:len(b)])
	if !bytes.Equal(b, want[:len(b)]) {
		m.fatalf("other bytes than were sent, near %d", p.got)
	}
	p.got += len(b)
}

// readSome takes what is left of a stream that was cut; it tells whether more
// may come.
func (m *interleaving) readSome(p *tap, n int) (more bool) {
	b, want := make([]byte, 32<<10), make([]byte, 32<<10)
	for n > 0 {
		k, err := p.receive(b[:min(n, len(b))], unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return true
		case err != nil:
			p.broken = true
			return false
		case k == 0:
			if !p.broken && (!p.other.shut || p.got != p.other.sent) {
				m.fatalf("an orderly end after %d of %d bytes, although it was cut", p.got, p.other.sent)
			}
			return false
		}
		m.same(p, b[:k], want)
		if n -= k; p.got > p.other.sent {
			m.fatalf("%d bytes of %d", p.got, p.other.sent)
		}
	}
	return true
}

// receive is recv(2).
func (p *tap) receive(b []byte, flags int) (n int, err error) {
	raw, err := p.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	if e := raw.Control(func(fd uintptr) { n, _, err = unix.Recvfrom(int(fd), b, flags) }); e != nil {
		return 0, e
	}
	return n, err
}

// finish ends what has not ended, and wants both engines to tell so once.
func (m *interleaving) finish() {
	m.done = append(m.done, "finish")
	for _, p := range m.taps {
		if !p.gone {
			m.shutdown(p)
		}
	}
	for _, p := range m.taps {
		switch {
		case p.gone:
		case m.lossy:
			eventually(m.t, "a stream that was cut ends", func() bool { return !m.readSome(p, maxUnread+1) })
		default:
			m.read(p, maxUnread+1)
		}
	}
	a, b := m.taps[0], m.taps[1]
	drop(a.conn, b.conn)
	for i, f := range m.r.engines {
		ev := await[StreamEnded](f)
		whole := ev.Reason == Done && ev.Up == uint64(a.sent) && ev.Down == uint64(b.sent)
		if !m.lossy && !whole || m.cut && ev.Reason == Done || ev.Up > uint64(a.sent) || ev.Down > uint64(b.sent) || ev.Up < uint64(b.got) || ev.Down < uint64(a.got) {
			m.fatalf("engine %d told %+v of %d up and %d down", i, ev, a.sent, b.sent)
		}
		if n := total[StreamEnded](f); n != m.ends[i]+1 {
			m.fatalf("engine %d told of %d ends", i, n-m.ends[i])
		}
	}
}

// Any interleaving of writes, reads, shutdowns, closes and resets of both ends,
// step by step against two queues of bytes and some flags.
func FuzzModel(f *testing.F) {
	const visitor, service = 0, 1
	write := func(who, size byte) byte { return size<<4 | who }
	op := func(who, what byte) byte { return what<<1 | who }
	const readAll, shutdown, leave, reset = 4, 5, 6, 7
	for route := range byte(3) {
		for _, ops := range [][]byte{
			{},
			{write(visitor, 2), op(service, readAll), write(service, 3), op(visitor, readAll)},
			{op(visitor, shutdown), write(service, 5), op(visitor, readAll), op(service, shutdown)},
			{write(visitor, 6), write(visitor, 7), write(service, 8), op(visitor, shutdown), op(service, readAll), op(visitor, readAll)},
			{write(visitor, 8), op(visitor, reset), op(service, readAll)},
			{write(visitor, 2), op(visitor, shutdown), op(service, readAll), op(visitor, reset), write(service, 2)},
			{write(service, 8), op(visitor, leave), write(service, 1)},
			{op(visitor, leave), op(service, readAll), write(service, 1), write(service, 1), op(service, shutdown)},
			{op(service, leave), op(visitor, leave)},
			{op(service, shutdown), op(visitor, shutdown), op(service, reset)},
			{write(visitor, 8), write(service, 8), op(service, shutdown), op(service, reset)},
		} {
			f.Add(append([]byte{route}, ops...))
		}
	}
	s := localServer(f, nil)
	forward := startEngine(f, 2, DefaultSettings(), nil)
	one := startLink(f, linkOptions{loops: 1, conns: 1, supply: true, target: s.target})
	two := startLink(f, linkOptions{loops: 2, conns: 2, supply: true, target: s.target})
	routes := []route{
		{public: forward.listen(linkTunnel, ToTarget{Target: s.target}), local: s, engines: []*fixture{forward}},
		{public: one.public, local: s, engines: []*fixture{one.server.fixture, one.client.fixture}},
		{public: two.public, local: s, engines: []*fixture{two.server.fixture, two.client.fixture}},
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 || len(data) > 64 {
			return
		}
		r := routes[int(data[0])%len(routes)]
		for _, f := range r.engines {
			f.reuse(t)
		}
		m := interleave(t, r)
		for _, op := range data[1:] {
			m.step(op)
		}
		m.finish()
	})
}
