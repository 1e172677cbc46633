package wire

import (
	"strings"
	"testing"
	"time"
)

// invalid is a change that makes a valid message invalid, and a part of the
// error that must follow.
type invalid[M any] struct {
	name string
	edit func(M)
	want string
}

func TestValidateClientMessage(t *testing.T) {
	hello := func(edit func(*Hello)) func(*ClientMessage) {
		return func(m *ClientMessage) { h := testHello(); edit(h); m.Kind = h.ClientMessage().Kind }
	}
	spec := func(edit func(*TunnelSpec)) func(*ClientMessage) {
		return func(m *ClientMessage) {
			s := testSpec()
			edit(s)
			m.Kind = (&RegisterTunnel{Spec: s}).ClientMessage().Kind
		}
	}
	credential := func(name string, secret int) *Hello_Credential {
		return &Hello_Credential{Credential: &Credential{Name: name, Secret: make([]byte, secret)}}
	}
	tests := []invalid[*ClientMessage]{
		{"no kind", func(m *ClientMessage) { m.Kind = nil }, "kind"},
		{"hello without name", hello(func(h *Hello) { h.Name = "" }), "Hello: name"},
		{"hello with long name", hello(func(h *Hello) { h.Name = strings.Repeat("n", MaxName+1) }), "64"},
		{"hello with path as name", hello(func(h *Hello) { h.Name = "../x" }), `"../x"`},
		{"short instance", hello(func(h *Hello) { h.Instance = h.Instance[1:] }), "instance of 15"},
		{"long hostname", hello(func(h *Hello) { h.Hostname = strings.Repeat("h", MaxHostname+1) }), "hostname"},
		{"escape in hostname", hello(func(h *Hello) { h.Hostname = "a\x1b[2J" }), "printable"},
		{"newline in version", hello(func(h *Hello) { h.ClientVersion = "v1\n" }), "client_version"},
		{"no auth", hello(func(h *Hello) { h.Auth = nil }), "neither"},
		{"credential without name", hello(func(h *Hello) { h.Auth = credential("", SecretSize) }), "credential"},
		{"credential missing", hello(func(h *Hello) { h.Auth = &Hello_Credential{} }), "credential"},
		{"short secret", hello(func(h *Hello) { h.Auth = credential("a", SecretSize-1) }), "secret of 31"},
		{"long proof", hello(func(h *Hello) { h.Auth = &Hello_Proof{Proof: make([]byte, ProofSize+1)} }), "proof of 33"},
		{"no spec", func(m *ClientMessage) { m.Kind = (&RegisterTunnel{}).ClientMessage().Kind }, "RegisterTunnel"},
		{"spec without name", spec(func(s *TunnelSpec) { s.Name = "" }), "name"},
		{"spec without type", spec(func(s *TunnelSpec) { s.Type = "" }), "type"},
		{"first port only", spec(func(s *TunnelSpec) { s.PortLast = 0 }), "ports"},
		{"last port only", spec(func(s *TunnelSpec) { s.PortFirst = 0 }), "ports"},
		{"ports reversed", spec(func(s *TunnelSpec) { s.PortFirst = 20101 }), "20101"},
		{"port too large", spec(func(s *TunnelSpec) { s.PortLast = 65536 }), "65536"},
		{"bind that is a name", spec(func(s *TunnelSpec) { s.Bind = []string{"localhost"} }), "localhost"},
		{"bind too long", spec(func(s *TunnelSpec) { s.Bind = []string{"fe80::1%" + strings.Repeat("z", 300)} }), "bind"},
		{"too many binds", spec(func(s *TunnelSpec) { s.Bind = make([]string, MaxAddresses+1) }), "17"},
		{"close without name", func(m *ClientMessage) { m.Kind = (&CloseTunnel{}).ClientMessage().Kind }, "CloseTunnel"},
		{"goodbye without refusal", func(m *ClientMessage) { m.Kind = (&Goodbye{}).ClientMessage().Kind }, "refusal"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := new(ClientMessage)
			test.edit(m)
			wantError(t, m.Validate(), test.want)
		})
	}
}

func TestValidateServerMessage(t *testing.T) {
	welcome := func(edit func(*Welcome)) func(*ServerMessage) {
		return func(m *ServerMessage) { w := testWelcome(); edit(w); m.Kind = w.ServerMessage().Kind }
	}
	registered := func(edit func(*TunnelRegistered)) func(*ServerMessage) {
		return func(m *ServerMessage) { r := testRegistered(); edit(r); m.Kind = r.ServerMessage().Kind }
	}
	body := func(b interface{ ServerMessage() *ServerMessage }) func(*ServerMessage) {
		return func(m *ServerMessage) { m.Kind = b.ServerMessage().Kind }
	}
	longReason := &Refusal{Reason: strings.Repeat("r", MaxReason+1)}
	tooLate := &Goodbye{Refusal: NewRefusal(CodeRate, ""), RetryAfterMs: 1 << 60}
	tests := []invalid[*ServerMessage]{
		{"no kind", func(m *ServerMessage) { m.Kind = nil }, "kind"},
		{"no control id", welcome(func(w *Welcome) { w.ControlId = 0 }), "control_id"},
		{"short key", welcome(func(w *Welcome) { w.SessionKey = w.SessionKey[:16] }), "session_key of 16"},
		{"no heartbeat", welcome(func(w *Welcome) { w.HeartbeatMs = 0 }), "heartbeat_ms"},
		{"heartbeat of years", welcome(func(w *Welcome) { w.HeartbeatMs = 1 << 62 }), "heartbeat_ms"},
		{"proxy address without port", welcome(func(w *Welcome) { w.ProxyAddress = "host" }), "host:port"},
		{"proxy port 0", welcome(func(w *Welcome) { w.ProxyAddress = "host:0" }), "port of 1"},
		{"proxy port by name", welcome(func(w *Welcome) { w.ProxyAddress = "host:http" }), "port of 1"},
		{"no mode", welcome(func(w *Welcome) { w.Mode = Mode_MODE_UNSPECIFIED }), "mode 0"},
		{"unknown mode", welcome(func(w *Welcome) { w.Mode = 99 }), "mode 99"},
		{"bad tunnel inside", welcome(func(w *Welcome) { w.Tunnels[0].Id = 0 }), "tunnel: id"},
		{"version not printable", welcome(func(w *Welcome) { w.ServerVersion = "\x00" }), "server_version"},
		{"pool without bound", welcome(func(w *Welcome) { w.PoolMax = MaxPool + 1 }), "pool_max"},
		{"tunnel without name", registered(func(r *TunnelRegistered) { r.Name = "" }), "name"},
		{"tunnel without address", registered(func(r *TunnelRegistered) { r.PublicAddresses = nil }), "addresses"},
		{"address without host", registered(func(r *TunnelRegistered) { r.PublicAddresses = []string{":80"} }), "no host"},
		{"address with escape", registered(func(r *TunnelRegistered) { r.PublicAddresses[0] = "\x1b:80" }), "printable"},
		{"rejected without name", body(&TunnelRejected{Refusal: NewRefusal(CodeRate, "")}), "name"},
		{"rejected without refusal", body(&TunnelRejected{Name: "web"}), "refusal"},
		{"long reason", body(&TunnelRejected{Name: "web", Refusal: longReason}), "reason"},
		{"need nothing", body(&NeedProxyConn{}), "n is 0"},
		{"need too many", body(&NeedProxyConn{N: MaxNeedProxyConn + 1}), "n is"},
		{"retry next year", body(tooLate), "retry_after_ms"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			m := new(ServerMessage)
			test.edit(m)
			wantError(t, m.Validate(), test.want)
		})
	}
}

func TestValidateAccepts(t *testing.T) {
	t.Run("proof instead of credential", func(t *testing.T) {
		h := testHello()
		h.Auth = &Hello_Proof{Proof: make([]byte, ProofSize)}
		wantError(t, h.ClientMessage().Validate(), "")
	})
	t.Run("unsupported version", func(t *testing.T) {
		// Refused by Negotiate, which can say what to upgrade.
		h := testHello()
		h.Version = 0
		wantError(t, h.ClientMessage().Validate(), "")
	})
	t.Run("random port and no bind", func(t *testing.T) {
		wantError(t, (&TunnelSpec{Name: "a", Type: "tcp"}).Validate(), "")
	})
	t.Run("whole port range", func(t *testing.T) {
		wantError(t, (&TunnelSpec{Name: "a", Type: "tcp", PortFirst: 1, PortLast: 65535}).Validate(), "")
	})
	t.Run("text in any script", func(t *testing.T) {
		h := testHello()
		h.Hostname = "büro-東京"
		wantError(t, h.ClientMessage().Validate(), "")
	})
	t.Run("IPv6 proxy address", func(t *testing.T) {
		w := testWelcome()
		w.ProxyAddress = "[2001:db8::1]:7001"
		wantError(t, w.ServerMessage().Validate(), "")
	})
}

func TestDurations(t *testing.T) {
	tests := []struct {
		name string
		got  time.Duration
		want time.Duration
	}{
		{"heartbeat", (&Welcome{HeartbeatMs: 1500}).Heartbeat(), 1500 * time.Millisecond},
		{"heartbeat cut", (&Welcome{HeartbeatMs: 1<<64 - 1}).Heartbeat(), MaxHeartbeat},
		{"retry", retryAfter(t, &Goodbye{RetryAfterMs: 20}), 20 * time.Millisecond},
		{"retry cut", retryAfter(t, &Goodbye{RetryAfterMs: 1<<64 - 1}), MaxRetryAfter},
		{"retry sent", retryAfter(t, NewGoodbye(nil, time.Minute)), time.Minute},
		{"retry sent negative", retryAfter(t, NewGoodbye(nil, -time.Minute)), 0},
		{"retry sent too long", retryAfter(t, NewGoodbye(nil, 2*MaxRetryAfter)), MaxRetryAfter},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.got != test.want {
				t.Errorf("got %v, want %v", test.got, test.want)
			}
		})
	}
}

// wantError fails unless err contains want; an empty want means no error.
func wantError(t *testing.T, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("got %v, want no error", err)
	case want != "" && err == nil:
		t.Errorf("got no error, want one with %q", want)
	case want != "" && !strings.Contains(err.Error(), want):
		t.Errorf("got %v, want %q in it", err, want)
	}
}
