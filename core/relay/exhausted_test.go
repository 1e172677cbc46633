package relay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The process that runs out of descriptors is this test binary once more, with
// the address of the LocalServer in this variable.
const exhaustedEnv = "RELAY_TEST_EXHAUSTED"

// TestExhaustedProcess is what that process runs: a forwarder that says where
// it listens and then how it fares, until its standard input ends.
func TestExhaustedProcess(t *testing.T) {
	to := os.Getenv(exhaustedEnv)
	if to == "" {
		t.Skip("runs in a process of its own, see TestOutOfDescriptors")
	}
	f := startEngine(t, 2, DefaultSettings(), func(ev Event) {
		switch ev := ev.(type) {
		case Exhausted:
			fmt.Println("exhausted", errors.Is(ev.Err, unix.EMFILE))
		case StreamEnded:
			fmt.Println("ended", ev.Reason)
		}
	})
	at := f.listen(1, ToTarget{Target: Target{Addresses: []Address{{TCP: netip.MustParseAddrPort(to)}}}})
	limit := unix.Rlimit{Cur: uint64(descriptors(t) + 20), Max: 4096}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	fmt.Println("listening", at)
	_, _ = io.Copy(io.Discard, os.Stdin)
	f.stop()
	fmt.Println("refused", f.stats(1).Refused)
}

// exhausted is that process seen from outside.
type exhausted struct {
	tb     testing.TB
	lines  chan string
	public netip.AddrPort
}

func startExhausted(t *testing.T, target Target) *exhausted {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestExhaustedProcess$", "-test.v")
	cmd.Env = append(os.Environ(), exhaustedEnv+"="+target.Addresses[0].TCP.String())
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	x := &exhausted{tb: t, lines: make(chan string, 4096)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(x.lines)
		for in := bufio.NewScanner(stdout); in.Scan(); {
			x.lines <- in.Text()
		}
	}()
	t.Cleanup(func() {
		stdin.Close()
		<-done
		if err := cmd.Wait(); err != nil {
			t.Errorf("the exhausted process: %v", err)
		}
	})
	x.public = netip.MustParseAddrPort(x.await("listening "))
	return x
}

// await gives what follows a word at the beginning of the next such line.
func (x *exhausted) await(word string) string {
	x.tb.Helper()
	limit := time.After(patience)
	for {
		select {
		case line, ok := <-x.lines:
			if !ok {
				x.tb.Fatalf("the process ended before it said %q", word)
			}
			if rest, ok := strings.CutPrefix(line, word); ok {
				return rest
			}
		case <-limit:
			x.tb.Fatalf("the process did not say %q", word)
		}
	}
}

// Out of descriptors: visitors are reset, it is told, nothing spins, and all
// is well again when descriptors are free.
func TestOutOfDescriptors(t *testing.T) {
	s := localServer(t, echo)
	x := startExhausted(t, s.target)
	began := time.Now()
	var served []*net.TCPConn
	refused := 0
	for refused < 40 {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(x.public))
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, err = io.WriteString(c, "hello")
		}
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
		switch {
		case err == nil:
			served = append(served, c)
		case errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE):
			refused++
			if c != nil {
				c.Close()
			}
		default:
			t.Fatalf("neither served nor reset: %v", err)
		}
	}
	if len(served) == 0 {
		t.Fatal("nobody was served")
	}
	if got := x.await("exhausted "); got != "true" {
		t.Fatal("Exhausted does not carry EMFILE")
	}
	for _, c := range served { // those inside live on
		say(t, c, "still here")
		hear(t, c, "still here")
	}
	for _, c := range served {
		c.Close()
	}
	for range served {
		x.await("ended ")
	}
	for { // a visitor that is served shows that it recovered
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(x.public))
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = io.WriteString(c, "again")
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
		c.Close()
		if err == nil {
			break
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("neither served nor reset")
		}
	}
	// Every report comes with a pause of its listener in its loop.
	told := 0
	for more := true; more; {
		select {
		case line := <-x.lines:
			if strings.HasPrefix(line, "exhausted") {
				told++
			}
		default:
			more = false
		}
	}
	if most := 2*int(time.Since(began)/exhaustedPause) + 4; told > most {
		t.Fatalf("told %d times, %d are possible with a pause after each", told, most)
	}
}

// Loops that cannot be opened leave nothing behind, and say why.
func TestRunOutOfDescriptors(t *testing.T) {
	if os.Getenv(exhaustedEnv) == "" {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestRunOutOfDescriptors$")
		cmd.Env = append(os.Environ(), exhaustedEnv+"=run")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	before := descriptors(t)
	e := New(Options{Loops: 8, Settings: DefaultSettings()})
	e.Submit(Listen{Tunnel: 1, Binds: []netip.Addr{loopback}, Ports: []uint16{0}, Route: ToPreface{}})
	was := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: uint64(before + 10), Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); !errors.Is(err, unix.EMFILE) {
		t.Fatalf("ran with %v", err)
	}
	if batch, open := <-e.Events(); !open || len(batch) != 1 || batch[0].(Listening).Err != nil {
		t.Fatalf("told %v", batch)
	}
	if _, open := <-e.Events(); open {
		t.Fatal("the events go on")
	}
	if after := descriptors(t); after != before {
		t.Fatalf("%d descriptors, %d before", after, before)
	}
}
