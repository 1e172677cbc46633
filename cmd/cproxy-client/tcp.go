//go:build linux

package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

func newTCP() *cobra.Command {
	var s settings
	var join, name string
	cmd := &cobra.Command{
		Use:   "tcp LOCAL",
		Short: "Expose one TCP service until Ctrl-C, without a configuration file",
		Long: `Exposes one service until Ctrl-C. LOCAL is a port such as 8080 (on 127.0.0.1),
HOST:PORT, or unix:/PATH. The line "tunnel NAME ready at ADDRESS" on standard
output tells where it can be reached; logs go to standard error.

` + joinSources + `

The client is known to the server by the name of this host and of the tunnel, so
that several of these commands can run beside each other and beside a
"cproxy-client run" with the same token.`,
		Example: `  cproxy-client tcp 8080 --join - < join.txt
  cproxy-client tcp db.lan:5432 --name db --remote-port 20000-20100 --join @join.txt`,
		Args: cli.Args("LOCAL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := readJoin(join, joinEnvironment(cmd))
			if err != nil {
				return err
			}
			s.describe(j, args[0], name)
			return s.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), nil)
		},
	}
	cmd.Flags().StringVar(&join, "join", "", "join `STRING`, - to read it from standard input, or @FILE (default: the variable CPROXY_JOIN)")
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the tunnel (default: made of LOCAL)")
	s.addFlag(cmd, "remote-port", "tunnel.remote_port", "public `PORT` on the server, or a range such as 20000-20100 (default: any)")
	s.addFlag(cmd, "log-level", "log.level", "`LEVEL` of the log: debug, info, warn or error")
	return cmd
}

// describe sets the keys that a configuration file would.
func (s *settings) describe(j identity.Join, local, name string) {
	if name == "" {
		name = nameOf("tcp-" + local)
	}
	host, _ := os.Hostname() // without one the tunnel's name has to do
	s.fixed = map[string]string{
		"server":       j.Address,
		"token":        identity.FormatCredential(j.Name, j.Secret),
		"name":         nameOf(host + "." + name),
		"tunnel.name":  name,
		"tunnel.local": local,
	}
	if j.Pin != nil {
		s.fixed["pin"] = j.Pin.String()
	}
}

// nameOf makes a name of any text: what a name may not have becomes a hyphen,
// and of a long one the end is kept.
func nameOf(text string) string {
	name := strings.Map(func(r rune) rune {
		if r < 0x80 && wire.ValidateName(string(r)) == nil {
			return r
		}
		return '-'
	}, text)
	name = name[max(0, len(name)-wire.MaxName):]
	return strings.Trim(name, "-.")
}
