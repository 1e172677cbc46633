package relay

// loopBuffer is the size in bytes of a loop's receive and send buffers, and so
// the most that one call moves in copy mode.
const loopBuffer = 64 << 10

// heldSlab is the capacity of the pooled buffers that keep what a blocked
// socket did not take; smallHeld and less is allocated to size instead.
const (
	heldSlab  = loopBuffer + 4<<10
	smallHeld = 4 << 10
	maxSpare  = 64
)

// buffer holds bytes that were read and not yet taken by their destination.
type buffer struct {
	b   []byte
	off int
}

func (b *buffer) bytes() []byte { return b.b[b.off:] }

// memory is what a loop reads into and writes from, and what it keeps for the next use. One
// loop owns it.
type memory struct {
	rx    []byte // framed input
	tx    []byte // raw input; the first frame.HeaderSize bytes are kept for a header
	spare []*buffer
	dials []*dialing // spare ones
}

// newDialing gives an empty dialing.
func (m *memory) newDialing() *dialing {
	if n := len(m.dials); n > 0 {
		d := m.dials[n-1]
		m.dials = m.dials[:n-1]
		return d
	}
	return &dialing{}
}

// freeDialing gives a dialing back; the caller forgets it.
func (m *memory) freeDialing(d *dialing) {
	if d != nil && len(m.dials) < maxSpare {
		*d = dialing{}
		m.dials = append(m.dials, d)
	}
}

// hold copies b into a buffer of its own.
func (m *memory) hold(b []byte) *buffer {
	if len(b) <= smallHeld {
		return &buffer{b: append(make([]byte, 0, len(b)), b...)}
	}
	var h *buffer
	if n := len(m.spare); n > 0 && len(b) <= heldSlab {
		h = m.spare[n-1]
		m.spare = m.spare[:n-1]
	} else {
		h = &buffer{b: make([]byte, 0, max(len(b), heldSlab))}
	}
	h.b, h.off = append(h.b[:0], b...), 0
	return h
}

// add appends b to h, or holds it when h is nil.
func (m *memory) add(h *buffer, b []byte) *buffer {
	if h == nil {
		return m.hold(b)
	}
	h.b = append(h.b, b...)
	return h
}

// free gives a buffer back; the caller forgets it.
func (m *memory) free(h *buffer) {
	if h != nil && cap(h.b) == heldSlab && len(m.spare) < maxSpare {
		m.spare = append(m.spare, h)
	}
}
