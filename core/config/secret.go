package config

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

const masked = "***"

// Secret is a text that must not reach logs or error messages: every way of
// printing or marshalling it gives "***". The zero value is an absent secret.
type Secret struct {
	text string
}

// NewSecret wraps text.
func NewSecret(text string) Secret { return Secret{text: text} }

// Reveal returns the text itself.
func (s Secret) Reveal() string { return s.text }

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.text == "" }

// String hides the secret.
func (s Secret) String() string { return masked }

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return masked }

// Format hides the secret from all verbs, those that print fields included.
func (s Secret) Format(f fmt.State, _ rune) {
	_, _ = io.WriteString(f, masked) // as fmt does with errors of its writer
}

// LogValue hides the secret from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(masked) }

// MarshalText hides the secret from encoders such as JSON and TOML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(masked), nil }

// leastSecret is how many characters behind a colon are taken for a secret, or
// for what is left of one that was damaged or cut.
const leastSecret = 20

// conceal masks whatever looks like the SECRET of NAME:SECRET in a text that
// quotes the user: a join string ends up in all sorts of places by mistake.
// Pins look the same but for what stands before the colon.
func conceal(text string) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(text, ":")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		b.WriteByte(':')
		rest := strings.TrimLeftFunc(after, inSecret)
		if n := len(after) - len(rest); n >= leastSecret && !strings.HasSuffix(before, "sha256") {
			b.WriteString(masked)
			after = rest
		}
		text = after
	}
}

// inSecret tells the characters of unpadded base64url (RFC 4648 5).
func inSecret(c rune) bool {
	return c == '-' || c == '_' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}
