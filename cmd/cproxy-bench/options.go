//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/load"
	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/meter"
	"github.com/cproxy/cproxy/cmd/internal/cli"
)

// options are the flags that all loads have.
type options struct {
	target, serve string
	pids          []string
	threads       int
	duration      time.Duration
	json          bool
}

func (o *options) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.target, "target", "", "`ADDR` of the tunnel's public side (default: that of --serve, which measures without a tunnel)")
	f.StringVar(&o.serve, "serve", "", "serve on `ADDR` in this process as well, as the command serve does")
	f.StringArrayVar(&o.pids, "pid", nil, "charge the process `PID`, or NAME=PID; repeatable, equal names are summed up")
	f.IntVar(&o.threads, "threads", 0, "threads of the generator (default: one for each CPU, at most 2)")
	f.BoolVar(&o.json, "json", false, "print one JSON object instead of a table")
}

func (o *options) addDuration(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&o.duration, "duration", 5*time.Second, "how long to measure, after a short warm-up")
}

// bench is what a load needs, checked.
type bench struct {
	target    netip.AddrPort
	threads   int
	duration  time.Duration
	processes []meter.Process
}

// run checks the options, serves if asked to, and has body run a load.
func (o *options) run(cmd *cobra.Command, body func(context.Context, bench) (*result, error)) error {
	b, err := o.parse(cmd.Context())
	if err != nil {
		return cli.Usage(err)
	}
	var r *result
	err = o.beside(cmd.Context(), &b, func(ctx context.Context) (err error) {
		r, err = body(ctx, b)
		return err
	})
	if err != nil {
		return err
	}
	r.Target = b.target.String()
	return r.print(cmd.OutOrStdout(), o.json)
}

func (o *options) parse(ctx context.Context) (bench, error) {
	b := bench{threads: o.threads, duration: o.duration}
	var err, errTarget error
	if b.threads == 0 {
		b.threads = defaultThreads()
	}
	b.processes, err = meter.ParseProcesses(o.pids)
	switch {
	case o.target != "":
		b.target, errTarget = resolve(ctx, o.target)
	case o.serve == "":
		errTarget = errors.New("--target is missing: give the address of the tunnel's public side, or --serve alone to measure without a tunnel")
	}
	return b, errors.Join(err, errTarget, atLeast("--threads", b.threads, 1))
}

// beside runs body, and the serving side meanwhile if one is wanted.
func (o *options) beside(ctx context.Context, b *bench, body func(context.Context) error) error {
	if o.serve == "" {
		return body(ctx)
	}
	listen, err := resolve(ctx, o.serve)
	if err != nil {
		return cli.Usage(err)
	}
	server, bound, err := load.OpenServer(listen, defaultThreads())
	if err != nil {
		return fmt.Errorf("open the serving side: %w", err)
	}
	if o.target == "" {
		b.target = bound
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var serving sync.WaitGroup
	var failed error
	serving.Go(func() {
		defer cancel()
		failed = server.Run(ctx)
	})
	err = body(ctx)
	cancel()
	serving.Wait()
	return errors.Join(failed, err)
}

// defaultThreads leaves most of a larger machine to what is measured.
func defaultThreads() int { return min(runtime.NumCPU(), 2) }

// resolve gives the first address of HOST:PORT; without a host it is loopback.
func resolve(ctx context.Context, address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address: use HOST:PORT", address)
	}
	if host == "" {
		host = "127.0.0.1"
	}
	number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no address: use a port from 0 to 65535", address)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("find the address of %q (check the name, or give an IP address): %w", host, err)
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), uint16(number)), nil
}

// atLeast checks the number that a flag was given.
func atLeast(flag string, value, least int) error {
	if value < least {
		return fmt.Errorf("%s must be at least %d", flag, least)
	}
	return nil
}

// positive checks the duration that a flag was given.
func positive(flag string, d time.Duration) error {
	if d < time.Millisecond {
		return fmt.Errorf("%s must be at least 1ms", flag)
	}
	return nil
}
