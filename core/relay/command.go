package relay

import (
	"net/netip"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// PoolID names the ProxyConns of one Control. The caller chooses it, unique
// within an engine.
type PoolID uint64

// TunnelID names a tunnel. The caller chooses it, unique within an engine.
type TunnelID uint64

// ConnID names a conn whose preface is being verified.
type ConnID uint64

// Command is what an Engine can be told. The types below are all there are.
// Commands of one goroutine take effect in their order.
type Command interface {
	submit(e *Engine)
}

// Listen opens listeners for a tunnel: one socket per address of Binds, all on
// the first of Ports that is free on every one of them. Port 0 lets the kernel
// choose. The sockets are bound before Submit returns; the answer is the event
// Listening. "::" takes IPv4 too, unless Binds also names 0.0.0.0, and stands
// for 0.0.0.0 where the machine has no IPv6. Without a Route, connections wait
// in the kernel's queue until a Reroute says where they go.
type Listen struct {
	Tunnel TunnelID
	Binds  []netip.Addr
	Ports  []uint16
	Route  Route
}

// Unlisten closes the listeners of a tunnel; its streams go on. Answered by
// Unlistened.
type Unlisten struct {
	Tunnel TunnelID
}

// Reroute changes where the new PublicConns of a listening tunnel go.
type Reroute struct {
	Tunnel TunnelID
	Route  Route
}

// Limit bounds the payload of a tunnel in bytes per second, each direction on
// its own and all its streams together; 0 is no limit. It counts at once, for
// streams that are paused within a second, and may come before Listen and again
// at any time. Streams that outlive Unlisten keep the limit they had.
type Limit struct {
	Tunnel   TunnelID
	Up, Down int64 // what visitors send, and what they are sent
}

// Route says what becomes of an accepted connection: one of ToPool, ToPreface
// and ToTarget.
type Route interface {
	route()
}

func (ToPool) route()    {}
func (ToPreface) route() {}
func (ToTarget) route()  {}

// ToPool carries a PublicConn over a ProxyConn of a pool. Wire is the tunnel's
// id in START. MaxConns bounds the tunnel's PublicConns, 0 does not.
type ToPool struct {
	Pool     PoolID
	Wire     uint32
	MaxConns int
}

// ToPreface makes a listener the proxy port: what it accepts must send a
// preface.
type ToPreface struct{}

// ToTarget makes a listener a plain forwarder to an address, without frames.
type ToTarget struct {
	Target Target
}

// Target is where a stream goes on the private side: the addresses are tried
// in their order.
type Target struct {
	Addresses     []Address
	ProxyProtocol ProxyVersion
}

// Address is a TCP address or, when Unix is not empty, a unix socket path.
type Address struct {
	TCP  netip.AddrPort
	Unix string
}

// Side says which end of its ProxyConns an engine is.
type Side uint8

// The sides: only the server starts streams, pings and closes idle conns.
const (
	ServerSide Side = iota + 1
	ClientSide
)

// OpenPool makes a pool known to every loop. MaxIdle bounds its idle conns
// (negative: no bound): the server closes what is beyond it, the client asks
// for that; with 0 no conn carries a second stream. Heartbeat is how often the
// server pings idle conns; one that missed two is closed (three on the
// client). Opening an open pool again changes MaxIdle only.
type OpenPool struct {
	Pool      PoolID
	Side      Side
	MaxIdle   int
	Heartbeat time.Duration
}

// ClosePool closes a pool's idle conns and refuses its waiting PublicConns;
// its streams end by themselves, or with RST when Cut is set. Sent again with
// Cut it ends the streams that a first one without it left.
type ClosePool struct {
	Pool PoolID
	Cut  bool
}

// Trim closes idle conns of a server's pool, those claimed the longest ago
// first, until no more than Idle are left.
type Trim struct {
	Pool PoolID
	Idle int
}

// Park answers PrefaceReceived: the conn gets READY and joins the pool, in the
// loop that it helps most.
type Park struct {
	Conn  ConnID
	Pool  PoolID
	Ready [frame.ReadySize]byte
}

// Close answers PrefaceReceived: the conn is closed.
type Close struct {
	Conn ConnID
}

// Dial opens a ProxyConn to the server. READY must carry Ready. Answered by
// ConnOpened or DialFailed with the same Ref.
type Dial struct {
	Pool    PoolID
	Ref     uint64
	Address netip.AddrPort
	Preface [frame.PrefaceSize]byte
	Ready   [frame.ReadySize]byte
}

// SetTarget says where the client dials for the tunnel that START calls Wire.
// Setting it again changes new streams only. It has no effect on a pool that is
// not open.
type SetTarget struct {
	Pool   PoolID
	Wire   uint32
	Tunnel TunnelID
	Target Target
}

// DropTarget forgets a target; its streams go on.
type DropTarget struct {
	Pool PoolID
	Wire uint32
}

// Configure replaces the settings. Deadlines that run already keep their old
// length.
type Configure struct {
	Settings Settings
}

// Settings are the limits and deadlines of an engine. A zero Idle, HalfClose,
// Dead or MaxConns means none; the others must be positive.
type Settings struct {
	Connect   time.Duration // dialling one address, and all of a ProxyConn's opening on the client
	HalfClose time.Duration // without a byte after the first FIN
	Idle      time.Duration // without a byte
	Dead      time.Duration // bytes wait and the peer acknowledges nothing; at least 1 s serves well
	Preface   time.Duration // from accept to a verified preface
	Wait      time.Duration // a PublicConn for a ProxyConn
	MaxConns  int           // PublicConns of all tunnels together
}

// DefaultSettings are the documented defaults.
func DefaultSettings() Settings {
	return Settings{
		Connect:   10 * time.Second,
		HalfClose: 5 * time.Minute,
		Dead:      time.Minute,
		Preface:   5 * time.Second,
		Wait:      10 * time.Second,
	}
}
