//go:build linux

package epoll

import (
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// backlog of a listener; the kernel lowers it to net.core.somaxconn.
const backlog = 4096

// Listen opens a TCP listener that does not block, and tells its address.
func Listen(a netip.AddrPort) (int, netip.AddrPort, error) {
	fd, err := open(a)
	if err != nil {
		return -1, netip.AddrPort{}, err
	}
	bound, err := listen(fd, a)
	if err != nil {
		Close(fd)
		return -1, netip.AddrPort{}, fmt.Errorf("listen on %s (choose another address, or port 0): %w", a, err)
	}
	return fd, bound, nil
}

func listen(fd int, a netip.AddrPort) (netip.AddrPort, error) {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return netip.AddrPort{}, err
	}
	if err := unix.Bind(fd, sockaddr(a)); err != nil {
		return netip.AddrPort{}, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return netip.AddrPort{}, err
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch n := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(n.Addr), uint16(n.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(n.Addr), uint16(n.Port)), nil
	default:
		return netip.AddrPort{}, unix.EAFNOSUPPORT
	}
}

// Connect begins to connect; the descriptor is writable when that has ended,
// and [Connected] tells how.
func Connect(a netip.AddrPort) (int, error) {
	fd, err := open(a)
	if err != nil {
		return -1, err
	}
	if err := unix.Connect(fd, sockaddr(a)); err != nil && err != unix.EINPROGRESS {
		Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", a, err)
	}
	return fd, nil
}

// Connected tells how a connect ended.
func Connected(fd int) error {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if code != 0 {
		return syscall.Errno(code)
	}
	return nil
}

// open makes a TCP socket without delay for small messages.
func open(a netip.AddrPort) (int, error) {
	family := unix.AF_INET
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket (raise the limit of descriptors, ulimit -n): %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		Close(fd)
		return -1, fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// The calls below do not block, so they go around the scheduler.

// Accept takes a connection; it inherits TCP_NODELAY from its listener.
func Accept(fd int) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), 0, 0, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(n), 0
}

// Send sends from b without blocking and without SIGPIPE.
func Send(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0) //nolint:gosec // a buffer for the kernel, alive for the call
	return result(n, errno)
}

// Receive receives into b without blocking; 0 bytes are the peer's FIN.
func Receive(fd int, b []byte) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0) //nolint:gosec // a buffer for the kernel, alive for the call
	return result(n, errno)
}

// Discard receives at most n bytes of a TCP stream and throws them away in the
// kernel, without copying (MSG_TRUNC, tcp(7)).
func Discard(fd, n int) (int, syscall.Errno) {
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	return result(got, errno)
}

func result(n uintptr, errno syscall.Errno) (int, syscall.Errno) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// Again tells whether errno only says to wait for the next event.
func Again(errno syscall.Errno) bool { return errno == unix.EAGAIN || errno == unix.EINTR }

// ShutdownWrite sends FIN.
func ShutdownWrite(fd int) {
	_, _, _ = unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
}

// Close closes a descriptor.
func Close(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// waitHolding waits at most ms milliseconds while the thread keeps its
// scheduler slot. Errors, EINTR in fact, count as no events.
func waitHolding(epfd int, events []unix.EpollEvent, ms int) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(ms), 0, 0) //nolint:gosec // a buffer for the kernel, alive for the call
	if errno != 0 {
		return 0
	}
	return int(n)
}
