package relay

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// child is this test binary once more, running one test in a process of its
// own until its standard input ends.
type child struct {
	tb    testing.TB
	lines chan string // that it says
	odd   []string    // of them, those that say so; for who has waited in leave
	leave func()      // ends it and waits for that
}

// startChild runs a test that finds the setting in its environment, and the
// files from descriptor 3 on.
func startChild(t *testing.T, test, setting string, files ...*os.File) *child {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), setting)
	cmd.ExtraFiles = files
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &child{tb: t, lines: make(chan string, 4096)}
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(p.lines)
		for in := bufio.NewScanner(stdout); in.Scan(); {
			if strings.HasPrefix(in.Text(), "unexpected") {
				p.odd = append(p.odd, in.Text())
			}
			p.lines <- in.Text()
		}
	})
	p.leave = sync.OnceFunc(func() {
		stdin.Close()
		reading.Wait()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s in its process: %v", test, err)
		}
	})
	t.Cleanup(p.leave)
	return p
}

// await gives what follows a word at the beginning of the next such line.
func (p *child) await(word string) string {
	p.tb.Helper()
	limit := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.tb.Fatalf("the process ended before it said %q", word)
			}
			if rest, ok := strings.CutPrefix(line, word); ok {
				return rest
			}
		case <-limit:
			p.tb.Fatalf("the process did not say %q", word)
		}
	}
}

// told counts what the process has said since, without waiting.
func (p *child) told(word string) (n int) {
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return n
			}
			if strings.HasPrefix(line, word) {
				n++
			}
		default:
			return n
		}
	}
}
