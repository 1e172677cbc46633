//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/forward"
	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/load"
	"github.com/cproxy/cproxy/cmd/internal/cli"
)

func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), 16)) // loops hold their slots
	goleak.VerifyTestMain(m)
}

// invoke runs a command.
func invoke(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	code = cli.Main(root, args, &errs)
	return code, out.String(), errs.String()
}

// startPath starts the serving side and a forwarder before it, and gives the
// forwarder's address.
func startPath(t *testing.T, run func(context.Context, forward.Options) error) string {
	t.Helper()
	server, served, err := load.OpenServer(netip.MustParseAddrPort("127.0.0.1:0"), 1)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended, ready := make(chan error, 2), make(chan string, 1)
	go func() { ended <- server.Run(ctx) }()
	go func() {
		ended <- run(ctx, forward.Options{
			Listen: netip.MustParseAddrPort("127.0.0.1:0"), Target: served, Loops: 1,
			Ready: func(a netip.AddrPort) { ready <- a.String() },
		})
	}()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	return <-ready
}

// smoke are commands that end soon.
var smoke = map[string][]string{
	"bulk":       {"bulk", "--duration", "40ms"},
	"bulk both":  {"bulk", "--direction", "both", "--flows", "3", "--bytes", "2000000"},
	"pingpong":   {"pingpong", "--duration", "40ms", "--conns", "5"},
	"churn":      {"churn", "--duration", "40ms", "--in-flight", "4"},
	"idle":       {"idle", "--conns", "70", "--settle", "1ms", "--rest", "1ms"},
	"mix":        {"mix", "--duration", "40ms", "--conns", "3", "--bulk", "2"},
	"no threads": {"pingpong", "--duration", "40ms", "--conns", "5", "--threads", "1"},
}

func TestLoadsThroughForwarders(t *testing.T) {
	self := strconv.Itoa(os.Getpid())
	for mode, run := range map[string]func(context.Context, forward.Options) error{"engine": forward.Engine, "copy": forward.Copy} {
		target := startPath(t, run)
		for name, args := range smoke {
			t.Run(mode+" "+name, func(t *testing.T) {
				code, stdout, stderr := invoke(append(args, "--target", target, "--pid", "me="+self, "--json")...)
				if code != 0 {
					t.Fatalf("exit code %d: %s", code, stderr)
				}
				var r result
				decoder := json.NewDecoder(strings.NewReader(stdout))
				decoder.DisallowUnknownFields()
				if err := decoder.Decode(&r); err != nil {
					t.Fatalf("%v in %s", err, stdout)
				}
				checkResult(t, r, args[0], target)
			})
		}
	}
}

func checkResult(t *testing.T, r result, load, target string) {
	t.Helper()
	if r.Load != load || r.Target != target || r.Seconds <= 0 {
		t.Errorf("result %+v", r)
	}
	var names []string
	for _, c := range r.CPU {
		names = append(names, c.Name)
	}
	if !slices.Equal(names, []string{"me", "generator", "machine"}) {
		t.Errorf("CPU of %q", names)
	}
	if b := r.Bulk; b != nil && (b.Flows == 0 || b.Confirmed != b.Flows) {
		t.Errorf("bulk %+v", *b)
	}
	if b := r.Bulk; load == "bulk" && b.Up > 0 && (b.Up != 6000000 || b.Down != 6000000) {
		t.Errorf("bulk %+v, want 6000000 bytes each way", *b)
	}
	if p := r.PingPong; p != nil && (p.Trips == 0 || p.P50 > p.P99 || p.P99 > p.P999 || p.P999 > p.Max) {
		t.Errorf("ping-pong %+v", *p)
	}
	if c := r.Churn; c != nil && (c.Conns == 0 || c.Failed != 0) {
		t.Errorf("churn %+v", *c)
	}
	// How many descriptors came is not checked: this process also closes those
	// of the loads before, pipes whenever the garbage collector finds them.
	if i := r.Idle; i != nil && (i.Conns != 70 || len(i.Processes) != 1 || i.Processes[0].Name != "me") {
		t.Errorf("idle %+v", *i)
	}
}

// Without a tunnel one command is enough, and its table is readable.
func TestServeInProcess(t *testing.T) {
	for name, args := range smoke {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := invoke(append(args, "--serve", ":0")...)
			if code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr)
			}
			for _, want := range []string{args[0], "127.0.0.1:", "CPU of generator", "CPU of machine"} {
				if !strings.Contains(stdout, want) {
					t.Errorf("no %q in\n%s", want, stdout)
				}
			}
		})
	}
}

func TestServeAndForward(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	first, served := runUntil(ctx, "serve", "--threads", "1")
	second, forwarded := runUntil(ctx, "forward", "--target", served, "--mode", "copy")
	code, _, stderr := invoke("bulk", "--bytes", "1000", "--target", forwarded)
	if code != 0 {
		t.Error(stderr)
	}
	cancel()
	for _, ended := range []<-chan error{first, second} {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// runUntil runs a command until ctx ends, and gives the address it announces.
func runUntil(ctx context.Context, args ...string) (<-chan error, string) {
	out := &firstLine{line: make(chan string, 1)}
	root := newRoot()
	root.SetOut(out)
	root.SetArgs(args)
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()
	select {
	case line := <-out.line:
		return ended, strings.TrimPrefix(strings.TrimSpace(line), "listening on ")
	case err := <-ended:
		ended <- err
		return ended, ""
	}
}

type firstLine struct{ line chan string }

func (w *firstLine) Write(b []byte) (int, error) {
	w.line <- string(b)
	return len(b), nil
}

var _ io.Writer = (*firstLine)(nil)

func TestMistakes(t *testing.T) {
	tests := []struct {
		args string
		code int
		want string
	}{
		{"bulk", 2, "--target is missing"},
		{"bulk --target nonsense", 2, "use HOST:PORT"},
		{"bulk --target 127.0.0.1:99999", 2, "port from 0 to 65535"},
		{"bulk --serve :0 --direction sideways", 2, "use down, up or both"},
		{"bulk --serve :0 --flows 0", 2, "--flows must be at least 1"},
		{"bulk --serve :0 --duration 0s", 2, "--duration must be at least 1ms"},
		{"bulk --serve :0 --bytes 5 --duration 1s", 2, "bytes duration"},
		{"bulk --serve :0 --pid x", 2, "use PID or NAME=PID"},
		{"bulk --serve :0 --pid x=2147483647 --duration 10ms", 1, "read CPU time of x"},
		{"pingpong --serve :0 --size 0 --conns -1", 2, "--conns must be at least 1\n--size must be at least 1"},
		{"churn --serve :0 --in-flight 0", 2, "--in-flight"},
		{"idle --serve :0 --conns 0", 2, "--conns"},
		{"mix --serve :0 --bulk 0", 2, "--bulk"},
		{"pingpong --serve :0 --threads -1", 2, "--threads"},
		{"serve --listen nonsense", 2, "use HOST:PORT"},
		{"forward --target 127.0.0.1:1 --mode slow", 2, "use engine or copy"},
		{"forward", 2, "target"},
		{"bulk extra", 2, "unknown command"},
		{"", 2, "needs a command"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			code, stdout, stderr := invoke(strings.Fields(test.args)...)
			if code != test.code || !strings.Contains(stderr, test.want) || stdout != "" {
				t.Errorf("exit code %d, want %d; stderr %q, want %q in it", code, test.code, stderr, test.want)
			}
		})
	}
}

// The help names every field of the JSON object.
func TestFieldsAreDocumented(t *testing.T) {
	var missing []string
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice:
			walk(typ.Elem())
		case reflect.Struct:
			for field := range typ.Fields() {
				name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
				if !strings.Contains(resultHelp, name) {
					missing = append(missing, name)
				}
				walk(field.Type)
			}
		default:
		}
	}
	walk(reflect.TypeFor[result]())
	if len(missing) > 0 {
		t.Errorf("the help does not explain %q", missing)
	}
}

func TestPerUnit(t *testing.T) {
	if u := perGB(2e9); u.count != 2 || u.scale != 1 {
		t.Errorf("perGB: %+v", u)
	}
	if u := per("round trip", 7); u.name != "us/round trip" || u.count != 7 || u.scale != 1e6 {
		t.Errorf("per: %+v", u)
	}
	if got := micros(1500 * time.Nanosecond); got != 1.5 {
		t.Errorf("micros: %v", got)
	}
}
