package relay

import (
	"net"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// A thousand peers that say nothing, or half of something, hold nobody up and
// are closed when their time is over.
func TestSilentPeers(t *testing.T) {
	const silent = 1000
	set := DefaultSettings()
	set.Preface = time.Second
	k := startLink(t, linkOptions{loops: 2, settings: set, target: localServer(t, echo).target})
	half := prefaceOf(9).Seal(frame.NewKey(linkKey), frame.Exporter{})
	var strangers []*net.TCPConn
	for i := range silent {
		c := k.server.stranger(t)
		if _, err := c.Write(half[:i%frame.PrefaceSize]); err != nil {
			t.Fatal(err)
		}
		strangers = append(strangers, c)
	}
	k.open(4)
	for range 20 {
		roundTrip(t, dialTCP(t, k.public), "served beside them")
		k.ended(Done, Done)
	}
	for range silent {
		if ev := await[PrefaceFailed](k.server.fixture); ev.Reason != PrefaceTimeout {
			t.Fatalf("got %+v", ev)
		}
	}
	for _, c := range strangers {
		if got := readAll(t, c); len(got) != 0 {
			t.Fatalf("a stranger was sent %x", got)
		}
		drop(c)
	}
	roundTrip(t, dialTCP(t, k.public), "and after them")
}

// Beyond the bound of the lobby the oldest makes room, so that those who do
// speak get in.
func TestFullLobby(t *testing.T) {
	set := DefaultSettings()
	set.Preface = time.Hour
	n := startNear(t, linkOptions{settings: set}, nil)
	first := n.stranger(t)
	for range maxLobby {
		n.stranger(t)
	}
	if got := readAll(t, first); len(got) != 0 {
		t.Fatalf("the oldest was sent %x", got)
	}
	if ev := await[PrefaceFailed](n.fixture); ev.Reason != PrefaceTimeout || ev.Peer.String() != first.LocalAddr().String() {
		t.Fatalf("got %+v", ev)
	}
	n.served(t)
}

// A preface whose verdict never comes is closed in time; a verdict that comes
// too late finds nothing.
func TestPrefaceWithoutVerdict(t *testing.T) {
	set := DefaultSettings()
	set.Preface = 50 * time.Millisecond
	f := startEngine(t, 1, set, nil)
	at := f.listen(1, ToPreface{})
	f.Submit(OpenPool{Pool: linkPool, Side: ServerSide, MaxIdle: -1})
	c := dialTCP(t, at)
	sealed := prefaceOf(1).Seal(frame.NewKey(linkKey), frame.Exporter{})
	if _, err := c.Write(sealed[:]); err != nil {
		t.Fatal(err)
	}
	asked := await[PrefaceReceived](f)
	if got := readAll(t, c); len(got) != 0 {
		t.Fatalf("was sent %x", got)
	}
	if ev := await[PrefaceFailed](f); ev.Reason != PrefaceTimeout {
		t.Fatalf("got %+v", ev)
	}
	f.Submit(Park{Conn: asked.Conn, Pool: linkPool})
	f.Submit(Close{Conn: asked.Conn})
	f.passed()
	if n := total[ConnOpened](f); n != 0 {
		t.Fatal("a conn that is gone was opened")
	}
}

// A verdict for a pool that was closed meanwhile closes the conn, and says so.
func TestParkInClosedPool(t *testing.T) {
	for _, loops := range []int{1, 2} {
		f := startEngine(t, loops, DefaultSettings(), nil)
		at := f.listen(1, ToPreface{})
		sealed := prefaceOf(1).Seal(frame.NewKey(linkKey), frame.Exporter{})
		c := dialTCP(t, at)
		if _, err := c.Write(sealed[:]); err != nil {
			t.Fatal(err)
		}
		f.Submit(Park{Conn: await[PrefaceReceived](f).Conn, Pool: linkPool})
		if ev := await[PrefaceFailed](f); ev.Reason != Closed {
			t.Fatalf("got %+v", ev)
		}
		if got := readAll(t, c); len(got) != 0 {
			t.Fatalf("was sent %x", got)
		}
	}
}
