package e2e

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// ctl and proxy are the addresses of the two ports that clients connect to.
func (w *world) ctl() string   { return net.JoinHostPort(w.ip, portText(w.doors.ctl[0])) }
func (w *world) proxy() string { return net.JoinHostPort(w.ip, w.proxyPort) }

// wantDropped reads until the other end closes, which it has to do without
// having sent a byte.
func wantDropped(c net.Conn) error {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, c)
	switch {
	case n > 0:
		return fmt.Errorf("it was answered with %d bytes", n)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("it was not closed")
	}
	return nil // closed in one way or the other
}

// What is not the protocol is closed, and disturbs nobody.
func TestGarbage(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	running := visit(t, w.web())
	say(t, running, "before")
	tests := map[string][]byte{
		"http":                []byte("GET / HTTP/1.1\r\nHost: example.net\r\n\r\n"),
		"zeros":               make([]byte, 1<<20),
		"noise":               random(1 << 16),
		"not TLS 1.3":         {0x16, 0x03, 0x01, 0x00, 0x02, 0x02, 0x50},
		"huge ClientHello":    append([]byte{0x16, 0x03, 0x01, 0x40, 0x00, 0x01, 0xff, 0xff, 0xff}, make([]byte, 16<<10)...),
		"empty records":       []byte(strings.Repeat("\x16\x03\x01\x00\x00", 1000)),
		"a frame":             startFrame(),
		"preface of zeros":    append([]byte(frame.Magic), make([]byte, frame.PrefaceSize)...),
		"preface of noise":    append(append([]byte(frame.Magic), 1, 0, 0, 0), random(64)...),
		"other version":       append([]byte("CPX\x02"), make([]byte, frame.PrefaceSize)...),
		"preface and a START": append(append([]byte(frame.Magic), make([]byte, frame.PrefaceSize-4)...), startFrame()...),
	}
	for name, text := range tests {
		for port, address := range map[string]string{"control": w.ctl(), "proxy": w.proxy()} {
			t.Run(name+" to the "+port+" port", func(t *testing.T) {
				c := visit(t, address)
				_, _ = c.Write(text)   // it may be closed before the end
				_ = c.CloseWrite()     // likewise
				if port == "control" { // TLS may end with an alert
					_, _ = io.Copy(io.Discard, c)
				} else if err := wantDropped(c); err != nil {
					t.Error(err)
				}
				say(t, running, name)
				wantRoundTrip(t, w.web(), name)
			})
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = io.ReadFull(noise(42), b) // it has no end
	return b
}

func startFrame() []byte {
	b := make([]byte, frame.HeaderSize+frame.StartSize)
	frame.PutStart(b, 1, frame.Stream{Tunnel: 2})
	return b
}

// Handshakes that a client of ours would never begin.
func TestForeignTLS(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	tests := map[string]*tls.Config{
		"no ALPN":      {InsecureSkipVerify: true},
		"other ALPN":   {InsecureSkipVerify: true, NextProtos: []string{"h2"}},
		"of ProxyConn": {InsecureSkipVerify: true, NextProtos: []string{"cproxy-proxy/1"}},
		"TLS 1.2":      {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, NextProtos: []string{"cproxy-ctl/1"}},
	}
	for name, config := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", w.ctl(), config)
			if err != nil {
				return
			}
			defer c.NetConn().Close()
			bound(t, c)
			// The server's refusal of a client without ALPN comes behind the handshake.
			if n, err := c.Read(make([]byte, 1)); err == nil || n > 0 {
				t.Errorf("it was let in: %d bytes", n)
			}
		})
	}
	wantRoundTrip(t, w.web(), "undisturbed")
}

// Peers that say nothing, or only half of something, are closed after a while;
// until then they hold up nobody.
func TestSilence(t *testing.T) {
	t.Parallel()
	const peers = 1000
	w := echoWorld(t, setup{})
	running := visit(t, w.web())
	say(t, running, "before")
	halves := [][]byte{nil, []byte(frame.Magic), {0x16, 0x03, 0x01, 0x02}, make([]byte, 0)}
	var silent []net.Conn
	for i := range peers {
		for _, address := range []string{w.ctl(), w.proxy()} {
			c := visit(t, address)
			_, _ = c.Write(halves[i%len(halves)]) // it is refused at worst
			silent = append(silent, c)
		}
	}
	var tasks sync.WaitGroup
	gone := make(chan struct{})
	errs := make([]error, len(silent))
	for i, c := range silent {
		tasks.Go(func() { errs[i] = wantDropped(c) })
	}
	go func() {
		tasks.Wait()
		close(gone)
	}()
	// While they are there, visitors, streams and new clients are served.
	visits := 0
	for open := true; open || visits == 0; visits++ {
		say(t, running, "undisturbed")
		wantRoundTrip(t, w.web(), "undisturbed")
		if visits == 0 {
			w.run("", "cproxy-client", "check", "--connect", "--config", w.path("client.toml"))
		}
		select {
		case <-gone:
			open = false
		default:
		}
	}
	tasks.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if n := w.server.stderr.count(`msg="(control|proxy) connection refused"`); n == 0 || n > 20 {
		t.Errorf("%d lines about %d silent peers, want a few", n, len(silent))
	}
}

// Visitors who leave before their stream begins cost nothing.
func TestVisitorsWhoLeave(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	var tasks sync.WaitGroup
	for range 8 {
		tasks.Go(func() {
			for i := range 50 {
				c, err := dial(w.web())
				if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					err = reset(c)
				} else {
					err = c.Close()
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	tasks.Wait()
	wantRoundTrip(t, w.web(), "still there")
}

// A process that is told to stop twice, or while it reloads, still ends.
func TestSignalsAtOnce(t *testing.T) {
	t.Parallel()
	w := echoWorld(t, setup{})
	for range 20 {
		w.signal(w.client, syscall.SIGHUP)
		w.signal(w.server, syscall.SIGHUP)
	}
	wantRoundTrip(t, w.web(), "still there")
	w.signal(w.client, syscall.SIGHUP)
	w.signal(w.client, syscall.SIGTERM)
	w.signal(w.client, syscall.SIGHUP)
	w.wantExit(w.client, 0)
	w.signal(w.server, syscall.SIGHUP)
	w.signal(w.server, syscall.SIGTERM)
	w.signal(w.server, syscall.SIGHUP)
	w.wantExit(w.server, 0)
}
