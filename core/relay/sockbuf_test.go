package relay

import (
	"context"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// buffers are the sizes of a socket's buffers in bytes, as they are asked for:
// the kernel doubles them, and has limits at both ends (socket(7)).
type buffers struct{ receive, send int }

// control sets the buffers before the handshake, which tells the window.
func (b buffers) control(_, _ string, c syscall.RawConn) (err error) {
	e := c.Control(func(fd uintptr) {
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, b.receive); err == nil {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, b.send)
		}
	})
	if err == nil {
		err = e
	}
	return err
}

// amount is what is sent to who has such buffers. A window of a kilobyte now
// and then shrinks to less than a segment, and then the kernel's persist timer
// moves every bit of it (RFC 9293, 3.8.6.1): a direct connection does the same.
func (b buffers) amount() int64 {
	if b.receive < 4<<10 {
		return 2 << 10
	}
	return 160 << 10
}

func allBuffers() (all []buffers) {
	sizes := [...]int{1 << 10, 4 << 10, 4 << 20}
	for _, receive := range sizes {
		for _, send := range sizes {
			all = append(all, buffers{receive, send})
		}
	}
	return all
}

// Whatever the buffers of the ends, from a kilobyte to megabytes, all bytes
// arrive: bulk both ways, and one way after the other has ended.
func TestBuffersOfAllSizes(t *testing.T) {
	for _, at := range allBuffers() {
		server := func(tb testing.TB, handle func(net.Conn)) *local {
			tb.Helper()
			ln, err := (&net.ListenConfig{Control: at.control}).Listen(context.Background(), "tcp", "127.0.0.1:0")
			if err != nil {
				tb.Fatal(err)
			}
			return localOn(tb, ln, Address{TCP: ln.Addr().(*net.TCPAddr).AddrPort()}, handle)
		}
		t.Run(fmt.Sprintf("LocalServer %d %d", at.receive, at.send), func(t *testing.T) {
			eachRouteTo(t, Settings{}, server, func(t *testing.T, r route) {
				t.Helper()
				var all []func() error
				for i, from := range allBuffers() {
					visitor, service := r.connectWith(t, from)
					all = append(all, bulkThenHalf(visitor, service, uint64(4*i), at.amount(), from.amount())...)
				}
				parallel(t, all...)
				for range allBuffers() {
					wantDone(t, r.engines)
				}
			})
		})
	}
}

func (r route) connectWith(t *testing.T, b buffers) (visitor, service *net.TCPConn) {
	t.Helper()
	c, err := (&net.Dialer{Control: b.control}).DialContext(t.Context(), "tcp", r.public.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { drop(c) })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn), r.local.take(t)
}

// bulkThenHalf sends both ways at once; the visitor ends first, and gets half
// as much again behind that.
func bulkThenHalf(visitor, service *net.TCPConn, number uint64, up, down int64) []func() error {
	ended := make(chan struct{})
	return []func() error{
		func() error { return sendContent(visitor, number, up) },
		func() error {
			defer close(ended)
			return wantContent(service, number, up)
		},
		func() error {
			if err := pump(service, number+1, down); err != nil {
				return err
			}
			<-ended
			return sendContent(service, number+2, down/2)
		},
		func() error {
			if err := wantPart(visitor, number+1, down); err != nil {
				return err
			}
			return wantContent(visitor, number+2, down/2)
		},
	}
}
