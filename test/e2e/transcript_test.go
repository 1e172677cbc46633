package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
)

// patience bounds every wait. Nothing that works comes near it.
const patience = 30 * time.Second

// pollEvery is how often a condition is looked at that cannot be waited for.
const pollEvery = 10 * time.Millisecond

// transcript is what a process has written so far. Any goroutine may use it.
type transcript struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{} // closed at the next write; nil while nobody waits
}

// Write appends to the transcript and never fails.
func (t *transcript) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text.Write(p)
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
	return len(p), nil
}

// String gives everything written so far.
func (t *transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.String()
}

// mark is a position in the transcript: what was written before it is old.
func (t *transcript) mark() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.text.Len()
}

func (t *transcript) snapshot() (string, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return t.text.String(), t.changed
}

// await waits until a line after the mark matches, and gives its submatches. It
// gives up when gone is closed and the text does not match then either.
func (t *transcript) await(mark int, pattern string, gone <-chan struct{}) ([]string, error) {
	re, err := regexp.Compile(`(?m)` + pattern)
	if err != nil {
		return nil, fmt.Errorf("compile pattern: %w", err)
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for ended := false; ; {
		text, changed := t.snapshot()
		if found := re.FindStringSubmatch(text[min(mark, len(text)):]); found != nil {
			return found, nil
		}
		if ended {
			return nil, fmt.Errorf("it ended without a line that matches %q", pattern)
		}
		select {
		case <-changed:
		case <-gone:
			ended = true
		case <-timeout.C:
			return nil, fmt.Errorf("no line matches %q", pattern)
		}
	}
}

// count tells how many lines match.
func (t *transcript) count(pattern string) int {
	return len(regexp.MustCompile(`(?m)`+pattern).FindAllStringIndex(t.String(), -1))
}

// tail gives the last lines.
func (t *transcript) tail(lines int) string {
	all := strings.SplitAfter(t.String(), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "")
}
