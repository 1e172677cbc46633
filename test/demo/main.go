//go:build linux

// Command demo shows a whole tunnel on one machine: it starts cproxy-server,
// cproxy-client and a small web page on loopback, proves one round trip through
// the public address, and stays up until Ctrl-C. Its argument is a folder that
// holds the two binaries and that it removes at the end; run.sh makes one.
//
// With DEMO_ONCE=1 it ends after the proof. Its exit code is 0 if all went well
// and 1 otherwise, after it has printed what the daemons logged.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// patience is how long each step may take, on slow machines too.
const patience = time.Minute

func main() {
	// The kernel ends the daemons when the thread that started them ends
	// (PR_SET_PDEATHSIG), so this one stays.
	runtime.LockOSThread()
	if len(os.Args) != 2 || !isOurs(os.Args[1]) {
		fmt.Fprintln(os.Stderr, "demo: start it with `make demo`, or test/demo/run.sh")
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	d := &demo{dir: os.Args[1], out: os.Stdout}
	err := d.run(ctx, os.Getenv("DEMO_ONCE") == "1")
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: failed: %v\n", err)
		d.logs(os.Stderr)
	}
	if removeErr := os.RemoveAll(d.dir); removeErr != nil { //nolint:gosec // isOurs has looked at the name
		fmt.Fprintf(os.Stderr, "demo: remove temporary folder: %v\n", removeErr)
	}
	if err != nil {
		os.Exit(1)
	}
}

// isOurs tells a folder that run.sh has made from one that must not be removed.
func isOurs(dir string) bool { return strings.HasPrefix(filepath.Base(dir), "cproxy-demo.") }

// demo is one run. Processes that were started stay listed after their end.
type demo struct {
	dir      string
	out      io.Writer
	children []*child
}

// run shows the tunnel and ends what it started. It returns nil after ctx has
// ended, if the proof had succeeded by then.
func (d *demo) run(ctx context.Context, once bool) (err error) {
	defer func() { err = errors.Join(err, d.stop()) }()
	page, err := servePage()
	if err != nil {
		return err
	}
	defer page.close()
	address, err := d.open(ctx, page.address)
	if err != nil {
		return err
	}
	if err := page.compare(ctx, address); err != nil {
		return fmt.Errorf("fetch the page through the tunnel: %w", err)
	}
	d.say("proved: the page fetched from http://%s/ is the local one", address)
	if once {
		return nil
	}
	d.say("")
	d.say("  public address   http://%s/", address)
	d.say("  local service    http://%s/", page.address)
	d.say("")
	d.say("Ctrl-C ends it.")
	return d.wait(ctx)
}

// open starts the daemons and gives the public address of a tunnel to local.
func (d *demo) open(ctx context.Context, local string) (address string, err error) {
	server, err := d.startServer()
	if err != nil {
		return "", err
	}
	ready, err := server.await(ctx, logged("ready"))
	if err != nil {
		return "", fmt.Errorf("start the server: %w", err)
	}
	control := field(ready, "ctl")
	d.say("server ready: control port %s, proxy port %s", control, field(ready, "proxy"))
	join, err := d.addToken(control)
	if err != nil {
		return "", fmt.Errorf("add a token: %w", err)
	}
	client, err := d.startClient(local, join)
	if err != nil {
		return "", err
	}
	line, err := client.await(ctx, readyTunnel)
	if err != nil {
		return "", fmt.Errorf("open the tunnel: %w", err)
	}
	d.say("client: %s", line)
	return tunnelAddress(line), nil
}

// wait blocks until ctx ends, or a daemon does, which is an error.
func (d *demo) wait(ctx context.Context) error {
	ended := make(chan *child, len(d.children))
	for _, c := range d.children {
		go func() {
			select {
			case <-c.done:
				ended <- c
			case <-ctx.Done():
			}
		}()
	}
	select {
	case c := <-ended:
		return fmt.Errorf("%s ended by itself: %w", c.name, c.failure())
	case <-ctx.Done():
		d.say("stopping")
		return nil
	}
}

// stop ends the daemons, the client first, so that it can take leave.
func (d *demo) stop() error {
	var problems []error
	for _, c := range slices.Backward(d.children) {
		problems = append(problems, c.stop())
	}
	return errors.Join(problems...)
}

// logs prints what the daemons wrote.
func (d *demo) logs(w io.Writer) {
	for _, c := range d.children {
		_, _ = fmt.Fprintf(w, "--- %s\n%s", c.name, c.tail()) // nobody is left to tell
	}
}

func (d *demo) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.out, "demo: "+format+"\n", args...) // nobody is left to tell
}
