package server

import (
	"net/netip"
	"sync"
	"time"
)

// An address may fail to log in so often at once, and once more every
// failureEvery. Successes cost nothing, so any number of clients may share an
// address.
const (
	failureBurst = 10
	failureEvery = 6 * time.Second
	maxAddresses = 4096
)

// failures counts failed logins by address, an IPv6 one by its /64. It is
// bounded: when full, the oldest entries make room. Safe for concurrent use.
type failures struct {
	mu sync.Mutex
	// until is when an address has paid for all its failures.
	until map[netip.Prefix]time.Time
}

func newFailures() *failures { return &failures{until: make(map[netip.Prefix]time.Time)} }

func (f *failures) allow(a netip.Addr, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.until[network(a)].Sub(now) <= (failureBurst-1)*failureEvery
}

func (f *failures) note(a netip.Addr, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.until) >= maxAddresses {
		f.trim(now)
	}
	n := network(a)
	f.until[n] = latest(f.until[n], now).Add(failureEvery)
}

// forgive takes one note back.
func (f *failures) forgive(a netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := network(a); !f.until[n].IsZero() { // else it was trimmed meanwhile
		f.until[n] = f.until[n].Add(-failureEvery)
	}
}

// trim drops what is paid for, or else everything: attackers from so many
// networks are not held up by this anyway.
func (f *failures) trim(now time.Time) {
	for n, t := range f.until {
		if !t.After(now) {
			delete(f.until, n)
		}
	}
	if len(f.until) >= maxAddresses {
		clear(f.until)
	}
}

func network(a netip.Addr) netip.Prefix {
	a = a.Unmap()
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits) // fails only for lengths that an address does not have
	return p
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
