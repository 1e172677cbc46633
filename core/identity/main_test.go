package identity_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/cproxy/cproxy/core/identity"
)

// childVariable makes the test binary act as another process: it holds a verb
// and its arguments, separated by line breaks.
const childVariable = "CPROXY_IDENTITY_TEST_CHILD"

func TestMain(m *testing.M) {
	if job := os.Getenv(childVariable); job != "" {
		if err := runChild(strings.Split(job, "\n")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func runChild(job []string) error {
	switch job[0] {
	case "identity":
		id, err := identity.LoadOrCreateServer(job[1])
		if err != nil {
			return err
		}
		fmt.Println(id.Pin())
		return nil
	case "add":
		_, err := identity.AddToken(job[1], job[2], identity.Grants{})
		return err
	}
	return fmt.Errorf("unknown job %q", job[0])
}

// child returns a process that will do the job.
func child(t *testing.T, job ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+strings.Join(job, "\n"))
	return cmd
}

// runTogether starts all processes before it waits for any, and returns what
// each wrote.
func runTogether(t *testing.T, cmds []*exec.Cmd) []string {
	t.Helper()
	outputs := make([]strings.Builder, len(cmds))
	for i, cmd := range cmds {
		cmd.Stdout, cmd.Stderr = &outputs[i], &outputs[i]
		if err := cmd.Start(); err != nil {
			t.Fatalf("start process: %v", err)
		}
	}
	texts := make([]string, len(cmds))
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("process %d: %v: %s", i, err, outputs[i].String())
		}
		texts[i] = strings.TrimSpace(outputs[i].String())
	}
	return texts
}
