package client

import (
	"net/netip"
	"time"

	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/relay"
	"github.com/cproxy/cproxy/core/wire"
)

// minDials is how many ProxyConns may be opened at a time at least: also a
// client that keeps none idle has visitors to serve.
const minDials = 64

// maxWanted bounds the ProxyConns still to open. The server asks again for what
// is forgotten here.
const maxWanted = 4096

// session is what the last Welcome gave. It outlives its connection.
type session struct {
	server    string // that gave it
	control   uint64
	epoch     uint64
	key       []byte
	resumable bool // the server may still know it
	proxy     netip.AddrPort
	proxyID   uint64 // of the last ProxyConn of this epoch
	heartbeat time.Duration
}

// forget gives up the key; ProxyConns that are open do not need it any more.
func (s *session) forget() {
	s.resumable = false
	clear(s.key)
	s.key = nil
}

// welcome takes the session of a new connection, and tells whether it goes on
// with the pool of the one before. Else that pool closes; its streams end by
// themselves.
func (o *owner) welcome(a attempt) (resumed bool) {
	w, old := a.welcome, o.session
	s := &session{
		server: a.server, control: w.GetControlId(), epoch: w.GetEpoch(), key: w.GetSessionKey(),
		resumable: true, proxy: a.proxy, heartbeat: w.Heartbeat(),
	}
	if old != nil {
		resumed = w.GetResumed() && old.control == s.control && old.server == s.server
		if resumed && old.epoch == s.epoch {
			s.proxyID = old.proxyID // the server remembers those that it saw
		}
		old.forget()
	}
	o.session = s
	if resumed {
		return true
	}
	if old != nil {
		o.client.engine.Submit(relay.ClosePool{Pool: o.pool.id})
	}
	o.pool = pool{id: o.pool.id + 1, most: max(o.config.PoolMax, minDials)}
	o.openPool(s.heartbeat)
	return false
}

// openPool opens the pool of the session, or tells the engine of an open one
// how many idle ProxyConns are wanted now. The server bounds them too.
func (o *owner) openPool(heartbeat time.Duration) {
	o.client.engine.Submit(relay.OpenPool{
		Pool: o.pool.id, Side: relay.ClientSide, MaxIdle: o.config.PoolMax, Heartbeat: heartbeat,
	})
}

// pool counts the ProxyConns of the session. The server asks for those that
// its visitors wait for, so all of them are opened; only the number of those
// under way at a time is bounded. Idle ones are the engine's to bound.
type pool struct {
	id      relay.PoolID
	most    int // pending at a time
	wanted  int // asked for and not yet begun
	pending int // begun
	open    int
	ref     uint64 // of the last Dial
}

// need notes that the server asked for n more.
func (p *pool) need(n int) { p.wanted = min(p.wanted+n, maxWanted) }

// opened, closed and failed take the engine's reports; those of former pools do
// not count.
func (p *pool) opened(id relay.PoolID) {
	if id == p.id {
		p.pending--
		p.open++
	}
}

func (p *pool) closed(id relay.PoolID) {
	if id == p.id {
		p.open--
	}
}

func (p *pool) failed(id relay.PoolID) bool {
	if id == p.id {
		p.pending--
	}
	return id == p.id
}

// dial opens what is wanted, as far as the bound allows. Without a connection
// nothing is: the server may have another key by the time they arrive.
func (o *owner) dial() {
	p, s := &o.pool, o.session
	if o.link.conn == nil || p.wanted <= 0 || p.pending >= p.most {
		return
	}
	key := frame.NewKey(s.key)
	for ; p.wanted > 0 && p.pending < p.most; p.wanted-- {
		p.pending++
		p.ref++
		s.proxyID++
		preface := frame.Preface{Mode: frame.Plain, ControlID: s.control, Epoch: s.epoch, ProxyID: s.proxyID}
		o.client.engine.Submit(relay.Dial{
			Pool: p.id, Ref: p.ref, Address: s.proxy,
			Preface: preface.Seal(key, frame.Exporter{}),
			Ready:   preface.Ready(key, frame.Exporter{}),
		})
	}
}

// send passes a message to the server, if it is there.
func (o *owner) send(m *wire.ClientMessage) {
	if o.link.conn != nil {
		o.link.conn.send(m)
	}
}
