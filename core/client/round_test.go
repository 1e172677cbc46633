package client

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

func refusalOf(code wire.Code, after time.Duration) error {
	return wire.NewGoodbye(wire.NewRefusal(code, ""), after).Err()
}

// order runs a round to its end, in which every server fails with what errs has
// for it, or else for no special reason.
func (r *round) order(servers []string, first string, now time.Time, errs map[string]error) []string {
	var tried []string
	r.begin(servers, first, now)
	for more := true; more; more = r.next() {
		tried = append(tried, r.server)
		err := errs[r.server]
		if err == nil {
			err = errSilent
		}
		r.failed(err, now)
	}
	return tried
}

func TestRoundOrder(t *testing.T) {
	abc := []string{"a", "b", "c"}
	tests := []struct {
		name    string
		servers []string
		first   string
		errs    map[string]error
		want    string
	}{
		{"one", []string{"a"}, "", nil, "a"},
		{"from the top", abc, "", nil, "abc"},
		{"from the last connection on", abc, "b", nil, "bca"},
		{"from the end", abc, "c", nil, "cab"},
		{"the last connection is not listed any more", abc, "z", nil, "abc"},
		{"refused for good", abc, "", map[string]error{"a": refusalOf(wire.CodeBadCredential, 0)}, "abc"},
		{"refused for now", abc, "b", map[string]error{"b": refusalOf(wire.CodeRate, time.Hour)}, "bca"},
		{"superseded", abc, "b", map[string]error{"b": refusalOf(wire.CodeSuperseded, 0)}, "b"},
		{"superseded at the second", abc, "b", map[string]error{"c": refusalOf(wire.CodeSuperseded, 0)}, "bc"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r round
			if got := strings.Join(r.order(tt.servers, tt.first, time.Unix(1, 0), tt.errs), ""); got != tt.want {
				t.Errorf("tried %s, want %s", got, tt.want)
			}
		})
	}
	var r round
	r.order(abc, "", time.Unix(1, 0), map[string]error{"a": refusalOf(wire.CodeSuperseded, time.Minute)})
	if r.begin(abc, "", time.Unix(2, 0)); r.server != "a" {
		t.Errorf("a superseded client goes on at %s", r.server)
	}
	if !slices.Equal(abc, []string{"a", "b", "c"}) {
		t.Errorf("the list of the configuration was changed to %q", abc)
	}
}

// A server that wants to be left alone is, while others are asked.
func TestRoundLeavesServersAlone(t *testing.T) {
	abc := []string{"a", "b", "c"}
	start := time.Unix(1000, 0)
	after := func(d time.Duration) time.Time { return start.Add(d) }
	var r round
	r.order(abc, "", start, map[string]error{
		"a": refusalOf(wire.CodeShutdown, 10*time.Second), "b": refusalOf(wire.CodeRate, 5*time.Second),
	})
	steps := []struct {
		at    time.Duration
		first string
		list  []string
		wait  time.Duration // before the round
		want  string
	}{
		{0, "a", abc, 0, "c"},
		{5*time.Second - 1, "a", abc, 0, "c"},
		{time.Second, "a", []string{"a", "b"}, 4 * time.Second, "ab"}, // all do
		{5 * time.Second, "a", abc, 0, "bc"},
		{10 * time.Second, "a", abc, 0, "abc"},
	}
	for i, step := range steps {
		if got := r.wait(step.list, after(step.at)); got != step.wait {
			t.Errorf("step %d: waits %v, want %v", i, got, step.wait)
		}
		if got := strings.Join(r.order(step.list, step.first, after(step.at), nil), ""); got != step.want {
			t.Errorf("step %d: tried %s, want %s", i, got, step.want)
		}
		if r.verdict() != nil {
			t.Errorf("step %d: gave up", i)
		}
	}
	if len(r.asked) > 0 {
		t.Errorf("%v is remembered at the end", r.asked)
	}
}

func TestRoundVerdict(t *testing.T) {
	good, bad := refusalOf(wire.CodeUnavailable, 0), refusalOf(wire.CodeBadCredential, 0)
	pin := &identity.PinError{}
	tests := []struct {
		name string
		errs map[string]error
		want []string // in the verdict; nil: none
	}{
		{"network", nil, nil},
		{"one refuses for now", map[string]error{"a": bad, "b": good}, nil},
		{"one is away", map[string]error{"b": pin}, nil},
		{"all refuse for good", map[string]error{"a": bad, "b": pin}, []string{"every server", "bad credential", "is pinned"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var r round
			r.order([]string{"a", "b"}, "", time.Unix(1, 0), tt.errs)
			err := r.verdict()
			if (err == nil) != (tt.want == nil) || IsRefused(err) != (tt.want != nil) {
				t.Fatalf("verdict %v", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q lacks %q", err, want)
				}
			}
		})
	}
	// What was refused in a former round does not count.
	var r round
	r.order([]string{"a"}, "", time.Unix(1, 0), map[string]error{"a": bad})
	r.order([]string{"a"}, "", time.Unix(1, 0), nil)
	if err := r.verdict(); err != nil {
		t.Errorf("verdict %v", err)
	}
}

func TestIsRefused(t *testing.T) {
	bad, good := refusalOf(wire.CodeForbidden, 0), refusalOf(wire.CodeRate, 0)
	tests := []struct {
		name string
		err  error
		want bool
	}{
		{"nothing", nil, false},
		{"network", errSilent, false},
		{"for now", good, false},
		{"for good", bad, true},
		{"wrapped", &setupError{bad}, true},
		{"key", &identity.PinError{}, true},
		{"one of two", errors.Join(good, errors.Join(errSilent, bad)), true},
		{"none of two", errors.Join(good, errSilent), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := IsRefused(tt.err); got != tt.want {
				t.Errorf("IsRefused(%v) = %v", tt.err, got)
			}
		})
	}
}
