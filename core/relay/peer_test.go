package relay

import (
	"bytes"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// peer is a ProxyConn whose other end the test plays by hand.
type peer struct {
	*net.TCPConn
	tb testing.TB
}

// gram is one received frame.
type gram struct {
	frame.Header
	payload []byte
}

func (p *peer) send(frames ...[]byte) {
	p.tb.Helper()
	if _, err := p.Write(bytes.Join(frames, nil)); err != nil {
		p.tb.Fatalf("send: %v", err)
	}
}

// next reads one frame.
func (p *peer) next() (gram, error) {
	var b [frame.HeaderSize]byte
	if _, err := io.ReadFull(p, b[:]); err != nil {
		return gram{}, err
	}
	h, err := frame.ParseHeader(b[:])
	if err != nil {
		p.tb.Fatalf("received a header %x: %v", b, err)
	}
	payload := make([]byte, h.Length)
	_, err = io.ReadFull(p, payload)
	return gram{h, payload}, err
}

// want reads one frame, which must be of this type and stream.
func (p *peer) want(t frame.Type, seq uint16) []byte {
	p.tb.Helper()
	g, err := p.next()
	if err != nil || g.Type != t || g.Seq != seq {
		p.tb.Fatalf("got %v %d %s, %v; want %v %d", g.Type, g.Seq, hex.EncodeToString(g.payload), err, t, seq)
	}
	return g.payload
}

// wantData reads DATA frames of a stream until a message is complete.
func (p *peer) wantData(seq uint16, message string) {
	p.tb.Helper()
	var got []byte
	for len(got) < len(message) {
		got = append(got, p.want(frame.Data, seq)...)
	}
	if string(got) != message {
		p.tb.Fatalf("got %q, want %q", got, message)
	}
}

func (p *peer) wantReset(seq uint16, code frame.ResetCode) {
	p.tb.Helper()
	if got, err := frame.ParseReset(p.want(frame.Reset, seq)); err != nil || got != code {
		p.tb.Fatalf("reset for %v, %v; want %v", got, err, code)
	}
}

// rest reads frames until the conn ends.
func (p *peer) rest() (all []gram) {
	p.tb.Helper()
	for {
		g, err := p.next()
		if err != nil {
			if late, ok := err.(net.Error); ok && late.Timeout() { //nolint:errorlint // net returns it bare
				p.tb.Fatalf("the conn was not closed; it sent %v", all)
			}
			return all
		}
		all = append(all, g)
	}
}

// peer opens a ProxyConn to a server engine.
func (n *near) peer(tb testing.TB) *peer {
	tb.Helper()
	p := &peer{TCPConn: dialTCP(tb, n.proxy), tb: tb}
	preface := prefaceOf(1)
	sealed := preface.Seal(frame.NewKey(linkKey), frame.Exporter{})
	p.send(sealed[:])
	ready := preface.Ready(frame.NewKey(linkKey), frame.Exporter{})
	if got := p.want(frame.Ready, 0); !bytes.Equal(got, ready[:]) {
		tb.Fatalf("READY carries %x", got)
	}
	await[ConnOpened](n.fixture)
	return p
}

// dialledPeer is a conn of a client engine that has sent its preface.
func (f *far) dialledPeer(tb testing.TB) *peer {
	tb.Helper()
	ref := f.dial(f.door.Addr().(*net.TCPAddr).AddrPort())
	c, err := f.door.Accept()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	var got [frame.PrefaceSize]byte
	want := prefaceOf(ref).Seal(frame.NewKey(linkKey), frame.Exporter{})
	if _, err := io.ReadFull(c, got[:]); err != nil || got != want {
		tb.Fatalf("preface %x, %v", got, err)
	}
	return &peer{TCPConn: c.(*net.TCPConn), tb: tb}
}

// peer opens a ProxyConn of a client engine.
func (f *far) peer(tb testing.TB) *peer {
	tb.Helper()
	p := f.dialledPeer(tb)
	p.send(readyFrame(f.dialled.Load()))
	await[ConnOpened](f.fixture)
	return p
}

// The frames that tests send.

func bare(t frame.Type, seq uint16) []byte {
	b := make([]byte, frame.HeaderSize)
	frame.Header{Type: t, Seq: seq}.Put(b)
	return b
}

func dataFrame(seq uint16, payload string) []byte {
	b := make([]byte, frame.HeaderSize, frame.HeaderSize+len(payload))
	frame.Header{Type: frame.Data, Seq: seq, Length: uint32(len(payload))}.Put(b)
	return append(b, payload...)
}

func resetFrame(seq uint16, code frame.ResetCode) []byte {
	b := make([]byte, frame.HeaderSize+frame.ResetSize)
	frame.PutReset(b, seq, code)
	return b
}

func startFrame(seq uint16, tunnel uint32) []byte {
	b := make([]byte, frame.HeaderSize+frame.StartSize)
	frame.PutStart(b, seq, frame.Stream{
		Tunnel: tunnel, Source: netip.MustParseAddrPort("192.0.2.7:4000"), Destination: netip.MustParseAddrPort("192.0.2.8:80"),
	})
	return b
}

func readyFrame(ref uint64) []byte {
	mac := prefaceOf(ref).Ready(frame.NewKey(linkKey), frame.Exporter{})
	b := make([]byte, frame.HeaderSize, frame.HeaderSize+frame.ReadySize)
	frame.Header{Type: frame.Ready, Length: frame.ReadySize}.Put(b)
	return append(b, mac[:]...)
}
