package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// census says what the descriptors of a process are.
type census struct {
	files     int // not sockets: epoll, pipes, the spare one
	watches   int // inotify, which comes a moment after the server is ready
	listening int
	ctl       int // CtlConns
	proxy     int // ProxyConns
	streams   int // PublicConns or LocalConns
	other     int // unix and UDP sockets
	dead      int // sockets that are not connected to anything
}

func (c census) String() string {
	return fmt.Sprintf("%d files, %d listening, %d control, %d proxy, %d stream, %d other, %d dead", c.files, c.listening, c.ctl, c.proxy, c.streams, c.other, c.dead)
}

// doors are the ports by which sockets are told apart; the loopback address of
// a world is its own, so ports mean the same everywhere in it.
type doors struct {
	ctl   []uint16 // the CtlPort, and what leads to it
	proxy uint16
}

// take counts the descriptors of a process. They may change meanwhile, so a
// strange result has to be asked for again.
func (d doors) take(pid int) (census, error) {
	var c census
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return c, fmt.Errorf("list descriptors: %w", err)
	}
	inodes := make(map[string]bool)
	for _, e := range entries {
		link, err := os.Readlink(dir + "/" + e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return c, fmt.Errorf("list descriptors: %w", err)
		}
		if inode, ok := strings.CutPrefix(link, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		} else if link == "anon_inode:inotify" {
			c.watches++
		} else {
			c.files++
		}
	}
	for _, table := range []string{"tcp", "tcp6"} {
		if err := d.tcp(pid, table, inodes, &c); err != nil {
			return c, err
		}
	}
	for table, column := range map[string]int{"unix": 6, "udp": 9, "udp6": 9} {
		if err := other(pid, table, column, inodes, &c); err != nil {
			return c, err
		}
	}
	c.dead = len(inodes)
	return c, nil
}

// tcp sorts the sockets of one table and takes them out of inodes.
func (d doors) tcp(pid int, table string, inodes map[string]bool, c *census) error {
	return rows(pid, table, func(fields []string) error {
		if len(fields) < 10 || !inodes[fields[9]] {
			return nil
		}
		delete(inodes, fields[9])
		local, err := portOf(fields[1])
		if err != nil {
			return err
		}
		remote, err := portOf(fields[2])
		if err != nil {
			return err
		}
		const listen = "0A" // TCP_LISTEN, include/net/tcp_states.h
		switch {
		case fields[3] == listen:
			c.listening++
		case local == d.proxy || remote == d.proxy:
			c.proxy++
		case slices.Contains(d.ctl, local) || slices.Contains(d.ctl, remote):
			c.ctl++
		default:
			c.streams++
		}
		return nil
	})
}

// other counts the sockets of a table that is not TCP. One of a stream to a
// unix socket is among them.
func other(pid int, table string, column int, inodes map[string]bool, c *census) error {
	return rows(pid, table, func(fields []string) error {
		if len(fields) > column && inodes[fields[column]] {
			delete(inodes, fields[column])
			c.other++
		}
		return nil
	})
}

// rows reads a table of /proc/PID/net (proc_pid_net(5)), without its heading.
func rows(pid int, table string, each func(fields []string) error) error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, table))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	if err != nil {
		return fmt.Errorf("read sockets: %w", err)
	}
	first := true
	for line := range strings.Lines(string(data)) {
		if first {
			first = false
			continue
		}
		if err := each(strings.Fields(line)); err != nil {
			return fmt.Errorf("read sockets of %s: %w", table, err)
		}
	}
	return nil
}

func portOf(address string) (uint16, error) {
	_, digits, _ := strings.Cut(address, ":")
	port, err := strconv.ParseUint(digits, 16, 16)
	if err != nil {
		return 0, fmt.Errorf("read address %q: %w", address, err)
	}
	return uint16(port), nil
}

// portIn gives the port of an address as printed.
func portIn(address string) uint16 {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0
	}
	return a.Port()
}

func portText(port uint16) string { return strconv.Itoa(int(port)) }
