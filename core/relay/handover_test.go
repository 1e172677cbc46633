package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// relays is a link whose engines are handed over again and again under the
// streams of a test.
type relays struct {
	*link
	needs chan int // conns that the server asked for

	mu   sync.Mutex
	next chan struct{} // closed by the next handing over
	done int           // of those
	kept map[string]int
	over bool // there are no more
}

func newRelays() *relays {
	return &relays{needs: make(chan int, 1<<16), next: make(chan struct{}), kept: make(map[string]int)}
}

func (r *relays) start(t *testing.T, o linkOptions) {
	t.Helper()
	r.link = &link{client: startFar(t, o)}
	r.server = startNear(t, o, func(ev Event) {
		if need, ok := ev.(Needed); ok {
			r.needs <- need.Waiting
		}
	})
	r.public = r.server.public
	r.open(o.conns)
}

// handOver replaces the server's engine, the client's or both by ones with some
// number of loops, and has conns dialled that are needed.
func (r *relays) handOver(rng *rand.Rand) {
	which := 1 + rng.IntN(3)
	for i, f := range []**fixture{&r.server.fixture, &r.client.fixture} {
		if which>>i&1 == 1 {
			s := (*f).freeze()
			r.tally(s)
			s.each(func(d Descriptor) { // so that bytes wait in the engine, not only in the kernel
				_ = unix.SetsockoptInt(int(d), unix.SOL_SOCKET, unix.SO_SNDBUF, 32<<10)
			})
			*f = (*f).heir(1 + rng.IntN(3))
			(*f).Submit(Adopt{s})
		}
	}
	for range rng.IntN(3) {
		r.server.passed()
		r.client.passed()
	}
	for {
		select {
		case n := <-r.needs:
			for range n {
				r.client.dial(r.server.proxy)
			}
			continue
		default:
		}
		break
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done++
	close(r.next)
	r.next = make(chan struct{})
}

// tally counts what was handed over.
func (r *relays) tally(s *State) {
	count := func(what string, is bool) {
		if is {
			r.kept[what]++
		}
	}
	for _, c := range s.Conns {
		count("idle", c.Idle)
		count("awaiting READY", c.Opening != nil)
		count("settling", !c.Idle && c.Opening == nil)
	}
	for _, c := range s.Streams {
		count("streams", true)
		count("dialling", c.Front.Dial != nil)
		count("half closed", c.Front.EndRead != c.Front.FinSent)
		count("with bytes held", c.Front.Held != nil || c.Conn.Held != nil)
		count("with a pipe", c.Front.Pipe != nil || c.Conn.Pipe != nil)
		count("with input held", c.Conn.In.Held != nil)
		count("within a frame", c.Conn.In.Need > 0)
	}
	r.kept["waiting"] += len(s.Waiting)
}

// finish lets go who waits for a handing over.
func (r *relays) finish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	close(r.next)
}

// handedOver returns at the end of the next handing over.
func (r *relays) handedOver() {
	r.mu.Lock()
	next := r.next
	r.mu.Unlock()
	<-next
}

// deal is what both ends of one stream do, drawn from its number.
type deal struct {
	number   uint64
	up, down int64 // payload bytes behind the number
	cut      bool  // reset by the visitor once all but its FIN is sent
}

func talkOf(number uint64) deal {
	rng := rand.New(rand.NewPCG(number, 11))
	size := func() int64 { return rng.Int64N(1 << (1 + rng.IntN(21))) }
	return deal{number: number, up: size(), down: 1 + size(), cut: rng.IntN(5) == 0}
}

// write sends a content in pieces and now and then stops until an engine has
// been handed over.
func (r *relays) write(c net.Conn, number uint64, n int64) error {
	rng := rand.New(rand.NewPCG(number, 12))
	from := content(number)
	for n > 0 {
		piece := min(n, 1+rng.Int64N(1<<(1+rng.IntN(18))))
		if _, err := io.CopyN(struct{ io.Writer }{c}, from, piece); err != nil {
			return fmt.Errorf("write content %d, %d to go: %w", number, n, err)
		}
		if n -= piece; rng.IntN(8) == 0 {
			r.handedOver()
		}
	}
	return nil
}

// slow is a conn that now and then is not read until an engine has been handed
// over, so that bytes wait everywhere on the way.
type slow struct {
	net.Conn
	*relays
	rng  *rand.Rand
	left int // bytes until it stalls
}

func (r *relays) slow(c net.Conn, number uint64) *slow {
	rng := rand.New(rand.NewPCG(number, 13))
	_ = c.(*net.TCPConn).SetReadBuffer(16 << 10)
	return &slow{Conn: c, relays: r, rng: rng, left: rng.IntN(1 << 21)}
}

func (s *slow) Read(b []byte) (int, error) {
	if s.left <= 0 {
		s.handedOver()
		s.left = s.rng.IntN(1 << 21)
	}
	n, err := s.Conn.Read(b[:1+s.rng.IntN(len(b))])
	s.left -= n
	return n, err
}

// serve is the LocalServer's end of a stream.
func (r *relays) serve(c net.Conn) error {
	defer c.Close()
	var name [8]byte
	if _, err := io.ReadFull(c, name[:]); err != nil {
		return fmt.Errorf("read name: %w", err)
	}
	k := talkOf(binary.BigEndian.Uint64(name[:]))
	var writing sync.WaitGroup
	var failed error
	writing.Go(func() {
		failed = r.write(c, ^k.number, k.down)
		if failed == nil {
			failed = c.(*net.TCPConn).CloseWrite()
		}
	})
	err := wantContent(r.slow(c, k.number), k.number, k.up)
	writing.Wait()
	if k.cut {
		if err == nil && failed == nil {
			return fmt.Errorf("stream %d was cut and ended in order", k.number)
		}
		return nil
	}
	return errors.Join(err, failed)
}

// visit is the visitor's end of a stream.
func (r *relays) visit(c *net.TCPConn, k deal) error {
	if err := binary.Write(c, binary.BigEndian, k.number); err != nil {
		return err
	}
	if k.cut {
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // it has begun
			return err
		}
		err := r.write(c, k.number, k.up)
		_ = c.SetLinger(0)
		drop(c)
		return err
	}
	var writing sync.WaitGroup
	var failed error
	writing.Go(func() {
		failed = r.write(c, k.number, k.up)
		if failed == nil {
			failed = c.CloseWrite()
		}
	})
	err := wantContent(r.slow(c, ^k.number), ^k.number, k.down)
	writing.Wait()
	return errors.Join(err, failed)
}

// dialFrom connects from an address that no other stream of the test has had.
func (r *relays) dialFrom(t *testing.T, number int) *net.TCPConn {
	t.Helper()
	from := &net.TCPAddr{IP: net.IPv4(127, 1, byte(number>>8), byte(number))}
	c, err := net.DialTCP("tcp", from, net.TCPAddrFromAddrPort(r.public))
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { drop(c) })
	return c
}

// Streams with random traffic do not notice how often, and when, either engine
// or both are handed over to others. RELAY_SOAK=1 makes it many streams.
func TestHandOverUnderTraffic(t *testing.T) {
	const beside = 30
	streams := 100
	if os.Getenv("RELAY_SOAK") != "" {
		streams = 5000
	}
	seed := seedOf(t)
	localServer(t, nil) // the runtime opens descriptors of its own with the first one
	before := descriptors(t)
	t.Run("traffic", func(t *testing.T) {
		rng := rand.New(rand.NewPCG(seed, 10))
		r := newRelays()
		var ends atomic.Int64 // of streams that are done
		s := localServer(t, func(c net.Conn) {
			if err := r.serve(c); err != nil {
				t.Errorf("LocalServer: %v", err)
			}
			ends.Add(1)
		})
		r.start(t, linkOptions{loops: 2, conns: beside / 2, target: s.target})
		deals := make(map[string]deal, streams)
		var visiting sync.WaitGroup
		room := make(chan struct{}, beside)
		for begun := 0; ends.Load() < int64(2*streams) && !t.Failed(); r.handOver(rng) {
			for ; begun < streams && len(room) < cap(room); begun++ {
				room <- struct{}{}
				c, k := r.dialFrom(t, begun), talkOf(seed+uint64(begun))
				deals[c.LocalAddr().String()] = k
				visiting.Go(func() {
					if err := r.visit(c, k); err != nil {
						t.Errorf("visitor: %v", err)
					}
					<-room
					ends.Add(1)
				})
			}
		}
		r.finish()
		visiting.Wait()
		t.Logf("handed over %d times: %v", r.done, r.kept)
		for _, f := range []*fixture{r.server.fixture, r.client.fixture} {
			f.wantTalks(t, deals)
		}
	})
	eventually(t, "descriptors are back", func() bool { return descriptors(t) <= before })
}

// wantTalks wants every stream to have ended once, with its bytes, and the
// totals to be theirs.
func (f *fixture) wantTalks(t *testing.T, deals map[string]deal) {
	t.Helper()
	var want TunnelStats
	seen := make(map[string]bool)
	for range deals {
		ev := await[StreamEnded](f)
		k, known := deals[ev.Source.String()]
		if !known || seen[ev.Source.String()] {
			t.Errorf("ended twice, or unknown: %+v", ev)
		}
		seen[ev.Source.String()] = true
		if !k.cut && (ev.Reason != Done || ev.Up != uint64(8+k.up) || ev.Down != uint64(k.down)) || k.cut && ev.Reason == Done {
			t.Errorf("%+v ended with %+v", k, ev)
		}
		want.Up += ev.Up
		want.Down += ev.Down
	}
	f.passed()
	want.Tunnel, want.Opened, want.Ended = linkTunnel, uint64(len(deals)), uint64(len(deals))
	if got := f.stats(linkTunnel); got != want {
		t.Errorf("totals %+v, want %+v", got, want)
	}
	if n := total[StreamEnded](f); n != len(deals) {
		t.Errorf("%d streams ended, want %d", n, len(deals))
	}
	if n := f.conns.Load(); n != 0 {
		t.Errorf("%d PublicConns still counted", n)
	}
}
