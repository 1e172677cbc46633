package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// ErrNoSuchToken tells that a tokens file has no token of that name.
var ErrNoSuchToken = errors.New("no such token")

// LoadTokens reads a tokens file. A file that does not exist holds no tokens. One
// with an unknown key, a damaged hash, a duplicate name or any other problem is
// refused whole, with all of them and their lines.
func LoadTokens(path string) (Tokens, error) {
	data, err := readTokens(path)
	if err != nil {
		return nil, err
	}
	tokens, err := decodeTokens(path, data)
	if err != nil {
		return nil, fmt.Errorf("read tokens file: %w", err)
	}
	return tokens, nil
}

// readTokens returns the content of a tokens file, nil if it does not exist.
func readTokens(path string) ([]byte, error) {
	data, info, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("read tokens file: %w: give it to the user that runs cproxy-server", err)
	case err != nil:
		return nil, fmt.Errorf("read tokens file: %w", err)
	case info.Mode().Perm()&0o002 != 0:
		// Whoever can add a line can connect.
		return nil, fmt.Errorf("read tokens file: everybody may write to %s: run `chmod o-w %s`", path, path)
	}
	return data, nil
}

// AddToken adds a token of that name to the file, which it creates if need be,
// and returns the secret: the only time it is known, since the file keeps its
// hash. A name that is taken is refused.
//
// AddToken and RevokeToken rewrite the file atomically under a lock, so that
// concurrent calls, from other processes too, lose nothing. They block on the
// lock and the disk.
func AddToken(path, name string, grants Grants) (TokenSecret, error) {
	if err := checkToken(name, grants); err != nil {
		return TokenSecret{}, fmt.Errorf("add token: %w", err)
	}
	secret := NewTokenSecret()
	err := editTokens(path, func(tokens Tokens) (Tokens, error) {
		if tokens.index(name) >= 0 {
			return nil, fmt.Errorf("add token: %q exists already: "+
				"revoke it first (`cproxy-server token revoke %s`), or choose another name", name, name)
		}
		added := Token{Name: name, Hash: secret.Hash(), Created: time.Now().UTC().Truncate(time.Second), Grants: grants}
		return append(tokens, added), nil
	})
	if err != nil {
		return TokenSecret{}, err
	}
	return secret, nil
}

// RevokeToken removes the token of that name from the file. It fails with
// ErrNoSuchToken if there is none.
func RevokeToken(path, name string) error {
	return editTokens(path, func(tokens Tokens) (Tokens, error) {
		i := tokens.index(name)
		if i < 0 {
			return nil, fmt.Errorf("revoke token: %w: %q is not in %s; `cproxy-server token list` shows those that are",
				ErrNoSuchToken, name, path)
		}
		return slices.Delete(tokens, i, i+1), nil
	})
}

// checkToken refuses what the file could not express.
func checkToken(name string, grants Grants) error {
	if err := CheckName(name); err != nil {
		return err
	}
	for _, ports := range grants.Ports {
		if ports.First == 0 || ports.First > ports.Last {
			return fmt.Errorf("port range %s is empty: use first-last, from 1 to 65535", ports)
		}
	}
	for _, addr := range grants.Bind {
		if !addr.IsValid() || addr.Zone() != "" {
			return fmt.Errorf("bind address %s cannot be granted: use an IP address without a zone", addr)
		}
	}
	if grants.MaxTunnels < 0 {
		return fmt.Errorf("tunnel count %d is negative: use 0 for the server's limit", grants.MaxTunnels)
	}
	if grants.RateUp < 0 || grants.RateDown < 0 {
		return errors.New("a rate is negative: use 0 for the server's limit")
	}
	return nil
}

// editTokens replaces the file's tokens with what edit makes of them.
func editTokens(path string, edit func(Tokens) (Tokens, error)) error {
	unlock, err := lockDirectory(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("change tokens file: %w", err)
	}
	defer unlock()
	tokens, err := LoadTokens(path)
	if err != nil {
		return err
	}
	tokens, err = edit(tokens)
	if err != nil {
		return err
	}
	owner, err := tokensOwner(path)
	if err != nil {
		return fmt.Errorf("change tokens file: %w", err)
	}
	return replaceFile(path, encodeTokens(tokens), owner)
}

// tokensOwner returns whom the rewritten file shall belong to: the directory's
// owner, as with every state file. A directory of root's does not tell who runs
// the service; there the owner and mode an existing file was given are kept.
func tokensOwner(path string) (fileOwner, error) {
	owner, err := directoryOwner(filepath.Dir(path))
	if err != nil || owner.uid != 0 {
		return owner, err
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return owner, nil
	}
	if err != nil {
		return fileOwner{}, err
	}
	if !info.Mode().IsRegular() {
		return owner, nil
	}
	return ownerOf(info, info.Mode().Perm())
}
