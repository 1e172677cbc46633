package relay

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// pipeSize is what a pipe of the engine holds. With the default of 64 KiB
// splice costs as much as a copy; with 1 MiB half (measured).
const pipeSize = 1 << 20

// minPipe is the smallest pipe that is worth using: beyond its quota
// (pipe-user-pages-soft, pipe(7)) an unprivileged user gets pipes of two pages.
const minPipe = 256 << 10

// maxPipes bounds the pipes of a loop: a receiver that stalls keeps one for as
// long as it does, and they hold memory of the kernel.
const maxPipes = 64

// maxSparePipes is how many empty pipes a loop keeps for the next bulk.
const maxSparePipes = 16

// refusalPause is after how many requests a loop that could not get a pipe
// tries again: each try costs two system calls.
const refusalPause = 64

// pipe carries bulk bytes from one socket to another without copying them. It
// belongs to one direction only while bytes are in it.
type pipe struct {
	r, w int
	size int // bytes it can hold
	held int // bytes in it
}

// pipes are the spare pipes of a loop.
type pipes struct {
	spare   []*pipe
	open    int // spare or lent
	refused int // requests to pass over before the kernel is asked again
	used    int64
	timer   timer
}

// borrow gives an empty pipe, or nil when the loop has lent all it may or the
// user's quota is used up: the caller copies instead.
func (p *pipes) borrow() *pipe {
	if n := len(p.spare); n > 0 {
		b := p.spare[n-1]
		p.spare = p.spare[:n-1]
		return b
	}
	if p.open >= maxPipes {
		return nil
	}
	if p.refused > 0 {
		p.refused--
		return nil
	}
	b := newPipe()
	if b == nil {
		p.refused = refusalPause
		return nil
	}
	p.open++
	return b
}

// giveBack takes a pipe whose direction needs it no more. One that still holds
// bytes is destroyed: they must never reach another stream.
func (p *pipes) giveBack(b *pipe) {
	if b.held == 0 && len(p.spare) < maxSparePipes {
		p.spare = append(p.spare, b)
		return
	}
	b.close()
	p.open--
}

// trim closes the spare pipes.
func (p *pipes) trim() {
	for _, b := range p.spare {
		b.close()
		p.open--
	}
	p.spare = nil
}

func newPipe() *pipe {
	var fd [2]int
	if err := unix.Pipe2(fd[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil
	}
	b := &pipe{r: fd[0], w: fd[1]}
	for want := pipeSize; want >= minPipe; want /= 2 {
		if got, err := unix.FcntlInt(uintptr(b.w), unix.F_SETPIPE_SZ, want); err == nil {
			b.size = got
			return b
		}
	}
	b.close()
	return nil
}

func (b *pipe) close() {
	closefd(b.r)
	closefd(b.w)
}

// fill moves up to n bytes from a socket into the pipe.
func (b *pipe) fill(fd, n int) (int, syscall.Errno) {
	got, errno := splice(fd, b.w, min(n, b.size))
	b.held += got
	return got, errno
}

// drain moves what the pipe holds to a socket.
func (b *pipe) drain(fd int) (int, syscall.Errno) {
	sent, errno := splice(b.r, fd, b.held)
	b.held -= sent
	return sent, errno
}

// splice moves bytes between a socket and a pipe. Never SPLICE_F_MORE: with it
// the last bytes of a burst waited 200 ms (measured).
func splice(from, to, n int) (int, syscall.Errno) {
	got, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	if errno != 0 {
		return 0, errno
	}
	return int(got), 0
}
