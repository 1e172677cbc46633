package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Problem is one thing that is wrong (or, as a warning, doubtful) in a
// configuration. Message says what to do about it and never holds a secret.
type Problem struct {
	// File is the path of the file as it was opened, "environment variable X"
	// or "command line". It is never empty.
	File string
	// Line counts from 1; 0 means that no line can be named, as for a missing
	// key or a variable.
	Line int
	// Key is the dotted path of the setting, such as "limits.ports"; empty when
	// the problem is not about one key.
	Key string
	// Message is one line of text.
	Message string
}

// String gives "FILE:LINE: KEY: MESSAGE", leaving out what is not known. A
// credential that stands where it does not belong is masked.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		b.WriteString(":" + strconv.Itoa(p.Line))
	}
	b.WriteString(": ")
	if p.Key != "" {
		b.WriteString(conceal(p.Key) + ": ")
	}
	b.WriteString(conceal(p.Message))
	return b.String()
}

// Error is the error of LoadServer and LoadClient: all problems found, in the
// order of the layers and lines they come from.
type Error struct {
	Problems []Problem
}

// Error gives one line for each problem.
func (e *Error) Error() string {
	lines := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// origin is the place a setting comes from.
type origin struct {
	file string
	line int
}

func (o origin) String() string {
	if o.line == 0 {
		return o.file
	}
	return o.file + ":" + strconv.Itoa(o.line)
}

// inOrder sorts problems by the rank of their file, then by line, and drops
// repetitions, which arise when a value is seen in its layer and once merged.
func inOrder(problems []Problem, rank func(file string) int) []Problem {
	slices.SortStableFunc(problems, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(rank(a.File), rank(b.File)),
			cmp.Compare(a.Line, b.Line),
		)
	})
	return slices.Compact(problems)
}
