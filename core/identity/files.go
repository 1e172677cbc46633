package identity

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxFileSize bounds what is read into memory from one state file: ten thousand
// tokens take about 2 MiB.
const maxFileSize = 16 << 20

// masked is what every secret prints as.
const masked = "***"

// fileOwner is whom a written file shall belong to, and its permissions.
type fileOwner struct {
	uid, gid int
	perm     fs.FileMode
	exact    bool // fail if this user may not give the file away
}

// WritePrivate replaces the file at path with data so that readers, and a machine
// that loses power, see either the old content or the new. The file gets mode
// 0600; when run by root it gets the owner and group of its directory, so that
// the service's user can read what root's command line wrote. A symbolic link at
// path is replaced, never followed.
//
// It blocks on the disk and may be called concurrently; the last writer wins.
func WritePrivate(path string, data []byte) error {
	owner, err := directoryOwner(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return replaceFile(path, data, owner)
}

// ReadPrivate returns the content of a file that [WritePrivate] wrote. Anything
// but a regular file of at most 16 MiB is an error, and so is a missing one
// (fs.ErrNotExist). Who else may read the file is not checked. It blocks on the
// disk.
func ReadPrivate(path string) ([]byte, error) {
	data, _, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return data, nil
}

// RewritePrivate is WritePrivate for a file that exists: it keeps its owner, group
// and mode, and a symbolic link is followed. It fails, changing nothing, when this
// user may not give the new file to the owner of the old one.
func RewritePrivate(path string, data []byte) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("rewrite %s: %w", path, err)
	}
	info, err := os.Stat(target)
	if err != nil {
		return fmt.Errorf("rewrite %s: %w", path, err)
	}
	owner, err := ownerOf(info, info.Mode().Perm())
	if err != nil {
		return fmt.Errorf("rewrite %s: %w", path, err)
	}
	owner.exact = true
	staged, err := stageFile(target, data, owner)
	if err != nil {
		return err
	}
	return publishFile(staged, target)
}

// directoryOwner returns the owner a private file in dir shall have.
func directoryOwner(dir string) (fileOwner, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return fileOwner{}, fmt.Errorf("find the owner of the directory: %w", err)
	}
	return ownerOf(info, 0o600)
}

func ownerOf(info fs.FileInfo, perm fs.FileMode) (fileOwner, error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileOwner{}, fmt.Errorf("find the owner of %s: the file system does not tell", info.Name())
	}
	return fileOwner{uid: int(stat.Uid), gid: int(stat.Gid), perm: perm}, nil
}

// replaceFile writes data to a temporary file beside path, renames it over path
// and makes both durable.
func replaceFile(path string, data []byte, owner fileOwner) error {
	staged, err := stageFile(path, data, owner)
	if err != nil {
		return err
	}
	return publishFile(staged, path)
}

// stageFile writes a complete, durable temporary file beside path and returns
// its name. Its mode is 0600 from its creation on.
func stageFile(path string, data []byte, owner fileOwner) (staged string, err error) {
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if closeErr := file.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("write %s: %w", path, closeErr)
		}
		if err != nil {
			_ = os.Remove(file.Name())
		}
	}()
	if _, err := file.Write(data); err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	// Before its mode, which may let a group read it. Only root may give files
	// away to anybody; for others the file mostly has the one owner it can have.
	if os.Geteuid() == 0 || owner.exact {
		if err := file.Chown(owner.uid, owner.gid); err != nil {
			return "", fmt.Errorf("give %s its owner (run this as root or as that user): %w", path, err)
		}
	}
	if err := file.Chmod(owner.perm); err != nil {
		return "", fmt.Errorf("set the mode of %s: %w", path, err)
	}
	if err := file.Sync(); err != nil {
		return "", fmt.Errorf("write %s to disk: %w", path, err)
	}
	return file.Name(), nil
}

// publishFile gives a staged file its final name, durably.
func publishFile(staged, path string) error {
	if err := os.Rename(staged, path); err != nil {
		_ = os.Remove(staged)
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return syncDirectory(filepath.Dir(path))
}

func syncDirectory(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write directory %s to disk: %w", dir, err)
	}
	defer func() { _ = file.Close() }() // opened for reading: nothing can be lost
	if err := file.Sync(); err != nil {
		return fmt.Errorf("write directory %s to disk: %w", dir, err)
	}
	return nil
}

// lockDirectory waits until no other process and no other caller in this one
// holds dir, and holds it until unlock is called or the process ends. The lock
// is on the directory itself, so there is no lock file that could belong to the
// wrong user or be left behind.
func lockDirectory(dir string) (unlock func(), err error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("lock directory: %w", err)
	}
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("lock directory %s: %w", dir, err)
	}
	return func() { _ = file.Close() }, nil
}

// readFile returns the content of a regular file of bounded size, and its
// attributes, both of the same opened file.
func readFile(path string) ([]byte, fs.FileInfo, error) {
	// O_NONBLOCK keeps a FIFO in the file's place from blocking the open.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file: put one in its place", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFileSize+1))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(data) > maxFileSize {
		return nil, nil, fmt.Errorf("%s is larger than %d MiB: it cannot be what its name says", path, maxFileSize>>20)
	}
	return data, info, nil
}
