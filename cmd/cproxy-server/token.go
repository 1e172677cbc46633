//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/cproxy/cproxy/cmd/internal/cli"
	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/rate"
)

func newToken() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Decide which clients may connect",
		Long: `A token lets one client in, or several that have names of their own. A running
server follows changes at once; revoking a token cuts its clients off.`,
	}
	cmd.AddCommand(newTokenAdd(), newTokenList(), newTokenRevoke())
	return cmd
}

// grantFlags are the limits of a new token.
type grantFlags struct {
	ports, bind      []string
	maxTunnels       int
	rateUp, rateDown string
}

func newTokenAdd() *cobra.Command {
	var s settings
	var g grantFlags
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a token and print its join string, the only time that it is shown",
		Args:  cli.Args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := s.load(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			grants, err := g.parse()
			if err != nil {
				return cli.Usage(err)
			}
			return addToken(cmd, cfg, args[0], grants)
		},
	}
	s.addFlags(cmd, map[string]string{"advertise": "advertise"})
	cmd.Flags().StringSliceVar(&g.ports, "ports", nil, "public ports that its tunnels may use, `RANGES` such as 443,20000-20100 (default: all of limits.ports)")
	cmd.Flags().StringSliceVar(&g.bind, "bind", nil, "public `ADDRESSES` on which its tunnels may listen (default: public_bind)")
	cmd.Flags().IntVar(&g.maxTunnels, "max-tunnels", 0, "how many tunnels it may have open (default: limits.max_tunnels_per_client)")
	cmd.Flags().StringVar(&g.rateUp, "rate-up", "", "bytes per second that the visitors of each of its tunnels may send together, a `RATE` such as 10MB or 512KiB (default: limits.rate_up)")
	cmd.Flags().StringVar(&g.rateDown, "rate-down", "", "bytes per second that the visitors of each of its tunnels may be sent together, a `RATE` such as 10MB or 512KiB (default: limits.rate_down)")
	return cmd
}

func (g grantFlags) parse() (identity.Grants, error) {
	grants := identity.Grants{MaxTunnels: g.maxTunnels}
	var problems []error
	if g.maxTunnels < 0 {
		problems = append(problems, errors.New("--max-tunnels must not be negative"))
	}
	for _, s := range g.ports {
		r, err := identity.ParsePortRange(s)
		if err != nil {
			problems = append(problems, fmt.Errorf("--ports: %w", err))
		}
		grants.Ports = append(grants.Ports, r)
	}
	for _, s := range g.bind {
		a, err := netip.ParseAddr(s)
		if err != nil {
			problems = append(problems, fmt.Errorf("--bind: %q is no address: use one like 203.0.113.7 or ::1", s))
		}
		grants.Bind = append(grants.Bind, a.Unmap())
	}
	for _, f := range []struct {
		flag, text string
		to         *rate.Bytes
	}{{"--rate-up", g.rateUp, &grants.RateUp}, {"--rate-down", g.rateDown, &grants.RateDown}} {
		if f.text == "" {
			continue
		}
		r, err := rate.Parse(f.text)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", f.flag, err))
		}
		*f.to = r
	}
	return grants, errors.Join(problems...)
}

func addToken(cmd *cobra.Command, cfg *config.Server, name string, grants identity.Grants) error {
	if err := identity.CheckName(name); err != nil {
		return cli.Usage(err)
	}
	address, err := advertised(cmd.Context(), cfg, cmd.ErrOrStderr())
	if err != nil {
		return cli.Usage(err)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return fmt.Errorf("make the state directory (run this as root, or set state_dir): %w", err)
	}
	id, err := identity.LoadOrCreateServer(cfg.StateDir)
	if err != nil {
		return fmt.Errorf("load the server's identity: %w", err)
	}
	pin := id.Pin()
	join := identity.Join{Name: name, Address: address, Pin: &pin}
	if _, err := identity.ParseJoin(join.Reveal()); err != nil {
		return cli.Usage(fmt.Errorf("advertise %q cannot stand in a join string: %w", address, err))
	}
	warnUseless(cfg, grants, cmd.ErrOrStderr())
	join.Secret, err = identity.AddToken(cfg.TokensFile, name, grants)
	if err != nil {
		return err // it says that it is about adding a token
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), join.Reveal())
	if err != nil {
		return fmt.Errorf("print the join string (revoke the token and add it again): %w", err)
	}
	_, _ = fmt.Fprintln(cmd.ErrOrStderr(), "Give this line to the client over a safe channel; there, `cproxy-client join - --config FILE` reads it.")
	return nil
}

// warnUseless says which grants the limits of the server leave nothing of.
func warnUseless(cfg *config.Server, grants identity.Grants, stderr io.Writer) {
	for _, g := range grants.Ports {
		inside := slices.ContainsFunc(cfg.Limits.Ports, func(l config.PortRange) bool { return l.First <= g.First && g.Last <= l.Last })
		overlaps := slices.ContainsFunc(cfg.Limits.Ports, func(l config.PortRange) bool { return l.First <= g.Last && g.First <= l.Last })
		if what := "no port"; !inside {
			if overlaps {
				what = "not every port"
			}
			_, _ = fmt.Fprintf(stderr, "warning: %s of --ports %s is within limits.ports of the server (%s); tunnels get only those that are in both: add them to limits.ports\n",
				what, g, list(cfg.Limits.Ports))
		}
	}
	for _, b := range grants.Bind {
		if !slices.ContainsFunc(cfg.PublicBind, func(a netip.Addr) bool {
			return a == b || a == netip.IPv6Unspecified() || a == netip.IPv4Unspecified() && b.Is4()
		}) {
			_, _ = fmt.Fprintf(stderr, "warning: --bind %s is not among public_bind of the server (%s); it is granted all the same: check that this is meant\n",
				b, list(cfg.PublicBind))
		}
	}
}

// advertised is the address that join strings carry.
func advertised(ctx context.Context, cfg *config.Server, stderr io.Writer) (string, error) {
	if cfg.Advertise != "" {
		return cfg.Advertise, nil
	}
	_, port, err := net.SplitHostPort(cfg.CtlListen)
	if err != nil || port == "0" {
		return "", fmt.Errorf("ctl_listen %q does not tell the port of join strings: set advertise, or use --advertise HOST:PORT", cfg.CtlListen)
	}
	address := net.JoinHostPort(hostName(ctx), port)
	_, _ = fmt.Fprintf(stderr, "warning: advertise is not set, so the join string names %s; if clients cannot reach it there, revoke the token, set advertise and add it again\n", address)
	return address, nil
}

// hostName is the fully qualified name of this host as far as DNS knows it.
func hostName(ctx context.Context) string {
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if full, err := net.DefaultResolver.LookupCNAME(ctx, name); err == nil && strings.Contains(full, ".") {
		return strings.TrimSuffix(full, ".")
	}
	return name
}

func newTokenList() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the tokens and what they grant; secrets are not stored",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := s.load(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			tokens, err := identity.LoadTokens(cfg.TokensFile)
			if err != nil {
				return fmt.Errorf("load tokens: %w", err)
			}
			return printTokens(cmd.OutOrStdout(), tokens)
		},
	}
	s.addFlags(cmd, nil)
	return cmd
}

func printTokens(w io.Writer, tokens identity.Tokens) error {
	if len(tokens) == 0 {
		_, err := fmt.Fprintln(w, "No tokens. Add one with: cproxy-server token add NAME")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tCREATED\tPORTS\tBIND\tMAX TUNNELS\tRATE UP\tRATE DOWN")
	for _, k := range tokens {
		created, most := "-", "-"
		if !k.Created.IsZero() {
			created = k.Created.UTC().Format(time.DateOnly)
		}
		if k.Grants.MaxTunnels > 0 {
			most = fmt.Sprint(k.Grants.MaxTunnels)
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.Name, created, list(k.Grants.Ports), list(k.Grants.Bind), most,
			limited(k.Grants.RateUp), limited(k.Grants.RateDown))
	}
	return t.Flush()
}

// limited prints a rate; a hyphen stands for none.
func limited(r rate.Bytes) string {
	if r == 0 {
		return "-"
	}
	return r.String()
}

// list joins values by commas; a hyphen stands for none.
func list[T fmt.Stringer](values []T) string {
	if len(values) == 0 {
		return "-"
	}
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.String()
	}
	return strings.Join(texts, ",")
}

func newTokenRevoke() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Remove a token; a running server cuts its clients off within a second",
		Args:  cli.Args("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := s.load(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if err := identity.RevokeToken(cfg.TokensFile, args[0]); err != nil {
				if errors.Is(err, identity.ErrNoSuchToken) {
					return err
				}
				return fmt.Errorf("revoke token: %w: the token %s is STILL VALID and its clients stay connected; "+
					"make room on the disk or correct what else is wrong, then revoke it again", err, args[0])
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "revoked %s\n", args[0])
			return err
		},
	}
	s.addFlags(cmd, nil)
	return cmd
}
