package server

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"

	"github.com/cproxy/cproxy/core/wire"
)

// sessionKey derives the key of a Control's epoch (RFC 5869), so that none
// has to be stored.
func sessionKey(secret [32]byte, control, epoch uint64) []byte {
	info := make([]byte, 0, 64)
	info = append(info, "cproxy session v1"...)
	info = binary.BigEndian.AppendUint64(info, control)
	info = binary.BigEndian.AppendUint64(info, epoch)
	key, err := hkdf.Key(sha256.New, secret[:], nil, string(info), wire.SessionKeySize)
	if err != nil {
		// Only a length beyond 255 hashes fails.
		panic("server: derive session key: " + err.Error())
	}
	return key
}

// windowSize is how far behind the newest proxy id an older one may arrive.
const windowSize = 1024

// window remembers which proxy ids of an epoch were used. Proxy ids start at
// 1. The zero window has seen none.
type window struct {
	newest uint64
	seen   [windowSize / 64]uint64 // ring of bits, by id modulo windowSize
}

// accept tells whether id is new, and remembers it.
func (w *window) accept(id uint64) bool {
	switch {
	case id == 0:
		return false
	case id > w.newest:
		if id-w.newest >= windowSize {
			clear(w.seen[:])
		} else {
			for i := w.newest + 1; i < id; i++ {
				w.seen[i%windowSize/64] &^= 1 << (i % 64)
			}
		}
		w.newest = id
	case w.newest-id >= windowSize || w.seen[id%windowSize/64]&(1<<(id%64)) != 0:
		return false
	}
	w.seen[id%windowSize/64] |= 1 << (id % 64)
	return true
}
