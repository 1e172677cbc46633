package config

import (
	"fmt"
	"io"
	"log/slog"
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
