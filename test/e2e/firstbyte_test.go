package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// The first byte of an answer over a link of 40 ms each way: one round trip of
// the link when a ProxyConn is idle, three when one has to be opened. A direct
// connection needs two. Medians are compared in round trips of the same run, with
// half a round trip to spare, so that the machine's speed does not count.
func TestFirstByte(t *testing.T) {
	const tries = 15
	l := newLAN(t)
	server, visitor := l.host("server"), l.host("visitor")
	far := l.slowHost("client", "40ms")
	local := far.serve(t, echo)
	w := newWorld(t, setup{
		at:      places{server: server, client: far},
		tunnels: []tunnel{{name: "web", local: local.address}},
	})
	ctl := net.JoinHostPort(w.ip, strconv.Itoa(int(w.doors.ctl[0])))
	cold := tunnel{name: "cold", local: local.address}
	w.writeClient("cold.toml", w.token("cold", ctl), "[pool]\nmax = 0\n", []tunnel{cold})
	coldClient := w.startClient("cold client", "cold.toml")
	coldAddress := w.address(coldClient, cold.name)

	roundTrip, direct := l.measure(visitor, local.address, tries, nil)
	var first []time.Duration
	for range tries / 3 {
		w.signal(w.client, syscall.SIGTERM)
		w.wantExit(w.client, 0)
		w.client = w.startClient("client", "client.toml")
		address := w.web()
		// The server serves visitors half a round trip later; this takes longer.
		l.measure(visitor, local.address, 1, nil)
		_, once := l.measure(visitor, address, 1, nil)
		first = append(first, once...)
	}
	_, warm := l.measure(visitor, w.web(), tries, func() {
		eventually(t, "a ProxyConn is idle", func() error {
			if c := w.take(w.client); c.streams > 0 || c.proxy == 0 {
				return errors.New(c.String())
			}
			return nil
		})
	})
	_, none := l.measure(visitor, coldAddress, tries, nil)

	t.Logf("round trip of the link %s", milliseconds(roundTrip))
	rows := []struct {
		what  string
		times []time.Duration
		most  float64 // round trips
	}{
		{"direct", direct, 2},
		{"first visitor", first, 3},
		{"idle ProxyConn", warm, 1},
		{"no ProxyConn", none, 3},
	}
	for _, r := range rows {
		trips := float64(median(r.times)) / float64(median(roundTrip))
		t.Logf("first byte, %-15s %s = %.2f round trips", r.what, milliseconds(r.times), trips)
		if len(r.times) > 1 && trips > r.most+0.5 {
			t.Errorf("first byte, %s: %.2f round trips, want %.0f", r.what, trips, r.most)
		}
	}
}

// measure visits an echo again and again, and gives the times until the
// connection and until the first byte of the answer. ready is called before each.
func (l *lan) measure(from *lanHost, address string, tries int, ready func()) (connected, answered []time.Duration) {
	l.t.Helper()
	for range tries {
		if ready != nil {
			ready()
		}
		if err := from.do(func() error {
			begin := time.Now()
			c, err := dial(address)
			if err != nil {
				return err
			}
			defer c.Close()
			connected = append(connected, time.Since(begin))
			if _, err := io.WriteString(c, "x"); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			answered = append(answered, time.Since(begin))
			// All is over when the end has come back.
			if err := c.CloseWrite(); err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, c)
			return err
		}); err != nil {
			l.t.Fatal(err)
		}
	}
	return connected, answered
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[len(sorted)/2]
}

func milliseconds(times []time.Duration) string {
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return fmt.Sprintf("%.1f ms (%.1f to %.1f)", ms(median(times)), ms(slices.Min(times)), ms(slices.Max(times)))
}
