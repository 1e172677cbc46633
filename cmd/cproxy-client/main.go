//go:build linux

// Command cproxy-client makes services of this network reachable through a
// public host that runs cproxy-server.
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
		Use:   "cproxy-client",
		Short: "Make services of this network reachable through a public host",
		Long: `cproxy-client is the private end of CProxy, a reverse tunnel: it connects to a
cproxy-server on a public host and registers tunnels there; whoever connects to a
tunnel's public port reaches the service here.

Start here, with the join string that "cproxy-server token add NAME" printed:
  cproxy-client tcp 8080 --join -         expose port 8080 until Ctrl-C
  cproxy-client join - --config FILE      write a configuration to run with`,
	}
	root.AddCommand(newRun(), newCheck(), newTCP(), newJoin(),
		cli.NewVersionCommand("cproxy-client", cli.Version(version), wire.Version))
	return root
}
