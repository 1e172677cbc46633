package identity_test

import (
	"strings"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
)

// textSecret is 32 zero bytes; what it stands for does not matter.
const (
	textSecret = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	textPin    = "sha256:__________________________________________8"
)

func TestParseJoin(t *testing.T) {
	tests := []struct {
		name    string
		in      string
		address string
		hasPin  bool
	}{
		{"name and pin", "cproxy://web:" + textSecret + "@example.org:7000?pin=" + textPin, "example.org:7000", true},
		{"no pin", "cproxy://web:" + textSecret + "@example.org:7000", "example.org:7000", false},
		{"IPv4", "cproxy://web:" + textSecret + "@192.0.2.1:1", "192.0.2.1:1", false},
		{"IPv6", "cproxy://web:" + textSecret + "@[2001:db8::1]:65535?pin=" + textPin, "[2001:db8::1]:65535", true},
		{"single label", "cproxy://web:" + textSecret + "@localhost:7000", "localhost:7000", false},
		{"rooted name", "cproxy://web:" + textSecret + "@example.org.:7000", "example.org.:7000", false},
		{"surrounding space", " cproxy://web:" + textSecret + "@a_b:7000\r\n", "a_b:7000", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			join, err := identity.ParseJoin(tt.in)
			if err != nil {
				t.Fatalf("ParseJoin: %v", err)
			}
			if join.Name != "web" || join.Secret.Reveal() != textSecret || join.Address != tt.address {
				t.Errorf("ParseJoin = %v", join)
			}
			if (join.Pin != nil) != tt.hasPin || (tt.hasPin && join.Pin.String() != textPin) {
				t.Errorf("pin = %v, want one: %v", join.Pin, tt.hasPin)
			}
			if got := join.Reveal(); got != strings.TrimSpace(tt.in) {
				t.Errorf("Reveal() = %q, want the input back", got)
			}
			masked := strings.Replace(strings.TrimSpace(tt.in), textSecret, "***", 1)
			if got := join.String(); got != masked {
				t.Errorf("String() = %q, want %q", got, masked)
			}
		})
	}
}

func TestParseJoinRefuses(t *testing.T) {
	const start = "cproxy://web:" + textSecret + "@"
	tests := []struct {
		name, in, complaint string
	}{
		{"empty", "", "does not begin"},
		{"other scheme", "https://web:" + textSecret + "@h:1", "does not begin"},
		{"no at sign", "cproxy://web:" + textSecret, "no @"},
		{"no name", "cproxy://:" + textSecret + "@h:1", "token name"},
		{"no secret", "cproxy://web@h:1", "no colon"},
		{"damaged secret", "cproxy://web:" + textSecret[1:] + "@h:1", "secret has 42"},
		{"secret twice", "cproxy://web:" + textSecret + ":" + textSecret + "@h:1", "secret has 87"},
		{"no port", start + "example.org", "port is missing"},
		{"no port behind brackets", start + "[::1]", "port is missing"},
		{"empty port", start + "h:", "1 to 65535"},
		{"port zero", start + "h:0", "1 to 65535"},
		{"port too large", start + "h:65536", "1 to 65535"},
		{"port with a sign", start + "h:+1", "1 to 65535"},
		{"port with a zero before it", start + "h:07", "1 to 65535"},
		{"port with a name", start + "h:http", "1 to 65535"},
		{"no host", start + ":7000", "neither"},
		{"naked IPv6", start + "2001:db8::1:7000", "brackets"},
		{"brackets around IPv4", start + "[192.0.2.1]:1", "IPv6"},
		{"bracket never closed", start + "[::1:7000", "IPv6"},
		{"zone", start + "[fe80::1%eth0]:1", "zone"},
		{"bad IPv4", start + "192.0.2.999:1", "IPv4"},
		{"second at sign", start + "h@h:1", "character"},
		{"path", start + "h:1/", "1 to 65535"},
		{"fragment", start + "h:1#x", "1 to 65535"},
		{"space in host", start + "h h:1", "character"},
		{"empty label", start + "a..b:1", "label"},
		{"host name too long", start + strings.Repeat("a.", 126) + "aa:1", "longer"},
		{"empty query", start + "h:1?", "only one pin"},
		{"unknown key", start + "h:1?mode=plain", "only one pin"},
		{"key after pin", start + "h:1?pin=" + textPin + "&x=1", "only one pin"},
		{"two pins", start + "h:1?pin=" + textPin + "&pin=" + textPin, "only one pin"},
		{"damaged pin", start + "h:1?pin=sha256:AAAA", "pin is damaged"},
		{"other digest", start + "h:1?pin=sha512:" + textSecret, "pin is damaged"},
		{"secret in the query", start + "h:1?" + textSecret, "only one pin"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := identity.ParseJoin(tt.in)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.complaint) {
				t.Errorf("error %q does not say %q", err, tt.complaint)
			}
			if !strings.Contains(err.Error(), "cproxy-server token add") {
				t.Errorf("error %q does not say what to do", err)
			}
			if strings.Contains(err.Error(), textSecret[1:]) {
				t.Errorf("error %q contains the secret", err)
			}
		})
	}
}

func FuzzParseJoin(f *testing.F) {
	f.Add("cproxy://web:" + textSecret + "@example.org:7000?pin=" + textPin)
	f.Add("cproxy://a.b_c-d:" + textSecret + "@[2001:db8::1]:65535")
	f.Add("cproxy://web:" + textSecret + "@192.0.2.1:1?pin=")
	f.Add("cproxy://@:?")
	f.Add(" cproxy://web:" + textSecret + "@[::1%25eth0]:1 ")
	f.Fuzz(func(t *testing.T, in string) {
		join, err := identity.ParseJoin(in)
		if err != nil {
			if len(in) > 50 && strings.Contains(err.Error(), in) {
				t.Errorf("error repeats the input: %v", err)
			}
			return
		}
		text := join.Reveal()
		if text != strings.TrimSpace(in) {
			t.Errorf("Reveal() = %q of input %q", text, in)
		}
		again, err := identity.ParseJoin(text)
		if err != nil {
			t.Fatalf("ParseJoin(Reveal()): %v", err)
		}
		if again.Reveal() != text {
			t.Errorf("second round gives %q, first %q", again.Reveal(), text)
		}
		masked := strings.Replace(text, ":"+join.Secret.Reveal()+"@", ":***@", 1)
		if join.String() != masked {
			t.Errorf("String() = %q, want %q", join, masked)
		}
	})
}
