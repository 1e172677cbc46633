package relay

import (
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls below never block (the descriptors are non-blocking), so they go
// around the scheduler's bookkeeping: 165 ns against 205 ns a call measured,
// and no other thread is woken to take over the slot of one that takes long.

func recv(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0) //nolint:gosec // a buffer for the kernel, alive for the call
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

func send(fd int, b []byte) (int, syscall.Errno) { return sendWith(fd, b, 0) }

// sendMore sends b and lets the kernel wait for what follows at once: the
// header of a frame whose payload is spliced.
func sendMore(fd int, b []byte) (int, syscall.Errno) { return sendWith(fd, b, unix.MSG_MORE) }

// sendWith is not interrupted by signals: EINTR is tried again, for nothing
// would tell that the socket still takes bytes.
func sendWith(fd int, b []byte, flags uintptr) (int, syscall.Errno) {
	for {
		n, errno := sendOnce(fd, b, flags)
		if errno != unix.EINTR {
			return n, errno
		}
	}
}

func sendOnce(fd int, b []byte, flags uintptr) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL|flags, 0, 0) //nolint:gosec // a buffer for the kernel, alive for the call
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// pushNow makes the kernel send what it holds back. Since Linux 6.5 splice(2)
// sets MSG_MORE by itself while the pipe has more (fs/splice.c,
// splice_to_socket), so a socket that takes no more may sit on its last
// segment for 200 ms; to a receiver with a small window that is every segment.
// Setting TCP_NODELAY again pushes (tcp(7)).
func pushNow(fd int) {
	_ = option[int32](fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// accept takes a connection off the queue of a listener. The peer is known
// even when it has gone already.
func accept(fd int) (int, netip.AddrPort, syscall.Errno) {
	a := inetAddress{n: unix.SizeofSockaddrInet6}
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&a.b)), uintptr(unsafe.Pointer(&a.n)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0) //nolint:gosec // a buffer for the kernel, alive for the call
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	return int(n), a.addrPort(), 0
}

// newSocket opens a non-blocking stream socket.
func newSocket(family int) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), 0
}

// connectInet starts to connect a TCP socket.
func connectInet(fd int, to netip.AddrPort) syscall.Errno {
	a := newInetAddress(to)
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&a.b)), uintptr(a.n)) //nolint:gosec // a buffer for the kernel, alive for the call
	return errno
}

func bindInet(fd int, to netip.AddrPort) syscall.Errno {
	a := newInetAddress(to)
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&a.b)), uintptr(a.n)) //nolint:gosec // a buffer for the kernel, alive for the call
	return errno
}

// localAddress is what a TCP socket is bound to.
func localAddress(fd int) (netip.AddrPort, syscall.Errno) {
	a := inetAddress{n: unix.SizeofSockaddrInet6}
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&a.b)), uintptr(unsafe.Pointer(&a.n))) //nolint:gosec // a buffer for the kernel, alive for the call
	if errno != 0 {
		return netip.AddrPort{}, errno
	}
	return a.addrPort(), 0
}

// option sets a socket option of 32 bits, or of two for SO_LINGER.
func option[T int32 | [2]int32](fd, level, name int, value T) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0) //nolint:gosec // a buffer for the kernel, alive for the call
	return errno
}

// outqueue is how many bytes the kernel holds that the peer has not taken
// (SIOCOUTQ, tcp(7) and unix(7)); 0 where it cannot be known.
func outqueue(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

func closefd(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

func shutdownWrite(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

func epollCtl(epfd, op, fd int, events, slot, gen uint32) syscall.Errno {
	ev := unix.EpollEvent{Events: events, Fd: int32(slot), Pad: int32(gen)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0) //nolint:gosec // a buffer for the kernel, alive for the call
	return errno
}

// epollWaitHolding waits at most ms milliseconds without telling the
// scheduler: the thread keeps its P.
func epollWaitHolding(epfd int, events []unix.EpollEvent, ms int) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(ms), 0, 0) //nolint:gosec // a buffer for the kernel, alive for the call
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// resetOnClose makes close(2), and the kernel after a crash, end the
// connection with RST; orderlyClose takes that back before a FIN is sent.
func resetOnClose(fd int) syscall.Errno {
	return option(fd, unix.SOL_SOCKET, unix.SO_LINGER, [2]int32{1, 0})
}

func orderlyClose(fd int) {
	_ = option(fd, unix.SOL_SOCKET, unix.SO_LINGER, [2]int32{0, 0})
}

// Keepalive finds a dead peer of a quiet connection in about a minute.
// TCP_USER_TIMEOUT would also end healthy ones whose receiver stalls.
const (
	keepIdle     = 30
	keepInterval = 10
	keepCount    = 3
)

// streamOptions are the options of every TCP socket of the data plane. Set on
// a listener they are inherited by what it accepts.
func streamOptions(fd int) syscall.Errno {
	for _, o := range [...]struct {
		level, name int
		value       int32
	}{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_SOCKET, unix.SO_OOBINLINE, 1}, // or urgent bytes would be lost (tcp(7))
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepInterval},
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount},
	} {
		if errno := option(fd, o.level, o.name, o.value); errno != 0 {
			return errno
		}
	}
	return 0
}
