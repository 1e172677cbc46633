//go:build linux

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/identity"
)

func newCheck() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and the tokens file, and change nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := s.load(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			tokens, err := identity.LoadTokens(cfg.TokensFile)
			if err != nil {
				return cli.Usage(fmt.Errorf("load tokens: %w", err))
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: ok, %d tokens\n", s.path, len(tokens))
			return err
		},
	}
	s.addFlags(cmd, nil)
	return cmd
}
