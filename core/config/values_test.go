package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestPortRange(t *testing.T) {
	tests := []struct {
		in   any
		want PortRange
		text string // "" if in is refused
	}{
		{int64(443), PortRange{443, 443}, "443"},
		{"443", PortRange{443, 443}, "443"},
		{"1-65535", PortRange{1, 65535}, "1-65535"},
		{"7-7", PortRange{7, 7}, "7"},
		{int64(0), PortRange{}, "random"},
		{"0", PortRange{}, "random"},
		{"", PortRange{}, ""},
		{"-", PortRange{}, ""},
		{"1-", PortRange{}, ""},
		{"-1", PortRange{}, ""},
		{"1-2-3", PortRange{}, ""},
		{"+1", PortRange{}, ""},
		{"1 - 2", PortRange{}, ""},
		{"00", PortRange{}, ""},
		{"65536", PortRange{}, ""},
		{"2-1", PortRange{}, ""},
		{int64(-5), PortRange{}, ""},
		{int64(65536), PortRange{}, ""},
		{1.5, PortRange{}, ""},
		{nil, PortRange{}, ""},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.in), func(t *testing.T) {
			got, err := parsePortRange(tt.in)
			if (err == nil) != (tt.text != "") || got != tt.want {
				t.Fatalf("got %v, %v", got, err)
			}
			if err == nil && got.String() != tt.text {
				t.Errorf("prints %s, want %s", got, tt.text)
			}
		})
	}
	r := PortRange{10, 20}
	if r.Contains(9) || !r.Contains(10) || !r.Contains(20) || r.Contains(21) {
		t.Error("Contains is not inclusive")
	}
}

func TestLocalPrints(t *testing.T) {
	for _, text := range []string{"127.0.0.1:80", "unix:/run/x", "[::1]:1"} {
		l, err := parseLocal(text)
		if err != nil || l.String() != text {
			t.Errorf("%s became %s, %v", text, l, err)
		}
	}
}

func TestSecretNeverPrints(t *testing.T) {
	s := struct{ Token Secret }{NewSecret("hunter2")}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("m", "token", s.Token, "all", s)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "token", s.Token, "all", s)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
		fmt.Fprintf(&out, verb+" "+verb, s, &s)
	}
	if err := json.NewEncoder(&out).Encode(s); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); strings.Contains(got, "hunter2") || strings.Contains(got, "68756e74657232") {
		t.Error(got)
	}
	if s.Token.Reveal() != "hunter2" || s.Token.IsZero() || !(Secret{}).IsZero() {
		t.Error("the secret is lost")
	}
}

func TestTokenForms(t *testing.T) {
	tests := []struct{ token, name string }{
		{testToken, "web"},
		{strings.Repeat("n", 64) + ":" + testSecret, strings.Repeat("n", 64)},
		{strings.Repeat("n", 65) + ":" + testSecret, ""},
		{"A.b_c-9:" + testSecret, "A.b_c-9"},
		{":" + testSecret, ""},
		{"web", ""},
		{"web:", ""},
		{"wéb:" + testSecret, ""},
		{"[x]:" + testSecret, ""},
		{testToken + "=", ""},
		{testToken + "A", ""},
		{"web:" + testSecret[:42], ""},
		{"web:" + testSecret[:42] + "B", ""}, // bits beyond the last byte
		{"web:" + testSecret[:42] + "\n", ""},
		{"web:" + testSecret[:42] + "+", ""},
	}
	for _, tt := range tests {
		t.Run(tt.token, func(t *testing.T) {
			if got := tokenName(NewSecret(tt.token)); got != tt.name {
				t.Errorf("got %q, want %q", got, tt.name)
			}
		})
	}
}

// A value that is refused must not show up in the message if it is a secret.
func TestProblemsHideSecrets(t *testing.T) {
	for _, value := range []string{`"hunter2"`, `["hunter2"]`, `hunter2`, `{hunter2 = "hunter2"}`, `"hunter2`} {
		t.Run(value, func(t *testing.T) {
			_, _, err := clientFrom(t, "server = \"a:1\"\ntoken = "+value+"\n")
			if err == nil || strings.Contains(err.Error(), "hunter2\"") {
				t.Error(err)
			}
		})
	}
}

func TestConceal(t *testing.T) {
	secret := strings.Repeat("Ab0_-", 8) + "xyz"
	tests := map[string]string{
		"":                     "",
		"host:7000":            "host:7000",
		"unix:/run/a.sock":     "unix:/run/a.sock",
		"[::1]:80":             "[::1]:80",
		"sha256:" + secret:     "sha256:" + secret,
		"site:" + secret:       "site:***",
		"site:" + secret[:20]:  "site:***",
		"site:" + secret + "=": "site:***=",
		"cproxy://site:" + secret + "@h:7000?pin=sha256:" + secret: "cproxy://site:***@h:7000?pin=sha256:" + secret,
		"a:" + secret + " b:" + secret:                             "a:*** b:***",
	}
	for in, want := range tests {
		t.Run(in, func(t *testing.T) {
			if got := conceal(in); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}
