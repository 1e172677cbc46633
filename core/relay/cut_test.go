package relay

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The processes that have a network of their own are this test binary once more,
// with this variable set.
const ownNetworkEnv = "RELAY_TEST_OWN_NETWORK"

// inOwnNetwork has a whole test run in a network namespace that was made for it,
// with nothing but a loopback device in it. It tells whether this is there.
func inOwnNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(ownNetworkEnv) != "" {
		loopbackDevice(t, true)
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), ownNetworkEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) {
		t.Skip("needs to be root, for a network namespace")
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// A machine whose network is gone: sending fails in this very host, so that
// nothing ever leaves. All sockets of a stream that blocks are dead then, and
// heartbeats find the conns that carry none.
func TestCutOff(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	t.Run("link", func(t *testing.T) {
		s := localServer(t, nil)
		k := startLink(t, linkOptions{settings: deadSettings(), conns: 2, heartbeat: 200 * time.Millisecond, target: s.target})
		testCutOff(t, route{public: k.public, local: s, engines: []*fixture{k.server.fixture, k.client.fixture}})
		for _, f := range []*fixture{k.server.fixture, k.client.fixture} {
			idle := func(ev ConnClosed) bool { return ev.Reason == Missed }
			awaitThat(f, idle)
			if ev := await[ConnClosed](f); idle(ev) {
				t.Error("the conn of the stream was closed for its heartbeats")
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
