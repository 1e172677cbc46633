package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// unixRetry is when a unix socket whose backlog was full is tried again: the
// kernel answers EAGAIN and never signals.
const unixRetry = 10 * time.Millisecond

// dialing is what is left to try for a LocalConn.
type dialing struct {
	target      Target
	next        int // address to try next
	deadline    int64
	destination netip.AddrPort // what the PROXY header names
	failed      syscall.Errno  // of the address tried last
}

// ErrNoAddress says that a Target had no address, say because its host name is
// not resolved.
var ErrNoAddress = errors.New("no address to dial")

// err is why no address answered.
func (d *dialing) err() error {
	if d.failed == 0 {
		return ErrNoAddress
	}
	return d.failed
}

// dialTarget connects c to the first address of t that answers.
func (l *loop) dialTarget(c *rawConn, t Target, destination netip.AddrPort) {
	c.dial = l.mem.dials.take()
	*c.dial = dialing{target: t, destination: destination}
	l.dialNext(c)
}

// dialNext tries addresses until one connects, is under way, or none is left.
func (l *loop) dialNext(c *rawConn) {
	d := c.dial
	for d.next < len(d.target.Addresses) {
		a := d.target.Addresses[d.next]
		if d.deadline == 0 {
			d.deadline = l.after(l.settings().Connect)
		}
		fd, errno := connect(a)
		switch errno { //nolint:exhaustive // every other errno means: try the next address
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			l.endStream(c.stream, NoDescriptors)
			return
		case unix.EAGAIN:
			l.timers.set(&c.timer, c, min(l.after(unixRetry), d.deadline))
			return
		case 0, unix.EINPROGRESS:
			c.fd = fd
			if !c.register(l) {
				closefd(fd)
				c.fd = -1
				l.endStream(c.stream, NoDescriptors)
				return
			}
			if errno == 0 && !c.toItself() {
				l.connected(c)
				return
			} else if errno == 0 {
				l.nextAddress(c, unix.ECONNREFUSED)
				return
			}
			l.timers.set(&c.timer, c, d.deadline)
			return
		}
		d.failed = errno
		d.next++
		d.deadline = 0
	}
	l.endStream(c.stream, DialError)
}

// connect starts a connection: errno 0 or EINPROGRESS come with a descriptor.
func connect(a Address) (int, syscall.Errno) {
	family := unix.AF_UNIX
	switch {
	case a.Unix != "":
	case a.TCP.Addr().Is4():
		family = unix.AF_INET
	default:
		family = unix.AF_INET6
	}
	fd, errno := newSocket(family)
	if errno != 0 {
		return -1, errno
	}
	if family == unix.AF_UNIX { // which knows no reset
		errno = errnoOf(unix.Connect(fd, &unix.SockaddrUnix{Name: a.Unix}))
	} else {
		errno = streamOptions(fd)
		if errno == 0 {
			errno = resetOnClose(fd)
		}
		if errno == 0 {
			errno = connectInet(fd, a.TCP)
		}
	}
	if errno == 0 || errno == unix.EINPROGRESS {
		return fd, errno
	}
	closefd(fd)
	return -1, errno
}

func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(syscall.Errno); ok { //nolint:errorlint // x/sys/unix returns bare errnos
		return errno
	}
	return unix.EINVAL
}

// pendingError is the outcome of a connect that the epoll set reported.
func pendingError(fd int) syscall.Errno {
	v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return errnoOf(err)
	}
	return syscall.Errno(v)
}

// connectDone looks at a connect that the epoll set reported.
func (l *loop) connectDone(c *rawConn) {
	if !c.canWrite {
		return
	}
	errno := syscall.Errno(0)
	if c.broken {
		errno = pendingError(c.fd)
	}
	if errno == 0 && c.toItself() {
		errno = unix.ECONNREFUSED // nobody else listens there
	}
	if errno != 0 {
		l.nextAddress(c, errno)
		return
	}
	l.connected(c)
}

// toItself tells whether a socket has connected to itself: when nobody listens
// on a local port that the kernel may also choose as the source, it now and then
// does, and holds the port that the LocalServer needs.
func (c *rawConn) toItself() bool {
	to := c.dial.target.Addresses[c.dial.next]
	if to.Unix != "" {
		return false
	}
	local, errno := localAddress(c.fd)
	return errno == 0 && local == netip.AddrPortFrom(to.TCP.Addr().Unmap(), to.TCP.Port())
}

// connectExpired is the deadline of one address, or the retry of a unix one.
func (l *loop) connectExpired(c *rawConn) {
	if c.dial.deadline > l.now {
		l.dialNext(c)
		return
	}
	l.nextAddress(c, unix.ETIMEDOUT)
}

// nextAddress gives up the address that is being tried.
func (l *loop) nextAddress(c *rawConn, why syscall.Errno) {
	l.timers.stop(&c.timer)
	if c.fd >= 0 {
		l.poll.remove(c.slot)
		closefd(c.fd)
		c.fd = -1
	}
	c.canRead, c.canWrite, c.hungUp, c.broken = false, false, false, false
	c.dial.failed = why
	c.dial.next++
	c.dial.deadline = 0
	l.dialNext(c)
}

// connected puts a LocalConn into its stream.
func (l *loop) connected(c *rawConn) {
	l.timers.stop(&c.timer)
	d := *c.dial
	l.mem.dials.put(c.dial)
	c.dial = nil
	c.state = rawJoined
	c.canWrite = true
	if d.target.ProxyProtocol != NoProxyHeader {
		c.out = l.mem.hold(appendProxyHeader(nil, d.target.ProxyProtocol, c.source.addrPort(), d.destination))
	}
	l.armStream(c.stream)
	l.queue(c.stream)
}

// dialProxy opens a ProxyConn on the client.
type dialProxy struct{ command Dial }

func (m dialProxy) apply(l *loop) {
	d := m.command
	sh := l.shard(d.Pool)
	if sh == nil {
		l.tell(DialFailed{Pool: d.Pool, Ref: d.Ref, Err: errPoolClosed})
		return
	}
	fd, errno := connect(Address{TCP: d.Address})
	if errno != 0 && errno != unix.EINPROGRESS {
		l.tell(DialFailed{Pool: d.Pool, Ref: d.Ref, Err: fmt.Errorf("dial proxy port %s: %w", d.Address, errno)})
		return
	}
	orderlyClose(fd) // frames tell an end from a loss; no reset is needed
	p := newProxyConn(fd, proxyConnecting)
	p.opening = l.mem.openings.take()
	*p.opening = opening{peer: d.Address, ref: d.Ref, ready: d.Ready, preface: d.Preface}
	if !p.register(l) {
		closefd(fd)
		l.tell(DialFailed{Pool: d.Pool, Ref: d.Ref, Err: fmt.Errorf("watch proxy connection: %w", unix.ENOMEM)})
		return
	}
	p.shard = sh
	l.timers.set(&p.timer, p, l.after(l.settings().Connect))
}
