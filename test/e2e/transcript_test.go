package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cproxy/cproxy/core/logging/logtest"
)

// patience bounds every wait. Nothing that works comes near it.
const patience = 30 * time.Second

// pollEvery is how often a condition is looked at that cannot be waited for.
const pollEvery = 10 * time.Millisecond

// transcript is what a process has written so far. Any goroutine may use it.
type transcript struct{ logtest.Output }

// mark is a position in the transcript: what was written before it is old.
func (t *transcript) mark() int { return len(t.String()) }

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
		text, changed := t.Look()
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
