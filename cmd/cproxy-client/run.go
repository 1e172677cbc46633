//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/client"
	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/logging"
)

// severalServers explains what a list of servers means.
const severalServers = `If "server" is a list, its servers are tried in turn, each with the same token. A
round begins at the server of the last connection, which still knows the session,
and goes on around the list, without a delay between two servers. When all have
failed the client waits: a random time from 0 to 500 ms, then up to 1 s and so on,
never more than a minute or as long as the server asks.`

func newRun() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Keep the tunnels open until SIGTERM or SIGINT; SIGHUP reads the configuration again",
		Long: `Keeps the tunnels of the configuration open until SIGTERM or SIGINT. Each tunnel
that is ready prints one line to standard output; logs go to standard error.
SIGHUP reads the configuration again: a file with mistakes changes nothing.

Exit codes: 0 stopped, 1 failed, 2 mistakes in the command line or the
configuration, 3 refused for good at the first connection, by every server.

` + severalServers,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP) // before anything else: its default is to kill
			defer signal.Stop(hup)
			signal.Ignore(syscall.SIGPIPE) // nor may whoever read the ready lines and left
			return s.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), hup)
		},
	}
	s.addConfig(cmd)
	s.addFlag(cmd, "server", "server", "connect to this `HOST:PORT` instead of the configured servers; a comma separates several")
	s.addFlag(cmd, "log-level", "log.level", "`LEVEL` of the log: debug, info, warn or error")
	return cmd
}

// daemon is a running client with what a reload touches.
type daemon struct {
	settings *settings
	cfg      *config.Client // in effect
	log      *slog.Logger
	level    *slog.LevelVar
	client   *client.Client
}

// run keeps the tunnels of the configuration open until ctx ends. Each value
// from hup is a reason to read it again; nil never is.
func (s *settings) run(ctx context.Context, stdout, stderr io.Writer, hup <-chan os.Signal) error {
	cfg, err := s.loadOrExplain(stderr)
	if err != nil {
		return err
	}
	d := &daemon{settings: s, cfg: cfg}
	d.log, d.level = logging.New(stderr, logging.Options{Level: cfg.Log.Level, Format: logging.Format(cfg.Log.Format)})
	if d.client, err = newClient(cfg, d.log, func(tunnel, address string) {
		if _, err := fmt.Fprintf(stdout, "tunnel %s ready at %s\n", tunnel, address); err != nil {
			d.log.Error("cannot print that a tunnel is ready", "tunnel", tunnel, "address", address, "error", err)
		}
	}); err != nil {
		return err
	}
	return d.serve(ctx, hup)
}

// newClient translates a configuration, and gives the process the scheduler
// slots that the client's loops want.
func newClient(cfg *config.Client, log *slog.Logger, ready func(tunnel, address string)) (*client.Client, error) {
	loops := loopsOf(cfg)
	r, err := reloadable(cfg)
	if err != nil {
		return nil, cli.Usage(err)
	}
	c, err := client.New(client.Options{
		Name: cfg.Name, Version: cli.Version(version),
		Loops: loops, Reloadable: r, Log: log, Ready: ready,
	})
	if err != nil {
		return nil, cli.Usage(err)
	}
	cli.FitRuntime(loops)
	return c, nil
}

func (d *daemon) serve(ctx context.Context, hup <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var reloads sync.WaitGroup
	reloads.Go(func() {
		for {
			select {
			case <-hup:
				d.reload()
			case <-ctx.Done():
				return
			}
		}
	})
	err := d.client.Run(ctx)
	cancel()
	reloads.Wait()
	if err != nil {
		return explained(err)
	}
	d.log.Info("stopped")
	return nil
}

// explained gives an error of the client the exit code that it stands for.
func explained(err error) error {
	if client.IsRefused(err) {
		return cli.Refused(err)
	}
	return err
}

// reload reads the configuration again. A mistake changes nothing.
func (d *daemon) reload() {
	cfg, warnings, err := d.settings.load()
	for _, w := range warnings {
		d.log.Warn("configuration", "problem", w.String())
	}
	if err != nil {
		d.rejectReload(err)
		return
	}
	changes := config.DiffClient(d.cfg, cfg)
	if len(changes.Restart) > 0 {
		d.log.Warn("these keys changed but keep their old values until cproxy-client is started again",
			"keys", strings.Join(changes.Restart, " "))
	}
	next := keepFixed(d.cfg, cfg)
	r, err := reloadable(next)
	if err == nil {
		err = d.client.Reconfigure(r)
	}
	if err != nil {
		d.rejectReload(err)
		return
	}
	d.level.Set(next.Log.Level)
	d.cfg = next
	d.log.Info("configuration read again", "keys", strings.Join(changes.Reload, " "), "added", strings.Join(changes.Added, " "),
		"removed", strings.Join(changes.Removed, " "), "changed", strings.Join(changes.Changed, " "))
}

// rejectReload reports every problem of a configuration that is not taken.
func (d *daemon) rejectReload(err error) {
	if mistakes, ok := errors.AsType[*config.Error](err); ok {
		for _, p := range mistakes.Problems {
			d.log.Error("mistake in the configuration", "problem", p.String())
		}
		d.log.Error("the configuration was not applied, nothing has changed; correct it and send SIGHUP again")
		return
	}
	d.log.Error("the configuration was not applied, nothing has changed; correct it and send SIGHUP again", "error", err)
}

// keepFixed gives the new configuration with the old values of the keys that
// only a restart changes.
func keepFixed(before, after *config.Client) *config.Client {
	next := *after
	next.Name, next.Loops, next.Log.Format = before.Name, before.Loops, before.Log.Format
	return &next
}
