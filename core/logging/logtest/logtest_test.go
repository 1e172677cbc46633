package logtest

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
)

// Whoever waits is woken by the write that completes the text, in whatever
// pieces it comes, and before as well as after the wait begins.
func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o Output
		var writing sync.WaitGroup
		writing.Go(func() {
			for _, piece := range []string{"tunnel ", "web ", "ready\n"} {
				synctest.Wait() // until the test waits
				_, _ = fmt.Fprint(&o, piece)
			}
		})
		o.Await(t, "web ready")
		o.Await(t, "tunnel")
		writing.Wait()
		if got := o.String(); got != "tunnel web ready\n" {
			t.Errorf("kept %q", got)
		}
	})
}

func TestAwaitGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o Output
		o.Logger().Debug("something else")
		f := &failed{TB: t}
		var waiting sync.WaitGroup
		waiting.Go(func() { o.Await(f, "ready") })
		waiting.Wait()
		if !strings.Contains(f.message, `"ready"`) || !strings.Contains(f.message, "something else") {
			t.Errorf("failed with %q", f.message)
		}
	})
}

// failed is a test that keeps why it failed.
type failed struct {
	testing.TB
	message string
}

func (f *failed) Helper() {}

func (f *failed) Fatalf(format string, args ...any) {
	f.message = fmt.Sprintf(format, args...)
	runtime.Goexit()
}
