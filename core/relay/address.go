package relay

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// inetAddress is a socket address of IPv4 or IPv6 as the kernel lays it out
// (ip(7), ipv6(7)). It lives on the stack: the types of x/sys/unix cost an
// allocation and another system call for every address.
type inetAddress struct {
	b [unix.SizeofSockaddrInet6]byte
	n uint32 // bytes of b in use
}

func newInetAddress(a netip.AddrPort) inetAddress {
	var s inetAddress
	binary.BigEndian.PutUint16(s.b[2:], a.Port())
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(s.b[:], unix.AF_INET)
		addr := a.Addr().As4()
		copy(s.b[4:], addr[:])
		s.n = unix.SizeofSockaddrInet4
		return s
	}
	binary.NativeEndian.PutUint16(s.b[:], unix.AF_INET6)
	addr := a.Addr().As16()
	copy(s.b[8:], addr[:])
	s.n = unix.SizeofSockaddrInet6
	return s
}

// addrPort gives the address with IPv4 unmapped; zero when it is not of TCP.
func (s *inetAddress) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16(s.b[2:])
	switch {
	case s.n >= unix.SizeofSockaddrInet4 && s.family() == unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.b[4:8])), port)
	case s.n >= unix.SizeofSockaddrInet6 && s.family() == unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(s.b[8:24])).Unmap(), port)
	default:
		return netip.AddrPort{}
	}
}

func (s *inetAddress) family() uint16 { return binary.NativeEndian.Uint16(s.b[:]) }

// origin is the address of a visitor in 20 bytes; a netip.AddrPort has 32, and
// every connection keeps one.
type origin struct {
	ip   [16]byte
	port uint16
	is   uint8 // 4 or 6; 0: not known
}

func newOrigin(a netip.AddrPort) origin {
	o := origin{ip: a.Addr().As16(), port: a.Port()}
	switch {
	case !a.IsValid():
	case a.Addr().Is4():
		o.is = 4
	default:
		o.is = 6
	}
	return o
}

func (o origin) valid() bool { return o.is != 0 }

func (o origin) addrPort() netip.AddrPort {
	switch o.is {
	case 4:
		return netip.AddrPortFrom(netip.AddrFrom16(o.ip).Unmap(), o.port)
	case 6:
		return netip.AddrPortFrom(netip.AddrFrom16(o.ip), o.port)
	default:
		return netip.AddrPort{}
	}
}
