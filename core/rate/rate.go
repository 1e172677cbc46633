// Package rate reads and prints byte rates in the form that configuration,
// tokens file and command line share. It is a leaf that other leaves may import.
package rate

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
)

// Bytes is a number of bytes per second, never negative; 0 is no limit.
type Bytes int64

// unit is a suffix and what it stands for. The decimal units are those of the
// SI, the binary ones those of IEC 80000-13.
type unit struct {
	name  string
	bytes int64
}

// units are all suffixes, the largest first, and of equals the one to print.
func units() []unit {
	return []unit{
		{"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6}, {"KiB", 1 << 10}, {"kB", 1e3}, {"KB", 1e3}, {"", 1}, {"B", 1},
	}
}

// Parse reads a whole number with one of the units kB (or KB), MB, GB, KiB,
// MiB, GiB and B, or none for bytes: "10MB", "512KiB", "65536". It takes neither
// bits nor fractions nor spaces, which would be guesses.
func Parse(text string) (Bytes, error) {
	end := 0
	for end < len(text) && '0' <= text[end] && text[end] <= '9' {
		end++
	}
	n, err := strconv.ParseInt(text[:end], 10, 64)
	if err != nil {
		return 0, mistake(text)
	}
	for _, u := range units() {
		if u.name == text[end:] && n <= math.MaxInt64/u.bytes {
			return Bytes(n * u.bytes), nil
		}
	}
	return 0, mistake(text)
}

func mistake(text string) error {
	return fmt.Errorf("rate %q cannot be read: write bytes per second as a whole number, "+
		"alone or with kB, MB, GB, KiB, MiB or GiB, such as 10MB; 0 is no limit", text)
}

// String gives text that Parse reads as b, with the largest unit that leaves a
// whole number: no digit is lost.
func (b Bytes) String() string {
	for _, u := range units() {
		if b != 0 && int64(b)%u.bytes == 0 {
			return strconv.FormatInt(int64(b)/u.bytes, 10) + u.name
		}
	}
	return "0"
}

// Smaller gives the limit that counts where both apply: the smaller one, of
// which 0 is none.
func Smaller(a, b Bytes) Bytes {
	if a == 0 || b == 0 {
		return cmp.Or(a, b)
	}
	return min(a, b)
}
