package main

import "testing"

func TestPoolMax(t *testing.T) {
	for _, c := range []struct{ configured, descriptors, want int }{
		{256, 0, 256}, {256, 1024, 256}, {256, 64, 16}, {8, 64, 8}, {0, 64, 0},
	} {
		if got := poolMax(c.configured, c.descriptors); got != c.want {
			t.Errorf("%d of %d files: %d, want %d", c.configured, c.descriptors, got, c.want)
		}
	}
}
