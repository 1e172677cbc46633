package e2e

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
)

// flow is a stream in the middle of a bulk transfer both ways.
type flow struct {
	visitor, local stream
	tasks          sync.WaitGroup
	results        [2]error // of reading and writing at the visitor, and at the service
}

// startFlow opens a stream and keeps it busy until it breaks.
func startFlow(t *testing.T, w *world, conns <-chan stream) *flow {
	t.Helper()
	f := &flow{visitor: visit(t, w.web())}
	f.local = next(t, conns)
	moving := make(chan struct{}, 2)
	for i, c := range []stream{f.visitor, f.local} {
		f.tasks.Go(func() {
			writing := make(chan error, 1)
			go func() {
				_, err := io.Copy(c, noise(uint64(i)))
				writing <- err
			}()
			_, err := io.CopyN(io.Discard, c, 1<<20)
			moving <- struct{}{}
			if err == nil {
				_, err = io.Copy(io.Discard, c)
			}
			// The kernel tells of a reset once: to whoever asks first.
			f.results[i] = errors.Join(err, <-writing)
		})
	}
	<-moving
	<-moving
	return f
}

// wantReset waits until both ends are broken.
func (f *flow) wantReset(t *testing.T) {
	t.Helper()
	f.tasks.Wait()
	for i, who := range []string{"the visitor", "the local service"} {
		if !errors.Is(f.results[i], syscall.ECONNRESET) {
			t.Errorf("%s saw %v in a busy stream, want a connection reset", who, f.results[i])
		}
	}
}

// quiet opens a stream that has said something and waits.
func quiet(t *testing.T, w *world, conns <-chan stream) (visitor, local stream) {
	t.Helper()
	visitor = visit(t, w.web())
	local = next(t, conns)
	if _, err := io.WriteString(visitor, "x"); err != nil {
		t.Fatal(err)
	}
	hear(t, local, "x")
	return visitor, local
}

func TestServerKilled(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	visitor, local := quiet(t, w, conns)
	busy := startFlow(t, w, conns)
	first := w.client.stderr.mark()
	w.server.kill()
	wantReset(t, "the visitor", visitor)
	wantReset(t, "the local service", local)
	busy.wantReset(t)
	w.log(w.client, first, `msg="lost the connection to the server; streams go on"`)
	if c, err := net.Dial("tcp", w.web()); err == nil {
		c.Close()
		t.Error("somebody listens on the public port of a server that is gone")
	}
	w.startServerAgain(first)
	wantRoundTripHeld(t, w, conns)
}

// startServerAgain starts a server that knows of nothing, and waits until the
// client has logged in, behind the mark of its log, and has its tunnel.
func (w *world) startServerAgain(mark int) {
	w.t.Helper()
	w.startServer()
	w.log(w.client, mark, `msg=connected .*resumed=false`)
	w.log(w.server, 0, `msg="tunnel open" tunnel=web`)
}

func TestClientKilled(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	visitor, local := quiet(t, w, conns)
	busy := startFlow(t, w, conns)
	address := w.web()
	w.client.kill()
	wantReset(t, "the visitor", visitor)
	wantReset(t, "the local service", local)
	busy.wantReset(t)
	w.log(w.server, 0, `msg="client lost; its streams and listeners stay"`)
	// The listener stays for the grace period: this visitor waits for the client.
	waiting := visit(t, address)
	if _, err := io.WriteString(waiting, "early"); err != nil {
		t.Fatal(err)
	}
	w.client = w.startClient("client again", "client.toml")
	if again := w.web(); again != address {
		t.Errorf("the tunnel came back at %s, want %s", again, address)
	}
	// It may have been refused with the pool of the client that is gone.
	if late := tryHeld(waiting, conns); late != nil && !errors.Is(late, syscall.ECONNRESET) {
		t.Errorf("a visitor who came while the client was gone saw %v, want service or a reset", late)
	}
	wantRoundTripHeld(t, w, conns)
}

// tryHeld lets the service answer a visitor who waits for it.
func tryHeld(visitor stream, conns <-chan stream) error {
	var reading sync.WaitGroup
	var broken error
	gone := make(chan struct{})
	reading.Go(func() {
		defer close(gone)
		_, broken = io.Copy(io.Discard, visitor)
	})
	select {
	case <-gone:
		return broken
	case local := <-conns:
		local.Close()
		visitor.Close()
		reading.Wait()
		return nil
	}
}

// A server that is killed again and again while visitors come leaves none of
// them with a clean end.
func TestServerKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	for range 3 {
		visitor, local := quiet(t, w, conns)
		mark := w.client.stderr.mark()
		w.server.kill()
		wantReset(t, "the visitor", visitor)
		wantReset(t, "the local service", local)
		w.startServerAgain(mark)
	}
	wantRoundTripHeld(t, w, conns)
}

// The client has to outlive a server that is not there when it starts.
func TestClientBeforeServer(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	w.server.kill()
	second := w.start("early client", 0, "cproxy-client", "run", "--config", w.path("client.toml"))
	w.log(second, 0, `msg="cannot connect to the server" .*check that cproxy-server runs there`)
	w.signal(w.client, syscall.SIGTERM)
	w.wantExit(w.client, 0)
	w.startServer()
	w.client = second
	w.log(second, 0, `msg=connected `)
	second.files = w.rested(second)
	wantRoundTrip(t, w.web(), "hello")
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	w.signal(w.client, syscall.SIGINT)
	w.wantExit(w.client, 0)
	w.signal(w.server, syscall.SIGINT)
	w.wantExit(w.server, 0)
}
