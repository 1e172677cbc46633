package e2e

import (
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
)

func TestLocalServerDown(t *testing.T) {
	t.Parallel()
	// An address on which nobody listens until the test does.
	at := nextAddress() + ":8080"
	w := newWorld(t, setup{tunnels: []tunnel{{name: "web", local: at}}})
	for range 3 {
		if err := wantRefused(w.web()); err != nil {
			t.Errorf("a visitor of a service that is down: %v", err)
		}
	}
	w.log(w.client, 0, `level=WARN msg="visitor turned away: check that the service runs.*tunnel=web address=`+at)
	if n := w.client.stderr.count(`msg="visitor turned away`); n != 1 {
		t.Errorf("%d lines about visitors turned away, want 1 in 30 s", n)
	}
	if c := w.take(w.client); c.proxy > 2 {
		t.Errorf("%v: a service that is down must not cost a ProxyConn for each visitor", c)
	}
	serve(t, "tcp", at, echo)
	wantRoundTrip(t, w.web(), "you are back")
}

func TestResets(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	tests := []struct {
		name  string
		begin func(t *testing.T, visitor, local stream)
	}{
		{"at once", func(*testing.T, stream, stream) {}},
		{"inside a stream", func(t *testing.T, visitor, local stream) {
			t.Helper()
			if _, err := io.WriteString(visitor, "question"); err != nil {
				t.Fatal(err)
			}
			hear(t, local, "question")
			if _, err := io.WriteString(local, "answer"); err != nil {
				t.Fatal(err)
			}
			hear(t, visitor, "answer")
		}},
		{"after the visitor's end", func(t *testing.T, visitor, local stream) {
			t.Helper()
			if err := visitor.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, "the local service", local)
		}},
		{"after the service's end", func(t *testing.T, visitor, local stream) {
			t.Helper()
			if err := local.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, "the visitor", visitor)
		}},
	}
	for _, tt := range tests {
		t.Run("service resets "+tt.name, func(t *testing.T) {
			visitor := visit(t, w.web())
			local := next(t, conns)
			tt.begin(t, visitor, local)
			if err := reset(local); err != nil {
				t.Fatal(err)
			}
			wantBroken(t, "the visitor", visitor)
		})
		t.Run("visitor resets "+tt.name, func(t *testing.T) {
			visitor := visit(t, w.web())
			local := next(t, conns)
			tt.begin(t, visitor, local)
			if err := reset(visitor); err != nil {
				t.Fatal(err)
			}
			wantBroken(t, "the local service", local)
		})
	}
	t.Run("nothing is left", func(t *testing.T) {
		eventually(t, "no stream is open", func() error { return errors.Join(w.leaks(w.client, 1), w.leaks(w.server, 1)) })
	})
}

// wantBroken is wantReset for an end that may have been read to its end already:
// then only writing shows the reset.
func wantBroken(t *testing.T, who string, c stream) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); errors.Is(err, syscall.ECONNRESET) {
		return
	}
	eventually(t, who+" sees a reset", func() error {
		_, err := io.WriteString(c, "x")
		if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
			return nil
		}
		return fmt.Errorf("writing gives %w", err)
	})
}

// Bytes that were sent before a reset are not followed by a clean end.
func TestResetBehindBytes(t *testing.T) {
	t.Parallel()
	const size = 8 << 20
	w, conns := heldWorld(t, setup{})
	visitor := visit(t, w.web())
	local := next(t, conns)
	// The visitor does not read, so the service blocks with bytes under way.
	if n, err := io.Copy(local, io.LimitReader(noise(9), size)); err != nil || n != size {
		t.Fatalf("sent %d bytes: %v", n, err)
	}
	if err := reset(local); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, visitor); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the visitor saw %v after %d bytes, want a connection reset", err, n)
	}
	wantRoundTripHeld(t, w, conns)
}

// wantRoundTripHeld shows that a held world still serves.
func wantRoundTripHeld(t *testing.T, w *world, conns <-chan stream) {
	t.Helper()
	visitor := visit(t, w.web())
	if _, err := io.WriteString(visitor, "hello"); err != nil {
		t.Fatal(err)
	}
	local := next(t, conns)
	hear(t, local, "hello")
	if err := visitor.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the local service", local)
	local.Close()
	wantEnd(t, "the visitor", visitor)
}
