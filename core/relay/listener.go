package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// backlog of every listener. The kernel lowers it to net.core.somaxconn.
const backlog = 4096

// acceptBurst is how many connections one event accepts, so that the other
// loops get their share of a burst.
const acceptBurst = 16

// exhaustedPause is how long a listener rests after accept failed for want of
// descriptors: its event would come back at once.
const exhaustedPause = 100 * time.Millisecond

// listenSocket is one bound socket, watched by every loop. The last that lets
// go closes it.
type listenSocket struct {
	fd      int
	address netip.AddrPort
	refs    atomic.Int32
}

// release tells whether the socket was closed by this call.
func (s *listenSocket) release() bool {
	if s.refs.Add(-1) > 0 {
		return false
	}
	closefd(s.fd)
	return true
}

// open binds the sockets of a Listen for so many loops.
func (c Listen) open(loops int) ([]*listenSocket, error) {
	if len(c.Binds) == 0 || len(c.Ports) == 0 {
		return nil, errors.New("listen: no address or no port given")
	}
	var last error
	for _, port := range c.Ports {
		sockets, err := bindAll(c.Binds, port)
		if err == nil {
			for _, s := range sockets {
				s.refs.Store(int32(loops))
			}
			return sockets, nil
		}
		last = err
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EACCES) {
			break
		}
	}
	return nil, last
}

// portTries bounds the ports of the kernel's choice that are tried when one is
// taken at an address that follows the first.
const portTries = 16

// bindAll binds the same port at every address. With port 0 the kernel chooses
// it, which it does for the first address alone: where that port is taken at
// another one it is asked again.
func bindAll(binds []netip.Addr, port uint16) ([]*listenSocket, error) {
	var passed []*listenSocket // stay bound meanwhile, so that the kernel chooses another port
	defer func() { closeSockets(passed) }()
	for try := 1; ; try++ {
		sockets, err := bindEach(binds, port)
		if err == nil {
			return sockets, nil
		}
		passed = append(passed, sockets...)
		if port != 0 || len(sockets) == 0 || try == portTries || !errors.Is(err, unix.EADDRINUSE) {
			return nil, err
		}
	}
}

func closeSockets(all []*listenSocket) {
	for _, s := range all {
		closefd(s.fd)
	}
}

// bindEach gives the sockets that it bound also when it then failed.
func bindEach(binds []netip.Addr, port uint16) (sockets []*listenSocket, err error) {
	both := false
	for _, b := range binds {
		both = both || b == netip.IPv4Unspecified()
	}
	for _, b := range binds {
		s, err := bindOne(netip.AddrPortFrom(b, port), both)
		if errors.Is(err, unix.EAFNOSUPPORT) && b == netip.IPv6Unspecified() && !both {
			s, err = bindOne(netip.AddrPortFrom(netip.IPv4Unspecified(), port), false)
		}
		if err != nil {
			return sockets, fmt.Errorf("listen on %s: %w", netip.AddrPortFrom(b, port), err)
		}
		sockets = append(sockets, s)
		port = s.address.Port() // the kernel's choice holds for the addresses that follow
	}
	return sockets, nil
}

func bindOne(a netip.AddrPort, v6only bool) (*listenSocket, error) {
	family := unix.AF_INET
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, errno := newSocket(family)
	if errno != 0 {
		return nil, errno
	}
	if err := configureListener(fd, a, v6only); err != nil {
		closefd(fd)
		return nil, err
	}
	bound, errno := localAddress(fd)
	if errno != 0 {
		closefd(fd)
		return nil, errno
	}
	return &listenSocket{fd: fd, address: bound}, nil
}

func configureListener(fd int, a netip.AddrPort, v6only bool) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	if a.Addr().Is6() {
		only := 0
		if v6only || a.Addr() != netip.IPv6Unspecified() {
			only = 1
		}
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return err
		}
	}
	// Accepted sockets inherit these; SO_LINGER too, so that a crash ends
	// streams with RST and never with a FIN that looks like their end.
	if errno := streamOptions(fd); errno != 0 {
		return errno
	}
	if errno := resetOnClose(fd); errno != 0 {
		return errno
	}
	if errno := bindInet(fd, a); errno != 0 {
		return errno
	}
	return unix.Listen(fd, backlog)
}

// watch makes every loop accept from freshly bound sockets.
type watch struct {
	sockets []*listenSocket
	tunnel  *tunnel
	route   Route
}

func (m watch) apply(l *loop) {
	for _, s := range m.sockets {
		a := &acceptor{socket: s, tunnel: m.tunnel, route: m.route}
		l.doors[m.tunnel.id] = append(l.doors[m.tunnel.id], a)
		if a.route == nil {
			a.resting = true
			continue
		}
		if errno := a.resume(l); errno != 0 {
			l.exhausted(a, errno)
		}
	}
}

func (m watch) discard() {
	for _, s := range m.sockets {
		s.release()
	}
}

// reroute and unlisten reach every loop.
type (
	reroute  Reroute
	unlisten Unlisten
)

func (m reroute) apply(l *loop) {
	for _, a := range l.doors[m.Tunnel] {
		first := a.route == nil
		a.route = m.Route
		if !first {
			continue
		}
		if errno := a.resume(l); errno != 0 {
			l.exhausted(a, errno)
		}
	}
}

func (m unlisten) apply(l *loop) {
	doors, ok := l.doors[m.Tunnel]
	delete(l.doors, m.Tunnel)
	closed := false
	for _, a := range doors {
		closed = a.close(l)
	}
	if closed || !ok && l.id == 0 {
		l.tell(Unlistened(m))
	}
}

// acceptor is one loop's share of a listening socket.
type acceptor struct {
	socket  *listenSocket
	tunnel  *tunnel
	route   Route
	slot    uint32
	resting bool
	timer   timer
}

// resume puts the listener into the loop's epoll set: level-triggered, so
// that what a burst leaves is seen again, and exclusive, so that one
// connection wakes one loop.
func (a *acceptor) resume(l *loop) syscall.Errno {
	slot, errno := l.poll.add(a.socket.fd, a, unix.EPOLLIN|unix.EPOLLEXCLUSIVE)
	a.slot, a.resting = slot, errno != 0
	return errno
}

// close lets go of the socket and tells whether that closed it.
func (a *acceptor) close(l *loop) bool {
	l.timers.stop(&a.timer)
	if !a.resting {
		l.poll.forget(a.socket.fd, a.slot)
	}
	return a.socket.release()
}

func (a *acceptor) ready(l *loop, _ uint32) {
	for range acceptBurst {
		fd, peer, errno := accept(a.socket.fd)
		switch errno {
		case 0:
			if l.spare < 0 {
				l.keepSpare()
			}
			if l.spare < 0 {
				l.turnAway(a, fd)
				l.tell(Exhausted{Err: unix.EMFILE})
				continue
			}
			switch r := a.route.(type) {
			case publicRoute:
				l.arrive(r, a.tunnel, fd, peer)
			case ToPreface:
				l.awaitPreface(fd, peer)
			}
		case unix.EAGAIN:
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			l.exhausted(a, errno)
			return
		default:
			// ECONNABORTED and the errors of a connection that died in the
			// queue (accept(2)): the next one may be well.
		}
	}
}

func (a *acceptor) expired(l *loop) {
	if l.spare < 0 {
		l.keepSpare()
	}
	if a.resting {
		if errno := a.resume(l); errno != 0 {
			l.exhausted(a, errno)
			return
		}
	}
	if l.spare < 0 { // or the next shortage would find none
		l.timers.set(&a.timer, a, l.after(exhaustedPause))
	}
}

// exhausted refuses what waits in the queue, as far as the spare descriptor
// lets it, so that visitors see a reset and not silence; then the listener
// rests.
func (l *loop) exhausted(a *acceptor, errno syscall.Errno) {
	for range acceptBurst {
		if l.spare < 0 {
			break
		}
		closefd(l.spare)
		l.spare = -1
		fd, _, e := accept(a.socket.fd)
		if e != 0 {
			l.keepSpare()
			break
		}
		l.turnAway(a, fd)
	}
	l.tell(Exhausted{Err: errno})
	if !a.resting {
		l.poll.forget(a.socket.fd, a.slot)
		a.resting = true
	}
	l.timers.set(&a.timer, a, l.after(exhaustedPause))
}

// turnAway resets a visitor and makes its descriptor the spare one. What takes
// the number also closes the socket: in between another loop could take it, for
// a visitor that stays, and in the end no loop would have a spare.
func (l *loop) turnAway(a *acceptor, fd int) {
	bump(&a.tunnel.cells[l.id].refused, 1)
	if err := unix.Dup3(l.poll.wakefd, fd, unix.O_CLOEXEC); err != nil {
		closefd(fd)
		l.keepSpare()
		return
	}
	l.spare = fd
}

func (l *loop) keepSpare() {
	fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		fd = -1
	}
	l.spare = fd
}
