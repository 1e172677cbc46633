package identity

import (
	"bytes"
	"reflect"
	"testing"
)

func FuzzDecodeTokens(f *testing.F) {
	hash := "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
	f.Add([]byte(""))
	f.Add([]byte("[[token]]\nname = \"web\"\nsha256 = \"" + hash + "\"\n"))
	f.Add([]byte("[[token]]\nname='a'\nsha256='" + hash + "'\ncreated=9999-12-31T23:59:59.5-01:00\n" +
		"ports=['1-2','3']\nbind=['::','::ffff:1.2.3.4']\nmax_tunnels=9\nrate_up=5\nrate_down='3GiB'\n"))
	f.Add([]byte("token = [{name = \"a\", sha256 = \"\\u0030\"}]"))
	f.Add([]byte("[[token]]\n[[token]]\nname = 1\n"))
	f.Add([]byte("[token]\nname = \"a\"\n"))
	f.Add([]byte("[[token]]\n[token.name]\n[[token.ports]]\n"))
	f.Add([]byte("[[token]]\nbind = [\"fe80::1%\\u0022\"]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tokens, err := decodeTokens("tokens.toml", data)
		if err != nil {
			if err.Error() == "" {
				t.Error("error without a message")
			}
			return
		}
		encoded := encodeTokens(tokens)
		again, err := decodeTokens("tokens.toml", encoded)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, encoded)
		}
		if !bytes.Equal(encodeTokens(again), encoded) {
			t.Errorf("second writing differs from the first:\n%s", encoded)
		}
		for i, token := range tokens {
			if !again[i].Created.Equal(token.Created) {
				t.Errorf("created %v became %v", token.Created, again[i].Created)
			}
			again[i].Created = token.Created // another *time.Location for the same offset
		}
		if len(tokens) > 0 && !reflect.DeepEqual(again, tokens) {
			t.Errorf("%+v became %+v", tokens, again)
		}
	})
}
