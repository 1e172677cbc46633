package identity

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// A token that was added a moment ago counts before Run has read the file, and
// a file that is half written takes no other token away.
func TestAuthenticateAnew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.toml")
	old, err := AddToken(path, "old", Grants{})
	if err != nil {
		t.Fatal(err)
	}
	p := NewProvider(path, slog.New(slog.DiscardHandler))
	if err := p.Load(); err != nil {
		t.Fatal(err)
	}
	fresh, err := AddToken(path, "fresh", Grants{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.AuthenticateAnew("fresh", old); !errors.Is(err, ErrBadCredential) {
		t.Errorf("a wrong secret gave %v", err)
	}
	if token, err := p.AuthenticateAnew("fresh", fresh); err != nil || token.Name != "fresh" {
		t.Errorf("the new token gave %v, %v", token.Name, err)
	}
	if _, err := p.Authenticate("fresh", fresh); err != nil {
		t.Errorf("it was not taken over: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // about to be rewritten
		t.Fatal(err)
	}
	if _, err := p.AuthenticateAnew("unknown", fresh); !errors.Is(err, ErrBadCredential) {
		t.Errorf("an unknown name gave %v", err)
	}
	if _, err := p.Authenticate("old", old); err != nil {
		t.Errorf("a login that failed took another token away: %v", err)
	}
	select {
	case names := <-p.Revoked():
		t.Errorf("revoked %v", names)
	default:
	}
}

// A file that has not changed is read once for all who ask, and once more when it
// has; what Run found gone is not brought back from before.
func TestAuthenticateAnewReadsOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens.toml")
	p := NewProvider(path, slog.New(slog.DiscardHandler))
	first, err := AddToken(path, "first", Grants{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.AuthenticateAnew("nobody", first); !errors.Is(err, ErrBadCredential) {
		t.Errorf("an unknown name gave %v", err)
	}
	if stamp := stampOf(path); p.seen.stamp != stamp || len(p.seen.tokens) != 1 {
		t.Fatalf("seen %v with %d tokens, the file is %v", p.seen.stamp, len(p.seen.tokens), stamp)
	}
	read := &p.seen.tokens[0]
	if _, err := p.AuthenticateAnew("first", first); err != nil {
		t.Errorf("a token of the file that was read for another gave %v", err)
	}
	if read != &p.seen.tokens[0] {
		t.Error("a file that has not changed was read again")
	}
	second, err := AddToken(path, "second", Grants{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.AuthenticateAnew("second", second); err != nil {
		t.Errorf("a token that was added since gave %v", err)
	}
	if err := p.Load(); err != nil {
		t.Fatal(err)
	}
	if p.seen.tokens != nil {
		t.Error("what was seen before the file was loaded is remembered")
	}
}
