package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stream is what TCP and unix connections have in common.
type stream interface {
	net.Conn
	CloseWrite() error
}

// service is a LocalServer. It and all its connections are closed with the
// test.
type service struct {
	address string // as `local` in client.toml

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// serve starts a service at an address, port 0 for any. handle has the
// connection until it returns.
func serve(t *testing.T, network, address string, handle func(stream)) *service {
	t.Helper()
	return serveOn(t, listen(t, network, address), handle)
}

func listen(t *testing.T, network, address string) net.Listener {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// serveOn starts a service that has the listener from then on.
func serveOn(t *testing.T, ln net.Listener, handle func(stream)) *service {
	t.Helper()
	s := &service{address: ln.Addr().String(), conns: make(map[net.Conn]struct{})}
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() { s.handle(conn, handle) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close() // its goroutine ends by it
		s.closeAll()
		tasks.Wait()
	})
	return s
}

func (s *service) handle(conn net.Conn, handle func(stream)) {
	s.mu.Lock()
	s.conns[conn] = struct{}{}
	s.mu.Unlock()
	defer conn.Close()
	if both, ok := conn.(stream); ok {
		handle(both)
	}
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
}

func (s *service) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		_ = conn.Close() // its handler ends by it
	}
}

// echo sends back what it gets, and its end.
func echo(c stream) { _, _ = io.Copy(c, c) }

// named answers with a name, then echoes.
func named(name string) func(stream) {
	return func(c stream) {
		if _, err := io.WriteString(c, name+"\n"); err == nil {
			echo(c)
		}
	}
}

// manual starts a service whose connections the test itself handles.
func manual(t *testing.T, address string) (*service, <-chan stream) {
	t.Helper()
	return manualOn(t, listen(t, "tcp", address))
}

func manualOn(t *testing.T, ln net.Listener) (*service, <-chan stream) {
	t.Helper()
	conns := make(chan stream, 16)
	done := make(chan struct{})
	s := serveOn(t, ln, func(c stream) {
		conns <- c
		<-done
	})
	t.Cleanup(func() { close(done) })
	return s, conns
}

// next waits for a connection of a manual service.
func next(t *testing.T, conns <-chan stream) stream {
	t.Helper()
	select {
	case c := <-conns:
		bound(t, c)
		return c
	case <-time.After(patience):
		t.Fatal("no connection reached the local service")
		return nil
	}
}

// bound keeps a test from hanging in a read or write.
func bound(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(4 * patience)); err != nil {
		t.Fatal(err)
	}
}

// visit connects to a public address.
func visit(t *testing.T, address string) stream {
	t.Helper()
	c, err := dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func dial(address string) (stream, error) {
	c, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	if err := c.SetDeadline(time.Now().Add(4 * patience)); err != nil {
		return nil, err
	}
	both, ok := c.(stream)
	if !ok {
		return nil, fmt.Errorf("%T is not a stream", c)
	}
	return both, nil
}

// say sends a message and wants it back from an echo, leaving the stream open.
func say(t *testing.T, c net.Conn, message string) {
	t.Helper()
	if _, err := io.WriteString(c, message); err != nil {
		t.Fatal(err)
	}
	hear(t, c, message)
}

// hear wants these bytes next.
func hear(t *testing.T, c net.Conn, message string) {
	t.Helper()
	got := make([]byte, len(message))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != message {
		t.Fatalf("got %q and %v, want %q", got[:n], err, message)
	}
}

// roundTrip visits an echo: message, half-close, message back, end.
func roundTrip(address, message string) error {
	c, err := dial(address)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.WriteString(c, message); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if string(got) != message {
		return fmt.Errorf("got %d bytes, want the %d that were sent", len(got), len(message))
	}
	return nil
}

// wantRoundTrip is roundTrip for a world in which nothing is wrong.
func wantRoundTrip(t *testing.T, address, message string) {
	t.Helper()
	if err := roundTrip(address, message); err != nil {
		t.Fatalf("visit %s: %v", address, err)
	}
}

// wantReset reads to the end of a stream, which must not look like one.
func wantReset(t *testing.T, who string, c net.Conn) {
	t.Helper()
	n, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%s saw %v after %d bytes, want a connection reset", who, err, n)
	}
}

// wantEnd reads to the end of a stream, which must be a clean one.
func wantEnd(t *testing.T, who string, c net.Conn) {
	t.Helper()
	if n, err := io.Copy(io.Discard, c); err != nil || n > 0 {
		t.Fatalf("%s saw %d bytes and %v, want the end", who, n, err)
	}
}

// reset closes a connection with RST.
func reset(c stream) error {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return fmt.Errorf("%T cannot be reset", c)
	}
	return errors.Join(tcp.SetLinger(0), tcp.Close())
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, condition func() error) {
	t.Helper()
	if err := poll(condition); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func poll(condition func() error) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	end := time.Now().Add(patience)
	for {
		err := condition()
		if err == nil || time.Now().After(end) {
			return err
		}
		<-tick.C
	}
}

// noise is an endless stream of bytes that a seed determines.
func noise(seed uint64) io.Reader {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	return rand.NewChaCha8(key)
}

// digest reads n bytes and gives their digest.
func digest(r io.Reader, n int64) ([sha256.Size]byte, error) {
	h := sha256.New()
	got, err := io.Copy(h, io.LimitReader(r, n))
	if err == nil && got < n {
		err = fmt.Errorf("the stream ended after %d of %d bytes", got, n)
	}
	return [sha256.Size]byte(h.Sum(nil)), err
}

// addressOf gives the address and port of one end.
func addressOf(a net.Addr) netip.AddrPort {
	parsed, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(parsed.Addr().Unmap(), parsed.Port())
}

// wantGreeting visits a named service.
func wantGreeting(address, name string) error {
	c, err := dial(address)
	if err != nil {
		return err
	}
	defer c.Close()
	got := make([]byte, len(name)+1)
	if _, err := io.ReadFull(c, got); err != nil || string(got) != name+"\n" {
		return fmt.Errorf("the greeting is %q: %w", got, err)
	}
	return nil
}

// wantRefused visits a tunnel that has to turn the visitor away with a reset,
// which may come before connect has returned.
func wantRefused(address string) error {
	c, err := dial(address)
	if errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.Close()
	_, writeErr := io.WriteString(c, "x\n") // an echo answers, so this never hangs
	n, err := c.Read(make([]byte, 1))
	if !errors.Is(errors.Join(writeErr, err), syscall.ECONNRESET) {
		return fmt.Errorf("it gave %d bytes and %w, want a reset", n, err)
	}
	return nil
}
