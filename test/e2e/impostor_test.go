package e2e

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/cproxy/cproxy/core/frame"
)

// A server that cannot prove that it knows the session key gets nothing from
// the client: no stream, no connection to the local service, not one byte.
func TestProxyPortWithoutKey(t *testing.T) {
	t.Parallel()
	ready := func(mac []byte) []byte {
		b := make([]byte, frame.HeaderSize, frame.HeaderSize+frame.ReadySize)
		frame.Header{Type: frame.Ready, Length: frame.ReadySize}.Put(b)
		return append(b, mac...)
	}
	tests := map[string]func(preface []byte) []byte{
		"READY of zeros": func([]byte) []byte { return ready(make([]byte, frame.ReadySize)) },
		"the client's own MAC": func(preface []byte) []byte {
			return ready(preface[frame.PrefaceSize-frame.ReadySize:])
		},
		"READY of zeros and START": func([]byte) []byte {
			return append(ready(make([]byte, frame.ReadySize)), startFrame()...)
		},
		"START without READY": func([]byte) []byte { return startFrame() },
		"its preface again":   func(preface []byte) []byte { return preface },
		"noise":               func([]byte) []byte { return random(200) },
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testImpostor(t, answer)
		})
	}
}

func testImpostor(t *testing.T, answer func(preface []byte) []byte) {
	t.Helper()
	var reached, refused atomic.Int32
	var failed atomic.Value
	local := serve(t, "tcp", "127.0.0.1:0", func(stream) { reached.Add(1) })
	w := newWorld(t, setup{
		server:  "[timeouts]\nconnect = \"1s\"",
		client:  "[timeouts]\nconnect = \"2s\"",
		tunnels: []tunnel{{name: "web", local: local.address}},
		way: func(w *world, ctl string) string {
			between := nextAddress()
			serve(t, "tcp", net.JoinHostPort(between, w.proxyPort), func(c stream) {
				preface := make([]byte, frame.PrefaceSize)
				if _, err := io.ReadFull(c, preface); err != nil {
					failed.Store(err)
					return
				}
				_, _ = c.Write(answer(preface)) // the client may close at any byte
				if err := wantDropped(c); err != nil {
					failed.Store(err)
				}
				refused.Add(1)
			})
			return newCutter(t, between, ctl).address
		},
	})
	if err := wantUnserved(w.web()); err != nil {
		t.Errorf("the visitor: %v", err)
	}
	w.log(w.client, 0, `level=WARN msg="cannot open a proxy connection" .*check that firewalls`)
	eventually(t, "the client closes", func() error {
		if refused.Load() == 0 {
			return errors.New("it has not")
		}
		return nil
	})
	if err, bad := failed.Load().(error); bad {
		t.Errorf("the client: %v", err)
	}
	if reached.Load() > 0 {
		t.Error("the local service was connected to")
	}
}

// wantUnserved visits a tunnel to which no ProxyConn leads.
func wantUnserved(address string) error {
	c, err := dial(address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	if err == nil || errors.Is(err, io.EOF) {
		return errors.New("it was served, or saw a clean end")
	}
	return nil
}

// What was seen of a ProxyConn is of no use to anybody else.
func TestReplayedAndForgedPrefaces(t *testing.T) {
	t.Parallel()
	seen := make(chan []byte, 64)
	local := serve(t, "tcp", "127.0.0.1:0", echo)
	w := newWorld(t, setup{
		tunnels: []tunnel{{name: "web", local: local.address}},
		way: func(w *world, ctl string) string {
			between := nextAddress()
			serve(t, "tcp", net.JoinHostPort(between, w.proxyPort), func(c stream) { tap(c, w.proxy(), seen) })
			return newCutter(t, between, ctl).address
		},
	})
	wantRoundTrip(t, w.web(), "through the tap")
	preface := <-seen
	change := func(at int, to byte) []byte {
		b := slices.Clone(preface)
		b[at] ^= to
		return b
	}
	tests := []struct {
		name  string
		bytes []byte
	}{
		{"replayed", preface},
		{"replayed with a START", append(slices.Clone(preface), startFrame()...)},
		{"MAC changed", change(frame.PrefaceSize-1, 1)},
		{"proxy id changed", change(31, 0x80)},
		{"proxy id far ahead", change(24, 0x80)},
		{"epoch changed", change(23, 1)},
		{"control id changed", change(15, 1)},
		{"mode changed", change(4, 3)},
		{"flags changed", change(5, 1)},
		{"version changed", change(3, 3)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := visit(t, w.proxy())
			if _, err := c.Write(tt.bytes); err != nil {
				t.Fatal(err)
			}
			if err := wantDropped(c); err != nil {
				t.Error(err)
			}
			wantRoundTrip(t, w.web(), tt.name)
		})
	}
	w.log(w.server, 0, `level=WARN msg="proxy connection refused" .*reason="preface was used before"`)
	t.Run("of a former server", func(t *testing.T) {
		mark := w.client.stderr.mark()
		w.server.kill()
		w.startServer()
		w.log(w.client, mark, `msg=connected .*resumed=false`)
		c := visit(t, w.proxy())
		if _, err := c.Write(preface); err != nil {
			t.Fatal(err)
		}
		if err := wantDropped(c); err != nil {
			t.Error(err)
		}
		eventually(t, "visitors are served", func() error { return roundTrip(w.web(), "after all that") })
	})
}

// tap passes a ProxyConn on and tells its preface.
func tap(c stream, to string, seen chan<- []byte) {
	preface := make([]byte, frame.PrefaceSize)
	if _, err := io.ReadFull(c, preface); err != nil {
		return
	}
	up, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer up.Close()
	if _, err := up.Write(preface); err != nil {
		return
	}
	select {
	case seen <- preface:
	default:
	}
	go func() {
		_, _ = io.Copy(up, c) // either end may break
		up.Close()
		c.Close()
	}()
	_, _ = io.Copy(c, up)
}
