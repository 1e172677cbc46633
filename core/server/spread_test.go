package server

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/retry"
)

// No second is given to more clients than a server logs in within it.
func TestShutdownSpread(t *testing.T) {
	seconds := int(shutdownSpread / time.Second)
	tests := []struct {
		name    string
		clients int
		most    int           // in any one second
		last    time.Duration // the last of all comes back before
	}{
		{"one", 1, 1, shutdownRetry + 1},
		{"a small herd", 2000, shutdownRate, shutdownRetry + 4*time.Second},
		{"the largest that is spread in full", seconds * shutdownRate, shutdownRate, shutdownRetry + shutdownSpread},
		{"a larger one shares the time", 3 * seconds * shutdownRate, 3 * shutdownRate, shutdownRetry + shutdownSpread},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var herd spread
			in := make(map[time.Duration]int)
			for range test.clients {
				at := herd.next()
				if at < shutdownRetry || at >= test.last {
					t.Fatalf("a client is asked back after %v, want %v to %v", at, shutdownRetry, test.last)
				}
				in[at.Truncate(time.Second)]++
			}
			for second, n := range in {
				if n > test.most {
					t.Errorf("%d clients come in the second from %v on, want at most %d", n, second, test.most)
				}
			}
		})
	}
}

// The jitter that clients add keeps the herd spread: no second sees many more
// logins than the server asked for, and no client comes early.
func TestHerdWithJitter(t *testing.T) {
	const clients = 2000
	var herd spread
	draw := rand.New(rand.NewPCG(1, 2))
	var logins []time.Duration
	for range clients {
		backoff := retry.Backoff{Int64N: draw.Int64N}
		asked := herd.next()
		at := backoff.NextAfter(asked)
		if at < asked || at > asked+retry.DefaultBase {
			t.Fatalf("a client that is asked back after %v comes after %v", asked, at)
		}
		logins = append(logins, at)
	}
	slices.Sort(logins)
	most := 0
	for i, at := range logins {
		n, _ := slices.BinarySearch(logins, at+time.Second)
		most = max(most, n-i)
	}
	t.Logf("%d clients come from %v to %v, at most %d in any second", clients, logins[0], logins[clients-1], most)
	if most > shutdownRate*6/5 {
		t.Errorf("%d clients come within a second, want about %d", most, shutdownRate)
	}
}
