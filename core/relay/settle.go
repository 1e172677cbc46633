package relay

import "time"

// last is what a conn knows of a stream that is over, and whose last frames the
// other side has not taken.
type last struct {
	unsent int   // bytes that had not left when last looked at
	moved  int64 // when that changed
}

// awaitLast gives the last frames of a stream time to leave: as long as
// something of them does, HalfClose counts anew.
func (l *loop) awaitLast(p *proxyConn) {
	if p.last == nil {
		p.last = &last{unsent: p.unsent(), moved: l.now}
		p.beginWait(l.now)
	}
	if p.timer.pos == 0 {
		l.armLast(p)
	}
}

// armLast sets the next look at a conn whose last frames wait.
func (l *loop) armLast(p *proxyConn) {
	set := l.settings()
	var when int64
	if set.HalfClose > 0 {
		when = p.last.moved + int64(set.HalfClose)
	}
	if set.Dead > 0 {
		if look := l.after(set.Dead / deadLooks); when == 0 || look < when {
			when = look
		}
	}
	if when > 0 {
		l.timers.set(&p.timer, p, when)
	}
}

// checkSettling closes a conn whose stream is over but for what the other side
// does not do: end it too, or take its last frames.
func (l *loop) checkSettling(p *proxyConn) {
	if p.last == nil {
		l.abortProxy(p, Closed)
		return
	}
	if left := p.unsent(); left != p.last.unsent {
		*p.last = last{unsent: left, moved: l.now}
	}
	switch patience := l.settings().HalfClose; {
	case l.dead(&p.socket, true):
		l.abortProxy(p, PeerDead)
	case patience > 0 && time.Duration(l.now-p.last.moved) >= patience:
		l.abortProxy(p, Closed)
	default:
		l.armLast(p)
	}
}

// unsent is how many bytes the other side has not acknowledged, in the kernel
// and here: a slow receiver empties megabytes of buffers before the conn takes
// more.
func (p *proxyConn) unsent() int {
	n := outqueue(p.fd)
	if p.out != nil {
		n += len(p.out.bytes())
	}
	if p.load != nil {
		n += p.load.held
	}
	return n
}
