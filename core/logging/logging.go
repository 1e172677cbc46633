// Package logging builds the structured logger both daemons write with, and a
// rate limit for lines that a hostile or broken peer could otherwise produce
// without end.
//
// Loggers are handed down by constructors; nothing here touches slog's default
// logger or any other package-level state.
package logging

import (
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// Format names how a log line is written.
type Format string

// The formats New knows.
const (
	FormatText Format = "text" // key=value
	FormatJSON Format = "json" // one JSON object a line
)

// Options chooses what New builds. The zero value logs text from level info.
type Options struct {
	Level  slog.Level
	Format Format // anything but FormatJSON is text; see ParseFormat
}

// New returns a logger that writes lines to w, and the variable that holds its
// level: setting it changes what is logged from then on, at any time and from
// any goroutine. The logger is safe for concurrent use and passes each line to
// w in one Write.
func New(w io.Writer, opts Options) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(opts.Level)
	handlerOptions := &slog.HandlerOptions{Level: level}
	if opts.Format == FormatJSON {
		return slog.New(slog.NewJSONHandler(w, handlerOptions)), level
	}
	return slog.New(slog.NewTextHandler(w, handlerOptions)), level
}

// ParseLevel reads a level as configuration files write it: debug, info, warn or
// error, in any case.
func ParseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("unknown log level %q: use debug, info, warn or error", s)
}

// ParseFormat reads a format as configuration files write it: text or json, in
// any case.
func ParseFormat(s string) (Format, error) {
	switch f := Format(strings.ToLower(s)); f {
	case FormatText, FormatJSON:
		return f, nil
	}
	return "", fmt.Errorf("unknown log format %q: use text or json", s)
}
