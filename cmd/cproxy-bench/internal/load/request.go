//go:build linux

package load

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// RequestSize is the length of an encoded Request in bytes.
const RequestSize = 16

// TrailerSize is the length of an encoded Trailer in bytes.
const TrailerSize = 24

// magic begins each request: "CPB" and the version of this format.
const magic = 0x43504231

// Op is what the serving side does with a connection.
type Op uint8

// The operations.
const (
	Echo   Op = iota + 1 // sends back what arrives
	Sink                 // discards what arrives
	Source               // sends, and discards what arrives
)

// String gives the operation's name.
func (o Op) String() string {
	switch o {
	case Echo:
		return "echo"
	case Sink:
		return "sink"
	case Source:
		return "source"
	default:
		return fmt.Sprintf("op %d", uint8(o))
	}
}

const (
	flagConfirm = 1 << iota
	flagTime
	flagsKnown = flagConfirm | flagTime
)

// Request is the first thing that a connection carries, from the generator to
// the serving side.
//
// Bytes 0-3 are the magic, 4 the operation, 5 flags (1 Confirm, 2 the amount
// is a time), 6-7 are zero, 8-15 the amount in bytes or milliseconds, all big
// endian.
type Request struct {
	Op Op
	// Confirm asks for a Trailer once the generator has sent FIN. Without it a
	// source sends FIN as soon as it has sent everything.
	Confirm bool
	// Bytes and For say how much a source sends; at most one of them is set.
	// With neither it sends until the generator's FIN.
	Bytes uint64
	For   time.Duration // in whole milliseconds
}

var errNotRequest = errors.New("not a request of cproxy-bench: connect with the same version of it")

// Encode gives the bytes on the wire.
func (r Request) Encode() [RequestSize]byte {
	var b [RequestSize]byte
	binary.BigEndian.PutUint32(b[:4], magic)
	b[4] = byte(r.Op)
	if r.Confirm {
		b[5] |= flagConfirm
	}
	amount := r.Bytes
	if r.For > 0 {
		b[5] |= flagTime
		amount = uint64(r.For / time.Millisecond)
	}
	binary.BigEndian.PutUint64(b[8:], amount)
	return b
}

// maxTime bounds how long a source may be asked to send.
const maxTime = 24 * time.Hour

// ParseRequest is the inverse of Encode. It refuses everything that Encode
// would not write.
func ParseRequest(b [RequestSize]byte) (Request, error) {
	if binary.BigEndian.Uint32(b[:4]) != magic || b[5]&^flagsKnown != 0 || b[6] != 0 || b[7] != 0 {
		return Request{}, errNotRequest
	}
	r := Request{Op: Op(b[4]), Confirm: b[5]&flagConfirm != 0}
	amount := binary.BigEndian.Uint64(b[8:])
	switch {
	case r.Op < Echo || r.Op > Source:
		return Request{}, errNotRequest
	case b[5]&flagTime == 0:
		r.Bytes = amount
	case amount == 0 || amount > uint64(maxTime/time.Millisecond):
		return Request{}, errNotRequest
	default:
		r.For = time.Duration(amount) * time.Millisecond
	}
	return r, nil
}

// trailerMagic begins each trailer; what a source sends never contains it.
const trailerMagic = 0x4350425f53554d53

// Trailer confirms what the serving side received after the request and sent
// before the trailer, in bytes.
type Trailer struct {
	Received uint64
	Sent     uint64
}

// Encode gives the bytes on the wire: a magic and both numbers, big endian.
func (t Trailer) Encode() [TrailerSize]byte {
	var b [TrailerSize]byte
	binary.BigEndian.PutUint64(b[:8], trailerMagic)
	binary.BigEndian.PutUint64(b[8:16], t.Received)
	binary.BigEndian.PutUint64(b[16:], t.Sent)
	return b
}

// ParseTrailer is the inverse of Encode; false means that b is something else.
func ParseTrailer(b [TrailerSize]byte) (Trailer, bool) {
	if binary.BigEndian.Uint64(b[:8]) != trailerMagic {
		return Trailer{}, false
	}
	return Trailer{Received: binary.BigEndian.Uint64(b[8:16]), Sent: binary.BigEndian.Uint64(b[16:])}, true
}
