//go:build linux

package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// settings come from the environment:
//
//	BENCH_ROUNDS   how many rounds (default 5)
//	BENCH_TIME     how long each load is measured (default 1.5s)
//	BENCH_LIMIT    no round begins that would end later (default 14m)
//	BENCH_QUICK    1: about a minute, to see that everything works
//	BENCH_OUT      folder of benchmarks.md and benchmarks.svg (default docs)
//	BENCH_INSTALL  0: install no packages
//	BENCH_FRP      folder with frps and frpc, to compare with them as well
type settings struct {
	rounds  int
	time    time.Duration
	limit   time.Duration
	quick   bool
	out     string
	install bool
	frp     string

	idleConns    int
	settle, rest time.Duration
	clients      int
	clientsRest  time.Duration // more than a heartbeat of the server
}

func readSettings(getenv func(string) string) (settings, error) {
	s := settings{
		rounds: 5, time: 1500 * time.Millisecond, limit: 14 * time.Minute, out: "docs",
		install: getenv("BENCH_INSTALL") != "0", frp: getenv("BENCH_FRP"),
		idleConns: 3000, settle: 1500 * time.Millisecond, rest: time.Second,
		clients: 2000, clientsRest: 45 * time.Second,
	}
	if q := getenv("BENCH_QUICK"); q != "" && q != "0" {
		s.quick = true
		s.rounds, s.time, s.limit = 2, 150*time.Millisecond, 2*time.Minute
		s.idleConns, s.settle, s.rest = 200, 200*time.Millisecond, 200*time.Millisecond
		s.clients, s.clientsRest = 50, time.Second
	}
	var problems []error
	if v := getenv("BENCH_ROUNDS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			problems = append(problems, fmt.Errorf("BENCH_ROUNDS=%s: use a number from 1", v))
		}
		s.rounds = n
	}
	for name, d := range map[string]*time.Duration{"BENCH_TIME": &s.time, "BENCH_LIMIT": &s.limit} {
		if v := getenv(name); v != "" {
			var err error
			if *d, err = time.ParseDuration(v); err != nil || *d < 10*time.Millisecond {
				problems = append(problems, fmt.Errorf("%s=%s: use a duration such as 2s", name, v))
			}
		}
	}
	if v := getenv("BENCH_OUT"); v != "" {
		s.out = v
	}
	return s, errors.Join(problems...)
}
