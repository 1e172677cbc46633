//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/logging"
)

func newCheck() *cobra.Command {
	var s settings
	var connect bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, and on request the way to the servers",
		Long: `Checks the configuration without using it. All mistakes are reported at once,
with exit code 2. With --connect it also logs in to each server once and opens one
data connection, and says which of the two ports is at fault. It takes a name of
its own so that a running client is not disturbed; no tunnel is registered. It
fails if one of the servers does not accept, with exit code 3 if that is for good.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := s.loadOrExplain(cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if connect {
				if err := tryLogin(cmd.Context(), cfg, cmd.ErrOrStderr()); err != nil {
					return explained(err)
				}
			}
			if _, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok\n", s.path); err != nil {
				return fmt.Errorf("print the result: %w", err)
			}
			return nil
		},
	}
	s.addConfig(cmd)
	s.addFlag(cmd, "server", "server", "check with this `HOST:PORT` instead of the configured servers; a comma separates several")
	cmd.Flags().BoolVar(&connect, "connect", false, "log in to each server once and open one data connection")
	return cmd
}

// tryLogin logs in once, as another client than the one of the configuration:
// under its name the server would take this for its successor.
func tryLogin(ctx context.Context, cfg *config.Client, stderr io.Writer) error {
	cfg.Name = "check-" + strings.ToLower(rand.Text())
	log, _ := logging.New(stderr, logging.Options{Level: cfg.Log.Level, Format: logging.Format(cfg.Log.Format)})
	c, err := newClient(cfg, log, nil)
	if err != nil {
		return err
	}
	return c.Check(ctx)
}
