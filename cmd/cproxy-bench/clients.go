//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/fleet"
	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/meter"
	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/identity"
)

// joinVariable may hold a join string, as it may for cproxy-client.
const joinVariable = "CPROXY_JOIN"

// maxJoin is far above the longest join string, in bytes.
const maxJoin = 4096

// clientsFlags are those of the command clients.
type clientsFlags struct {
	fleet.Options
	server, join string
	pids         []string
	json         bool
}

func newClients() *cobra.Command {
	var f clientsFlags
	cmd := &cobra.Command{
		Use:   "clients",
		Short: "Be many clients of a cproxy-server: time until all are served, memory and CPU of the server",
		Long: `Connects many clients to a cproxy-server, has each register its tunnels, and lets
them rest. They speak the whole protocol, but from one process with a goroutine
each and an echo behind every tunnel. One more client, which does not count, goes
ahead of them, so that the growth of memory is theirs.

All share one token: it must not limit tunnels, and the server must be allowed a
descriptor for each client and each tunnel (LimitNOFILE).`,
		Example: `  cproxy-bench clients --join - --clients 2000 --tunnels 5 --pid server=$(pidof cproxy-server) < join.txt`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			processes, err := f.check(cmd.InOrStdin())
			if err != nil {
				return cli.Usage(err)
			}
			m := meter.NewMemory(processes)
			got, err := fleet.Run(cmd.Context(), f.Options, resting{m})
			if err != nil {
				return err
			}
			r := &result{Load: "clients", Target: f.Join.Address, Seconds: f.Rest.Seconds()}
			r.addClients(f.Options, got, m)
			r.charge(m.Meter, unit{})
			return r.print(cmd.OutOrStdout(), f.json)
		},
	}
	f.declare(cmd)
	return cmd
}

func (f *clientsFlags) declare(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.join, "join", "", "read the join string from standard input (`-`) or from a file (@FILE); default: the variable "+joinVariable)
	flags.StringVar(&f.server, "server", "", "`HOST:PORT` of the server, instead of that in the join string")
	flags.IntVar(&f.Clients, "clients", 2000, "how many clients")
	flags.IntVar(&f.Tunnels, "tunnels", 5, "how many tunnels each")
	flags.IntVar(&f.AtOnce, "at-once", 256, "how many may be logging in at a time, this host being busy for all of them; 0 is all")
	flags.DurationVar(&f.Limit, "limit", 2*time.Minute, "how long all of them may take until their tunnels are open")
	flags.DurationVar(&f.Settle, "settle", 3*time.Second, "how long to wait after that")
	flags.DurationVar(&f.Rest, "duration", 30*time.Second, "how long to watch the CPU time after that")
	flags.StringArrayVar(&f.pids, "pid", nil, "charge the process `PID`, or NAME=PID; repeatable, equal names are summed up")
	flags.BoolVar(&f.json, "json", false, "print one JSON object instead of a table")
}

// resting is a Memory that looks after the rest: what a herd leaves behind for
// moments does not count, what heartbeats take does.
type resting struct{ *meter.Memory }

// Begin starts measuring CPU time.
func (r resting) Begin() error { return r.Meter.Begin() }

// End stops that and takes the footprints to compare.
func (r resting) End() error { return errors.Join(r.Meter.End(), r.During()) }

// check completes the options and gives the processes to charge.
func (f *clientsFlags) check(stdin io.Reader) ([]meter.Process, error) {
	processes, err := meter.ParseProcesses(f.pids)
	err = errors.Join(err, atLeast("--clients", f.Clients, 1), atLeast("--tunnels", f.Tunnels, 1), atLeast("--at-once", f.AtOnce, 0),
		positive("--limit", f.Limit), positive("--settle", f.Settle), positive("--duration", f.Rest))
	if err != nil {
		return nil, err
	}
	text, err := joinText(f.join, stdin)
	if err != nil {
		return nil, err
	}
	if f.Join, err = identity.ParseJoin(text); err != nil {
		return nil, err
	}
	if f.server != "" {
		f.Join.Address = f.server
	}
	return processes, nil
}

// joinText reads a join string, which no command line should hold.
func joinText(from string, stdin io.Reader) (string, error) {
	path, isFile := strings.CutPrefix(from, "@")
	switch {
	case from == "" && os.Getenv(joinVariable) != "":
		return os.Getenv(joinVariable), nil
	case from == "-":
	case isFile:
		file, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read join string: %w", err)
		}
		defer file.Close()
		stdin = file
	default:
		return "", fmt.Errorf("--join %q: give - to read the join string from standard input, @FILE, or set %s", from, joinVariable)
	}
	b, err := io.ReadAll(io.LimitReader(stdin, maxJoin))
	if err != nil {
		return "", fmt.Errorf("read join string: %w", err)
	}
	return string(b), nil
}

type clientsResult struct {
	Clients       int             `json:"clients"`
	Tunnels       int             `json:"tunnels"`
	Cold          float64         `json:"cold_s"`
	Logins        int             `json:"logins"`
	LoginRate     float64         `json:"logins_per_s"`
	Registered    int             `json:"registrations"`
	RegisterRate  float64         `json:"registrations_per_s"`
	Refusals      map[string]int  `json:"refusals"`
	Failures      int             `json:"failures"`
	reconnections                 // in the same object
	Processes     []clientsCharge `json:"processes"`
}

type reconnections struct {
	Reconnects int    `json:"reconnects"`
	Resumed    int    `json:"resumed"`
	Reason     string `json:"first_failure,omitempty"`
	ProxyConns int    `json:"proxy_conns"`
	Streams    int    `json:"streams"`
}

type clientsCharge struct {
	Name        string  `json:"name"`
	Before      uint64  `json:"rss_bytes_before"`
	After       uint64  `json:"rss_bytes_after"`
	RSS         float64 `json:"rss_bytes_per_client"`
	Anonymous   float64 `json:"anon_bytes_per_client"`
	Descriptors int     `json:"descriptors"`
	CPU         float64 `json:"cpu_percent"`
	Machine     float64 `json:"cpu_percent_of_machine"`
}

func (r *result) addClients(o fleet.Options, got fleet.Result, m *meter.Memory) {
	cold, n := got.Cold.Seconds(), float64(o.Clients)
	c := &clientsResult{
		Clients: o.Clients, Tunnels: o.Clients * o.Tunnels, Cold: cold,
		Logins: got.Logins, LoginRate: n / cold,
		Registered: got.Registered, RegisterRate: float64(got.Registered) / cold,
		Refusals: got.Refusals, Failures: got.Failures,
		reconnections: reconnections{
			Reconnects: got.Logins - o.Clients, Resumed: got.Resumed, Reason: got.Reason,
			ProxyConns: got.ProxyConns, Streams: got.Streams,
		},
		Processes: []clientsCharge{},
	}
	charges := m.Charges() // the processes come first, in their order
	for i, g := range m.Growths() {
		percent := 100 * charges[i].CPU.Seconds() / o.Rest.Seconds()
		c.Processes = append(c.Processes, clientsCharge{
			Name: g.Name, Before: g.RSSBefore, After: uint64(int64(g.RSSBefore) + g.RSS),
			RSS: float64(g.RSS) / n, Anonymous: float64(g.Anonymous) / n, Descriptors: g.Descriptors,
			CPU: percent, Machine: percent / float64(runtime.NumCPU()),
		})
	}
	r.Clients = c
}

func (c *clientsResult) table(row func(format string, a ...any)) {
	row("cold start\t%.2f s\t%d clients, %d tunnels", c.Cold, c.Clients, c.Tunnels)
	row("logins\t%.0f /s\t%d, resumed %d, reconnects %d, failed attempts %d %s", c.LoginRate, c.Logins, c.Resumed, c.Reconnects, c.Failures, c.Reason)
	row("registrations\t%.0f /s\t%d", c.RegisterRate, c.Registered)
	row("refusals\t%d\t%v", sum(c.Refusals), c.Refusals)
	if c.ProxyConns > 0 {
		row("ProxyConns\t%d\t%d streams", c.ProxyConns, c.Streams)
	}
	for _, p := range c.Processes {
		row("memory of %s\t%.1f KiB a client\tof which anonymous %.1f KiB; %.1f MiB before, %.1f MiB after; %d descriptors more",
			p.Name, p.RSS/1024, p.Anonymous/1024, float64(p.Before)/(1<<20), float64(p.After)/(1<<20), p.Descriptors)
		row("load of %s\t%.2f %% of a CPU\t%.2f %% of the machine", p.Name, p.CPU, p.Machine)
	}
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}
