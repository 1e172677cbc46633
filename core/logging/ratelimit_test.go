package logging_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/logging"
)

// interval passes by time.Sleep in a bubble of synctest, where it takes no time.
const interval = 10 * time.Second

// limited returns a limiter and what reads and clears the lines it has written,
// without their time.
func limited(t *testing.T, maxKeys int) (*logging.RateLimited, func() []string) {
	t.Helper()
	var out bytes.Buffer
	drop := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == slog.LevelKey {
			return slog.Attr{}
		}
		return a
	}
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{ReplaceAttr: drop}))
	lines := func() []string {
		text := strings.TrimSpace(out.String())
		out.Reset()
		if text == "" {
			return nil
		}
		return strings.Split(text, "\n")
	}
	return logging.NewRateLimited(log, interval, maxKeys), lines
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("lines = %q, want %q", got, want)
	}
}

func TestFirstEventAtOnceThenOnePerInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, lines := limited(t, 8)
		r.Log(slog.LevelWarn, "a", "refused", "peer", "p1")
		expect(t, lines(), "msg=refused peer=p1")

		for range 3 {
			r.Log(slog.LevelWarn, "a", "refused", "peer", "p2")
		}
		time.Sleep(interval - time.Nanosecond)
		r.Log(slog.LevelWarn, "a", "refused", "peer", "p3")
		expect(t, lines())

		time.Sleep(time.Nanosecond)
		r.Log(slog.LevelWarn, "a", "refused", "peer", "p4")
		expect(t, lines(), "msg=refused peer=p4 suppressed=4")

		time.Sleep(interval)
		r.Log(slog.LevelWarn, "a", "refused", "peer", "p5")
		expect(t, lines(), "msg=refused peer=p5")
	})
}

func TestKeysAreIndependent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, lines := limited(t, 8)
		r.Log(slog.LevelWarn, "a", "one")
		r.Log(slog.LevelWarn, "b", "two")
		r.Log(slog.LevelWarn, "a", "one")
		expect(t, lines(), "msg=one", "msg=two")
	})
}

func TestManyKeysShareOneBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, lines := limited(t, 2)
		for i := range 1000 {
			r.Log(slog.LevelWarn, fmt.Sprint(i), "refused", "peer", i)
		}
		// Two keys of their own and the shared one.
		expect(t, lines(), "msg=refused peer=0", "msg=refused peer=1", "msg=refused peer=2")

		// The two expire and make room; the shared one reports its count.
		time.Sleep(interval)
		for i := range 3 {
			r.Log(slog.LevelWarn, fmt.Sprint("new", i), "refused", "peer", i)
		}
		expect(t, lines(), "msg=refused peer=0", "msg=refused peer=1", "msg=refused peer=2 suppressed=997")
	})
}

func TestEvictedKeyReportsItsCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, lines := limited(t, 1)
		r.Log(slog.LevelWarn, "a", "refused")
		r.Log(slog.LevelWarn, "a", "refused")
		time.Sleep(interval)
		r.Log(slog.LevelWarn, "b", "garbage")
		expect(t, lines(), "msg=refused", "msg=refused suppressed=1", "msg=garbage")
	})
}

func TestFlushReportsAllAndForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, lines := limited(t, 1)
		for range 3 {
			r.Log(slog.LevelWarn, "a", "refused")
			r.Log(slog.LevelWarn, "b", "garbage")
		}
		expect(t, lines(), "msg=refused", "msg=garbage")
		r.Flush()
		expect(t, lines(), "msg=refused suppressed=2", "msg=garbage suppressed=2")
		r.Flush()
		expect(t, lines())
		r.Log(slog.LevelWarn, "a", "refused")
		expect(t, lines(), "msg=refused")
	})
}

func TestDisabledLevelCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, lines := limited(t, 1)
		r.Log(slog.LevelDebug, "a", "detail")
		r.Log(slog.LevelInfo, "a", "line")
		expect(t, lines(), "msg=line")
	})
}

func TestArgsOfTheCallerStayUntouched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := limited(t, 1)
		backing := []any{"peer", "p1", "canary"}
		r.Log(slog.LevelWarn, "a", "refused")
		r.Log(slog.LevelWarn, "a", "refused")
		time.Sleep(interval)
		r.Log(slog.LevelWarn, "a", "refused", backing[:2]...)
		if backing[2] != "canary" {
			t.Error("the count was written into the caller's slice")
		}
	})
}

func TestConcurrentUse(*testing.T) {
	r := logging.NewRateLimited(slog.New(slog.DiscardHandler), time.Nanosecond, 4)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				r.Log(slog.LevelWarn, fmt.Sprint(i, j%7), "refused")
			}
			r.Flush()
		})
	}
	wg.Wait()
}
