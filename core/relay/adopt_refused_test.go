package relay

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// record is a State of one record each that can be made wrong, and the test's
// ends of its sockets.
type record struct {
	State
	theirs []int
}

// newRecord has a stream over a ProxyConn, a forwarded one, an idle conn, a
// PublicConn that waits and a listener.
func newRecord(tb testing.TB) *record {
	tb.Helper()
	r := &record{}
	socket := func() SocketState {
		ours, theirs := socketPair(tb)
		r.theirs = append(r.theirs, theirs)
		return SocketState{Socket: Descriptor(ours)}
	}
	listener, err := bindOne(netip.AddrPortFrom(loopback, 0), false)
	if err != nil {
		tb.Fatal(err)
	}
	r.Pools = []PoolState{{Pool: 7, Side: ServerSide, MaxIdle: -1}}
	r.Tunnels = []TunnelState{{Totals: TunnelStats{Tunnel: 3, Opened: 2}}}
	r.Streams = []StreamState{
		{Front: RawState{SocketState: socket()}, Conn: &ConnState{SocketState: socket(), Exchange: ExchangeState{Seq: 1}}},
		{Front: RawState{SocketState: socket()}, Back: &RawState{SocketState: socket()}},
	}
	r.Conns = []ConnState{{SocketState: socket(), Idle: true, Exchange: ExchangeState{EndSent: true, EndRead: true}, Missed: 2}} // not to be claimed
	r.Waiting = []WaitingState{{Socket: socket().Socket, Source: netip.MustParseAddrPort("192.0.2.1:1"), Left: patience}}
	r.Listeners = []ListenerState{{Socket: Descriptor(listener.fd), Address: listener.address, Route: ToPool{Pool: 7}}}
	return r
}

// lost counts the descriptors at the test's ends that the engine has closed.
func (r *record) lost() (n int) {
	for _, fd := range r.theirs {
		poll := []unix.PollFd{{Fd: int32(fd)}}
		if _, _ = unix.Poll(poll, 0); poll[0].Revents&unix.POLLHUP != 0 {
			n++
		}
	}
	return n
}

// A record that makes no sense is closed and told; the others are taken over.
func TestAdoptRefuses(t *testing.T) {
	pool, tunnel := PoolID(7), TunnelID(3)
	nowhere, somewhere := Target{Addresses: []Address{{}}}, Target{Addresses: []Address{{Unix: "/nowhere"}}}
	streamLost := func(why Reason) []Event {
		return []Event{ConnClosed{Pool: pool, Reason: why}, StreamEnded{Pool: pool, Tunnel: tunnel, Reason: why}}
	}
	for name, c := range map[string]struct {
		spoil func(s *State)
		want  []Event
	}{
		"nothing wrong":               {func(*State) {}, nil},
		"stream of no tunnel":         {func(s *State) { s.Streams[0].Tunnel = 1 }, []Event{ConnClosed{pool, UnknownTunnel}, StreamEnded{Pool: pool, Reason: UnknownTunnel}}},
		"stream of a negative tunnel": {func(s *State) { s.Streams[1].Tunnel = -1 }, []Event{StreamEnded{Reason: UnknownTunnel}}},
		"stream of no pool":           {func(s *State) { s.Streams[0].Conn.Pool = 9 }, []Event{ConnClosed{0, Cut}, StreamEnded{Tunnel: tunnel, Reason: Cut}}},
		"pool of no side": {func(s *State) { s.Pools[0].Side = 3 }, append(
			streamLost(Cut), ConnClosed{Pool: pool, Reason: Cut}, Refused{Tunnel: tunnel, Source: netip.MustParseAddrPort("192.0.2.1:1"), Reason: Cut})},
		"stream without a second socket": {func(s *State) { s.Streams[0].Conn.Socket.discard(); s.Streams[0].Conn = nil }, []Event{StreamEnded{Tunnel: tunnel, Reason: Stopped}}},
		"stream with three sockets": {func(s *State) {
			s.Streams[0].Back = s.Streams[1].Back
			s.Streams[1].Front.Socket.discard()
			s.Streams = s.Streams[:1]
		}, streamLost(Stopped)},
		"negative front":            {func(s *State) { spoil(&s.Streams[0].Front.Socket, -1) }, streamLost(NoDescriptors)},
		"front that is not open":    {func(s *State) { spoil(&s.Streams[0].Front.Socket, 1<<20) }, streamLost(NoDescriptors)},
		"negative conn of a stream": {func(s *State) { spoil(&s.Streams[0].Conn.Socket, -1) }, streamLost(NoDescriptors)},
		"negative back":             {func(s *State) { spoil(&s.Streams[1].Back.Socket, -1) }, []Event{StreamEnded{Tunnel: tunnel, Reason: NoDescriptors}}},
		"pipe that is none":         {func(s *State) { s.Streams[1].Back.Pipe = &PipeState{Read: -1, Write: -1, Bytes: 1} }, []Event{StreamEnded{Tunnel: tunnel, Reason: Stopped}}},
		"empty pipe":                {func(s *State) { s.Streams[1].Front.Pipe = emptyPipe(1) }, []Event{StreamEnded{Tunnel: tunnel, Reason: Stopped}}},
		"pipe of no bytes":          {func(s *State) { s.Streams[0].Conn.Pipe = emptyPipe(0) }, streamLost(Stopped)},
		"front to dial":             {func(s *State) { s.Streams[1].Front.Dial = &DialState{} }, []Event{StreamEnded{Tunnel: tunnel, Reason: Stopped}}},
		"back to dial, with bytes": {func(s *State) {
			s.Streams[1].Back.Dial, s.Streams[1].Back.Held = &DialState{Target: somewhere}, []byte("early")
		}, []Event{StreamEnded{Tunnel: tunnel, Reason: Stopped}}},
		"back to dial before the first address": {func(s *State) {
			s.Streams[1].Back.Dial = &DialState{Target: somewhere, Next: -1}
		}, []Event{StreamEnded{Tunnel: tunnel, Reason: DialError}}},
		"back to dial behind the last address": {func(s *State) {
			s.Streams[1].Back.Dial = &DialState{Target: somewhere, Next: 1}
		}, []Event{StreamEnded{Tunnel: tunnel, Reason: DialError}}},
		"opening on the server": {func(s *State) { s.Conns[0].Idle, s.Conns[0].Opening = false, &OpeningState{Ref: 4} }, []Event{DialFailed{Pool: pool, Ref: 4}}},
		"opening with a stream": {func(s *State) { s.Streams[0].Conn.Opening = new(OpeningState) }, streamLost(Stopped)},
		"back to dial nowhere": {func(s *State) {
			s.Streams[1].Back.Socket.discard()
			s.Streams[1].Back = &RawState{SocketState: SocketState{Socket: -1}, Dial: &DialState{Target: nowhere}}
		}, []Event{StreamEnded{Tunnel: tunnel, Reason: DialError}}},
		"back to dial without an address": {func(s *State) {
			s.Streams[1].Back.Socket.discard()
			s.Streams[1].Back = &RawState{SocketState: SocketState{Socket: -1}, Dial: &DialState{}}
		}, []Event{StreamEnded{Tunnel: tunnel, Reason: DialError}}},
		"half a frame too long": {func(s *State) { s.Conns[0].In.Held = make([]byte, 48) }, []Event{ConnClosed{pool, Stopped}}},
		"frame too long":        {func(s *State) { s.Streams[0].Conn.In.Need = 1<<20 + 1 }, streamLost(Stopped)},
		"negative conn":         {func(s *State) { spoil(&s.Conns[0].Socket, -1) }, []Event{ConnClosed{pool, NoDescriptors}}},
		"conn of no pool":       {func(s *State) { s.Conns[0].Pool = -1 }, []Event{ConnClosed{0, Cut}}},
		"idle in a closed pool": {func(s *State) { s.Pools[0].Closed = true; s.Waiting[0].Pool = 5 }, []Event{ConnClosed{pool, Closed}, Refused{Tunnel: tunnel, Source: netip.MustParseAddrPort("192.0.2.1:1"), Reason: Cut}}},
		"negative visitor":      {func(s *State) { spoil(&s.Waiting[0].Socket, -1) }, []Event{Refused{Tunnel: tunnel, Source: netip.MustParseAddrPort("192.0.2.1:1"), Reason: NoDescriptors}}},
		"visitor of no tunnel":  {func(s *State) { s.Waiting[0].Tunnel = 1 }, []Event{Refused{Source: netip.MustParseAddrPort("192.0.2.1:1"), Reason: UnknownTunnel}}},
		"visitor of no pool":    {func(s *State) { s.Waiting[0].Pool = 1 }, []Event{Refused{Tunnel: tunnel, Source: netip.MustParseAddrPort("192.0.2.1:1"), Reason: Cut}}},
		"negative listener":     {func(s *State) { spoil(&s.Listeners[0].Socket, -1) }, []Event{Listening{Tunnel: tunnel}}},
		"listener that is none": {func(s *State) {
			s.Listeners[0].Socket.discard()
			s.Listeners[0].Socket = s.Waiting[0].Socket
			s.Waiting = nil
		}, []Event{Listening{Tunnel: tunnel}}},
		"listener of no tunnel":  {func(s *State) { s.Listeners[0].Tunnel = 2 }, []Event{Listening{}}},
		"listener to nowhere":    {func(s *State) { s.Listeners[0].Route = ToTarget{Target: nowhere} }, []Event{Listening{Tunnel: tunnel}}},
		"nothing but the places": {func(s *State) { s.Close(); s.Pools, s.Tunnels = make([]PoolState, 2), make([]TunnelState, 2) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			r := newRecord(t)
			c.spoil(&r.State)
			e := New(Options{Loops: 1, Settings: DefaultSettings()})
			e.Submit(Adopt{&r.State})
			if r.Streams != nil {
				t.Error("the State was not emptied")
			}
			told := adoptedAndFrozen(t, e)
			for i, ev := range told {
				switch ev := ev.(type) {
				case Listening:
					if ev.Err == nil || !strings.HasPrefix(ev.Err.Error(), "adopt listener of ") {
						t.Errorf("told %+v", ev)
					}
				case DialFailed:
					if ev.Err == nil || ev.Err.Error() != "adopt proxy connection: stopped" {
						t.Errorf("told %+v", ev)
					}
					ev.Err = nil
					told[i] = ev
				}
			}
			for _, want := range c.want {
				at := slices.IndexFunc(told, func(ev Event) bool { return equalEvents(ev, want) })
				if at < 0 {
					t.Fatalf("not told %T%+v, but %+v", want, want, told)
				}
				told = slices.Delete(told, at, at+1)
			}
			if len(told) > 0 {
				t.Errorf("told %+v besides", told)
			}
			if r.lost() != len(r.theirs) {
				t.Errorf("%d of %d sockets closed", r.lost(), len(r.theirs))
			}
			if n := descriptors(t) - len(r.theirs); n > before {
				t.Errorf("%d descriptors, %d before", n, before)
			}
		})
	}
}

func equalEvents(a, b Event) bool {
	if l, is := a.(Listening); is { // whose addresses are a slice
		m, is := b.(Listening)
		return is && l.Tunnel == m.Tunnel
	}
	_, is := b.(Listening)
	return !is && a == b
}

// spoil closes a descriptor and puts another number into its place.
func spoil(d *Descriptor, number Descriptor) {
	d.discard()
	*d = number
}

func emptyPipe(bytes int) *PipeState {
	var fd [2]int
	_ = unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK)
	return &PipeState{Read: Descriptor(fd[0]), Write: Descriptor(fd[1]), Bytes: bytes}
}

// adoptedAndFrozen gives what an engine told while it took over what it was
// given before Run, and closes what it has. It counts the PublicConns in that.
func adoptedAndFrozen(t *testing.T, e *Engine) (told []Event) {
	t.Helper()
	e.Submit(Freeze{})
	if err := e.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for batch := range e.Events() {
		told = append(told, batch...)
	}
	s := told[len(told)-1].(Frozen).State
	public := len(s.Waiting)
	for _, r := range s.Streams {
		if r.Conn == nil || s.Pools[r.Conn.Pool].Side == ServerSide {
			public++
		}
	}
	if n := e.conns.Load(); n != int64(public) {
		t.Errorf("%d PublicConns counted of %d", n, public)
	}
	s.Close()
	return slices.DeleteFunc(told[:len(told)-1], func(ev Event) bool { _, is := ev.(Needed); return is })
}

// A State can be adopted once, and not by an engine that has ended; whoever
// comes too late closes what he was given, or finds nothing.
func TestAdoptOnce(t *testing.T) {
	before := descriptors(t)
	r := newRecord(t)
	e := New(Options{Loops: 2, Settings: DefaultSettings()})
	e.Submit(Adopt{})
	e.Submit(Adopt{new(State)})
	e.Submit(Adopt{&r.State})
	e.Submit(Adopt{&r.State})
	r.Close()
	if r.lost() != 0 {
		t.Fatal("closed what was adopted")
	}
	if told := adoptedAndFrozen(t, e); len(told) != 0 {
		t.Errorf("told %+v", told)
	}
	late := newRecord(t)
	e.Submit(Adopt{&late.State})
	e.Submit(Adopt{})
	overtaken := newRecord(t)
	Adopt{&overtaken.State}.submit(e) // as if it had ended after Submit looked
	for _, r := range []*record{late, overtaken} {
		if r.lost() != len(r.theirs) || r.Conns != nil {
			t.Error("an engine that has ended did not close what it was given")
		}
	}
	if n := descriptors(t) - 3*len(r.theirs); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

// What joins an engine that knows the pool and the tunnel adds to them; a pool
// of the other side is another one.
func TestAdoptIntoKnown(t *testing.T) {
	f := startEngine(t, 2, DefaultSettings(), nil)
	f.Submit(OpenPool{Pool: 7, Side: ServerSide, MaxIdle: 1})
	f.listen(3, ToPool{Pool: 7})
	for range 2 {
		r := newRecord(t)
		r.Waiting[0].Socket.discard()
		r.Waiting = nil
		f.Submit(Adopt{&r.State})
	}
	f.passed()
	if s := f.stats(3); s.Opened != 4 {
		t.Errorf("totals %+v", s)
	}
	if ev := await[ConnClosed](f); ev != (ConnClosed{7, Closed}) { // MaxIdle is the engine's
		t.Errorf("told %+v", ev)
	}
	f.Submit(OpenPool{Pool: 8, Side: ClientSide, MaxIdle: 1})
	r := newRecord(t)
	r.Pools[0].Pool = 8
	f.Submit(Adopt{&r.State})
	if ev := awaitThat(f, func(ev StreamEnded) bool { return ev.Pool == 8 }); ev.Reason != Cut {
		t.Errorf("told %+v", ev)
	}
}

// Whatever a State says, adopting it neither panics nor leaks.
func FuzzAdopt(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 254, 253, 128, 127})
	f.Fuzz(func(t *testing.T, data []byte) {
		before := descriptors(t)
		r := newRecord(t)
		r.scramble(&data)
		e := New(Options{Loops: 1 + len(data)%3, Settings: DefaultSettings()})
		e.Submit(Adopt{&r.State})
		adoptedAndFrozen(t, e)
		if n := descriptors(t) - len(r.theirs); n > before {
			t.Errorf("%d descriptors, %d before", n, before)
		}
	})
}

// scramble changes what the bytes of data say, but no descriptor.
func (r *record) scramble(data *[]byte) {
	next := func() int {
		if len(*data) == 0 {
			return 0
		}
		b := int(int8((*data)[0]))
		*data = (*data)[1:]
		return b
	}
	bit := func() bool { return next()&1 != 0 }
	conn := func(c *ConnState) {
		c.Pool, c.Idle, c.Carried, c.Retire = next()%2, bit(), bit(), bit()
		c.Exchange = ExchangeState{Seq: uint16(next()), EndSent: bit(), EndRead: bit(), GotReset: bit()}
		c.In = InflowState{Held: make([]byte, uint8(next())), Blocked: bit(), Bulk: bit(), Need: uint32(next()), Dropped: uint32(next())}
		for i := range c.In.Held {
			c.In.Held[i] = byte(next())
		}
		c.Held = make([]byte, uint8(next()))
	}
	raw := func(s *RawState) { s.EndRead, s.FinSent, s.Held = bit(), bit(), make([]byte, uint8(next())) }
	r.Pools[0] = PoolState{Pool: 7, Side: Side(next() & 3), MaxIdle: next(), Closed: bit(), Targets: []TargetState{{Wire: 5, Tunnel: next() % 2}}}
	r.Tunnels[0].Former = bit()
	for i := range r.Streams {
		s := &r.Streams[i]
		s.Tunnel = next() % 2
		raw(&s.Front)
		if s.Conn != nil {
			conn(s.Conn)
		} else {
			raw(s.Back)
		}
	}
	conn(&r.Conns[0])
	r.Waiting[0].Pool, r.Waiting[0].Tunnel, r.Listeners[0].Tunnel = next()%2, next()%2, next()%2
}

// A pool that Adopt made known before OpenPool reached the loop keeps what it
// has.
func TestAdoptBeforeOpenPool(t *testing.T) {
	e := idleEngine(t, 1)
	l := e.loops[0]
	r := newRecord(t)
	r.Waiting[0].Socket.discard()
	r.Waiting = nil
	e.Submit(Adopt{&r.State})
	l.once()
	sh := l.shards[7]
	openShard{sh.pool}.apply(l)
	if l.shards[7] != sh || len(sh.idle) != 1 {
		t.Fatal("the pool was opened anew")
	}
}
