//go:build linux

package meter

import (
	"os"
	"reflect"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	const tail = " S 1 1 1 0 -1 4194560 3698 70954 1 61 7 5 91 12 20 0 4 0 381930 5124096 976"
	tests := []struct {
		name, in string
		want     time.Duration
		ok       bool
	}{
		{"plain", "12 (bash)" + tail, 120 * time.Millisecond, true},
		{"name with spaces", "12 (a b c)" + tail, 120 * time.Millisecond, true},
		{"name with parentheses", "12 (a) S 9 (b)" + tail, 120 * time.Millisecond, true},
		{"no name", "12 bash" + tail, 0, false},
		{"short", "12 (bash) S 1 1", 0, false},
		{"no number", "12 (bash) S 1 1 1 0 -1 0 0 0 1 61 x 5 9", 0, false},
		{"empty", "", 0, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := parseStat([]byte(test.in))
			if got != test.want || (err == nil) != test.ok {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestParseSchedstat(t *testing.T) {
	for in, want := range map[string]time.Duration{"26667315 116569 6\n": 26667315, "0 1 1": 0, "": -1, "12": -1, "-5 1 1": -1, "x 1 1": -1} {
		got, err := parseSchedstat([]byte(in))
		if (err == nil) != (want >= 0) || err == nil && got != want {
			t.Errorf("%q: got %v, %v", in, got, err)
		}
	}
}

func TestParseMachine(t *testing.T) {
	tests := []struct {
		in   string
		want time.Duration
		ok   bool
	}{
		{"cpu  1 2 3 1000 2000 4 5 6 7 8\ncpu0 1 1 1 1 1 1 1 1\n", 21 * tick, true},
		{"cpu  1 2 3 1000 2000 4 5 6", 21 * tick, true},
		{"cpu0 1 2 3 4 5 6 7 8", 0, false},
		{"cpu 1 2 3", 0, false},
		{"cpu 1 2 3 4 5 6 x 8", 0, false},
		{"", 0, false},
	}
	for _, test := range tests {
		got, err := parseMachine([]byte(test.in))
		if got != test.want || (err == nil) != test.ok {
			t.Errorf("%q: got %v, %v", test.in, got, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	const file = "MemTotal:  100 kB\nSlab:            264 kB\nSlabby: 1 kB\nOdd: 7\nBad: x kB\n"
	for key, want := range map[string]int64{"Slab": 264 << 10, "MemTotal": 100 << 10, "Odd": -1, "Bad": -1, "None": -1} {
		got, err := parseSize([]byte(file), key)
		if (err == nil) != (want >= 0) || err == nil && got != uint64(want) {
			t.Errorf("%s: got %d, %v", key, got, err)
		}
	}
}

func TestParseProcesses(t *testing.T) {
	got, err := ParseProcesses([]string{"server=10", "11", "server=12"})
	want := []Process{{"server", []int{10, 12}}, {"pid 11", []int{11}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "x", "a=", "=5", "a=0", "-3", "a=b=3"} {
		if got, err := ParseProcesses([]string{bad}); err == nil {
			t.Errorf("%q became %v", bad, got)
		}
	}
}

func TestBetween(t *testing.T) {
	tests := []struct {
		name          string
		before, after usage
		cpu, fine     time.Duration
	}{
		{
			"threads go on and begin",
			usage{map[string]time.Duration{"a": 5, "b": 7}, tick},
			usage{map[string]time.Duration{"a": 6, "b": 10, "c": 100}, 9 * tick},
			104, time.Nanosecond,
		},
		{
			"a thread has ended",
			usage{map[string]time.Duration{"a": 5, "b": 7}, tick},
			usage{map[string]time.Duration{"a": 6}, 9 * tick},
			8 * tick, tick,
		},
		{"no schedstat", usage{nil, tick}, usage{nil, 3 * tick}, 2 * tick, tick},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if cpu, fine := between(test.before, test.after); cpu != test.cpu || fine != test.fine {
				t.Errorf("got %v, %v", cpu, fine)
			}
		})
	}
}

// The test charges its own process, whatever the machine's speed.
func TestMeterOnThisProcess(t *testing.T) {
	m := NewMemory([]Process{{"self", []int{os.Getpid()}}})
	if err := m.Before(); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	// Not from the heap, which may have been resident before.
	block, err := unix.Mmap(-1, 0, 32<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(block) }()
	for i := 0; i < len(block); i += 4096 {
		block[i] = 1
	}
	if err := m.Begin(); err != nil {
		t.Fatal(err)
	}
	if err := m.End(); err != nil {
		t.Fatal(err)
	}
	charges := m.Charges()
	if len(charges) != 3 || charges[0].Name != "self" || charges[1].Name != "generator" || charges[2].Name != "machine" {
		t.Errorf("charges %v", charges)
	}
	for _, c := range charges {
		if c.CPU < 0 || c.Resolution <= 0 {
			t.Errorf("charge %v", c)
		}
	}
	g := m.Growths()[0]
	if g.Name != "self" || g.Pipes != 1 || g.Descriptors < 2 || g.Anonymous < 8<<20 {
		t.Errorf("growth %+v", g)
	}
}

func TestMeterWithoutProcess(t *testing.T) {
	const gone = 1 << 30
	if err := New([]Process{{"gone", []int{gone}}}).Begin(); err == nil {
		t.Error("the CPU time of no process was read")
	}
	if err := NewMemory([]Process{{"gone " + strconv.Itoa(gone), []int{gone}}}).Before(); err == nil {
		t.Error("the memory of no process was read")
	}
}
