//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/forward"
	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/load"
	"github.com/cproxy/cproxy/cmd/internal/cli"
)

func newServe() *cobra.Command {
	var listen string
	var threads int
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the loads from behind the tunnel until Ctrl-C",
		Long: `Serves what the loads ask for: echoes, sinks and sources. Prints "listening on
ADDR" when it is ready.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			address, err := resolve(cmd.Context(), listen)
			if err := errors.Join(err, atLeast("--threads", threads, 1)); err != nil {
				return cli.Usage(err)
			}
			server, bound, err := load.OpenServer(address, threads)
			if err != nil {
				return err
			}
			announce(cmd.OutOrStdout())(bound)
			return server.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "`ADDR` to serve on; port 0 takes a free one")
	cmd.Flags().IntVar(&threads, "threads", defaultThreads(), "how many threads serve")
	return cmd
}

// announce prints where something listens. Nobody is left to tell when that
// fails: a reader that waits for the line sees the pipe closed.
func announce(w io.Writer) func(netip.AddrPort) {
	return func(a netip.AddrPort) { _, _ = fmt.Fprintf(w, "listening on %s\n", a) }
}

func newForward() *cobra.Command {
	var listen, target, mode string
	var loops int
	cmd := &cobra.Command{
		Use:   "forward",
		Short: "Forward connections until Ctrl-C, to compare tunnels with",
		Long: `Forwards every connection to the target, with CProxy's engine and no frames (mode
engine) or with a goroutine and io.Copy for each direction (mode copy). Prints
"listening on ADDR" when it is ready.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			modes := map[string]func(context.Context, forward.Options) error{"engine": forward.Engine, "copy": forward.Copy}
			run, ok := modes[mode]
			from, errFrom := resolve(cmd.Context(), listen)
			to, errTo := resolve(cmd.Context(), target)
			problems := errors.Join(errFrom, errTo, atLeast("--loops", loops, 1))
			if !ok {
				problems = errors.Join(problems, fmt.Errorf("--mode %q: use engine or copy", mode))
			}
			if problems != nil {
				return cli.Usage(problems)
			}
			return run(cmd.Context(), forward.Options{Listen: from, Target: to, Loops: loops, Ready: announce(cmd.OutOrStdout())})
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "`ADDR` to listen on; port 0 takes a free one")
	cmd.Flags().StringVar(&target, "target", "", "`ADDR` to forward to")
	cmd.Flags().StringVar(&mode, "mode", "engine", "`engine` or copy")
	cmd.Flags().IntVar(&loops, "loops", defaultThreads(), "event loops of the engine")
	_ = cmd.MarkFlagRequired("target") // fails only for a flag that is not declared
	return cmd
}
