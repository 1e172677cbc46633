package client

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/retry"
	"github.com/cproxy/cproxy/core/wire"
)

func TestFirstConnectionRefusedForGood(t *testing.T) {
	tests := []struct {
		name   string
		answer func(k *fakeControl)
		code   wire.Code
		want   string
	}{
		{"bad credential", func(k *fakeControl) { k.goodbye(wire.CodeBadCredential) }, wire.CodeBadCredential, "token add"},
		{"forbidden", func(k *fakeControl) { k.goodbye(wire.CodeForbidden) }, wire.CodeForbidden, "ask the operator"},
		{"newer server", func(k *fakeControl) {
			k.welcome(func(w *wire.Welcome) { w.Version, w.ControlId = wire.Version+1, 0 })
		}, wire.CodeVersion, "upgrade cproxy-client"},
		{"older server", func(k *fakeControl) {
			k.welcome(func(w *wire.Welcome) { w.Version = wire.MinVersion - 1 })
		}, wire.CodeVersion, "upgrade cproxy-server"},
		{"encrypted proxy connections", func(k *fakeControl) {
			k.welcome(func(w *wire.Welcome) { w.Mode = wire.ModeTLS })
		}, wire.CodeVersion, "upgrade cproxy-client"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeServer(t)
			r := start(t, s.options(), nil)
			tt.answer(s.login())
			err := r.result()
			refused, ok := errors.AsType[*wire.RefusedError](err)
			if !ok || refused.Code() != tt.code || !IsRefused(err) {
				t.Fatalf("Run = %v, want a refusal for good with %v", err, tt.code)
			}
			for _, want := range []string{tt.want, s.ctl.Addr().String()} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestWrongPin(t *testing.T) {
	s := newFakeServer(t)
	o := s.options()
	o.Reloadable.Trust.Pins = []identity.Pin{{1}}
	err := start(t, o, nil).result()
	if _, ok := errors.AsType[*identity.PinError](err); !ok || !IsRefused(err) {
		t.Errorf("Run = %v, want a wrong pin", err)
	}
}

func TestUnreadableCAFile(t *testing.T) {
	s := newFakeServer(t)
	o := s.options()
	o.Reloadable.Trust = identity.Trust{CAFile: t.TempDir() + "/none.pem"}
	if err := start(t, o, nil).result(); err == nil || IsRefused(err) || !strings.Contains(err.Error(), "none.pem") {
		t.Errorf("Run = %v, want an error about the file", err)
	}
}

func TestFirstConnectionIsTriedAgain(t *testing.T) {
	tests := []struct {
		name   string
		answer func(k *fakeControl)
	}{
		{"too many attempts", func(k *fakeControl) { k.goodbye(wire.CodeRate) }},
		{"no session although none was claimed", func(k *fakeControl) { k.goodbye(wire.CodeNotResumable) }},
		{"closed", (*fakeControl).drop},
		{"not an answer", func(k *fakeControl) { k.send((&wire.Ping{}).ServerMessage()) }},
		{"an invalid answer", func(k *fakeControl) { k.welcome(func(w *wire.Welcome) { w.SessionKey = nil }) }},
		{"nothing to reach", func(k *fakeControl) { k.welcome(func(w *wire.Welcome) { w.ProxyAddress = "proxy.invalid:1" }) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeServer(t)
			r := start(t, s.options(Tunnel{Name: "web", Network: "tcp", Address: "127.0.0.1:1"}), func(c *Client) {
				c.lookup = func(context.Context, string, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
			})
			tt.answer(s.login())
			k := s.login()
			if k.hello.GetEpoch() != 2 || k.hello.GetCredential() == nil {
				t.Errorf("second Hello: %v, want epoch 2 with the credential", k.hello)
			}
			k.welcome(nil).registers("web")
			k.accept("web", 1, "127.0.0.1:2001")
			r.shows("web 127.0.0.1:2001")
		})
	}
}

// A server that accepts connections and says nothing, and one that speaks
// something else, must not hold the client up.
func TestStrangeServer(t *testing.T) {
	tests := map[string]string{"silent": "", "not TLS": "220 mail.example ESMTP\r\n"}
	for name, greeting := range tests {
		t.Run(name, func(t *testing.T) {
			s := newFakeServer(t)
			strange := listen(t)
			o := s.options()
			o.Reloadable.Servers = []string{strange.Addr().String()}
			o.Reloadable.Settings.Connect = 100 * time.Millisecond
			r := start(t, o, func(c *Client) { c.timing.attempt, c.timing.answer = 0, 0 })
			for range 2 { // the second shows that the first was given up
				conn, err := strange.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if _, err := conn.Write([]byte(greeting)); err != nil {
					t.Fatal(err)
				}
			}
			r.stop()
			if err := r.result(); err != nil {
				t.Errorf("Run = %v", err)
			}
		})
	}
}

// A long timeouts.connect is not cut short by the bound of the whole attempt.
func TestAttemptLeavesTimeToConnect(t *testing.T) {
	for connect, want := range map[time.Duration]time.Duration{
		time.Second: 15 * time.Second, 10 * time.Second: 15 * time.Second, time.Minute: 65 * time.Second,
	} {
		if got := defaultTiming().whole(connect); got != want {
			t.Errorf("connect %v: %v, want %v", connect, got, want)
		}
	}
}

func TestHello(t *testing.T) {
	s := newFakeServer(t)
	start(t, s.options(), nil)
	k := s.login()
	h := k.hello
	if h.GetVersion() != wire.Version || h.GetName() != "office" || h.GetEpoch() != 1 || h.GetClientVersion() != "test" {
		t.Errorf("Hello: %v", h)
	}
	if c := h.GetCredential(); c.GetName() != "token" || len(c.GetSecret()) != wire.SecretSize || c.GetSecret()[2] != 3 {
		t.Errorf("credential of %q with %d bytes", c.GetName(), len(c.GetSecret()))
	}
	instance := string(h.GetInstance())
	k.drop()
	if again := s.login(); string(again.hello.GetInstance()) != instance {
		t.Error("the instance changed within a process")
	}
}

func TestResume(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(Tunnel{Name: "web", Network: "tcp", Address: "127.0.0.1:1"}), nil)
	k := s.login().welcome(nil)
	k.registers("web")
	k.accept("web", 9, "127.0.0.1:2001")
	r.shows("web 127.0.0.1:2001")
	k.drop()

	k = s.login()
	if k.hello.GetEpoch() != 2 || !wire.CheckResumeProof(k.hello.GetProof(), sessionKey(1), 2, k.exporter) {
		t.Fatalf("second Hello: %v, want a proof for epoch 2", k.hello)
	}
	k.welcome(func(w *wire.Welcome) {
		w.Resumed = true
		w.Tunnels = []*wire.TunnelRegistered{{Name: "web", Id: 9, PublicAddresses: []string{"127.0.0.1:2001"}}}
	})
	k.quiet()
	k.send((&wire.NeedProxyConn{N: 1}).ServerMessage())
	_, p, sealed := s.proxyConn()
	if err := p.Verify(sealed, frame.NewKey(sessionKey(2)), [32]byte{}); err != nil || p.Epoch != 2 || p.ProxyID != 1 {
		t.Errorf("preface %+v: %v, want the first of epoch 2", p, err)
	}
	k.drop()

	// The third proof is under the second key.
	k = s.login()
	if !wire.CheckResumeProof(k.hello.GetProof(), sessionKey(2), 3, k.exporter) {
		t.Errorf("third Hello: %v, want a proof under the new key", k.hello)
	}
	if len(r.ready) > 0 {
		t.Errorf("%q was shown again", <-r.ready)
	}
}

func TestSessionUnknown(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(Tunnel{Name: "web", Network: "tcp", Address: "127.0.0.1:1"}), func(c *Client) {
		c.timing.draw = func(n int64) int64 { return n / 100 } // a retry that is not at once would be noticed
	})
	k := s.login().welcome(nil)
	k.registers("web")
	k.accept("web", 9, "127.0.0.1:2001")
	k.drop()
	if k = s.login(); k.hello.GetProof() == nil {
		t.Fatalf("second Hello: %v, want a proof", k.hello)
	}
	k.goodbye(wire.CodeNotResumable)
	if k = s.login(); k.hello.GetCredential() == nil || k.hello.GetEpoch() != 3 {
		t.Fatalf("third Hello: %v, want the credential", k.hello)
	}
	k.welcome(func(w *wire.Welcome) { w.ControlId = 78 })
	k.registers("web")
	k.accept("web", 1, "127.0.0.1:2002")
	r.shows("web 127.0.0.1:2001")
	r.shows("web 127.0.0.1:2002")
	if !strings.Contains(r.logs.String(), "connecting again at once") {
		t.Error("the credential was not tried at once")
	}
}

// Words of the server after which a proof is of no use, and others.
func TestGoodbyeWhileConnected(t *testing.T) {
	tests := []struct {
		code  wire.Code
		proof bool
	}{
		{wire.CodeShutdown, true},
		{wire.CodeKicked, true},
		{wire.CodeSuperseded, false},
		{wire.CodeRevoked, false},
		{wire.CodeBadCredential, false},
	}
	for _, tt := range tests {
		t.Run(tt.code.Label(), func(t *testing.T) {
			s := newFakeServer(t)
			start(t, s.options(), nil)
			k := s.login().welcome(nil)
			k.goodbye(tt.code)
			k = s.login()
			if got := k.hello.GetProof() != nil; got != tt.proof {
				t.Errorf("next Hello has a proof: %v, want %v", got, tt.proof)
			}
		})
	}
}

func TestRefusedForGoodAfterFirstConnection(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(), nil)
	s.login().welcome(nil).drop()
	s.login().goodbye(wire.CodeBadCredential)
	k := s.login()
	if k.hello.GetCredential() == nil {
		t.Errorf("third Hello: %v, want the credential", k.hello)
	}
	k.goodbye(wire.CodeForbidden)
	s.login().welcome(nil).quiet()
	if len(r.ended) > 0 {
		t.Errorf("Run = %v", r.result())
	}
}

func TestSilenceEndsConnection(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(), nil)
	s.login().welcome(func(w *wire.Welcome) { w.HeartbeatMs = 20 })
	s.login().welcome(nil)
	r.logs.Await(t, errSilent.Error())
}

func TestUnexpectedMessages(t *testing.T) {
	tests := map[string]func(k *fakeControl){
		"second Welcome":  func(k *fakeControl) { k.welcome(nil) },
		"invalid message": func(k *fakeControl) { k.send((&wire.NeedProxyConn{}).ServerMessage()) },
		"unknown message": func(k *fakeControl) { k.send(new(wire.ServerMessage)) },
		"garbage": func(k *fakeControl) {
			if _, err := k.conn.Write([]byte{2, 0xff, 0xff}); err != nil {
				k.t.Fatal(err)
			}
		},
	}
	for name, disturb := range tests {
		t.Run(name, func(t *testing.T) {
			s := newFakeServer(t)
			start(t, s.options(), nil)
			disturb(s.login().welcome(nil))
			if k := s.login(); k.hello.GetProof() == nil {
				t.Errorf("next Hello: %v, want a proof", k.hello)
			}
		})
	}
}

func TestGoodbyeOnStop(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(), func(c *Client) { c.timing.farewell = patience })
	k := s.login().welcome(nil)
	k.quiet()
	k.send((&wire.Ping{}).ServerMessage()) // under way while the client stops
	r.stop()
	for {
		m := k.next()
		if m.GetPong() != nil {
			continue
		}
		if m.GetGoodbye().GetRefusal().GetCode() != wire.CodeDone {
			t.Fatalf("got %v, want Goodbye", m)
		}
		break
	}
	k.drop() // what the client waits for
	if err := r.result(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestStopWhileConnecting(t *testing.T) {
	s := newFakeServer(t)
	r := start(t, s.options(), nil)
	s.login() // no answer
	r.stop()
	if err := r.result(); err != nil {
		t.Errorf("Run = %v", err)
	}
}

func TestReconnectDelay(t *testing.T) {
	refusal := func(code wire.Code, after time.Duration) error {
		return wire.NewGoodbye(wire.NewRefusal(code, ""), after).Err()
	}
	tests := []struct {
		name string
		err  error
		want time.Duration
	}{
		{"network", errSilent, 0},
		{"the server names a time", refusal(wire.CodeShutdown, 3*time.Second), 3 * time.Second},
		{"superseded", refusal(wire.CodeSuperseded, 0), time.Minute},
		{"superseded for longer", refusal(wire.CodeSuperseded, time.Hour), time.Hour},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, draw := range []struct {
				of   func(n int64) int64
				more time.Duration
			}{{func(int64) int64 { return 0 }, 0}, {func(n int64) int64 { return n - 1 }, retry.DefaultBase}} {
				synctest.Test(t, func(t *testing.T) {
					o := &owner{log: discard()}
					o.link.backoff = retry.Backoff{Int64N: draw.of}
					o.lost("lost", "server", tt.err, reconnectFloor(tt.err, defaultTiming()))
					if got := time.Until(o.link.retryAt); got != tt.want+draw.more {
						t.Errorf("delay %v, want %v", got, tt.want+draw.more)
					}
				})
			}
		})
	}
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name    string
		answer  func(k *fakeControl)
		refused bool
		ok      bool
	}{
		{"accepted", func(k *fakeControl) {
			k.welcome(nil)
			conn, p, _ := k.server.proxyConn()
			ready(k.t, conn, p, sessionKey(1))
			if m := k.next(); m.GetGoodbye() == nil {
				k.t.Errorf("got %v, want Goodbye", m)
			}
		}, false, true},
		{"refused", func(k *fakeControl) { k.goodbye(wire.CodeBadCredential) }, true, false},
		{"refused for now", func(k *fakeControl) { k.goodbye(wire.CodeUnavailable) }, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newFakeServer(t)
			o := s.options()
			o.Log = discard()
			c, err := New(o)
			if err != nil {
				t.Fatal(err)
			}
			result := make(chan error, 1)
			go func() { result <- c.Check(t.Context()) }()
			tt.answer(s.login())
			err = <-result
			if (err == nil) != tt.ok || IsRefused(err) != tt.refused {
				t.Errorf("Check = %v", err)
			}
		})
	}
}
