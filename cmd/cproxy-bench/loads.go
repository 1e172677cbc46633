//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/load"
	"github.com/cproxy/cproxy/cmd/cproxy-bench/internal/meter"
	"github.com/cproxy/cproxy/cmd/internal/cli"
)

func newBulk() *cobra.Command {
	var o options
	var direction string
	bulk := load.BulkOptions{}
	cmd := &cobra.Command{
		Use:   "bulk",
		Short: "Move bytes as fast as possible: GB/s, CPU seconds per GB",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			bulk.Down, bulk.Up, err = parseDirection(direction)
			if err := errors.Join(err, atLeast("--flows", bulk.Flows, 1), positive("--duration", o.duration)); err != nil {
				return cli.Usage(err)
			}
			return o.run(cmd, func(ctx context.Context, b bench) (*result, error) {
				bulk.Target, bulk.Threads, bulk.Duration = b.target, b.threads, b.duration
				m := meter.New(b.processes)
				got, err := load.Bulk(ctx, bulk, m)
				if err != nil {
					return nil, err
				}
				r := &result{Load: "bulk"}
				r.addBulk(got)
				r.charge(m, perGB(got.Down+got.Up))
				return r, nil
			})
		},
	}
	o.addFlags(cmd)
	o.addDuration(cmd)
	cmd.Flags().IntVar(&bulk.Flows, "flows", 1, "how many connections at once")
	cmd.Flags().StringVar(&direction, "direction", "down", "`down` (from the serving side), up, or both at once")
	cmd.Flags().Uint64Var(&bulk.Bytes, "bytes", 0, "instead of --duration, let each flow move so many bytes in each direction")
	cmd.MarkFlagsMutuallyExclusive("bytes", "duration")
	return cmd
}

func parseDirection(s string) (down, up bool, err error) {
	switch s {
	case "down":
		return true, false, nil
	case "up":
		return false, true, nil
	case "both":
		return true, true, nil
	default:
		return false, false, fmt.Errorf("--direction %q: use down, up or both", s)
	}
}

// addPing declares the flags of ping-pongs.
func addPing(cmd *cobra.Command, p *load.PingPongOptions, conns int) {
	cmd.Flags().IntVar(&p.Conns, "conns", conns, "how many connections, each with one message under way")
	cmd.Flags().IntVar(&p.Size, "size", 64, "`BYTES` of a message")
}

// checkPing checks them and the duration.
func checkPing(p load.PingPongOptions, o options) error {
	return errors.Join(atLeast("--conns", p.Conns, 1), atLeast("--size", p.Size, 1), positive("--duration", o.duration))
}

func newPingPong() *cobra.Command {
	var o options
	var ping load.PingPongOptions
	cmd := &cobra.Command{
		Use:   "pingpong",
		Short: "Exchange small messages: round trips, latencies, CPU per round trip",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkPing(ping, o); err != nil {
				return cli.Usage(err)
			}
			return o.run(cmd, func(ctx context.Context, b bench) (*result, error) {
				ping.Target, ping.Threads, ping.Duration = b.target, b.threads, b.duration
				m := meter.New(b.processes)
				got, err := load.PingPong(ctx, ping, m)
				if err != nil {
					return nil, err
				}
				r := &result{Load: "pingpong"}
				r.addPingPong(got)
				r.charge(m, per("round trip", got.Trips))
				return r, nil
			})
		},
	}
	o.addFlags(cmd)
	o.addDuration(cmd)
	addPing(cmd, &ping, 64)
	return cmd
}

func newMix() *cobra.Command {
	var o options
	var mix load.MixOptions
	var direction string
	cmd := &cobra.Command{
		Use:   "mix",
		Short: "Exchange small messages beside bulk flows: what these do to latencies",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			mix.Bulk.Down, mix.Bulk.Up, err = parseDirection(direction)
			if err := errors.Join(err, checkPing(mix.Ping, o), atLeast("--bulk", mix.Bulk.Flows, 1)); err != nil {
				return cli.Usage(err)
			}
			return o.run(cmd, func(ctx context.Context, b bench) (*result, error) {
				mix.Ping.Target, mix.Ping.Duration = b.target, b.duration
				m := meter.New(b.processes)
				got, err := load.Mix(ctx, mix, m)
				if err != nil {
					return nil, err
				}
				r := &result{Load: "mix"}
				r.addBulk(got.Bulk)
				r.addPingPong(got.Ping)
				r.charge(m, unit{})
				return r, nil
			})
		},
	}
	o.addFlags(cmd)
	o.addDuration(cmd)
	addPing(cmd, &mix.Ping, 16)
	cmd.Flags().IntVar(&mix.Bulk.Flows, "bulk", 4, "how many bulk flows")
	cmd.Flags().StringVar(&direction, "direction", "down", "of the bulk flows: `down`, up or both")
	_ = cmd.Flags().MarkHidden("threads") // one thread for each of the two loads
	return cmd
}

func newChurn() *cobra.Command {
	var o options
	var churn load.ChurnOptions
	cmd := &cobra.Command{
		Use:   "churn",
		Short: "Open one short connection after the other: connections per second, time to the first byte",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(atLeast("--in-flight", churn.InFlight, 1), positive("--duration", o.duration)); err != nil {
				return cli.Usage(err)
			}
			return o.run(cmd, func(ctx context.Context, b bench) (*result, error) {
				churn.Target, churn.Threads, churn.Duration = b.target, b.threads, b.duration
				m := meter.New(b.processes)
				got, err := load.Churn(ctx, churn, m)
				if err != nil {
					return nil, err
				}
				r := &result{Load: "churn"}
				r.addChurn(got)
				r.charge(m, per("connection", got.Conns))
				return r, nil
			})
		},
	}
	o.addFlags(cmd)
	o.addDuration(cmd)
	cmd.Flags().IntVar(&churn.InFlight, "in-flight", 64, "how many connections at any time")
	return cmd
}

func newIdle() *cobra.Command {
	var o options
	idle := load.IdleOptions{Size: 64}
	cmd := &cobra.Command{
		Use:   "idle",
		Short: "Open connections that rest: memory, descriptors and pipes for each, CPU in silence",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(atLeast("--conns", idle.Conns, 1), positive("--settle", idle.Settle), positive("--rest", idle.Rest)); err != nil {
				return cli.Usage(err)
			}
			return o.run(cmd, func(ctx context.Context, b bench) (*result, error) {
				idle.Target, idle.Threads = b.target, b.threads
				m := meter.NewMemory(b.processes)
				if err := load.Idle(ctx, idle, m); err != nil {
					return nil, err
				}
				r := &result{Load: "idle", Seconds: idle.Rest.Seconds()}
				r.addIdle(idle.Conns, m)
				r.charge(m.Meter, unit{})
				return r, nil
			})
		},
	}
	o.addFlags(cmd)
	cmd.Flags().IntVar(&idle.Conns, "conns", 1000, "how many connections")
	cmd.Flags().DurationVar(&idle.Settle, "settle", 1500*time.Millisecond, "how long to wait after the last exchange")
	cmd.Flags().DurationVar(&idle.Rest, "rest", time.Second, "how long to watch the CPU time after that")
	return cmd
}
