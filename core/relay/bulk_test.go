package relay

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// content is an endless stream of bytes that differs for every number.
func content(number uint64) io.Reader {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], number)
	return rand.NewChaCha8(seed)
}

func digest(r io.Reader, n int64) ([sha256.Size]byte, error) {
	h := sha256.New()
	_, err := io.CopyN(h, r, n)
	return [sha256.Size]byte(h.Sum(nil)), err
}

// sendContent writes n bytes of a content and ends the direction.
func sendContent(c *net.TCPConn, number uint64, n int64) error {
	if _, err := io.CopyN(c, content(number), n); err != nil {
		return fmt.Errorf("send content %d: %w", number, err)
	}
	return c.CloseWrite()
}

// wantContent reads to the end and wants exactly n bytes of a content.
func wantContent(c net.Conn, number uint64, n int64) error {
	want, _ := digest(content(number), n)
	got, err := digest(c, n)
	if err != nil {
		return fmt.Errorf("receive content %d: %w", number, err)
	}
	if got != want {
		return fmt.Errorf("content %d came with other bytes", number)
	}
	if extra, err := io.ReadAll(c); err != nil || len(extra) > 0 {
		return fmt.Errorf("content %d: %d bytes too many, %w", number, len(extra), err)
	}
	return nil
}

// parallel runs all and reports what fails.
func parallel(t *testing.T, all ...func() error) {
	t.Helper()
	var running sync.WaitGroup
	for _, run := range all {
		running.Go(func() {
			if err := run(); err != nil {
				t.Error(err)
			}
		})
	}
	running.Wait()
}

// bothWays is what moves a content of its own each way, to its end.
func bothWays(visitor, service *net.TCPConn, size int64) []func() error {
	return []func() error{
		func() error { return sendContent(visitor, 1, size) },
		func() error { return sendContent(service, 2, size) },
		func() error { return wantContent(service, 1, size) },
		func() error { return wantContent(visitor, 2, size) },
	}
}

func TestBulkBothWays(t *testing.T) {
	const size = 100 << 20
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		visitor, service := r.connect(t)
		parallel(t, bothWays(visitor, service, size)...)
		r.ended(t, size, size)
	})
}

// A thousand streams are open at once, each with a content of its own both
// ways; none may hold a byte of another.
func TestManyStreams(t *testing.T) {
	const streams = 1000
	size := func(number uint64) int64 { return 1 + int64(number*7919%(96<<10)) }
	s := localServer(t, func(c net.Conn) {
		defer c.Close()
		var name [8]byte
		if _, err := io.ReadFull(c, name[:]); err != nil {
			t.Errorf("read name: %v", err)
			return
		}
		number := binary.BigEndian.Uint64(name[:])
		parallel(t,
			func() error { return sendContent(c.(*net.TCPConn), number+streams, size(number)) },
			func() error { return wantContent(c, number, size(number)) },
		)
	})
	k := startLink(t, linkOptions{loops: 2, conns: streams, supply: true, target: s.target})
	conns := make([]*net.TCPConn, streams)
	for i := range conns {
		conns[i] = dialTCP(t, k.public)
	}
	var all []func() error
	for i, c := range conns {
		all = append(all, func() error {
			number := uint64(i)
			if err := binary.Write(c, binary.BigEndian, number); err != nil {
				return err
			}
			if _, err := io.CopyN(c, content(number), size(number)); err != nil {
				return err
			}
			return c.CloseWrite()
		}, func() error {
			return wantContent(c, uint64(i)+streams, size(uint64(i)))
		})
	}
	parallel(t, all...)
	var up uint64
	for i := range uint64(streams) {
		up += 8 + uint64(size(i))
	}
	for _, f := range []*fixture{k.server.fixture, k.client.fixture} {
		for range streams {
			if ev := await[StreamEnded](f); ev.Reason != Done {
				t.Fatalf("ended with %+v", ev)
			}
		}
		if s := f.stats(linkTunnel); s.Up != up || s.Down != up-8*streams || s.Ended != streams {
			t.Errorf("totals %+v, want %d up", s, up)
		}
	}
}

// A receiver stalls until every buffer on the way is full and the sender
// blocks; another stream is served meanwhile; then all arrives.
func TestStalledReceiver(t *testing.T) {
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		for name, upward := range map[string]bool{"LocalServer stalls": true, "visitor stalls": false} {
			t.Run(name, func(t *testing.T) {
				visitor, service := r.connect(t)
				from, to := service, visitor
				if upward {
					from, to = visitor, service
				}
				sent := int64(fill(t, from, content(5)))
				beside, echoing := r.connect(t)
				say(t, beside, "beside it")
				hear(t, echoing, "beside it")
				closeWrite(t, echoing)
				wantRest(t, beside, "")
				closeWrite(t, beside)
				r.engines[0].passed()
				wantDone(t, r.engines)

				rest := bytes.NewReader([]byte("the rest"))
				parallel(t,
					func() error {
						if _, err := io.Copy(from, rest); err != nil {
							return err
						}
						return from.CloseWrite()
					},
					func() error {
						want, _ := digest(content(5), sent)
						got, err := digest(to, sent)
						if err != nil || got != want {
							return fmt.Errorf("digest equal: %v, %w", got == want, err)
						}
						tail, err := io.ReadAll(to)
						if err != nil || string(tail) != "the rest" {
							return fmt.Errorf("got %q, %w", tail, err)
						}
						return to.CloseWrite()
					},
				)
				wantDone(t, r.engines)
			})
		}
	})
}

// wantDone wants one stream to end well on every engine.
func wantDone(t *testing.T, engines []*fixture) {
	t.Helper()
	for _, f := range engines {
		if ev := await[StreamEnded](f); ev.Reason != Done {
			t.Errorf("ended with %+v", ev)
		}
	}
}
