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

func TestParseLevel(t *testing.T) {
	tests := []struct {
		in   string
		want slog.Level
		bad  bool
	}{
		{in: "debug", want: slog.LevelDebug},
		{in: "info", want: slog.LevelInfo},
		{in: "WARN", want: slog.LevelWarn},
		{in: "Error", want: slog.LevelError},
		{in: "", bad: true},
		{in: "trace", bad: true},
		{in: "info+2", bad: true},
		{in: " info", bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := logging.ParseLevel(tt.in)
			if (err != nil) != tt.bad {
				t.Fatalf("ParseLevel(%q) error = %v, want one: %v", tt.in, err, tt.bad)
			}
			if tt.bad {
				if !strings.Contains(err.Error(), "debug, info, warn or error") {
					t.Errorf("error %q does not say what is allowed", err)
				}
				return
			}
			if got != tt.want {
				t.Errorf("ParseLevel(%q) = %v, want %v", tt.in, got, tt.want)
			}
		})
	}
}

func TestParseFormat(t *testing.T) {
	for in, want := range map[string]logging.Format{
		"text": logging.FormatText,
		"json": logging.FormatJSON,
		"JSON": logging.FormatJSON,
	} {
		if got, err := logging.ParseFormat(in); err != nil || got != want {
			t.Errorf("ParseFormat(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "yaml"} {
		if _, err := logging.ParseFormat(in); err == nil || !strings.Contains(err.Error(), "text or json") {
			t.Errorf("ParseFormat(%q) error = %v, want one that says what is allowed", in, err)
		}
	}
}
