package identity

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

const pinPrefix = "sha256:"

// Pin is the SHA-256 of a certificate's SubjectPublicKeyInfo (RFC 5280 4.1).
// It names the key, so it survives the renewal of the certificate around it. It
// is public; it may be printed and stored anywhere.
type Pin [sha256.Size]byte

// PinOf returns the pin of the key in a certificate.
func PinOf(cert *x509.Certificate) Pin {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// ParsePin reads the text form, "sha256:" and 43 characters of unpadded
// base64url (RFC 4648 5). Nothing else is accepted, so each pin has one text.
func ParsePin(s string) (Pin, error) {
	var pin Pin
	text, ok := strings.CutPrefix(s, pinPrefix)
	if !ok {
		return Pin{}, fmt.Errorf("pin %q does not begin with %q: copy it whole from the join string or the server's log", s, pinPrefix)
	}
	if err := decodeBase64(pin[:], text); err != nil {
		return Pin{}, fmt.Errorf("pin %q %w: copy it whole from the join string or the server's log", s, err)
	}
	return pin, nil
}

// String returns the text form that ParsePin reads.
func (p Pin) String() string {
	return pinPrefix + base64.RawURLEncoding.EncodeToString(p[:])
}

// MarshalText returns the text form, for configuration files and logs.
func (p Pin) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads the text form as ParsePin does.
func (p *Pin) UnmarshalText(text []byte) error {
	pin, err := ParsePin(string(text))
	if err != nil {
		return err
	}
	*p = pin
	return nil
}

// equal compares in constant time.
func (p Pin) equal(other Pin) bool {
	return subtle.ConstantTimeCompare(p[:], other[:]) == 1
}

// PinError tells that the server presented another key than the pinned ones:
// either its identity was replaced, or something else answered in its place.
type PinError struct {
	Want []Pin
	Got  Pin
}

// Error names all pins and what to do about the difference.
func (e *PinError) Error() string {
	want := make([]string, len(e.Want))
	for i, pin := range e.Want {
		want[i] = pin.String()
	}
	return fmt.Sprintf("server presented key %s but %s is pinned: if its identity was replaced on purpose, "+
		"compare with the pin `cproxy-server run` logs at start and get a new join string from `cproxy-server token add`; "+
		"otherwise something between here and the server answers in its place", e.Got, strings.Join(want, " or "))
}

// decodeBase64 fills dst from unpadded base64url of exactly its size. Its errors
// never contain text.
func decodeBase64(dst []byte, text string) error {
	encoding := base64.RawURLEncoding.Strict()
	want := encoding.EncodedLen(len(dst))
	if len(text) != want {
		return fmt.Errorf("has %d characters of base64url where %d belong", len(text), want)
	}
	// The decoder skips line breaks, which is why the decoded length counts too.
	if n, err := encoding.Decode(dst, []byte(text)); err != nil || n != len(dst) {
		return errors.New("is not valid base64url")
	}
	return nil
}
