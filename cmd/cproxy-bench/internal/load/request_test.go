//go:build linux

package load

import (
	"testing"
	"time"
)

func TestRequestRoundTrip(t *testing.T) {
	tests := []Request{
		{Op: Echo},
		{Op: Sink, Confirm: true},
		{Op: Source},
		{Op: Source, Bytes: 1<<64 - 1, Confirm: true},
		{Op: Source, For: 1500 * time.Millisecond},
		{Op: Source, For: maxTime},
	}
	for _, want := range tests {
		t.Run(want.Op.String(), func(t *testing.T) {
			got, err := ParseRequest(want.Encode())
			if err != nil || got != want {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

func TestParseRequestRefuses(t *testing.T) {
	valid := Request{Op: Source, For: time.Second}.Encode()
	change := func(i int, v byte) [RequestSize]byte {
		b := valid
		b[i] = v
		return b
	}
	tests := map[string][RequestSize]byte{
		"zeros": {}, "magic": change(0, 'X'), "version": change(3, '0'), "no op": change(4, 0), "next op": change(4, 4),
		"unknown flag": change(5, 4), "reserved": change(6, 1), "reserved too": change(7, 1), "too long": change(8, 1),
		"no time": func() [RequestSize]byte { b := valid; b[14], b[15] = 0, 0; return b }(),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			if r, err := ParseRequest(b); err == nil {
				t.Errorf("became %+v", r)
			}
		})
	}
}

// Whatever parses encodes to the same bytes: the format has one writing.
func FuzzParseRequest(f *testing.F) {
	for _, r := range []Request{{Op: Echo}, {Op: Sink, Confirm: true}, {Op: Source, Bytes: 1 << 40}, {Op: Source, For: time.Minute, Confirm: true}} {
		b := r.Encode()
		f.Add(b[:])
	}
	f.Add(make([]byte, RequestSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != RequestSize {
			return
		}
		in := [RequestSize]byte(b)
		r, err := ParseRequest(in)
		if err == nil && r.Encode() != in {
			t.Errorf("%x parsed as %+v, which encodes to %x", in, r, r.Encode())
		}
	})
}

func FuzzParseTrailer(f *testing.F) {
	b := Trailer{Received: 5, Sent: 1 << 50}.Encode()
	f.Add(b[:])
	f.Add(make([]byte, TrailerSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) != TrailerSize {
			return
		}
		in := [TrailerSize]byte(b)
		if got, ok := ParseTrailer(in); ok && got.Encode() != in {
			t.Errorf("%x parsed as %+v", in, got)
		}
	})
}
