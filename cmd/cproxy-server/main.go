//go:build linux

// Command cproxy-server makes services on private networks reachable through
// this host: cproxy-client connects to it from there.
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
		Use:   "cproxy-server",
		Short: "Make services on private networks reachable through this host",
		Long: `cproxy-server is the public end of CProxy, a reverse tunnel: clients connect to
it from private networks and register tunnels; whoever connects to a tunnel's
public port reaches the service behind the client.

Start here:
  cproxy-server token add NAME    let a client in: prints its join string
  cproxy-server run               serve`,
	}
	root.AddCommand(newRun(), newCheck(), newToken(), cli.NewVersionCommand("cproxy-server", cli.Version(version), wire.Version))
	return root
}
