//go:build linux

package main

import "testing"

func TestSize(t *testing.T) {
	for bytes, want := range map[float64]string{0: "0.000 MB", 131072: "0.131 MB", 99e6: "99.000 MB", 1e8: "0.100 GB", 2.5e9: "2.500 GB"} {
		if got := size(bytes); got != want {
			t.Errorf("%v bytes: %s, want %s", bytes, got, want)
		}
	}
}
