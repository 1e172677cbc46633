package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// The files of a server's identity, in its state directory.
const (
	keyFile  = "identity.key"
	certFile = "identity.crt"
)

// ServerName is the name in a self-signed certificate. Clients that verify by a
// copy of the certificate as CA file ask for it; pins do not look at names.
const ServerName = "cproxy-server"

// startOver ends every complaint about damaged identity files. Making a new key
// by itself would lock out every client that pinned the old one.
const startOver = "restore %s and %s from a backup, or remove both to start with a new identity, " +
	"after which every client needs a new join string"

// ServerIdentity is a server's private key and certificate. It prints as its
// pin, never as its key. It is immutable and safe for concurrent use.
type ServerIdentity struct {
	cert tls.Certificate
	pin  Pin
}

// Pin returns what clients pin this identity by.
func (id *ServerIdentity) Pin() Pin { return id.pin }

// String returns the pin.
func (id *ServerIdentity) String() string { return id.pin.String() }

// GoString returns the pin.
func (id *ServerIdentity) GoString() string { return id.pin.String() }

// Format writes the pin for every verb; without it some would print the key.
func (id *ServerIdentity) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(id.pin.String())) }

// LogValue returns the pin.
func (id *ServerIdentity) LogValue() slog.Value { return slog.StringValue(id.pin.String()) }

// LoadOrCreateServer returns the identity kept in stateDir as identity.key and
// identity.crt. If neither exists it makes them, and stateDir too if need be: an
// ECDSA P-256 key and a self-signed certificate without a planned end (RFC 5280
// 4.1.2.5), owned by the owner of stateDir. Processes that come first at the
// same time agree on one identity.
//
// The certificate may be replaced by any other for the same key, such as one a
// CA has signed, followed by its chain. A key that others can read, and files
// that are damaged, incomplete or of different pairs, are refused; nothing that
// exists is ever overwritten. It blocks on the disk.
func LoadOrCreateServer(stateDir string) (*ServerIdentity, error) {
	if err := os.MkdirAll(stateDir, 0o700); err != nil {
		return nil, fmt.Errorf("create state directory: %w", err)
	}
	unlock, err := lockDirectory(stateDir)
	if err != nil {
		return nil, fmt.Errorf("load server identity: %w", err)
	}
	defer unlock()

	keyPath, certPath := filepath.Join(stateDir, keyFile), filepath.Join(stateDir, certFile)
	hasKey, err := exists(keyPath)
	if err != nil {
		return nil, fmt.Errorf("load server identity: %w", err)
	}
	hasCert, err := exists(certPath)
	if err != nil {
		return nil, fmt.Errorf("load server identity: %w", err)
	}
	switch {
	case hasKey && hasCert:
		return loadServer(keyPath, certPath)
	case hasKey:
		return nil, fmt.Errorf("server identity is incomplete, %s is missing: "+startOver, certPath, keyPath, certPath)
	case hasCert:
		return nil, fmt.Errorf("server identity is incomplete, %s is missing: "+startOver, keyPath, keyPath, certPath)
	}
	if err := createServer(keyPath, certPath); err != nil {
		return nil, fmt.Errorf("create server identity: %w", err)
	}
	return loadServer(keyPath, certPath)
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func loadServer(keyPath, certPath string) (*ServerIdentity, error) {
	keyPEM, err := readKey(keyPath)
	if err != nil {
		return nil, fmt.Errorf("read server key: %w", err)
	}
	defer clear(keyPEM)
	certPEM, _, err := readFile(certPath)
	if err != nil {
		return nil, fmt.Errorf("read server certificate: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("read server identity: %w: "+startOver, err, keyPath, certPath)
	}
	return &ServerIdentity{cert: cert, pin: PinOf(cert.Leaf)}, nil
}

// readKey reads a private key that nobody but its owner may read.
func readKey(path string) ([]byte, error) {
	data, info, err := readFile(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w: run as the user that owns it", err)
	}
	if err != nil {
		return nil, err
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		clear(data)
		return nil, fmt.Errorf("others than its owner have access to %s (mode %04o): run `chmod 0600 %s`", path, perm, path)
	}
	return data, nil
}

// createServer writes a new key and its certificate. Both are on the disk under
// temporary names before either gets its own, so that only a crash between two
// renames could leave half an identity, which the next start refuses.
func createServer(keyPath, certPath string) error {
	keyPEM, certPEM, err := newKeyPair(time.Now())
	if err != nil {
		return err
	}
	defer clear(keyPEM)
	owner, err := directoryOwner(filepath.Dir(keyPath))
	if err != nil {
		return err
	}
	stagedKey, err := stageFile(keyPath, keyPEM, owner)
	if err != nil {
		return err
	}
	owner.perm = 0o644 // a certificate is public; clients may be given a copy
	stagedCert, err := stageFile(certPath, certPEM, owner)
	if err != nil {
		_ = os.Remove(stagedKey)
		return err
	}
	if err := publishFile(stagedKey, keyPath); err != nil {
		_ = os.Remove(stagedCert)
		return err
	}
	return publishFile(stagedCert, certPath)
}

// newKeyPair returns a new key and its self-signed certificate, both in PEM.
func newKeyPair(now time.Time) (keyPEM, certPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("draw serial number: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: ServerName},
		DNSNames:              []string{ServerName},
		NotBefore:             now.Add(-24 * time.Hour), // clocks of clients may be late
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
	}
	certDER, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	defer clear(keyDER)
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER})
	return keyPEM, certPEM, nil
}
