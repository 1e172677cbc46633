package relay

import (
	"time"

	"golang.org/x/sys/unix"
)

// A socket that blocks, and whose peer has acknowledged nothing for
// Settings.Dead, is dead. Keepalive does not run while bytes are queued, and TCP
// by itself gives up after a quarter of an hour (tcp_retries2, tcp(7)). What
// flows is never looked at: the first look comes when bytes have waited for a
// quarter of Dead.
//
// A receiver that stalls is not dead: it answers window probes. Their interval
// doubles up to two minutes, so the age of the last acknowledgement says nothing
// by itself. The first look therefore caps the interval at a quarter of Dead
// (Linux 6.15), and two tries must have gone unanswered, which any
// acknowledgement counts anew.

// deadLooks is how often in Settings.Dead a blocked socket is looked at, and how
// often a live peer is made to acknowledge.
const deadLooks = 4

// deadTries is how many retransmissions or window probes in a row must have gone
// unanswered.
const deadTries = 2

// longestTry is the longest interval of both (TCP_RTO_MAX, include/net/tcp.h).
const longestTry = 120 * time.Second

// shortestCap is the least that TCP_RTO_MAX_MS takes.
const shortestCap = time.Second

// blocked gives the sockets of a stream for which bytes wait, nil for one that
// takes what comes: the front, and the ProxyConn or back.
func (s *stream) blocked() (front, other *socket) {
	if s.front.state != rawJoined {
		return nil, nil // being dialled, which has a deadline of its own
	}
	if s.front.pending() || s.proxy != nil && s.proxy.in.blocked {
		front = &s.front.socket
	}
	switch {
	case s.proxy != nil && s.proxy.pending():
		other = &s.proxy.socket
	case s.back != nil && s.back.pending():
		other = &s.back.socket
	}
	return front, other
}

// watchBlocked arms the first look at a socket that a visit leaves blocked.
func (l *loop) watchBlocked(s *stream) {
	front, other := s.blocked()
	if front == nil && other == nil || l.settings().Dead <= 0 {
		return
	}
	first, second := front.beginWait(l.now), other.beginWait(l.now)
	if first || second {
		l.armStream(s)
	}
}

// beginWait notes when bytes began to wait for a socket; false when that is
// known already.
func (s *socket) beginWait(now int64) bool {
	if s == nil || s.waiting != 0 {
		return false
	}
	s.waiting = now
	return true
}

// nextLook is when a stream's blocked sockets are due to be looked at; 0 when
// none is.
func (l *loop) nextLook(s *stream) int64 {
	dead := l.settings().Dead
	waiting := s.front.waiting != 0 || s.proxy != nil && s.proxy.waiting != 0 || s.back != nil && s.back.waiting != 0
	if dead <= 0 || !waiting {
		return 0
	}
	return l.after(dead / deadLooks)
}

// endDead ends a stream one of whose sockets is dead.
func (l *loop) endDead(s *stream) bool {
	front, other := s.blocked()
	switch {
	case l.dead(&s.front.socket, front != nil), s.back != nil && l.dead(&s.back.socket, other != nil):
		l.endStream(s, PeerDead)
		return true
	case s.proxy != nil && l.dead(&s.proxy.socket, other != nil):
		l.abortProxy(s.proxy, PeerDead)
		return true
	}
	return false
}

// dead looks at one socket.
func (l *loop) dead(k *socket, blocked bool) bool {
	limit := l.settings().Dead
	if limit <= 0 || !blocked {
		k.waiting = 0
		return false
	}
	k.beginWait(l.now)
	capTries(k.fd, limit/deadLooks)
	waiting := time.Duration(l.now - k.waiting)
	return waiting >= limit && silenceOf(k.fd).reaches(limit)
}

// capTries bounds the interval of retransmissions and window probes, from then on
// and for good. TCP itself then gives up after two minutes and a half instead of a
// quarter of an hour (15 tries, tcp_retries2). Older kernels, and unix sockets,
// know no such option.
func capTries(fd int, most time.Duration) {
	most = min(max(most, shortestCap), longestTry)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS, int(most.Milliseconds()))
}

// silence is how long the peer of a socket has acknowledged nothing, and how
// often the kernel has tried to make it since.
type silence struct {
	length time.Duration
	tries  int
}

// silenceOf asks the kernel (TCP_INFO, tcp(7)). A unix socket has none: its peer
// cannot vanish unnoticed.
func silenceOf(fd int) silence {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return silence{}
	}
	return silence{
		length: time.Duration(info.Last_ack_recv) * time.Millisecond,
		tries:  int(max(info.Retransmits, info.Probes)),
	}
}

// reaches tells whether the peer is dead. Tries are not counted while the peer
// has taken its window back behind bytes under way (tcp_retransmit_timer,
// net/ipv4/tcp_timer.c); there only a silence that outlasts two of the longest
// intervals tells.
func (s silence) reaches(limit time.Duration) bool {
	return s.length >= limit && (s.tries >= deadTries || s.length >= limit+deadTries*longestTry)
}
