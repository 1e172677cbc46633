package relay

import (
	"testing"
)

func TestForwarder(t *testing.T) {
	f := startEngine(t, 2, DefaultSettings(), nil)
	at := f.listen(1, ToTarget{Target: localServer(t, echo).target})
	roundTrip(t, dialTCP(t, at), "hello")
	if ev := await[StreamEnded](f); ev.Reason != Done || ev.Up != 5 || ev.Down != 5 {
		t.Fatalf("ended with %+v", ev)
	}
}

func TestStreamsOverReusedConn(t *testing.T) {
	k := startLink(t, linkOptions{conns: 1, target: localServer(t, echo).target})
	for range 50 {
		roundTrip(t, dialTCP(t, k.public), "hello over a ProxyConn")
		at, from := k.ended(Done, Done)
		for _, ev := range []StreamEnded{at, from} {
			if ev.Up != 22 || ev.Down != 22 || ev.Pool != linkPool || ev.Tunnel != linkTunnel {
				t.Fatalf("ended with %+v", ev)
			}
		}
	}
	if n := total[ConnOpened](k.server.fixture); n != 1 {
		t.Fatalf("%d conns opened for streams one after the other, want 1", n)
	}
}
