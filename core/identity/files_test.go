package identity_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/cproxy/cproxy/core/identity"
)

func TestWritePrivate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	must(t, os.WriteFile(path, []byte("old and longer"), 0o644))
	must(t, identity.WritePrivate(path, []byte("new")))
	if got, err := os.ReadFile(path); err != nil || string(got) != "new" {
		t.Errorf("content = %q, %v, want new", got, err)
	}
	wantModes(t, dir, map[string]os.FileMode{"secret": 0o600})
}

func TestReadPrivate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "state")
	if _, err := identity.ReadPrivate(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
	must(t, identity.WritePrivate(path, []byte("text")))
	if got, err := identity.ReadPrivate(path); err != nil || string(got) != "text" {
		t.Errorf("read %q, %v", got, err)
	}
	pipe := filepath.Join(dir, "pipe")
	must(t, syscall.Mkfifo(pipe, 0o600)) // nobody ever writes to it
	for _, odd := range []string{dir, pipe} {
		if _, err := identity.ReadPrivate(odd); err == nil {
			t.Errorf("%s is read", odd)
		}
	}
}

func TestWritePrivateReplacesLinks(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(t.TempDir(), "victim"), filepath.Join(dir, "secret")
	must(t, os.WriteFile(victim, []byte("untouched"), 0o644))
	must(t, os.Symlink(victim, path))
	must(t, identity.WritePrivate(path, []byte("new")))
	if got, err := os.ReadFile(victim); err != nil || string(got) != "untouched" {
		t.Errorf("the link's target now holds %q, %v", got, err)
	}
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() {
		t.Errorf("the link is still there: %v, %v", info, err)
	}
}

func TestWritePrivateFailsCleanly(t *testing.T) {
	dir := t.TempDir()
	if err := identity.WritePrivate(filepath.Join(dir, "missing", "secret"), nil); err == nil {
		t.Error("wrote into a directory that does not exist")
	}
	taken := filepath.Join(dir, "taken")
	must(t, os.Mkdir(taken, 0o700))
	if err := identity.WritePrivate(taken, []byte("x")); err == nil {
		t.Error("replaced a directory")
	}
	wantModes(t, dir, map[string]os.FileMode{"taken": 0o700})
}

func TestWritePrivateIsAtomic(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	must(t, identity.WritePrivate(path, bytes.Repeat([]byte("0"), 5000)))
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			content := bytes.Repeat(fmt.Append(nil, i), 5000)
			for range 10 {
				if err := identity.WritePrivate(path, content); err != nil {
					t.Errorf("write: %v", err)
				}
				got, err := os.ReadFile(path)
				if err != nil || len(got) != 5000 || !bytes.Equal(got, bytes.Repeat(got[:1], 5000)) {
					t.Errorf("read %d mixed bytes, %v", len(got), err)
				}
			}
		})
	}
	wg.Wait()
	wantModes(t, dir, map[string]os.FileMode{"secret": 0o600})
}

// foreignDir returns a directory that belongs to another user; only root can
// make one.
func foreignDir(t *testing.T) (dir string, uid, gid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a directory away")
	}
	dir, uid, gid = t.TempDir(), 12345, 23456
	must(t, os.Chown(dir, uid, gid))
	return dir, uid, gid
}

func wantOwner(t *testing.T, path string, uid, gid int) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	stat := info.Sys().(*syscall.Stat_t)
	if int(stat.Uid) != uid || int(stat.Gid) != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", filepath.Base(path), stat.Uid, stat.Gid, uid, gid)
	}
}

func TestRootLeavesFilesToTheOwnerOfTheDirectory(t *testing.T) {
	dir, uid, gid := foreignDir(t)
	must(t, identity.WritePrivate(filepath.Join(dir, "secret"), []byte("x")))
	_, err := identity.LoadOrCreateServer(dir)
	must(t, err)
	tokens := filepath.Join(dir, "tokens.toml")
	must(t, os.WriteFile(tokens, nil, 0o600)) // root's, by mistake
	_, err = identity.AddToken(tokens, "web", identity.Grants{})
	must(t, err)
	for _, name := range []string{"secret", "identity.key", "identity.crt", "tokens.toml"} {
		wantOwner(t, filepath.Join(dir, name), uid, gid)
	}
}

func TestTokensInRootsDirectoryKeepTheirOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to give a file away")
	}
	path := filepath.Join(t.TempDir(), "tokens.toml")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Chown(path, 0, 23456))
	must(t, os.Chmod(path, 0o640))
	_, err := identity.AddToken(path, "web", identity.Grants{})
	must(t, err)
	wantOwner(t, path, 0, 23456)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode = %v, %v, want 0640", info.Mode(), err)
	}
}

func TestRewritePrivateKeepsOwnerAndMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "client.toml")
	must(t, os.WriteFile(path, []byte("old"), 0o640))
	if os.Geteuid() == 0 {
		must(t, os.Chown(path, 65534, 65533))
	}
	must(t, identity.RewritePrivate(path, []byte("new")))
	info, err := os.Stat(path)
	must(t, err)
	data, err := os.ReadFile(path)
	must(t, err)
	stat := info.Sys().(*syscall.Stat_t)
	if string(data) != "new" || info.Mode().Perm() != 0o640 || os.Geteuid() == 0 && (stat.Uid != 65534 || stat.Gid != 65533) {
		t.Errorf("%q, mode %v, owner %d:%d", data, info.Mode(), stat.Uid, stat.Gid)
	}
	if err := identity.RewritePrivate(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a file that is not there was rewritten")
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// As a user who is not root: a group it is in is kept before the mode lets that
// group read, and a group it is not in is an error that leaves the file alone.
func TestRewritePrivateGivesGroupsOfTheUserOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user")
	}
	const user, group, foreign = 65534, 65533, 65532
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o711)) // another user has to get there
	must(t, os.Chown(dir, user, user))
	for gid, fails := range map[int]bool{group: false, foreign: true} {
		path := filepath.Join(dir, "client.toml")
		must(t, os.WriteFile(path, []byte("old"), 0o600))
		must(t, os.Chown(path, user, gid))
		must(t, os.Chmod(path, 0o640)) // what is tried
		err := asUser(t, user, group, func() error { return identity.RewritePrivate(path, []byte("new")) })
		data, reading := os.ReadFile(path)
		must(t, reading)
		if fails != (err != nil) || fails != (string(data) == "old") {
			t.Errorf("group %d: %v, then %q", gid, err, data)
		}
		wantOwner(t, path, user, gid)
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
		must(t, os.Remove(path))
	}
}

// asUser calls f on a thread of its own that belongs to a user of one more group,
// and ends the thread.
func asUser(t *testing.T, uid, group int, f func() error) error {
	t.Helper()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		groups := []uint32{uint32(group)}
		id := uintptr(uid)
		_, _, e1 := syscall.RawSyscall(syscall.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups[0])), 0)
		_, _, e2 := syscall.RawSyscall(syscall.SYS_SETRESGID, id, id, id)
		_, _, e3 := syscall.RawSyscall(syscall.SYS_SETRESUID, id, id, id)
		if e1 != 0 || e2 != 0 || e3 != 0 {
			result <- fmt.Errorf("become user %d: %w, %w, %w", uid, e1, e2, e3)
			return
		}
		result <- f()
	}()
	return <-result
}
