package relay

import "github.com/cproxy/cproxy/core/frame"

// handle acts on one frame; false when the protocol does not allow it here.
func (l *loop) handle(p *proxyConn, h frame.Header, payload []byte) bool {
	switch h.Type {
	case frame.Data, frame.Fin:
		if p.state != proxyStream || p.rxEnd || h.Seq != p.seq {
			return false
		}
		if h.Type == frame.Data {
			p.in.need = h.Length
			p.in.bulk = h.Length > loopBuffer
		} else {
			l.receiveFin(p)
		}
		return true
	case frame.Reset:
		return l.receiveReset(p, h.Seq, payload)
	default:
		if p.shard.pool.side == ServerSide {
			return l.fromClient(p, h)
		}
		return l.fromServer(p, h, payload)
	}
}

// fromClient acts on the frames that only a client may send.
func (l *loop) fromClient(p *proxyConn, h frame.Header) bool {
	switch h.Type {
	case frame.Pong:
		p.missed = 0
		return true
	case frame.Retire:
		return l.receiveRetire(p)
	default:
		return false
	}
}

// fromServer acts on the frames that only the server may send.
func (l *loop) fromServer(p *proxyConn, h frame.Header, payload []byte) bool {
	if h.Type == frame.Ready {
		if p.state == proxyReady {
			l.opened(p, payload)
			return true
		}
		return false
	}
	if p.state != proxyIdle {
		return false
	}
	switch h.Type {
	case frame.Ping:
		l.receivePing(p, h.Seq)
		return true
	case frame.Start:
		return l.receiveStart(p, h.Seq, payload)
	case frame.Close:
		l.closeProxy(p, Closed)
		return true
	default:
		return false
	}
}

// receiveFin ends the direction towards this side.
func (l *loop) receiveFin(p *proxyConn) {
	if p.stream != nil {
		l.receiveEnd(p.stream)
		return
	}
	p.rxEnd = true
	l.settle(p)
}

// receiveReset ends the stream. One that names an earlier stream crossed the
// end of it and means nothing any more.
func (l *loop) receiveReset(p *proxyConn, seq uint16, payload []byte) bool {
	code, err := frame.ParseReset(payload)
	if err != nil || p.state != proxyStream && p.state != proxyIdle {
		return false
	}
	if p.state == proxyIdle || seq != p.seq {
		return true
	}
	p.rxEnd, p.rxReset = true, true
	if p.stream != nil {
		l.endStream(p.stream, remoteReason(code))
	} else {
		l.settle(p)
	}
	return true
}

// receiveRetire closes a conn that the client wants to close, now or after
// the stream that was started meanwhile.
func (l *loop) receiveRetire(p *proxyConn) bool {
	p.retire = true
	if p.state == proxyIdle {
		l.sayClose(p)
	}
	return true
}

func (l *loop) receivePing(p *proxyConn, seq uint16) {
	p.missed = 0
	if p.pending() {
		return // whoever does not read needs no more answers
	}
	var b [frame.HeaderSize]byte
	frame.Header{Type: frame.Pong, Seq: seq}.Put(b[:])
	l.writeProxy(p, b[:])
}

// receiveStart begins a stream on the client: its target is dialled, and what
// follows START waits for it.
func (l *loop) receiveStart(p *proxyConn, seq uint16, payload []byte) bool {
	st, err := frame.ParseStart(payload)
	if err != nil {
		return false
	}
	p.shard.unidle(l, p)
	t, ok := p.shard.targets[st.Tunnel]
	if !ok {
		p.begin(nil, seq)
		l.resetProxy(p, UnknownTunnel)
		return true
	}
	c := &rawConn{socket: socket{fd: -1}, state: rawConnecting, tunnel: t.tunnel, source: newOrigin(st.Source)}
	s := &stream{front: c, proxy: p, tunnel: t.tunnel}
	p.begin(s, seq)
	l.beginStream(s)
	l.dialTarget(c, t.Target, st.Destination)
	return true
}
