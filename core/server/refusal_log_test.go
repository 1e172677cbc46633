package server

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// A client that is refused again and again is told of in one line for each
// address and while, which says how often it came.
func TestRefusedClientsAreLoggedAtALimitedRate(t *testing.T) {
	const many = 5 // fewer than make an address wait
	tests := map[string]struct {
		level  string
		code   string
		refuse func(w *world, before *peer)
	}{
		"unknown token": {"WARN", "bad credential", func(w *world, _ *peer) {
			p := w.dial()
			h := p.hello()
			h.GetCredential().Secret[0]++
			p.say(h.ClientMessage())
			p.refused(wire.CodeBadCredential)
		}},
		"old epoch": {"INFO", "stale epoch", func(w *world, before *peer) {
			p := w.dial()
			p.instance = before.instance
			p.say(p.hello().ClientMessage())
			p.refused(wire.CodeStaleEpoch)
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			inWorld(t, testPolicy(), func(w *world) {
				t := w.t
				before := w.dial().login()
				lines := func() (all []string) {
					synctest.Wait()
					for line := range strings.Lines(w.log.String()) {
						if strings.Contains(line, `msg="client refused"`) {
							all = append(all, line)
						}
					}
					return all
				}
				for range many {
					test.refuse(w, before)
				}
				if got := lines(); len(got) != 1 || !strings.Contains(got[0], "level="+test.level) || strings.Contains(got[0], "suppressed") {
					t.Fatalf("%d refusals gave these lines:\n%s", many, strings.Join(got, ""))
				}
				time.Sleep(11 * time.Second) // less than it takes to give a silent client up
				test.refuse(w, before)
				if got := lines(); len(got) != 2 || !strings.Contains(got[1], fmt.Sprintf("suppressed=%d", many-1)) {
					t.Fatalf("later, these lines:\n%s", strings.Join(got, ""))
				}
				if got := lines()[0]; !strings.Contains(got, "client=") || !strings.Contains(got, "subject=alice") || !strings.Contains(got, `code="`+test.code) || !strings.Contains(got, "source=") || !strings.Contains(got, "reason=") {
					t.Errorf("the line lacks who, from where, or why: %s", got)
				}
			})
		})
	}
}

// A client that is refused hides none with another token at the same address; an
// address that has to wait has one line.
func TestNoisyClientHidesNoOther(t *testing.T) {
	inWorld(t, testPolicy(), func(w *world) {
		enter := func(token string, code wire.Code) {
			w.t.Helper()
			p := w.dial()
			h := p.hello()
			h.GetCredential().Name = token
			h.GetCredential().Secret[0]++
			p.say(h.ClientMessage())
			p.refused(code)
		}
		for range failureBurst - 1 {
			enter("noisy", wire.CodeBadCredential)
		}
		enter("shy", wire.CodeBadCredential)
		for i := range 20 {
			enter(fmt.Sprintf("token-%d", i), wire.CodeRate)
		}
		synctest.Wait()
		log := w.log.String()
		for _, want := range []string{"subject=noisy", "subject=shy", `code="too many attempts"`} {
			if n := strings.Count(log, want); n != 1 {
				w.t.Errorf("%d lines with %s, want 1:\n%s", n, want, log)
			}
		}
	})
}
