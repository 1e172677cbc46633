// Package cli is what the commands of CProxy have in common: exit codes, how
// errors reach the user, signals, and the version.
//
// A main function is one line long:
//
//	func main() { os.Exit(cli.Main(newRoot(), os.Args[1:], os.Stderr)) }
//
// Commands return errors and never exit or print errors themselves. The exit
// code is that of the [ExitError] in the chain of the error. Without one, an
// error from a command's RunE is a failure, and any other error comes from
// parsing the command line and is a usage error.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes of every command. Scripts depend on them.
const (
	ExitOK      = 0 // done, or stopped by a signal in an orderly way
	ExitFailure = 1 // failed while running
	ExitUsage   = 2 // the command line or the configuration is wrong
	ExitRefused = 3 // refused by the other side for good; trying again is useless
)

// ExitError is an error that decides the exit code.
type ExitError struct {
	Code int
	Err  error // nil exits without a message
}

// Error returns the message of the error inside.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns the error inside.
func (e *ExitError) Unwrap() error { return e.Err }

// Usage marks err as a mistake in the command line or the configuration. It
// returns nil for nil.
func Usage(err error) error { return exitError(ExitUsage, err) }

// Refused marks err as a refusal for good. It returns nil for nil.
func Refused(err error) error { return exitError(ExitRefused, err) }

func exitError(code int, err error) error {
	if err == nil {
		return nil
	}
	return &ExitError{Code: code, Err: err}
}

// Main runs the command that args (without the program's name) select below
// root and returns the exit code. It blocks until the command has returned.
//
// The command's context ends with the first SIGINT or SIGTERM; a second one
// kills the process. An error is printed to stderr once, as "error: " and its
// message, which may have several lines.
//
// Main takes over root: it wraps the RunE functions below it and gives one to
// commands that only group others, so that a missing or misspelt subcommand is
// an error instead of a help text with exit code 0.
func Main(root *cobra.Command, args []string, stderr io.Writer) int {
	ctx, stop := signalContext()
	defer stop()
	return run(ctx, root, args, stderr)
}

// signalContext returns a context that ends with the first SIGINT or SIGTERM.
// Unlike signal.NotifyContext it restores the default action before the context
// ends, so that a second signal always works on a command that hangs. The
// returned function restores it too and waits for the goroutine behind it.
func signalContext() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	var watcher sync.WaitGroup
	watcher.Go(func() {
		defer cancel()
		defer signal.Stop(signals)
		select {
		case <-signals:
		case <-ctx.Done():
		}
	})
	return ctx, func() {
		cancel()
		watcher.Wait()
	}
}

func run(ctx context.Context, root *cobra.Command, args []string, stderr io.Writer) int {
	if args == nil {
		args = []string{} // cobra takes nil for "use os.Args"
	}
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetArgs(args)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	addVersionFlag(root)
	prepare(root)

	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitOK
	}
	code, silent := classify(err)
	if silent {
		return code
	}
	message := strings.TrimRight(err.Error(), "\n")
	if _, ran := errors.AsType[*runError](err); !ran {
		message += fmt.Sprintf("\nRun '%s --help' for usage.", command.CommandPath())
	}
	_, _ = fmt.Fprintf(stderr, "error: %s\n", message) // nobody is left to tell
	return code
}

// classify returns the exit code of err, and whether nothing is to be printed.
func classify(err error) (code int, silent bool) {
	if exit, ok := errors.AsType[*ExitError](err); ok {
		return exit.Code, exit.Err == nil
	}
	if _, ran := errors.AsType[*runError](err); ran {
		return ExitFailure, false
	}
	return ExitUsage, false
}

// runError marks an error as one of a command that did run, as opposed to one
// of the command line.
type runError struct{ err error }

func (e *runError) Error() string { return e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

func prepare(command *cobra.Command) {
	for _, child := range command.Commands() {
		prepare(child)
	}
	inner := command.RunE
	switch {
	case inner != nil:
		command.RunE = func(cmd *cobra.Command, args []string) error {
			if err := inner(cmd, args); err != nil {
				return &runError{err}
			}
			return nil
		}
	case !command.Runnable() && command.HasSubCommands():
		command.Args = needCommand
		command.RunE = func(cmd *cobra.Command, args []string) error { return needCommand(cmd, args) }
	}
}

// needCommand is the argument check of commands that only group others.
func needCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		var names []string
		for _, child := range cmd.Commands() {
			if child.IsAvailableCommand() {
				names = append(names, child.Name())
			}
		}
		return fmt.Errorf("%s needs a command: %s", cmd.CommandPath(), strings.Join(names, ", "))
	}
	message := fmt.Sprintf("unknown command %q for %q", args[0], cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		message += fmt.Sprintf("; did you mean %q?", near[0])
	}
	return errors.New(message)
}
