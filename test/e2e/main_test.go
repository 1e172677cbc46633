// Package e2e tests the real binaries against each other: their command lines
// by the scripts in testdata, and what happens to bytes, connections and
// processes when something goes wrong by small worlds of a server, clients and
// services. Every world has a loopback address of its own, so any number of
// them can run at a time; or hosts of its own, between which packets can be
// dropped and delayed, where the test is run by root.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
)

// maxParallel bounds the worlds at one time: each is several busy processes.
const maxParallel = 3

func TestMain(m *testing.M) {
	if os.Getenv(machineVariable) != "" {
		fmt.Fprintln(os.Stderr, "e2e:", becomeMachine(os.Args[1:]))
		os.Exit(1)
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	flag.Parse()
	if err := flag.Set("test.parallel", strconv.Itoa(maxParallel)); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: bound parallel tests:", err)
		return 1
	}
	bin, err := os.MkdirTemp("", "cproxy-e2e")
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: make folder for binaries:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(bin) }() // it is in the folder for such things
	if err := build(bin); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	clean()
	// The race detector makes a process wait for a second before it exits.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: set GORACE:", err)
		return 1
	}
	if err := os.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH")); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: set PATH:", err)
		return 1
	}
	return m.Run()
}

// build makes the binaries, with the race detector where that is possible.
func build(into string) error {
	args := []string{"build", "-o", into + string(filepath.Separator)}
	env := os.Environ()
	if canRace() {
		args = append(args, "-race")
		env = append(env, "CGO_ENABLED=1")
	} else {
		fmt.Fprintln(os.Stderr, "e2e: no C compiler, so the binaries are built without the race detector")
	}
	args = append(args, "./cmd/cproxy-server", "./cmd/cproxy-client")
	cmd := exec.Command("go", args...)
	cmd.Dir = repository()
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the binaries: %w\n%s", err, out)
	}
	return nil
}

func canRace() bool {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		return false
	}
	out, err := exec.Command("go", "env", "CC").Output()
	if err != nil {
		return false
	}
	compiler := strings.Fields(string(out))
	if len(compiler) == 0 {
		return false
	}
	_, err = exec.LookPath(compiler[0])
	return err == nil
}

// repository is the root of the source tree.
func repository() string {
	dir, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return filepath.Join("..", "..")
	}
	return dir
}

// clean takes variables that would configure the binaries out of the
// environment.
func clean() {
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if strings.HasPrefix(name, "CPROXY_") {
			_ = os.Unsetenv(name) // fails only for names that Environ does not give
		}
	}
}
