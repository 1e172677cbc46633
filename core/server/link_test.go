package server

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// linked is a link and the client's end of its connection.
func linked(t *testing.T) (*link, *tls.Conn, *sync.WaitGroup) {
	t.Helper()
	a, b := net.Pipe()
	server, client := tls.Server(b, serverTLS()), tls.Client(a, clientTLS())
	done := make(chan error, 1)
	go func() { done <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(a.Close(), b.Close()) })
	tasks := new(sync.WaitGroup)
	return newLink(server, netip.AddrPort{}, tasks), client, tasks
}

func ping(n uint64) *wire.ServerMessage { return (&wire.Ping{Nonce: n}).ServerMessage() }

func goodbye() *wire.ServerMessage {
	return wire.NewGoodbye(wire.NewRefusal(wire.CodeDone, ""), 0).ServerMessage()
}

func TestLinkKeepsTheOrder(t *testing.T) {
	serverTLS()
	synctest.Test(t, func(t *testing.T) {
		k, client, tasks := linked(t)
		const n = 200
		for i := range uint64(n) {
			k.send(ping(i))
		}
		r := wire.NewReader(client)
		for i := range uint64(n) {
			if m, err := r.ReadServerMessage(); err != nil || m.GetPing().GetNonce() != i {
				t.Fatalf("message %d is %v, %v", i, m, err)
			}
		}
		tasks.Wait() // nothing to write: no goroutine
		k.send(ping(n))
		if m, err := r.ReadServerMessage(); err != nil || m.GetPing().GetNonce() != n {
			t.Fatalf("after a rest: %v, %v", m, err)
		}
	})
}

func TestLinkFinishes(t *testing.T) {
	serverTLS()
	synctest.Test(t, func(t *testing.T) {
		k, client, tasks := linked(t)
		k.send(ping(1))
		k.finish(goodbye())
		k.send(ping(2))
		k.finish(goodbye())
		r := wire.NewReader(client)
		if m, err := r.ReadServerMessage(); err != nil || m.GetPing() == nil {
			t.Fatalf("first %v, %v", m, err)
		}
		if m, err := r.ReadServerMessage(); err != nil || m.GetGoodbye() == nil {
			t.Fatalf("then %v, %v", m, err)
		}
		if m, err := r.ReadServerMessage(); !errors.Is(err, io.EOF) {
			t.Fatalf("at last %v, %v", m, err)
		}
		tasks.Wait()
		k.send(ping(3))
		k.close()
		synctest.Wait()
		if len(k.unsent) > 0 || k.writing {
			t.Error("a closed link keeps messages")
		}
	})
}

func TestLinkClosesAtOnce(t *testing.T) {
	serverTLS()
	synctest.Test(t, func(t *testing.T) {
		k, client, tasks := linked(t)
		k.send(ping(1)) // nobody reads it
		synctest.Wait()
		k.close()
		k.close()
		tasks.Wait()
		if _, err := client.Read(make([]byte, 1)); err == nil {
			t.Error("read something from a closed link")
		}
	})
}

func TestLinkDropsASlowClient(t *testing.T) {
	serverTLS()
	t.Run("by what is unsent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k, _, tasks := linked(t)
			k.send(ping(0))
			synctest.Wait() // it is being written
			for i := range uint64(maxUnsent) {
				k.send(ping(i))
			}
			if k.closed {
				t.Fatal("closed too early")
			}
			k.send(ping(0))
			if !k.closed || k.unsent != nil {
				t.Fatal("a client that reads nothing is kept")
			}
			tasks.Wait()
		})
	})
	t.Run("by the time of one write", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			k, _, tasks := linked(t)
			start := time.Now()
			k.finish(goodbye())
			tasks.Wait()
			if took := time.Since(start); took != writeTimeout || !k.closed {
				t.Errorf("closed: %v, after %v", k.closed, took)
			}
		})
	})
}
