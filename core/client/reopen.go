package client

import (
	"slices"
	"strings"
)

// reopening counts what becomes of the tunnels after a new session took the place
// of a lost one.
type reopening struct {
	waiting       map[string]bool // no answer yet; nil: nothing is counted
	open, refused int
	moved         int // of those open, with another address than before
}

// reopen begins to count.
func (o *owner) reopen() {
	r := reopening{waiting: make(map[string]bool, len(o.tunnels.byName))}
	for name := range o.tunnels.byName {
		r.waiting[name] = true
	}
	o.tunnels.reopening = r
}

// reopened counts a tunnel that is open again, at the address it had (nil before) or at
// another, and tells of the latter.
func (o *owner) reopened(name string, before, now []string) {
	r := &o.tunnels.reopening
	if !r.waiting[name] {
		return
	}
	r.open++
	if len(before) > 0 && !slices.Equal(before, now) {
		r.moved++
		o.log.Warn("a tunnel has another public address than before: tell its visitors, or give it a remote_port of its own",
			"tunnel", name, "address", strings.Join(now, " "), "former", strings.Join(before, " "))
	}
	o.answered(name)
}

// reopenRefused counts a tunnel that the server refuses.
func (o *owner) reopenRefused(name string) {
	if r := &o.tunnels.reopening; r.waiting[name] {
		r.refused++
		o.answered(name)
	}
}

// answered ends the counting with its result once nothing is waited for.
func (o *owner) answered(name string) {
	r := &o.tunnels.reopening
	if !r.waiting[name] {
		return
	}
	delete(r.waiting, name)
	if len(r.waiting) > 0 {
		return
	}
	o.log.Info("tunnels are open again", "control", o.session.control, "open", r.open, "refused", r.refused, "moved", r.moved)
	*r = reopening{}
}
