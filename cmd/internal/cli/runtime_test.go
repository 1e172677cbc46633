package cli

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestFitRuntime(t *testing.T) {
	procs, percent := runtime.GOMAXPROCS(0), debug.SetGCPercent(100)
	t.Cleanup(func() {
		runtime.GOMAXPROCS(procs)
		debug.SetGCPercent(percent)
	})
	for name, c := range map[string]struct {
		gogc string
		want int
	}{"default": {"", gcPercent}, "chosen by the operator": {"200", 100}} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GOGC", c.gogc)
			debug.SetGCPercent(100)
			FitRuntime(3)
			if got := runtime.GOMAXPROCS(0); got < 5 {
				t.Errorf("GOMAXPROCS %d for 3 loops", got)
			}
			if got := debug.SetGCPercent(100); got != c.want {
				t.Errorf("GC percent %d, want %d", got, c.want)
			}
		})
	}
}

func TestDescriptors(t *testing.T) {
	if n := Descriptors(); n < 16 || n > 1<<30 {
		t.Errorf("%d descriptors", n)
	}
}
