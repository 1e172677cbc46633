package frame

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

func TestHeaderRoundTrip(t *testing.T) {
	for _, h := range []Header{
		{Ready, 0, ReadySize},
		{Start, 1, StartSize},
		{Data, 65535, 1},
		{Data, 7, MaxData},
		{Fin, 9, 0},
		{Reset, 9, ResetSize},
		{Ping, 3, 0},
		{Pong, 3, 0},
		{Retire, 0, 0},
		{Close, 0, 0},
	} {
		t.Run(h.Type.String(), func(t *testing.T) {
			var b [HeaderSize]byte
			h.Put(b[:])
			got, err := ParseHeader(b[:])
			if err != nil || got != h {
				t.Fatalf("got %+v, %v; want %+v", got, err, h)
			}
		})
	}
}

func TestHeaderRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"zero type":            {[]byte{0, 0, 0, 0, 0, 0, 0, 0}, ErrUnknownType},
		"type beyond the last": {[]byte{10, 0, 0, 0, 0, 0, 0, 0}, ErrUnknownType},
		"http":                 {[]byte("GET / HT"), ErrUnknownType},
		"flags":                {[]byte{3, 1, 0, 0, 0, 0, 0, 1}, ErrFlags},
		"empty data":           {[]byte{3, 0, 0, 0, 0, 0, 0, 0}, ErrLength},
		"data too long":        {[]byte{3, 0, 0, 0, 0, 16, 0, 1}, ErrLength},
		"data of 4 GiB":        {[]byte{3, 0, 0, 0, 255, 255, 255, 255}, ErrLength},
		"start too short":      {[]byte{2, 0, 0, 0, 0, 0, 0, 39}, ErrLength},
		"ready too long":       {[]byte{1, 0, 0, 0, 0, 0, 0, 33}, ErrLength},
		"fin with a payload":   {[]byte{4, 0, 0, 0, 0, 0, 0, 1}, ErrLength},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ParseHeader(c.bytes); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestStartRoundTrip(t *testing.T) {
	for name, c := range map[string]struct{ source, destination, wantSource string }{
		"v4":     {"192.0.2.1:5000", "198.51.100.7:443", "192.0.2.1:5000"},
		"v6":     {"[2001:db8::1]:5000", "[2001:db8::2]:443", "[2001:db8::1]:5000"},
		"mapped": {"[::ffff:192.0.2.1]:5000", "198.51.100.7:443", "192.0.2.1:5000"},
	} {
		t.Run(name, func(t *testing.T) {
			in := Stream{Tunnel: 1 << 31, Source: netip.MustParseAddrPort(c.source), Destination: netip.MustParseAddrPort(c.destination)}
			var b [HeaderSize + StartSize]byte
			PutStart(b[:], 12, in)
			h, err := ParseHeader(b[:])
			if err != nil || h.Type != Start || h.Seq != 12 {
				t.Fatalf("header %+v, %v", h, err)
			}
			got, err := ParseStart(b[HeaderSize:])
			if err != nil {
				t.Fatal(err)
			}
			if got.Tunnel != in.Tunnel || got.Source.String() != c.wantSource {
				t.Fatalf("got %+v", got)
			}
		})
	}
}

func TestStartRefusesMixedFamilies(t *testing.T) {
	var b [HeaderSize + StartSize]byte
	PutStart(b[:], 1, Stream{Source: netip.MustParseAddrPort("192.0.2.1:1"), Destination: netip.MustParseAddrPort("[2001:db8::2]:2")})
	if _, err := ParseStart(b[HeaderSize:]); !errors.Is(err, ErrAddress) {
		t.Fatalf("got %v", err)
	}
}

func TestResetRoundTrip(t *testing.T) {
	for c := ResetPeer; c <= ResetAcknowledge; c++ {
		var b [HeaderSize + ResetSize]byte
		PutReset(b[:], 4, c)
		got, err := ParseReset(b[HeaderSize:])
		if err != nil || got != c || c.String() == "" {
			t.Fatalf("%v: got %v, %v", c, got, err)
		}
	}
	if _, err := ParseReset(nil); !errors.Is(err, ErrLength) {
		t.Fatalf("empty payload: %v", err)
	}
}

func TestPreface(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	p := Preface{Mode: Plain, ControlID: 1, Epoch: 2, ProxyID: 3}
	sealed := p.Seal(NewKey(key), Exporter{})
	got, err := ParsePreface(sealed)
	if err != nil || got != p {
		t.Fatalf("got %+v, %v", got, err)
	}
	if err := got.Verify(sealed, NewKey(key), Exporter{}); err != nil {
		t.Fatal(err)
	}

	for name, c := range map[string]struct {
		key      []byte
		exporter Exporter
		flip     int
	}{
		"another key":        {bytes.Repeat([]byte{8}, 32), Exporter{}, -1},
		"another connection": {key, Exporter{1}, -1},
		"mode lowered":       {key, Exporter{}, 4},
		"control id":         {key, Exporter{}, 15},
		"epoch":              {key, Exporter{}, 23},
		"proxy id":           {key, Exporter{}, 31},
		"mac":                {key, Exporter{}, 63},
	} {
		t.Run(name, func(t *testing.T) {
			forged := sealed
			if c.flip >= 0 {
				forged[c.flip] ^= 3
			}
			q, err := ParsePreface(forged)
			if err == nil {
				err = q.Verify(forged, NewKey(c.key), c.exporter)
			}
			if !errors.Is(err, ErrMAC) {
				t.Fatalf("got %v, want %v", err, ErrMAC)
			}
		})
	}
}

// Opening a conn leaves no garbage behind, and a Key used again signs as a new
// one does.
func TestKeyIsUsedAgain(t *testing.T) {
	secret := bytes.Repeat([]byte{7}, 32)
	key := NewKey(secret)
	for id := range uint64(3) {
		p := Preface{Mode: TLS, ControlID: 1, Epoch: 2, ProxyID: id}
		exporter := Exporter{byte(id)}
		if p.Seal(key, exporter) != p.Seal(NewKey(secret), exporter) || p.Ready(key, exporter) != p.Ready(NewKey(secret), exporter) {
			t.Fatalf("conn %d is signed differently", id)
		}
	}
	p := Preface{Mode: Plain}
	sealed := p.Seal(key, Exporter{})
	if n := testing.AllocsPerRun(100, func() {
		if p.Verify(sealed, key, Exporter{}) != nil {
			t.Error("not verified")
		}
		p.Ready(key, Exporter{})
	}); n > 0 {
		t.Fatalf("%v allocations", n)
	}
	if s := fmt.Sprintf("%v %+v %#v", key, key, key); strings.Trim(s, "* ") != "" {
		t.Fatalf("prints as %s", s)
	}
}

func TestReadyIsNotReflection(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	p := Preface{Mode: Plain, ControlID: 1, Epoch: 2, ProxyID: 3}
	sealed, ready := p.Seal(NewKey(key), Exporter{}), p.Ready(NewKey(key), Exporter{})
	if bytes.Equal(sealed[prefaceSigned:], ready[:]) {
		t.Fatal("READY repeats the MAC of the preface")
	}
}

func TestPrefaceRefusals(t *testing.T) {
	good := Preface{Mode: Plain}.Seal(NewKey(nil), Exporter{})
	for name, c := range map[string]struct {
		at    int
		value byte
		want  error
	}{
		"magic":    {0, TLSHandshake, ErrMagic},
		"version":  {3, 2, ErrMagic},
		"mode":     {4, 9, ErrMode},
		"reserved": {6, 1, ErrFlags},
	} {
		t.Run(name, func(t *testing.T) {
			b := good
			b[c.at] = c.value
			if _, err := ParsePreface(b); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
		})
	}
}

func FuzzParseHeader(f *testing.F) {
	f.Add([]byte{3, 0, 0, 1, 0, 0, 0, 5})
	f.Add([]byte("GET / HTTP"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < HeaderSize {
			return
		}
		h, err := ParseHeader(b)
		if err != nil {
			return
		}
		if h.Length > MaxData {
			t.Fatalf("accepted length %d", h.Length)
		}
		var again [HeaderSize]byte
		h.Put(again[:])
		if !bytes.Equal(again[:], b[:HeaderSize]) {
			t.Fatalf("%x became %x", b[:HeaderSize], again)
		}
	})
}

func FuzzParseStart(f *testing.F) {
	var b [HeaderSize + StartSize]byte
	PutStart(b[:], 1, Stream{Tunnel: 3, Source: netip.MustParseAddrPort("192.0.2.1:1"), Destination: netip.MustParseAddrPort("192.0.2.2:2")})
	f.Add(b[HeaderSize:])
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := ParseStart(p)
		if err != nil {
			return
		}
		var b [HeaderSize + StartSize]byte
		PutStart(b[:], 1, s)
		again, err := ParseStart(b[HeaderSize:])
		if err != nil || again != s {
			t.Fatalf("%+v became %+v, %v", s, again, err)
		}
	})
}

func FuzzParseReset(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := ParseReset(p)
		if err == nil && c.String() == "" {
			t.Fatalf("code %d has no name", c)
		}
	})
}

func FuzzParsePreface(f *testing.F) {
	key := []byte("key")
	sealed := Preface{Mode: Plain, ControlID: 1}.Seal(NewKey(key), Exporter{})
	f.Add(sealed[:])
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) != PrefaceSize {
			return
		}
		p, err := ParsePreface([PrefaceSize]byte(raw))
		if err != nil {
			return
		}
		if p.Verify([PrefaceSize]byte(raw), NewKey([]byte("a key that signed nothing")), Exporter{}) == nil {
			t.Fatal("verified without the key")
		}
	})
}

func TestNames(t *testing.T) {
	for typ := Ready; typ <= Close; typ++ {
		if got := typ.String(); got == "" || got[0] == 't' {
			t.Errorf("type %d has no name: %q", typ, got)
		}
	}
	for c := ResetPeer; c <= ResetAcknowledge; c++ {
		if got := c.String(); got == "" || len(got) > 6 && got[:6] == "reset " && c != ResetPeer {
			t.Errorf("reset code %d has no name: %q", c, got)
		}
	}
	for got, want := range map[string]string{
		Type(0).String():                "type 0",
		(Close + 1).String():            "type 10",
		ResetCode(0).String():           "reset code 0",
		(ResetAcknowledge + 1).String(): "reset code 8",
		ResetCode(1<<32 - 1).String():   "reset code 4294967295",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
