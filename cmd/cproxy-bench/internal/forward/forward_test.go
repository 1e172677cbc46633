//go:build linux

package forward

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 8)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

type forwarder func(context.Context, Options) error

func forwarders() map[string]forwarder {
	return map[string]forwarder{"engine": Engine, "copy": Copy}
}

// start runs a forwarder until the test ends.
func start(t *testing.T, run forwarder, target netip.AddrPort) *net.TCPAddr {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan netip.AddrPort, 1), make(chan error, 1)
	go func() {
		ended <- run(ctx, Options{Listen: anyPort, Target: target, Loops: 2, Ready: func(a netip.AddrPort) { ready <- a }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("forwarder ended with %v", err)
		}
	})
	return net.TCPAddrFromAddrPort(<-ready)
}

func dial(t *testing.T, a *net.TCPAddr) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// target reads to FIN and sends back what it got.
func target(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(c)
			_, _ = c.Write(b)
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-ended })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

func TestHalfClose(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for name, run := range forwarders() {
		t.Run(name, func(t *testing.T) {
			c := dial(t, start(t, run, target(t)))
			go func() {
				_, _ = c.Write(payload)
				_ = c.CloseWrite()
			}()
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("got %d bytes, %v, want %d", len(got), err, len(payload))
			}
		})
	}
}

// Without a target a visitor sees an error, not an empty reply.
func TestTargetGone(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	for name, run := range forwarders() {
		t.Run(name, func(t *testing.T) {
			c, err := net.DialTCP("tcp", nil, start(t, run, ln.Addr().(*net.TCPAddr).AddrPort()))
			if err != nil {
				return // reset before the dialler looked
			}
			defer func() { _ = c.Close() }()
			if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("read %d bytes, %v", n, err)
			}
		})
	}
}

func TestEndsWithOpenConnections(t *testing.T) {
	for name, run := range forwarders() {
		t.Run(name, func(t *testing.T) {
			c := dial(t, start(t, run, target(t)))
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAddressInUse(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, run := range forwarders() {
		t.Run(name, func(t *testing.T) {
			o := Options{Listen: ln.Addr().(*net.TCPAddr).AddrPort(), Target: anyPort, Loops: 1, Ready: func(netip.AddrPort) { t.Error("ready") }}
			if err := run(t.Context(), o); err == nil {
				t.Error("the address was taken twice")
			}
		})
	}
}
