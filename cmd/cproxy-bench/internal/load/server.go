//go:build linux

package load

import (
	"context"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/epoll"
)

// Server is the service behind the tunnel: it does with each connection what
// its request asks for.
type Server struct {
	fd    int
	field *field
	next  int // worker of the next connection; used by the first only
}

// OpenServer binds a listener for a server with so many loops (at least one)
// and tells its address. The caller runs the server, or closes it.
func OpenServer(a netip.AddrPort, loops int) (*Server, netip.AddrPort, error) {
	f, err := openField(loops)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	fd, bound, err := epoll.Listen(a)
	if err != nil {
		f.close()
		return nil, netip.AddrPort{}, err
	}
	return &Server{fd: fd, field: f}, bound, nil
}

// Close closes a server that does not run.
func (s *Server) Close() {
	s.field.close()
	if s.fd >= 0 {
		epoll.Close(s.fd)
	}
}

// Run serves until ctx is done, and then closes the server and all its
// connections.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	if err := s.field.workers[0].Add(s.fd, &acceptor{s, s.fd}, unix.EPOLLIN); err != nil {
		return err
	}
	s.fd = -1 // the loop closes it
	return s.field.run(ctx)
}

// acceptor deals connections out to the loops in turn, which keeps a few bulk
// flows from sharing one of them.
type acceptor struct {
	server *Server
	fd     int
}

// acceptBurst bounds what one event accepts: level-triggered, the rest comes
// back.
const acceptBurst = 64

func (a *acceptor) Ready(uint32) {
	for range acceptBurst {
		fd, errno := epoll.Accept(a.fd)
		if errno != 0 {
			// Out of descriptors or interrupted: the queue keeps the
			// connection, and the event comes back.
			return
		}
		workers := a.server.field.workers
		w := workers[a.server.next%len(workers)]
		a.server.next++
		if w == workers[0] {
			w.serve(fd)
		} else {
			w.Post(func() { w.serve(fd) })
		}
	}
}

// serve takes over an accepted connection.
func (w *worker) serve(fd int) {
	c := &serverConn{fd: fd, loop: w, watched: unix.EPOLLIN}
	if err := w.Add(fd, c, c.watched); err != nil {
		epoll.Close(fd)
	}
}
