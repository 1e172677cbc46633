//go:build linux

package main

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/server"
)

// defaultConfig is where the package puts the configuration.
const defaultConfig = "/etc/cproxy/server.toml"

// settings are the flags that choose and override a configuration.
type settings struct {
	path    string
	flags   map[string]*string // by configuration key
	missing bool               // the default file is not there
}

// addFlags declares --config, and a flag for each key given.
func (s *settings) addFlags(cmd *cobra.Command, keys map[string]string) {
	cmd.Flags().StringVarP(&s.path, "config", "c", defaultConfig, "configuration `FILE`")
	s.flags = make(map[string]*string)
	for flag, key := range keys {
		s.flags[key] = cmd.Flags().String(flag, "", "override the key "+key)
	}
}

// read reads the configuration. The error is an *config.Error.
func (s *settings) read(cmd *cobra.Command) (*config.Server, []config.Problem, error) {
	source := config.Source{Path: s.path, Environ: os.Environ(), Flags: make(map[string]string)}
	s.missing = false
	if !cmd.Flags().Changed("config") {
		if _, err := os.Stat(s.path); os.IsNotExist(err) {
			source.Path = "" // every key has a default
			s.missing = true
		}
	}
	for key, value := range s.flags {
		if *value != "" {
			source.Flags[key] = *value
		}
	}
	return config.LoadServer(source)
}

// load is read for a command that has just begun: warnings go to stderr, and
// mistakes are errors of usage.
func (s *settings) load(cmd *cobra.Command, stderr io.Writer) (*config.Server, error) {
	cfg, warnings, err := s.read(cmd)
	for _, w := range warnings {
		_, _ = fmt.Fprintf(stderr, "warning: %s\n", w)
	}
	if err != nil {
		return nil, cli.Usage(fmt.Errorf("the configuration has mistakes:\n%w", err))
	}
	return cfg, nil
}

// policyOf translates what a reload may change.
func policyOf(cfg *config.Server) server.Policy {
	p := server.Policy{
		PublicBind: cfg.PublicBind,
		MaxTunnels: cfg.Limits.MaxTunnelsPerClient,
		MaxConns:   cfg.Limits.MaxConnsPerTunnel,
		RateUp:     cfg.Limits.RateUp,
		RateDown:   cfg.Limits.RateDown,
		PoolMax:    cfg.Pool.Max,
		Grace:      cfg.Grace,
		Heartbeat:  cfg.Timeouts.Heartbeat,
		Relay:      relay.DefaultSettings(),
	}
	for _, r := range cfg.Limits.Ports {
		p.Ports = append(p.Ports, identity.PortRange(r))
	}
	p.ProxyAdvertise = cfg.ProxyAdvertise
	p.Relay.Wait = cfg.Timeouts.Connect
	p.Relay.HalfClose = cfg.Timeouts.HalfClose
	p.Relay.Idle = cfg.Timeouts.Idle
	p.Relay.MaxConns = cfg.Limits.MaxConns
	return p
}
