//go:build linux

package meter

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc/PID/stat and /proc/stat: USER_HZ is 100
// on every architecture that Go runs on.
const tick = 10 * time.Millisecond

var errFormat = errors.New("unexpected format")

// parseStat gives user and system time of a process from /proc/PID/stat
// (proc_pid_stat(5)), threads that have ended included. The name in
// parentheses may hold anything.
func parseStat(b []byte) (time.Duration, error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, errFormat
	}
	fields := strings.Fields(string(b[end+1:])) // fields[0] is field 3
	if len(fields) < 13 {
		return 0, errFormat
	}
	return ticks(fields[11:13])
}

// ticks sums columns of procfs that count clock ticks.
func ticks(columns []string) (time.Duration, error) {
	var sum uint64
	for _, f := range columns {
		n, err := strconv.ParseUint(f, 10, 48)
		if err != nil {
			return 0, errFormat
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

// parseSchedstat gives the time that a thread has run: the first field of
// /proc/PID/task/TID/schedstat, in nanoseconds.
func parseSchedstat(b []byte) (time.Duration, error) {
	first, _, ok := bytes.Cut(b, []byte(" "))
	if !ok {
		return 0, errFormat
	}
	n, err := strconv.ParseInt(string(first), 10, 64)
	if err != nil || n < 0 {
		return 0, errFormat
	}
	return time.Duration(n), nil
}

// parseMachine gives the time that all CPUs were busy, from the first line of
// /proc/stat: all columns but idle and iowait, without the guest columns,
// which user contains.
func parseMachine(b []byte) (time.Duration, error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, errFormat
	}
	return ticks(slices.Concat(fields[1:4], fields[6:9]))
}

// parseSize finds "KEY:   123 kB" in a file like /proc/meminfo and gives bytes.
func parseSize(b []byte, key string) (uint64, error) {
	for line := range bytes.Lines(b) {
		rest, ok := bytes.CutPrefix(line, []byte(key+":"))
		if !ok {
			continue
		}
		number, unit, _ := strings.Cut(strings.TrimSpace(string(rest)), " ")
		n, err := strconv.ParseUint(number, 10, 48)
		if err != nil || unit != "kB" {
			return 0, errFormat
		}
		return n << 10, nil
	}
	return 0, fmt.Errorf("no %s: %w", key, errFormat)
}

// readAs reads a file and parses it; its errors name the file.
func readAs[T any](path string, parse func([]byte) (T, error)) (T, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		var none T
		return none, err
	}
	v, err := parse(b)
	if err != nil {
		return v, fmt.Errorf("parse %s: %w", path, err)
	}
	return v, nil
}

// threads gives the running time of every live thread of a process. A kernel
// without schedstat gives none.
func threads(pid int) map[string]time.Duration {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid)) // the pattern is fine
	times := make(map[string]time.Duration, len(files))
	for _, file := range files {
		// A thread may end between the two calls.
		if t, err := readAs(file, parseSchedstat); err == nil {
			times[file] = t
		}
	}
	return times
}

// descriptors counts the open descriptors of a process, and the pipes among
// them: both ends of one count once.
func descriptors(pid int) (open, pipes int, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, 0, err
	}
	seen := make(map[string]bool)
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(target, "pipe:") {
			seen[target] = true
		}
	}
	return len(entries), len(seen), nil
}
