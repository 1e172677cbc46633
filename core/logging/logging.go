// Package logging builds the structured logger both daemons write with, and a
// rate limit for lines that a hostile or broken peer could otherwise produce
// without end.
//
// Loggers are handed down by constructors; nothing here touches slog's default
// logger or any other package-level state.
package logging

import (
	"io"
	"log/slog"
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
	Format Format // anything but FormatJSON is text
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
