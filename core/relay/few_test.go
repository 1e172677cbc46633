package relay

import (
	"sync/atomic"
	"testing"
	"time"
)

// few is a link whose conns are as many at every time: one that is gone is
// replaced, and visitors wait for one that is free.
type few struct {
	*link
	left atomic.Int64 // visitors that had gone when they were accepted
	lost atomic.Int64 // conns replaced
}

func startFew(t *testing.T, m *crowd, conns int) *few {
	t.Helper()
	set := DefaultSettings()
	set.Wait, set.Connect = time.Minute, 2*time.Second
	o := linkOptions{loops: 2, settings: set, target: m.target}
	k := &few{link: &link{}}
	k.client = startFarThat(t, o, func(ev Event) {
		m.hear(ClientSide, ev)
		if ev, ok := ev.(ConnClosed); ok && ev.Reason != Stopped {
			k.lost.Add(1)
			k.client.dial(k.server.proxy)
		}
	})
	k.server = startNear(t, o, func(ev Event) {
		m.hear(ServerSide, ev)
		if ev, ok := ev.(Refused); ok && !ev.Source.IsValid() {
			k.left.Add(1)
		}
	})
	k.public = k.server.public
	k.server.passed() // from here on the reader's goroutine sees k.server
	m.engines = []*fixture{k.server.fixture, k.client.fixture}
	k.open(conns)
	return k
}

// settled waits until every stream has ended on both engines and the
// LocalServer is done with it.
func (m *crowd) settled(engines ...*fixture) {
	m.tb.Helper()
	for _, f := range engines {
		eventually(m.tb, "every stream has ended", func() bool {
			s := f.stats(linkTunnel)
			return f.conns.Load() == 0 && s.Opened == s.Ended && uint64(total[StreamEnded](f)) == s.Ended
		})
	}
	eventually(m.tb, "the LocalServer has read to the end", func() bool { return m.serving.Load() == 0 })
}

// A hundred thousand streams, one after the other over the same few conns,
// each with a content of its own both ways, cut, half-closed and delayed at
// random from either end: no byte of one ever appears in another, what was not
// cut is whole, and each ends once on each engine, with counts that fit.
func TestStreamsOverFewConns(t *testing.T) {
	talks, conns := 2000, 4
	if soaking() {
		talks = 100_000
	}
	m := newCrowd(t)
	k := startFew(t, m, conns)
	began := time.Now()
	m.visits(talks, 32, k.public)
	m.settled(m.engines...)
	m.close()
	took := time.Since(began)
	for _, f := range m.engines {
		f.passed()
	}
	m.wantTalks(t, k.left.Load())
	var whole int
	var bytes int64
	for _, talk := range m.talks {
		if talk.whole() {
			whole++
		}
		bytes += talk.visitor.got + talk.service.got
	}
	opened := conns + int(k.lost.Load())
	t.Logf("%d talks, %d of them whole, %d MB, %d conns, %v", len(m.talks), whole, bytes>>20, opened, took)
	if opened > talks/10 {
		t.Errorf("%d conns for %d streams: they are not used again", opened, talks)
	}
}

// wantTalks checks every talk; so many visitors had left before the server
// could know who they were.
func (m *crowd) wantTalks(t *testing.T, left int64) {
	t.Helper()
	if n := m.strays.Load(); n != 0 {
		t.Errorf("%d streams or ends of streams that nobody began", n)
	}
	for _, talk := range m.talks {
		if err := talk.check(); err != nil {
			t.Errorf("talk %d: %v\n%v", talk.number, err, talk)
		}
		if len(talk.ends[0])+len(talk.ends[1]) == 0 && talk.served == nobodyYet && talk.visitor.way != orderly && left > 0 {
			left--
			continue
		}
		for _, side := range []Side{ServerSide, ClientSide} {
			if err := talk.checkEnd(side); err != nil && !m.excused(talk, side) {
				t.Errorf("talk %d on side %d: %v\n%v", talk.number, side, err, talk)
			}
		}
	}
}

// excused tells whether an engine need not have told of a talk: it had no part
// in it.
func (m *crowd) excused(t *talk, side Side) bool {
	if len(t.ends[side-ServerSide]) > 0 {
		return false
	}
	if len(t.ends[0]) > 0 {
		if _, refused := t.ends[0][0].(Refused); refused {
			return side == ClientSide
		}
	}
	switch t.served {
	case hostileOne: // a START may be lost with the conn of the script that sent it
		return side == m.hostile || m.hostile == ServerSide && !t.service.ran
	case nobodyYet: // a script may have gone before it read the START
		return m.hostile == ClientSide && side == ClientSide
	default:
		return false
	}
}
