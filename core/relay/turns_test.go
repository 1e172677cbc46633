package relay

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cproxy/cproxy/core/frame"
)

// carriedStream is a stream of a still loop: the test holds the other end of both of
// its sockets.
type carriedStream struct {
	*stream
	visitor, conn int
}

func (l *loop) carry(t *testing.T, sh *shard, seq uint16) carriedStream {
	t.Helper()
	p, conn := l.member(t, sh, proxyIdle)
	front, visitor := socketPair(t)
	c := &rawConn{socket: socket{fd: front, canWrite: true}, state: rawJoined, tunnel: l.engine.tunnel(linkTunnel)}
	if !c.register(l) {
		t.Fatal("not registered")
	}
	s := &stream{front: c, proxy: p, tunnel: c.tunnel}
	p.begin(s, seq)
	l.beginStream(s)
	return carriedStream{s, visitor, conn}
}

// gotAt reads what has come to a descriptor of the test, at most a buffer full.
func gotAt(t *testing.T, fd int) []byte {
	t.Helper()
	b := make([]byte, 1<<20)
	n, err := unix.Read(fd, b)
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	return b[:max(n, 0)]
}

func putAt(t *testing.T, fd int, b []byte) {
	t.Helper()
	if n, err := unix.Write(fd, b); err != nil || n != len(b) {
		t.Fatalf("wrote %d of %d bytes: %v", n, len(b), err)
	}
}

// A stream whose conn is in the middle of a large frame waits for its turn, so
// that messages go first, and does not count as one of them: the loop goes on to
// give bulk large slices.
func TestLargeFrameWaitsForItsTurn(t *testing.T) {
	l := stillLoop(t)
	l.once()
	sh := l.openPool(ServerSide)
	large, small := l.carry(t, sh, 1), l.carry(t, sh, 1)

	begin := bytes.Repeat([]byte{'a'}, 1000)
	header := make([]byte, frame.HeaderSize)
	frame.Header{Type: frame.Data, Seq: 1, Length: loopBuffer + 1}.Put(header)
	putAt(t, large.conn, append(header, begin...))
	l.once() // which tells that the frame is a large one
	if got := gotAt(t, large.visitor); !bytes.Equal(got, begin) || !large.proxy.in.bulk {
		t.Fatalf("%d bytes came, bulk %v", len(got), large.proxy.in.bulk)
	}
	l.now += int64(messagesLast)
	if l.slice() != turnSliceBulk {
		t.Fatal("messages are still expected")
	}

	putAt(t, large.conn, begin)
	large.proxy.ready(l, unix.EPOLLIN)
	if got := gotAt(t, large.visitor); len(got) > 0 || !large.queued {
		t.Fatalf("%d bytes went before their turn, queued %v", len(got), large.queued)
	}
	if l.slice() != turnSliceBulk {
		t.Fatal("a piece of a large frame counts as a message")
	}
	putAt(t, small.conn, dataFrame(1, "message"))
	small.proxy.ready(l, unix.EPOLLIN)
	if got := gotAt(t, small.visitor); string(got) != "message" || small.queued {
		t.Fatalf("the message waits: %q came, queued %v", got, small.queued)
	}
	if l.slice() != turnSlice {
		t.Fatal("the message does not count")
	}
	l.runQueued()
	if got := gotAt(t, large.visitor); !bytes.Equal(got, begin) || large.queued {
		t.Fatalf("%d bytes came in their turn, queued %v", len(got), large.queued)
	}

	// Behind the large frame come messages again.
	putAt(t, large.conn, append(make([]byte, loopBuffer+1-2*len(begin)), dataFrame(1, "message")...))
	large.proxy.ready(l, unix.EPOLLIN)
	for len(l.work.queue) > 0 {
		l.runQueued()
	}
	if large.proxy.in.bulk || large.proxy.in.need != 0 {
		t.Fatalf("still in the frame: %+v", large.proxy.in)
	}
	gotAt(t, large.visitor)
	putAt(t, large.conn, dataFrame(1, "another"))
	large.proxy.ready(l, unix.EPOLLIN)
	if got := gotAt(t, large.visitor); string(got) != "another" {
		t.Fatalf("%q came at once", got)
	}
}
