package relay

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// Event tells what happened in the engine. The types below are all there are.
type Event interface {
	event()
}

// Listening answers a Listen: Addresses are bound, or Err says why not. Err
// wraps the errno (EADDRINUSE, EACCES, EADDRNOTAVAIL, …) of the last attempt.
type Listening struct {
	Tunnel    TunnelID
	Addresses []netip.AddrPort
	Err       error
}

// Unlistened says that the sockets of a tunnel are closed in every loop, so
// that their port can be bound again.
type Unlistened struct {
	Tunnel TunnelID
}

// PrefaceReceived hands a whole preface to be verified. The conn waits for
// Park or Close, and is closed if neither comes before the preface deadline.
type PrefaceReceived struct {
	Conn    ConnID
	Peer    netip.AddrPort
	Preface [frame.PrefaceSize]byte
}

// PrefaceFailed says that a conn on the proxy port was closed before it had
// joined a pool.
type PrefaceFailed struct {
	Peer   netip.AddrPort
	Reason Reason
}

// ConnOpened says that a ProxyConn joined a pool: parked by the server, or
// dialled and answered by READY on the client (Ref is the Dial's).
type ConnOpened struct {
	Pool PoolID
	Ref  uint64
}

// ConnClosed says that a ProxyConn that had been opened is gone.
type ConnClosed struct {
	Pool   PoolID
	Reason Reason
}

// DialFailed answers a Dial whose conn did not become ready.
type DialFailed struct {
	Pool PoolID
	Ref  uint64
	Err  error
}

// Needed says that Waiting PublicConns of a pool wait in one loop for a
// ProxyConn. It is repeated every second while some wait.
type Needed struct {
	Pool    PoolID
	Loop    int
	Waiting int
}

// StreamEnded reports a finished stream. Up is what the visitor sent, Down
// what it was sent, in payload bytes.
type StreamEnded struct {
	Pool     PoolID
	Tunnel   TunnelID
	Source   netip.AddrPort
	Up, Down uint64
	Duration time.Duration
	Reason   Reason
	// Err says more about a DialError of this side: the errno of the address
	// tried last, or ErrNoAddress. Nil otherwise.
	Err error
}

// Refused reports a PublicConn that never became a stream.
type Refused struct {
	Tunnel TunnelID
	Source netip.AddrPort
	Reason Reason
	Whole  bool // the ConnLimit is Settings.MaxConns, not one of the tunnel
}

// Exhausted says that accepting failed for want of descriptors or memory;
// the listener pauses for exhaustedPause.
type Exhausted struct {
	Err error
}

// Frozen answers Freeze: all that the engine held. It is the last event, and
// whoever receives it owns the descriptors of State.
type Frozen struct {
	State *State
}

func (Listening) event()       {}
func (Unlistened) event()      {}
func (PrefaceReceived) event() {}
func (PrefaceFailed) event()   {}
func (ConnOpened) event()      {}
func (ConnClosed) event()      {}
func (DialFailed) event()      {}
func (Needed) event()          {}
func (StreamEnded) event()     {}
func (Refused) event()         {}
func (Exhausted) event()       {}
func (Frozen) event()          {}

// Reason tells why a stream or a conn ended; each ends for exactly one.
type Reason uint8

// The reasons.
const (
	Done             Reason = iota + 1 // both directions ended with FIN
	PeerReset                          // the socket of this side was reset or failed
	RemoteReset                        // the other side sent RESET
	ProxyLost                          // the ProxyConn ended inside a stream, or while idle
	ProtocolError                      // the ProxyConn carried what the protocol forbids
	DialError                          // the LocalServer could not be reached
	UnknownTunnel                      // START named a tunnel that is not here
	IdleTimeout                        // nothing moved for the idle time
	HalfCloseTimeout                   // nothing moved after the first FIN
	WaitTimeout                        // no ProxyConn came in time
	ConnLimit                          // a limit on connections was reached
	NoDescriptors                      // descriptors or memory ran out
	Cut                                // revoked, kicked, or its pool was closed
	Stopped                            // the engine ended
	VisitorLeft                        // the PublicClient left before its stream began
	BadPreface                         // the first bytes were not a preface
	PrefaceTimeout                     // the preface did not come in time
	Missed                             // heartbeats were missed
	PeerDead                           // what waited for a peer was not acknowledged in time: see Settings.Dead
	TLSPreface                         // the first byte was that of TLS, which this port does not speak
	Closed                             // a conn without a stream was superfluous, or not worth waiting for
)

//nolint:gochecknoglobals // a constant in all but syntax
var reasonNames = [...]string{
	Done: "done", PeerReset: "reset by peer", RemoteReset: "reset by remote side", ProxyLost: "proxy connection lost",
	ProtocolError: "protocol error", DialError: "local service unreachable", UnknownTunnel: "unknown tunnel",
	IdleTimeout: "idle timeout", HalfCloseTimeout: "half-close timeout", WaitTimeout: "no proxy connection in time",
	ConnLimit: "connection limit", NoDescriptors: "out of descriptors", Cut: "cut", Stopped: "stopped", VisitorLeft: "visitor left",
	BadPreface: "bad preface", PrefaceTimeout: "preface timeout", Missed: "heartbeats missed", PeerDead: "peer dead", TLSPreface: "bad preface: it looks like TLS", Closed: "closed",
}

// String gives the words used in logs and metrics.
func (r Reason) String() string {
	if int(r) < len(reasonNames) && reasonNames[r] != "" {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// resetCode is what the other side is told about r.
func (r Reason) resetCode() frame.ResetCode {
	switch r {
	case RemoteReset:
		return frame.ResetAcknowledge
	case DialError:
		return frame.ResetDial
	case UnknownTunnel:
		return frame.ResetTunnel
	case IdleTimeout, HalfCloseTimeout, PeerDead:
		return frame.ResetTimeout
	case NoDescriptors:
		return frame.ResetExhausted
	case Cut, Stopped:
		return frame.ResetClosed
	default:
		return frame.ResetPeer
	}
}

// remoteReason is what a received code means here.
func remoteReason(c frame.ResetCode) Reason {
	switch c {
	case frame.ResetDial:
		return DialError
	case frame.ResetTunnel:
		return UnknownTunnel
	case frame.ResetExhausted:
		return NoDescriptors
	case frame.ResetClosed:
		return Cut
	default:
		return RemoteReset
	}
}
