// Package logtest keeps what a program under test writes, so that a test can
// wait for it. No program imports it.
package logtest

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience bounds every wait: reached only when a test fails.
const patience = 30 * time.Second

// Output is a log, or a standard stream, as an io.Writer that keeps all it is
// given. The zero value is empty and ready. Any goroutine may use it; it must
// not be copied.
type Output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	written chan struct{} // closed by the next Write; nil when nobody waits
}

// Write appends p and never fails.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.written != nil {
		close(o.written)
		o.written = nil
	}
	return o.text.Write(p)
}

// String returns all that was written so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Logger returns a logger of every level that writes to o.
func (o *Output) Logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(o, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// Await blocks until what was written has text in it. It ends the test when
// that does not come about.
func (o *Output) Await(tb testing.TB, text string) {
	tb.Helper()
	timeout := time.After(patience)
	for {
		all, written := o.Look()
		if strings.Contains(all, text) {
			return
		}
		select {
		case <-written:
		case <-timeout:
			tb.Fatalf("nobody wrote %q:\n%s", text, all)
		}
	}
}

// Look returns what was written so far, and a channel that is closed once there
// is more.
func (o *Output) Look() (string, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.written == nil {
		o.written = make(chan struct{})
	}
	return o.text.String(), o.written
}
