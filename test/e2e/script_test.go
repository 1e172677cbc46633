package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the scripts of testdata. Beside the commands of testscript
// they have those of this file; each is described where it is defined.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", os.Getenv("PATH"))
			env.Setenv("GORACE", os.Getenv("GORACE"))
			env.Setenv("IP", nextAddress())
			env.Setenv("REPOSITORY", repository())
			env.Values[stageKey{}] = &stage{processes: make(map[string]*process), failed: t.Errorf}
			return nil
		},
		Condition: condition,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":    cmdCode,
			"expand":  cmdExpand,
			"extract": cmdExtract,
			"fetch":   cmdFetch,
			"ends":    cmdEnds,
			"logs":    cmdLogs,
			"service": cmdService,
			"signal":  cmdSignal,
			"start":   cmdStart,
		},
	})
}

// condition knows [root] and [ipv6].
func condition(name string) (bool, error) {
	switch name {
	case "root":
		return os.Geteuid() == 0, nil
	case "ipv6":
		ln, err := net.Listen("tcp", "[::1]:0")
		if err != nil {
			return false, nil
		}
		return true, ln.Close()
	default:
		return false, fmt.Errorf("unknown condition %q", name)
	}
}

// stage is what a script has in the background.
type stage struct {
	processes map[string]*process
	failed    func(format string, args ...any) // for what shows after the script
}

type stageKey struct{}

func stageOf(ts *testscript.TestScript) *stage {
	s, ok := ts.Value(stageKey{}).(*stage)
	if !ok {
		ts.Fatalf("the script has no stage")
	}
	return s
}

func processOf(ts *testscript.TestScript, name string) *process {
	p := stageOf(ts).processes[name]
	if p == nil {
		ts.Fatalf("nothing called %s was started", name)
	}
	return p
}

// usage ends a script that gives a command something else than it wants.
func usage(ts *testscript.TestScript, neg, ok bool, text string) {
	if neg || !ok {
		ts.Fatalf("usage: %s", text)
	}
}

// cmdCode runs a command to its end and wants an exit code. What stdin, stdout
// and stderr of testscript do for exec they do for it.
func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) > 1, "code CODE PROGRAM ARGUMENT...")
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	bound := strconv.Itoa(int(patience / time.Second))
	got := 0
	if err := ts.Exec("timeout", append([]string{"-k", "1", bound}, args[1:]...)...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("run %s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// environOf is the environment of the script's commands. Only a command gets to
// see it.
func environOf(ts *testscript.TestScript) []string {
	const name = ".environment"
	ts.Check(ts.Exec("sh", "-c", "env -0 >"+name))
	return strings.Split(strings.TrimSuffix(ts.ReadFile(name), "\x00"), "\x00")
}

// cmdStart starts a program in the background and waits until a line of either
// output matches. Named groups of the pattern become variables.
func cmdStart(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) > 2, "start NAME PATTERN PROGRAM ARGUMENT...")
	p, err := launch(launchOptions{name: args[0], argv: args[2:], dir: ts.MkAbs("."), env: environOf(ts)})
	ts.Check(err)
	stageOf(ts).processes[p.name] = p
	ts.Defer(func() {
		if p.running() {
			p.kill()
		}
		ts.Logf("%s wrote:\n%s%s", p.name, p.stdout.String(), p.stderr.String())
		if p.raced() {
			stageOf(ts).failed("%s has a data race", p.name)
		}
	})
	waitFor(ts, p, args[1])
}

// waitFor waits for a line of either output.
func waitFor(ts *testscript.TestScript, p *process, pattern string) {
	re, err := regexp.Compile(`(?m)` + pattern)
	ts.Check(err)
	var found []string
	ts.Check(poll(func() error {
		ended := !p.running()
		found = re.FindStringSubmatch(p.stdout.String() + p.stderr.String())
		if found == nil && ended {
			ts.Fatalf("%s ended without a line that matches %q", p.name, pattern)
		}
		if found == nil {
			return fmt.Errorf("%s: no line matches %q", p.name, pattern)
		}
		return nil
	}))
	for i, name := range re.SubexpNames() {
		if name != "" {
			ts.Setenv(name, found[i])
		}
	}
}

// cmdLogs waits for a line of a program in the background.
func cmdLogs(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "logs NAME PATTERN")
	waitFor(ts, processOf(ts, args[0]), args[1])
}

// cmdSignal sends a signal to a program in the background.
func cmdSignal(ts *testscript.TestScript, neg bool, args []string) {
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP, "INT": syscall.SIGINT, "TERM": syscall.SIGTERM, "KILL": syscall.SIGKILL}
	usage(ts, neg, len(args) == 2 && signals[args[1]] != 0, "signal NAME HUP|INT|TERM|KILL")
	ts.Check(processOf(ts, args[0]).signal(signals[args[1]]))
}

// cmdEnds waits for the end of a program in the background, wants an exit code,
// and writes its outputs to NAME.stdout and NAME.stderr.
func cmdEnds(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "ends NAME CODE")
	want, err := strconv.Atoi(args[1])
	ts.Check(err)
	p := processOf(ts, args[0])
	got, err := p.exit()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(p.name+".stdout"), []byte(p.stdout.String()), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(p.name+".stderr"), []byte(p.stderr.String()), 0o600))
	if got != want {
		ts.Fatalf("%s exits with %d, want %d", p.name, got, want)
	}
}

// cmdExpand replaces the variables in a file.
func cmdExpand(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 1, "expand FILE")
	text := os.Expand(ts.ReadFile(args[0]), ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// cmdExtract sets variables to the named groups of a pattern in a file.
func cmdExtract(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "extract FILE PATTERN")
	re, err := regexp.Compile(`(?m)` + args[1])
	ts.Check(err)
	found := re.FindStringSubmatch(ts.ReadFile(args[0]))
	if found == nil {
		ts.Fatalf("no line of %s matches %q", args[0], args[1])
	}
	for i, name := range re.SubexpNames() {
		if name != "" {
			ts.Setenv(name, found[i])
		}
	}
}

// cmdService starts a local service that answers every visitor with a text and
// sets a variable to its address.
func cmdService(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, neg, len(args) == 2, "service VARIABLE TEXT")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, args[1]) // fetch tells what has come
			_ = c.Close()
		}
	})
	ts.Defer(func() {
		_ = ln.Close()
		tasks.Wait()
	})
	ts.Setenv(args[0], ln.Addr().String())
}

// cmdFetch reads all that an address gives, and wants it to be a text; with !
// it wants that nobody listens.
func cmdFetch(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, false, len(args) == 2 || neg && len(args) == 1, "fetch ADDRESS TEXT, or ! fetch ADDRESS")
	if neg {
		ts.Check(poll(func() error { return wantClosed(args[0]) }))
		return
	}
	c, err := dial(args[0])
	ts.Check(err)
	defer c.Close()
	got, err := io.ReadAll(c)
	ts.Check(err)
	if string(got) != args[1] {
		ts.Fatalf("got %q, want %q", got, args[1])
	}
}
