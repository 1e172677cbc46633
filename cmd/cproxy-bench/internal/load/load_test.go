//go:build linux

package load

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// calls is a Window and a Probe that notes the order of its calls.
type calls struct{ got []string }

func (c *calls) Before() error { c.got = append(c.got, "before"); return nil }
func (c *calls) Begin() error  { c.got = append(c.got, "begin"); return nil }
func (c *calls) End() error    { c.got = append(c.got, "end"); return nil }

func (c *calls) check(t *testing.T, want string) {
	t.Helper()
	if got := strings.Join(c.got, " "); got != want {
		t.Errorf("calls %q, want %q", got, want)
	}
}

// A load runs for so short a time that only counts can be checked.
const short = 50 * time.Millisecond

func TestBulk(t *testing.T) {
	a := startServer(t)
	const n = 3 << 20
	tests := []struct {
		name     string
		options  BulkOptions
		down, up uint64 // exactly, where bytes are limited
	}{
		{"down", BulkOptions{Flows: 1, Down: true, Duration: short}, 0, 0},
		{"up", BulkOptions{Flows: 3, Up: true, Duration: short}, 0, 0},
		{"both", BulkOptions{Flows: 4, Down: true, Up: true, Duration: short}, 0, 0},
		{"bytes down", BulkOptions{Flows: 2, Down: true, Bytes: n}, 2 * n, 0},
		{"bytes up", BulkOptions{Flows: 2, Up: true, Bytes: n}, 0, 2 * n},
		{"bytes both", BulkOptions{Flows: 3, Down: true, Up: true, Bytes: n + 1}, 3 * (n + 1), 3 * (n + 1)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			before := descriptors(t)
			o, w := test.options, &calls{}
			o.Target, o.Threads = a, 2
			r, err := Bulk(t.Context(), o, w)
			if err != nil {
				t.Fatal(err)
			}
			w.check(t, "begin end")
			if r.Flows != o.Flows || r.Confirmed != o.Flows || r.Elapsed <= 0 {
				t.Errorf("result %+v", r)
			}
			if o.Bytes > 0 && (r.Down != test.down || r.Up != test.up) {
				t.Errorf("down %d, up %d, want %d, %d", r.Down, r.Up, test.down, test.up)
			}
			if after := descriptors(t); after > before+o.Flows { // the server may still be closing its side
				t.Errorf("%d descriptors before, %d after", before, after)
			}
		})
	}
}

func TestPingPong(t *testing.T) {
	a := startServer(t)
	for _, o := range []PingPongOptions{{Conns: 1, Size: 1}, {Conns: 20, Size: 64}, {Conns: 3, Size: 300000}} {
		w := &calls{}
		o.Target, o.Threads, o.Duration = a, 2, short
		r, err := PingPong(t.Context(), o, w)
		if err != nil {
			t.Fatal(err)
		}
		w.check(t, "begin end")
		if r.Trips == 0 || r.Latencies.Count() != r.Trips {
			t.Errorf("%d round trips, %d latencies", r.Trips, r.Latencies.Count())
		}
	}
}

func TestChurn(t *testing.T) {
	w := &calls{}
	r, err := Churn(t.Context(), ChurnOptions{Target: startServer(t), Threads: 2, InFlight: 8, Duration: short}, w)
	if err != nil {
		t.Fatal(err)
	}
	w.check(t, "begin end")
	if r.Conns == 0 || r.Failed != 0 || r.FirstByte.Count() == 0 || r.Reason != nil {
		t.Errorf("result %+v", r)
	}
}

func TestMix(t *testing.T) {
	w := &calls{}
	r, err := Mix(t.Context(), MixOptions{
		Ping: PingPongOptions{Target: startServer(t), Conns: 4, Size: 64, Duration: short},
		Bulk: BulkOptions{Flows: 2, Down: true},
	}, w)
	if err != nil {
		t.Fatal(err)
	}
	w.check(t, "begin end")
	if r.Ping.Trips == 0 || r.Bulk.Confirmed != 2 {
		t.Errorf("result %+v", r)
	}
}

func TestIdle(t *testing.T) {
	p := &calls{}
	o := IdleOptions{Target: startServer(t), Threads: 2, Conns: 100, Size: 64, Settle: time.Millisecond, Rest: time.Millisecond}
	if err := Idle(t.Context(), o, p); err != nil {
		t.Fatal(err)
	}
	p.check(t, "before begin end")
}

// every runs all loads against a target.
func every(ctx context.Context, a netip.AddrPort) map[string]error {
	_, bulk := Bulk(ctx, BulkOptions{Target: a, Threads: 1, Flows: 1, Down: true, Duration: short}, &calls{})
	_, ping := PingPong(ctx, PingPongOptions{Target: a, Threads: 1, Conns: 2, Size: 8, Duration: short}, &calls{})
	_, churn := Churn(ctx, ChurnOptions{Target: a, Threads: 1, InFlight: 2, Duration: short}, &calls{})
	idle := Idle(ctx, IdleOptions{Target: a, Threads: 1, Conns: 2, Size: 8, Settle: short, Rest: short}, &calls{})
	return map[string]error{"bulk": bulk, "ping-pong": ping, "churn": churn, "idle": idle}
}

// A target that is not there, or not cproxy-bench, is an error that says so.
func TestBadTargets(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	targets := map[string]netip.AddrPort{
		"refuses": gone.Addr().(*net.TCPAddr).AddrPort(),
		"closes":  fake(t, func(c net.Conn) { c.Close() }),
		"babbles": fake(t, func(c net.Conn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_, _ = c.Write([]byte("220 mail.example.net ready"))
			c.Close()
		}),
	}
	for name, a := range targets {
		t.Run(name, func(t *testing.T) {
			for load, err := range every(t.Context(), a) {
				if err == nil {
					t.Errorf("%s reported success", load)
				}
			}
		})
	}
}

// A tunnel that mixes up streams must be noticed.
func TestPingPongChecksReplies(t *testing.T) {
	a := fake(t, func(c net.Conn) {
		defer c.Close()
		b := make([]byte, RequestSize+16)
		_, _ = io.ReadFull(c, b)
		_, _ = c.Write(make([]byte, 15))
		_, _ = c.Write([]byte{1})
		_, _ = io.Copy(io.Discard, c)
	})
	o := PingPongOptions{Target: a, Threads: 1, Conns: 2, Size: 16, Duration: short} // the second has another id
	if _, err := PingPong(t.Context(), o, &calls{}); err == nil || !strings.Contains(err.Error(), "echo") {
		t.Errorf("got %v", err)
	}
}

// A tunnel that loses bytes must be noticed, by the trailer.
func TestBulkChecksCounts(t *testing.T) {
	a := fake(t, func(c net.Conn) {
		defer c.Close()
		n, _ := io.Copy(io.Discard, c)
		b := Trailer{Received: uint64(n) - RequestSize - 1}.Encode()
		_, _ = c.Write(b[:])
	})
	_, err := Bulk(t.Context(), BulkOptions{Target: a, Threads: 1, Flows: 1, Up: true, Bytes: 1000}, &calls{})
	if err == nil || !strings.Contains(err.Error(), "lost") {
		t.Errorf("got %v", err)
	}
}

// A tunnel that ends both directions at the first FIN can be measured; its
// numbers are unconfirmed.
func TestBulkWithoutHalfClose(t *testing.T) {
	a := fake(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c); c.Close() })
	r, err := Bulk(t.Context(), BulkOptions{Target: a, Threads: 1, Flows: 1, Up: true, Duration: short}, &calls{})
	if err != nil || r.Confirmed != 0 || r.Flows != 1 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestInterrupted(t *testing.T) {
	a := startServer(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for load, err := range every(ctx, a) {
		if !errors.Is(err, errInterrupted) {
			t.Errorf("%s ended with %v", load, err)
		}
	}
}

// fake answers every connection its own way.
func fake(t *testing.T, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	accepting := make(chan struct{})
	handled := make(chan struct{}, 1<<16)
	started := 0
	go func() {
		defer close(accepting)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			started++
			go func() { handle(c); handled <- struct{}{} }()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-accepting
		for range started {
			<-handled
		}
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}
