package relay

import (
	"net/netip"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// State is all that a frozen engine held: what another one, in this process or
// another, needs to go on where it stopped. It is plain values without a
// pointer into an engine, so that a codec can carry it; descriptors travel
// beside it. Pools and tunnels are named by their position in Pools and
// Tunnels, since an id may be in use again while streams of its former owner
// still run. Durations count from the moment of Freeze; the time until Adopt
// is not subtracted.
//
// Whoever has a State owns its descriptors, until Adopt or Close. Those of
// streams and ProxyConns have SO_LINGER{on, 0}: when the last copy of one is
// closed, by Close, a crash or the kernel that drops a message on its way, the
// peer sees RST and never an end that looks orderly. A State is not for
// concurrent use.
type State struct {
	Pools     []PoolState
	Tunnels   []TunnelState
	Listeners []ListenerState
	Conns     []ConnState    // ProxyConns without a stream; of the idle ones of a pool, the ones used last stand last
	Streams   []StreamState  // in no order
	Waiting   []WaitingState // who will be served first stands first
}

// Descriptor is a file descriptor of the process that holds the State;
// negative: none.
type Descriptor int

// PoolState is the pool of a Control. A Closed one has streams that still run,
// and can be cut by another ClosePool.
type PoolState struct {
	Pool      PoolID
	Side      Side
	MaxIdle   int // as in OpenPool
	Heartbeat time.Duration
	Beat      time.Duration // until the next heartbeat; 0 when none was due
	Closed    bool
	Targets   []TargetState // of the client
}

// TargetState is what SetTarget said about a tunnel of the client.
type TargetState struct {
	Wire   uint32
	Tunnel int // in State.Tunnels
	Target Target
}

// TunnelState is a tunnel with its totals. The id of a Former one means
// another by now, or none: its last streams run.
type TunnelState struct {
	Totals           TunnelStats
	Former           bool
	Limited          bool  // by a Limit since it listens; else the rates are of its last streams
	RateUp, RateDown int64 // as in Limit
}

// ListenerState is a listening socket, with the connections in its queue.
type ListenerState struct {
	Socket  Descriptor
	Address netip.AddrPort
	Tunnel  int   // in State.Tunnels
	Route   Route // ToPool, ToPreface or ToTarget; nil when none was given yet
}

// SocketState is a connected socket and what it still has to take: the bytes
// of Held, then those in Pipe.
type SocketState struct {
	Socket Descriptor
	Held   []byte
	Pipe   *PipeState // nil: none
}

// PipeState is a pipe with Bytes in it.
type PipeState struct {
	Read, Write Descriptor
	Bytes       int
}

// RawState is a socket that carries bare bytes: a PublicConn or a LocalConn.
type RawState struct {
	SocketState
	EndRead bool       // the peer's FIN was read and passed on
	FinSent bool       // and this side's was sent
	Dial    *DialState // nil once it is connected
}

// DialState is a LocalConn that is being dialled. There is no socket while the
// next attempt at an address has to wait.
type DialState struct {
	Target      Target
	Next        int            // the address in Target that is being tried
	Destination netip.AddrPort // what a PROXY header names
	Left        time.Duration  // for that address
}

// ConnState is a ProxyConn: idle, carrying a stream, waiting for the other side
// to end one that has ended here or, on the client, for READY, behind which the
// server may have sent a visitor's START already.
type ConnState struct {
	SocketState
	Pool     int // in State.Pools
	Idle     bool
	Exchange ExchangeState
	In       InflowState
	Carried  bool          // a stream, ever
	Retire   bool          // to be closed after its stream (server), or RETIRE was sent (client)
	Missed   uint8         // heartbeats in a row
	Left     time.Duration // for the end of the stream, or for READY, to come; 0: not counted yet
	Opening  *OpeningState // nil once READY has come
}

// OpeningState is what a Dial that is under way said.
type OpeningState struct {
	Ref   uint64
	Ready [frame.ReadySize]byte
}

// ExchangeState is how far the current or last stream of a ProxyConn has got.
type ExchangeState struct {
	Seq      uint16
	EndSent  bool // FIN or RESET was sent
	EndRead  bool // and received
	GotReset bool // RESET was received
}

// InflowState is what a ProxyConn has received and not consumed.
type InflowState struct {
	Held    []byte // Blocked: for a destination that takes no more; else the beginning of a frame
	Blocked bool
	Bulk    bool   // the current DATA frame is worth splicing
	Need    uint32 // payload bytes of the current DATA frame that were not passed on, Held included
	Dropped uint32 // payload bytes of a reset stream dropped so far
}

// StreamState is a stream with all its sockets: Front and Conn, or in a plain
// forwarder Front and Back.
type StreamState struct {
	Tunnel   int // in State.Tunnels
	Source   netip.AddrPort
	Front    RawState
	Back     *RawState
	Conn     *ConnState
	Up, Down uint64        // payload bytes so far
	Age      time.Duration // since it began
	Quiet    time.Duration // since bytes moved last
}

// WaitingState is a PublicConn that waits for a ProxyConn.
type WaitingState struct {
	Socket Descriptor
	Pool   int // in State.Pools
	Tunnel int // in State.Tunnels
	Wire   uint32
	Source netip.AddrPort
	Left   time.Duration // until it is refused
}

// Close closes every descriptor and empties the State, which ends its streams
// by RST. On a State that was adopted, or closed, it does nothing.
func (s *State) Close() {
	taken := s.take()
	taken.each(func(d Descriptor) {
		if d >= 0 {
			closefd(int(d))
		}
	})
}

// take moves what s holds to the caller, so that nobody adopts it again.
func (s *State) take() State {
	taken := *s
	*s = State{}
	return taken
}

// each visits every descriptor.
func (s *State) each(visit func(Descriptor)) {
	for i := range s.Listeners {
		visit(s.Listeners[i].Socket)
	}
	for i := range s.Conns {
		s.Conns[i].each(visit)
	}
	for i := range s.Streams {
		s.Streams[i].each(visit)
	}
	for i := range s.Waiting {
		visit(s.Waiting[i].Socket)
	}
}

func (r *SocketState) each(visit func(Descriptor)) {
	visit(r.Socket)
	if r.Pipe != nil {
		visit(r.Pipe.Read)
		visit(r.Pipe.Write)
	}
}

func (r *StreamState) each(visit func(Descriptor)) {
	r.Front.each(visit)
	if r.Back != nil {
		r.Back.each(visit)
	}
	if r.Conn != nil {
		r.Conn.each(visit)
	}
}
