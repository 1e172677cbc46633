package relay

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

func TestHalfClose(t *testing.T) {
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		t.Run("visitor first", func(t *testing.T) {
			visitor, service := r.connect(t)
			say(t, visitor, "request")
			closeWrite(t, visitor)
			wantRest(t, service, "request")
			for _, part := range []string{"the answer ", "comes in ", "parts"} {
				say(t, service, part)
				hear(t, visitor, part)
			}
			closeWrite(t, service)
			wantRest(t, visitor, "")
			r.ended(t, 7, 25)
		})
		t.Run("LocalServer first", func(t *testing.T) {
			visitor, service := r.connect(t)
			say(t, service, "banner")
			closeWrite(t, service)
			wantRest(t, visitor, "banner")
			for _, part := range []string{"all that ", "the visitor ", "has to say"} {
				say(t, visitor, part)
				hear(t, service, part)
			}
			closeWrite(t, visitor)
			wantRest(t, service, "")
			r.ended(t, 31, 6)
		})
		t.Run("nothing but ends", func(t *testing.T) {
			visitor, service := r.connect(t)
			closeWrite(t, visitor)
			wantRest(t, service, "")
			closeWrite(t, service)
			wantRest(t, visitor, "")
			r.ended(t, 0, 0)
		})
		t.Run("both at once", func(t *testing.T) {
			visitor, service := r.connect(t)
			say(t, visitor, "up")
			say(t, service, "down")
			closeWrite(t, visitor)
			closeWrite(t, service)
			wantRest(t, service, "up")
			wantRest(t, visitor, "down")
			r.ended(t, 2, 4)
		})
	})
}

// chunks writes a content in pieces of random sizes and ends its direction.
func chunks(c *net.TCPConn, content []byte, rng *rand.Rand) error {
	for len(content) > 0 {
		n := 1 + rng.IntN(1<<rng.IntN(18))
		n, err := c.Write(content[:min(n, len(content))])
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		content = content[n:]
	}
	return c.CloseWrite()
}

// sips reads in pieces of random sizes until the end.
func sips(c *net.TCPConn, rng *rand.Rand) ([]byte, error) {
	var all []byte
	b := make([]byte, 128<<10)
	for {
		n, err := c.Read(b[:1+rng.IntN(1<<rng.IntN(18))])
		all = append(all, b[:n]...)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, fmt.Errorf("read after %d bytes: %w", len(all), err)
		}
	}
}

// exchangeAtOnce moves content both ways at once and compares.
func exchangeAtOnce(t *testing.T, visitor, service *net.TCPConn, up, down []byte, seed uint64) {
	t.Helper()
	var all sync.WaitGroup
	side := func(name string, c *net.TCPConn, send, want []byte, salt uint64) {
		all.Go(func() {
			if err := chunks(c, send, rand.New(rand.NewPCG(seed, salt))); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		all.Go(func() {
			got, err := sips(c, rand.New(rand.NewPCG(seed, salt+1)))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: got %d bytes, %v; want %d, equal: %v", name, len(got), err, len(want), bytes.Equal(got, want))
			}
		})
	}
	side("visitor", visitor, up, down, 1)
	side("LocalServer", service, down, up, 3)
	all.Wait()
}

func randomBytes(rng *rand.Rand, most int) []byte {
	b := make([]byte, rng.IntN(1+rng.IntN(most)))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestRandomChunks(t *testing.T) {
	seed := seedOf(t)
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		rng := rand.New(rand.NewPCG(seed, 0))
		var up, down uint64
		for i := range 40 {
			visitor, service := r.connect(t)
			most := 600 << 10
			if i%4 == 0 { // tiny windows: every write is cut short somewhere, and slow
				most = 12 << 10
				for _, c := range []*net.TCPConn{visitor, service} {
					_ = c.SetReadBuffer(1 << rng.IntN(14))
					_ = c.SetWriteBuffer(1 << rng.IntN(14))
				}
			}
			a, b := randomBytes(rng, most), randomBytes(rng, most)
			exchangeAtOnce(t, visitor, service, a, b, rng.Uint64())
			drop(visitor)
			drop(service)
			r.ended(t, len(a), len(b))
			up, down = up+uint64(len(a)), down+uint64(len(b))
			if t.Failed() {
				t.Fatalf("stream %d failed", i)
			}
		}
		for i, f := range r.engines {
			if s := f.stats(linkTunnel); s.Up != up || s.Down != down || s.Opened != 40 || s.Ended != 40 || s.Refused != 0 {
				t.Errorf("engine %d: %+v, want %d up, %d down, 40 streams", i, s, up, down)
			}
		}
	})
}

// Over a unix socket, where buffers and errors are others.
func TestUnixLocalServer(t *testing.T) {
	s := unixServer(t, echo)
	k := startLink(t, linkOptions{conns: 1, target: s.target})
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10 {
		content := make([]byte, 1+rng.IntN(1<<20))
		visitor := dialTCP(t, k.public)
		var sending sync.WaitGroup
		sending.Go(func() {
			if err := chunks(visitor, content, rng); err != nil {
				t.Error(err)
			}
		})
		got, err := io.ReadAll(visitor)
		sending.Wait()
		if err != nil || !bytes.Equal(got, content) {
			t.Fatalf("got %d bytes, %v; want %d", len(got), err, len(content))
		}
		k.ended(Done, Done)
	}
}

func TestSecondAddressAnswers(t *testing.T) {
	s := localServer(t, echo)
	refusing := nobody(t).Addresses
	for name, addresses := range map[string][]Address{
		"after one that refuses":     append(refusing, s.target.Addresses...),
		"after a missing socket":     append([]Address{{Unix: t.TempDir() + "/none"}}, s.target.Addresses...),
		"after an impossible socket": append([]Address{{Unix: string(make([]byte, 200))}}, s.target.Addresses...),
		"after two that refuse":      append(append(refusing, refusing...), s.target.Addresses...),
	} {
		t.Run(name, func(t *testing.T) {
			k := startLink(t, linkOptions{conns: 1, target: Target{Addresses: addresses}})
			roundTrip(t, dialTCP(t, k.public), "found")
			k.ended(Done, Done)
		})
	}
}
