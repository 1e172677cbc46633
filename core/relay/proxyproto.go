package relay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// ProxyVersion says whether, and how, a LocalServer is told the visitor's
// address before the stream: the PROXY protocol of HAProxy,
// https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt.
type ProxyVersion uint8

// The versions; the zero value sends nothing.
const (
	NoProxyHeader ProxyVersion = iota
	ProxyV1
	ProxyV2
)

// proxySignature opens a version 2 header.
const proxySignature = "\r\n\r\n\x00\r\nQUIT\n"

// appendProxyHeader appends the header that announces a connection from
// source to destination. Both are of one family.
func appendProxyHeader(b []byte, v ProxyVersion, source, destination netip.AddrPort) []byte {
	switch v {
	case ProxyV1:
		family := "TCP4"
		if source.Addr().Is6() {
			family = "TCP6"
		}
		return fmt.Appendf(b, "PROXY %s %s %s %d %d\r\n", family, source.Addr(), destination.Addr(), source.Port(), destination.Port())
	case ProxyV2:
		family, size := byte(0x11), uint16(12) // TCP over IPv4
		if source.Addr().Is6() {
			family, size = 0x21, 36
		}
		b = append(b, proxySignature...)
		b = append(b, 0x21, family) // version 2, PROXY
		b = binary.BigEndian.AppendUint16(b, size)
		b = append(b, source.Addr().AsSlice()...)
		b = append(b, destination.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, source.Port())
		return binary.BigEndian.AppendUint16(b, destination.Port())
	default:
		return b
	}
}
