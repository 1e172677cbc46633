package server

import (
	"container/list"
	"hash/fnv"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// keepPort is how long a public port stays with its owner after it was last
// used.
const keepPort = 24 * time.Hour

// Bounds of the memory. A client may register under ever new names: then the
// port that its subject has not used for the longest time is forgotten, so
// nobody pushes out others by that.
const (
	maxRemembered        = 32768
	maxRememberedSubject = maxRemembered / 2
	// maxSubject is the longest subject that is remembered, in bytes, twice that
	// of a token's name. With it the file of a full memory stays readable.
	maxSubject = 128
)

// portOwner is whom a public port stays with.
type portOwner struct {
	subject, client, tunnel string
}

// seed makes the order in which ports are drawn for an owner its own.
func (o portOwner) seed() uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(strings.Join([]string{o.subject, o.client, o.tunnel}, "\x00")))
	return h.Sum64()
}

// rememberable tells whether a subject can be written down and read again.
func rememberable(subject string) bool {
	return len(subject) <= maxSubject && utf8.ValidString(subject) &&
		!strings.ContainsFunc(subject, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// keptPort is the port that an owner has, or had last.
type keptPort struct {
	owner portOwner
	port  uint16
	used  time.Time     // last, while idle is set
	idle  *list.Element // in its subject's share; nil while the port is open
}

// unused is for how long nobody has listened there.
func (k *keptPort) unused(now time.Time) time.Duration {
	if k.idle == nil {
		return 0
	}
	return max(0, now.Sub(k.used))
}

func (k *keptPort) expired(now time.Time) bool { return k.unused(now) >= keepPort }

// share is what one subject has of the memory.
type share struct {
	ports int
	idle  list.List // of *keptPort, the one unused for the longest time first
}

// portMemory remembers which public port a tunnel had. It has one owner, the
// hub, but for the channel, which says that there is something to save. Times
// inside one process are monotonic, so a clock that is set changes nothing.
type portMemory struct {
	owners   map[portOwner]*keptPort
	ports    map[uint16][]*keptPort // mostly one; more if addresses differ, or one had to give way
	subjects map[string]*share
	open     int  // ports in use
	unsaved  bool // changed since it was listed last
	changed  chan struct{}
}

func newPortMemory() *portMemory {
	return &portMemory{
		owners: make(map[portOwner]*keptPort), ports: make(map[uint16][]*keptPort), subjects: make(map[string]*share),
		changed: make(chan struct{}, 1),
	}
}

// port is what an owner has had, zero if that is not known any more.
func (m *portMemory) port(o portOwner, now time.Time) uint16 {
	if k := m.owners[o]; k != nil && !k.expired(now) {
		return k.port
	}
	return 0
}

// held tells whether a port stays with somebody else, and for how long it has
// not been used.
func (m *portMemory) held(port uint16, o portOwner, now time.Time) (unused time.Duration, held bool) {
	for _, k := range m.ports[port] {
		if k.owner == o || k.expired(now) {
			continue
		}
		if n := k.unused(now); !held || n < unused {
			unused = n
		}
		held = true
	}
	return unused, held
}

// opened says that an owner listens on a port.
func (m *portMemory) opened(o portOwner, port uint16) {
	k := m.owners[o]
	if k != nil && k.port != port {
		m.forget(k)
		k = nil
	}
	if k == nil {
		if k = m.add(o, port); k == nil {
			return
		}
	} else if k.idle != nil {
		m.subjects[o.subject].idle.Remove(k.idle)
		k.idle = nil
		m.open++
	}
	m.mark()
}

// closed says that an owner does not listen any more.
func (m *portMemory) closed(o portOwner, now time.Time) {
	if k := m.owners[o]; k != nil && k.idle == nil {
		m.rest(k, now)
		m.mark()
	}
}

// add makes an entry that is open; nil when there is no room for it.
func (m *portMemory) add(o portOwner, port uint16) *keptPort {
	if !rememberable(o.subject) || !m.room(o.subject) {
		return nil
	}
	k := &keptPort{owner: o, port: port}
	s := m.subjects[o.subject]
	if s == nil {
		s = new(share)
		m.subjects[o.subject] = s
	}
	s.ports++
	m.owners[o] = k
	m.ports[port] = append(m.ports[port], k)
	m.open++
	return k
}

// rest makes an open entry an idle one; those of a subject are given in the
// order of their times.
func (m *portMemory) rest(k *keptPort, used time.Time) {
	k.used = used
	k.idle = m.subjects[k.owner.subject].idle.PushBack(k)
	m.open--
}

// room makes room for one more of a subject. A full memory forgets what the
// largest subject has not used for the longest time.
func (m *portMemory) room(subject string) bool {
	from := m.subjects[subject]
	switch {
	case from != nil && from.ports >= maxRememberedSubject:
	case len(m.owners) < maxRemembered:
		return true
	default:
		from = nil
		for _, s := range m.subjects {
			if s.idle.Len() > 0 && (from == nil || s.ports > from.ports) {
				from = s
			}
		}
	}
	if from == nil || from.idle.Len() == 0 {
		return false // all of them are in use
	}
	if k, ok := from.idle.Front().Value.(*keptPort); ok {
		m.forget(k)
	}
	return true
}

func (m *portMemory) forget(k *keptPort) {
	delete(m.owners, k.owner)
	left := slices.DeleteFunc(m.ports[k.port], func(other *keptPort) bool { return other == k })
	if m.ports[k.port] = left; len(left) == 0 {
		delete(m.ports, k.port)
	}
	s := m.subjects[k.owner.subject]
	if k.idle != nil {
		s.idle.Remove(k.idle)
	} else {
		m.open--
	}
	if s.ports--; s.ports == 0 {
		delete(m.subjects, k.owner.subject)
	}
}

func (m *portMemory) mark() {
	m.unsaved = true
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// list gives all that is worth saving, in no order, and forgets the rest. What
// is in use is dated ahead, to the time of the next list: so a crash before
// that shortens nobody's time.
func (m *portMemory) list(now time.Time, ahead time.Duration) portList {
	m.unsaved = false
	l := portList{ports: make([]savedPort, 0, len(m.owners)), open: m.open > 0}
	for _, k := range m.owners {
		if k.expired(now) {
			m.forget(k)
			continue
		}
		used := now.Add(ahead)
		if k.idle != nil {
			used = now.Add(-k.unused(now)) // by the clock of today
		}
		l.ports = append(l.ports, savedPort{Subject: k.owner.subject, Client: k.owner.client, Tunnel: k.owner.tunnel, Port: k.port, Used: used})
	}
	return l
}

// restore fills an empty memory with what was saved. Times to come are those of
// ports that were in use, or the clock was set back: they count as now.
func (m *portMemory) restore(ports []savedPort, now time.Time) {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b savedPort) int { return a.Used.Compare(b.Used) })
	for _, p := range ports {
		age := max(0, now.Sub(p.Used))
		if age >= keepPort {
			continue
		}
		if k := m.add(p.owner(), p.Port); k != nil {
			m.rest(k, now.Add(-age))
		}
	}
}
