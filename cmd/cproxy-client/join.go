//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/identity"
)

// joinVariable may hold a join string.
const joinVariable = "CPROXY_JOIN"

// maxJoin is far above the longest join string, in bytes.
const maxJoin = 4096

// joinSources explains where a join string may come from.
const joinSources = `The join string, which "cproxy-server token add NAME" prints on the server, holds
a secret. Let it be read from standard input (-), from a file (@FILE) or from the
variable CPROXY_JOIN: what is on a command line every user of this host can see.`

func newJoin() *cobra.Command {
	var path string
	var force bool
	cmd := &cobra.Command{
		Use:   "join [STRING]",
		Short: "Write a configuration from a join string",
		Long: `Writes a configuration for "cproxy-client run" that only its owner can read.

` + joinSources,
		Example: `  cproxy-client join - --config ` + defaultConfig + ` < join.txt`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := readJoin(strings.Join(args, ""), joinEnvironment(cmd))
			if err != nil {
				return err
			}
			if err := writeConfiguration(path, j, force); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: written; add a [[tunnel]] table for each service, then start it with:\n"+
				"  cproxy-client run --config %s\n", path, path)
			if err != nil {
				return fmt.Errorf("print what to do next: %w", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", defaultConfig, "configuration `FILE` to write")
	cmd.Flags().BoolVar(&force, "force", false, "overwrite the file if it exists, tunnels included")
	return cmd
}

// environment is where join strings are read from.
type environment struct {
	stdin    io.Reader
	variable string // value of CPROXY_JOIN
	stderr   io.Writer
}

func joinEnvironment(cmd *cobra.Command) environment {
	return environment{stdin: cmd.InOrStdin(), variable: os.Getenv(joinVariable), stderr: cmd.ErrOrStderr()}
}

// readJoin reads the join string that the argument stands for: "-", "@FILE",
// the string itself, or nothing for the variable. Its errors never contain the
// secret.
func readJoin(argument string, env environment) (identity.Join, error) {
	text, err := joinText(argument, env)
	if err != nil {
		return identity.Join{}, cli.Usage(err)
	}
	j, err := identity.ParseJoin(text)
	if err != nil {
		return identity.Join{}, cli.Usage(err)
	}
	return j, nil
}

func joinText(argument string, env environment) (string, error) {
	path, isFile := strings.CutPrefix(argument, "@")
	switch {
	case argument == "" && env.variable == "":
		return "", fmt.Errorf("the join string is missing: give - to read it from standard input, @FILE, or set %s", joinVariable)
	case argument == "":
		return env.variable, nil
	case argument == "-":
		return readText(env.stdin, "standard input")
	case isFile:
		file, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read join string: %w", err)
		}
		defer file.Close()
		return readText(file, path)
	}
	_, _ = fmt.Fprintf(env.stderr, "warning: every user of this host can see the join string on the command line; "+
		"give - to read it from standard input, @FILE, or set %s\n", joinVariable) // nobody is left to tell
	return argument, nil
}

func readText(r io.Reader, name string) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxJoin+1))
	if err != nil {
		return "", fmt.Errorf("read join string from %s: %w", name, err)
	}
	if len(text) > maxJoin {
		return "", fmt.Errorf("%s is too long to be a join string: it must hold that one line only", name)
	}
	return string(text), nil
}

// writeConfiguration writes a configuration that logs in with j.
func writeConfiguration(path string, j identity.Join, force bool) error {
	path = filepath.Clean(path)
	if _, err := os.Lstat(path); err == nil && !force {
		return cli.Usage(fmt.Errorf("%s exists already: give --force to overwrite it, or another --config", path))
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for %s: %w", path, err)
	}
	if err := identity.WritePrivate(path, []byte(configuration(j))); err != nil {
		return fmt.Errorf("write configuration (its folder must exist, and this user own it): %w", err)
	}
	return nil
}

// configuration is the text of a configuration that logs in with j. All values
// are of characters that mean the same in Go and in TOML.
func configuration(j identity.Join) string {
	var b strings.Builder
	b.WriteString("# Configuration of cproxy-client. It holds a secret: keep its mode at 0600.\n\n")
	fmt.Fprintf(&b, "server = %s\n", strconv.Quote(j.Address))
	if j.Pin != nil {
		fmt.Fprintf(&b, "pin = %s\n", strconv.Quote(j.Pin.String()))
	}
	fmt.Fprintf(&b, "token = %s\n", strconv.Quote(identity.FormatCredential(j.Name, j.Secret)))
	b.WriteString(`
# One table for each service to expose. A port alone means 127.0.0.1; without
# remote_port the server picks a public port.
#[[tunnel]]
#name = "web"
#local = 8080
#remote_port = 20080
`)
	return b.String()
}
