package client

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cproxy/cproxy/core/wire"
)

// round is one pass over the servers: each is tried once, one right after the
// other, from the one of the last session on and around the list. There is a
// delay between two rounds only, so that failing over is quick.
type round struct {
	server   string   // being tried, or connected to
	left     []string // to be tried after it
	refusals []error  // for good, of this round
	hopeful  bool     // a server may accept later, as far as is known
	// asked says until when a server wants to be left alone.
	asked map[string]time.Time
}

// begin starts a round at first, or at the top of the list if that is not in
// it. Servers that want to be left alone are left out, unless all do.
func (r *round) begin(servers []string, first string, now time.Time) {
	at := max(0, slices.Index(servers, first))
	r.left = slices.Concat(servers[at:], servers[:at])
	r.refusals, r.hopeful = nil, false
	for server, until := range r.asked {
		if !until.After(now) || !slices.Contains(servers, server) {
			delete(r.asked, server)
		}
	}
	if len(r.asked) < len(servers) {
		r.left = slices.DeleteFunc(r.left, func(server string) bool {
			_, asked := r.asked[server]
			r.hopeful = r.hopeful || asked
			return asked
		})
	}
	r.next()
}

// next goes on to the next server, if there is one.
func (r *round) next() bool {
	if len(r.left) == 0 {
		return false
	}
	r.server, r.left = r.left[0], r.left[1:]
	return true
}

// failed notes why the server did not serve.
func (r *round) failed(err error, now time.Time) {
	if IsRefused(err) {
		r.refusals = append(r.refusals, err)
	} else {
		r.hopeful = true
	}
	r.note(err, now)
	if isSuperseded(err) {
		// The successor has the name there, and its work. Elsewhere the two would
		// share that without anybody noticing.
		r.left = nil
	}
}

// note remembers until when the server wants to be left alone. One at which the
// client was superseded is not passed over for another.
func (r *round) note(err error, now time.Time) {
	refused, ok := errors.AsType[*wire.RefusedError](err)
	if !ok || refused.RetryAfter <= 0 || isSuperseded(err) {
		return
	}
	if r.asked == nil {
		r.asked = make(map[string]time.Time)
	}
	r.asked[r.server] = now.Add(refused.RetryAfter)
}

func isSuperseded(err error) bool {
	return wire.RefusalOf(err).GetCode() == wire.CodeSuperseded
}

// wait is how long it takes until the first of the servers may be asked again.
func (r *round) wait(servers []string, now time.Time) time.Duration {
	wait := time.Duration(-1)
	for _, server := range servers {
		until := max(0, r.asked[server].Sub(now))
		if wait < 0 || until < wait {
			wait = until
		}
	}
	return max(0, wait)
}

// verdict is the error that ends a client which no server will ever accept, nil
// as long as one may.
func (r *round) verdict() error {
	if r.hopeful || len(r.refusals) == 0 {
		return nil
	}
	all := r.refusals[0]
	for _, err := range r.refusals[1:] {
		all = fmt.Errorf("%w; %w", all, err)
	}
	if len(r.refusals) > 1 {
		return fmt.Errorf("every server refuses this client: %w", all)
	}
	return all
}
