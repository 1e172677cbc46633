package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/identity"
)

func newServer(t *testing.T) (id *identity.ServerIdentity, dir string) {
	t.Helper()
	dir = t.TempDir()
	id, err := identity.LoadOrCreateServer(dir)
	if err != nil {
		t.Fatalf("LoadOrCreateServer: %v", err)
	}
	return id, dir
}

func TestServerIdentityIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "state")
	first, err := identity.LoadOrCreateServer(dir)
	if err != nil {
		t.Fatalf("first call: %v", err)
	}
	second, err := identity.LoadOrCreateServer(dir)
	if err != nil {
		t.Fatalf("second call: %v", err)
	}
	if first.Pin() != second.Pin() || first.Pin() == (identity.Pin{}) {
		t.Errorf("pins %v and %v: want one", first.Pin(), second.Pin())
	}
	wantModes(t, dir, map[string]os.FileMode{"identity.key": 0o600, "identity.crt": 0o644})
}

// wantModes checks that dir holds exactly these files with these modes.
func wantModes(t *testing.T, dir string, want map[string]os.FileMode) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("read directory: %v", err)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil {
			t.Fatalf("stat: %v", err)
		}
		mode, ok := want[entry.Name()]
		if !ok {
			t.Errorf("%s was left behind", entry.Name())
		} else if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", entry.Name(), info.Mode().Perm(), mode)
		}
	}
	if len(entries) != len(want) {
		t.Errorf("%d files, want %d", len(entries), len(want))
	}
}

func TestServerCertificate(t *testing.T) {
	id, dir := newServer(t)
	cert := readCert(t, filepath.Join(dir, "identity.crt"))
	if got := identity.PinOf(cert); got != id.Pin() {
		t.Errorf("pin of the certificate = %v, want %v", got, id.Pin())
	}
	if key, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("public key is %T, want P-256", cert.PublicKey)
	}
	if cert.NotAfter.Year() != 9999 || time.Now().Before(cert.NotBefore) {
		t.Errorf("valid from %v to %v", cert.NotBefore, cert.NotAfter)
	}
}

func readCert(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("read certificate: %v", err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatalf("parse certificate: %v", err)
	}
	return cert
}

func TestServerIdentityHidesItsKey(t *testing.T) {
	id, dir := newServer(t)
	data, err := os.ReadFile(filepath.Join(dir, "identity.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	scalar := parsed.(*ecdsa.PrivateKey).D.String() //nolint:staticcheck // the text a leak would show
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
		text := fmt.Sprintf(verb, id)
		if text != id.Pin().String() || strings.Contains(text, scalar) {
			t.Errorf("%s prints %q, want the pin", verb, text)
		}
	}
}

func TestConcurrentFirstUse(t *testing.T) {
	t.Run("goroutines", func(t *testing.T) {
		dir := t.TempDir()
		pins := make([]identity.Pin, 8)
		var wg sync.WaitGroup
		for i := range pins {
			wg.Go(func() {
				id, err := identity.LoadOrCreateServer(dir)
				if err != nil {
					t.Errorf("call %d: %v", i, err)
					return
				}
				pins[i] = id.Pin()
			})
		}
		wg.Wait()
		for _, pin := range pins {
			if pin != pins[0] {
				t.Fatalf("several identities: %v", pins)
			}
		}
	})
	t.Run("processes", func(t *testing.T) {
		dir := t.TempDir()
		cmds := make([]*exec.Cmd, 4)
		for i := range cmds {
			cmds[i] = child(t, "identity", dir)
		}
		pins := runTogether(t, cmds)
		for _, pin := range pins {
			if pin != pins[0] || pin == "" {
				t.Fatalf("several identities: %q", pins)
			}
		}
		wantModes(t, dir, map[string]os.FileMode{"identity.key": 0o600, "identity.crt": 0o644})
	})
}

func TestDamagedIdentityIsRefused(t *testing.T) {
	_, otherDir := newServer(t)
	tests := []struct {
		name   string
		damage func(key, crt string) error
		says   string
	}{
		{"key missing", func(key, _ string) error { return os.Remove(key) }, "from a backup"},
		{"certificate missing", func(_, crt string) error { return os.Remove(crt) }, "from a backup"},
		{"key empty", func(key, _ string) error { return os.Truncate(key, 0) }, "from a backup"},
		{"certificate empty", func(_, crt string) error { return os.Truncate(crt, 0) }, "from a backup"},
		{"key truncated", func(key, _ string) error { return os.Truncate(key, 100) }, "from a backup"},
		{"certificate truncated", func(_, crt string) error { return os.Truncate(crt, 100) }, "from a backup"},
		{"key of another pair", func(key, _ string) error {
			return os.Rename(filepath.Join(otherDir, "identity.key"), key)
		}, "from a backup"},
		{"key readable by others", func(key, _ string) error { return os.Chmod(key, 0o604) }, "chmod 0600"},
		{"key readable by the group", func(key, _ string) error { return os.Chmod(key, 0o640) }, "chmod 0600"},
		{"key is a FIFO", func(key, _ string) error {
			return errors.Join(os.Remove(key), syscall.Mkfifo(key, 0o600))
		}, "not a regular file"},
		{"dangling link", func(key, crt string) error {
			return errors.Join(os.Remove(key), os.Symlink(crt+".gone", key))
		}, "read server key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, dir := newServer(t)
			key, crt := filepath.Join(dir, "identity.key"), filepath.Join(dir, "identity.crt")
			must(t, tt.damage(key, crt))
			before := listing(t, dir)
			_, err := identity.LoadOrCreateServer(dir)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %q does not say %q and which file", err, tt.says)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("files changed from %s to %s", before, after)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listing describes the files of dir well enough to see any of them replaced.
func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var b strings.Builder
	for _, entry := range entries {
		info, err := entry.Info()
		must(t, err)
		fmt.Fprintf(&b, "%s %v %d %d; ", info.Name(), info.Mode(), info.Size(), info.Sys().(*syscall.Stat_t).Ino)
	}
	return b.String()
}

func TestPinSurvivesRenewal(t *testing.T) {
	id, dir := newServer(t)
	data, err := os.ReadFile(filepath.Join(dir, "identity.key"))
	must(t, err)
	block, _ := pem.Decode(data)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(7), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"renewed"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.(*ecdsa.PrivateKey).Public(), key)
	must(t, err)
	renewed := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	must(t, os.WriteFile(filepath.Join(dir, "identity.crt"), renewed, 0o600))

	again, err := identity.LoadOrCreateServer(dir)
	if err != nil || again.Pin() != id.Pin() {
		t.Errorf("after renewal: %v, %v, want pin %v", again, err, id.Pin())
	}
}

func TestStateDirectoryMustBeUsable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := identity.LoadOrCreateServer(file); err == nil {
		t.Error("a file was taken for a state directory")
	}
}
