package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A kernel without netem cannot delay packets. A machine of user-mode-linux can,
// whose kernel is a program: it is the router between two hosts, with netem at
// both its interfaces. Its root is the file system of the host, read-only, so that it
// needs no image, only the programs ip, tc and insmod that are there anyway.

// machineVariable makes the test binary exec a machine.
const machineVariable = "E2E_MACHINE"

// machineInit is the only process of the machine. The kernel passes variables of
// its command line on to it.
const machineInit = `#!/bin/sh
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
insmod /usr/lib/uml/modules/$(uname -r)/kernel/net/sched/sch_netem.ko
ip link set lo up
ip addr add %[2]s dev vec0
ip addr add %[3]s dev vec1
for dev in vec0 vec1; do
  tc qdisc add dev $dev root netem delay %[1]s
  ip link set $dev up
done
ip route add default via %[4]s
echo 1 >/proc/sys/net/ipv4/ip_forward
echo machine ready
exec sleep 86400
`

// becomeMachine runs a command in place of this process that sees no extended
// processor state by ptrace(2). User-mode-linux 6.1 would else use a buffer for it
// that is too small where processors have AMX ("set fp regs failed").
func becomeMachine(argv []string) error {
	runtime.LockOSThread()
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("find the machine: %w", err)
	}
	load := func(offset uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
	}
	ifEqual := func(value uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jt: yes, Jf: no}
	}
	give := func(action uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
	}
	// Offsets in struct seccomp_data (linux/seccomp.h): nr 0, args[0] 16, low half
	// first on the only architecture that has these machines.
	program := []unix.SockFilter{
		load(0), ifEqual(unix.SYS_PTRACE, 0, 4),
		load(16), ifEqual(unix.PTRACE_GETREGSET, 1, 0), ifEqual(unix.PTRACE_SETREGSET, 0, 1),
		give(unix.SECCOMP_RET_ERRNO | uint32(unix.EINVAL)),
		give(unix.SECCOMP_RET_ALLOW),
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid new privileges: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&filter)), 0, 0); err != nil {
		return fmt.Errorf("filter system calls: %w", err)
	}
	err = unix.Exec(path, argv, os.Environ())
	runtime.KeepAlive(program)
	return fmt.Errorf("run the machine: %w", err)
}

// slowHost makes a host that is reached through a machine, which delays packets
// by so much in either direction.
func (l *lan) slowHost(name, delay string) *lanHost {
	l.t.Helper()
	if runtime.GOARCH != "amd64" {
		l.t.Skip("needs user-mode-linux, which there is for amd64 only")
	}
	needPrograms(l.t, "linux.uml:user-mode-linux", "insmod:kmod", "tc:iproute2")
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		missing(l.t, "needs /dev/net/tun; allow it to this container: %v", err)
	}
	const near, nearMachine, farMachine, far = "10.0.253.1", "10.0.253.2", "10.0.254.1", "10.0.254.2"
	dir := l.t.TempDir()
	script := fmt.Sprintf(machineInit, delay, nearMachine+"/24", farMachine+"/24", near)
	if err := os.WriteFile(filepath.Join(dir, "init"), []byte(script), 0o700); err != nil {
		l.t.Fatal(err)
	}
	l.ip(l.router, nil, "tuntap add slow0 mode tap; tuntap add slow1 mode tap; link set slow0 up; "+
		"addr add "+near+"/24 dev slow0; route add 10.0.254.0/24 via "+nearMachine)
	l.bootMachine(dir)
	h := &lanHost{name: name, ip: far}
	l.open(h)
	l.ip(l.router, h.ns, "link set slow1 netns /proc/self/fd/3")
	l.ip(h, nil, "addr add "+far+"/24 dev slow1; link set slow1 up; route add default via "+farMachine)
	return h
}

// bootMachine runs a machine with the file init of a folder, until the test ends.
func (l *lan) bootMachine(dir string) {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	var machine *process
	if err := l.router.do(func() (err error) {
		machine, err = launch(launchOptions{
			name: "machine", dir: dir, alone: true, env: []string{machineVariable + "=1"},
			argv: []string{
				self, "linux.uml", "mem=64M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet",
				"init=" + filepath.Join(dir, "init"), "uml_dir=" + dir, "con=null", "con0=null,fd:1",
				"vec0:transport=tap,ifname=slow0,depth=128", "vec1:transport=tap,ifname=slow1,depth=128",
				// Registers that ptrace does not see are lost between processes.
				"GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX,-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD,-XSAVEC,-XSAVE",
			},
		})
		return err
	}); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(machine.kill)
	if _, err := machine.awaitOut(`machine ready`); err != nil {
		missing(l.t, "user-mode-linux does not run here: %v\n%s\n%s", err, machine.stdout.tail(30), machine.stderr.tail(30))
	}
}
