//go:build linux

package main

import "math"

// goal is a number to reach: a paired ratio to a reference, or without one the
// metric itself.
type goal struct {
	table              string
	load, metric, what string
	subject, reference string
	target             float64
	atLeast            bool
}

// The tables of goals.
// poolMax is the default bound of idle ProxyConns (pool.max).
const poolMax = 256

const (
	joinTable    = "One join, without frames"
	tunnelTable  = "The whole tunnel"
	framingTable = "What framing costs"
	reuseTable   = "What reuse of ProxyConns saves"
	controlTable = "The server with many clients"
)

// goals are the numbers that this project wants to reach.
func goals() []goal {
	const bulk, ping = "forwarder CPU per GB", "forwarder CPU per round trip"
	join := func(load, metric, what, reference string, target float64) goal {
		return goal{joinTable, load, metric, what, "engine", reference, target, false}
	}
	tunnel := func(load, metric, what, reference string, target float64) goal {
		return goal{tunnelTable, "tunnel-" + load, metric, what, "tunnel", reference, target, false}
	}
	return []goal{
		join("bulk1", "cpu", bulk, "copy", 0.95),
		join("bulk1", "cpu", bulk, "haproxy", 0.45),
		join("bulk16", "cpu", bulk, "copy", 0.80),
		join("bulk16", "cpu", bulk, "haproxy", 0.30),
		join("ping64", "cpu", ping, "copy", 0.75),
		join("ping64", "cpu", ping, "haproxy", 1.0),
		join("ping64", "p99", "p99", "copy", 0.35),
		join("ping64", "p99", "p99", "haproxy", 1.0),
		join("ping1000", "cpu", ping, "haproxy", 0.88),
		join("ping1000", "cpu", ping, "nginx", 0.95),
		join("mix", "p50", "p50 of the ping-pongs", "copy", 0.85),
		join("mix", "p50", "p50 of the ping-pongs", "haproxy", 0.2),
		{joinTable, "churn", "per_s", "connections per second", "engine", "copy", 1.25, true},
		{joinTable, "churn", "per_s", "connections per second", "engine", "haproxy", 0.95, true},
		{joinTable, "idle", "rss", "user memory per connection, B", "engine", "", 512, false},
		{joinTable, "idle", "pipes", "pipes of all connections", "engine", "", 0, false},
		{joinTable, "idle", "cpu_s", "CPU seconds in silence", "engine", "", 0, false},

		tunnel("bulk1", "cpu", "CPU of both per GB", "haproxy2", 0.55),
		tunnel("bulk1", "cpu", "CPU of both per GB", "frp", 0.60),
		tunnel("ping64", "cpu", "CPU of both per round trip", "haproxy2", 0.85),
		{tunnelTable, "tunnel-churn", "per_s", "connections per second", "tunnel", "", 6000, true},
		tunnel("churn", "cpu", "CPU of both per connection, us", "", 200),
		tunnel("idle", "rss", "user memory of both per connection, B", "", 1536),

		{framingTable, "tunnel-bulk1", "cpu", "CPU of both per GB", "tunnel", "engine2", 1.03, false},
		{framingTable, "tunnel-ping64", "cpu", "CPU of both per round trip", "tunnel", "engine2", 1.0, false},

		{reuseTable, "reuse-churn", "per_s", "connections per second", "reuse", "noreuse", 1.2, true},
		{reuseTable, "reuse-churn", "tw_proxy", "sockets in TIME_WAIT at ProxyPort", "reuse", "", poolMax, false},

		{controlTable, "control-clients", "cold", "seconds until all tunnels are open", "server", "", 30, false},
		{controlTable, "control-clients", "refusals", "refusals", "server", "", 0, false},
		{controlTable, "control-clients", "percent", "CPU at rest, % of one CPU", "server", "", 2, false},
		{controlTable, "control-clients", "kib", "memory per client with its tunnels, KiB", "server", "", 30, false},
	}
}

// verdict compares a number with the goal. Paired ratios that differ by less
// than equal are the same on a machine that does other things as well.
func (g goal) verdict(s spread) string {
	const equal = 0.10
	value, target := s.median, g.target
	if g.atLeast {
		value, target = -value, -target
	}
	switch {
	case s.n == 0:
		return "not measured"
	case value <= target:
		return "reached"
	case g.reference != "" && value <= target+equal*math.Abs(target):
		return "missed by less than 10 %"
	default:
		return "**not reached**"
	}
}

// measured gives the goal's number.
func (g goal) measured(r *results) spread {
	if g.reference == "" {
		return r.values(key{g.load, g.subject}, g.metric)
	}
	return r.paired(g.load, g.metric, g.subject, g.reference)
}
