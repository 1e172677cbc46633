package identity_test

import (
	"crypto/sha256"
	"strings"
	"testing"

	"github.com/cproxy/cproxy/core/identity"
)

func TestPinText(t *testing.T) {
	pin := identity.Pin(sha256.Sum256([]byte("key")))
	text, err := pin.MarshalText()
	if err != nil || string(text) != pin.String() {
		t.Fatalf("MarshalText = %q, %v, want %q", text, err, pin)
	}
	if !strings.HasPrefix(pin.String(), "sha256:") || len(pin.String()) != len("sha256:")+43 {
		t.Errorf("String() = %q", pin)
	}
	var again identity.Pin
	if err := again.UnmarshalText(text); err != nil || again != pin {
		t.Errorf("UnmarshalText = %v, %v, want %v", again, err, pin)
	}
}

func TestParsePinRefuses(t *testing.T) {
	good := identity.Pin{}.String()
	for name, text := range map[string]string{
		"empty":             "",
		"no prefix":         strings.TrimPrefix(good, "sha256:"),
		"upper case prefix": strings.ToUpper(good[:7]) + good[7:],
		"short":             good[:len(good)-1],
		"padded":            good + "=",
		"standard alphabet": good[:7] + "+" + good[8:],
		"line break":        good[:10] + "\n" + good[11:],
		"spare bits set":    good[:len(good)-1] + "B",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := identity.ParsePin(text)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), "copy it whole") {
				t.Errorf("error %q does not say what to do", err)
			}
			pin := identity.Pin{1}
			if pin.UnmarshalText([]byte(text)) == nil || pin != (identity.Pin{1}) {
				t.Error("UnmarshalText accepted it or changed the pin")
			}
		})
	}
}

func FuzzParsePin(f *testing.F) {
	f.Add(identity.Pin{}.String())
	f.Add(textPin)
	f.Add("sha256:")
	f.Fuzz(func(t *testing.T, in string) {
		if pin, err := identity.ParsePin(in); err == nil && pin.String() != in {
			t.Errorf("%q and %q are the same pin", in, pin)
		}
	})
}
