package relay

import (
	"net/netip"

	"github.com/cproxy/cproxy/core/frame"
)

// maxLobby bounds the conns of one loop that have not sent a preface; the
// oldest makes room, so that silent peers cannot keep others out.
const maxLobby = 4096

// awaitPreface begins with a conn of the proxy port.
func (l *loop) awaitPreface(fd int, peer netip.AddrPort) {
	if l.lobby.len() >= maxLobby {
		l.closeProxy(l.lobby.items[0], PrefaceTimeout)
	}
	orderlyClose(fd)
	p := newProxyConn(fd, proxyPreface)
	p.canWrite = true
	p.opening = l.mem.openings.take()
	p.opening.peer = peer
	if !p.register(l) {
		closefd(fd)
		l.tell(PrefaceFailed{Peer: p.opening.peer, Reason: NoDescriptors})
		return
	}
	p.opening.ticket = l.lobby.push(p)
	l.timers.set(&p.timer, p, l.after(l.settings().Preface))
}

// readPreface collects the preface and refuses foreign bytes at the first.
func (l *loop) readPreface(p *proxyConn) {
	o := p.opening
	for p.canRead && o.got < frame.PrefaceSize {
		n, eof, failed := p.read(o.preface[o.got:])
		if eof || failed {
			l.closeProxy(p, BadPreface)
			return
		}
		o.got += n
		if k := min(o.got, len(frame.Magic)); string(o.preface[:k]) != frame.Magic[:k] {
			why := BadPreface
			if o.got > 0 && o.preface[0] == frame.TLSHandshake {
				why = TLSPreface
			}
			l.closeProxy(p, why)
			return
		}
	}
	if o.got == frame.PrefaceSize {
		l.lobby.remove(o.ticket)
		p.state = proxyVerify
		p.canRead = true // the read filled its buffer: there may be more
		l.tell(PrefaceReceived{Conn: connID(l, p.slot), Peer: o.peer, Preface: o.preface})
	}
}

// park and closeConn answer PrefaceReceived.
type park struct{ command Park }

type closeConn struct{ id ConnID }

// verified finds the conn that a control-plane answer is about.
func (l *loop) verified(id ConnID) *proxyConn {
	n, gen := uint32(id>>32)&0xffffff, uint32(id)
	if n >= l.poll.used || l.poll.slot(n).gen != gen {
		return nil
	}
	if p, ok := l.poll.slot(n).h.(*proxyConn); ok && p.state == proxyVerify {
		return p
	}
	return nil
}

func (m closeConn) apply(l *loop) {
	if p := l.verified(m.id); p != nil {
		l.closeProxy(p, BadPreface)
	}
}

func (m park) apply(l *loop) {
	p := l.verified(m.command.Conn)
	if p == nil {
		return
	}
	sh := l.shard(m.command.Pool)
	if sh == nil {
		l.closeProxy(p, Closed)
		return
	}
	p.opening.ready = m.command.Ready
	to := l
	if sh.waiting.len() == 0 {
		to = l.engine.loops[sh.pool.neediest()]
	}
	if to == l {
		l.join(p, sh)
		return
	}
	l.detach(p)
	to.inbox.post(moved{conn: p, pool: m.command.Pool})
}
