package logging

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// suppressedKey is the attribute that tells how many lines were held back.
const suppressedKey = "suppressed"

// RateLimited writes log lines at a bounded rate. The first event of a key is
// written at once; further ones are counted, and the first event after the
// interval carries that count as the attribute "suppressed". Counts that no
// later event would report are written by Flush.
//
// Keys are bounded too: while all are in use, events of new keys share one more,
// so that no peer can buy log lines by inventing addresses. At most maxKeys+1
// lines are written in one interval.
//
// It starts no goroutine and is safe for concurrent use.
type RateLimited struct {
	log      *slog.Logger
	interval time.Duration
	maxKeys  int

	mu       sync.Mutex
	keys     map[string]*limitedKey
	overflow limitedKey
	// nextSweep is the earliest instant at which an entry of keys can have
	// expired; looking for one before that would be wasted work.
	nextSweep time.Time
}

// limitedKey is the state of one key: when it last wrote a line, and what it has
// held back since.
type limitedKey struct {
	last       time.Time
	suppressed int
	level      slog.Level
	msg        string
}

// NewRateLimited returns a limiter that writes to log at most one line per key
// and interval, for at most maxKeys keys at a time (values below one count as
// one).
func NewRateLimited(log *slog.Logger, interval time.Duration, maxKeys int) *RateLimited {
	return &RateLimited{
		log:      log,
		interval: interval,
		maxKeys:  max(maxKeys, 1),
		keys:     make(map[string]*limitedKey),
	}
}

// Log writes the line or counts it. The key says which events share one budget;
// msg and args are those of slog, key and value in turn. Events below the level
// of the logger cost no budget.
func (r *RateLimited) Log(level slog.Level, key, msg string, args ...any) {
	ctx := context.Background()
	if !r.log.Enabled(ctx, level) {
		return
	}
	held, ended, ok := r.admit(level, key, msg)
	r.report(ended)
	if !ok {
		return
	}
	if held > 0 {
		args = append(slices.Clip(args), suppressedKey, held)
	}
	r.log.Log(ctx, level, msg, args...)
}

// Flush writes one line for every key that still holds events back, and forgets
// all keys. Call it at the end of a run, or now and then.
func (r *RateLimited) Flush() {
	r.mu.Lock()
	ended := make([]limitedKey, 0, len(r.keys)+1)
	for _, k := range r.keys {
		ended = append(ended, *k)
	}
	ended = append(ended, r.overflow)
	clear(r.keys)
	r.overflow = limitedKey{}
	r.mu.Unlock()
	r.report(ended)
}

// admit reports whether the event may be written and how many of its key were
// held back before it; ended are keys that were dropped to make room.
func (r *RateLimited) admit(level slog.Level, key, msg string) (held int, ended []limitedKey, ok bool) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.keys[key]
	if k == nil {
		if len(r.keys) >= r.maxKeys {
			ended = r.sweep(now)
		}
		if len(r.keys) < r.maxKeys {
			k = new(limitedKey)
			r.keys[key] = k
		} else {
			k = &r.overflow
		}
	}
	if !k.last.IsZero() && now.Sub(k.last) < r.interval {
		k.suppressed++
		k.level, k.msg = level, msg
		return 0, ended, false
	}
	held, k.suppressed = k.suppressed, 0
	k.last = now
	return held, ended, true
}

// sweep drops the keys whose interval has passed and returns them.
func (r *RateLimited) sweep(now time.Time) []limitedKey {
	if now.Before(r.nextSweep) {
		return nil
	}
	var ended []limitedKey
	r.nextSweep = now.Add(r.interval)
	for key, k := range r.keys {
		expires := k.last.Add(r.interval)
		if !expires.After(now) {
			ended = append(ended, *k)
			delete(r.keys, key)
		} else if expires.Before(r.nextSweep) {
			r.nextSweep = expires
		}
	}
	return ended
}

func (r *RateLimited) report(ended []limitedKey) {
	for _, k := range ended {
		if k.suppressed > 0 {
			r.log.Log(context.Background(), k.level, k.msg, suppressedKey, k.suppressed)
		}
	}
}
