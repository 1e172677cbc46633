//go:build linux

package meter

import "fmt"

// Footprint is what a process holds at one time.
type Footprint struct {
	RSS         uint64 // bytes, VmRSS
	Anonymous   uint64 // bytes of it that are not from files, RssAnon
	Descriptors int
	Pipes       int
}

// Growth is what a program holds more than before; it may be negative.
type Growth struct {
	Name        string
	RSS         int64 // bytes
	Anonymous   int64 // bytes
	Descriptors int
	Pipes       int
	// RSSBefore is what it held then, in bytes.
	RSSBefore uint64
}

// Memory compares footprints. It is a meter, too: its Begin and End enclose
// the time in which nothing should take CPU.
type Memory struct {
	*Meter
	before, during         []Footprint
	slabBefore, slabDuring uint64
}

// NewMemory makes a Memory; it reads nothing yet.
func NewMemory(processes []Process) *Memory { return &Memory{Meter: New(processes)} }

// Before takes the footprints that later ones are compared with.
func (m *Memory) Before() (err error) {
	m.before, m.slabBefore, err = m.look()
	return err
}

// During takes the footprints to compare.
func (m *Memory) During() (err error) {
	m.during, m.slabDuring, err = m.look()
	return err
}

// Begin takes the footprints to compare, and starts measuring CPU time.
func (m *Memory) Begin() error {
	if err := m.During(); err != nil {
		return err
	}
	return m.Meter.Begin()
}

func (m *Memory) look() (all []Footprint, slab uint64, err error) {
	for _, p := range m.processes {
		var sum Footprint
		for _, pid := range p.PIDs {
			f, err := footprint(pid)
			if err != nil {
				return nil, 0, fmt.Errorf("read memory of %s: %w", p.Name, err)
			}
			sum.RSS += f.RSS
			sum.Anonymous += f.Anonymous
			sum.Descriptors += f.Descriptors
			sum.Pipes += f.Pipes
		}
		all = append(all, sum)
	}
	slab, err = readAs("/proc/meminfo", func(b []byte) (uint64, error) { return parseSize(b, "Slab") })
	if err != nil {
		return nil, 0, fmt.Errorf("read memory of the kernel: %w", err)
	}
	return all, slab, nil
}

func footprint(pid int) (f Footprint, err error) {
	path := fmt.Sprintf("/proc/%d/status", pid)
	if f.RSS, err = readAs(path, func(b []byte) (uint64, error) { return parseSize(b, "VmRSS") }); err != nil {
		return f, err
	}
	if f.Anonymous, err = readAs(path, func(b []byte) (uint64, error) { return parseSize(b, "RssAnon") }); err != nil {
		return f, err
	}
	f.Descriptors, f.Pipes, err = descriptors(pid)
	return f, err
}

// Growths gives what each program has more than at Before.
func (m *Memory) Growths() []Growth {
	var all []Growth
	for i, p := range m.processes {
		b, d := m.before[i], m.during[i]
		all = append(all, Growth{
			Name: p.Name,
			RSS:  int64(d.RSS) - int64(b.RSS), Anonymous: int64(d.Anonymous) - int64(b.Anonymous),
			Descriptors: d.Descriptors - b.Descriptors, Pipes: d.Pipes - b.Pipes,
			RSSBefore: b.RSS,
		})
	}
	return all
}

// SlabGrowth is what the kernel's slabs grew by in bytes, all causes together.
func (m *Memory) SlabGrowth() int64 { return int64(m.slabDuring) - int64(m.slabBefore) }
