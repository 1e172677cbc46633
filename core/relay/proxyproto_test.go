package relay

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestProxyHeaderBytes(t *testing.T) {
	v4 := [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:56324"), netip.MustParseAddrPort("198.51.100.7:443")}
	v6 := [2]netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:56324"), netip.MustParseAddrPort("[2001:db8::7]:443")}
	const signature = "0d0a0d0a000d0a515549540a"
	for name, c := range map[string]struct {
		version ProxyVersion
		from    [2]netip.AddrPort
		want    string // version 2 in hex
	}{
		"none": {NoProxyHeader, v4, ""},
		"1/v4": {ProxyV1, v4, "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"},
		"1/v6": {ProxyV1, v6, "PROXY TCP6 2001:db8::1 2001:db8::7 56324 443\r\n"},
		"2/v4": {ProxyV2, v4, signature + "2111000c" + "c0000201" + "c6336407" + "dc04" + "01bb"},
		"2/v6": {ProxyV2, v6, signature + "21210024" + "20010db8000000000000000000000001" + "20010db8000000000000000000000007" + "dc04" + "01bb"},
	} {
		t.Run(name, func(t *testing.T) {
			got := string(appendProxyHeader([]byte("before "), c.version, c.from[0], c.from[1]))
			after, ok := strings.CutPrefix(got, "before ")
			if c.version == ProxyV2 {
				after = hex.EncodeToString([]byte(after))
			}
			if !ok || after != c.want {
				t.Fatalf("got  %q\nwant %q", after, c.want)
			}
		})
	}
}

// The header goes first whoever speaks first, names the visitor and the public
// address, and does not count as bytes of the stream.
func TestProxyHeaderReachesLocalServer(t *testing.T) {
	for _, version := range []ProxyVersion{ProxyV1, ProxyV2} {
		for _, kind := range []string{"tcp", "unix", "forwarder"} {
			t.Run(fmt.Sprintf("v%d %s", version, kind), func(t *testing.T) {
				s := localServer(t, nil)
				if kind == "unix" {
					s = unixServer(t, nil)
				}
				s.target.ProxyProtocol = version
				r := route{local: s}
				if kind == "forwarder" {
					f := startEngine(t, 1, DefaultSettings(), nil)
					r.public, r.engines = f.listen(linkTunnel, ToTarget{Target: s.target}), []*fixture{f}
				} else {
					k := startLink(t, linkOptions{conns: 1, target: s.target})
					r.public, r.engines = k.public, []*fixture{k.server.fixture, k.client.fixture}
				}
				for _, visitorFirst := range []bool{true, false} {
					visitor := dialTCP(t, r.public)
					if visitorFirst {
						say(t, visitor, "hello")
						closeWrite(t, visitor)
					}
					service := <-s.conns
					if !visitorFirst {
						say(t, service, "220 ready")
						hear(t, visitor, "220 ready")
						say(t, visitor, "hello")
						closeWrite(t, visitor)
					}
					from := visitor.LocalAddr().(*net.TCPAddr).AddrPort()
					wantRest(t, service, string(appendProxyHeader(nil, version, from, r.public))+"hello")
					service.Close()
					wantRest(t, visitor, "")
					down := 9
					if visitorFirst {
						down = 0
					}
					r.ended(t, 5, down)
				}
			})
		}
	}
}
