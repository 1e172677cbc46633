package client

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/cproxy/cproxy/core/frame"
)

// Check logs in to each server once, opens one ProxyConn there, and leaves again,
// registering nothing. Its error joins those of all servers that did not accept,
// and each names the port that is at fault; [IsRefused] tells whether trying again
// is useless. A server takes a client of the same token and name for its
// successor, so a check beside a running client needs another name.
func (c *Client) Check(ctx context.Context) error {
	var failed []error
	for _, server := range c.options.Reloadable.Servers {
		if err := c.check(ctx, server); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func (c *Client) check(ctx context.Context, server string) error {
	a := c.connect(ctx, login{server: server, access: c.options.Reloadable, epoch: 1})
	if a.err != nil {
		if IsRefused(a.err) {
			return a.err
		}
		return fmt.Errorf("check the control port: %w", a.err)
	}
	defer a.conn.close()
	probed := c.probe(ctx, a)
	a.conn.setWriteDeadline(c.timing.farewell)
	err := a.conn.writer.WriteClientMessage(done().ClientMessage())
	if probed != nil {
		return fmt.Errorf("check the proxy port of %s (its control port is well): %w", server, probed)
	}
	if err != nil {
		return fmt.Errorf("take leave of %s: %w", server, err)
	}
	return nil
}

var errNotReady = errors.New("what answers is not this cproxy-server")

// probe opens a ProxyConn of a new session and closes it when the server has
// proved that it knows the session.
func (c *Client) probe(ctx context.Context, a attempt) error {
	ctx, cancel := context.WithTimeout(ctx, c.options.Reloadable.Settings.Connect)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.proxy.String())
	if err != nil {
		return fmt.Errorf("connect to %s: %w: %s", a.proxy, err, probeAdvice(err, a.proxy))
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	key := frame.NewKey(a.welcome.GetSessionKey())
	preface := frame.Preface{Mode: frame.Plain, ControlID: a.welcome.GetControlId(), Epoch: a.welcome.GetEpoch(), ProxyID: 1}
	if err := introduce(conn, preface, key); err != nil {
		return fmt.Errorf("open a data connection to %s: %w: %s", a.proxy, err, probeAdvice(err, a.proxy))
	}
	return nil
}

// introduce sends a preface and waits for the READY that answers it.
func introduce(conn net.Conn, p frame.Preface, key *frame.Key) error {
	sealed := p.Seal(key, frame.Exporter{})
	if _, err := conn.Write(sealed[:]); err != nil {
		return err
	}
	var answer [frame.HeaderSize + frame.ReadySize]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	header, err := frame.ParseHeader(answer[:frame.HeaderSize])
	if err != nil || header.Type != frame.Ready {
		return errNotReady
	}
	want := p.Ready(key, frame.Exporter{})
	if subtle.ConstantTimeCompare(answer[frame.HeaderSize:], want[:]) != 1 {
		return errNotReady
	}
	return nil
}

// probeAdvice says what to do when no ProxyConn can be opened.
func probeAdvice(err error, at netip.AddrPort) string {
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return filesAdvice
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens there: check proxy_listen of the server, and proxy_advertise if it is behind NAT or in a container; "+
			"or a firewall rejects TCP port %d", at.Port())
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), isNet && timeout.Timeout():
		return fmt.Sprintf("nothing answered in time: open TCP port %d in the server's firewall for incoming connections, and in this host's for outgoing ones", at.Port())
	case errors.Is(err, errNotReady), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return "check that the port is that of proxy_listen, that nothing on the way changes the connection, and the server's log"
	default:
		return fmt.Sprintf("check the network between here and TCP port %d of the server", at.Port())
	}
}
