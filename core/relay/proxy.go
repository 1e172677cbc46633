package relay

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cproxy/cproxy/core/frame"
)

var (
	errPoolClosed   = errors.New("the pool was closed")
	errReadyTimeout = errors.New("the proxy port did not answer in time")
	errReadyMAC     = errors.New("the proxy port does not know the session key: something between here and the server answers in its place")
)

type proxyState uint8

const (
	proxyPreface    proxyState = iota + 1 // server: the preface is awaited
	proxyVerify                           // server: the preface is being verified
	proxyConnecting                       // client
	proxyReady                            // client: READY is awaited
	proxyIdle
	proxyStream // carries a stream, or what is left of one: see settle
	proxyClosed
)

// proxyConn is a ProxyConn: a socket that carries frames.
type proxyConn struct {
	socket
	exchange
	state  proxyState
	queued bool
	membership
	stream  *stream  // nil too when this side's socket is gone but the stream not settled
	out     *buffer  // frames that the socket did not take
	in      inflow   // what came in and is not consumed
	opening *opening // until the conn is first idle
	last    *last    // while the end of a stream has not left
}

// membership is a conn's place in its pool.
type membership struct {
	shard   *shard
	idleAt  int32 // position among the idle conns of the shard, or -1
	missed  uint8 // heartbeats
	carried bool  // a stream
	retire  bool  // to be closed after its stream
}

// exchange is how far the current or last stream of a conn has got on the
// wire.
type exchange struct {
	seq     uint16
	txEnd   bool // FIN or RESET was sent
	rxEnd   bool // and received
	rxReset bool // RESET was received
}

// inflow is the receiving half of a conn between two visits.
type inflow struct {
	held    *buffer // bytes that wait for their destination, or for the rest of a frame
	blocked bool    // they wait for their destination
	bulk    bool    // the current or last DATA frame is one to splice
	need    uint32  // payload bytes of the current DATA frame still to come
	dropped uint32  // payload bytes of a reset stream dropped so far
}

// opening is what only the first moments of a conn need.
type opening struct {
	peer    netip.AddrPort
	ticket  uint64 // in the lobby
	ref     uint64
	got     int // bytes of preface
	preface [frame.PrefaceSize]byte
	ready   [frame.ReadySize]byte
}

func newProxyConn(fd int, state proxyState) *proxyConn {
	return &proxyConn{socket: socket{fd: fd}, exchange: exchange{txEnd: true, rxEnd: true}, membership: membership{idleAt: -1}, state: state}
}

func (p *proxyConn) register(l *loop) bool {
	slot, errno := l.poll.add(p.fd, p, connEvents)
	p.slot = slot
	return errno == 0
}

func (p *proxyConn) ready(l *loop, events uint32) {
	p.note(events)
	switch p.state {
	case proxyPreface:
		l.readPreface(p)
	case proxyConnecting:
		l.proxyConnected(p)
	case proxyStream, proxyIdle, proxyReady:
		l.visit(p, visitSlice)
	case proxyVerify, proxyClosed:
	}
}

// visit moves what can be moved on an opened conn.
func (l *loop) visit(p *proxyConn, slice int) {
	if p.stream != nil {
		l.visitStream(p.stream)
		return
	}
	if l.flushProxy(p) {
		l.settle(p)
	}
	if l.readProxy(p, slice) {
		l.queueConn(p)
	}
}

// queueConn lets a conn be read after the events of this turn.
func (l *loop) queueConn(p *proxyConn) {
	if !p.queued {
		p.queued = true
		l.work.queue = append(l.work.queue, p)
	}
}

func (l *loop) unqueueConn(p *proxyConn) {
	if p.queued {
		p.queued = false
		l.work.queue = slices.DeleteFunc(l.work.queue, func(q queued) bool { return q == queued(p) })
	}
}

func (p *proxyConn) run(l *loop) {
	p.queued = false
	if p.state != proxyClosed {
		l.visit(p, l.slice())
	}
}

func (p *proxyConn) expired(l *loop) {
	switch p.state {
	case proxyPreface, proxyVerify:
		l.closeProxy(p, PrefaceTimeout)
	case proxyConnecting, proxyReady:
		l.openFailed(p, errReadyTimeout)
	case proxyStream:
		l.checkSettling(p)
	case proxyIdle, proxyClosed:
	}
}

// join answers a verified preface with READY and makes the conn available.
func (l *loop) join(p *proxyConn, sh *shard) {
	var b [frame.HeaderSize + frame.ReadySize]byte
	frame.Header{Type: frame.Ready, Length: frame.ReadySize}.Put(b[:])
	copy(b[frame.HeaderSize:], p.opening.ready[:])
	l.timers.stop(&p.timer)
	p.shard = sh
	l.mem.openings.put(p.opening)
	p.opening = nil
	p.state = proxyIdle
	sh.members[p] = struct{}{}
	l.tell(ConnOpened{Pool: sh.pool.id})
	if l.writeProxy(p, b[:]) {
		l.release(p)
	}
}

// proxyConnected sends the preface of a client's new conn.
func (l *loop) proxyConnected(p *proxyConn) {
	if !p.canWrite {
		return
	}
	if errno := pendingError(p.fd); errno != 0 {
		l.openFailed(p, fmt.Errorf("dial proxy port %s: %w", p.opening.peer, errno))
		return
	}
	p.state = proxyReady
	if l.writeProxy(p, p.opening.preface[:]) {
		l.readProxy(p, visitSlice)
	}
}

// opened takes READY.
func (l *loop) opened(p *proxyConn, mac []byte) {
	o := p.opening
	if subtle.ConstantTimeCompare(mac, o.ready[:]) != 1 {
		l.openFailed(p, errReadyMAC)
		return
	}
	if p.shard.closed {
		l.openFailed(p, errPoolClosed)
		return
	}
	l.timers.stop(&p.timer)
	ref := p.opening.ref
	l.mem.openings.put(p.opening)
	p.opening = nil
	p.shard.members[p] = struct{}{}
	l.tell(ConnOpened{Pool: p.shard.pool.id, Ref: ref})
	l.release(p)
}

// openFailed ends a client's conn that never was ready.
func (l *loop) openFailed(p *proxyConn, err error) {
	l.tell(DialFailed{Pool: p.shard.pool.id, Ref: p.opening.ref, Err: err})
	p.opening = nil
	p.shard = nil
	l.closeProxy(p, Closed)
}

// sayClose closes a conn that carries no stream. The server says so first.
func (l *loop) sayClose(p *proxyConn) {
	if p.shard != nil && p.shard.pool.side == ServerSide && p.out == nil {
		var b [frame.HeaderSize]byte
		frame.Header{Type: frame.Close}.Put(b[:])
		_, _ = p.write(b[:])
	}
	l.closeProxy(p, Closed)
}

// sayRetire asks the server, once, to close a conn that this side does not
// want to keep. It tells whether the conn still lives.
func (l *loop) sayRetire(p *proxyConn) bool {
	if p.retire {
		return true
	}
	p.retire = true
	var b [frame.HeaderSize]byte
	frame.Header{Type: frame.Retire}.Put(b[:])
	return l.writeProxy(p, b[:])
}

// abortProxy closes a conn with RST. It overtakes what the other side has not
// taken yet, behind which a frame or FIN would come too late.
func (l *loop) abortProxy(p *proxyConn, why Reason) {
	if p.state != proxyClosed {
		_ = resetOnClose(p.fd)
		l.closeProxy(p, why)
	}
}

// closeProxy closes a conn for good; a stream that it carries ends with it.
func (l *loop) closeProxy(p *proxyConn, why Reason) {
	if p.state == proxyClosed {
		return
	}
	before := p.state
	p.state = proxyClosed
	l.timers.stop(&p.timer)
	l.poll.remove(p.slot)
	closefd(p.fd)
	l.free(p.out)
	l.free(p.in.held)
	p.out, p.in = nil, inflow{}
	l.dropLoad(&p.socket)
	switch before {
	case proxyPreface:
		l.lobby.remove(p.opening.ticket)
		l.tell(PrefaceFailed{Peer: p.opening.peer, Reason: why})
	case proxyVerify:
		l.tell(PrefaceFailed{Peer: p.opening.peer, Reason: why})
	case proxyConnecting, proxyReady:
		if p.opening != nil {
			l.tell(DialFailed{Pool: p.shard.pool.id, Ref: p.opening.ref, Err: fmt.Errorf("open proxy connection: %s", why)})
		}
	case proxyIdle, proxyStream:
		p.shard.unidle(l, p)
		delete(p.shard.members, p)
		p.shard.forget(l)
		l.tell(ConnClosed{Pool: p.shard.pool.id, Reason: why})
		if p.stream != nil {
			l.endStream(p.stream, why)
		}
	case proxyClosed:
	}
}
