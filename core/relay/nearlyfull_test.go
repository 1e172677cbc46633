package relay

import (
	"bytes"
	"io"
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

// fillBut leaves room for so many bytes in the last segment that the socket
// takes. It tells how many it took.
func (n narrowConn) fillBut(t *testing.T, room int) (took int) {
	t.Helper()
	if room > 0 {
		// Held back by the kernel until it is complete.
		took, errno := sendMore(n.proxy.fd, make([]byte, n.mss-room))
		if errno != 0 || took != n.mss-room {
			t.Fatalf("sent %d of %d, %v", took, n.mss-room, errno)
		}
		return took
	}
	eventually(t, "the socket is full and nothing is under way", func() bool {
		sent, errno := send(n.proxy.fd, make([]byte, n.mss))
		took += sent
		info := tcpInfo(t, n.proxy.fd)
		return errno == unix.EAGAIN && info.Unacked == 0 && info.Notsent_bytes > 0
	})
	return took
}

// The socket takes a part of a header, or nothing of it, when the payload is in
// the pipe already: the rest of the header goes first as soon as there is room,
// and then the payload.
func TestHeaderInParts(t *testing.T) {
	l := stillLoop(t)
	for room := range frame.HeaderSize {
		for try := 1; !l.headerInParts(t, room); try++ {
			if try == 20 { // the kernel may have sent the segment meanwhile, after a moment
				t.Fatalf("room for %d: all of the header was sent", room)
			}
		}
	}
}

// headerInParts tells whether a socket took only the part of a header that there
// was room for.
func (l *loop) headerInParts(t *testing.T, room int) bool {
	t.Helper()
	n := l.narrow(t)
	defer n.end(l)
	before := n.fillBut(t, room)
	payload := bytes.Repeat([]byte{'p'}, 20_000)
	putAt(t, n.visitor, payload)
	took, ok := l.spliceOut(n.stream, loopBuffer)
	if took != len(payload) || n.over {
		t.Fatalf("room for %d: %d spliced, over %v", room, took, n.over)
	}
	if n.proxy.out == nil {
		return false
	}
	if rest := len(n.proxy.out.bytes()); ok || rest != frame.HeaderSize-room || n.proxy.load == nil || n.proxy.load.held != len(payload) || n.proxy.canWrite {
		t.Fatalf("room for %d: %d bytes of the header wait, payload in %+v, can write %v, %v", room, rest, n.proxy.load, n.proxy.canWrite, ok)
	}
	came := make(chan []byte, 1)
	go func() {
		b := make([]byte, before+frame.HeaderSize+len(payload))
		got, _ := io.ReadFull(n.peer, b)
		came <- b[:got]
	}()
	l.until(t, "all is sent", func() bool { return !n.proxy.pending() || n.over })
	want := append(make([]byte, before), dataFrame(1, string(payload))...)
	if got := <-came; !bytes.Equal(got, want) {
		t.Fatalf("room for %d: %d bytes came, want %d, or others than these", room, len(got), len(want))
	}
	return true
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
