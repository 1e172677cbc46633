//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// load is one call of cproxy-bench.
type load struct {
	name, title string
	args        []string
	unit        string        // of its CPU times; empty: seconds alone
	extra       bool          // no goal depends on it: runs in the first rounds only
	waits       bool          // it leaves sockets in TIME_WAIT, which are counted
	takes       time.Duration // longer than others
}

// clientsLimit is how long all clients may take to be served.
const clientsLimit = time.Minute

// extraRounds is in how many rounds extra loads run.
const extraRounds = 2

func joinLoads() []load {
	return []load{
		{name: "bulk1", title: "bulk, 1 flow down", args: []string{"bulk"}, unit: "s/GB"},
		{name: "bulk16", title: "bulk, 16 flows both ways", args: []string{"bulk", "--flows", "16", "--direction", "both"}, unit: "s/GB"},
		{name: "ping64", title: "ping-pong, 64 connections, 64 B", args: []string{"pingpong", "--conns", "64"}, unit: "us/round trip"},
		{name: "ping1000", title: "ping-pong, 1000 connections, 64 B", args: []string{"pingpong", "--conns", "1000"}, unit: "us/round trip"},
		{name: "mix", title: "16 ping-pongs beside 4 bulk flows", args: []string{"mix"}},
		{name: "churn", title: "short connections, 64 in flight", args: []string{"churn"}, unit: "us/connection"},
		{name: "bulk1up", title: "bulk, 1 flow up", args: []string{"bulk", "--direction", "up"}, unit: "s/GB", extra: true},
		{name: "bulk16down", title: "bulk, 16 flows down", args: []string{"bulk", "--flows", "16"}, unit: "s/GB", extra: true},
		{name: "ping1", title: "ping-pong, 1 connection, 64 B", args: []string{"pingpong", "--conns", "1"}, unit: "us/round trip", extra: true},
		{name: "ping64x4k", title: "ping-pong, 64 connections, 4 KiB", args: []string{"pingpong", "--conns", "64", "--size", "4096"}, unit: "us/round trip", extra: true},
	}
}

func tunnelLoads() []load {
	return []load{
		{name: "bulk1", title: "bulk, 1 flow down", args: []string{"bulk"}, unit: "s/GB"},
		{name: "bulk16", title: "bulk, 16 flows both ways", args: []string{"bulk", "--flows", "16", "--direction", "both"}, unit: "s/GB"},
		{name: "ping64", title: "ping-pong, 64 connections, 64 B", args: []string{"pingpong", "--conns", "64"}, unit: "us/round trip"},
		{name: "churn", title: "short connections, 64 in flight", args: []string{"churn"}, unit: "us/connection"},
		{name: "ping1", title: "ping-pong, 1 connection, 64 B", args: []string{"pingpong", "--conns", "1"}, unit: "us/round trip", extra: true},
		{name: "ping1000", title: "ping-pong, 1000 connections, 64 B", args: []string{"pingpong", "--conns", "1000"}, unit: "us/round trip", extra: true},
	}
}

// reuseLoads show what it is worth to use a ProxyConn again.
func reuseLoads() []load {
	return []load{{name: "churn", title: "short connections, 64 in flight", args: []string{"churn"}, unit: "us/connection", waits: true}}
}

// clientsLoad is many clients without visitors.
func clientsLoad(s settings) load {
	return load{
		name: "clients", title: "many clients with 5 tunnels each", takes: s.clientsRest + clientsLimit,
		args: []string{
			"clients", "--clients", strconv.Itoa(s.clients), "--tunnels", "5",
			"--limit", clientsLimit.String(), "--settle", s.settle.String(), "--duration", s.clientsRest.String(),
		},
	}
}

func idleLoad(s settings) load {
	return load{
		name: "idle", title: "idle connections",
		args: []string{"idle", "--conns", strconv.Itoa(s.idleConns), "--settle", s.settle.String(), "--rest", s.rest.String()},
	}
}

// serveName is the --pid name of the serving side; all others are charged to
// the contestant.
const serveName = "serve"

// measurement is the JSON object of cproxy-bench; its help explains the fields.
type measurement struct {
	Seconds float64 `json:"seconds"`
	Bulk    *struct {
		Rate      float64 `json:"gb_per_s"`
		Flows     int     `json:"flows"`
		Confirmed int     `json:"confirmed"`
	} `json:"bulk"`
	PingPong *struct {
		Rate float64 `json:"per_s"`
		P50  float64 `json:"p50_us"`
		P99  float64 `json:"p99_us"`
		P999 float64 `json:"p999_us"`
	} `json:"pingpong"`
	Churn *struct {
		Rate   float64 `json:"per_s"`
		Failed float64 `json:"failed"`
		P50    float64 `json:"first_byte_p50_us"`
		P99    float64 `json:"first_byte_p99_us"`
	} `json:"churn"`
	Idle *struct {
		Conns     float64 `json:"connections"`
		Slab      float64 `json:"slab_bytes_per_connection"`
		Processes []struct {
			Name        string  `json:"name"`
			RSS         float64 `json:"rss_bytes_per_connection"`
			Anonymous   float64 `json:"anon_bytes_per_connection"`
			Descriptors float64 `json:"descriptors"`
			Pipes       float64 `json:"pipes"`
		} `json:"processes"`
	} `json:"idle"`
	Clients *struct {
		Cold      float64            `json:"cold_s"`
		Refusals  map[string]float64 `json:"refusals"`
		Failures  float64            `json:"failures"`
		Processes []struct {
			Name string  `json:"name"`
			RSS  float64 `json:"rss_bytes_per_client"`
			CPU  float64 `json:"cpu_percent"`
		} `json:"processes"`
	} `json:"clients"`
	CPU []struct {
		Name    string  `json:"name"`
		Seconds float64 `json:"seconds"`
		PerUnit float64 `json:"per_unit"`
	} `json:"cpu"`
}

// parseMeasurement reads what cproxy-bench printed.
func parseMeasurement(b []byte) (metrics, error) {
	var v measurement
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("read the result of cproxy-bench: %w", err)
	}
	m := metrics{"cpu": 0, "cpu_s": 0}
	for _, c := range v.CPU {
		switch c.Name {
		case serveName, "generator":
		case "machine":
			m["total"] = c.PerUnit
		default:
			m["cpu"] += c.PerUnit
			m["cpu_s"] += c.Seconds
		}
	}
	if b := v.Bulk; b != nil {
		m["gb_per_s"], m["unconfirmed"] = b.Rate, float64(b.Flows-b.Confirmed)
	}
	if p := v.PingPong; p != nil {
		m["per_s"], m["p50"], m["p99"], m["p999"] = p.Rate, p.P50, p.P99, p.P999
	}
	if c := v.Churn; c != nil {
		m["per_s"], m["failed"], m["p50"], m["p99"] = c.Rate, c.Failed, c.P50, c.P99
	}
	v.idle(m)
	v.clients(m)
	return m, nil
}

// clients takes the numbers of the server alone.
func (v *measurement) clients(m metrics) {
	c := v.Clients
	if c == nil {
		return
	}
	m["cold"], m["refusals"], m["failures"] = c.Cold, 0, c.Failures
	for _, n := range c.Refusals {
		m["refusals"] += n
	}
	for _, p := range c.Processes {
		if p.Name != serveName {
			m["percent"], m["kib"] = p.CPU, p.RSS/1024
		}
	}
}

// idle sums the processes of a contestant up.
func (v *measurement) idle(m metrics) {
	if v.Idle == nil {
		return
	}
	m["slab"], m["rss"], m["anon"], m["fds"], m["pipes"] = v.Idle.Slab, 0, 0, 0, 0
	for _, p := range v.Idle.Processes {
		if p.Name != serveName {
			m["rss"] += p.RSS
			m["anon"] += p.Anonymous
			m["fds"] += p.Descriptors / v.Idle.Conns
			m["pipes"] += p.Pipes
		}
	}
}
