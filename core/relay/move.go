package relay

// seek finds conns for the PublicConns that wait: from the loop that has most
// idle ones, else by telling the control plane.
func (sh *shard) seek(l *loop) {
	for sh.waiting.len() > sh.asked {
		donor := sh.pool.richest(l.id)
		if donor < 0 {
			break
		}
		sh.asked++
		l.engine.loops[donor].inbox.post(wanted{sh.pool.id, l.id})
		if sh.asked >= int(sh.pool.cells[donor].idle.Load()) {
			break
		}
	}
	sh.lack(l)
}

// lack tells the control plane about PublicConns for which no loop was asked.
func (sh *shard) lack(l *loop) {
	if sh.waiting.len() > sh.asked && !sh.told {
		sh.told = true
		l.work.short = append(l.work.short, sh)
	}
	sh.arm(l)
}

// wanted asks a loop for an idle conn; moved brings one, none does not.
type wanted struct {
	pool PoolID
	loop int
}

type none struct{ pool PoolID }

func (m wanted) apply(l *loop) {
	asker := l.engine.loops[m.loop]
	hungry := func(sh *shard) bool { return sh.pool.cells[m.loop].waiting.Load() > 0 && sh.waiting.len() == 0 }
	if sh := l.shard(m.pool); sh != nil && hungry(sh) {
		if p := sh.claim(l); p != nil {
			l.detach(p)
			asker.inbox.post(moved{conn: p, pool: m.pool, donated: true})
			return
		}
	}
	asker.inbox.post(none{m.pool})
}

func (m none) apply(l *loop) {
	if sh := l.shard(m.pool); sh != nil {
		sh.asked = max(0, sh.asked-1)
		sh.lack(l) // not seek: whoever refused would be asked again at once
	}
}

// moved brings a conn from another loop, with everything it owns.
type moved struct {
	conn    *proxyConn
	pool    PoolID
	donated bool
}

func (m moved) apply(l *loop) {
	sh := l.shard(m.pool)
	if sh != nil && m.donated {
		sh.asked = max(0, sh.asked-1)
	}
	if sh == nil || !m.conn.register(l) {
		m.lost(l, Closed)
		if sh != nil {
			sh.seek(l)
		}
		return
	}
	if m.donated {
		m.conn.shard = sh
		sh.members[m.conn] = struct{}{}
		l.release(m.conn)
		return
	}
	l.join(m.conn, sh)
}

func (m moved) discard() { closefd(m.conn.fd) }

// lost closes a conn that joins no loop any more, and tells of it.
func (m moved) lost(l *loop, why Reason) {
	m.discard()
	if m.donated {
		l.tell(ConnClosed{Pool: m.pool, Reason: why})
	} else {
		l.tell(PrefaceFailed{Peer: m.conn.opening.peer, Reason: why})
	}
}

// detach takes a conn out of the loop; it stays open. Not for use while its
// frames are being fed.
func (l *loop) detach(p *proxyConn) {
	l.timers.stop(&p.timer)
	l.poll.forget(p.fd, p.slot)
	l.unqueueConn(p)
	p.canRead, p.hungUp, p.broken = false, false, false
	if p.shard != nil {
		delete(p.shard.members, p)
		p.shard = nil
	}
}
