//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// configuration of the server. The kernel chooses the ports of the daemon; that
// of the tunnel is one of the server's own choice.
const configuration = `
ctl_listen = "127.0.0.1:0"
proxy_listen = "127.0.0.1:0"
public_bind = ["127.0.0.1"]
state_dir = %q
`

func (d *demo) configPath() string { return filepath.Join(d.dir, "server.toml") }

// command prepares one of the two programs.
func (d *demo) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(d.dir, program), args...) //nolint:gosec // run.sh has built it there
	cmd.Env = environment()
	return cmd
}

func (d *demo) startServer() (*child, error) {
	text := fmt.Sprintf(configuration, filepath.Join(d.dir, "state"))
	if err := os.WriteFile(d.configPath(), []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("write the server's configuration: %w", err)
	}
	return d.start("cproxy-server", d.command("cproxy-server", "run", "--config", d.configPath(), "--log-format", "json"))
}

// addToken gives the join string of a new token.
func (d *demo) addToken(control string) (string, error) {
	out, err := d.command("cproxy-server", "token", "add", "demo", "--config", d.configPath(), "--advertise", control).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return "", fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return string(out), err
}

func (d *demo) startClient(local, join string) (*child, error) {
	cmd := d.command("cproxy-client", "tcp", local, "--name", "demo", "--join", "-")
	cmd.Stdin = strings.NewReader(join)
	return d.start("cproxy-client", cmd)
}

func (d *demo) start(name string, cmd *exec.Cmd) (*child, error) {
	c, err := start(name, cmd)
	if err != nil {
		return nil, err
	}
	d.children = append(d.children, c)
	return c, nil
}

// environment is that of the demo without the settings of other daemons.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(variable string) bool { return strings.HasPrefix(variable, "CPROXY_") })
}

// logged recognises a line of a JSON log by its message.
func logged(message string) func(line string) bool {
	return func(line string) bool { return field(line, "msg") == message }
}

// field gives a field of a line of a JSON log, or nothing.
func field(line, name string) string {
	var fields map[string]any
	if err := json.Unmarshal([]byte(line), &fields); err != nil {
		return ""
	}
	text, _ := fields[name].(string)
	return text
}

const readyPrefix = "tunnel demo ready at "

// readyTunnel recognises the line that the client prints for a ready tunnel.
func readyTunnel(line string) bool { return strings.HasPrefix(line, readyPrefix) }

func tunnelAddress(line string) string { return strings.TrimPrefix(line, readyPrefix) }
