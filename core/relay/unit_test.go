package relay

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cproxy/cproxy/core/frame"
)

type named struct {
	timer timer
	id    int
}

func (*named) expired(*loop) {}

// The heap against a slice that is sorted anew at every step.
func TestTimersModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var heap timers
	all := make([]*named, 60)
	for i := range all {
		all[i] = &named{id: i}
	}
	armed := make(map[*named]int64)
	for step := range 20000 {
		x := all[rng.IntN(len(all))]
		switch rng.IntN(4) {
		case 0, 1:
			when := rng.Int64N(1000)
			heap.set(&x.timer, x, when)
			armed[x] = when
		case 2:
			heap.stop(&x.timer)
			delete(armed, x)
		case 3:
			now := rng.Int64N(1000)
			got := heap.pop(now)
			first, when := earliest(armed)
			if first == nil || when > now {
				if got != nil {
					t.Fatalf("step %d: popped %v before its time", step, got)
				}
				break
			}
			if got == nil || armed[got.(*named)] != when {
				t.Fatalf("step %d: popped %v, want one due at %d", step, got, when)
			}
			delete(armed, got.(*named))
		}
		_, want := earliest(armed)
		if when, ok := heap.next(); ok != (len(armed) > 0) || ok && when != want {
			t.Fatalf("step %d: next is %d, %v; want %d of %d", step, when, ok, want, len(armed))
		}
		for _, x := range all {
			if _, is := armed[x]; is != (x.timer.pos > 0) {
				t.Fatalf("step %d: timer %d at %d, armed %v", step, x.id, x.timer.pos, is)
			}
		}
	}
}

func earliest(armed map[*named]int64) (first *named, when int64) {
	for x, w := range armed {
		if first == nil || w < when {
			first, when = x, w
		}
	}
	return first, when
}

func TestFifoModel(t *testing.T) {
	type member struct {
		ticket uint64
		x      *int
	}
	rng := rand.New(rand.NewPCG(5, 6))
	var f fifo[int]
	var model []member
	gone := []uint64{1 << 40}
	for step := range 50000 {
		switch rng.IntN(5) {
		case 0, 1:
			x := new(int)
			model = append(model, member{f.push(x), x})
		case 2:
			got := f.pop()
			if len(model) == 0 {
				if got != nil {
					t.Fatalf("step %d: popped %v from nothing", step, got)
				}
				break
			}
			if got != model[0].x {
				t.Fatalf("step %d: popped another than the oldest", step)
			}
			gone = append(gone, model[0].ticket)
			model = model[1:]
		case 3:
			if len(model) > 0 {
				i := rng.IntN(len(model))
				f.remove(model[i].ticket)
				gone = append(gone, model[i].ticket)
				model = slices.Delete(model, i, i+1)
			}
		case 4: // who has left cannot leave again
			f.remove(gone[rng.IntN(len(gone))])
		}
		if f.len() != len(model) {
			t.Fatalf("step %d: %d members, want %d", step, f.len(), len(model))
		}
		if f.len() > 0 && f.items[0] != model[0].x {
			t.Fatalf("step %d: the first is not the oldest", step)
		}
	}
}

func TestMemory(t *testing.T) {
	var m memory
	rng := rand.New(rand.NewPCG(7, 8))
	type held struct {
		h    *buffer
		want []byte
	}
	var all []held
	for range 5000 {
		n := 1 + rng.IntN(1<<(1+rng.IntN(17)))
		b := bytes.Repeat([]byte{byte(rng.Uint32())}, n)
		switch {
		case len(all) < 10 || rng.IntN(2) == 0:
			h := m.hold(b)
			all = append(all, held{h, bytes.Clone(b)})
			clear(b) // the buffer has a copy
		default:
			i := rng.IntN(len(all))
			if rng.IntN(2) == 0 {
				all[i].h = m.add(all[i].h, b)
				all[i].want = append(all[i].want, b...)
			} else {
				m.free(all[i].h)
				all = slices.Delete(all, i, i+1)
			}
		}
		for i, x := range all {
			if !bytes.Equal(x.h.bytes(), x.want) {
				t.Fatalf("buffer %d of %d bytes has changed", i, len(x.want))
			}
		}
		if len(all) > 20 {
			m.free(all[0].h)
			all = all[1:]
		}
	}
	for _, x := range all {
		m.free(x.h)
	}
	if m.heldBulk != 0 {
		t.Fatalf("%d large buffers counted as in use", m.heldBulk)
	}
	if h := m.add(nil, []byte("x")); string(h.bytes()) != "x" {
		t.Fatalf("added to nothing: %q", h.bytes())
	}
	m.free(nil)
	for range 2 * maxSpare {
		m.free(&buffer{b: make([]byte, 0, heldSlab)})
	}
	if len(m.spare) > maxSpare {
		t.Fatalf("%d spare slabs kept", len(m.spare))
	}
}

func TestOutboxDropsReportsOnly(t *testing.T) {
	o := newOutbox()
	for range maxEvents {
		o.add([]Event{StreamEnded{}})
	}
	o.add([]Event{StreamEnded{}, Refused{}, ConnClosed{}, PrefaceFailed{}, Needed{}, Exhausted{}, ConnOpened{}, Listening{}})
	if got := o.dropped.Load(); got != 5 {
		t.Fatalf("dropped %d, want 5", got)
	}
	if len(o.list) != maxEvents+3 {
		t.Fatalf("kept %d", len(o.list))
	}
	o.finish()
	if last := <-o.ch; len(last) != maxEvents+3 {
		t.Fatalf("delivered %d", len(last))
	}
	if _, open := <-o.ch; open {
		t.Fatal("not closed")
	}
}

// Whatever moment the delivery is stopped at, nothing is lost or reordered.
func TestOutboxFinish(t *testing.T) {
	for round := range 200 {
		o := newOutbox()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); o.deliver(ctx) }()
		n := round % 7
		for i := range n {
			o.add([]Event{ConnOpened{Ref: uint64(i)}})
		}
		cancel()
		<-done
		o.finish()
		next := uint64(0)
		for batch := range o.ch {
			for _, ev := range batch {
				if ev.(ConnOpened).Ref != next {
					t.Fatalf("got %v, want %d", ev, next)
				}
				next++
			}
		}
		if next != uint64(n) {
			t.Fatalf("%d events came, want %d", next, n)
		}
	}
}

func TestInboxWakes(t *testing.T) {
	var b inbox
	woken := 0
	b.post(stop{}) // before anybody listens
	b.setWake(func() { woken++ })
	if woken != 1 {
		t.Fatalf("woken %d times for what was there already", woken)
	}
	b.post(stop{})
	if list := b.take(nil); len(list) != 2 || woken != 1 {
		t.Fatalf("%d messages, woken %d times", len(list), woken)
	}
	b.post(stop{})
	b.post(stop{})
	if woken != 2 {
		t.Fatalf("woken %d times, want once a list", woken)
	}
	b.setWake(nil)
	b.take(nil)
	b.post(stop{})
	if woken != 2 {
		t.Fatal("woken after the end")
	}
}

func TestReasons(t *testing.T) {
	codes := map[Reason]frame.ResetCode{
		Done: frame.ResetPeer, PeerReset: frame.ResetPeer, RemoteReset: frame.ResetAcknowledge, ProxyLost: frame.ResetPeer,
		ProtocolError: frame.ResetPeer, DialError: frame.ResetDial, UnknownTunnel: frame.ResetTunnel, IdleTimeout: frame.ResetTimeout,
		HalfCloseTimeout: frame.ResetTimeout, WaitTimeout: frame.ResetPeer, ConnLimit: frame.ResetPeer, NoDescriptors: frame.ResetExhausted,
		Cut: frame.ResetClosed, Stopped: frame.ResetClosed, VisitorLeft: frame.ResetPeer, BadPreface: frame.ResetPeer,
		PrefaceTimeout: frame.ResetPeer, Missed: frame.ResetPeer, PeerDead: frame.ResetTimeout, Closed: frame.ResetPeer, TLSPreface: frame.ResetPeer,
	}
	if len(codes) != len(reasonNames)-1 {
		t.Fatalf("%d reasons in the table, %d have a name", len(codes), len(reasonNames)-1)
	}
	seen := make(map[string]Reason)
	for r, code := range codes {
		name := r.String()
		if reasonNames[r] == "" || seen[name] != 0 {
			t.Errorf("reason %d has the name %q, as %d", r, name, seen[name])
		}
		seen[name] = r
		if got := r.resetCode(); got != code {
			t.Errorf("%v is told as %v, want %v", r, got, code)
		}
	}
	for _, r := range []Reason{0, Closed + 1, 255} {
		if got, want := r.String(), fmt.Sprintf("reason %d", uint8(r)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	for c := range frame.ResetAcknowledge + 2 {
		if r := remoteReason(c); r < Done || reasonNames[r] == "" || r == Done {
			t.Errorf("code %d means %v here", c, r)
		}
	}
}
