package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Args checks that a command gets one argument for each name, such as "NAME",
// and says which is missing.
func Args(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return fmt.Errorf("%s is missing", strings.Join(names[len(args):], " "))
		}
		if len(args) > len(names) {
			return fmt.Errorf("%q is one argument too many", args[len(names)])
		}
		return nil
	}
}

// flagError words a flag that was given a value it cannot have.
func flagError(err error) error {
	bad, ok := errors.AsType[*pflag.InvalidValueError](err)
	if !ok {
		return err
	}
	f := bad.GetFlag()
	want := "a value of type " + f.Value.Type()
	switch f.Value.Type() {
	case "int", "int64":
		want = "a whole number"
	case "uint", "uint16", "uint32", "uint64":
		want = "a whole number, not negative"
	case "duration":
		want = "a number and its unit, such as 500ms or 30s"
	case "bool":
		want = "true or false"
	}
	return fmt.Errorf("--%s: must be %s; got %q", f.Name, want, bad.GetValue())
}
