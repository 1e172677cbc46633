//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/logging"
	"github.com/cproxy/cproxy/core/server"
	"github.com/cproxy/cproxy/core/wire"
)

func newRun() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve until SIGTERM or SIGINT; SIGHUP reads the configuration again",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return run(cmd, &s) },
	}
	s.addFlags(cmd, map[string]string{"log-level": "log.level", "log-format": "log.format", "ctl-listen": "ctl_listen", "proxy-listen": "proxy_listen", "state-dir": "state_dir"})
	return cmd
}

// daemon is a running cproxy-server with what a reload touches.
type daemon struct {
	settings *settings
	cmd      *cobra.Command
	cfg      *config.Server
	log      *slog.Logger
	level    *slog.LevelVar
	server   *server.Server
}

func run(cmd *cobra.Command, s *settings) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // before anything else: its default is to kill
	defer signal.Stop(hup)
	signal.Ignore(syscall.SIGPIPE) // nor may a closed log pipe
	cfg, err := s.load(cmd, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	log, level := logging.New(cmd.ErrOrStderr(), logging.Options{Level: cfg.Log.Level, Format: logging.Format(cfg.Log.Format)})
	d := &daemon{settings: s, cmd: cmd, cfg: cfg, log: log, level: level}
	if s.missing {
		log.Info("no "+s.path+": using defaults", "state_dir", cfg.StateDir)
	}

	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state directory (set state_dir, or make it and give it to this user): %w", err)
	}
	id, err := identity.LoadOrCreateServer(cfg.StateDir)
	if err != nil {
		return fmt.Errorf("load the server's identity: %w", err)
	}
	tokens := identity.NewProvider(cfg.TokensFile, log)
	if err := tokens.Load(); err != nil {
		return cli.Usage(fmt.Errorf("load tokens: %w", err))
	}
	if tokens.Len() == 0 {
		log.Warn("there are no tokens, so no client can connect; add one with: cproxy-server token add NAME --config "+s.path, "tokens_file", cfg.TokensFile)
	}
	d.server, err = d.newServer(id, tokens)
	if err != nil {
		return err
	}
	return d.serve(cmd.Context(), tokens, hup)
}

func (d *daemon) newServer(id *identity.ServerIdentity, tokens *identity.Provider) (*server.Server, error) {
	loops := d.cfg.Loops
	if loops == 0 {
		loops = min(runtime.GOMAXPROCS(0), 8)
	}
	cli.FitRuntime(loops)
	o := server.Options{
		CtlListen: d.cfg.CtlListen, ProxyListen: d.cfg.ProxyListen,
		TLS: identity.ServerTLS(id, wire.ALPN), Loops: loops, Policy: policyOf(d.cfg),
		Descriptors:   cli.Descriptors(),
		Authenticator: server.Tokens(tokens), Revoked: tokens.Revoked(), Regranted: tokens.Regranted(),
		PortsFile: filepath.Join(d.cfg.StateDir, "ports.json"),
		Version:   cli.Version(version), Log: d.log,
		Ready: func(ctl, proxy netip.AddrPort) {
			d.log.Info("ready", "ctl", ctl.String(), "proxy", proxy.String(), "pin", id.Pin().String(), "version", cli.Version(version))
		},
	}
	_, _ = rand.Read(o.Secret[:]) // never fails (crypto/rand)
	return server.New(o)
}

// serve runs everything until ctx ends or the server fails.
func (d *daemon) serve(ctx context.Context, tokens *identity.Provider, hup <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var tasks sync.WaitGroup
	tasks.Go(func() {
		if err := tokens.Run(ctx); err != nil {
			d.log.Error("tokens are not followed any more; restart the server", "error", err)
		}
	})
	tasks.Go(func() {
		for {
			select {
			case <-hup:
				d.reload(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	err := d.server.Run(ctx)
	cancel()
	tasks.Wait()
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w; another server may run already, see ctl_listen and proxy_listen", err)
	}
	if errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("%w; a port below 1024 needs the capability CAP_NET_BIND_SERVICE (AmbientCapabilities= in the systemd unit), see ctl_listen and proxy_listen", err)
	}
	if err == nil {
		d.log.Info("stopped")
	}
	return err
}

// reload reads the configuration again. A mistake changes nothing.
func (d *daemon) reload(ctx context.Context) {
	cfg, warnings, err := d.settings.read(d.cmd)
	for _, w := range warnings {
		d.log.Warn("configuration", "problem", w.String())
	}
	if err != nil {
		d.rejectReload(err)
		return
	}
	changes := config.DiffServer(d.cfg, cfg)
	if len(changes.Restart) > 0 {
		d.log.Warn("some changes need a restart", "keys", strings.Join(changes.Restart, " "))
	}
	if err := d.server.Reconfigure(ctx, policyOf(cfg)); err != nil {
		d.rejectReload(err)
		return
	}
	d.level.Set(cfg.Log.Level)
	d.cfg = keepFixed(d.cfg, cfg)
	d.log.Info("reloaded", "changed", strings.Join(changes.Reload, " "))
}

// rejectReload reports every problem of a configuration that is not taken.
func (d *daemon) rejectReload(err error) {
	const nothing = "the configuration was not applied, nothing has changed; correct it and send SIGHUP again"
	if mistakes, ok := errors.AsType[*config.Error](err); ok {
		for _, p := range mistakes.Problems {
			d.log.Error("mistake in the configuration", "problem", p.String())
		}
		d.log.Error(nothing)
		return
	}
	d.log.Error(nothing, "error", err)
}

// keepFixed gives the new configuration with the old values of the keys that
// only a restart changes, so that the next reload names them again.
func keepFixed(before, after *config.Server) *config.Server {
	next := *after
	next.CtlListen, next.ProxyListen, next.StateDir, next.TokensFile = before.CtlListen, before.ProxyListen, before.StateDir, before.TokensFile
	next.Loops, next.Log.Format = before.Loops, before.Log.Format
	return &next
}
