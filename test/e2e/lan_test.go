package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// lan is a router with hosts around it, each a network namespace with a
// network of its own. Nothing of it has a name outside the test process: a
// namespace is gone with the last descriptor, socket and process in it, also
// when the test is killed.
type lan struct {
	t      *testing.T
	router *lanHost
	hosts  int
}

// lanHost is a network namespace. The nil host is the one that the test runs
// in. Its methods may be used from any goroutine.
type lanHost struct {
	name   string
	number int
	ip     string
	ns     *os.File
}

// places says on which hosts the processes of a world run.
type places struct{ server, client *lanHost }

// of gives the host for the next process of this name.
func (p places) of(process string) *lanHost {
	if process == "server" {
		return p.server
	}
	return p.client
}

// newLAN makes a router without hosts, or skips the test.
func newLAN(t *testing.T) *lan {
	t.Helper()
	needNamespaces(t)
	needPrograms(t, "ip:iproute2", "nft:nftables")
	l := &lan{t: t, router: &lanHost{name: "router"}}
	l.open(l.router)
	if err := l.router.do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o600)
	}); err != nil {
		t.Fatal(err)
	}
	l.filter("add table ip lan", "add chain ip lan forward { type filter hook forward priority 0; }")
	return l
}

// missing skips a test that cannot have hosts of its own. Where such tests must
// run, as in CI, it fails instead.
func missing(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("E2E_HOSTS") == "required" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// needPrograms wants programs, each with the package that has it.
func needPrograms(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		command, pkg, _ := strings.Cut(p, ":")
		if _, err := exec.LookPath(command); err != nil {
			missing(t, "needs the program %s; install it (Debian, Ubuntu: apt install %s)", command, pkg)
		}
	}
}

func needNamespaces(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "needs root, to make network namespaces; run the test as root")
	}
	ns, err := newNamespace()
	if err != nil {
		missing(t, "cannot make network namespaces; allow it to this container: %v", err)
	}
	_ = ns.Close() // only a try
}

// newNamespace makes a network namespace that nothing is in.
func newNamespace() (ns *os.File, err error) {
	entered := elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, entered
}

// elsewhere calls enter, which changes the namespace of its thread, then f, and
// brings the thread back.
func elsewhere(enter, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// A thread that stays locked ends with its goroutine, and with it would end
		// the processes that it has started: so it is only kept if it is lost.
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			result <- fmt.Errorf("open network namespace: %w", err)
			return
		}
		defer home.Close()
		if err := enter(); err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("enter network namespace: %w", err)
			return
		}
		err = f()
		if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
			result <- errors.Join(err, fmt.Errorf("leave network namespace: %w", back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// do runs f on the host: sockets that f makes and processes that it starts belong
// there, for good. f must not leave that to other goroutines.
func (h *lanHost) do(f func() error) error {
	if h == nil {
		return f()
	}
	if err := elsewhere(func() error { return unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET) }, f); err != nil {
		return fmt.Errorf("on host %s: %w", h.name, err)
	}
	return nil
}

// command runs a program on the host; file, unless nil, is its descriptor 3.
func (h *lanHost) command(stdin string, file *os.File, argv ...string) ([]byte, error) {
	var out []byte
	err := h.do(func() error {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader(stdin)
		if file != nil {
			cmd.ExtraFiles = []*os.File{file}
		}
		var err error
		if out, err = cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s%s", strings.Join(argv, " "), err, stdin, bytes.TrimSpace(out))
		}
		return nil
	})
	return out, err
}

// ip runs commands of ip(8), separated by semicolons.
func (l *lan) ip(h *lanHost, file *os.File, commands string) {
	l.t.Helper()
	for command := range strings.SplitSeq(commands, ";") {
		if _, err := h.command("", file, append([]string{"ip"}, strings.Fields(command)...)...); err != nil {
			l.t.Fatal(err)
		}
	}
}

// open gives a host its namespace.
func (l *lan) open(h *lanHost) {
	l.t.Helper()
	ns, err := newNamespace()
	if err != nil {
		l.t.Fatal(err)
	}
	h.ns = ns
	l.t.Cleanup(func() { _ = ns.Close() }) // a host that was rebooted is closed already
	l.ip(h, nil, "link set lo up")
}

// host makes a host with a network of its own.
func (l *lan) host(name string) *lanHost {
	l.t.Helper()
	l.hosts++
	h := &lanHost{name: name, number: l.hosts, ip: fmt.Sprintf("10.0.%d.2", l.hosts)}
	l.open(h)
	l.connect(h)
	return h
}

func (l *lan) connect(h *lanHost) {
	l.t.Helper()
	n := strconv.Itoa(h.number)
	l.ip(l.router, h.ns, "link add to"+n+" type veth peer name eth0 netns /proc/self/fd/3;"+
		"addr add 10.0."+n+".1/24 dev to"+n+"; link set to"+n+" up")
	l.ip(h, nil, "addr add "+h.ip+"/24 dev eth0; link set eth0 up; route add default via 10.0."+n+".1")
}

// unplug takes the cable of a host out. Nobody hears of it.
func (l *lan) unplug(h *lanHost) {
	l.t.Helper()
	l.ip(l.router, nil, "link del to"+strconv.Itoa(h.number))
}

// reboot makes an unplugged host, whose processes have ended, anew.
func (l *lan) reboot(h *lanHost) {
	l.t.Helper()
	_ = h.ns.Close() // it was only read
	l.open(h)
	l.connect(h)
}

// filter runs commands of nft(8) in the router, all or none.
func (l *lan) filter(commands ...string) {
	l.t.Helper()
	if _, err := l.router.command(strings.Join(commands, "\n")+"\n", nil, "nft", "-f", "-"); err != nil {
		l.t.Fatal(err)
	}
}

// cut drops what two hosts send to each other from now on, without a word.
func (l *lan) cut(a, b *lanHost) {
	l.t.Helper()
	l.filter(
		fmt.Sprintf("add rule ip lan forward ip saddr %s ip daddr %s counter drop", a.ip, b.ip),
		fmt.Sprintf("add rule ip lan forward ip saddr %s ip daddr %s counter drop", b.ip, a.ip),
	)
}

// cutConn drops what belongs to one connection, without a word.
func (l *lan) cutConn(c net.Conn) {
	l.t.Helper()
	here, there := addressOf(c.LocalAddr()), addressOf(c.RemoteAddr())
	rule := "add rule ip lan forward ip saddr %s ip daddr %s tcp sport %d tcp dport %d counter drop"
	l.filter(
		fmt.Sprintf(rule, here.Addr(), there.Addr(), here.Port(), there.Port()),
		fmt.Sprintf(rule, there.Addr(), here.Addr(), there.Port(), here.Port()),
	)
}

// cutNew drops what would begin a connection from one host to another.
func (l *lan) cutNew(from, to *lanHost) {
	l.t.Helper()
	l.filter(fmt.Sprintf("add rule ip lan forward ip saddr %s ip daddr %s tcp flags & (syn | ack) == syn counter drop", from.ip, to.ip))
}

// lose drops so many of a hundred packets, whoever sends them.
func (l *lan) lose(percent int) {
	l.t.Helper()
	l.filter(fmt.Sprintf("add rule ip lan forward numgen random mod 100 < %d counter drop", percent))
}

// dropped tells how many packets the present rules have dropped.
func (l *lan) dropped() (packets int) {
	l.t.Helper()
	out, err := l.router.command("", nil, "nft", "list", "chain", "ip", "lan", "forward")
	if err != nil {
		l.t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if _, rest, ok := strings.Cut(line, "counter packets "); ok {
			number, _, _ := strings.Cut(rest, " ")
			n, err := strconv.Atoi(number)
			if err != nil {
				l.t.Fatal(err)
			}
			packets += n
		}
	}
	return packets
}

// heal lets everything pass again. That nothing was dropped means that the test
// has not tested anything.
func (l *lan) heal() {
	l.t.Helper()
	if l.dropped() == 0 {
		l.t.Error("no packet was dropped")
	}
	l.filter("flush chain ip lan forward")
}

// serve starts a service on the host.
func (h *lanHost) serve(t *testing.T, handle func(stream)) *service {
	t.Helper()
	return serveOn(t, h.listen(t), handle)
}

// manual starts a service on the host whose connections the test itself handles.
func (h *lanHost) manual(t *testing.T) (*service, <-chan stream) {
	t.Helper()
	return manualOn(t, h.listen(t))
}

func (h *lanHost) listen(t *testing.T) net.Listener {
	t.Helper()
	var ln net.Listener
	if err := h.do(func() (err error) {
		ln, err = net.Listen("tcp", h.ip+":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return ln
}

// visit connects from the host to a public address.
func (h *lanHost) visit(t *testing.T, address string) stream {
	t.Helper()
	var c stream
	if err := h.do(func() (err error) {
		c, err = dial(address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
