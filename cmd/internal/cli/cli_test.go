package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

const childVariable = "CLI_TEST_CHILD"

// TestMain makes the test binary a program whose behaviour under signals can
// be watched from outside.
func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "":
		os.Exit(m.Run())
	default:
		os.Exit(Main(newTestRoot(), []string{os.Getenv(childVariable)}, os.Stderr))
	}
}

func newTestRoot() *cobra.Command {
	root := &cobra.Command{Use: "prog"}
	fail := func(err error) func(*cobra.Command, []string) error {
		return func(*cobra.Command, []string) error { return err }
	}
	broken := errors.New("read file: broken")
	work := &cobra.Command{Use: "work FILE", Args: Args("FILE"), RunE: fail(nil)}
	work.Flags().Int("count", 0, "")
	need := &cobra.Command{Use: "need", RunE: fail(nil)}
	need.Flags().String("config", "", "")
	if err := need.MarkFlagRequired("config"); err != nil {
		panic(err)
	}
	group := &cobra.Command{Use: "token"}
	group.AddCommand(
		&cobra.Command{Use: "add", RunE: fail(nil)},
		&cobra.Command{Use: "list", RunE: fail(nil)},
		&cobra.Command{Use: "secret", Hidden: true, RunE: fail(nil)},
	)
	lines := errors.Join(errors.New("a.toml:1: one"), errors.New("a.toml:2: two"))
	root.AddCommand(
		work, need, group,
		&cobra.Command{Use: "fail", RunE: fail(broken)},
		&cobra.Command{Use: "lines", RunE: fail(Usage(lines))},
		&cobra.Command{Use: "refused", RunE: fail(fmt.Errorf("connect: %w", Refused(broken)))},
		&cobra.Command{Use: "quiet", RunE: fail(&ExitError{Code: 7})},
		&cobra.Command{Use: "orderly", RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Println("ready")
			<-cmd.Context().Done()
			return nil
		}},
		&cobra.Command{Use: "stubborn", RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Println("ready")
			<-cmd.Context().Done()
			fmt.Println("stopping")
			select {}
		}},
		NewVersionCommand("prog", "v1.2.3", 1),
	)
	return root
}

func TestExitCodes(t *testing.T) {
	const usage = "\nRun 'prog --help' for usage.\n"
	tests := []struct {
		args   string
		code   int
		stderr string
	}{
		{"work file", ExitOK, ""},
		{"work file --count 3", ExitOK, ""},
		{"--help", ExitOK, ""},
		{"token --help", ExitOK, ""},
		{"token add", ExitOK, ""},
		{"fail", ExitFailure, "error: read file: broken\n"},
		{"lines", ExitUsage, "error: a.toml:1: one\na.toml:2: two\n"},
		{"refused", ExitRefused, "error: connect: read file: broken\n"},
		{"quiet", 7, ""},
		{"", ExitUsage, "error: prog needs a command: completion, fail, lines, need, orderly, quiet, refused, stubborn, token, version, work" + usage},
		{"tokn", ExitUsage, `error: unknown command "tokn" for "prog"; did you mean "token"?` + usage},
		{"token", ExitUsage, "error: prog token needs a command: add, list\nRun 'prog token --help' for usage.\n"},
		{"token lst", ExitUsage, `error: unknown command "lst" for "prog token"; did you mean "list"?` + "\nRun 'prog token --help' for usage.\n"},
		{"token zzz", ExitUsage, `error: unknown command "zzz" for "prog token"` + "\nRun 'prog token --help' for usage.\n"},
		{"work", ExitUsage, "error: FILE is missing\nRun 'prog work --help' for usage.\n"},
		{"work a b", ExitUsage, "error: \"b\" is one argument too many\nRun 'prog work --help' for usage.\n"},
		{"--version", ExitOK, ""},
		{"work a --nope", ExitUsage, "error: unknown flag: --nope\nRun 'prog work --help' for usage.\n"},
		{"work a --count x", ExitUsage, "error: --count: must be a whole number; got \"x\"" +
			"\nRun 'prog work --help' for usage.\n"},
		{"need", ExitUsage, "error: required flag(s) \"config\" not set\nRun 'prog need --help' for usage.\n"},
		{"version x", ExitUsage, "error: unknown command \"x\" for \"prog version\"\nRun 'prog version --help' for usage.\n"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			root := newTestRoot()
			root.SetOut(&stdout)
			code := run(context.Background(), root, strings.Fields(test.args), &stderr)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			if stderr.String() != test.stderr {
				t.Errorf("stderr %q, want %q", stderr.String(), test.stderr)
			}
		})
	}
}

// With nil, cobra would read the arguments of the test binary.
func TestNilArgs(t *testing.T) {
	var stderr bytes.Buffer
	if code := run(context.Background(), newTestRoot(), nil, &stderr); code != ExitUsage {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(stderr.String(), "needs a command") {
		t.Errorf("stderr %q", stderr.String())
	}
}

func TestExitError(t *testing.T) {
	if Usage(nil) != nil || Refused(nil) != nil {
		t.Error("no error became one")
	}
	inner := errors.New("inner")
	if err := Usage(inner); !errors.Is(err, inner) || err.Error() != "inner" {
		t.Errorf("got %v", err)
	}
	if got := (&ExitError{Code: 4}).Error(); got != "exit code 4" {
		t.Errorf("got %q", got)
	}
}

func TestSignals(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run("first "+signal.String(), func(t *testing.T) {
			child := startChild(t, "orderly")
			child.expect(t, "ready")
			child.signal(t, signal)
			if state := child.wait(); !state.Exited() || state.ExitStatus() != ExitOK {
				t.Errorf("ended with %v, want exit code 0", state)
			}
		})
	}
	t.Run("second", func(t *testing.T) {
		child := startChild(t, "stubborn")
		child.expect(t, "ready")
		child.signal(t, syscall.SIGTERM)
		child.expect(t, "stopping")
		child.signal(t, syscall.SIGTERM)
		if state := child.wait(); !state.Signaled() || state.Signal() != syscall.SIGTERM {
			t.Errorf("ended with %v, want to be killed by the signal", state)
		}
	})
}

type child struct {
	cmd *exec.Cmd
	out *bufio.Scanner
}

func startChild(t *testing.T, command string) *child {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+command)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &child{cmd: cmd, out: bufio.NewScanner(out)}
}

func (c *child) expect(t *testing.T, line string) {
	t.Helper()
	if !c.out.Scan() || c.out.Text() != line {
		t.Fatalf("printed %q, want %q", c.out.Text(), line)
	}
}

func (c *child) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

func (c *child) wait() syscall.WaitStatus {
	_ = c.cmd.Wait() // the state says more
	state, _ := c.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return state
}

func TestVersion(t *testing.T) {
	build := func(main string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: main}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123"}
	modified := debug.BuildSetting{Key: "vcs.modified", Value: "true"}
	tests := []struct {
		name, linked string
		info         *debug.BuildInfo
		want         string
	}{
		{"linked", "v1.2.3", build("v9.9.9"), "v1.2.3"},
		{"module", "", build("v0.4.0", revision), "v0.4.0"},
		{"revision", "", build("(devel)", revision), "devel-0123456789ab"},
		{"modified", "", build("", revision, modified), "devel-0123456789ab-dirty"},
		{"nothing known", "", build("(devel)"), "devel"},
		{"no build information", "", nil, "devel"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := version(test.linked, test.info); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	if Version("") == "" {
		t.Error("this binary has no version")
	}
}

func TestVersionCommand(t *testing.T) {
	var stdout, stderr bytes.Buffer
	root := newTestRoot()
	root.SetOut(&stdout)
	if code := run(context.Background(), root, []string{"version"}, &stderr); code != ExitOK {
		t.Fatalf("exit code %d: %s", code, stderr.String())
	}
	var flag bytes.Buffer
	again := newTestRoot()
	again.SetOut(&flag)
	if code := run(context.Background(), again, []string{"--version"}, &stderr); code != ExitOK || flag.String() != stdout.String() {
		t.Errorf("--version: exit code %d, printed %q", code, flag.String())
	}
	if got := stdout.String(); !strings.HasPrefix(got, "prog v1.2.3 (go") || !strings.HasSuffix(got, ", protocol 1)\n") {
		t.Errorf("printed %q", got)
	}
}
