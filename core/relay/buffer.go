package relay

import "github.com/cproxy/cproxy/core/frame"

// loopBuffer is the size in bytes of a loop's receive and send buffers, and so
// the most that one call moves in copy mode.
const loopBuffer = 64 << 10

// bulkBuffer is the size in bytes of the buffer for bulk that cannot be spliced
// because there is no pipe. A copy of 1 MiB costs little more than a splice
// (measured), but a blocked receiver keeps as much.
const bulkBuffer = 256 << 10

// heldSlab and bulkSlab are the capacities of the pooled buffers that keep what
// a blocked socket did not take; smallHeld and less is allocated to size
// instead. Of each kind of object a loop keeps at most maxSpare for the next use.
const (
	heldSlab  = loopBuffer + 4<<10
	bulkSlab  = bulkBuffer + 4<<10
	smallHeld = 4 << 10
	maxSpare  = 64
)

// maxHeldBulk bounds the buffers of bulkSlab that stalled receivers keep. Beyond
// it bulk without a pipe is copied in pieces of loopBuffer.
const maxHeldBulk = 64

// buffer holds bytes that were read and not yet taken by their destination.
type buffer struct {
	b   []byte
	off int
}

func (b *buffer) bytes() []byte { return b.b[b.off:] }

// memory is what a loop reads into and writes from, and what it keeps for the
// next use. One loop owns it.
type memory struct {
	rx        []byte // framed input
	tx        []byte // raw input; the first frame.HeaderSize bytes are kept for a header
	large     []byte // the same for bulk, nil without it
	spare     []*buffer
	spareBulk []*buffer
	heldBulk  int // buffers of bulkSlab in use
	dials     spares[dialing]
	openings  spares[opening]
}

// bulkBuffer gives the buffer for bulk, with room for a header in front.
func (m *memory) bulkBuffer() []byte {
	if m.large == nil {
		m.large = make([]byte, frame.HeaderSize+bulkBuffer)
	}
	return m.large
}

// trim drops what only bulk needs.
func (m *memory) trim() { m.large, m.spare, m.spareBulk = nil, nil, nil }

// spares are objects of a moment kept for the next use.
type spares[T any] []*T

// take gives a zero object.
func (s *spares[T]) take() *T {
	if n := len(*s); n > 0 {
		x := (*s)[n-1]
		*s = (*s)[:n-1]
		return x
	}
	return new(T)
}

// put takes an object back, nil too; the caller forgets it.
func (s *spares[T]) put(x *T) {
	if x != nil && len(*s) < maxSpare {
		var zero T
		*x = zero
		*s = append(*s, x)
	}
}

// hold copies b into a buffer of its own.
func (m *memory) hold(b []byte) *buffer {
	var h *buffer
	switch {
	case len(b) <= smallHeld:
		h = &buffer{b: make([]byte, 0, len(b))}
	case len(b) <= heldSlab:
		h = slab(&m.spare, heldSlab)
	default:
		h = slab(&m.spareBulk, max(len(b), bulkSlab))
		m.heldBulk++
	}
	h.b, h.off = append(h.b[:0], b...), 0
	return h
}

// slab takes a spare buffer, or makes one of so many bytes.
func slab(spare *[]*buffer, size int) *buffer {
	if n := len(*spare); n > 0 {
		h := (*spare)[n-1]
		*spare = (*spare)[:n-1]
		return h
	}
	return &buffer{b: make([]byte, 0, size)}
}

// add appends b to h, or holds it when h is nil.
func (m *memory) add(h *buffer, b []byte) *buffer {
	if h == nil {
		return m.hold(b)
	}
	before := cap(h.b)
	h.b = append(h.b, b...)
	if before < bulkSlab && cap(h.b) >= bulkSlab {
		m.heldBulk++
	}
	return h
}

// free takes a buffer back and tells whether it keeps it.
func (m *memory) free(h *buffer) bool {
	if h == nil {
		return false
	}
	spare := &m.spare
	if cap(h.b) >= bulkSlab {
		m.heldBulk--
	}
	if cap(h.b) == bulkSlab {
		spare = &m.spareBulk
	} else if cap(h.b) != heldSlab {
		return false
	}
	if len(*spare) >= maxSpare {
		return false
	}
	*spare = append(*spare, h)
	return true
}
