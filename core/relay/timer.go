package relay

// timed is what a timer wakes.
type timed interface {
	expired(l *loop)
}

// timer is one deadline of a loop, part of what it belongs to. The zero timer
// is not armed. Deadlines that move with every byte are not re-armed each
// time: expired looks at the truth and arms again.
type timer struct {
	when int64 // nanoseconds of the loop clock
	pos  int   // position in the heap + 1; 0 when not armed
}

// timers is a binary heap ordered by deadline, with positions so that an
// entry leaves as soon as its owner does.
type timers struct {
	heap []entry
}

type entry struct {
	t     *timer
	owner timed
}

// set arms t, or moves its deadline.
func (h *timers) set(t *timer, owner timed, when int64) {
	t.when = when
	if t.pos == 0 {
		h.heap = append(h.heap, entry{t, owner})
		t.pos = len(h.heap)
	}
	if !h.up(t.pos - 1) {
		h.down(t.pos - 1)
	}
}

// stop disarms t; it may be called on a timer that is not armed.
func (h *timers) stop(t *timer) {
	if t.pos == 0 {
		return
	}
	i, last := t.pos-1, len(h.heap)-1
	h.swap(i, last)
	h.heap[last] = entry{}
	h.heap = h.heap[:last]
	t.pos = 0
	if i < last && !h.up(i) {
		h.down(i)
	}
}

// next gives the earliest deadline.
func (h *timers) next() (int64, bool) {
	if len(h.heap) == 0 {
		return 0, false
	}
	return h.heap[0].t.when, true
}

// pop takes the earliest timer out if its deadline is not after now.
func (h *timers) pop(now int64) timed {
	if len(h.heap) == 0 || h.heap[0].t.when > now {
		return nil
	}
	first := h.heap[0]
	h.stop(first.t)
	return first.owner
}

func (h *timers) swap(i, j int) {
	h.heap[i], h.heap[j] = h.heap[j], h.heap[i]
	h.heap[i].t.pos, h.heap[j].t.pos = i+1, j+1
}

func (h *timers) up(i int) bool {
	moved := false
	for i > 0 {
		parent := (i - 1) / 2
		if h.heap[parent].t.when <= h.heap[i].t.when {
			break
		}
		h.swap(i, parent)
		i, moved = parent, true
	}
	return moved
}

func (h *timers) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h.heap) {
			return
		}
		if child+1 < len(h.heap) && h.heap[child+1].t.when < h.heap[child].t.when {
			child++
		}
		if h.heap[i].t.when <= h.heap[child].t.when {
			return
		}
		h.swap(i, child)
		i = child
	}
}
