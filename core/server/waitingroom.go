package server

import (
	"container/list"
	"net"
	"sync"
)

// waitingRoom holds the connections that have not said Hello. It is bounded:
// the one that waits longest makes room, so that silent peers cannot keep
// others out.
type waitingRoom struct {
	mu    sync.Mutex
	most  int
	conns *list.List // of net.Conn, oldest first
}

func newWaitingRoom(most int) *waitingRoom { return &waitingRoom{most: most, conns: list.New()} }

// enter admits conn, and gives the connection that had to go for it, or nil.
// The caller of leave passes the place back.
func (w *waitingRoom) enter(conn net.Conn) (place *list.Element, ousted net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conns.Len() >= w.most {
		ousted, _ = w.conns.Remove(w.conns.Front()).(net.Conn)
	}
	return w.conns.PushBack(conn), ousted
}

// leave gives a place back; one that was lost to another is gone already.
func (w *waitingRoom) leave(place *list.Element) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conns.Remove(place)
}
