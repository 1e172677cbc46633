package relay

import (
	"bytes"
	"io"
	"testing"

	"github.com/cproxy/cproxy/core/frame"
)

// fuzzSeeds are conversations, whole and broken.
func fuzzSeeds() [][]byte {
	seeds := [][]byte{
		nil,
		startFrame(1, linkWire),
		bytes.Join([][]byte{startFrame(1, linkWire), dataFrame(1, "hello"), bare(frame.Fin, 1), startFrame(2, linkWire), dataFrame(2, "again")}, nil),
		bytes.Join([][]byte{startFrame(1, linkWire+1), resetFrame(1, frame.ResetAcknowledge), bare(frame.Ping, 7), bare(frame.Close, 0)}, nil),
		bytes.Join([][]byte{startFrame(1, linkWire), resetFrame(1, frame.ResetPeer), startFrame(2, linkWire), bare(frame.Fin, 2)}, nil),
		bytes.Join([][]byte{dataFrame(1, "answer"), bare(frame.Fin, 1)}, nil),
		bytes.Join([][]byte{dataFrame(1, "answer"), resetFrame(1, frame.ResetDial), bare(frame.Retire, 0)}, nil),
		bytes.Join([][]byte{bare(frame.Pong, 1), resetFrame(0, frame.ResetPeer), bare(frame.Retire, 0), bare(frame.Pong, 2)}, nil),
		append(dataFrame(1, "x"), header(byte(frame.Data), 0, 0, 1, 0, 0x10, 0, 0)...),
	}
	for _, b := range malformed {
		seeds = append(seeds, b)
	}
	return seeds
}

// hurl sends arbitrary bytes and the end, and reads until the conn is closed.
func (p *peer) hurl(b []byte) {
	p.tb.Helper()
	_, _ = p.Write(b) // may fail half-way: the engine closes what it refuses
	_ = p.CloseWrite()
	readAll(p.tb, p)
	drop(p)
}

// Whatever a client sends on its ProxyConn, idle or inside a stream, ends that
// conn at worst; the visitor gets a definite end, and others are served.
func FuzzServerConn(f *testing.F) {
	for _, b := range fuzzSeeds() {
		f.Add(false, b)
		f.Add(true, b)
	}
	n := startNear(f, linkOptions{}, nil)
	f.Fuzz(func(t *testing.T, inStream bool, b []byte) {
		n.reuse(t)
		p := n.peer(t)
		if inStream {
			visitor := dialTCP(t, n.public)
			g, err := p.next()
			if err != nil || g.Type != frame.Start {
				t.Fatalf("got %v, %v", g, err)
			}
			p.hurl(b)
			readAll(t, visitor)
			drop(visitor)
			await[StreamEnded](n.fixture)
		} else {
			p.hurl(b)
		}
		await[ConnClosed](n.fixture)
		n.served(t)
	})
}

// The same for what a server sends.
func FuzzClientConn(f *testing.F) {
	for _, b := range fuzzSeeds() {
		f.Add(b)
	}
	s := localServer(f, echo)
	c := startFar(f, linkOptions{target: s.target})
	f.Fuzz(func(t *testing.T, b []byte) {
		c.reuse(t)
		c.peer(t).hurl(b)
		await[ConnClosed](c.fixture)

		p := c.peer(t)
		p.send(startFrame(1, linkWire), dataFrame(1, "and back"), bare(frame.Fin, 1))
		p.wantData(1, "and back")
		p.want(frame.Fin, 1)
		drop(p)
		await[ConnClosed](c.fixture)
	})
}

// Whatever comes first on the proxy port is no conn unless it proves the key.
func FuzzPreface(f *testing.F) {
	good := prefaceOf(1).Seal(frame.NewKey(linkKey), frame.Exporter{})
	f.Add(good[:])
	f.Add(good[:63])
	f.Add([]byte{frame.TLSHandshake, 3, 1})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(append(bytes.Clone(good[:63]), good[63]^1))
	n := startNear(f, linkOptions{}, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		n.reuse(t)
		c := n.stranger(t)
		_, _ = c.Write(b)
		_ = c.CloseWrite()
		got := readAll(t, c)
		drop(c)
		if proves := proven(b); proves != (len(got) > 0) {
			t.Fatalf("proven %v, answered with %x", proves, got)
		}
		n.served(t)
	})
}

// proven tells whether bytes begin with a preface that the test's server takes.
func proven(b []byte) bool {
	var sealed [frame.PrefaceSize]byte
	if _, err := io.ReadFull(bytes.NewReader(b), sealed[:]); err != nil {
		return false
	}
	p, err := frame.ParsePreface(sealed)
	return err == nil && p.Verify(sealed, frame.NewKey(linkKey), frame.Exporter{}) == nil
}
