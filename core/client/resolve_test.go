package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// fakeDNS answers every name with the same addresses (RFC 1035).
type fakeDNS struct {
	mu        sync.Mutex
	addresses []netip.Addr
	asked     int
	tasks     sync.WaitGroup
}

func newFakeDNS(t *testing.T, addresses ...netip.Addr) *fakeDNS {
	t.Helper()
	d := &fakeDNS{addresses: addresses}
	t.Cleanup(d.tasks.Wait)
	return d
}

func (d *fakeDNS) set(addresses ...netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addresses = addresses
}

// resolver asks d instead of the system.
func (d *fakeDNS) resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		near, far := net.Pipe()
		d.tasks.Go(func() {
			defer far.Close()
			for d.answer(far) == nil {
			}
		})
		return near, nil
	}}
}

// answer reads a question, with its length before it as over TCP, and answers.
func (d *fakeDNS) answer(conn net.Conn) error {
	const header, end = 12, 5 // the root label, type and class
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	query := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, query); err != nil {
		return err
	}
	at := header
	for query[at] != 0 {
		at += 1 + int(query[at])
	}
	question := query[header : at+end]
	kind := binary.BigEndian.Uint16(query[at+1:])
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	var answers []byte
	var n uint16
	for _, ip := range d.addresses {
		if own := map[bool]uint16{true: 1, false: 28}[ip.Is4()]; own == kind {
			answers = append(answers, 0xc0, header) // the name of the question
			answers = binary.BigEndian.AppendUint16(answers, kind)
			answers = append(answers, 0, 1, 0, 0, 0, 60) // class, time to live
			answers = binary.BigEndian.AppendUint16(answers, uint16(ip.BitLen()/8))
			answers = append(answers, ip.AsSlice()...)
			n++
		}
	}
	reply := append([]byte{query[0], query[1], 0x85, 0x80, 0, 1, 0, byte(n), 0, 0, 0, 0}, question...)
	reply = append(reply, answers...)
	_, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...))
	return err
}

// besides makes s listen on another address as well, with the same port.
func (s *fakeServer) besides(host string) (net.Listener, error) {
	_, port, _ := net.SplitHostPort(s.ctl.Addr().String())
	l, err := net.Listen("tcp", net.JoinHostPort(host, port))
	if err == nil {
		s.t.Cleanup(func() { _ = l.Close() })
	}
	return l, err
}

func (s *fakeServer) named() string {
	_, port, _ := net.SplitHostPort(s.ctl.Addr().String())
	return net.JoinHostPort("server.test.", port)
}

// A server that moved to another address is found there at the next attempt.
func TestServerNameIsResolvedAnew(t *testing.T) {
	s := newFakeServer(t)
	elsewhere, err := s.besides("127.0.0.2")
	if err != nil {
		t.Skipf("127.0.0.2 is of no use here: %v", err)
	}
	dns := newFakeDNS(t, netip.MustParseAddr("127.0.0.2"))
	o := s.options()
	o.Reloadable.Servers = []string{s.named()}
	start(t, o, func(c *Client) { c.resolver = dns.resolver() })
	for range 2 { // the old address does not answer as it should
		conn, err := elsewhere.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	dns.set(netip.MustParseAddr("127.0.0.1"))
	// An attempt may be under way to where the server was.
	go func() {
		for {
			conn, err := elsewhere.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	s.login().welcome(nil).quiet()
}

// blackhole listens on ::1 and drops every further SYN: its queue is full.
func blackhole(t *testing.T, port string) error {
	t.Helper()
	n, err := strconv.Atoi(port)
	if err != nil {
		return fmt.Errorf("read port: %w", err)
	}
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make socket: %w", err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	at := &syscall.SockaddrInet6{Port: n, Addr: netip.IPv6Loopback().As16()}
	err = errors.Join(syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, 1), syscall.Bind(fd, at), syscall.Listen(fd, 0))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for range 16 {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort("::1", port), 200*time.Millisecond)
		if err != nil {
			return nil // nothing answers any more
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	return errors.New("the queue does not fill up")
}

// A server is reached although the family of addresses that is tried first
// does not answer, long before that attempt is given up.
func TestFamiliesRace(t *testing.T) {
	s := newFakeServer(t)
	_, port, _ := net.SplitHostPort(s.ctl.Addr().String())
	if err := blackhole(t, port); err != nil {
		t.Skipf("there is no black hole on ::1: %v", err)
	}
	dns := newFakeDNS(t, netip.IPv6Loopback(), netip.MustParseAddr("127.0.0.1"))
	o := s.options()
	o.Reloadable.Servers = []string{s.named()}
	o.Reloadable.Settings.Connect = time.Hour
	start(t, o, func(c *Client) {
		c.resolver = dns.resolver()
		c.timing.attempt = time.Hour
	})
	k := s.login()
	if k.hello.GetEpoch() != 1 {
		t.Errorf("it took %d attempts", k.hello.GetEpoch())
	}
	k.welcome(nil).quiet()
	dns.mu.Lock()
	defer dns.mu.Unlock()
	if dns.asked < 2 {
		t.Errorf("%d questions were asked, want one for each family", dns.asked)
	}
}

// A host of which one address refuses is reached at the other.
func TestFamilyRefused(t *testing.T) {
	s := newFakeServer(t)
	dns := newFakeDNS(t, netip.IPv6Loopback(), netip.MustParseAddr("127.0.0.1"))
	o := s.options()
	o.Reloadable.Servers = []string{s.named()}
	start(t, o, func(c *Client) { c.resolver = dns.resolver() })
	k := s.login()
	if k.hello.GetEpoch() != 1 {
		t.Errorf("it took %d attempts", k.hello.GetEpoch())
	}
	k.goodbye(wire.CodeUnavailable)
}
