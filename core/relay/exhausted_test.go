package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The process that runs out of descriptors is this test binary once more, with
// the address of the LocalServer in this variable.
const exhaustedEnv = "RELAY_TEST_EXHAUSTED"

// exhaustedRoom is how many descriptors it has for sockets, more or less.
const exhaustedRoom = 20

// TestExhaustedProcess is what that process runs: a forwarder and a tunnel whose
// visitors wait in vain, until its standard input ends. It says where they
// listen and when it is out of descriptors.
func TestExhaustedProcess(t *testing.T) {
	to := os.Getenv(exhaustedEnv)
	if to == "" {
		t.Skip("runs in a process of its own, see TestOutOfDescriptors")
	}
	set := DefaultSettings()
	set.Wait = time.Hour
	f := startEngine(t, 2, set, func(ev Event) {
		if ev, ok := ev.(Exhausted); ok {
			fmt.Println("exhausted", errors.Is(ev.Err, unix.EMFILE))
		}
	})
	f.Submit(OpenPool{Pool: linkPool, Side: ServerSide, MaxIdle: -1})
	waiting := f.listen(1, ToPool{Pool: linkPool})
	forward := f.listen(2, ToTarget{Target: Target{Addresses: []Address{{TCP: netip.MustParseAddrPort(to)}}}})
	limit := unix.Rlimit{Cur: uint64(descriptors(t) + exhaustedRoom), Max: 4096}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	fmt.Println("waiting", waiting)
	fmt.Println("forward", forward)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// exhausted is that process seen from outside.
type exhausted struct {
	*child
	waiting netip.AddrPort
	forward netip.AddrPort
}

func startExhausted(t *testing.T, target Target) *exhausted {
	t.Helper()
	p := startChild(t, "TestExhaustedProcess", exhaustedEnv+"="+target.Addresses[0].TCP.String())
	return &exhausted{p, netip.MustParseAddrPort(p.await("waiting ")), netip.MustParseAddrPort(p.await("forward "))}
}

// tryEcho tells whether a visitor of the forwarder is served; if not it must
// have been reset.
func (x *exhausted) tryEcho() bool {
	x.tb.Helper()
	c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(x.forward))
	if err == nil {
		defer drop(c)
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err = io.WriteString(c, "hello"); err == nil {
			_, err = io.ReadFull(c, make([]byte, 5))
		}
	}
	if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		x.tb.Fatalf("neither served nor reset: %v", err)
	}
	return err == nil
}

// Out of descriptors: visitors are reset, it is told, nothing spins, those
// inside live on, and all is well again when descriptors are free.
func TestOutOfDescriptors(t *testing.T) {
	s := localServer(t, echo)
	x := startExhausted(t, s.target)
	began := time.Now()
	inside := dialTCP(t, x.forward)
	say(t, inside, "hello")
	hear(t, inside, "hello")

	resets := make(chan error, 3*exhaustedRoom)
	var reading sync.WaitGroup
	var visitors []*net.TCPConn
	for range cap(resets) {
		c, err := net.DialTCP("tcp", nil, net.TCPAddrFromAddrPort(x.waiting))
		if err != nil {
			resets <- err
			continue
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		visitors = append(visitors, c)
		reading.Go(func() {
			_, err := c.Read(make([]byte, 1))
			resets <- err
		})
	}
	for range exhaustedRoom {
		if err := <-resets; !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("a visitor too many saw %v, want a reset", err)
		}
	}
	if got := x.await("exhausted "); got != "true" {
		t.Fatal("Exhausted does not carry EMFILE")
	}
	say(t, inside, "still here")
	hear(t, inside, "still here")

	for _, c := range visitors {
		reset(t, c)
	}
	reading.Wait()
	eventually(t, "served again", x.tryEcho)
	// Every report comes with a pause of its listener in its loop.
	if n, most := 1+x.told("exhausted"), 4*(int(time.Since(began)/exhaustedPause)+1); n > most {
		t.Fatalf("told %d times, %d are possible with a pause after each", n, most)
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
