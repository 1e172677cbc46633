//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// kind is a way from a public address to the serving side.
type kind struct {
	name, title string
	start       func(ctx context.Context, w *world) (*contestant, error)
	missing     func(w *world) string // why it cannot run here, or nothing
}

// contestant is one that runs.
type contestant struct {
	kind
	address   string
	flags     []string // of cproxy-bench, instead of --target and the address
	proxyPort string   // of a tunnel, or empty
	processes []*process
	pids      []string // NAME=PID of all that is charged
}

func (c *contestant) stop() {
	for _, p := range slices.Backward(c.processes) {
		p.stop()
	}
}

// charge adds a process that counts under the name.
func (c *contestant) charge(name string, p *process) {
	c.processes = append(c.processes, p)
	c.pids = append(c.pids, name+"="+strconv.Itoa(p.pid()))
}

// joins forward one connection to another; direct is none.
func joins() []kind {
	return []kind{
		{name: "direct", title: "direct, no forwarder", start: func(_ context.Context, w *world) (*contestant, error) {
			return &contestant{address: w.served}, nil
		}},
		{name: "engine", title: "CProxy's engine as a plain forwarder", start: hops(1, "engine")},
		{name: "copy", title: "io.Copy forwarder", start: hops(1, "copy")},
		{name: "haproxy", title: "haproxy", start: haproxyHops(1), missing: noHAProxy},
		{name: "nginx", title: "nginx stream", start: startNginx, missing: noNginx},
	}
}

// tunnels lead through two processes.
func tunnels() []kind {
	return []kind{
		{name: "tunnel", title: "CProxy, server and client", start: startTunnel("")},
		{name: "engine2", title: "two hops of CProxy's engine, no frames", start: hops(2, "engine")},
		{name: "haproxy2", title: "two haproxy hops", start: haproxyHops(2), missing: noHAProxy},
		{name: "frp", title: "frp without mux and TLS", start: startFRP, missing: noFRP},
	}
}

// reuses are the tunnel with and without using ProxyConns twice.
func reuses() []kind {
	return []kind{
		{name: "reuse", title: "CProxy, both sides as they come", start: startTunnel("")},
		{name: "noreuse", title: "CProxy without reuse ([pool] max = 0 on both sides)", start: startTunnel("[pool]\nmax = 0\n")},
	}
}

// controls are what clients without visitors are for.
func controls() []kind {
	return []kind{{name: "server", title: "CProxy's server", start: startServer}}
}

func noHAProxy(w *world) string {
	if w.haproxy == "" {
		return "haproxy is not installed"
	}
	return ""
}

func noNginx(w *world) string {
	if w.nginx == "" {
		return "nginx with its stream module is not installed"
	}
	return ""
}

func noFRP(w *world) string {
	if w.settings.frp == "" {
		return "BENCH_FRP names no folder with frps and frpc"
	}
	return ""
}

// hops chains plain forwarders of cproxy-bench.
func hops(n int, mode string) func(context.Context, *world) (*contestant, error) {
	return func(ctx context.Context, w *world) (*contestant, error) {
		c := &contestant{address: w.served}
		for i := range n {
			p, err := w.start(ctx, fmt.Sprintf("%s-%d", mode, i), nil, w.binary("cproxy-bench"), "forward", "--mode", mode, "--target", c.address)
			if err != nil {
				return c, err
			}
			c.charge(fmt.Sprint("hop", i), p)
			if c.address, err = p.awaitLine(ctx, "listening on "); err != nil {
				return c, err
			}
		}
		return c, nil
	}
}

const haproxyConfig = `global
    nbthread 2
    maxconn 9000
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen bench
    bind 127.0.0.1:%s
    server serve %s
`

func haproxyHops(n int) func(context.Context, *world) (*contestant, error) {
	return func(ctx context.Context, w *world) (*contestant, error) {
		c := &contestant{address: w.served}
		for i := range n {
			name := fmt.Sprintf("haproxy-%d-of-%d", i+1, n)
			port, err := freePort()
			if err != nil {
				return c, err
			}
			config, err := w.config(name+".cfg", fmt.Sprintf(haproxyConfig, port, c.address))
			if err != nil {
				return c, err
			}
			p, err := w.start(ctx, name, nil, w.haproxy, "-db", "-f", config)
			if err != nil {
				return c, err
			}
			c.charge(fmt.Sprint("hop", i), p)
			c.address = "127.0.0.1:" + port
			if err := p.awaitPort(ctx, c.address); err != nil {
				return c, err
			}
		}
		return c, nil
	}
}

const nginxConfig = `%sdaemon off;
worker_processes 2;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 9000; }
stream {
    server {
        listen 127.0.0.1:%s;
        proxy_pass %s;
        proxy_timeout 1h;
        proxy_half_close on;
    }
}
`

func startNginx(ctx context.Context, w *world) (*contestant, error) {
	c := &contestant{}
	port, err := freePort()
	if err != nil {
		return c, err
	}
	module := ""
	if w.module != "" {
		module = "load_module " + w.module + ";\n"
	}
	config, err := w.config("nginx.conf", fmt.Sprintf(nginxConfig, module, port, w.served))
	if err != nil {
		return c, err
	}
	p, err := w.start(ctx, "nginx", nil, w.nginx, "-p", w.dir, "-c", config, "-e", "stderr")
	if err != nil {
		return c, err
	}
	c.charge("nginx", p)
	c.address = "127.0.0.1:" + port
	if err := p.awaitPort(ctx, c.address); err != nil {
		return c, err
	}
	workers, err := p.children()
	if err != nil {
		return c, fmt.Errorf("find the workers of nginx: %w", err)
	}
	for _, pid := range workers {
		c.pids = append(c.pids, "nginx="+pid)
	}
	return c, nil
}

const serverConfig = `ctl_listen = "127.0.0.1:%[1]s"
proxy_listen = "127.0.0.1:%[2]s"
advertise = "127.0.0.1:%[1]s"
public_bind = ["127.0.0.1"]
state_dir = %[3]q

[log]
level = "warn"
`

// startServer starts a server that a new token may join.
func startServer(ctx context.Context, w *world) (*contestant, error) {
	c, join, err := w.server(ctx, "")
	if err != nil {
		return c, err
	}
	file, err := w.config("join", string(join))
	c.flags = []string{"--join", "@" + file}
	return c, err
}

// server starts a server with more configuration, and makes a token for it.
func (w *world) server(ctx context.Context, more string) (c *contestant, join []byte, err error) {
	c = &contestant{}
	ctl, err := freePort()
	if err != nil {
		return c, nil, err
	}
	proxy, err := freePort()
	if err != nil {
		return c, nil, err
	}
	state, err := os.MkdirTemp(w.dir, "state-")
	if err != nil {
		return c, nil, fmt.Errorf("make the server's folder: %w", err)
	}
	config, err := w.config("server.toml", fmt.Sprintf(serverConfig, ctl, proxy, state)+more)
	if err != nil {
		return c, nil, err
	}
	var complaint bytes.Buffer
	token := command(ctx, w.binary("cproxy-server"), "token", "add", "bench", "--config", config)
	token.Stderr = &complaint
	join, err = token.Output()
	if err != nil {
		return c, nil, fmt.Errorf("make a token: %w: %s", err, complaint.String())
	}
	server, err := w.start(ctx, "cproxy-server", nil, w.binary("cproxy-server"), "run", "--config", config)
	if err != nil {
		return c, nil, err
	}
	c.charge("server", server)
	c.address, c.proxyPort = "127.0.0.1:"+ctl, proxy
	return c, join, server.awaitPort(ctx, c.address)
}

// clientArgs writes a configuration for the client, which has flags for the most
// common settings only, and gives the arguments that use it.
func (w *world) clientArgs(ctx context.Context, join []byte, more string) ([]string, error) {
	path := filepath.Join(w.dir, "client.toml")
	cmd := command(ctx, w.binary("cproxy-client"), "join", "-", "--force", "--config", path)
	cmd.Stdin = bytes.NewReader(join)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("write the client's configuration: %w: %s", err, out)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the client's configuration: %w", err)
	}
	_, err = fmt.Fprintf(file, "%s[[tunnel]]\nname = \"bench\"\nlocal = %q\n", more, w.served)
	if err := errors.Join(err, file.Close()); err != nil {
		return nil, fmt.Errorf("complete the client's configuration: %w", err)
	}
	return []string{"run", "--config", path, "--log-level", "warn"}, nil
}

// startTunnel gives the start of both daemons, with more configuration for each.
func startTunnel(more string) func(context.Context, *world) (*contestant, error) {
	return func(ctx context.Context, w *world) (*contestant, error) {
		c, join, err := w.server(ctx, more)
		if err != nil {
			return c, err
		}
		stdin := bytes.NewReader(join)
		args := []string{"tcp", w.served, "--name", "bench", "--join", "-", "--log-level", "warn"}
		if more != "" {
			if args, err = w.clientArgs(ctx, join, more); err != nil {
				return c, err
			}
		}
		client, err := w.start(ctx, "cproxy-client", stdin, w.binary("cproxy-client"), args...)
		if err != nil {
			return c, err
		}
		c.charge("client", client)
		c.address, err = client.awaitLine(ctx, "tunnel bench ready at ")
		return c, err
	}
}

const frpsConfig = `bindAddr = "127.0.0.1"
bindPort = %s
transport.tcpMux = false
transport.maxPoolCount = 64
log.level = "error"
`

const frpcConfig = `serverAddr = "127.0.0.1"
serverPort = %s
transport.tcpMux = false
transport.tls.enable = false
transport.poolCount = 64
log.level = "error"
[[proxies]]
name = "bench"
type = "tcp"
localIP = "127.0.0.1"
localPort = %s
remotePort = %s
`

func startFRP(ctx context.Context, w *world) (*contestant, error) {
	c := &contestant{}
	bind, err := freePort()
	if err != nil {
		return c, err
	}
	public, err := freePort()
	if err != nil {
		return c, err
	}
	serverFile, err := w.config("frps.toml", fmt.Sprintf(frpsConfig, bind))
	if err != nil {
		return c, err
	}
	local := w.served[strings.LastIndexByte(w.served, ':')+1:]
	clientFile, err := w.config("frpc.toml", fmt.Sprintf(frpcConfig, bind, local, public))
	if err != nil {
		return c, err
	}
	server, err := w.start(ctx, "frps", nil, filepath.Join(w.settings.frp, "frps"), "-c", serverFile)
	if err != nil {
		return c, err
	}
	c.charge("server", server)
	if err := server.awaitPort(ctx, "127.0.0.1:"+bind); err != nil {
		return c, err
	}
	client, err := w.start(ctx, "frpc", nil, filepath.Join(w.settings.frp, "frpc"), "-c", clientFile)
	if err != nil {
		return c, err
	}
	c.charge("client", client)
	c.address = "127.0.0.1:" + public
	return c, client.awaitPort(ctx, c.address)
}

// config writes a configuration file.
func (w *world) config(name, text string) (string, error) {
	path := filepath.Join(w.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	return path, nil
}
