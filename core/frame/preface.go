package frame

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
)

// PrefaceSize is the size in bytes of the first thing a client sends on a
// ProxyConn.
const PrefaceSize = 64

// prefaceSigned is how much of a preface its MAC covers directly.
const prefaceSigned = PrefaceSize - sha256.Size

// TLSHandshake is the first byte of a TLS connection (RFC 8446 5.1), which no
// preface starts with.
const TLSHandshake = 0x16

// Magic opens every preface; its last byte is the version of the ProxyConn
// protocol.
const Magic = "CPX\x01"

// The two MAC labels keep a preface from being reflected as a READY.
const (
	prefaceLabel = "cproxy preface v1"
	readyLabel   = "cproxy ready v1"
)

// Mode says how a ProxyConn is protected; both ends know it from the Welcome,
// and the preface repeats it so that nobody between them can lower it.
type Mode uint8

// The modes.
const (
	Plain Mode = iota + 1
	TLS
)

// Errors of ParsePreface and Preface.Verify.
var (
	ErrMagic = errors.New("preface has a wrong magic: this is not a cproxy client of this version")
	ErrMode  = errors.New("preface has an unknown mode")
	ErrMAC   = errors.New("preface is not signed with the session key")
)

// Preface identifies a ProxyConn to the server. ProxyID grows with every conn
// that a client opens under one epoch; the server refuses one that it saw.
type Preface struct {
	Mode      Mode
	ControlID uint64
	Epoch     uint64
	ProxyID   uint64
}

// Exporter is the TLS exporter value (RFC 8446 7.5) that binds a preface to
// its connection; all zeros in plain mode.
type Exporter [32]byte

// Key signs and checks what opens ProxyConns. It is made of a session key once
// and used for many conns; not for concurrent use.
type Key struct {
	mac    hash.Hash
	signed [maxSigned]byte // scratch
	sum    [sha256.Size]byte
}

// maxSigned is the longest that is signed: label, fields, exporter.
const maxSigned = len(prefaceLabel) + prefaceSigned + len(Exporter{})

// NewKey makes a Key of a session key, which it does not keep.
func NewKey(session []byte) *Key { return &Key{mac: hmac.New(sha256.New, session)} }

// String hides the key.
func (*Key) String() string { return "***" }

// GoString hides the key.
func (*Key) GoString() string { return "***" }

// sign gives the MAC under a label; it is overwritten by the next.
func (k *Key) sign(label string, p Preface, exporter Exporter) []byte {
	n := copy(k.signed[:], label)
	p.put(k.signed[n : n+prefaceSigned])
	n += prefaceSigned
	n += copy(k.signed[n:], exporter[:])
	k.mac.Reset()
	k.mac.Write(k.signed[:n])
	return k.mac.Sum(k.sum[:0])
}

// Seal gives the signed bytes of p.
func (p Preface) Seal(key *Key, exporter Exporter) [PrefaceSize]byte {
	var b [PrefaceSize]byte
	p.put(b[:])
	copy(b[prefaceSigned:], key.sign(prefaceLabel, p, exporter))
	return b
}

// Ready gives the MAC that proves, in the READY frame answering p, that the
// server knows the session key too.
func (p Preface) Ready(key *Key, exporter Exporter) [ReadySize]byte {
	return [ReadySize]byte(key.sign(readyLabel, p, exporter))
}

// put overwrites b with the fields, zeros behind them.
func (p Preface) put(b []byte) {
	clear(b)
	copy(b, Magic)
	b[4] = byte(p.Mode)
	binary.BigEndian.PutUint64(b[8:], p.ControlID)
	binary.BigEndian.PutUint64(b[16:], p.Epoch)
	binary.BigEndian.PutUint64(b[24:], p.ProxyID)
}

// ParsePreface reads the fields of a preface. They are claims until Verify
// has been called with the session key of that Control.
func ParsePreface(b [PrefaceSize]byte) (Preface, error) {
	if string(b[:4]) != Magic {
		return Preface{}, ErrMagic
	}
	p := Preface{
		Mode:      Mode(b[4]),
		ControlID: binary.BigEndian.Uint64(b[8:]),
		Epoch:     binary.BigEndian.Uint64(b[16:]),
		ProxyID:   binary.BigEndian.Uint64(b[24:]),
	}
	if p.Mode != Plain && p.Mode != TLS {
		return Preface{}, ErrMode
	}
	if b[5]|b[6]|b[7] != 0 {
		return Preface{}, ErrFlags
	}
	return p, nil
}

// Verify checks in constant time that sealed is p signed with key.
func (p Preface) Verify(sealed [PrefaceSize]byte, key *Key, exporter Exporter) error {
	want := p.Seal(key, exporter)
	if !hmac.Equal(want[:], sealed[:]) {
		return ErrMAC
	}
	return nil
}
