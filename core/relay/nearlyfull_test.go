package relay

import (
	"bytes"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// narrowConn is a stream of a still loop whose ProxyConn is a TCP socket with
// the smallest send buffer there is.
type narrowConn struct {
	*stream
	visitor int // the other end of the front
	peer    *peer
	mss     int
}

func (l *loop) narrow(t *testing.T) narrowConn {
	t.Helper()
	sh := l.shards[linkPool]
	if sh == nil {
		sh = l.openPool(ServerSide)
	}
	ours, theirs := tcpPair(t)
	if err := unix.SetsockoptInt(ours, unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		t.Fatal(err)
	}
	p := newProxyConn(ours, proxyIdle)
	if !p.register(l) {
		t.Fatal("not registered")
	}
	p.shard = sh
	sh.members[p] = struct{}{}
	l.once() // the socket can be written
	front, visitor := socketPair(t)
	c := &rawConn{socket: socket{fd: front, canWrite: true}, state: rawJoined, tunnel: l.engine.tunnel(linkTunnel)}
	if !c.register(l) {
		t.Fatal("not registered")
	}
	s := &stream{front: c, proxy: p, tunnel: c.tunnel}
	p.begin(s, 1)
	l.beginStream(s)
	return narrowConn{s, visitor, &peer{TCPConn: theirs, tb: t}, int(tcpInfo(t, ours).Snd_mss)}
}

func (n narrowConn) end(l *loop) {
	l.closeProxy(n.proxy, Stopped)
	drop(n.peer)
}

func tcpInfo(t *testing.T, fd int) *unix.TCPInfo {
	t.Helper()
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// deafenFor has a conn lose what comes for it, if so, until the function it gives
// is called.
func deafenFor(t *testing.T, c *net.TCPConn, deaf bool) (hears func()) {
	t.Helper()
	if !deaf {
		return func() {}
	}
	deafenConn(t, c)
	return func() {
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			if err := unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
				t.Errorf("detach filter: %v", err)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The socket takes a part of a header, or nothing of it, when the payload is in
// the pipe already: the rest of the header goes first as soon as there is room,
// and then the payload.
func TestHeaderInParts(t *testing.T) {
	l := stillLoop(t)
	for room := range frame.HeaderSize {
		n := l.narrow(t)
		hears := deafenFor(t, n.peer.TCPConn, room == 0) // or what is complete would be gone already
		// The kernel fills up its last segment and has no room for another.
		before := dataFrame(1, string(bytes.Repeat([]byte{'b'}, n.mss-room-frame.HeaderSize)))
		if sent, errno := sendMore(n.proxy.fd, before); errno != 0 || sent != len(before) {
			t.Fatalf("room for %d: sent %d of %d, %v", room, sent, len(before), errno)
		}
		payload := bytes.Repeat([]byte{'p'}, 20_000)
		putAt(t, n.visitor, payload)
		if took, ok := l.spliceOut(n.stream, loopBuffer); took != len(payload) || ok || n.over {
			t.Fatalf("room for %d: %d spliced, %v, over %v", room, took, ok, n.over)
		}
		rest := 0
		if n.proxy.out != nil {
			rest = len(n.proxy.out.bytes())
		}
		if rest != frame.HeaderSize-room || n.proxy.load == nil || n.proxy.load.held != len(payload) || n.proxy.canWrite {
			t.Fatalf("room for %d: %d bytes of the header wait, payload in %+v, can write %v", room, rest, n.proxy.load, n.proxy.canWrite)
		}
		hears()
		l.until(t, "all is sent", func() bool { return !n.proxy.pending() || n.over })
		for i, want := range [][]byte{before[frame.HeaderSize:], payload} {
			if got := n.peer.want(frame.Data, 1); !bytes.Equal(got, want) {
				t.Fatalf("room for %d: frame %d came with %d bytes, equal to what was sent: false", room, i, len(got))
			}
		}
		n.end(l)
	}
}

// A header leaves with its payload: by itself it would be a segment of its own.
func TestHeaderLeavesWithPayload(t *testing.T) {
	l := stillLoop(t)
	for try := 1; !l.oneSegment(t); try++ {
		if try == 20 { // the kernel waits a moment only, but not always for less
			t.Fatal("the header is a segment of its own")
		}
	}
}

// oneSegment tells whether a header and its payload left in one.
func (l *loop) oneSegment(t *testing.T) bool {
	t.Helper()
	n := l.narrow(t)
	defer n.end(l)
	putAt(t, n.visitor, []byte("payload"))
	took, ok := 0, true
	for took == 0 && ok { // until it is not interrupted
		took, ok = l.spliceOut(n.stream, loopBuffer)
	}
	if took != len("payload") {
		t.Errorf("%d spliced", took)
		return true
	}
	n.peer.wantData(1, "payload")
	return tcpInfo(t, n.proxy.fd).Data_segs_out == 1
}

// piecesPipe gives a pipe with so many bytes in every buffer of it, as they come
// from a socket in small segments.
func piecesPipe(t *testing.T, piece int) *pipe {
	t.Helper()
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_DIRECT); err != nil {
		t.Fatal(err)
	}
	b := &pipe{r: fd[0], w: fd[1]}
	size, err := unix.FcntlInt(uintptr(b.w), unix.F_SETPIPE_SZ, minPipe)
	if err != nil {
		b.close()
		t.Skipf("no pipe quota left: %v", err)
	}
	b.size = size
	for range 48 {
		putAt(t, b.w, bytes.Repeat([]byte{'p'}, piece))
		b.held += piece
	}
	return b
}

// What a socket took before it was full is sent at once. The kernel holds the
// last segment back, since more is to come, when the buffer is full exactly
// behind a round of splice(2): a header and as many pieces as one segment has
// places for.
func TestFullSocketSendsWhatItHas(t *testing.T) {
	l := stillLoop(t)
	full := 0
	for _, piece := range []int{500, 700, 1000, 1400} {
		n := l.narrow(t)
		k := &n.proxy.socket
		header := make([]byte, frame.HeaderSize)
		b := piecesPipe(t, piece)
		frame.Header{Type: frame.Data, Seq: 1, Length: uint32(b.held)}.Put(header)
		if sent, errno := sendMore(k.fd, header); errno != 0 || sent != len(header) {
			t.Fatalf("sent %d, %v", sent, errno)
		}
		l.pipes.open++
		k.load = b
		want := b.held
		done, failed := l.unload(k)
		if failed {
			t.Fatal("the socket failed")
		}
		if !done {
			full++
			if k.canWrite {
				t.Error("the loop does not know that the socket is full")
			}
			if held := tcpInfo(t, k.fd).Notsent_bytes; held != 0 {
				t.Errorf("pieces of %d: the kernel holds %d bytes back", piece, held)
			}
		}
		reading := make(chan gram, 1)
		go func() {
			defer close(reading)
			if g, err := n.peer.next(); err == nil {
				reading <- g
			}
		}()
		l.until(t, "all is sent", func() bool { return !n.proxy.pending() || n.over })
		if g := <-reading; !bytes.Equal(g.payload, bytes.Repeat([]byte{'p'}, want)) {
			t.Errorf("pieces of %d: %d bytes came, want %d", piece, len(g.payload), want)
		}
		n.end(l)
	}
	if full == 0 {
		t.Skip("this kernel took everything at once")
	}
}
