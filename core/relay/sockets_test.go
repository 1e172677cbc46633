package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// local is a LocalServer: it hands its connections out, or to a handler.
type local struct {
	target Target
	conns  chan net.Conn
	close  func()
}

// localServer listens on loopback. Without a handler its connections are taken
// one by one.
func localServer(tb testing.TB, handle func(net.Conn)) *local {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return localOn(tb, ln, Address{TCP: ln.Addr().(*net.TCPAddr).AddrPort()}, handle)
}

func unixServer(tb testing.TB, handle func(net.Conn)) *local {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		tb.Fatal(err)
	}
	return localOn(tb, ln, Address{Unix: path}, handle)
}

func localOn(tb testing.TB, ln net.Listener, a Address, handle func(net.Conn)) *local {
	tb.Helper()
	s := &local{target: Target{Addresses: []Address{a}}, conns: make(chan net.Conn, 2048)}
	var all []net.Conn
	var accepting, handling sync.WaitGroup
	accepting.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(patience))
			all = append(all, c)
			if handle == nil {
				s.conns <- c
			} else {
				handling.Go(func() { handle(c) })
			}
		}
	})
	s.close = sync.OnceFunc(func() {
		ln.Close()
		accepting.Wait()
		for _, c := range all {
			c.Close()
		}
		handling.Wait()
	})
	tb.Cleanup(s.close)
	return s
}

// take gives the next connection that the LocalServer got.
func (s *local) take(tb testing.TB) *net.TCPConn {
	tb.Helper()
	select {
	case c := <-s.conns:
		return c.(*net.TCPConn)
	case <-time.After(patience):
		tb.Fatal("no connection came to the LocalServer")
		return nil
	}
}

// echo sends back what it gets and passes the end on.
func echo(c net.Conn) {
	defer c.Close()
	_, _ = io.Copy(c, c)
}

// nobody is an address where connections are refused.
func nobody(tb testing.TB) Target {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	return Target{Addresses: []Address{{TCP: ln.Addr().(*net.TCPAddr).AddrPort()}}}
}

// dialTCP connects as a PublicClient; nothing it does hangs for ever.
func dialTCP(tb testing.TB, a netip.AddrPort) *net.TCPConn {
	tb.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(a))
	if err != nil {
		tb.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	tb.Cleanup(func() { drop(c) })
	return c
}

// roundTrip sends a message, half-closes, and wants it back.
func roundTrip(tb testing.TB, c *net.TCPConn, message string) {
	tb.Helper()
	say(tb, c, message)
	closeWrite(tb, c)
	wantRest(tb, c, message)
}

func say(tb testing.TB, c net.Conn, message string) {
	tb.Helper()
	if _, err := io.WriteString(c, message); err != nil {
		tb.Fatalf("write %q: %v", message, err)
	}
}

// hear reads exactly one message.
func hear(tb testing.TB, c net.Conn, message string) {
	tb.Helper()
	b := make([]byte, len(message))
	if n, err := io.ReadFull(c, b); err != nil || string(b) != message {
		tb.Fatalf("got %q, %v; want %q", b[:n], err, message)
	}
}

// wantRest reads to an orderly end.
func wantRest(tb testing.TB, c net.Conn, message string) {
	tb.Helper()
	if b, err := io.ReadAll(c); err != nil || string(b) != message {
		tb.Fatalf("got %q, %v; want %q and the end", b, err, message)
	}
}

func closeWrite(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	if err := c.CloseWrite(); err != nil {
		tb.Fatalf("shut down: %v", err)
	}
}

// drop closes connections, whatever comes of it.
func drop(all ...io.Closer) {
	for _, c := range all {
		c.Close()
	}
}

// reset ends a connection with RST.
func reset(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	if err := c.SetLinger(0); err != nil {
		tb.Fatalf("set linger: %v", err)
	}
	drop(c)
}

// wantReset wants the connection to end with RST, and gives what came before.
func wantReset(tb testing.TB, c net.Conn) string {
	tb.Helper()
	b, err := io.ReadAll(c)
	if !errors.Is(err, syscall.ECONNRESET) {
		tb.Fatalf("read %d bytes, then %v; want a reset", len(b), err)
	}
	return string(b)
}

// wantRefused wants a visitor to be reset at once, perhaps before its connect
// has returned.
func wantRefused(tb testing.TB, a netip.AddrPort) {
	tb.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(a))
	if errors.Is(err, syscall.ECONNRESET) {
		return
	}
	if err != nil {
		tb.Fatalf("dial: %v; want a reset", err)
	}
	defer drop(c)
	_ = c.SetDeadline(time.Now().Add(patience))
	wantReset(tb, c)
}

// wantBroken wants the kernel to have been told of a reset behind FIN: reads go
// on to give the end, writes fail.
func wantBroken(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		tb.Fatal(err)
	}
	eventually(tb, "the connection is broken", func() bool {
		broken := false
		err := raw.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd)}}
			_, _ = unix.Poll(poll, 0)
			broken = poll[0].Revents&unix.POLLERR != 0
		})
		return err == nil && broken
	})
	if _, err := c.Write([]byte("still there?")); !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		tb.Fatalf("write: %v; want a broken connection", err)
	}
}

// fill writes until the connection has taken nothing for a while: every buffer
// on the way is full. It gives what was taken.
func fill(tb testing.TB, c *net.TCPConn, from io.Reader) int {
	tb.Helper()
	b := make([]byte, 64<<10)
	sent := 0
	for {
		if _, err := io.ReadFull(from, b); err != nil {
			tb.Fatal(err)
		}
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := c.Write(b)
		sent += n
		if err != nil {
			_ = c.SetWriteDeadline(time.Now().Add(patience))
			var late net.Error
			if !errors.As(err, &late) || !late.Timeout() {
				tb.Fatalf("fill: %v after %d bytes", err, sent)
			}
			return sent
		}
	}
}

// readAll reads to the end, orderly or not.
func readAll(tb testing.TB, c net.Conn) []byte {
	tb.Helper()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		tb.Fatalf("read %d bytes, then %v; want the end", len(b), err)
	}
	return b
}

// silentTCP is an address that neither accepts nor refuses: its queue is full.
func silentTCP(tb testing.TB) Address {
	tb.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closefd(fd) })
	if errno := bindInet(fd, netip.AddrPortFrom(loopback, 0)); errno != 0 {
		tb.Fatal(errno)
	}
	if err := unix.Listen(fd, 0); err != nil {
		tb.Fatal(err)
	}
	at, errno := localAddress(fd)
	if errno != 0 {
		tb.Fatal(errno)
	}
	for range 4 {
		c, errno := connect(Address{TCP: at})
		if errno != 0 && errno != unix.EINPROGRESS {
			tb.Fatal(errno)
		}
		tb.Cleanup(func() { closefd(c) })
	}
	return Address{TCP: at}
}
