package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// script plays one side of a ProxyConn by frames made by hand: well for most of
// the time, and then badly. What it sends in order is the content of its talk;
// what it sends against the protocol is always the content of another.
type script struct {
	*net.TCPConn
	crowd *crowd
	rng   *rand.Rand
	side  Side // that it plays

	starts chan *scene   // streams that the engine began, when that is the server
	gone   chan struct{} // closed when the conn has ended
	odd    error         // what the engine did that it may not, once gone is closed

	now *scene // known to who reads frames, and handed to who sends them
}

// scene is one stream.
type scene struct {
	seq   uint16
	mine  *party        // the end that the script stands for
	want  io.Reader     // what the other one sends
	over  chan struct{} // closed when the engine has ended its direction
	reset atomic.Bool   // by RESET
}

func newScript(m *crowd, c *net.TCPConn, side Side, rng *rand.Rand) *script {
	s := &script{
		TCPConn: c, crowd: m, side: side, rng: rng, starts: make(chan *scene, 1), gone: make(chan struct{}),
		now: &scene{mine: &party{}, over: make(chan struct{})},
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	close(s.now.over)
	return s
}

// ended tells whether the engine has ended its direction.
func (sc *scene) ended() bool {
	select {
	case <-sc.over:
		return true
	default:
		return false
	}
}

// begin makes a talk a scene of this conn.
func (s *script) begin(t *talk, seq uint16) *scene {
	mine, theirs := &t.service, &t.visitor
	if s.side == ServerSide {
		mine, theirs = theirs, mine
	}
	mine.ran, mine.broken = true, true // until its FIN has come
	return &scene{seq: seq, mine: mine, want: content(theirs.content), over: make(chan struct{})}
}

// listen reads frames until the conn ends.
func (s *script) listen() {
	defer close(s.gone)
	if s.side == ClientSide {
		defer close(s.starts)
	}
	for {
		g, err := s.frame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.odd = errors.New("the conn was neither used nor closed")
		}
		if err != nil {
			return
		}
		if g.Type == frame.Start && s.side == ClientSide {
			err = s.started(g)
		} else {
			err = s.heard(g)
		}
		if err != nil {
			s.odd = err
			drop(s.TCPConn)
			return
		}
	}
}

// frame reads one frame; a header that is none has no type, which is odd enough.
func (s *script) frame() (gram, error) {
	var b [frame.HeaderSize]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return gram{}, err
	}
	h, err := frame.ParseHeader(b[:])
	if err != nil {
		return gram{}, nil
	}
	payload := make([]byte, h.Length)
	_, err = io.ReadFull(s, payload)
	return gram{h, payload}, err
}

// started takes a START.
func (s *script) started(g gram) error {
	st, err := frame.ParseStart(g.payload)
	if err != nil {
		return fmt.Errorf("START: %w", err)
	}
	t := s.crowd.find(st.Source, hostileOne)
	if t == nil || !s.now.ended() || g.Seq != s.now.seq+1 || st.Tunnel != linkWire {
		return fmt.Errorf("START %d of %+v behind %d, which is over: %v", g.Seq, st, s.now.seq, s.now.ended())
	}
	s.now = s.begin(t, g.Seq)
	s.starts <- s.now
	return nil
}

// heard takes any other frame.
func (s *script) heard(g gram) error {
	switch g.Type {
	case frame.Ready, frame.Ping, frame.Pong, frame.Close, frame.Retire:
		return nil
	case frame.Data, frame.Fin, frame.Reset:
	default:
		return fmt.Errorf("a frame %+v", g.Header)
	}
	if s.side == ServerSide {
		s.catchUp(g.Seq)
	}
	sc := s.now
	over := sc.ended()
	switch {
	case g.Seq != sc.seq || over && g.Type != frame.Reset: // which may follow its own FIN
		return fmt.Errorf("%v of stream %d in stream %d, which is over: %v", g.Type, g.Seq, sc.seq, over)
	case g.Type == frame.Data:
		expected := make([]byte, len(g.payload))
		_, _ = io.ReadFull(sc.want, expected)
		if !bytes.Equal(g.payload, expected) {
			return fmt.Errorf("%w: near %d: %x", errWrong, sc.mine.got, g.payload[:min(32, len(g.payload))])
		}
		sc.mine.got += int64(len(expected))
		return nil
	case g.Type == frame.Reset:
		sc.reset.Store(true)
		sc.mine.broken = true
	default:
		sc.mine.broken = false
	}
	if !over {
		close(sc.over)
	}
	return nil
}

// catchUp goes on to the stream that this script has begun as a server, as soon
// as the engine says something about it.
func (s *script) catchUp(seq uint16) {
	if seq == s.now.seq {
		return
	}
	select {
	case s.now = <-s.starts:
	default:
	}
}

// put sends bytes in pieces; false when the conn has ended.
func (s *script) put(b []byte) bool {
	for len(b) > 0 {
		n := len(b)
		if s.rng.IntN(4) == 0 {
			n = 1 + s.rng.IntN(n)
		}
		if _, err := s.Write(b[:n]); err != nil {
			return false
		}
		b = b[n:]
		s.crowd.pause(s.rng)
	}
	return true
}

// dataOf is a DATA frame of n bytes of a content.
func dataOf(seq uint16, from io.Reader, n int) []byte {
	b := make([]byte, frame.HeaderSize+n)
	frame.Header{Type: frame.Data, Seq: seq, Length: uint32(n)}.Put(b)
	_, _ = io.ReadFull(from, b[frame.HeaderSize:])
	return b
}

// play is one stream; false when the conn is of no more use.
func (s *script) play(sc *scene) bool {
	p, from := sc.mine, content(sc.mine.content)
	for left := p.size; left > 0; {
		if sc.reset.Load() {
			break
		}
		if s.rng.IntN(32) == 0 && !s.misbehave(sc) {
			return false
		}
		n := min(left, 1+s.rng.IntN(1<<(4+s.rng.IntN(14))))
		p.sent.Add(int64(n))
		if left -= n; !s.put(dataOf(sc.seq, from, n)) {
			return false
		}
	}
	last := bare(frame.Fin, sc.seq)
	if sc.reset.Load() {
		last = resetFrame(sc.seq, frame.ResetAcknowledge)
	} else if p.way == resetWriting {
		last = resetFrame(sc.seq, frame.ResetPeer)
	} else {
		p.shut.Store(true)
	}
	if !s.put(last) || s.rng.IntN(16) == 0 && !s.misbehaveAfter(sc) {
		return false
	}
	select {
	case <-sc.over:
		return true
	case <-s.gone:
		return false
	}
}

// alien is what belongs to another stream, in whatever frame.
func (s *script) alien(sc *scene) io.Reader { return content(sc.mine.content + 1 + s.rng.Uint64N(64)) }

// misbehave does within a stream what is not allowed, or what means nothing;
// false when the engine has to close the conn, and has.
func (s *script) misbehave(sc *scene) bool {
	seq, n := sc.seq, 16+s.rng.IntN(4096)
	other := [...]uint16{seq - 1, seq + 1, seq ^ 0x8000, seq + 1 + uint16(s.rng.IntN(65535))}[s.rng.IntN(4)]
	foreign := map[Side][][]byte{
		ClientSide: {startFrame(seq+1, linkWire), readyFrame(1), bare(frame.Ping, seq), bare(frame.Close, seq)},
		ServerSide: {startFrame(seq+1, linkWire), readyFrame(1), bare(frame.Ping, seq), bare(frame.Close, seq), bare(frame.Pong, seq), bare(frame.Retire, seq)},
	}[s.side]
	var first []byte
	switch s.rng.IntN(8) {
	case 0, 1:
		first = dataOf(other, s.alien(sc), n)
	case 2:
		first = bare(frame.Fin, other)
	case 3:
		first = header(byte(frame.Data), 0, byte(seq>>8), byte(seq), 0, 0x10, 0, 1) // 1 MiB and a byte
	case 4:
		first = header(byte(s.rng.IntN(256)), byte(1+s.rng.IntN(255)), byte(seq>>8), byte(seq), 0, 0, 0, 1)
	case 5:
		first = foreign[s.rng.IntN(len(foreign))]
	case 6:
		return s.tear(sc)
	default: // of streams that are not: it means nothing
		return s.put(bytes.Repeat(resetFrame(other, frame.ResetPeer), 1+s.rng.IntN(64)))
	}
	// What follows looks well, and is not to be believed any more.
	_ = s.put(append(first, dataOf(seq, s.alien(sc), n)...))
	<-s.gone
	return false
}

// misbehaveAfter does the same behind the end of the stream.
func (s *script) misbehaveAfter(sc *scene) bool {
	n := 16 + s.rng.IntN(4096)
	switch s.rng.IntN(3) {
	case 0:
		_ = s.put(dataOf(sc.seq, s.alien(sc), n))
	case 1:
		_ = s.put(bare(frame.Fin, sc.seq))
	default:
		return s.put(resetFrame(sc.seq-1, frame.ResetPeer))
	}
	<-s.gone
	return false
}

// tear ends the conn in the middle of a frame.
func (s *script) tear(sc *scene) bool {
	n := 2 + s.rng.IntN(8<<10)
	_ = s.put(dataOf(sc.seq, s.alien(sc), n)[:1+s.rng.IntN(frame.HeaderSize)])
	if s.rng.IntN(2) == 0 {
		_ = s.SetLinger(0)
		drop(s.TCPConn)
	} else {
		_ = s.CloseWrite()
	}
	<-s.gone
	return false
}

// serve plays a client for as long as the conn lasts.
func (s *script) serve() {
	go s.listen()
	for sc := range s.starts {
		if !s.play(sc) {
			break
		}
	}
	s.finish()
}

// drive plays a server for so many streams.
func (s *script) drive(streams int, next func() *talk) {
	go s.listen()
	for seq := uint16(1); int(seq) <= streams; seq++ {
		t := next()
		sc := s.begin(t, seq)
		s.starts <- sc
		b := startFrame(seq, linkWire)
		frame.PutStart(b, seq, frame.Stream{Tunnel: linkWire, Source: t.source, Destination: t.source})
		if !s.put(b) || !s.play(sc) {
			break
		}
		idle := [][]byte{bare(frame.Ping, 1), resetFrame(seq, frame.ResetPeer), resetFrame(seq+1, frame.ResetPeer)}
		if s.rng.IntN(8) == 0 && !s.put(bytes.Join(idle, nil)) {
			break
		}
	}
	s.finish()
}

// finish ends the conn and waits for who reads it.
func (s *script) finish() {
	drop(s.TCPConn)
	for {
		select {
		case <-s.starts: // which may hold one that nobody plays any more
		case <-s.gone:
			return
		}
	}
}
