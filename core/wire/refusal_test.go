package wire

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// Every code must have been thought about: a label, an advice, a permanence.
func TestEveryCodeIsKnown(t *testing.T) {
	permanent := map[Code]bool{
		CodeVersion: true, CodeBadCredential: true, CodeForbidden: true, CodeRevoked: true,
		CodePortNotGranted: true, CodePortOutOfRange: true, CodeBindNotGranted: true,
		CodeTunnelLimit: true, CodeDuplicateTunnel: true, CodeBadRequest: true,
	}
	fallback := Code(-1).info()
	for number, name := range Code_name {
		t.Run(name, func(t *testing.T) {
			code := Code(number)
			if info := code.info(); info == fallback && code != CodeUnspecified {
				t.Error("missing from the table")
			}
			r := NewRefusal(code, "")
			if r.GetPermanent() != permanent[code] {
				t.Errorf("permanent is %v", r.GetPermanent())
			}
			if err := r.validate(); err != nil || r.GetReason() == "" {
				t.Errorf("reason %q: %v", r.GetReason(), err)
			}
		})
	}
}

func TestNewRefusalReason(t *testing.T) {
	long := strings.Repeat("ü", MaxReason)
	tests := []struct{ name, in, want string }{
		{"kept", "choose another port", "choose another port"},
		{"one line", "a\nb\x1b[2Jc", "a b [2Jc"},
		{"not UTF-8", "a\xffb", "a?b"},
		{"cut at a rune", long, strings.Repeat("ü", (MaxReason-3)/2) + "..."},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := NewRefusal(CodeForbidden, test.in).GetReason()
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if len(got) > MaxReason || !utf8.ValidString(got) {
				t.Errorf("%d bytes", len(got))
			}
		})
	}
}

func TestRefusedError(t *testing.T) {
	refusal := NewRefusal(CodePortTaken, "port 443 is taken; choose another `remote_port`")
	err := fmt.Errorf("register tunnel: %w", (&TunnelRejected{Name: "web", Refusal: refusal}).Err())
	if got := RefusalOf(err); got != refusal {
		t.Errorf("RefusalOf gave %v", got)
	}
	if RefusalOf(errors.New("other")) != nil {
		t.Error("a refusal out of nowhere")
	}
	want := "register tunnel: refused (port taken): port 443 is taken; choose another `remote_port`"
	if err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || refused.Permanent() || refused.Code() != CodePortTaken {
		t.Errorf("got %+v", refused)
	}

	t.Run("permanence is the sender's", func(t *testing.T) {
		refused, _ := errors.AsType[*RefusedError]((&Refusal{Code: 4242, Permanent: true}).Err())
		if !refused.Permanent() {
			t.Error("a permanent refusal with an unknown code counts as temporary")
		}
		if refused.Error() == "" {
			t.Error("no text")
		}
	})
	t.Run("no refusal", func(t *testing.T) {
		if got := retryAfter(t, &Goodbye{RetryAfterMs: 5}); got != 5*time.Millisecond {
			t.Errorf("retry after %v", got)
		}
		if got := (&Goodbye{}).Err().Error(); !strings.Contains(got, "refused") {
			t.Errorf("got %q", got)
		}
	})
}

func TestNegotiate(t *testing.T) {
	tests := []struct {
		name                   string
		client, oldest, newest uint32
		want                   uint32
		upgrade                string
	}{
		{"same", 1, 1, 1, 1, ""},
		{"older but known", 2, 1, 3, 2, ""},
		{"newer client comes down", 9, 1, 3, 3, ""},
		{"too old", 1, 2, 3, 0, "upgrade cproxy-client"},
		{"zero", 0, 1, 1, 0, "upgrade cproxy-client"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, refusal := negotiate(test.client, test.oldest, test.newest)
			if got != test.want {
				t.Errorf("got version %d, want %d", got, test.want)
			}
			checkVersionRefusal(t, refusal, test.upgrade)
		})
	}
	if got, refusal := Negotiate(Version); got != Version || refusal != nil {
		t.Errorf("this version with itself: %d, %v", got, refusal)
	}
	if _, refusal := Negotiate(MinVersion - 1); refusal == nil {
		t.Error("a version before the oldest is accepted")
	}
}

func TestCheckVersion(t *testing.T) {
	tests := []struct {
		name                   string
		server, oldest, newest uint32
		upgrade                string
	}{
		{"same", 1, 1, 1, ""},
		{"older but known", 1, 1, 2, ""},
		{"too old", 1, 2, 3, "upgrade cproxy-server"},
		{"too new", 4, 2, 3, "upgrade cproxy-client"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			checkVersionRefusal(t, checkVersion(test.server, test.oldest, test.newest), test.upgrade)
		})
	}
	if refusal := CheckVersion(Version); refusal != nil {
		t.Errorf("this version with itself: %v", refusal)
	}
}

func checkVersionRefusal(t *testing.T, refusal *Refusal, upgrade string) {
	t.Helper()
	if (refusal != nil) != (upgrade != "") {
		t.Fatalf("refusal is %v", refusal)
	}
	if refusal == nil {
		return
	}
	if refusal.GetCode() != CodeVersion || !refusal.GetPermanent() || !strings.Contains(refusal.GetReason(), upgrade) {
		t.Errorf("got %v, want %q in it", refusal, upgrade)
	}
}

func retryAfter(t *testing.T, g *Goodbye) time.Duration {
	t.Helper()
	refused, ok := errors.AsType[*RefusedError](g.Err())
	if !ok {
		t.Fatal("a Goodbye is no RefusedError")
	}
	return refused.RetryAfter
}

func TestResumeProof(t *testing.T) {
	key := bytes.Repeat([]byte{7}, SessionKeySize)
	exporter := bytes.Repeat([]byte{8}, ResumeExporterSize)
	proof := ResumeProof(key, 5, exporter)
	// Fixed so that a second implementation can be checked against it.
	if got, want := fmt.Sprintf("%x", proof), "d8b9546316f9ca4876e4c231854c25d230728c1575066b2c33b7a5ceab147618"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if !CheckResumeProof(proof, key, 5, exporter) {
		t.Error("the right proof is refused")
	}
	other := bytes.Repeat([]byte{9}, SessionKeySize)
	tests := []struct {
		name     string
		proof    []byte
		key      []byte
		epoch    uint64
		exporter []byte
	}{
		{"another key", proof, other, 5, exporter},
		{"another epoch", proof, key, 6, exporter},
		{"another connection", proof, key, 5, other},
		{"cut", proof[:31], key, 5, exporter},
		{"nothing", nil, key, 5, exporter},
		{"empty key", ResumeProof(nil, 5, exporter), nil, 5, exporter},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if CheckResumeProof(test.proof, test.key, test.epoch, test.exporter) {
				t.Error("accepted")
			}
		})
	}
}

func TestSecretsAreMasked(t *testing.T) {
	hello, welcome := testHello(), testWelcome()
	proven := testHello()
	proven.Auth = &Hello_Proof{Proof: []byte("0123456789abcdefghijklmnopqrstuv")}
	tests := []struct {
		name  string
		value any
	}{
		{"credential", hello.GetCredential()},
		{"hello", hello},
		{"hello with proof", proven},
		{"client message", hello.ClientMessage()},
		{"welcome", welcome},
		{"server message", welcome.ServerMessage()},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			slog.New(slog.NewTextHandler(&out, nil)).Info("text", "value", test.value)
			slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "value", test.value)
			fmt.Fprintf(&out, "%v %+v %#v %s %x", test.value, test.value, test.value, test.value, test.value)
			for _, secret := range []string{"0123456789", "9876543210", "3031323334", "MDEyMzQ1"} {
				if strings.Contains(out.String(), secret) {
					t.Errorf("shows the secret: %s", out.String())
				}
			}
			if !strings.Contains(out.String(), masked) {
				t.Errorf("no mask: %s", out.String())
			}
		})
	}
}

func TestLogValueNamesTheMessage(t *testing.T) {
	for _, m := range clientMessages() {
		if got := fmt.Sprint(m); !strings.Contains(got, m.KindName()) {
			t.Errorf("%s prints as %s", m.KindName(), got)
		}
	}
	for _, m := range serverMessages() {
		if got := fmt.Sprint(m); !strings.Contains(got, m.KindName()) {
			t.Errorf("%s prints as %s", m.KindName(), got)
		}
	}
	if got := fmt.Sprint(&ClientMessage{}); got != "unknown" {
		t.Errorf("an empty message prints as %s", got)
	}
}
