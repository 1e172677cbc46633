package identity

import (
	"context"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settleTime is how long a file must have been left alone before it is read:
	// programs that write in place would otherwise be caught half way, with
	// the tokens missing that they have not written yet.
	settleTime = 50 * time.Millisecond
	// settleLimit bounds the wait in a directory that never comes to rest.
	settleLimit = 300 * time.Millisecond
	// pollInterval is how often the file is read while it cannot be watched.
	pollInterval = 500 * time.Millisecond
)

// Run re-reads the tokens file after every change until ctx ends, and then
// returns nil. Call Load before it: Run's own first read comes a moment later. It watches the directory, so files that are renamed into place or
// do not exist yet are seen. Where that is impossible (no directory, the user's
// inotify limit) it says so once and reads the file twice a second, until
// watching works. A file that is refused leaves the tokens as they were and is
// logged once per change. Call Run once; it ends all it started before it returns.
func (p *Provider) Run(ctx context.Context) error {
	w := tokenWatch{provider: p}
	defer w.close()
	w.attach()
	w.arm() // for changes since Load; not at once, since one may be under way
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.events:
			// Which file it is about does not matter: reading an unchanged one
			// changes nothing.
			w.noted(ok)
		case err, ok := <-w.errors:
			if ok { // events may have been dropped: the file is read in their place
				p.log.Warn("watching the tokens file stumbled, reading it again", "path", p.path, "error", err)
			}
			w.noted(ok)
		case <-w.settled:
			w.settled, w.deadline = nil, time.Time{}
			w.attach()
			p.reload()
		case <-w.poll:
			w.attach()
			w.arm()
		}
	}
}

// tokenWatch is what Run knows about its directory watch. A nil channel is a
// source that has nothing to say now.
type tokenWatch struct {
	provider *Provider
	watcher  *fsnotify.Watcher
	events   chan fsnotify.Event
	errors   chan error
	settled  <-chan time.Time // armed between a change and the read it causes
	poll     <-chan time.Time // armed while watching is impossible
	deadline time.Time        // when an armed read happens at the latest
	warned   bool
}

// attach makes sure that the directories which can change the file are watched:
// its own and, behind symbolic links, that of the file they lead to. It is
// cheap when they are.
func (w *tokenWatch) attach() {
	err := w.watch()
	if err == nil {
		w.poll, w.warned = nil, false
		return
	}
	if !w.warned {
		w.warned = true
		w.provider.log.Warn("cannot watch the directory of the tokens file, reading the file twice a second",
			"path", w.provider.path, "error", err)
	}
	w.poll = time.After(pollInterval)
}

func (w *tokenWatch) watch() error {
	if w.watcher == nil {
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			return err
		}
		w.watcher, w.events, w.errors = watcher, watcher.Events, watcher.Errors
	}
	if err := w.watcher.Add(filepath.Dir(w.provider.path)); err != nil {
		return err
	}
	if target, err := filepath.EvalSymlinks(w.provider.path); err == nil {
		return w.watcher.Add(filepath.Dir(target))
	}
	return nil // not there yet: it will appear in the directory
}

// noted arranges for the file to be read; without a living watcher, which ends
// by itself only if the kernel takes its descriptor away, for a new one too.
func (w *tokenWatch) noted(alive bool) {
	if !alive {
		w.watcher, w.events, w.errors = nil, nil, nil
	}
	w.arm()
}

// arm postpones the read until the directory has been quiet for settleTime, but
// not beyond settleLimit after the first change.
func (w *tokenWatch) arm() {
	now := time.Now()
	if w.deadline.IsZero() {
		w.deadline = now.Add(settleLimit)
	}
	w.settled = time.After(min(settleTime, w.deadline.Sub(now)))
}

func (w *tokenWatch) close() {
	if w.watcher != nil {
		_ = w.watcher.Close() // waits for its goroutine; there is nothing else to lose
	}
}
