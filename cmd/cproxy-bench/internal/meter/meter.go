//go:build linux

// Package meter charges CPU time and memory to processes, from outside: it
// reads /proc.
package meter

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is one program to charge; several processes of it count together.
type Process struct {
	Name string
	PIDs []int
}

// ParseProcesses reads the values "PID" and "NAME=PID". Equal names join.
func ParseProcesses(values []string) ([]Process, error) {
	var all []Process
	for _, value := range values {
		name, number, ok := strings.Cut(value, "=")
		if !ok {
			name, number = "pid "+value, value
		}
		pid, err := strconv.Atoi(number)
		if err != nil || pid <= 0 || name == "" {
			return nil, fmt.Errorf("%q is no process: use PID or NAME=PID", value)
		}
		if i := slices.IndexFunc(all, func(p Process) bool { return p.Name == name }); i >= 0 {
			all[i].PIDs = append(all[i].PIDs, pid)
		} else {
			all = append(all, Process{Name: name, PIDs: []int{pid}})
		}
	}
	return all, nil
}

// Charge is the CPU time that a program took while it was measured.
type Charge struct {
	Name string
	CPU  time.Duration
	// Resolution is how fine CPU is counted: 1 ns from schedstat, or 10 ms
	// where a thread ended meanwhile or the kernel has no schedstat.
	Resolution time.Duration
}

// Meter measures between Begin and End.
type Meter struct {
	processes     []Process
	before, after sample
}

// New makes a meter; it reads nothing yet.
func New(processes []Process) *Meter { return &Meter{processes: processes} }

// sample is the state of all counters at one time.
type sample struct {
	processes [][]usage
	self      time.Duration
	machine   time.Duration
}

// usage is what one process had taken.
type usage struct {
	threads map[string]time.Duration
	total   time.Duration // in ticks
}

// Begin starts measuring.
func (m *Meter) Begin() (err error) {
	m.before, err = m.sample()
	return err
}

// End stops measuring.
func (m *Meter) End() (err error) {
	m.after, err = m.sample()
	return err
}

func (m *Meter) sample() (sample, error) {
	var s sample
	for _, p := range m.processes {
		var usages []usage
		for _, pid := range p.PIDs {
			total, err := readAs(fmt.Sprintf("/proc/%d/stat", pid), parseStat)
			if err != nil {
				return s, fmt.Errorf("read CPU time of %s: %w", p.Name, err)
			}
			usages = append(usages, usage{threads: threads(pid), total: total})
		}
		s.processes = append(s.processes, usages)
	}
	machine, err := readAs("/proc/stat", parseMachine)
	if err != nil {
		return s, fmt.Errorf("read CPU time of the machine: %w", err)
	}
	s.machine = machine
	var self unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &self); err != nil {
		return s, fmt.Errorf("read CPU time of this process: %w", err)
	}
	s.self = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	return s, nil
}

// Charges gives the time of each process in their order; then this process as
// "generator", and all CPUs together, interrupts included, as "machine".
func (m *Meter) Charges() []Charge {
	var all []Charge
	for i, p := range m.processes {
		c := Charge{Name: p.Name, Resolution: time.Nanosecond}
		for j := range p.PIDs {
			cpu, resolution := between(m.before.processes[i][j], m.after.processes[i][j])
			c.CPU += cpu
			c.Resolution = max(c.Resolution, resolution)
		}
		all = append(all, c)
	}
	return append(all,
		Charge{Name: "generator", CPU: m.after.self - m.before.self, Resolution: time.Microsecond},
		Charge{Name: "machine", CPU: m.after.machine - m.before.machine, Resolution: tick})
}

// between sums up over threads, which is fine-grained, if none has ended.
func between(before, after usage) (time.Duration, time.Duration) {
	if len(after.threads) == 0 {
		return after.total - before.total, tick
	}
	var sum time.Duration
	for _, t := range after.threads {
		sum += t
	}
	for thread, t := range before.threads {
		if _, alive := after.threads[thread]; !alive {
			return after.total - before.total, tick
		}
		sum -= t
	}
	return sum, time.Nanosecond
}
