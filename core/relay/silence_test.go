package relay

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What the kernel says of a peer decides, in this way.
func TestSilence(t *testing.T) {
	const limit = time.Minute
	for _, c := range []struct {
		silence
		dead bool
	}{
		{silence{}, false},
		{silence{limit - 1, 9}, false},
		{silence{limit, 0}, false}, // between two probes of a receiver that stalls
		{silence{limit, 1}, false}, // one of them is under way
		{silence{limit, 2}, true},
		{silence{2 * longestTry, 1}, false},
		{silence{limit + 2*longestTry, 0}, true},
	} {
		if got := c.reaches(limit); got != c.dead {
			t.Errorf("%+v: dead %v", c.silence, got)
		}
	}
	ours, _ := socketPair(t)
	defer closefd(ours)
	capTries(ours, time.Second)
	if s := silenceOf(ours); s != (silence{}) {
		t.Errorf("a unix socket: %+v", s)
	}
}

// Where the kernel cannot be told how often to probe, the last acknowledgement
// of a live receiver is soon older than the limit.
func TestStalledReceiverWithoutCap(t *testing.T) {
	s := localServer(t, nil)
	c := dialTCP(t, s.target.Addresses[0].TCP)
	s.take(t)
	fill(t, c, content(1))
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last acknowledgement is older than the limit", func() (old bool) {
		if err := raw.Control(func(fd uintptr) {
			silent := silenceOf(int(fd))
			old = silent.length >= testDead
			if silent.reaches(testDead) {
				t.Fatalf("taken for dead: %+v", silent)
			}
		}); err != nil {
			t.Fatal(err)
		}
		return old
	})
}

// Keepalive finds dead peers of quiet connections: it is on, on every socket.
func TestKeepalive(t *testing.T) {
	for name, framed := range map[string]bool{"link": true, "forwarder": false} {
		t.Run(name, func(t *testing.T) {
			d := startDeadCase(t, framed)
			seen := 0
			for _, f := range d.engines {
				f.eachSocket(func(_ *loop, k *socket, _ bool) {
					seen++
					for _, o := range []struct{ level, name, want int }{
						{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
						{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepIdle},
						{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepInterval},
						{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, keepCount},
						{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 0},
					} {
						if got, err := unix.GetsockoptInt(k.fd, o.level, o.name); err != nil || got != o.want {
							t.Errorf("option %d is %d, %v; want %d", o.name, got, err, o.want)
						}
					}
				})
			}
			if seen != 2*len(d.engines) {
				t.Errorf("%d sockets", seen)
			}
		})
	}
}
