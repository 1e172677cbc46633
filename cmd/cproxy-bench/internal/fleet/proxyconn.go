//go:build linux

package fleet

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// chunk is how much of a stream is echoed at a time, in bytes.
const chunk = 16 << 10

// missedPings is how many heartbeats an idle ProxyConn lives without a PING.
const missedPings = 4

// openProxy opens a ProxyConn, which lives until the server closes it or ctx is
// done; a lost CtlConn does not end it.
func (m *member) openProxy(ctx context.Context) {
	s := m.session
	s.proxyID++
	key := frame.NewKey(s.key)
	preface := frame.Preface{Mode: frame.Plain, ControlID: s.control, Epoch: s.epoch, ProxyID: s.proxyID}
	sealed, ready := preface.Seal(key, frame.Exporter{}), preface.Ready(key, frame.Exporter{})
	address, patience := s.proxy, s.heartbeat*missedPings
	m.fleet.tasks.Go(func() {
		socket, err := m.fleet.dialer.DialContext(ctx, "tcp", address)
		if err != nil {
			return // the server asks again
		}
		defer socket.Close()
		stop := context.AfterFunc(ctx, func() { _ = socket.Close() })
		defer stop()
		p := &proxyConn{conn: socket, tally: &m.fleet.tally, patience: patience, buffer: make([]byte, frame.HeaderSize+frame.StartSize)}
		if p.open(sealed, ready) == nil {
			_ = p.serve() // however it ended, it was the server's to say
		}
	})
}

// proxyConn is an echo behind the frames of one ProxyConn.
type proxyConn struct {
	conn     net.Conn
	tally    *tally
	patience time.Duration
	buffer   []byte // small; a larger one exists while a stream runs
	seq      uint16 // of the stream
	running  bool
}

var errPlace = errors.New("frame has no place here")

// open sends the preface and checks the READY that answers it.
func (p *proxyConn) open(sealed [frame.PrefaceSize]byte, want [frame.ReadySize]byte) error {
	_ = p.conn.SetDeadline(time.Now().Add(attemptLimit))
	if _, err := p.conn.Write(sealed[:]); err != nil {
		return fmt.Errorf("send preface: %w", err)
	}
	h, err := p.header()
	if err != nil {
		return err
	}
	if h.Type != frame.Ready {
		return errPlace
	}
	got := p.buffer[:frame.ReadySize]
	if _, err := io.ReadFull(p.conn, got); err != nil {
		return fmt.Errorf("read READY: %w", err)
	}
	if !hmac.Equal(got, want[:]) {
		return frame.ErrMAC
	}
	p.tally.note(func(n *Counts) { n.ProxyConns++ })
	return nil
}

// serve answers frames until the conn ends.
func (p *proxyConn) serve() error {
	for {
		deadline := time.Now().Add(p.patience)
		if p.running { // a stream may be silent for as long as it likes
			deadline = time.Time{}
		}
		_ = p.conn.SetDeadline(deadline)
		h, err := p.header()
		if err != nil {
			return err
		}
		if h.Type == frame.Close {
			return nil
		}
		if err := p.handle(h); err != nil {
			return err
		}
	}
}

func (p *proxyConn) header() (frame.Header, error) {
	if _, err := io.ReadFull(p.conn, p.buffer[:frame.HeaderSize]); err != nil {
		return frame.Header{}, fmt.Errorf("read frame: %w", err)
	}
	return frame.ParseHeader(p.buffer)
}

func (p *proxyConn) handle(h frame.Header) error {
	ours := p.running && h.Seq == p.seq
	switch {
	case h.Type == frame.Ping && !p.running:
		return p.send(frame.Header{Type: frame.Pong, Seq: h.Seq})
	case h.Type == frame.Start && !p.running:
		return p.start(h)
	case h.Type == frame.Data && ours:
		return p.echo(int(h.Length))
	case h.Type == frame.Fin && ours: // the echo has sent all: its own end follows
		p.stop()
		return p.send(frame.Header{Type: frame.Fin, Seq: h.Seq})
	case h.Type == frame.Reset:
		return p.reset(h, ours)
	default:
		return fmt.Errorf("%v: %w", h.Type, errPlace)
	}
}

func (p *proxyConn) start(h frame.Header) error {
	payload := p.buffer[:frame.StartSize]
	if _, err := io.ReadFull(p.conn, payload); err != nil {
		return fmt.Errorf("read START: %w", err)
	}
	if _, err := frame.ParseStart(payload); err != nil {
		return err
	}
	p.seq, p.running = h.Seq, true
	p.buffer = make([]byte, frame.HeaderSize+chunk)
	p.tally.note(func(n *Counts) { n.Streams++ })
	return nil
}

func (p *proxyConn) stop() {
	p.running = false
	p.buffer = make([]byte, frame.HeaderSize+frame.StartSize)
}

// echo sends n bytes of payload back.
func (p *proxyConn) echo(n int) error {
	for n > 0 {
		body := p.buffer[frame.HeaderSize:]
		got, err := p.conn.Read(body[:min(n, len(body))])
		if err != nil {
			return fmt.Errorf("read DATA: %w", err)
		}
		if got == 0 {
			continue
		}
		n -= got
		frame.Header{Type: frame.Data, Seq: p.seq, Length: uint32(got)}.Put(p.buffer)
		if _, err := p.conn.Write(p.buffer[:frame.HeaderSize+got]); err != nil {
			return fmt.Errorf("echo: %w", err)
		}
	}
	return nil
}

// reset ends the stream, if it is this one that the server means.
func (p *proxyConn) reset(h frame.Header, ours bool) error {
	if _, err := io.ReadFull(p.conn, p.buffer[:frame.ResetSize]); err != nil {
		return fmt.Errorf("read RESET: %w", err)
	}
	if !ours {
		return nil // it crossed the end of its stream
	}
	p.stop()
	var answer [frame.HeaderSize + frame.ResetSize]byte
	frame.PutReset(answer[:], h.Seq, frame.ResetAcknowledge)
	return p.write(answer[:])
}

func (p *proxyConn) send(h frame.Header) error {
	var b [frame.HeaderSize]byte
	h.Put(b[:])
	return p.write(b[:])
}

func (p *proxyConn) write(b []byte) error {
	if _, err := p.conn.Write(b); err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	return nil
}
