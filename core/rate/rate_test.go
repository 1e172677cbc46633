package rate

import (
	"math"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "0MB": 0, "1": 1, "65536": 65536, "7B": 7,
		"512kB": 512_000, "512KB": 512_000, "512KiB": 512 << 10,
		"10MB": 10_000_000, "10MiB": 10 << 20, "3GB": 3_000_000_000, "3GiB": 3 << 30,
		"010MB":               10_000_000,
		"9223372036854775807": math.MaxInt64,
		"8589934591GiB":       8589934591 << 30,
	} {
		got, err := Parse(text)
		if err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "MB", "-1", "+1", "1.5MB", "1,5MB", "10 MB", " 10MB", "10MB ", "10mb", "10Mb", "10Mbit", "10M", "10TB", "10kb", "10MB/s", "1e6", "0x10", "ten",
		"9223372036854775808", "8589934592GiB", "99999999999999999999", "10KIB", "١MB",
	} {
		if got, err := Parse(text); err == nil {
			t.Errorf("Parse(%q) = %d, want an error", text, got)
		} else if !strings.Contains(err.Error(), "such as 10MB") {
			t.Errorf("%q: %v does not say what to write", text, err)
		}
	}
}

func TestString(t *testing.T) {
	for b, want := range map[Bytes]string{
		0: "0", 1: "1", 999: "999", 1000: "1kB", 1024: "1KiB", 1025: "1025", 10_000_000: "10MB", 10 << 20: "10MiB",
		1_500_000: "1500kB", 1 << 30: "1GiB", 2_000_000_000: "2GB", math.MaxInt64: "9223372036854775807",
	} {
		if got := b.String(); got != want {
			t.Errorf("%d prints %q, want %q", int64(b), got, want)
		}
	}
}

func TestSmaller(t *testing.T) {
	for _, test := range []struct{ a, b, want Bytes }{{0, 0, 0}, {0, 5, 5}, {5, 0, 5}, {5, 7, 5}, {7, 5, 5}} {
		if got := Smaller(test.a, test.b); got != test.want {
			t.Errorf("Smaller(%d, %d) = %d, want %d", test.a, test.b, got, test.want)
		}
	}
}

// What is read prints as text that reads the same.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"10MB", "512KiB", "0", "1000kB", "9223372036854775807", "1.5GB", "-1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := Parse(text)
		if err != nil {
			if b != 0 {
				t.Errorf("%d beside %v", b, err)
			}
			return
		}
		if b < 0 {
			t.Errorf("%q is %d", text, b)
		}
		if again, err := Parse(b.String()); err != nil || again != b {
			t.Errorf("%d prints %q, which reads %d, %v", b, b.String(), again, err)
		}
	})
}
