package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"testing"

	"google.golang.org/protobuf/proto"
)

// Arbitrary bytes never panic a reader; what it accepts survives a round trip,
// can be printed, and is refused or accepted by Validate without a panic.
func FuzzReadClientMessage(f *testing.F) {
	for _, m := range clientMessages() {
		f.Add(encodeClient(f, m))
	}
	f.Add(encodeClient(f, clientMessages()...))
	f.Fuzz(func(t *testing.T, in []byte) {
		readAll(t, in, (*Reader).ReadClientMessage, (*Writer).WriteClientMessage, func(*ClientMessage) {})
	})
}

// FuzzReadServerMessage is FuzzReadClientMessage for the other direction.
func FuzzReadServerMessage(f *testing.F) {
	for _, m := range serverMessages() {
		f.Add(encodeServer(f, m))
	}
	f.Add(encodeServer(f, serverMessages()...))
	f.Fuzz(func(t *testing.T, in []byte) {
		readAll(t, in, (*Reader).ReadServerMessage, (*Writer).WriteServerMessage, func(m *ServerMessage) {
			_ = m.GetWelcome().Heartbeat()
			_ = fmt.Sprint(m.GetGoodbye().Err(), m.GetTunnelRejected().Err())
		})
	})
}

// readAll reads messages until an error that it knows; use is called with each.
func readAll[M envelope](t *testing.T, in []byte, read func(*Reader) (M, error), write func(*Writer, M) error, use func(M)) {
	t.Helper()
	r := NewReader(bytes.NewReader(in))
	for {
		m, err := read(r)
		if err != nil {
			checkReadError(t, err)
			return
		}
		_ = m.Validate()
		_ = fmt.Sprint(m, slog.AnyValue(m).Resolve())
		use(m)
		var out bytes.Buffer
		if err := write(NewWriter(&out), m); err != nil {
			// A canonical encoding may be longer than what was read only if
			// what was read was near the limit.
			checkWriteError(t, err, proto.Size(m))
			continue
		}
		again, err := read(NewReader(&out))
		if err != nil || !proto.Equal(m, again) {
			t.Fatalf("round trip of %v: %v, %v", m, again, err)
		}
	}
}

func checkReadError(t *testing.T, err error) {
	t.Helper()
	for _, known := range []error{io.EOF, io.ErrUnexpectedEOF, ErrTooLarge, ErrMalformed} {
		if errors.Is(err, known) {
			return
		}
	}
	t.Fatalf("untyped error: %v", err)
}

func checkWriteError(t *testing.T, err error, size int) {
	t.Helper()
	if !errors.Is(err, ErrTooLarge) || size <= MaxMessage {
		t.Fatalf("write back %d bytes: %v", size, err)
	}
}
