//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/load"
	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/meter"
)

// resultHelp documents the JSON object; the struct tags below are its fields.
const resultHelp = `With --json a load prints one object. A GB is 1e9 bytes.

  load, target       what was measured
  seconds            how long, without the warm-up
  bulk               gb_per_s, down_bytes, up_bytes, flows, and confirmed: the flows
                     whose byte counts the serving side confirmed. Fewer than
                     flows means that the tunnel does not carry half-close
  pingpong           round_trips, per_s, p50_us, p99_us, p999_us, max_us
  churn              connections, per_s, failed, first_failure, first_byte_p50_us,
                     first_byte_p99_us
  idle               connections, slab_bytes_per_connection (whole machine), and
                     processes: name, rss_bytes_per_connection, of which
                     anon_bytes_per_connection; descriptors and pipes, total growth
  clients            clients and tunnels (of all); cold_s, from the first dial until all
                     tunnels were open; logins and registrations, in all, and of
                     cold_s logins_per_s and registrations_per_s; refusals (by code),
                     failures (attempts without an answer), reconnects, resumed (of
                     the logins), first_failure; proxy_conns and
                     streams that were opened, and processes: name, rss_bytes_before,
                     rss_bytes_after and the growth for each client, with its tunnels,
                     rss_bytes_per_client, of which anon_bytes_per_client; descriptors,
                     total growth; at rest cpu_percent, of one CPU, and
                     cpu_percent_of_machine. seconds is how long it rested
  cpu                list of name, seconds, resolution_s and, where it makes sense,
                     per_unit with its unit: s/GB, us/round trip, us/connection. The
                     processes of --pid in their order, then "generator" (this
                     process, with what --serve does) and "machine" (all CPUs, with
                     interrupts and kernel threads)`

// result is what a load prints.
type result struct {
	Load     string          `json:"load"`
	Target   string          `json:"target"`
	Seconds  float64         `json:"seconds"`
	Bulk     *bulkResult     `json:"bulk,omitempty"`
	PingPong *pingPongResult `json:"pingpong,omitempty"`
	Churn    *churnResult    `json:"churn,omitempty"`
	Idle     *idleResult     `json:"idle,omitempty"`
	Clients  *clientsResult  `json:"clients,omitempty"`
	CPU      []cpuResult     `json:"cpu"`
}

type bulkResult struct {
	Rate      float64 `json:"gb_per_s"`
	Down      uint64  `json:"down_bytes"`
	Up        uint64  `json:"up_bytes"`
	Flows     int     `json:"flows"`
	Confirmed int     `json:"confirmed"`
}

type pingPongResult struct {
	Trips uint64  `json:"round_trips"`
	Rate  float64 `json:"per_s"`
	P50   float64 `json:"p50_us"`
	P99   float64 `json:"p99_us"`
	P999  float64 `json:"p999_us"`
	Max   float64 `json:"max_us"`
}

type churnResult struct {
	Conns        uint64  `json:"connections"`
	Rate         float64 `json:"per_s"`
	Failed       uint64  `json:"failed"`
	FirstByteP50 float64 `json:"first_byte_p50_us"`
	FirstByteP99 float64 `json:"first_byte_p99_us"`
	Reason       string  `json:"first_failure,omitempty"`
}

type idleResult struct {
	Conns     int               `json:"connections"`
	Slab      float64           `json:"slab_bytes_per_connection"`
	Processes []footprintResult `json:"processes"`
}

type footprintResult struct {
	Name        string  `json:"name"`
	RSS         float64 `json:"rss_bytes_per_connection"`
	Anonymous   float64 `json:"anon_bytes_per_connection"`
	Descriptors int     `json:"descriptors"`
	Pipes       int     `json:"pipes"`
}

type cpuResult struct {
	Name       string  `json:"name"`
	Seconds    float64 `json:"seconds"`
	Resolution float64 `json:"resolution_s"`
	PerUnit    float64 `json:"per_unit,omitempty"`
	Unit       string  `json:"unit,omitempty"`
}

// unit is what CPU time is divided by.
type unit struct {
	name  string
	scale float64 // of the seconds
	count float64
}

func perGB(bytes uint64) unit        { return unit{"s/GB", 1, float64(bytes) / 1e9} }
func per(what string, n uint64) unit { return unit{"us/" + what, 1e6, float64(n)} }

// charge fills in the CPU times. A zero unit divides nothing.
func (r *result) charge(m *meter.Meter, u unit) {
	for _, c := range m.Charges() {
		row := cpuResult{Name: c.Name, Seconds: c.CPU.Seconds(), Resolution: c.Resolution.Seconds()}
		if u.count > 0 {
			row.PerUnit, row.Unit = row.Seconds*u.scale/u.count, u.name
		}
		r.CPU = append(r.CPU, row)
	}
}

func (r *result) addBulk(b load.BulkResult) {
	r.Seconds = b.Elapsed.Seconds()
	r.Bulk = &bulkResult{
		Rate: float64(b.Down+b.Up) / 1e9 / b.Elapsed.Seconds(),
		Down: b.Down, Up: b.Up, Flows: b.Flows, Confirmed: b.Confirmed,
	}
}

func (r *result) addPingPong(p load.PingPongResult) {
	r.Seconds = p.Elapsed.Seconds()
	r.PingPong = &pingPongResult{
		Trips: p.Trips, Rate: float64(p.Trips) / p.Elapsed.Seconds(),
		P50: micros(p.Latencies.Quantile(0.5)), P99: micros(p.Latencies.Quantile(0.99)),
		P999: micros(p.Latencies.Quantile(0.999)), Max: micros(p.Latencies.Max()),
	}
}

func (r *result) addChurn(c load.ChurnResult) {
	r.Seconds = c.Elapsed.Seconds()
	r.Churn = &churnResult{
		Conns: c.Conns, Rate: float64(c.Conns) / c.Elapsed.Seconds(), Failed: c.Failed,
		FirstByteP50: micros(c.FirstByte.Quantile(0.5)), FirstByteP99: micros(c.FirstByte.Quantile(0.99)),
	}
	if c.Reason != nil {
		r.Churn.Reason = c.Reason.Error()
	}
}

func (r *result) addIdle(conns int, m *meter.Memory) {
	n := float64(conns)
	r.Idle = &idleResult{Conns: conns, Slab: float64(m.SlabGrowth()) / n, Processes: []footprintResult{}}
	for _, g := range m.Growths() {
		r.Idle.Processes = append(r.Idle.Processes, footprintResult{
			Name: g.Name, RSS: float64(g.RSS) / n, Anonymous: float64(g.Anonymous) / n,
			Descriptors: g.Descriptors, Pipes: g.Pipes,
		})
	}
}

// size words a number of bytes so that slow tunnels do not show as nothing.
func size(bytes float64) string {
	if bytes < 1e8 {
		return fmt.Sprintf("%.3f MB", bytes/1e6)
	}
	return fmt.Sprintf("%.3f GB", bytes/1e9)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// print writes the result as JSON or as a table.
func (r *result) print(w io.Writer, asJSON bool) error {
	var err error
	if asJSON {
		err = json.NewEncoder(w).Encode(r)
	} else {
		err = r.table(w)
	}
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

func (r *result) table(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(format string, a ...any) { _, _ = fmt.Fprintf(t, format+"\n", a...) } // Flush tells
	row("%s\t%s\t%.2f s measured", r.Load, r.Target, r.Seconds)
	if b := r.Bulk; b != nil {
		row("rate\t%s/s\tdown %s, up %s", size(b.Rate*1e9), size(float64(b.Down)), size(float64(b.Up)))
		row("flows\t%d\t%d confirmed by the serving side", b.Flows, b.Confirmed)
	}
	if p := r.PingPong; p != nil {
		row("round trips\t%.0f /s\t%d", p.Rate, p.Trips)
		row("latency\tp50 %.1f us\tp99 %.1f us, p99.9 %.1f us, max %.1f us", p.P50, p.P99, p.P999, p.Max)
	}
	if c := r.Churn; c != nil {
		row("connections\t%.0f /s\t%d, failed %d %s", c.Rate, c.Conns, c.Failed, c.Reason)
		row("first byte\tp50 %.1f us\tp99 %.1f us", c.FirstByteP50, c.FirstByteP99)
	}
	if i := r.Idle; i != nil {
		row("idle connections\t%d\tkernel slabs %.0f B each, whole machine", i.Conns, i.Slab)
		for _, p := range i.Processes {
			row("memory of %s\t%.0f B each\tof which anonymous %.0f B; %d descriptors, %d pipes more", p.Name, p.RSS, p.Anonymous, p.Descriptors, p.Pipes)
		}
	}
	if c := r.Clients; c != nil {
		c.table(row)
	}
	for _, c := range r.CPU {
		each := ""
		if c.Unit != "" {
			each = fmt.Sprintf("%.4g %s", c.PerUnit, c.Unit)
		}
		resolution := time.Duration(c.Resolution * float64(time.Second)).Round(time.Nanosecond)
		row("CPU of %s\t%.3f s\t%s (counted in %v)", c.Name, c.Seconds, each, resolution)
	}
	return t.Flush()
}
