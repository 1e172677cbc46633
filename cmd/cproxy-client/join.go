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
	"github.com/cproxy/cproxy/core/config"
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
		Short: "Write a configuration from a join string, or replace the token of one",
		Long: `Writes a configuration for "cproxy-client run" that only its owner can read. In a
file that exists only server, pin and token are replaced: tunnels, other keys and
comments stay as they are.

` + joinSources,
		Example: `  cproxy-client join - --config ` + defaultConfig + ` < join.txt`,
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			j, err := readJoin(strings.Join(args, ""), joinEnvironment(cmd))
			if err != nil {
				return err
			}
			done, err := writeConfiguration(path, j, force)
			if err != nil {
				return err
			}
			return done.report(path, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", defaultConfig, "configuration `FILE` to write")
	cmd.Flags().BoolVar(&force, "force", false, "write the file anew if it exists: all else in it, tunnels included, is lost")
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

// written tells what became of a configuration file.
type written struct {
	edited  bool     // there was one, and only its login was replaced
	removed []string // keys that were commented out
	servers []string // addresses that were in the list which the new one replaced
	pins    []string // likewise
	lost    []string // tunnels of the file that was overwritten
}

// writeConfiguration makes the configuration at path log in with j. In one that
// exists it replaces what a join string holds, and with force everything.
func writeConfiguration(path string, j identity.Join, force bool) (written, error) {
	path = filepath.Clean(path)
	old, err := os.ReadFile(path)
	switch {
	case err == nil && !force:
		return editConfiguration(path, old, j)
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !force:
		return written{}, fmt.Errorf("look for %s: %w", path, err)
	}
	if err := identity.WritePrivate(path, []byte(configuration(j))); err != nil {
		return written{}, fmt.Errorf("write configuration (its folder must exist, and this user own it): %w", err)
	}
	return written{lost: config.TunnelNames(old)}, nil
}

// editConfiguration replaces server, pin and token of a configuration.
func editConfiguration(path string, old []byte, j identity.Join) (written, error) {
	edits := []config.Edit{
		{Key: "server", Value: j.Address},
		{Key: "pin", Remove: true},
		{Key: "token", Value: identity.FormatCredential(j.Name, j.Secret)},
		{Key: "token_file", Remove: true},
	}
	if j.Pin != nil {
		edits[1] = config.Edit{Key: "pin", Value: j.Pin.String()}
		edits = append(edits, config.Edit{Key: "ca_file", Remove: true})
	}
	done, err := config.ApplyEdits(path, old, edits)
	if err != nil {
		return written{}, cli.Usage(fmt.Errorf("replace the token: %w; correct it first, or give --force to write the file anew, which loses all of it", err))
	}
	if err := identity.RewritePrivate(path, done.Text); err != nil {
		return written{}, fmt.Errorf("replace the token: %w", err)
	}
	return written{edited: true, removed: done.Removed, servers: done.Lists["server"], pins: done.Lists["pin"]}, nil
}

// report says what was done and what comes next.
func (w written) report(path string, stdout, stderr io.Writer) error {
	if len(w.removed) > 0 {
		_, _ = fmt.Fprintf(stderr, "warning: %s: commented out: %s\n", path, strings.Join(w.removed, ", ")) // nobody is left to tell
	}
	w.warnLists(path, stderr)
	if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o004 != 0 {
		_, _ = fmt.Fprintf(stderr, "warning: %s holds a secret that every user can read: chmod 0600 %s\n", path, path)
	}
	if len(w.lost) > 0 {
		_, _ = fmt.Fprintf(stderr, "warning: %s was written anew, its tunnels are lost: %s\n", path, strings.Join(w.lost, ", "))
	}
	next := "%[1]s: written; add a [[tunnel]] table for each service, then start it with:\n  cproxy-client run --config %[1]s\n"
	if w.edited {
		next = "%[1]s: server, pin and token replaced, all else kept; check it, then reload cproxy-client (SIGHUP), or restart it if \"name\" is not set and the token has another name:\n  cproxy-client check --config %[1]s --connect\n"
	}
	if _, err := fmt.Fprintf(stdout, next, path); err != nil {
		return fmt.Errorf("print what to do next: %w", err)
	}
	return nil
}

// warnLists tells of servers and pins that went away with their list.
func (w written) warnLists(path string, stderr io.Writer) {
	for _, list := range []struct {
		key     string
		dropped []string
	}{{"server", w.servers}, {"pin", w.pins}} {
		if len(list.dropped) > 0 {
			_, _ = fmt.Fprintf(stderr, "warning: %s: the list of %s is replaced by the one of the join string; put back what is still to be used: %s\n",
				path, list.key, strings.Join(list.dropped, ", ")) // nobody is left to tell
		}
	}
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
