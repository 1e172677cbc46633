//go:build linux

package main

import (
	"os"
	"strconv"
	"strings"
)

// timeWaits counts the sockets in TIME_WAIT that a tunnel's visitors have left
// behind within the last minute, which is how long the kernel keeps them.
func (w *world) timeWaits(c *contestant, m metrics) {
	for name, port := range map[string]string{
		"tw_proxy": c.proxyPort,
		"tw_local": w.served[strings.LastIndexByte(w.served, ':')+1:],
	} {
		n := 0
		for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			b, err := os.ReadFile(file)
			if err != nil {
				continue // no IPv6
			}
			n += timeWaiting(string(b), port)
		}
		m[name] = float64(n)
	}
}

// timeWaiting counts the lines of /proc/net/tcp (proc_net(5)) in state
// TIME_WAIT, 06, with the port at either end: whoever closed first has it.
func timeWaiting(table, port string) (n int) {
	want, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != "06" {
			continue
		}
		if portOf(fields[1]) == want || portOf(fields[2]) == want {
			n++
		}
	}
	return n
}

// portOf reads ADDRESS:PORT in hexadecimal; 0 for anything else.
func portOf(address string) uint64 {
	_, digits, _ := strings.Cut(address, ":")
	port, err := strconv.ParseUint(digits, 16, 16)
	if err != nil {
		return 0
	}
	return port
}
