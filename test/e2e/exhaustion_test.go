package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// flood visits a tunnel many times at once and keeps what is served. Everybody
// has to get an answer, even if it is a reset.
func flood(t *testing.T, address string, visitors int) (served []net.Conn, refused int) {
	t.Helper()
	conns := make([]net.Conn, visitors)
	errs := make([]error, visitors)
	var tasks sync.WaitGroup
	for i := range visitors {
		tasks.Go(func() {
			c, err := dial(address)
			if err != nil {
				return // refused
			}
			t.Cleanup(func() { c.Close() })
			message := fmt.Sprintf("visitor %4d", i)
			if _, err := io.WriteString(c, message); err != nil {
				return
			}
			got := make([]byte, len(message))
			_, err = io.ReadFull(c, got)
			timeout, isNet := errors.AsType[net.Error](err)
			switch {
			case err == nil && string(got) == message:
				conns[i] = c
			case err == nil:
				errs[i] = fmt.Errorf("visitor %d got %q", i, got)
			case errors.Is(err, io.EOF):
				errs[i] = fmt.Errorf("visitor %d saw a clean end", i)
			case isNet && timeout.Timeout():
				errs[i] = fmt.Errorf("visitor %d got no answer", i)
			}
		})
	}
	tasks.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for _, c := range conns {
		if c != nil {
			served = append(served, c)
		}
	}
	return served, visitors - len(served)
}

// calm checks that a process does not spin: in a second of waiting it must not
// use most of one processor. A process that spins uses all of it.
func calm(t *testing.T, p *process) {
	t.Helper()
	const window = time.Second
	before, err := p.ticks()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	eventually(t, "time passes", func() error {
		if time.Since(begin) < window {
			return errors.New("not yet")
		}
		return nil
	})
	after, err := p.ticks()
	if err != nil {
		t.Fatal(err)
	}
	used := time.Duration(after-before) * 10 * time.Millisecond
	if passed := time.Since(begin); used > passed*3/4 {
		t.Errorf("%s used %v of processor time in %v with nothing to do", p.name, used, passed)
	}
}

// overrun makes a world in which a daemon has so few files, lets one visitor in
// and then more at once than can all be served.
func overrun(t *testing.T, s setup, files int) (w *world, first net.Conn, served []net.Conn) {
	t.Helper()
	s.server = "[timeouts]\nconnect = \"2s\""
	w = echoWorld(t, s)
	first = visit(t, w.web())
	say(t, first, "before")
	served, refused := flood(t, w.web(), 2*files)
	if refused == 0 {
		t.Fatalf("all %d visitors were served with %d descriptors", len(served), files)
	}
	return w, first, served
}

func TestServerOutOfDescriptors(t *testing.T) {
	t.Parallel()
	for _, files := range []int{64, 256} {
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			t.Parallel()
			w, first, served := overrun(t, setup{serverFiles: files}, files)
			// Who is inside is served on, and so is nobody else: with no
			// descriptor left, connections wait at every port.
			release := hold(t, w, files)
			for _, c := range append(served, first) {
				say(t, c, "still here")
			}
			w.log(w.server, 0, `level=ERROR msg="connections are refused: raise the limit on open files`)
			calm(t, w.server)
			if n := w.server.stderr.count(`raise the limit on open files`); n > 10 {
				t.Errorf("%d lines about the limit, want a few", n)
			}
			if n := w.client.stderr.count(`msg="lost the connection`); n > 0 {
				t.Error("the control connection was lost for want of descriptors")
			}
			release()
			for _, c := range served {
				c.Close()
			}
			recovers(t, w)
			say(t, first, "and on")
		})
	}
}

// hold makes connections to every port that are never used, more than the
// process has descriptors for.
func hold(t *testing.T, w *world, n int) (release func()) {
	t.Helper()
	var held []net.Conn
	for range n {
		for _, address := range []string{w.ctl(), w.proxy(), w.web()} {
			if c, err := net.Dial("tcp", address); err == nil {
				held = append(held, c)
			}
		}
	}
	release = func() {
		for _, c := range held {
			c.Close()
		}
	}
	t.Cleanup(release)
	return release
}

// recovers waits until visitors are served as if nothing had been.
func recovers(t *testing.T, w *world) {
	t.Helper()
	eventually(t, "visitors are served again", func() error {
		for range 3 {
			if err := roundTrip(w.web(), "after the load"); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestClientOutOfDescriptors(t *testing.T) {
	t.Parallel()
	const files = 64
	w, first, served := overrun(t, setup{clientFiles: files}, files)
	w.log(w.client, 0, `level=WARN msg="(visitor turned away: raise the limit on open files|cannot open a proxy connection")`)
	for _, c := range append(served, first) {
		say(t, c, "still here")
	}
	calm(t, w.client)
	if n := w.client.stderr.count(`level=(WARN|ERROR)`); n > 10 {
		t.Errorf("%d warnings, want a few", n)
	}
	for _, c := range served {
		c.Close()
	}
	recovers(t, w)
	say(t, first, "and on")
}

// Visitors leave descriptors to their ProxyConns: of more than fit those that do
// are served, and the others are reset at once.
func TestVisitorsLeaveDescriptors(t *testing.T) {
	t.Parallel()
	const files, visitors, fit = 64, 60, 14
	w := echoWorld(t, setup{serverFiles: files, server: "loops = 2\n[timeouts]\nconnect = \"1m\""})
	for round := range 3 {
		served, _ := flood(t, w.web(), visitors)
		if len(served) < fit-2 || len(served) > fit {
			t.Errorf("round %d: %d of %d visitors were served with %d descriptors, want %d", round, len(served), visitors, files, fit)
		}
		for _, c := range served {
			c.Close()
		}
		recovers(t, w)
	}
	w.log(w.server, 0, `level=WARN msg="visitor refused" tunnel=web .*reason="connection limit" advice="the limit on open files allows 14 visitors .*LimitNOFILE`)
	if n := w.server.stderr.count(`level=ERROR`); n > 0 {
		t.Errorf("%d errors, want none: nothing was exhausted", n)
	}
}
