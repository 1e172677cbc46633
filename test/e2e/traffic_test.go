package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// echoWorld is a world with one tunnel, "web", to an echo.
func echoWorld(t *testing.T, s setup) *world {
	t.Helper()
	s.tunnels = []tunnel{{name: "web", local: serve(t, "tcp", "127.0.0.1:0", echo).address}}
	return newWorld(t, s)
}

// heldWorld is a world with one tunnel, "web", whose LocalConns the test has.
func heldWorld(t *testing.T, s setup) (*world, <-chan stream) {
	t.Helper()
	local, conns := manual(t, "127.0.0.1:0")
	s.tunnels = []tunnel{{name: "web", local: local.address}}
	return newWorld(t, s), conns
}

func TestManyVisitsInARow(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	for i := range 200 {
		wantRoundTrip(t, w.web(), strings.Repeat(fmt.Sprintf("visit %d ", i), i))
	}
	if c := w.take(w.client); c.proxy > 20 {
		t.Errorf("%v after visits one by one: ProxyConns are not used again", c)
	}
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	t.Run("visitor first", func(t *testing.T) {
		visitor := visit(t, w.web())
		if _, err := io.WriteString(visitor, "question"); err != nil {
			t.Fatal(err)
		}
		if err := visitor.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		local := next(t, conns)
		hear(t, local, "question")
		wantEnd(t, "the local service", local)
		// The other direction is open as long as the service likes.
		for range 3 {
			if _, err := io.WriteString(local, "answer"); err != nil {
				t.Fatal(err)
			}
			hear(t, visitor, "answer")
		}
		if err := local.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, "the visitor", visitor)
	})
	t.Run("service first", func(t *testing.T) {
		visitor := visit(t, w.web())
		local := next(t, conns)
		if _, err := io.WriteString(local, "220 hello"); err != nil {
			t.Fatal(err)
		}
		if err := local.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		hear(t, visitor, "220 hello")
		wantEnd(t, "the visitor", visitor)
		for range 3 {
			if _, err := io.WriteString(visitor, "more"); err != nil {
				t.Fatal(err)
			}
			hear(t, local, "more")
		}
		if err := visitor.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, "the local service", local)
	})
	t.Run("without a byte", func(t *testing.T) {
		visitor := visit(t, w.web())
		if err := visitor.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		local := next(t, conns)
		wantEnd(t, "the local service", local)
		if err := local.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		wantEnd(t, "the visitor", visitor)
	})
}

func TestBulkBothWays(t *testing.T) {
	t.Parallel()
	const size = 100 << 20
	w, conns := heldWorld(t, setup{})
	visitor := visit(t, w.web())
	local := next(t, conns)
	var tasks sync.WaitGroup
	errs := make([]error, 4)
	send := func(i int, to stream, seed uint64) {
		tasks.Go(func() {
			_, err := io.Copy(to, io.LimitReader(noise(seed), size))
			errs[i] = errors.Join(err, to.CloseWrite())
		})
	}
	receive := func(i int, from net.Conn, seed uint64) {
		tasks.Go(func() {
			want, err := digest(noise(seed), size)
			if err != nil {
				errs[i] = err
				return
			}
			got, err := digest(from, size)
			if err == nil && got != want {
				err = errors.New("the bytes that came are not those that were sent")
			}
			errs[i] = err
		})
	}
	send(0, visitor, 1)
	send(1, local, 2)
	receive(2, local, 1)
	receive(3, visitor, 2)
	tasks.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the visitor", visitor)
	wantEnd(t, "the local service", local)
}

// All streams are open at the same time, and each gets its own bytes back.
func TestThousandStreams(t *testing.T) {
	t.Parallel()
	const streams, size = 1000, 32 << 10
	w := echoWorld(t, setup{})
	address := w.web()
	var begun, tasks sync.WaitGroup
	begun.Add(streams)
	errs := make([]error, streams)
	for i := range streams {
		tasks.Go(func() {
			var once sync.Once
			arrive := func() { once.Do(begun.Done) }
			defer arrive() // a failure must not hold up the others
			errs[i] = converse(address, i, size, func() {
				arrive()
				begun.Wait()
			})
		})
	}
	tasks.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// converse sends its own name, waits for all the others, and then compares
// bytes that nobody else sends.
func converse(address string, i, size int, meet func()) error {
	c, err := dial(address)
	if err != nil {
		return err
	}
	defer c.Close()
	name := fmt.Sprintf("stream %05d", i)
	if _, err := io.WriteString(c, name); err != nil {
		return err
	}
	got := make([]byte, len(name))
	if _, err := io.ReadFull(c, got); err != nil {
		return fmt.Errorf("%s: first answer: %w", name, err)
	}
	if string(got) != name {
		return fmt.Errorf("%s: got %q", name, got)
	}
	meet()
	want, err := digest(noise(uint64(i)), int64(size))
	if err != nil {
		return err
	}
	var sending sync.WaitGroup
	sending.Go(func() {
		_, err = io.Copy(c, io.LimitReader(noise(uint64(i)), int64(size)))
		err = errors.Join(err, c.CloseWrite())
	})
	sum, readErr := digest(c, int64(size))
	sending.Wait()
	if err := errors.Join(err, readErr); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if sum != want {
		return fmt.Errorf("%s: got the bytes of another", name)
	}
	if _, err := io.ReadFull(c, got[:1]); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w after the last byte", name, err)
	}
	return nil
}

// A receiver that stalls holds up its sender and nobody else, loses nothing,
// and is not taken for dead.
func TestStalledReceiver(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	for _, direction := range []string{"visitor stalls", "service stalls"} {
		t.Run(direction, func(t *testing.T) {
			visitor := visit(t, w.web())
			from, to := next(t, conns), visitor
			if direction == "service stalls" {
				from, to = to, from
			}
			stall(t, w, conns, from, to)
		})
	}
}

// stall moves more than all buffers between the two ends can hold.
func stall(t *testing.T, w *world, conns <-chan stream, from, to stream) {
	t.Helper()
	const size = 160 << 20
	var sent atomic.Int64
	result := make(chan error, 1)
	go func() {
		_, err := io.Copy(from, io.TeeReader(io.LimitReader(noise(7), size), counter{&sent}))
		result <- errors.Join(err, from.CloseWrite())
	}()
	blocked(t, &sent)
	if n := sent.Load(); n >= size {
		t.Fatalf("all %d bytes were taken although nobody reads", n)
	}
	other := visit(t, w.web())
	service := next(t, conns)
	for range 10 { // a stream beside it is served
		if _, err := io.WriteString(other, "ping"); err != nil {
			t.Fatal(err)
		}
		hear(t, service, "ping")
	}
	other.Close()
	service.Close()
	want, err := digest(noise(7), size)
	if err != nil {
		t.Fatal(err)
	}
	got, err := digest(to, size)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatal("the bytes that came are not those that were sent")
	}
	wantEnd(t, "the receiver", to)
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if err := to.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, "the sender", from)
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// blocked waits until a counter has stopped for a while.
func blocked(t *testing.T, n *atomic.Int64) {
	t.Helper()
	last, still := int64(-1), 0
	eventually(t, "the sender blocks", func() error {
		if now := n.Load(); now == last && now > 0 {
			still++
		} else {
			last, still = now, 0
		}
		if still*int(pollEvery/time.Millisecond) < 1000 {
			return errors.New("bytes still move")
		}
		return nil
	})
}

// The frames of a ProxyConn hold at most 16 KiB back while the client dials;
// what a visitor sends at once has to arrive whole.
func TestEarlyBytes(t *testing.T) {
	t.Parallel()
	w, conns := heldWorld(t, setup{})
	const size = 1 << 20
	for range 5 {
		visitor := visit(t, w.web())
		go func() {
			_, _ = io.Copy(visitor, io.LimitReader(noise(3), size)) // the digest tells
			_ = visitor.CloseWrite()
		}()
		local := next(t, conns)
		want, _ := digest(noise(3), size)
		if got, err := digest(local, size); err != nil || got != want {
			t.Fatalf("got other bytes than sent, or %v", err)
		}
		wantEnd(t, "the local service", local)
		local.Close()
		wantEnd(t, "the visitor", visitor)
	}
}
