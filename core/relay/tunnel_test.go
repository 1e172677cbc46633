package relay

import (
	"net"
	"testing"
)

// known gives how many tunnels and pools the engine remembers.
func (e *Engine) known() (tunnels, pools, leaving int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.tunnels), len(e.pools), len(e.leaving.list)
}

// However many tunnels come and go, nothing is left of them.
func TestTunnelsAreForgotten(t *testing.T) {
	const cycles = 10_000
	f := startEngine(t, 2, DefaultSettings(), nil)
	target := nobody(t)
	f.Submit(OpenPool{Pool: linkPool, Side: ClientSide, MaxIdle: -1})
	f.Submit(SetTarget{Pool: linkPool + 1, Wire: 1, Tunnel: 1, Target: target}) // of a pool that is not open
	for i := range cycles {
		set := SetTarget{Pool: linkPool, Wire: uint32(i % 7), Tunnel: TunnelID(i + 1), Target: target}
		f.Submit(set)
		f.Submit(set) // again, as after a look-up
		if i%3 > 0 {  // else the next that gets its id in START takes its place
			f.Submit(DropTarget{Pool: linkPool, Wire: set.Wire})
			f.Submit(DropTarget{Pool: linkPool, Wire: set.Wire})
		}
	}
	if n, _, _ := f.known(); n == 0 || n > 7 {
		t.Errorf("%d tunnels are known, want those that still have a target", n)
	}
	f.Submit(ClosePool{Pool: linkPool})
	f.Submit(ClosePool{Pool: linkPool})
	if tunnels, pools, leaving := f.known(); tunnels+pools+leaving != 0 || len(f.Stats()) != 0 {
		t.Errorf("%d tunnels, %d pools, %d that leave are known; want none", tunnels, pools, leaving)
	}
}

// One that has two names is known until it has lost both.
func TestTunnelWithTwoNames(t *testing.T) {
	f := startEngine(t, 1, DefaultSettings(), nil)
	f.Submit(OpenPool{Pool: linkPool, Side: ClientSide, MaxIdle: -1})
	f.Submit(OpenPool{Pool: linkPool + 1, Side: ClientSide, MaxIdle: -1})
	f.Submit(SetTarget{Pool: linkPool, Wire: 1, Tunnel: linkTunnel})
	f.Submit(SetTarget{Pool: linkPool + 1, Wire: 1, Tunnel: linkTunnel})
	f.listen(linkTunnel, ToPreface{})
	for i, drop := range []Command{DropTarget{Pool: linkPool, Wire: 1}, Unlisten{Tunnel: linkTunnel}, ClosePool{Pool: linkPool + 1}} {
		if n := len(f.Stats()); n != 1 {
			t.Fatalf("%d tunnels before name %d is dropped", n, i)
		}
		f.Submit(drop)
	}
	if n := len(f.Stats()); n != 0 {
		t.Fatalf("%d tunnels are known, want none", n)
	}
}

// A tunnel that is dropped counts on for as long as its streams run, also when
// it is set anew meanwhile, and is forgotten after the last.
func TestDroppedTunnelCountsOn(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{conns: 2, target: s.target})
	r := route{public: k.public, local: s, engines: []*fixture{k.server.fixture, k.client.fixture}}
	first, service := r.connect(t)
	set := SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: s.target}
	drop := DropTarget{Pool: linkPool, Wire: linkWire}
	k.client.Submit(drop)
	say(t, first, "old")
	hear(t, service, "old")
	k.client.passed() // bytes are counted when they have left
	if got := k.client.stats(linkTunnel); got.Opened != 1 || got.Up != 3 {
		t.Errorf("dropped: %+v", got)
	}
	for range 100 {
		k.client.Submit(set)
		k.client.Submit(drop)
	}
	if tunnels, _, leaving := k.client.known(); tunnels != 1 || leaving != 1 {
		t.Errorf("%d tunnels known, %d leave", tunnels, leaving)
	}
	k.client.Submit(set)
	k.client.passed()
	second, other := r.connect(t)
	say(t, second, "new one")
	hear(t, other, "new one")
	k.client.passed()
	if got := k.client.stats(linkTunnel); got.Opened != 2 || got.Ended != 0 || got.Up != 10 {
		t.Errorf("set anew: %+v", got)
	}
	k.client.Submit(drop)
	for _, c := range []*net.TCPConn{first, second} {
		if tunnels, _, leaving := k.client.known(); tunnels != 1 || leaving != 1 {
			t.Errorf("%d tunnels known, %d leave", tunnels, leaving)
		}
		reset(t, c)
		await[StreamEnded](k.client.fixture)
	}
	if len(k.client.Stats()) != 0 {
		t.Error("known without a stream")
	}
}

// Those that leave are swept without being asked for their totals.
func TestLeavingTunnelsAreSwept(t *testing.T) {
	e := New(Options{Loops: 1, Settings: DefaultSettings()})
	e.Submit(OpenPool{Pool: linkPool, Side: ClientSide, MaxIdle: -1})
	const streams = 1000
	var all []*tunnel
	for i := range streams {
		e.Submit(SetTarget{Pool: linkPool, Wire: uint32(i), Tunnel: TunnelID(i)})
		all = append(all, e.targeted(linkPool, uint32(i), TunnelID(i)))
		bump(&all[i].cells[0].opened, 1)
		e.Submit(DropTarget{Pool: linkPool, Wire: uint32(i)})
	}
	if n, _, leaving := e.known(); n != streams || leaving != streams {
		t.Fatalf("%d tunnels known, %d leave; all have a stream", n, leaving)
	}
	for _, x := range all {
		bump(&x.cells[0].ended, 1)
	}
	for i := range 2 * streams {
		x := e.listened(TunnelID(streams + i))
		bump(&x.cells[0].opened, 1)
		e.Submit(Unlisten{Tunnel: x.id})
		bump(&x.cells[0].ended, 1)
	}
	if n, _, _ := e.known(); n > streams {
		t.Errorf("%d tunnels are known, whose streams have all ended", n)
	}
}
