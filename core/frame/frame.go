// Package frame is the codec of ProxyConns: the fixed 8-byte frame header, the
// payloads of the control frames, and the authenticated preface that opens a
// conn. It holds no I/O and no state; docs/protocol.md is its specification.
package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Sizes in bytes. A header and the payload of every frame but DATA have a
// fixed size, so a reader needs no more than MaxControl bytes to act on one.
const (
	HeaderSize = 8
	// MaxData bounds the payload of one DATA frame.
	MaxData   = 1 << 20
	ReadySize = 32
	StartSize = 40
	ResetSize = 4
	// MaxControl is the largest frame that is not DATA, header included.
	MaxControl = HeaderSize + StartSize
)

// Type tells what a frame means. Zero is never valid.
type Type uint8

// The frame types. Who may send which, and when, is in docs/protocol.md.
const (
	Ready Type = iota + 1
	Start
	Data
	Fin
	Reset
	Ping
	Pong
	Retire
	Close
)

//nolint:gochecknoglobals // a constant in all but syntax
var typeNames = [...]string{Ready: "READY", Start: "START", Data: "DATA", Fin: "FIN", Reset: "RESET", Ping: "PING", Pong: "PONG", Retire: "RETIRE", Close: "CLOSE"}

// String gives the name used in the specification.
func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// Errors of the decoders; the conn that carried such bytes cannot be trusted
// any further and is closed.
var (
	ErrUnknownType = errors.New("unknown frame type")
	ErrFlags       = errors.New("frame flags are not zero")
	ErrLength      = errors.New("frame length does not fit its type")
	ErrAddress     = errors.New("frame carries a malformed address")
)

// Header starts every frame. Seq is the stream sequence number of a START and
// of all that belongs to its stream; PING and PONG carry a counter in it.
type Header struct {
	Type   Type
	Seq    uint16
	Length uint32
}

// Put writes h into b, which holds at least HeaderSize bytes.
func (h Header) Put(b []byte) {
	_ = b[HeaderSize-1]
	b[0] = byte(h.Type)
	b[1] = 0
	binary.BigEndian.PutUint16(b[2:], h.Seq)
	binary.BigEndian.PutUint32(b[4:], h.Length)
}

// ParseHeader reads a header from b, which holds at least HeaderSize bytes,
// and refuses every type, flag and length that the specification does not name.
func ParseHeader(b []byte) (Header, error) {
	_ = b[HeaderSize-1]
	h := Header{Type: Type(b[0]), Seq: binary.BigEndian.Uint16(b[2:]), Length: binary.BigEndian.Uint32(b[4:])}
	switch {
	case h.Type < Ready || h.Type > Close:
		return h, ErrUnknownType
	case b[1] != 0:
		return h, ErrFlags
	case h.Type == Data && (h.Length == 0 || h.Length > MaxData):
		return h, ErrLength
	case h.Type != Data && h.Length != payloadSize(h.Type):
		return h, ErrLength
	}
	return h, nil
}

// payloadSize is the fixed payload of a frame that is not DATA.
func payloadSize(t Type) uint32 {
	switch t {
	case Ready:
		return ReadySize
	case Start:
		return StartSize
	case Reset:
		return ResetSize
	default:
		return 0
	}
}

// Stream is the payload of START: which tunnel, and the two ends of the
// PublicConn. Both addresses are of one family after Unmap.
type Stream struct {
	Tunnel      uint32
	Source      netip.AddrPort
	Destination netip.AddrPort
}

// PutStart writes a whole START frame into b, which holds at least
// HeaderSize+StartSize bytes.
func PutStart(b []byte, seq uint16, s Stream) {
	Header{Type: Start, Seq: seq, Length: StartSize}.Put(b)
	p := b[HeaderSize:]
	binary.BigEndian.PutUint32(p, s.Tunnel)
	putAddress(p[4:], s.Source)
	putAddress(p[22:], s.Destination)
}

// ParseStart reads the payload of a START frame.
func ParseStart(p []byte) (Stream, error) {
	if len(p) != StartSize {
		return Stream{}, ErrLength
	}
	s := Stream{
		Tunnel:      binary.BigEndian.Uint32(p),
		Source:      address(p[4:22]),
		Destination: address(p[22:40]),
	}
	if s.Source.Addr().Is4() != s.Destination.Addr().Is4() {
		return Stream{}, ErrAddress
	}
	return s, nil
}

// putAddress writes 16 bytes of address (IPv4 as ::ffff:a.b.c.d, RFC 4291
// 2.5.5.2) and 2 of port.
func putAddress(b []byte, a netip.AddrPort) {
	ip := a.Addr().As16()
	copy(b, ip[:])
	binary.BigEndian.PutUint16(b[16:], a.Port())
}

func address(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), binary.BigEndian.Uint16(b[16:]))
}

// ResetCode is the payload of RESET: why a stream ended without FIN.
type ResetCode uint32

// The reset codes. A receiver treats an unknown one as ResetPeer.
const (
	ResetPeer        ResetCode = iota + 1 // the socket outside was reset or failed
	ResetDial                             // the LocalServer could not be reached
	ResetTunnel                           // START named a tunnel that the client does not have
	ResetTimeout                          // a deadline of the sender ran out
	ResetExhausted                        // the sender has no descriptors or memory left
	ResetClosed                           // an operator or a revocation ended the stream
	ResetAcknowledge                      // answer to a RESET, nothing more to say
)

//nolint:gochecknoglobals // a constant in all but syntax
var resetNames = [...]string{
	ResetPeer: "reset by peer", ResetDial: "local service unreachable", ResetTunnel: "unknown tunnel", ResetTimeout: "timed out",
	ResetExhausted: "out of descriptors", ResetClosed: "closed by operator", ResetAcknowledge: "acknowledged",
}

// String gives the reason in the words of logs and metrics.
func (c ResetCode) String() string {
	if c >= 1 && int(c) < len(resetNames) {
		return resetNames[c]
	}
	return fmt.Sprintf("reset code %d", uint32(c))
}

// PutReset writes a whole RESET frame into b, which holds at least
// HeaderSize+ResetSize bytes.
func PutReset(b []byte, seq uint16, c ResetCode) {
	Header{Type: Reset, Seq: seq, Length: ResetSize}.Put(b)
	binary.BigEndian.PutUint32(b[HeaderSize:], uint32(c))
}

// ParseReset reads the payload of a RESET frame.
func ParseReset(p []byte) (ResetCode, error) {
	if len(p) != ResetSize {
		return 0, ErrLength
	}
	return ResetCode(binary.BigEndian.Uint32(p)), nil
}
