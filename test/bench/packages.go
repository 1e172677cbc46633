//go:build linux

package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// installLimit bounds the installation of packages.
const installLimit = 3 * time.Minute

// policy is what Debian asks before a package starts its service. The
// programs are started by this one, so it says no while packages are
// installed.
const policy = "/usr/sbin/policy-rc.d"

// findPrograms looks for haproxy and nginx, installs them where that is
// possible, and notes what is left out.
func (w *world) findPrograms(ctx context.Context) {
	w.lookUp()
	if w.haproxy == "" || w.nginx == "" {
		switch {
		case !w.settings.install:
			w.say("haproxy or nginx is missing; BENCH_INSTALL=0 forbids to install them")
		case os.Geteuid() != 0:
			w.say("haproxy or nginx is missing; install haproxy, nginx-light and libnginx-mod-stream, or run this as root")
		default:
			if err := w.installPackages(ctx); err != nil {
				w.say("haproxy or nginx is missing and cannot be installed: %v", err)
			}
			w.lookUp()
		}
	}
	for _, k := range append(joins(), tunnels()...) {
		if k.missing != nil && k.missing(w) != "" {
			w.skipped = append(w.skipped, k.title+": "+k.missing(w))
		}
	}
}

func (w *world) lookUp() {
	w.haproxy = find("haproxy", "/usr/sbin/haproxy")
	w.nginx = find("nginx", "/usr/sbin/nginx")
	if w.nginx == "" {
		return
	}
	for _, pattern := range []string{"/usr/lib/nginx/modules/ngx_stream_module.so", "/usr/lib*/nginx/modules/ngx_stream_module.so"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			w.module = found[0]
			return
		}
	}
	built, err := exec.Command(w.nginx, "-V").CombinedOutput() //nolint:gosec // found on the PATH
	if err != nil || !strings.Contains(string(built), "--with-stream ") {
		w.nginx = ""
	}
}

// find gives the path of a program that may not be on the PATH of users.
func find(name, fallback string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	if _, err := os.Stat(fallback); err == nil {
		return fallback
	}
	return ""
}

func (w *world) installPackages(ctx context.Context) error {
	apt, err := exec.LookPath("apt-get")
	if err != nil {
		return errors.New("this is no Debian or Ubuntu")
	}
	w.say("installing haproxy and nginx (BENCH_INSTALL=0 forbids it)")
	if _, err := os.Stat(policy); os.IsNotExist(err) {
		if err := os.WriteFile(policy, []byte("#!/bin/sh\nexit 101\n"), 0o755); err == nil { //nolint:gosec // a program for dpkg
			defer func() { _ = os.Remove(policy) }()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, installLimit)
	defer cancel()
	install := []string{"install", "-y", "--no-install-recommends", "haproxy", "nginx-light", "libnginx-mod-stream"}
	for _, args := range [][]string{{"update"}, install} {
		cmd := command(ctx, apt, args...)
		cmd.Env = append(cmd.Env, "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return errors.New(err.Error() + ": " + lastLine(string(out)))
		}
	}
	return nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
