package relay

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// churn is a link that is never left alone.
type churn struct {
	*link
	t     *testing.T
	crowd *crowd
	wire  *wire
	rng   *rand.Rand

	mu      sync.Mutex
	doors   map[TunnelID]netip.AddrPort
	tunnels TunnelID // the last one opened
}

// churnBeat is the heartbeat, short so that vanished conns are found.
const churnBeat = 100 * time.Millisecond

func startChurn(t *testing.T) *churn {
	t.Helper()
	c := &churn{t: t, crowd: newCrowd(t), link: &link{}, doors: make(map[TunnelID]netip.AddrPort), tunnels: 100}
	c.crowd.rough = true
	c.rng = c.crowd.rng(0)
	set := DefaultSettings()
	set.Connect, set.HalfClose, set.Idle, set.Wait = 300*time.Millisecond, time.Second, 2*time.Second, time.Second
	o := linkOptions{loops: 2, settings: set, target: c.crowd.target, heartbeat: churnBeat, maxIdle: 8}
	c.client = startFar(t, o)
	c.server = startNear(t, o, func(ev Event) {
		if need, ok := ev.(Needed); ok {
			for range min(need.Waiting, 8) {
				c.client.dial(c.wire.address)
			}
		}
	})
	c.wire = startWire(t, c.server.proxy)
	c.server.passed() // from here on the reader's goroutine sees the wire
	c.crowd.engines = []*fixture{c.server.fixture, c.client.fixture}
	c.doors[linkTunnel] = c.server.public
	return c
}

// door gives where one of the tunnels listens, or did a moment ago.
func (c *churn) door(rng *rand.Rand) netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := rng.IntN(len(c.doors))
	for at := range maps.Values(c.doors) {
		if n--; n < 0 {
			return at
		}
	}
	return c.server.public
}

// disturb does one thing that an operator, a network or a host may do.
func (c *churn) disturb() {
	switch n := c.rng.IntN(100); {
	case n < 60:
		c.wire.kill(c.rng)
	case n < 65:
		c.closePool(c.rng.IntN(2) == 0)
		c.openPool()
	case n < 70: // the LocalServer is down for a moment
		c.client.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: nobody(c.t)})
		c.client.passed()
		c.setTarget()
	case n < 75:
		c.client.Submit(DropTarget{Pool: linkPool, Wire: linkWire})
		c.setTarget()
	case n < 80:
		c.unlisten()
	default:
		c.listen()
	}
}

func (c *churn) closePool(cut bool) {
	if n := c.rng.IntN(3); n < 2 {
		c.server.Submit(ClosePool{Pool: linkPool, Cut: cut})
		if n == 1 {
			return
		}
	}
	c.client.Submit(ClosePool{Pool: linkPool, Cut: cut})
}

func (c *churn) openPool() {
	c.server.Submit(OpenPool{Pool: linkPool, Side: ServerSide, MaxIdle: 8, Heartbeat: churnBeat})
	c.client.Submit(OpenPool{Pool: linkPool, Side: ClientSide, MaxIdle: 4, Heartbeat: churnBeat})
	c.setTarget()
}

func (c *churn) setTarget() {
	c.client.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: c.crowd.target})
}

// listen opens one more tunnel, of at most four.
func (c *churn) listen() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.doors) < 5 {
		c.tunnels++
		c.doors[c.tunnels] = c.server.listen(c.tunnels, ToPool{Pool: linkPool, Wire: linkWire})
	}
}

// unlisten closes the tunnels that were opened by listen, one or all.
func (c *churn) unlisten(all ...bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.doors {
		if id == linkTunnel {
			continue
		}
		c.server.Submit(Unlisten{Tunnel: id})
		awaitThat(c.server.fixture, func(ev Unlistened) bool { return ev.Tunnel == id })
		delete(c.doors, id)
		if len(all) == 0 {
			return
		}
	}
}

// round runs visitors for a while with something happening all the time, and
// then lets everything end. It gives how many visitors there were.
func (c *churn) round(first uint64, long time.Duration) uint64 {
	c.openPool()
	until := time.Now().Add(long)
	var visiting sync.WaitGroup
	numbers := make(chan uint64)
	for i := range 16 {
		rng := c.crowd.rng(first + uint64(i))
		visiting.Go(func() {
			for n := range numbers {
				at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, byte(200 + n>>32), byte(n >> 24), byte(n >> 16)}), uint16(n|1<<10))
				c.crowd.visit(n, at, c.door(rng))
			}
		})
	}
	n := first
	for ; time.Now().Before(until) && !c.t.Failed(); n++ {
		numbers <- n
		if c.rng.IntN(8) == 0 {
			c.disturb()
		}
	}
	close(numbers)
	visiting.Wait()
	c.calm()
	return n
}

// calm ends everything but the engines, and checks what the talks saw.
func (c *churn) calm() {
	c.unlisten(true)
	for _, f := range c.crowd.engines {
		f.Submit(ClosePool{Pool: linkPool, Cut: true})
		eventually(c.t, "the loops hold nothing", func() bool { return f.held() == 0 })
		f.wantEmpty(c.t)
	}
	eventually(c.t, "the LocalServer is done", func() bool { return c.crowd.serving.Load() == 0 })
	c.wire.each(func(cb *cable) bool { cb.reset(); return true })
	c.crowd.mu.Lock()
	defer c.crowd.mu.Unlock()
	for _, talk := range c.crowd.talks {
		if err := talk.check(); err != nil && !c.t.Failed() {
			c.t.Errorf("talk %d: %v\n%v", talk.number, err, talk)
		}
	}
	clear(c.crowd.talks)
	for _, f := range c.crowd.engines {
		f.reuse(c.t)
	}
}

// held counts the conns of all loops.
func (f *fixture) held() (n int) {
	for i := range f.loops {
		f.inLoop(i, func(l *loop) {
			for h := range l.poll.handlers() {
				switch h.(type) {
				case *rawConn, *proxyConn:
					n++
				}
			}
		})
	}
	return n
}

// level is what the process holds.
type level struct {
	descriptors, pipes, goroutines int
	heap, resident                 uint64 // bytes
}

func measure(tb testing.TB) level {
	tb.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	v := level{descriptors: descriptors(tb), pipes: pipesOpen(tb), goroutines: runtime.NumGoroutine(), heap: m.HeapAlloc}
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		tb.Fatal(err)
	}
	pages, _ := strconv.ParseUint(strings.Fields(string(b))[1], 10, 64)
	v.resident = pages * uint64(os.Getpagesize())
	return v
}

// Visitors, LocalServers, ProxyConns, pools and listeners come and go and are
// killed at random for a while: what the process holds is then what it held.
func TestChurn(t *testing.T) {
	rounds, long := 3, 1200*time.Millisecond
	if soaking() {
		rounds, long = 60, 10*time.Second
	}
	c := startChurn(t)
	c.calm()
	began := measure(t)
	n := c.round(1, long)
	warm := measure(t)
	for range rounds - 1 {
		n = c.round(n, long)
	}
	eventually(t, "descriptors, pipes and goroutines are as they were", func() bool {
		now := level{descriptors: descriptors(t), pipes: pipesOpen(t), goroutines: runtime.NumGoroutine()}
		return now.descriptors <= began.descriptors && now.pipes <= began.pipes && now.goroutines <= began.goroutines
	})
	ended := measure(t)
	t.Logf("%d visitors; at first %+v, warm %+v, at last %+v", n-1, began, warm, ended)
	if ended.heap > 2*warm.heap+16<<20 {
		t.Errorf("%d bytes of heap, %d after the first round", ended.heap, warm.heap)
	}
	if ended.resident > 2*warm.resident+64<<20 {
		t.Errorf("%d bytes resident, %d after the first round", ended.resident, warm.resident)
	}
	var s, f TunnelStats
	s, f = c.server.stats(linkTunnel), c.client.stats(linkTunnel)
	if s.Opened != s.Ended || f.Opened != f.Ended {
		t.Errorf("streams that never ended: %+v, %+v", s, f)
	}
}
