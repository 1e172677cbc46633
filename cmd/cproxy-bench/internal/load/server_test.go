//go:build linux

package load

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 12)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

var anyPort = netip.MustParseAddrPort("127.0.0.1:0")

// startServer serves until the test ends, and checks then that no descriptor
// is left.
func startServer(t *testing.T) netip.AddrPort {
	t.Helper()
	server, bound, err := OpenServer(anyPort, 2)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("server ended with %v", err)
		}
	})
	return bound
}

// request opens a connection and sends a request and what follows it.
func request(t *testing.T, a netip.AddrPort, r Request, more []byte) *net.TCPConn {
	t.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(a))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	head := r.Encode()
	if _, err := c.Write(append(head[:], more...)); err != nil {
		t.Fatal(err)
	}
	return c
}

func readAll(t *testing.T, c *net.TCPConn) []byte {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestServerOperations(t *testing.T) {
	a := startServer(t)
	payload := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	trailer := func(received, sent int) []byte {
		b := Trailer{Received: uint64(received), Sent: uint64(sent)}.Encode()
		return b[:]
	}
	tests := []struct {
		name    string
		request Request
		send    []byte
		want    []byte
		early   bool // the answer ends before the client's FIN
	}{
		{"echo nothing", Request{Op: Echo}, nil, nil, false},
		{"echo", Request{Op: Echo}, payload[:5000], payload[:5000], false},
		{"sink", Request{Op: Sink}, payload, nil, false},
		{"sink confirmed", Request{Op: Sink, Confirm: true}, payload, trailer(len(payload), 0), false},
		{"source", Request{Op: Source, Bytes: 700000}, nil, make([]byte, 700000), true},
		{"source confirmed", Request{Op: Source, Bytes: 700000, Confirm: true}, []byte("abc"), append(make([]byte, 700000), trailer(3, 700000)...), false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := request(t, a, test.request, test.send)
			if !test.early {
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			if got := readAll(t, c); !bytes.Equal(got, test.want) {
				t.Errorf("got %d bytes, want %d", len(got), len(test.want))
			}
		})
	}
}

// An echo whose reader is slow must neither lose bytes nor block others.
func TestServerEchoesMoreThanBuffersHold(t *testing.T) {
	a := startServer(t)
	c := request(t, a, Request{Op: Echo}, nil)
	const size = 32 << 20
	go func() {
		_, _ = c.Write(make([]byte, size))
		_ = c.CloseWrite()
	}()
	other := request(t, a, Request{Op: Echo}, []byte("hello"))
	if _, err := io.ReadFull(other, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if got := len(readAll(t, c)); got != size {
		t.Errorf("echoed %d bytes of %d", got, size)
	}
}

func TestServerSourceForATime(t *testing.T) {
	c := request(t, startServer(t), Request{Op: Source, For: 20 * time.Millisecond}, nil)
	if got := len(readAll(t, c)); got == 0 {
		t.Error("nothing was sent")
	}
}

func TestServerSourceUntilFIN(t *testing.T) {
	c := request(t, startServer(t), Request{Op: Source, Confirm: true}, nil)
	if _, err := io.ReadFull(c, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rest := readAll(t, c)
	got, ok := ParseTrailer([TrailerSize]byte(rest[len(rest)-TrailerSize:]))
	if want := uint64(1<<20 + len(rest) - TrailerSize); !ok || got.Sent != want || got.Received != 0 {
		t.Errorf("trailer %+v, %v, want %d bytes sent", got, ok, want)
	}
}

// Garbage, silence, resets and half requests end their connection only.
func TestServerSurvivesBadPeers(t *testing.T) {
	a := startServer(t)
	garbage, err := net.Dial("tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	defer garbage.Close()
	if _, err := garbage.Write(bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 2)); err != nil {
		t.Fatal(err)
	}
	if n, err := garbage.Read(make([]byte, 1)); err == nil {
		t.Errorf("garbage was answered with %d bytes", n)
	}
	half, err := net.Dial("tcp", a.String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := half.Write([]byte("CPB1")); err != nil {
		t.Fatal(err)
	}
	half.Close()
	for range 20 {
		c := request(t, a, Request{Op: Source}, nil)
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	c := request(t, a, Request{Op: Source, Bytes: 3}, nil)
	if got := readAll(t, c); len(got) != 3 {
		t.Errorf("got %d bytes", len(got))
	}
}

func TestServerAddressInUse(t *testing.T) {
	a := startServer(t)
	before := descriptors(t)
	if _, _, err := OpenServer(a, 2); err == nil {
		t.Error("the address was taken twice")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}
