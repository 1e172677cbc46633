package relay

// fifo is a queue whose members may leave from the middle: push gives a
// ticket, remove takes it back. The zero fifo is empty. Not for concurrent use.
type fifo[T any] struct {
	items []*T
	base  uint64 // ticket of items[0]
	count int
}

func (f *fifo[T]) push(x *T) uint64 {
	f.items = append(f.items, x)
	f.count++
	return f.base + uint64(len(f.items)) - 1
}

func (f *fifo[T]) remove(ticket uint64) {
	i := ticket - f.base
	if ticket < f.base || i >= uint64(len(f.items)) || f.items[i] == nil {
		return
	}
	f.items[i] = nil
	f.count--
	f.trim()
}

// pop gives the oldest member, or nil.
func (f *fifo[T]) pop() *T {
	if f.count == 0 {
		return nil
	}
	x := f.items[0]
	f.items[0] = nil
	f.count--
	f.trim()
	return x
}

func (f *fifo[T]) len() int { return f.count }

// trim drops leading gaps, so that items[0] is always a member.
func (f *fifo[T]) trim() {
	if f.count == 0 {
		f.base += uint64(len(f.items))
		f.items = f.items[:0]
		return
	}
	gap := 0
	for f.items[gap] == nil {
		gap++
	}
	f.items = f.items[gap:]
	f.base += uint64(gap)
}
