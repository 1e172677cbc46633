package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"google.golang.org/protobuf/proto"
)

func clientMessages() []*ClientMessage {
	return []*ClientMessage{
		testHello().ClientMessage(),
		(&RegisterTunnel{Spec: testSpec()}).ClientMessage(),
		(&CloseTunnel{Name: "web"}).ClientMessage(),
		(&Pong{Nonce: 1 << 63}).ClientMessage(),
		NewGoodbye(NewRefusal(CodeDone, ""), 0).ClientMessage(),
	}
}

func serverMessages() []*ServerMessage {
	return []*ServerMessage{
		testWelcome().ServerMessage(),
		testRegistered().ServerMessage(),
		(&TunnelRejected{Name: "web", Refusal: NewRefusal(CodePortTaken, "")}).ServerMessage(),
		(&NeedProxyConn{N: 3}).ServerMessage(),
		(&Ping{Nonce: 7}).ServerMessage(),
		NewGoodbye(NewRefusal(CodeShutdown, ""), MaxRetryAfter).ServerMessage(),
	}
}

func testHello() *Hello {
	return &Hello{
		Version: Version, Name: "web-1", Instance: bytes.Repeat([]byte{1}, InstanceSize), Epoch: 4,
		Hostname: "web-1.internal", ClientVersion: "v1.0.0",
		Auth: &Hello_Credential{Credential: &Credential{
			Name: "web", Secret: []byte("0123456789abcdefghijklmnopqrstuv"),
		}},
	}
}

func testSpec() *TunnelSpec {
	return &TunnelSpec{Name: "web", Type: "tcp", PortFirst: 20000, PortLast: 20100, Bind: []string{"127.0.0.1", "::"}}
}

func testWelcome() *Welcome {
	return &Welcome{
		Version: Version, ControlId: 9, Epoch: 4, SessionKey: []byte("vutsrqponmlkjihgfedcba9876543210"),
		HeartbeatMs: 30000, ProxyAddress: ":7001", Mode: ModePlain,
		Tunnels: []*TunnelRegistered{testRegistered()}, ServerVersion: "v1.0.0", PoolMax: 64,
	}
}

func testRegistered() *TunnelRegistered {
	return &TunnelRegistered{Name: "web", Id: 1, PublicAddresses: []string{"[::]:20000", "127.0.0.1:20000"}}
}

// encodeClient returns the framed messages.
func encodeClient(tb testing.TB, messages ...*ClientMessage) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for _, m := range messages {
		if err := w.WriteClientMessage(m); err != nil {
			tb.Fatalf("write %s: %v", m.KindName(), err)
		}
	}
	return buf.Bytes()
}

func encodeServer(tb testing.TB, messages ...*ServerMessage) []byte {
	tb.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for _, m := range messages {
		if err := w.WriteServerMessage(m); err != nil {
			tb.Fatalf("write %s: %v", m.KindName(), err)
		}
	}
	return buf.Bytes()
}

// envelope is a message of either direction.
type envelope interface {
	proto.Message
	KindName() string
	Validate() error
}

// wantMessages reads to the end: these messages, all of them valid.
func wantMessages[M envelope](t *testing.T, read func() (M, error), want []M) {
	t.Helper()
	for _, m := range want {
		got, err := read()
		if err != nil {
			t.Fatalf("read %s: %v", m.KindName(), err)
		}
		if !proto.Equal(got, m) {
			t.Errorf("got %v, want %v", got, m)
		}
		if err := got.Validate(); err != nil {
			t.Errorf("validate: %v", err)
		}
	}
	if _, err := read(); err != io.EOF { //nolint:errorlint // a clean end is io.EOF itself
		t.Errorf("at the end: %v, want io.EOF", err)
	}
}

func TestRoundTrip(t *testing.T) {
	// One byte at a time: no message depends on how the bytes arrive.
	t.Run("client", func(t *testing.T) {
		r := NewReader(iotest.OneByteReader(bytes.NewReader(encodeClient(t, clientMessages()...))))
		wantMessages(t, r.ReadClientMessage, clientMessages())
	})
	t.Run("server", func(t *testing.T) {
		r := NewReader(iotest.OneByteReader(bytes.NewReader(encodeServer(t, serverMessages()...))))
		wantMessages(t, r.ReadServerMessage, serverMessages())
	})
}

func TestReadErrors(t *testing.T) {
	broken := errors.New("broken")
	hello := encodeClient(t, testHello().ClientMessage())
	long := testHello()
	long.Hostname = strings.Repeat("h", 3*readBuffer)
	longHello := encodeClient(t, long.ClientMessage())

	tests := []struct {
		name string
		in   io.Reader
		want error
	}{
		{"empty", strings.NewReader(""), io.EOF},
		{"cut in the length", bytes.NewReader(longHello[:1]), io.ErrUnexpectedEOF},
		{"cut after the length", bytes.NewReader(hello[:1]), io.ErrUnexpectedEOF},
		{"cut in the body", bytes.NewReader(hello[:len(hello)-1]), io.ErrUnexpectedEOF},
		{"cut in a long body", bytes.NewReader(longHello[:len(longHello)-1]), io.ErrUnexpectedEOF},
		{"too large by one", bytes.NewReader(binary.AppendUvarint(nil, MaxMessage+1)), ErrTooLarge},
		{"too large by far", bytes.NewReader(binary.AppendUvarint(nil, 1<<63)), ErrTooLarge},
		{"length of eleven bytes", bytes.NewReader(bytes.Repeat([]byte{0xff}, 11)), ErrMalformed},
		{"garbage", strings.NewReader("\x10GET / HTTP/1.1\r\n\r\n"), ErrMalformed},
		{"string that is not UTF-8", strings.NewReader("\x05\x1a\x03\x0a\x01\xff"), ErrMalformed},
		{"error at once", iotest.ErrReader(broken), broken},
		{"error inside", io.MultiReader(bytes.NewReader(hello[:5]), iotest.ErrReader(broken)), broken},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m, err := NewReader(test.in).ReadClientMessage()
			if !errors.Is(err, test.want) {
				t.Fatalf("got %v, %v; want %v", m, err, test.want)
			}
			if m != nil {
				t.Error("a message came with the error")
			}
		})
	}
}

// A length alone must cost nothing, whatever it claims.
func TestTooLargeAllocatesNothing(t *testing.T) {
	const rounds = 100
	in := binary.AppendUvarint(nil, 1<<40)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range rounds {
		if _, err := NewReader(bytes.NewReader(in)).ReadServerMessage(); !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if per := (after.TotalAlloc - before.TotalAlloc) / rounds; per > MaxMessage/4 {
		t.Errorf("%d bytes allocated for an oversized message", per)
	}
}

func TestLargestMessage(t *testing.T) {
	m := NewGoodbye(&Refusal{Reason: strings.Repeat("r", MaxMessage)}, 0).ClientMessage()
	m.GetGoodbye().Refusal.Reason = strings.Repeat("r", MaxMessage-(proto.Size(m)-MaxMessage))
	if got := proto.Size(m); got != MaxMessage {
		t.Fatalf("the message has %d bytes", got)
	}
	got, err := NewReader(bytes.NewReader(encodeClient(t, m))).ReadClientMessage()
	if err != nil || !proto.Equal(got, m) {
		t.Fatalf("read: %v", err)
	}

	m.GetGoodbye().Refusal.Reason += "r"
	var buf bytes.Buffer
	if err := NewWriter(&buf).WriteClientMessage(m); !errors.Is(err, ErrTooLarge) {
		t.Errorf("write: %v, want ErrTooLarge", err)
	}
	if buf.Len() != 0 {
		t.Errorf("%d bytes written of an oversized message", buf.Len())
	}
}

func TestUnknownFieldsAndKinds(t *testing.T) {
	unknown := []byte{0xf8, 0x3f, 0x01} // field 1023, varint 1
	in := append([]byte{byte(len(unknown))}, unknown...)
	m, err := NewReader(bytes.NewReader(in)).ReadClientMessage()
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if got := len(m.ProtoReflect().GetUnknown()); got != 0 {
		t.Errorf("%d unknown bytes kept", got)
	}
	if err := m.Validate(); err == nil {
		t.Error("a message of an unknown kind is valid")
	}
	if got := m.KindName(); got != "unknown" {
		t.Errorf("kind %q", got)
	}
}

// countingWriter counts calls and keeps what it was last given, uncopied.
type countingWriter struct {
	calls int
	last  []byte
	err   error
}

func (w *countingWriter) Write(p []byte) (int, error) {
	w.calls++
	w.last = p
	return len(p), w.err
}

func TestWriteIsOneCallAndWipes(t *testing.T) {
	out := &countingWriter{}
	if err := NewWriter(out).WriteClientMessage(testHello().ClientMessage()); err != nil {
		t.Fatal(err)
	}
	if out.calls != 1 {
		t.Errorf("%d calls of Write, want 1", out.calls)
	}
	if !bytes.Equal(out.last, make([]byte, len(out.last))) {
		t.Error("the encoded credential is still in memory")
	}
}

func TestWriteErrors(t *testing.T) {
	t.Run("broken connection", func(t *testing.T) {
		broken := errors.New("broken")
		if err := NewWriter(&countingWriter{err: broken}).WriteServerMessage(testWelcome().ServerMessage()); !errors.Is(err, broken) {
			t.Errorf("got %v, want %v", err, broken)
		}
	})
	t.Run("not UTF-8", func(t *testing.T) {
		if err := NewWriter(io.Discard).WriteClientMessage((&CloseTunnel{Name: "\xff"}).ClientMessage()); err == nil {
			t.Error("a string that is not UTF-8 was written")
		}
	})
}

// moody fails while it has an error.
type moody struct {
	r   io.Reader
	err error
}

func (m *moody) Read(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	return m.r.Read(p)
}

func TestAwait(t *testing.T) {
	want := (&Pong{Nonce: 7}).ClientMessage()
	conn := &moody{r: bytes.NewReader(encodeClient(t, want, want)), err: os.ErrDeadlineExceeded}
	r := NewReader(conn)
	await := func(want error) {
		t.Helper()
		for range 2 { // waiting takes nothing away
			if err := r.Await(); !errors.Is(err, want) {
				t.Fatalf("got %v, want %v", err, want)
			}
		}
	}
	read := func() {
		t.Helper()
		if got, err := r.ReadClientMessage(); err != nil || !proto.Equal(got, want) {
			t.Fatalf("got %v, %v", got, err)
		}
	}
	await(os.ErrDeadlineExceeded)
	conn.err = nil
	await(nil)
	read()
	conn.err = os.ErrDeadlineExceeded
	await(nil) // the second was read ahead
	read()
	await(os.ErrDeadlineExceeded)
	conn.err = nil
	await(io.EOF)
}
