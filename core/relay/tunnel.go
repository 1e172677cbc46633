package relay

// uses is what names a tunnel to the engine. Engine.mu guards it.
type uses struct {
	listens bool
	limited bool // by a Limit, until Unlisten
	targets int  // ids in START that mean it, over all pools
	leaving bool // in Engine.leaving
}

// leaving are the tunnels that nothing names any more but whose streams run on.
// They are kept in Engine.tunnels: set anew meanwhile, a tunnel goes on counting,
// and counts its old streams against its limit.
type leaving struct {
	list    []*tunnel
	sweepAt int // length at which it is worth looking whose streams have ended
}

const minSweep = 16

// tunnel finds or makes the shared part of a tunnel. The caller holds Engine.mu.
func (e *Engine) tunnel(id TunnelID) *tunnel {
	t := e.tunnels[id]
	if t == nil {
		t = &tunnel{id: id, cells: make([]tunnelCell, len(e.loops))}
		e.tunnels[id] = t
	}
	return t
}

// listened and unlistened note that a tunnel has listeners, or no more.
func (e *Engine) listened(id TunnelID) *tunnel {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tunnel(id)
	t.uses.listens = true
	return t
}

func (e *Engine) unlistened(id TunnelID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if t := e.tunnels[id]; t != nil {
		t.uses.listens, t.uses.limited = false, false
		e.unname(t)
	}
}

// limited notes that a tunnel has a limit, or no more.
func (e *Engine) limited(id TunnelID, rates func(*rates)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := e.tunnel(id)
	rates(&t.rates)
	t.uses.limited = t.rates.up.Load() != nil || t.rates.down.Load() != nil
	e.unname(t)
}

// targeted notes what an id in START means; nil when the pool is not open.
func (e *Engine) targeted(id PoolID, wire uint32, to TunnelID) *tunnel {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.pools[id]
	if p == nil {
		return nil
	}
	t := e.tunnel(to)
	e.target(p, wire, t)
	return t
}

// target makes an id in START mean a tunnel. The caller holds Engine.mu.
func (e *Engine) target(p *pool, wire uint32, t *tunnel) {
	before := p.targets[wire]
	t.uses.targets++
	p.targets[wire] = t
	e.untarget(before)
}

func (e *Engine) untargeted(id PoolID, wire uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p := e.pools[id]; p != nil {
		e.untarget(p.targets[wire])
		delete(p.targets, wire)
	}
}

// dropPool forgets a pool and what its ids in START meant.
func (e *Engine) dropPool(id PoolID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	p := e.pools[id]
	if p == nil {
		return
	}
	delete(e.pools, id)
	for _, t := range p.targets {
		e.untarget(t)
	}
}

// untarget takes one id in START off a tunnel, which may be nil.
func (e *Engine) untarget(t *tunnel) {
	if t != nil {
		t.uses.targets--
		e.unname(t)
	}
}

// unname forgets a tunnel that nothing names any more, at once or when its
// streams have ended. Loops may still hold it: whatever they count then is
// counted for nobody.
func (e *Engine) unname(t *tunnel) {
	switch {
	case t.named():
		return
	case !t.busy():
		if e.tunnels[t.id] == t { // not a former one, whose id may be another's
			delete(e.tunnels, t.id)
		}
		return
	case t.uses.leaving:
		return
	}
	t.uses.leaving = true
	e.leaving.list = append(e.leaving.list, t)
	if len(e.leaving.list) >= max(e.leaving.sweepAt, minSweep) {
		e.forgetLeft()
		e.leaving.sweepAt = 2 * len(e.leaving.list)
	}
}

// forgetLeft forgets those that are leaving and whose streams have ended.
func (e *Engine) forgetLeft() {
	stay := e.leaving.list[:0]
	for _, t := range e.leaving.list {
		if !t.named() && t.busy() {
			stay = append(stay, t)
			continue
		}
		t.uses.leaving = false
		if !t.named() && e.tunnels[t.id] == t { // not forgotten already, and another made since
			delete(e.tunnels, t.id)
		}
	}
	clear(e.leaving.list[len(stay):])
	e.leaving.list = stay
}

func (t *tunnel) named() bool { return t.uses.listens || t.uses.limited || t.uses.targets > 0 }

// busy tells whether streams or PublicConns of a tunnel are still there. A loop
// counts a stream as opened before it counts it as ended, so the ended ones are
// read first.
func (t *tunnel) busy() bool {
	if t.conns.Load() > 0 {
		return true
	}
	ended, opened := t.before.Ended, t.before.Opened
	for i := range t.cells {
		ended += t.cells[i].ended.Load()
		opened += t.cells[i].opened.Load()
	}
	return ended != opened
}
