package client

import (
	"errors"
	"log/slog"
	"syscall"

	"github.com/cproxy/cproxy/core/relay"
)

// filesAdvice says what to do when this process may not open more files.
const filesAdvice = "raise the limit on open files of cproxy-client (LimitNOFILE), two for each visitor"

// dialAdvice says what to look at when ProxyConns do not open.
func dialAdvice(err error) string {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return filesAdvice
	case errors.Is(err, syscall.ECONNREFUSED):
		return "check that the server's proxy port (proxy_listen, or proxy_advertise) is the one it listens on, and that no firewall rejects it"
	default:
		return "check that firewalls let this host reach the server's proxy port, that nothing else answers there, " +
			"and that the server's log does not tell of too few open files"
	}
}

// streamEnded logs the end of a stream, aloud if the LocalServer is at fault.
func (o *owner) streamEnded(ev relay.StreamEnded) {
	name := o.tunnels.name(ev.Tunnel)
	o.log.Debug("stream ended", "tunnel", name, "source", ev.Source.String(), "up", ev.Up, "down", ev.Down,
		"duration", ev.Duration, "reason", ev.Reason.String())
	var local Tunnel
	if t := o.tunnels.byName[name]; t != nil {
		local = t.config
	}
	args := []any{"tunnel", name, "address", local.Address, "source", ev.Source.String(), "reason", ev.Reason.String()}
	key := name + " " + ev.Reason.String()
	var advice string
	switch ev.Reason {
	case relay.DialError:
		advice = localAdvice(ev.Err, local.Network == "unix")
		if ev.Err != nil {
			args = append(args, "error", ev.Err)
			key += " " + ev.Err.Error() // another cause is another line
		}
	case relay.NoDescriptors:
		advice = filesAdvice
	default:
		return
	}
	o.limited.Log(slog.LevelWarn, key, "visitor turned away: "+advice, args...)
}

// localAdvice says what to look at when a LocalServer cannot be reached.
func localAdvice(err error, unixSocket bool) string {
	switch {
	case errors.Is(err, relay.ErrNoAddress):
		return "the host name of the service has no address: check the name in `local` and this host's DNS"
	case errors.Is(err, syscall.ENOENT):
		return "the socket does not exist: check its path in `local`, and that the service runs"
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		if unixSocket {
			return "let the user of cproxy-client write to the socket, and enter its folders"
		}
		return "this host forbids the connection: check its firewall and the restrictions of the service unit"
	case errors.Is(err, syscall.ETIMEDOUT):
		return "the service does not answer in time: check its address, the firewalls before it, and its load"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no way leads to the service: check its address and this host's routes"
	case errors.Is(err, syscall.ECONNREFUSED) && unixSocket:
		return "nobody listens on the socket, it may be left over: check that the service runs and listens there"
	default:
		return "check that the service runs and listens there"
	}
}
