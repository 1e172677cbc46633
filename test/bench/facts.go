//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// fact is a line about the machine.
type fact struct{ name, value string }

// readFacts describes the machine and the programs. What cannot be found out
// is left out.
func readFacts(ctx context.Context, w *world) []fact {
	var all []fact
	add := func(name, value string) {
		if value != "" {
			all = append(all, fact{name, value})
		}
	}
	add("date", time.Now().UTC().Format(time.DateOnly))
	add("CPU", fmt.Sprintf("%d x %s", runtime.NumCPU(), valueOf(read("/proc/cpuinfo"), "model name")))
	add("memory", valueOf(read("/proc/meminfo"), "MemTotal"))
	add("kernel", kernel())
	add("system", strings.Trim(valueOf(read("/etc/os-release"), "PRETTY_NAME"), `"`))
	add("hypervisor", yes(strings.Contains(valueOf(read("/proc/cpuinfo"), "flags"), "hypervisor")))
	add("load before", firstFields(read("/proc/loadavg"), 3))
	add("descriptors", descriptorLimit())
	add("Go", runtime.Version()+" "+runtime.GOARCH)
	add("CProxy", version(ctx, "git", "describe", "--tags", "--always", "--dirty"))
	if w.haproxy != "" {
		add("haproxy", version(ctx, w.haproxy, "-v"))
	}
	if w.nginx != "" {
		add("nginx", version(ctx, w.nginx, "-v"))
	}
	if w.settings.frp != "" {
		add("frp", version(ctx, w.settings.frp+"/frps", "--version"))
	}
	return all
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(b)
}

// valueOf finds "NAME: VALUE" or NAME=VALUE at the start of a line.
func valueOf(text, name string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			rest = strings.TrimLeft(rest, " \t")
			if rest != "" && (rest[0] == ':' || rest[0] == '=') {
				return strings.TrimSpace(rest[1:])
			}
		}
	}
	return ""
}

func firstFields(text string, n int) string {
	fields := strings.Fields(text)
	return strings.Join(fields[:min(n, len(fields))], " ")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func kernel() string {
	return firstFields(strings.TrimPrefix(read("/proc/version"), "Linux version "), 1)
}

func descriptorLimit() string {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return ""
	}
	return fmt.Sprintf("%d (hard limit)", limit.Max)
}

// version is the first line of what a program says about itself.
func version(ctx context.Context, name string, args ...string) string {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput() //nolint:gosec // the programs that are to be measured
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}
