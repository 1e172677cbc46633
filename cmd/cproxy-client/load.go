//go:build linux

package main

import (
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/client"
	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
)

// defaultConfig is where the package puts the configuration.
const defaultConfig = "/etc/cproxy/client.toml"

// maxLoops is the most relay loops that are chosen automatically.
const maxLoops = 8

// settings are the flags that choose and override a configuration.
type settings struct {
	path  string             // empty: no files
	flags map[string]*string // by configuration key
	fixed map[string]string  // keys that the command itself sets
}

// addConfig declares --config.
func (s *settings) addConfig(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&s.path, "config", "c", defaultConfig, "configuration `FILE`")
}

// addFlag declares a flag that overrides a key.
func (s *settings) addFlag(cmd *cobra.Command, flag, key, usage string) {
	if s.flags == nil {
		s.flags = make(map[string]*string)
	}
	s.flags[key] = cmd.Flags().String(flag, "", usage)
}

// load reads the configuration. The error is an *config.Error.
func (s *settings) load() (*config.Client, []config.Problem, error) {
	source := config.Source{Path: s.path, Environ: os.Environ(), Flags: make(map[string]string)}
	maps.Copy(source.Flags, s.fixed)
	for key, value := range s.flags {
		if *value != "" {
			source.Flags[key] = *value
		}
	}
	return config.LoadClient(source)
}

// loadOrExplain is load for a command that has just begun: warnings go to
// stderr, and mistakes are errors of usage.
func (s *settings) loadOrExplain(stderr io.Writer) (*config.Client, error) {
	cfg, warnings, err := s.load()
	for _, w := range warnings {
		_, _ = fmt.Fprintf(stderr, "warning: %s\n", w) // nobody is left to tell
	}
	if err != nil {
		return nil, cli.Usage(fmt.Errorf("the configuration has mistakes:\n%w", err))
	}
	return cfg, nil
}

// reloadable translates what a reload may change.
func reloadable(cfg *config.Client) (client.Reloadable, error) {
	name, secret, err := identity.ParseCredential(cfg.Token.Reveal())
	if err != nil {
		return client.Reloadable{}, fmt.Errorf("read token: %w", err)
	}
	r := client.Reloadable{
		Servers:   cfg.Servers,
		Trust:     identity.Trust{CAFile: cfg.CAFile},
		TokenName: name,
		Secret:    secret,
		PoolMax:   poolMax(cfg.Pool.Max, cli.Descriptors()),
		Settings:  relay.DefaultSettings(),
	}
	r.Settings.Connect = cfg.Timeouts.Connect
	r.Settings.HalfClose = cfg.Timeouts.HalfClose
	r.Settings.Idle = cfg.Timeouts.Idle
	for _, text := range cfg.Pins {
		pin, err := identity.ParsePin(text)
		if err != nil {
			return client.Reloadable{}, fmt.Errorf("read pin: %w", err)
		}
		r.Trust.Pins = append(r.Trust.Pins, pin)
	}
	for _, t := range cfg.Tunnels {
		r.Tunnels = append(r.Tunnels, client.Tunnel{
			Name:    t.Name,
			Network: t.Local.Network, Address: t.Local.Address,
			First: t.RemotePorts.First, Last: t.RemotePorts.Last,
			Bind:          t.Bind,
			ProxyProtocol: proxyVersion(t.ProxyProtocol),
		})
	}
	return r, nil
}

func proxyVersion(p config.ProxyProtocol) relay.ProxyVersion {
	switch p {
	case config.ProxyV1:
		return relay.ProxyV1
	case config.ProxyV2:
		return relay.ProxyV2
	default:
		return relay.NoProxyHeader
	}
}

// loopsOf is the number of relay loops of a configuration.
func loopsOf(cfg *config.Client) int {
	if cfg.Loops > 0 {
		return cfg.Loops
	}
	return min(runtime.GOMAXPROCS(0), maxLoops)
}

// poolMax bounds the idle ProxyConns to a quarter of the open files that the
// process may have, so that they leave room for the streams: two for each.
func poolMax(configured, descriptors int) int {
	if descriptors <= 0 {
		return configured
	}
	return min(configured, descriptors/4)
}
