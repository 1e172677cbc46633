package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version returns the version of the program: the value that the linker was
// given, or else what the Go toolchain recorded about the module and its
// revision, or else "devel".
func Version(linked string) string {
	info, _ := debug.ReadBuildInfo()
	return version(linked, info)
}

func version(linked string, info *debug.BuildInfo) string {
	if linked != "" {
		return linked
	}
	if info == nil {
		return "devel"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	settings := make(map[string]string, len(info.Settings))
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	revision := settings["vcs.revision"]
	if revision == "" {
		return "devel"
	}
	v := "devel-" + revision[:min(len(revision), 12)]
	if settings["vcs.modified"] == "true" {
		v += "-dirty"
	}
	return v
}

// NewVersionCommand returns the command "version", which prints one line to
// the root command's output: name, version, Go version, platform and the
// protocol version.
func NewVersionCommand(name, version string, protocol uint32) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s %s/%s, protocol %d)\n",
				name, version, runtime.Version(), runtime.GOOS, runtime.GOARCH, protocol)
			if err != nil {
				return fmt.Errorf("print version: %w", err)
			}
			return nil
		},
	}
}
