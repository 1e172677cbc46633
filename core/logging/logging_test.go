package logging_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	"github.com/cproxy/cproxy/core/logging"
)

func TestNewFormats(t *testing.T) {
	tests := []struct {
		name   string
		format logging.Format
		isJSON bool
	}{
		{"zero value is text", "", false},
		{"text", logging.FormatText, false},
		{"json", logging.FormatJSON, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			log, _ := logging.New(&out, logging.Options{Format: tt.format})
			log.Info("tunnel ready", "tunnel", "web")
			if got := json.Valid(out.Bytes()); got != tt.isJSON {
				t.Errorf("line %q: JSON is %v, want %v", out.String(), got, tt.isJSON)
			}
			for _, want := range []string{"tunnel ready", "web"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("line %q lacks %q", out.String(), want)
				}
			}
			if n := strings.Count(out.String(), "\n"); n != 1 {
				t.Errorf("%d lines written, want 1", n)
			}
		})
	}
}

func TestLevelChangesAtRunTime(t *testing.T) {
	var out bytes.Buffer
	log, level := logging.New(&out, logging.Options{Level: slog.LevelWarn})
	child := log.With("control", "c1")

	child.Info("before")
	level.Set(slog.LevelDebug)
	child.Debug("after")
	level.Set(slog.LevelError)
	child.Warn("silenced")

	got := out.String()
	if strings.Contains(got, "before") || strings.Contains(got, "silenced") {
		t.Errorf("lines below the level were written: %s", got)
	}
	if !strings.Contains(got, "after") {
		t.Errorf("the lowered level was not obeyed: %s", got)
	}
}
