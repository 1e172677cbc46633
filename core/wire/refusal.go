package wire

import (
	"errors"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// MaxReason is the longest Refusal reason in bytes.
const MaxReason = 512

// NewRefusal returns a refusal with the code's usual permanence. The reason is
// for a person and should say what to do next; it is made one printable line
// of at most [MaxReason] bytes. An empty reason takes the code's own advice.
func NewRefusal(code Code, reason string) *Refusal {
	info := code.info()
	if reason == "" {
		reason = info.advice
	}
	return &Refusal{Code: code, Permanent: info.permanent, Reason: oneLine(reason, MaxReason)}
}

// Err returns the refusal as an error of type *RefusedError.
func (x *Refusal) Err() error { return &RefusedError{Refusal: x} }

// RefusedError is a Refusal as an error. The Refusal is shared, not copied,
// and must not be changed.
type RefusedError struct {
	Refusal *Refusal
	// RetryAfter is the least time to wait before trying again; 0 leaves it
	// to the caller.
	RetryAfter time.Duration
}

// Error returns the code in words and the reason.
func (e *RefusedError) Error() string {
	code := e.Refusal.GetCode()
	reason := e.Refusal.GetReason()
	if reason == "" {
		reason = code.info().advice
	}
	return "refused (" + code.Label() + "): " + reason
}

// Code returns the machine-readable cause.
func (e *RefusedError) Code() Code { return e.Refusal.GetCode() }

// Permanent reports whether trying again with the same input cannot help, as
// the refuser sees it.
func (e *RefusedError) Permanent() bool { return e.Refusal.GetPermanent() }

// RefusalOf returns the refusal inside err, or nil if there is none.
func RefusalOf(err error) *Refusal {
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return refused.Refusal
	}
	return nil
}

// oneLine makes s safe to print: valid UTF-8, no control characters, at most
// limit bytes.
func oneLine(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= limit {
		return s
	}
	cut := limit - len("...")
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}
