package server

import (
	"testing"
	"time"
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
