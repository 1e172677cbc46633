package identity_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
)

func TestTokenSecretRoundTrip(t *testing.T) {
	secret := identity.NewTokenSecret()
	got, err := identity.ParseTokenSecret(secret.Reveal())
	if err != nil || got != secret {
		t.Fatalf("ParseTokenSecret(Reveal()) = %v, %v: not the same secret", got == secret, err)
	}
	if !got.Matches(secret.Hash()) {
		t.Error("a secret does not match its own hash")
	}
	if identity.NewTokenSecret().Matches(secret.Hash()) {
		t.Error("another secret matches the hash")
	}
	if identity.NewTokenSecret() == secret {
		t.Error("two secrets are equal")
	}
}

func TestParseTokenSecretRefuses(t *testing.T) {
	good := identity.NewTokenSecret().Reveal()
	tests := map[string]string{
		"empty":              "",
		"short":              good[:42],
		"long":               good + "A",
		"standard alphabet":  "+" + good[1:],
		"line break inside":  good[:20] + "\n" + good[21:],
		"padding":            good[:42] + "=",
		"bits beyond the 32": good[:42] + "B",
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := identity.ParseTokenSecret(text)
			if err == nil {
				t.Fatal("accepted")
			}
			if text != "" && strings.Contains(err.Error(), text) {
				t.Errorf("error contains the input: %v", err)
			}
		})
	}
}

// TestSecretsStayHidden prints all that holds a secret in every way a program
// prints by accident.
func TestSecretsStayHidden(t *testing.T) {
	secret := identity.NewTokenSecret()
	join := identity.Join{Name: "web", Secret: secret, Address: "example.org:7000"}
	values := map[string]any{
		"secret":            secret,
		"pointer to secret": &secret,
		"join":              join,
		"pointer to join":   &join,
		"in a struct":       struct{ S identity.TokenSecret }{secret},
		"in a slice":        []identity.Join{join},
	}
	decimal := strings.Trim(fmt.Sprintf("%d", secret[:4]), "[]")
	for name, value := range values {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%c", "%U"} {
				fmt.Fprintf(&out, verb+"\n", value)
			}
			slog.New(slog.NewTextHandler(&out, nil)).Info("text", "value", value)
			slog.New(slog.NewJSONHandler(&out, nil)).Info("json", "value", value)
			if err := json.NewEncoder(&out).Encode(value); err != nil {
				t.Fatalf("encode: %v", err)
			}
			text := out.String()
			for _, leak := range []string{secret.Reveal(), fmt.Sprintf("%x", secret[:4]), fmt.Sprintf("%X", secret[:4]), decimal} {
				if strings.Contains(text, leak) {
					t.Errorf("%q leaks in:\n%s", leak, text)
				}
			}
			if !strings.Contains(text, "***") {
				t.Errorf("nothing is masked in:\n%s", text)
			}
		})
	}
}

func TestCredential(t *testing.T) {
	secret := identity.NewTokenSecret()
	text := identity.FormatCredential("web-1.example_x", secret)
	name, got, err := identity.ParseCredential(text)
	if err != nil || name != "web-1.example_x" || got != secret {
		t.Errorf("ParseCredential(FormatCredential()) = %q, same secret %v, %v", name, got == secret, err)
	}

	bad := map[string]string{
		"no colon":         secret.Reveal(),
		"no name":          ":" + secret.Reveal(),
		"name too long":    strings.Repeat("n", 65) + ":" + secret.Reveal(),
		"space in name":    "we b:" + secret.Reveal(),
		"no secret":        "web:",
		"line break":       text + "\n",
		"secret, then it":  secret.Reveal() + ":" + secret.Reveal() + ":",
		"foreign alphabet": "wéb:" + secret.Reveal(),
	}
	for name, text := range bad {
		t.Run(name, func(t *testing.T) {
			_, _, err := identity.ParseCredential(text)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), secret.Reveal()) {
				t.Errorf("error contains the secret: %v", err)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "Z9", "web.example-1_x", strings.Repeat("n", 64), "-", ".."} {
		if err := identity.CheckName(name); err != nil {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
	for _, name := range []string{"", " ", "a b", "a/b", "a:b", "a@b", "ä", "a\n", strings.Repeat("n", 65)} {
		if err := identity.CheckName(name); err == nil {
			t.Errorf("CheckName(%q) accepted it", name)
		}
	}
}
