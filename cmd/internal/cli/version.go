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

// versionLineKey is the annotation of the command "version" that holds its line.
const versionLineKey = "line"

// addVersionFlag gives root the flag --version if it has the command.
func addVersionFlag(root *cobra.Command) {
	for _, child := range root.Commands() {
		if line := child.Annotations[versionLineKey]; line != "" {
			root.Version = line // without it there is no flag
			root.SetVersionTemplate("{{.Version}}")
		}
	}
}

func versionLine(name, version string, protocol uint32) string {
	return fmt.Sprintf("%s %s (%s %s/%s, protocol %d)\n", name, version, runtime.Version(), runtime.GOOS, runtime.GOARCH, protocol)
}

// NewVersionCommand returns the command "version", which prints one line to
// the root command's output: name, version, Go version, platform and the
// protocol version. With it below its root, --version prints the same.
func NewVersionCommand(name, version string, protocol uint32) *cobra.Command {
	return &cobra.Command{
		Use:         "version",
		Short:       "Print the version",
		Args:        cobra.NoArgs,
		Annotations: map[string]string{versionLineKey: versionLine(name, version, protocol)},
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), versionLine(name, version, protocol))
			if err != nil {
				return fmt.Errorf("print version: %w", err)
			}
			return nil
		},
	}
}
