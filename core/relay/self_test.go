package relay

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"reflect"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where nobody listens, the kernel may choose the very port that is dialled as
// the source of the connection, which then is one to itself. Here it has no
// other port to choose.
func TestDialDoesNotReachItself(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	const only, open, source = 20000, 21000, 22000
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("20000 20000"), 0); err != nil {
		t.Fatal(err)
	}
	for i, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			target := Address{TCP: netip.AddrPortFrom(netip.MustParseAddr(host), only)}
			reachesItself(t, target)
			f := startEngine(t, 1, DefaultSettings(), nil)
			f.Submit(Listen{Tunnel: 1, Binds: []netip.Addr{loopback}, Ports: []uint16{uint16(open + i)}, Route: ToTarget{Target: Target{Addresses: []Address{target}}}})
			ev := await[Listening](f)
			if ev.Err != nil {
				t.Fatal(ev.Err)
			}
			from := netip.AddrPortFrom(loopback, uint16(source+i))
			c, err := net.DialTCP("tcp", net.TCPAddrFromAddrPort(from), net.TCPAddrFromAddrPort(ev.Addresses[0]))
			if err == nil {
				defer drop(c)
				_ = c.SetDeadline(time.Now().Add(patience))
				_, err = c.Read(make([]byte, 1))
			}
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the visitor got %v, want a reset", err)
			}
			if ev := await[StreamEnded](f); ev.Reason != DialError || !errors.Is(ev.Err, syscall.ECONNREFUSED) {
				t.Errorf("ended with %+v", ev)
			}
			reachesItself(t, target)
		})
	}
}

// reachesItself makes sure that a socket can be connected to itself: else the
// test would prove nothing.
func reachesItself(t *testing.T, a Address) {
	t.Helper()
	fd, errno := connect(a)
	if errno != 0 && errno != syscall.EINPROGRESS {
		t.Fatalf("the kernel does not let a socket connect to itself: %v", errno)
	}
	defer closefd(fd)
	local, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if peer, err := unix.Getpeername(fd); err != nil || !reflect.DeepEqual(local, peer) {
		t.Fatalf("connected from %+v to %+v, %v", local, peer, err)
	}
}
