package identity_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/identity"
)

// scriptedConn is a conn that reads from a reader.
type scriptedConn struct {
	net.Conn
	io.Reader
}

func (c scriptedConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

// realHello returns the ClientHello crypto/tls sends, as one record.
func realHello(tb testing.TB) []byte {
	tb.Helper()
	var sent bytes.Buffer
	conn := tls.Client(recordingConn{scriptedConn{Reader: iotest.ErrReader(io.EOF)}, &sent}, &tls.Config{
		ServerName: "example.org", MinVersion: tls.VersionTLS13, NextProtos: []string{"cproxy-ctl/1"},
	})
	if err := conn.Handshake(); err == nil {
		tb.Fatal("handshake without a peer succeeded")
	}
	hello := sent.Bytes()
	if end := 5 + int(binary.BigEndian.Uint16(hello[3:5])); end < len(hello) {
		hello = hello[:end] // drop the alert behind it
	}
	return hello
}

// recordingConn keeps what is written.
type recordingConn struct {
	scriptedConn
	sent *bytes.Buffer
}

func (c recordingConn) Write(p []byte) (int, error) { return c.sent.Write(p) }
func (recordingConn) Close() error                  { return nil }
func (recordingConn) SetWriteDeadline(time.Time) error {
	return nil
}

// refragment splits a message over records of at most size bytes of payload.
func refragment(message []byte, size int) []byte {
	var records []byte
	for len(message) > 0 {
		n := min(size, len(message))
		records = append(records, 0x16, 3, 1, byte(n>>8), byte(n))
		records = append(records, message[:n]...)
		message = message[n:]
	}
	return records
}

// message returns a ClientHello with a body of n zeros.
func message(n int) []byte {
	return append([]byte{1, byte(n >> 16), byte(n >> 8), byte(n)}, make([]byte, n)...)
}

func TestAwaitClientHelloReadsExactly(t *testing.T) {
	hello := realHello(t)
	const rest = "bytes behind the hello"
	inputs := map[string][]byte{
		"one record":            hello,
		"records of 100 bytes":  refragment(hello[5:], 100),
		"records of 3 bytes":    refragment(hello[5:], 3),
		"records of one byte":   refragment(hello[5:], 1),
		"four full records":     refragment(message(4*(1<<14)-4-30), 1<<14),
		"a one-byte body":       refragment(message(1), 1<<14),
		"minor version ignored": append([]byte{0x16, 3, 0xff}, hello[3:]...),
	}
	readers := map[string]func(io.Reader) io.Reader{
		"whole":         func(r io.Reader) io.Reader { return r },
		"byte by byte":  iotest.OneByteReader,
		"half and half": iotest.HalfReader,
	}
	for name, input := range inputs {
		for how, reader := range readers {
			t.Run(name+", "+how, func(t *testing.T) {
				stream := bytes.NewReader(append(bytes.Clone(input), rest...))
				conn, err := identity.AwaitClientHello(scriptedConn{Reader: reader(stream)})
				if err != nil {
					t.Fatalf("AwaitClientHello: %v", err)
				}
				if stream.Len() != len(rest) {
					t.Errorf("%d bytes left unread, want %d", stream.Len(), len(rest))
				}
				got, err := io.ReadAll(iotest.OneByteReader(conn))
				if err != nil || string(got) != string(input)+rest {
					t.Errorf("replay of %d bytes and an error %v, want %d bytes as they were sent",
						len(got), err, len(input)+len(rest))
				}
			})
		}
	}
}

func TestAwaitClientHelloTakesAnErrorWithTheLastByte(t *testing.T) {
	hello := realHello(t)
	conn, err := identity.AwaitClientHello(scriptedConn{Reader: iotest.DataErrReader(bytes.NewReader(hello))})
	if err != nil {
		t.Fatalf("AwaitClientHello: %v", err)
	}
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, hello) {
		t.Errorf("replay of %d bytes, %v, want %d", len(got), err, len(hello))
	}
}

func TestAwaitClientHelloStopsAtTheFirstWrongByte(t *testing.T) {
	hello := realHello(t)
	tests := []struct {
		name  string
		input []byte // its last byte is the first wrong one
	}{
		{"HTTP", []byte("G")},
		{"alert record", []byte{0x15}},
		{"application data", []byte{0x17}},
		{"SSL 2", []byte{0x80}},
		{"major version", []byte{0x16, 2}},
		{"record too long, high byte", []byte{0x16, 3, 1, 0x41}},
		{"record too long by one", []byte{0x16, 3, 1, 0x40, 1}},
		{"empty record", []byte{0x16, 3, 1, 0, 0}},
		{"another message first", []byte{0x16, 3, 1, 0, 50, 2}},
		{"message of 64 KiB", []byte{0x16, 3, 1, 0, 50, 1, 1}},
		{"message over the limit", []byte{0x16, 3, 1, 0, 50, 1, 0, 0xff, 0xff}},
		{"empty message", []byte{0x16, 3, 1, 0, 50, 1, 0, 0, 0}},
		{"record longer than message", []byte{0x16, 3, 1, 0, 50, 1, 0, 0, 45}},
		{"later record of another type", append(refragment(hello[5:], 100)[:105], 0x14)},
		{"later record too long", append(refragment(message(100), 100)[:105], 0x16, 3, 1, 0, 5)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// All but the last byte must not be enough to tell.
			short := tt.input[:len(tt.input)-1]
			if _, err := identity.AwaitClientHello(scriptedConn{Reader: bytes.NewReader(short)}); errors.Is(err, identity.ErrNotTLS) {
				t.Errorf("without the wrong byte: %v", err)
			}
			stream := io.MultiReader(iotest.OneByteReader(bytes.NewReader(tt.input)), iotest.ErrReader(errors.New("read too far")))
			if _, err := identity.AwaitClientHello(scriptedConn{Reader: stream}); !errors.Is(err, identity.ErrNotTLS) {
				t.Errorf("AwaitClientHello = %v, want ErrNotTLS", err)
			}
		})
	}
}

func TestAwaitClientHelloIsBounded(t *testing.T) {
	// Tiny records stay below the limit of the message and pass that of the whole.
	input := refragment(message(20000), 1)
	stream := bytes.NewReader(input)
	_, err := identity.AwaitClientHello(scriptedConn{Reader: stream})
	if !errors.Is(err, identity.ErrNotTLS) {
		t.Fatalf("AwaitClientHello = %v, want ErrNotTLS", err)
	}
	if read := len(input) - stream.Len(); read > 64<<10+5 {
		t.Errorf("%d bytes were read", read)
	}
}

func TestAwaitClientHelloEnds(t *testing.T) {
	hello := realHello(t)
	broken := errors.New("broken")
	tests := []struct {
		name   string
		reader io.Reader
		want   error
	}{
		{"nothing sent", bytes.NewReader(nil), io.EOF},
		{"end inside the header", bytes.NewReader(hello[:3]), io.ErrUnexpectedEOF},
		{"end inside the message", bytes.NewReader(hello[:50]), io.ErrUnexpectedEOF},
		{"error", io.MultiReader(bytes.NewReader(hello[:50]), iotest.ErrReader(broken)), broken},
		{"no progress", emptyReader{}, io.ErrNoProgress},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, err := identity.AwaitClientHello(scriptedConn{Reader: tt.reader})
			if !errors.Is(err, tt.want) || conn != nil {
				t.Errorf("AwaitClientHello = %v, %v, want %v", conn, err, tt.want)
			}
		})
	}
}

// emptyReader returns neither bytes nor error.
type emptyReader struct{}

func (emptyReader) Read([]byte) (int, error) { return 0, nil }

func TestAwaitClientHelloRespectsTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer func() { _, _ = client.Close(), server.Close() }()
		must(t, server.SetDeadline(time.Now().Add(5*time.Second)))
		go func() { _, _ = client.Write([]byte{0x16, 3}) }()
		start := time.Now()
		_, err := identity.AwaitClientHello(server)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("AwaitClientHello = %v, want %v", err, os.ErrDeadlineExceeded)
		}
		if took := time.Since(start); took != 5*time.Second {
			t.Errorf("it took %v, want 5s", took)
		}
	})
}

func TestHandshakeOverReplayedConn(t *testing.T) {
	id, _ := newServer(t)
	pin := id.Pin()
	a, b := connected(t)
	done := make(chan error, 1)
	go func() {
		conn, err := identity.AwaitClientHello(b)
		if err != nil {
			done <- err
			return
		}
		server := tls.Server(conn, identity.ServerTLS(id, alpn))
		if _, err = io.Copy(server, server); err == nil {
			err = server.Close()
		}
		done <- err
	}()
	client := tls.Client(a, clientTLS(t, identity.Trust{Pins: []identity.Pin{pin}}, "example.org"))
	_, err := client.Write([]byte("echo"))
	must(t, err)
	must(t, client.CloseWrite())
	got, err := io.ReadAll(client)
	if err != nil || string(got) != "echo" {
		t.Errorf("read %q, %v, want echo", got, err)
	}
	must(t, <-done)
}

func TestReplayConnGivesTheConnUnderneath(t *testing.T) {
	under := scriptedConn{Reader: bytes.NewReader(realHello(t))}
	conn, err := identity.AwaitClientHello(&under)
	must(t, err)
	wrapper, ok := conn.(interface{ NetConn() net.Conn })
	if !ok || wrapper.NetConn() != net.Conn(&under) {
		t.Error("NetConn does not give the conn that was passed in")
	}
}

func FuzzAwaitClientHello(f *testing.F) {
	hello := realHello(f)
	f.Add(hello, 1)
	f.Add(refragment(hello[5:], 7), 3)
	f.Add(refragment(message(300), 100), 1000)
	f.Add([]byte{0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0}, 2)
	f.Add([]byte("GET / HTTP/1.1\r\n"), 4)
	f.Add([]byte{0x16, 3, 1, 0x40, 0, 1, 0, 0xff, 0xf7}, 9)
	f.Fuzz(func(t *testing.T, input []byte, chunk int) {
		chunk = max(chunk, 1)
		stream := bytes.NewReader(input)
		conn, err := identity.AwaitClientHello(scriptedConn{Reader: chunkReader{stream, chunk}})
		whole, wholeErr := identity.AwaitClientHello(scriptedConn{Reader: bytes.NewReader(input)})
		if (err == nil) != (wholeErr == nil) || errors.Is(err, identity.ErrNotTLS) != errors.Is(wholeErr, identity.ErrNotTLS) {
			t.Fatalf("in chunks %v, at once %v", err, wholeErr)
		}
		if err != nil {
			return
		}
		read := len(input) - stream.Len()
		if read > 64<<10 {
			t.Errorf("%d bytes were buffered", read)
		}
		for _, c := range []net.Conn{conn, whole} {
			if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, input) {
				t.Errorf("replay differs from the input, %v", err)
			}
		}
		// One byte less must not be enough: it reads exactly one ClientHello.
		short := scriptedConn{Reader: bytes.NewReader(input[:read-1])}
		if _, err := identity.AwaitClientHello(short); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("one byte less: %v", err)
		}
	})
}

// chunkReader returns at most size bytes a read.
type chunkReader struct {
	r    io.Reader
	size int
}

func (c chunkReader) Read(p []byte) (int, error) { return c.r.Read(p[:min(len(p), c.size)]) }
