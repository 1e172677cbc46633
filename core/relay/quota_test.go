package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// quotaEnv names the shortage that the process of TestQuotaProcess makes.
const quotaEnv = "RELAY_TEST_QUOTA"

// strangerID is a user that owns no pipes: the quota is the user's, not the
// process's (pipe(7)). So another run of these tests has another one.
func strangerID() int { return 50000 + os.Getpid()%10000 }

// asStranger runs a test of this binary once more, as an unprivileged user.
func asStranger(t *testing.T, test, shortage string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to become a user without privileges whose pipes are all its own: run this test as root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	// By its descriptor: the folder of the binary is closed to others.
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run=^"+test+"$", "-test.v")
	cmd.Env = append(os.Environ(), quotaEnv+"="+shortage, "GORACE=atexit_sleep_ms=0")
	id := uint32(strangerID())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+test) {
		t.Fatalf("as user %d: %v\n%s", id, err, out)
	}
}

// Without pipes bulk is copied, and spliced again when there are some.
func TestOutOfPipes(t *testing.T) {
	for _, shortage := range []string{"quota", "descriptors"} {
		t.Run(shortage, func(t *testing.T) { asStranger(t, "TestQuotaProcess", shortage) })
	}
}

// TestQuotaProcess is what that process runs.
func TestQuotaProcess(t *testing.T) {
	shorten := map[string]func(testing.TB) func(){"quota": takePipes, "descriptors": takeDescriptors}[os.Getenv(quotaEnv)]
	if shorten == nil {
		t.Skip("runs in a process of its own, see TestOutOfPipes")
	}
	if os.Getuid() == 0 {
		t.Fatal("runs as root, who has no quota")
	}
	eachRoute(t, Settings{}, func(t *testing.T, r route) {
		t.Helper()
		visitor, service := r.connect(t)
		say(t, visitor, "?")
		hear(t, service, "?")
		say(t, service, "!")
		hear(t, visitor, "!")
		restore := sync.OnceFunc(shorten(t))
		t.Cleanup(restore)
		const size = 8 << 20
		parallel(t,
			func() error { return pump(visitor, 1, size) },
			func() error { return pump(service, 2, size) },
			func() error { return wantPart(service, 1, size) },
			func() error { return wantPart(visitor, 2, size) },
		)
		if n := r.pipes(); n != 0 {
			t.Errorf("%d pipes, although there are none to be had", n)
		}
		refused := false
		for _, f := range r.engines {
			for i := range f.loops {
				f.inLoop(i, func(l *loop) { refused = refused || l.pipes.refused > 0 })
			}
		}
		if !refused {
			t.Error("no loop has asked for a pipe")
		}
		restore()
		parallel(t,
			func() error { return sendContent(visitor, 3, size) },
			func() error { return sendContent(service, 4, size) },
			func() error { return wantContent(service, 3, size) },
			func() error { return wantContent(visitor, 4, size) },
		)
		if r.pipes() == 0 {
			t.Error("no pipes, although there are some again")
		}
		r.ended(t, 1+2*size, 1+2*size)
	})
}

// takePipes uses the user's quota up, and gives it back.
func takePipes(tb testing.TB) (restore func()) {
	tb.Helper()
	var taken []*pipe
	for {
		var fd [2]int
		if err := unix.Pipe2(fd[:], unix.O_CLOEXEC); err != nil {
			tb.Fatal(err)
		}
		taken = append(taken, &pipe{r: fd[0], w: fd[1]})
		_, err := unix.FcntlInt(uintptr(fd[1]), unix.F_SETPIPE_SZ, pipeSize)
		if errors.Is(err, unix.EPERM) {
			break
		}
		if err != nil || len(taken) > 4096 {
			tb.Fatalf("pipe %d: %v", len(taken), err)
		}
	}
	// And what is left of it, which would do for a smaller one.
	for size := pipeSize / 2; size >= 64<<10; size /= 2 {
		_, _ = unix.FcntlInt(uintptr(taken[len(taken)-1].w), unix.F_SETPIPE_SZ, size)
	}
	return func() {
		for _, b := range taken {
			b.close()
		}
	}
}

// takeDescriptors leaves the process no descriptor more than it has.
func takeDescriptors(tb testing.TB) (restore func()) {
	tb.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		tb.Fatal(err)
	}
	// The lowest number that is free; who opens one gets the lowest.
	lowest, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	limit := unix.Rlimit{Cur: uint64(lowest) + 1, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		tb.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
			tb.Fatal(err)
		}
		closefd(lowest)
	}
}

// pump writes n bytes of a content, and goes on being able to write.
func pump(c *net.TCPConn, number uint64, n int64) error {
	_, err := io.CopyN(c, content(number), n)
	return err
}

// wantPart reads n bytes of a content.
func wantPart(c net.Conn, number uint64, n int64) error {
	want, _ := digest(content(number), n)
	if got, err := digest(c, n); err != nil || got != want {
		return fmt.Errorf("content %d, equal: %v, %w", number, got == want, err)
	}
	return nil
}
