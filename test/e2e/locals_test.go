package e2e

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
)

// The service learns the visitor's address, and gets the visitor's bytes behind
// the header.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	one, ones := manual(t, "127.0.0.1:0")
	two, twos := manual(t, "127.0.0.1:0")
	w := newWorld(t, setup{tunnels: []tunnel{
		{name: "one", local: one.address, more: `proxy_protocol = "v1"`},
		{name: "two", local: two.address, more: `proxy_protocol = "v2"`},
	}})
	tests := []struct {
		tunnel string
		conns  <-chan stream
		header func(source, destination netip.AddrPort) string
	}{
		{"one", ones, headerV1},
		{"two", twos, headerV2},
	}
	for _, tt := range tests {
		for _, talks := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, visitor talks first %t", tt.tunnel, talks), func(t *testing.T) {
				visitor := visit(t, w.address(w.client, tt.tunnel))
				if talks {
					if _, err := io.WriteString(visitor, "hello"); err != nil {
						t.Fatal(err)
					}
				}
				local := next(t, tt.conns)
				hear(t, local, tt.header(addressOf(visitor.LocalAddr()), addressOf(visitor.RemoteAddr())))
				if talks {
					hear(t, local, "hello")
				}
				if _, err := io.WriteString(local, "welcome"); err != nil {
					t.Fatal(err)
				}
				hear(t, visitor, "welcome")
				local.Close()
				wantEnd(t, "the visitor", visitor)
			})
		}
	}
}

// headerV1 and headerV2 are written from the specification of the PROXY
// protocol (haproxy.org, proxy-protocol.txt, 2.1 and 2.2).
func headerV1(source, destination netip.AddrPort) string {
	return fmt.Sprintf("PROXY TCP4 %s %s %d %d\r\n", source.Addr(), destination.Addr(), source.Port(), destination.Port())
}

func headerV2(source, destination netip.AddrPort) string {
	const signature = "\r\n\r\n\x00\r\nQUIT\n"
	b := []byte(signature)
	b = append(b, 0x21, 0x11) // version 2, PROXY; TCP over IPv4
	b = binary.BigEndian.AppendUint16(b, 12)
	b = append(b, source.Addr().AsSlice()...)
	b = append(b, destination.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, source.Port())
	b = binary.BigEndian.AppendUint16(b, destination.Port())
	return string(b)
}

func TestUnixLocal(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "local.sock")
	w := newWorld(t, setup{tunnels: []tunnel{{name: "web", local: "unix:" + path}}})
	if err := wantRefused(w.web()); err != nil {
		t.Errorf("a visitor before the socket is there: %v", err)
	}
	serve(t, "unix", path, echo)
	for i := range 50 {
		wantRoundTrip(t, w.web(), strings.Repeat("unix ", i*100))
	}
}

// Without a pool every visitor gets a ProxyConn of its own, which is not used
// again.
func TestNoPool(t *testing.T) {
	t.Parallel()
	tests := map[string]setup{
		"of the server": {server: "[pool]\nmax = 0"},
		"of the client": {client: "[pool]\nmax = 0"},
	}
	for name, s := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := echoWorld(t, s)
			for i := range 20 {
				wantRoundTrip(t, w.web(), fmt.Sprint("visit ", i))
			}
			eventually(t, "no ProxyConn is kept", func() error {
				for _, p := range []*process{w.server, w.client} {
					if c := w.take(p); c.proxy > 0 {
						return fmt.Errorf("%s: %v", p.name, c)
					}
				}
				return nil
			})
		})
	}
}

// A client keeps no more idle ProxyConns than the smaller bound.
func TestSmallPool(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{server: "[pool]\nmax = 3", poolMax: 3})
	visitors := make([]stream, 40)
	for i := range visitors {
		visitors[i] = visit(t, w.web())
		say(t, visitors[i], fmt.Sprint("visitor ", i))
	}
	for _, v := range visitors {
		if err := v.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, "the visitor", v)
	}
	eventually(t, "the pool shrinks", func() error { return w.leaks(w.client, 1) })
}

// No ProxyConn is open before the first visitor; then there are some for the
// next, who need not wait for the client.
func TestWarmPool(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	if c := w.take(w.client); c.proxy > 0 {
		t.Errorf("%v before the first visitor", c)
	}
	first := visit(t, w.web())
	say(t, first, "hello")
	eventually(t, "there are spare ProxyConns", func() error {
		if c := w.take(w.client); c.proxy < 3 {
			return fmt.Errorf("%v", c)
		}
		return nil
	})
}

// Several services of one client are not mixed up.
func TestSeveralTunnels(t *testing.T) {
	t.Parallel()
	var tunnels []tunnel
	for i := range 8 {
		name := fmt.Sprint("service-", i)
		tunnels = append(tunnels, tunnel{name: name, local: serve(t, "tcp", "127.0.0.1:0", named(name)).address})
	}
	w := newWorld(t, setup{tunnels: tunnels})
	for range 5 {
		for _, tn := range tunnels {
			c := visit(t, w.address(w.client, tn.name))
			got, err := bufio.NewReader(c).ReadString('\n')
			if err != nil || got != tn.name+"\n" {
				t.Fatalf("the tunnel %s leads to %q: %v", tn.name, got, err)
			}
			c.Close()
		}
	}
}
