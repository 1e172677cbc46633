package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// setup describes a world. The zero value is a server and a client without
// tunnels.
type setup struct {
	server      string   // lines of server.toml
	grants      []string // flags of `token add`
	client      string   // lines of client.toml, before its tables
	tunnels     []tunnel
	poolMax     int // as configured on either side; 0: the default
	serverFiles int // RLIMIT_NOFILE of the server; 0: that of the test
	clientFiles int
	at          places // by default the host of the test
	// way leads the client to the CtlPort, by default directly.
	way func(w *world, ctl string) (address string)
	// unready does not wait for the tunnels.
	unready bool
}

// tunnel is a [[tunnel]] table.
type tunnel struct {
	name  string
	local string
	more  string // further lines
}

func (t tunnel) String() string {
	return fmt.Sprintf("\n[[tunnel]]\nname = %q\nlocal = %q\n%s\n", t.name, t.local, t.more)
}

// world is a running server and a client on a loopback address of their own.
type world struct {
	t         *testing.T
	setup     setup
	ip        string
	dir       string
	join      string // the client's join string
	doors     doors
	proxyPort string
	server    *process
	client    *process
	all       []*process
}

// addresses hands out the loopback addresses of this test process. Two test
// processes are unlikely to begin with the same network.
func addresses() func() string {
	network := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), rand.IntN(256))
	var last atomic.Int32
	return func() string { return network + strconv.Itoa(int(last.Add(1))+1) }
}

var nextAddress = addresses()

// newWorld starts what s describes, and ends it with the test: every process
// has to stop in an orderly way, without a race report, and without a
// descriptor left over from its streams.
func newWorld(t *testing.T, s setup) *world {
	t.Helper()
	w := &world{t: t, setup: s, ip: nextAddress(), dir: t.TempDir()}
	if s.at.server != nil {
		w.ip = s.at.server.ip
	}
	if w.setup.poolMax == 0 {
		w.setup.poolMax = 256
	}
	t.Cleanup(w.end)
	w.write("server.toml", fmt.Sprintf("ctl_listen = %q\nproxy_listen = %q\npublic_bind = %q\nstate_dir = %q\n%s\n",
		w.ip+":0", w.ip+":0", w.ip, filepath.Join(w.dir, "state"), s.server))
	w.startServer()
	ctl := w.ctlAddress()
	if s.way != nil {
		ctl = s.way(w, ctl)
		w.doors.ctl = append(w.doors.ctl, portIn(ctl))
	}
	w.join = w.token("site", ctl, s.grants...)
	w.writeClient("client.toml", w.join, s.client, s.tunnels)
	w.client = w.startClient("client", "client.toml")
	if !s.unready {
		w.ready(w.client, s.tunnels...)
	}
	return w
}

// ctlAddress is the CtlPort of the server.
func (w *world) ctlAddress() string { return net.JoinHostPort(w.ip, portText(w.doors.ctl[0])) }

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// write makes or replaces a file of the world.
func (w *world) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(w.path(name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// run runs a command to its end and gives its standard output.
func (w *world) run(stdin, name string, args ...string) string {
	w.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = w.dir
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		w.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

// token adds a token and gives its join string.
func (w *world) token(name, ctl string, flags ...string) string {
	w.t.Helper()
	args := append([]string{"token", "add", name, "--config", w.path("server.toml"), "--advertise", ctl}, flags...)
	return strings.TrimSpace(w.run("", "cproxy-server", args...))
}

// writeClient lets `join` write a configuration and adds to it.
func (w *world) writeClient(name, join, lines string, tunnels []tunnel) {
	w.t.Helper()
	w.run(join, "cproxy-client", "join", "-", "--config", w.path(name), "--force")
	text, err := os.ReadFile(w.path(name))
	if err != nil {
		w.t.Fatal(err)
	}
	var b strings.Builder
	b.Write(text)
	b.WriteString(lines + "\n")
	for _, t := range tunnels {
		b.WriteString(t.String())
	}
	w.write(name, b.String())
}

// reload gives the client another configuration and tells it.
func (w *world) reload(p *process, lines string, tunnels []tunnel) {
	w.t.Helper()
	w.writeClient("client.toml", w.join, lines, tunnels)
	w.signal(p, syscall.SIGHUP)
}

// start launches a process that ends with the world.
func (w *world) start(name string, files int, argv ...string) *process {
	w.t.Helper()
	var p *process
	if err := w.setup.at.of(name).do(func() (err error) {
		p, err = launch(launchOptions{name: name, argv: argv, dir: w.dir, files: files})
		return err
	}); err != nil {
		w.t.Fatal(err)
	}
	w.all = append(w.all, p)
	return p
}

// startServer starts the server, again on the ports that it had before.
func (w *world) startServer() {
	w.t.Helper()
	argv := []string{"cproxy-server", "run", "--config", w.path("server.toml"), "--log-level", "debug"}
	if w.proxyPort != "" {
		argv = append(argv, "--ctl-listen", w.ip+":"+strconv.Itoa(int(w.doors.ctl[0])), "--proxy-listen", w.ip+":"+w.proxyPort)
	}
	w.server = w.start("server", w.setup.serverFiles, argv...)
	found := w.log(w.server, 0, `msg=ready ctl=(\S+) proxy=(\S+) pin=sha256:\S+`)
	if w.proxyPort == "" {
		w.doors.ctl = []uint16{portIn(found[1])}
		w.doors.proxy = portIn(found[2])
		w.proxyPort = strconv.Itoa(int(w.doors.proxy))
	}
	w.server.files = w.rested(w.server)
}

// startClient starts a client and waits until it is connected.
func (w *world) startClient(name, config string) *process {
	w.t.Helper()
	p := w.start(name, w.setup.clientFiles, "cproxy-client", "run", "--config", w.path(config), "--log-level", "debug")
	w.log(p, 0, `msg=connected `)
	p.files = w.rested(p)
	return p
}

// ready waits until the tunnels of a client are open.
func (w *world) ready(p *process, tunnels ...tunnel) {
	w.t.Helper()
	for _, t := range tunnels {
		w.address(p, t.name)
	}
}

// address gives the public address of a tunnel, waiting for it. After a change
// it is the last one that counts.
func (w *world) address(p *process, tunnel string) string {
	w.t.Helper()
	if _, err := p.awaitOut(readyLine(tunnel)); err != nil {
		w.t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)`+readyLine(tunnel)).FindAllStringSubmatch(p.stdout.String(), -1)
	return all[len(all)-1][1]
}

func readyLine(tunnel string) string {
	return `^tunnel ` + regexp.QuoteMeta(tunnel) + ` ready at (\S+)$`
}

// web is the public address of the tunnel "web" of the first client.
func (w *world) web() string {
	w.t.Helper()
	return w.address(w.client, "web")
}

// log waits for a log line after a mark.
func (w *world) log(p *process, mark int, pattern string) []string {
	w.t.Helper()
	found, err := p.awaitLog(mark, pattern)
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

func (w *world) signal(p *process, s syscall.Signal) {
	w.t.Helper()
	if err := p.signal(s); err != nil {
		w.t.Fatal(err)
	}
}

// wantExit waits for the end of a process.
func (w *world) wantExit(p *process, code int) {
	w.t.Helper()
	got, err := p.exit()
	if err != nil {
		w.t.Fatal(err)
	}
	if got != code {
		w.t.Fatalf("%s exits with %d (%v), want %d", p.name, got, p.cmd.ProcessState, code)
	}
}

// rested gives the number of descriptors that are not sockets once it has stopped
// changing: a process that has just begun reads some files.
func (w *world) rested(p *process) int {
	w.t.Helper()
	last, still := -1, 0
	eventually(w.t, p.name+" has begun", func() error {
		if now := w.take(p).files; now != last {
			last, still = now, 0
		} else {
			still++
		}
		if still < 5 {
			return fmt.Errorf("%d descriptors at the moment", last)
		}
		return nil
	})
	return last
}

func (w *world) take(p *process) census {
	w.t.Helper()
	c, err := w.doors.take(p.pid())
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// end checks what a world leaves behind.
func (w *world) end() {
	clients := 0
	for _, p := range w.all {
		if p.running() && p != w.server {
			clients++
		}
	}
	for _, p := range w.all {
		if !p.running() {
			continue
		}
		if err := poll(func() error { return w.leaks(p, clients) }); err != nil {
			w.t.Errorf("%s does not come to rest: %v", p.name, err)
		}
	}
	for _, p := range slices.Backward(w.all) { // the server last
		w.stop(p)
	}
	for _, p := range w.all {
		w.keepsSecrets(p)
	}
	if w.t.Failed() {
		for _, p := range w.all {
			w.t.Logf("--- %s, standard output:\n%s--- %s, log:\n%s", p.name, p.stdout.tail(40), p.name, p.stderr.tail(120))
		}
	}
}

// leaks tells what of its streams a process still has.
func (w *world) leaks(p *process, clients int) error {
	c, err := w.doors.take(p.pid())
	if err != nil {
		return err
	}
	limit := 1
	if p == w.server {
		limit = clients
	}
	if c.files != p.files || c.watches > 1 || c.streams > 0 || c.other > 0 || c.dead > 0 || c.ctl > limit || c.proxy > limit*w.setup.poolMax {
		return fmt.Errorf("%v; want %d files, at most %d control and %d proxy connections, no streams",
			c, p.files, limit, limit*w.setup.poolMax)
	}
	return nil
}

// stop ends a process in an orderly way, unless the test has done so.
func (w *world) stop(p *process) {
	if p.raced() {
		w.t.Errorf("%s has a data race", p.name)
	}
	if p.killed || p.retired {
		return
	}
	if err := p.signal(syscall.SIGTERM); err != nil {
		w.t.Error(err)
	}
	code, err := p.exit()
	if err != nil {
		_ = p.signal(syscall.SIGQUIT) // its stacks tell where it hangs
		if _, again := p.exit(); again != nil {
			p.kill()
		}
	}
	if err != nil || code != 0 {
		w.t.Errorf("%s exits with %d and %v after SIGTERM, want 0", p.name, code, err)
	}
	if p.raced() {
		w.t.Errorf("%s has a data race", p.name)
	}
}
