package relay

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The process that is cut off is this test binary once more, in a network
// namespace of its own, with this variable set.
const cutEnv = "RELAY_TEST_CUT"

// A machine whose network is gone: sending fails in this very host, so that
// nothing ever leaves. All sockets of a stream that blocks are dead then, and
// heartbeats find the conns that carry none.
func TestCutOff(t *testing.T) {
	if os.Getenv(cutEnv) == "" {
		ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestCutOff$")
		cmd.Env = append(os.Environ(), cutEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, unix.EPERM) {
			t.Skip("needs to be root, for a network namespace")
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	loopbackDevice(t, true)
	t.Run("link", func(t *testing.T) {
		s := localServer(t, nil)
		k := startLink(t, linkOptions{settings: deadSettings(), conns: 2, heartbeat: 200 * time.Millisecond, target: s.target})
		testCutOff(t, route{public: k.public, local: s, engines: []*fixture{k.server.fixture, k.client.fixture}})
		for _, f := range []*fixture{k.server.fixture, k.client.fixture} {
			reasons := []Reason{await[ConnClosed](f).Reason, await[ConnClosed](f).Reason}
			if !slices.Contains(reasons, Missed) || !slices.Contains(reasons, PeerDead) {
				t.Errorf("conns closed as %v; want one with its stream, one by its heartbeat", reasons)
			}
		}
	})
	loopbackDevice(t, true)
	t.Run("forwarder", func(t *testing.T) {
		s := localServer(t, nil)
		f := startEngine(t, 1, deadSettings(), nil)
		testCutOff(t, route{public: f.listen(linkTunnel, ToTarget{Target: s.target}), local: s, engines: []*fixture{f}})
	})
}

// testCutOff fills both directions of a stream, whose every socket blocks then,
// and takes the network away.
func testCutOff(t *testing.T, r route) {
	t.Helper()
	visitor, service := r.connect(t)
	var writing sync.WaitGroup
	defer writing.Wait()
	defer drop(visitor, service) // which learn of nothing
	writing.Go(func() { flood(visitor) })
	writing.Go(func() { flood(service) })
	eventually(t, "every socket blocks", func() bool { return len(r.waited()) == 2*len(r.engines) })
	loopbackDevice(t, false)
	for i, f := range r.engines {
		if ev := await[StreamEnded](f); ev.Reason != PeerDead {
			t.Errorf("engine %d: ended as %q", i, ev.Reason)
		}
	}
}

// loopbackDevice switches the loopback device of the namespace on or off.
func loopbackDevice(t *testing.T, on bool) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer closefd(fd)
	device, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	if on {
		device.SetUint16(unix.IFF_UP)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, device); err != nil {
		t.Fatal(err)
	}
}
