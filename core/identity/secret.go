package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

// maxNameLength is the longest name of a token, in bytes.
const maxNameLength = 64

// TokenSecret is what a client proves itself with: 256 random bits, so a plain
// SHA-256 of it is safe to store and no slow key derivation is needed. It prints
// as *** under every verb; Reveal returns its text.
type TokenSecret [32]byte

// NewTokenSecret draws a secret from the system's random source.
func NewTokenSecret() TokenSecret {
	var s TokenSecret
	_, _ = rand.Read(s[:]) // documented never to fail: it ends the program instead
	return s
}

// ParseTokenSecret reads the text Reveal returns. Its errors never contain the
// input.
func ParseTokenSecret(text string) (TokenSecret, error) {
	var s TokenSecret
	if err := decodeBase64(s[:], text); err != nil {
		return TokenSecret{}, fmt.Errorf("secret %w: copy it whole from the join string", err)
	}
	return s, nil
}

// Reveal returns the secret as 43 characters of unpadded base64url.
func (s TokenSecret) Reveal() string { return base64.RawURLEncoding.EncodeToString(s[:]) }

// Hash returns the SHA-256 of the 32 bytes, which is what a tokens file holds.
func (s TokenSecret) Hash() [sha256.Size]byte { return sha256.Sum256(s[:]) }

// Matches reports, in constant time, whether hash is the secret's Hash.
func (s TokenSecret) Matches(hash [sha256.Size]byte) bool {
	own := s.Hash()
	return subtle.ConstantTimeCompare(own[:], hash[:]) == 1
}

// String returns ***.
func (TokenSecret) String() string { return masked }

// GoString returns ***.
func (TokenSecret) GoString() string { return masked }

// Format writes *** for every verb; without it %d would print the bytes.
func (TokenSecret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(masked)) }

// LogValue returns ***.
func (TokenSecret) LogValue() slog.Value { return slog.StringValue(masked) }

// MarshalText returns ***, so that no encoder writes the secret by accident.
func (TokenSecret) MarshalText() ([]byte, error) { return []byte(masked), nil }

// ParseCredential reads "NAME:SECRET", the content of a client's token file. The
// caller trims the line break a file ends in. Errors never contain the secret.
func ParseCredential(s string) (name string, secret TokenSecret, err error) {
	name, text, ok := strings.Cut(s, ":")
	if !ok {
		// The input is not named: it may be a secret without its name.
		return "", TokenSecret{}, errors.New("credential has no colon: write NAME:SECRET, as in the join string")
	}
	if err := CheckName(name); err != nil {
		return "", TokenSecret{}, fmt.Errorf("read credential: %w", err)
	}
	secret, err = ParseTokenSecret(text)
	if err != nil {
		return "", TokenSecret{}, fmt.Errorf("read credential: %w", err)
	}
	return name, secret, nil
}

// FormatCredential returns the text ParseCredential reads; it contains the
// secret.
func FormatCredential(name string, secret TokenSecret) string {
	return name + ":" + secret.Reveal()
}

// CheckName reports what is wrong with the name of a token: it must be 1 to 64
// letters, digits, dots, underscores or hyphens of ASCII. The error does not
// contain the name, since a mistyped credential may have put a secret there.
func CheckName(name string) error {
	if name == "" || len(name) > maxNameLength {
		return fmt.Errorf("token name has %d bytes: use 1 to %d", len(name), maxNameLength)
	}
	for i := range len(name) {
		if !isNameByte(name[i]) {
			return fmt.Errorf("token name has a character that is not allowed, at position %d: use A-Z a-z 0-9 . _ -", i+1)
		}
	}
	return nil
}

func isNameByte(c byte) bool {
	return isAlphanumeric(c) || c == '.' || c == '_' || c == '-'
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
