package relay

import "testing"

// A pool that is opened again while a stream of its former life runs stays
// open when that has ended.
func TestPoolOpenedAgain(t *testing.T) {
	s := localServer(t, nil)
	k := startLink(t, linkOptions{conns: 1, target: s.target})
	visitor := dialTCP(t, k.public)
	service := s.take(t)
	for _, f := range []*fixture{k.server.fixture, k.client.fixture} {
		f.Submit(ClosePool{Pool: linkPool})
		f.Submit(OpenPool{Pool: linkPool, Side: sideOf(f, k), MaxIdle: -1})
		f.passed()
	}
	k.client.Submit(SetTarget{Pool: linkPool, Wire: linkWire, Tunnel: linkTunnel, Target: s.target})
	say(t, visitor, "still here")
	hear(t, service, "still here")
	closeWrite(t, visitor)
	closeWrite(t, service)
	k.ended(Done, Done)
	k.open(1)
	say(t, dialTCP(t, k.public), "the next")
	hear(t, s.take(t), "the next")
}
