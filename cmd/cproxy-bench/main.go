//go:build linux

// Command cproxy-bench makes load for a TCP tunnel, this project's or any
// other, and measures what the tunnel makes of it and what CPU and memory its
// processes take.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/wire"
)

// version is set when a release is linked.
var version string

func main() { os.Exit(cli.Main(newRoot(), os.Args[1:], os.Stderr)) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cproxy-bench",
		Short: "Make load for a TCP tunnel and measure it",
		Long: `cproxy-bench measures TCP tunnels and forwarders: CProxy or any other. Its
serving side stands behind the tunnel, its loads connect to the public side:

  cproxy-bench serve --listen 127.0.0.1:9000       # the tunnel leads here
  cproxy-bench pingpong --target PUBLIC:PORT --conns 64 --pid server=123 --pid client=456

A load without a tunnel, for comparison, needs one command:

  cproxy-bench bulk --serve 127.0.0.1:0

A server's control plane is loaded without any tunnel's help:

  cproxy-bench clients --join @join.txt --clients 2000 --tunnels 5 --pid server=123

` + resultHelp,
	}
	root.AddCommand(newServe(), newBulk(), newPingPong(), newChurn(), newIdle(), newMix(), newForward(), newClients(),
		cli.NewVersionCommand("cproxy-bench", cli.Version(version), wire.Version))
	return root
}
