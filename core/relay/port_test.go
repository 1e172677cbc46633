package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// kernelPorts makes the kernel choose among so few ports, from first on. An even
// number: it looks at pairs of them.
func kernelPorts(t *testing.T, first, count uint16) {
	t.Helper()
	few := fmt.Sprintf("%d %d", first, first+count-1)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(few), 0o600); err != nil {
		t.Fatalf("set the ports that the kernel chooses from: %v", err)
	}
}

// occupy takes a port at an address until the function it gives is called.
func occupy(t *testing.T, a netip.Addr, port uint16) (leave func()) {
	t.Helper()
	s, err := bindOne(netip.AddrPortFrom(a, port), false)
	if err != nil {
		t.Fatal(err)
	}
	return func() { closefd(s.fd) }
}

// secondLoopback is an address besides loopback, of the same family.
func secondLoopback() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 2}) }

// listenOnTwo binds both.
func listenOnTwo(port uint16) ([]*listenSocket, error) {
	return Listen{Binds: []netip.Addr{loopback, secondLoopback()}, Ports: []uint16{port}}.open(1)
}

// occupySecond has the kernel choose among so few ports and takes them all at
// the second address.
func occupySecond(t *testing.T, first, count uint16) (leave []func()) {
	t.Helper()
	kernelPorts(t, first, count)
	for i := range count {
		leave = append(leave, occupy(t, secondLoopback(), first+i))
	}
	return leave
}

// The kernel chooses a port that is free at the first address. Where it is taken
// at the next one, others are tried, each once.
func TestPortFreeAtEveryAddress(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	const first = 40000
	binds := []netip.Addr{loopback, secondLoopback()}
	leave := occupySecond(t, first, portTries-2)
	for i := range leave {
		leave[i]() // the one port that is free at both
		before := descriptors(t)
		sockets, err := listenOnTwo(0)
		if err != nil {
			t.Fatalf("port %d: %v", first+i, err)
		}
		for j, s := range sockets {
			if want := netip.AddrPortFrom(binds[j], first+uint16(i)); s.address != want {
				t.Errorf("listens on %v, want %v", s.address, want)
			}
		}
		closeSockets(sockets)
		if after := descriptors(t); after != before {
			t.Fatalf("%d descriptors, %d before: ports that did not suit were kept", after, before)
		}
		leave[i] = occupy(t, secondLoopback(), first+uint16(i))
	}
}

// Other ports are not tried without end, nor where that would be no help.
func TestPortsAreNotTriedForEver(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	const first, count = 40000, portTries + 4
	leave := occupySecond(t, first, count)
	before := descriptors(t)
	// The address in the error tells the end: without a bound it would be the
	// first one, where the kernel would have no port left to give.
	sockets, err := listenOnTwo(0)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), secondLoopback().String()) {
		t.Fatalf("got %v, %v", sockets, err)
	}
	if sockets, err = listenOnTwo(first); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), secondLoopback().String()) {
		t.Fatalf("asked for one port: got %v, %v", sockets, err)
	}
	foreign := netip.MustParseAddr("192.0.2.1")
	kernelPorts(t, first, 4) // fewer than are tried
	sockets, err = Listen{Binds: []netip.Addr{loopback, foreign}, Ports: []uint16{0}}.open(1)
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Fatalf("an address of another host: got %v, %v", sockets, err)
	}
	if sockets, err = listenOnTwo(0); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("no port left: got %v, %v", sockets, err)
	}
	if after := descriptors(t); after != before {
		t.Fatalf("%d descriptors, %d before", after, before)
	}
	for _, l := range leave {
		l()
	}
}
