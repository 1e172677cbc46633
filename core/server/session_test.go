package server

import (
	"encoding/hex"
	"math"
	"math/rand/v2"
	"testing"
)

func TestSessionKey(t *testing.T) {
	var secret [32]byte
	for i := range secret {
		secret[i] = byte(i)
	}
	other := secret
	other[31] ^= 1

	// RFC 5869 with SHA-256, no salt, and the info of sessionKey: computed by
	// an independent implementation.
	const vector = "e63a7994638fb52ffa092019093e082a2ebc57c25a61125725f0f89d91bb552e"
	if got := hex.EncodeToString(sessionKey(secret, 1, 2)); got != vector {
		t.Errorf("key is %s, want %s", got, vector)
	}
	keys := map[string]string{}
	for name, key := range map[string][]byte{
		"base":           sessionKey(secret, 1, 2),
		"other control":  sessionKey(secret, 2, 2),
		"other epoch":    sessionKey(secret, 1, 3),
		"swapped":        sessionKey(secret, 2, 1),
		"other secret":   sessionKey(other, 1, 2),
		"shifted epoch":  sessionKey(secret, 1, 2<<8),
		"largest":        sessionKey(secret, math.MaxUint64, math.MaxUint64),
		"largest of one": sessionKey(secret, math.MaxUint64, 1),
	} {
		if twin, ok := keys[string(key)]; ok {
			t.Errorf("%s has the key of %s", name, twin)
		}
		keys[string(key)] = name
	}
}

func TestWindow(t *testing.T) {
	type step struct {
		id  uint64
		new bool
	}
	tests := []struct {
		name  string
		steps []step
	}{
		{"zero is no id", []step{{0, false}, {1, true}, {0, false}}},
		{"in order", []step{{1, true}, {2, true}, {3, true}, {2, false}, {3, false}, {1, false}}},
		{"out of order", []step{{5, true}, {1, true}, {3, true}, {1, false}, {2, true}, {4, true}, {4, false}}},
		{"oldest inside", []step{{1024, true}, {1, true}, {1, false}}},
		{"oldest outside", []step{{1025, true}, {1, false}, {2, true}}},
		{"slot of an old id is free again", []step{{1, true}, {2, true}, {1025, true}, {1026, true}, {1025, false}, {1024, true}}},
		{"slots that were jumped over are free", []step{{1, true}, {2, true}, {3, true}, {1030, true}, {1026, true}, {1027, true}, {1027, false}}},
		{"a jump of a whole window", []step{{1, true}, {2, true}, {1026, true}, {1025, true}, {3, true}, {2, false}}},
		{"a far jump", []step{{1, true}, {1 << 40, true}, {1, false}, {1<<40 - 1023, true}, {1<<40 - 1024, false}, {1 << 40, false}}},
		{"the largest ids", []step{{math.MaxUint64 - 1, true}, {math.MaxUint64, true}, {math.MaxUint64, false}, {math.MaxUint64 - 1, false}, {math.MaxUint64 - 1023, true}, {math.MaxUint64 - 1024, false}, {1, false}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var w window
			for i, s := range test.steps {
				if got := w.accept(s.id); got != s.new {
					t.Fatalf("step %d: accept(%d) is %v", i, s.id, got)
				}
			}
		})
	}
}

// modelWindow is window with a set for a memory.
type modelWindow struct {
	newest uint64
	seen   map[uint64]bool
}

func (m *modelWindow) accept(id uint64) bool {
	if id == 0 || m.seen[id] || m.newest >= windowSize && id <= m.newest-windowSize {
		return false
	}
	m.seen[id] = true
	m.newest = max(m.newest, id)
	return true
}

func checkWindow(t *testing.T, ids []uint64) {
	t.Helper()
	var w window
	m := modelWindow{seen: make(map[uint64]bool)}
	for i, id := range ids {
		if got, want := w.accept(id), m.accept(id); got != want {
			t.Fatalf("id %d at %d: %v, the model says %v (newest %d)", id, i, got, want, m.newest)
		}
	}
}

func TestWindowLikeModel(t *testing.T) {
	for seed := range uint64(50) {
		draw := rand.New(rand.NewPCG(seed, 1))
		base := uint64(1)
		if seed%5 == 4 {
			base = math.MaxUint64 - 6000
		}
		ids := make([]uint64, 3000)
		for i := range ids {
			switch draw.IntN(40) {
			case 0:
				base += draw.Uint64N(windowSize * 3)
			case 1:
				base += windowSize - 1 + draw.Uint64N(3)
			default:
				base += draw.Uint64N(3)
			}
			ids[i] = base - min(base, draw.Uint64N(windowSize+200))
		}
		checkWindow(t, ids)
	}
}

func FuzzWindow(f *testing.F) {
	f.Add([]byte{0, 1, 1, 2, 255, 200, 7})
	f.Add([]byte{200, 200, 1, 100, 200, 3})
	f.Fuzz(func(t *testing.T, steps []byte) {
		var ids []uint64
		var at uint64
		for _, s := range steps {
			switch { // small steps both ways, and jumps about as long as the window
			case s < 100:
				at += uint64(s)
			case s < 200:
				at -= min(at, uint64(s-100))
			default:
				at += windowSize - 28 + uint64(s-200)
			}
			ids = append(ids, at)
		}
		checkWindow(t, ids)
	})
}
