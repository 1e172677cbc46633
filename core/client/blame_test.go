package client

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/cproxy/cproxy/core/logging"
	"github.com/cproxy/cproxy/core/logging/logtest"
	"github.com/cproxy/cproxy/core/relay"
)

// Who reads the log of a visitor that was turned away knows what to do.
func TestLocalServerIsBlamedForTheRightThing(t *testing.T) {
	tests := []struct {
		name    string
		network string
		reason  relay.Reason
		err     error
		says    []string
	}{
		{"nobody listens", "tcp", relay.DialError, syscall.ECONNREFUSED, []string{"service runs and listens there", `error="connection refused"`}},
		{"left over socket", "unix", relay.DialError, syscall.ECONNREFUSED, []string{"left over", "listens there"}},
		{"no socket", "unix", relay.DialError, syscall.ENOENT, []string{"does not exist", "no such file"}},
		{"forbidden socket", "unix", relay.DialError, syscall.EACCES, []string{"let the user of cproxy-client write to the socket", "permission denied"}},
		{"forbidden address", "tcp", relay.DialError, syscall.EPERM, []string{"firewall", "operation not permitted"}},
		{"no address", "tcp", relay.DialError, relay.ErrNoAddress, []string{"DNS", "no address"}},
		{"no answer", "tcp", relay.DialError, syscall.ETIMEDOUT, []string{"in time", "timed out"}},
		{"no route", "tcp", relay.DialError, syscall.EHOSTUNREACH, []string{"routes"}},
		{"not told why", "tcp", relay.DialError, nil, []string{"listens there"}},
		{"no descriptors", "tcp", relay.NoDescriptors, nil, []string{"LimitNOFILE"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			o, logs := blamedOwner(t, Tunnel{Name: "web", Network: test.network, Address: "somewhere"})
			ev := relay.StreamEnded{Tunnel: o.tunnels.byName["web"].id, Source: netip.MustParseAddrPort("192.0.2.7:9"), Reason: test.reason, Err: test.err}
			for range 5 {
				o.streamEnded(ev)
			}
			log := logs.String()
			for _, want := range append(test.says, "level=WARN", "tunnel=web", "address=somewhere", "source=192.0.2.7:9") {
				if !strings.Contains(log, want) {
					t.Errorf("the log lacks %q: %s", want, log)
				}
			}
			if n := strings.Count(log, "level=WARN"); n != 1 {
				t.Errorf("%d lines for one cause", n)
			}
			ev.Reason, ev.Err = relay.DialError, syscall.EINVAL
			o.streamEnded(ev)
			if n := strings.Count(logs.String(), "level=WARN"); n != 2 {
				t.Errorf("%d lines for two causes", n)
			}
		})
	}
}

func blamedOwner(t *testing.T, tunnels ...Tunnel) (*owner, *logtest.Output) {
	t.Helper()
	logs := new(logtest.Output)
	log := slog.New(slog.NewTextHandler(logs, nil))
	c := &Client{engine: relay.New(relay.Options{Loops: 1}), timing: defaultTiming(), options: Options{Log: log}}
	o := newOwner(c)
	o.limited = logging.NewRateLimited(log, limitEvery, limitKeys)
	for _, config := range tunnels {
		o.addTunnel(config)
	}
	return o, logs
}

func TestDialAdvice(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		syscall.EMFILE: "LimitNOFILE", syscall.ENFILE: "LimitNOFILE", syscall.ECONNREFUSED: "proxy_listen", syscall.ETIMEDOUT: "firewalls",
	} {
		err := fmt.Errorf("dial proxy port: %w", errno)
		if got := dialAdvice(err); !strings.Contains(got, want) || strings.Contains(got, "firewalls") && want == "LimitNOFILE" {
			t.Errorf("%v: %s", err, got)
		}
	}
	if got := dialAdvice(syscall.ETIMEDOUT); !strings.Contains(got, "open files") {
		t.Errorf("only firewalls are blamed: %s", got)
	}
}
