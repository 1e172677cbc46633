package relay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
)

// handover is what goes on while an engine is handed over to another process.
type handover struct {
	*link
	t       *testing.T
	local   *local
	handing chan struct{} // closed when the engine is about to be handed over
	stop    chan struct{} // ends the ping-pong
	rounds  []atomic.Int64
	running sync.WaitGroup
	idle    [][2]*net.TCPConn
	stalled [][2]*net.TCPConn
	sent    []int64 // to the stalled ones
	streams int
}

// connect gives both ends of a new stream.
func (s *handover) connect() (visitor, service *net.TCPConn) {
	s.t.Helper()
	s.streams++
	visitor = dialTCP(s.t, s.public)
	return visitor, s.local.take(s.t)
}

// also runs something that must not fail.
func (s *handover) also(run func() error) {
	s.running.Go(func() {
		if err := run(); err != nil {
			s.t.Error(err)
		}
	})
}

// begin has idle streams, some that stall with bytes in every buffer and pipe,
// ping-pong and bulk both ways.
func (s *handover) begin(handed *fixture) {
	s.t.Helper()
	for range 20 {
		visitor, service := s.connect()
		s.idle = append(s.idle, [2]*net.TCPConn{visitor, service})
	}
	for i := uint64(0); i < 2 || !handed.lends() && i < 20; i++ {
		from, to := s.connect()
		if i%2 == 1 {
			from, to = to, from
		}
		s.stalled = append(s.stalled, [2]*net.TCPConn{from, to})
		s.sent = append(s.sent, int64(fill(s.t, from, content(i))))
	}
	for i := range s.rounds {
		visitor, service := s.connect()
		s.also(func() error { echo(service); return nil })
		s.also(func() error { return s.pingPong(visitor, &s.rounds[i]) })
	}
	for i := range uint64(4) {
		visitor, service := s.connect()
		s.bulk(visitor, service, 100+i)
		s.bulk(service, visitor, 200+i)
	}
	s.pingPongGoesOn()
}

// lends tells whether bytes wait in a pipe of the engine.
func (f *fixture) lends() (lent bool) {
	f.tb.Helper()
	for i := range f.loops {
		f.inLoop(i, func(l *loop) { lent = lent || l.pipes.open > len(l.pipes.spare) })
	}
	return lent
}

// bulk sends a content, the second half of it while the engine is handed over.
func (s *handover) bulk(from, to *net.TCPConn, number uint64) {
	const half = 6 << 20
	s.also(func() error {
		in := content(number)
		if _, err := io.CopyN(from, in, half); err != nil {
			return fmt.Errorf("first half of bulk: %w", err)
		}
		<-s.handing
		if _, err := io.CopyN(from, in, half); err != nil {
			return fmt.Errorf("second half of bulk: %w", err)
		}
		<-s.stop
		return from.CloseWrite()
	})
	s.also(func() error { return wantContent(to, number, 2*half) })
}

func (s *handover) pingPong(c *net.TCPConn, rounds *atomic.Int64) error {
	for {
		message := fmt.Sprint("round ", rounds.Load(), " of ", c.LocalAddr())
		if _, err := io.WriteString(c, message); err != nil {
			return fmt.Errorf("ping: %w", err)
		}
		if got := readFull(c, make([]byte, len(message))); got != message {
			return fmt.Errorf("pong %q, want %q", got, message)
		}
		rounds.Add(1)
		select {
		case <-s.stop:
			if err := c.CloseWrite(); err != nil {
				return err
			}
			if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
				return fmt.Errorf("after the last pong: %q, %w", rest, err)
			}
			return nil
		default:
		}
	}
}

// pingPongGoesOn returns when every ping-pong has made more rounds.
func (s *handover) pingPongGoesOn() {
	s.t.Helper()
	for i := range s.rounds {
		from := s.rounds[i].Load()
		eventually(s.t, "ping-pong goes on", func() bool { return s.rounds[i].Load() >= from+10 || s.t.Failed() })
	}
}

// finish ends every stream and wants all bytes to have come.
func (s *handover) finish() {
	s.t.Helper()
	for i, c := range s.stalled {
		s.also(func() error { return errors.Join(c[0].CloseWrite(), c[1].CloseWrite()) })
		s.also(func() error { return wantContent(c[1], uint64(i), s.sent[i]) })
	}
	for _, c := range s.idle {
		say(s.t, c[0], "awake")
		hear(s.t, c[1], "awake")
		say(s.t, c[1], "too")
		closeWrite(s.t, c[1])
		wantRest(s.t, c[0], "too")
		closeWrite(s.t, c[0])
		wantRest(s.t, c[1], "")
	}
	s.pingPongGoesOn()
	close(s.stop)
	s.running.Wait()
}

// frozen wants a State to hold all that is on the handover.
func (s *handover) frozen(f *fixture) *State {
	s.t.Helper()
	close(s.handing)
	state := f.freeze()
	if len(state.Streams) != s.streams {
		s.t.Errorf("%d streams, want %d", len(state.Streams), s.streams)
	}
	pipes, all := 0, 0
	for _, n := range withPipes(*state) {
		pipes += n
	}
	eachDescriptor(reflect.ValueOf(state).Elem(), func(*Descriptor) { all++ })
	state.each(func(Descriptor) { all-- })
	if pipes == 0 || all != 0 {
		s.t.Errorf("%d pipes with bytes, %d descriptors that Close does not know", pipes, all)
	}
	if _, open := <-f.Events(); open {
		s.t.Error("the old engine still tells")
	}
	return state
}
