//go:build linux

package main

import (
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
)

// The default file may be missing, which is noted to be told; one that was asked
// for may not.
func TestMissingDefaultFile(t *testing.T) {
	var s settings
	cmd := &cobra.Command{Use: "run"}
	s.addFlags(cmd, nil)
	s.path = filepath.Join(t.TempDir(), "server.toml")
	cfg, _, err := s.read(cmd)
	if err != nil || !s.missing || cfg.CtlListen != ":7000" {
		t.Errorf("%+v, %v, missing: %v", cfg, err, s.missing)
	}
	if err := cmd.Flags().Set("config", s.path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.read(cmd); err == nil || s.missing {
		t.Errorf("a file that was asked for is missing: %v", err)
	}
}
