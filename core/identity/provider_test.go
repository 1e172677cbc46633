package identity_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cproxy/cproxy/core/identity"
)

// patience ends a test that waits for something that does not come; no result
// depends on it.
const patience = 30 * time.Second

// logLines is a slog handler that hands each message on.
type logLines struct {
	slog.Handler
	lines chan string
}

func (l logLines) Handle(_ context.Context, r slog.Record) error {
	text := fmt.Sprintf("%v: %s", r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	l.lines <- text
	return nil
}

func (l logLines) Enabled(context.Context, slog.Level) bool { return true }

// testProvider is a running provider and what it logs.
type testProvider struct {
	*identity.Provider
	path string
	log  logLines
}

// newProvider returns a provider of an empty directory that is not running.
func newProvider(t *testing.T) testProvider {
	t.Helper()
	log := logLines{Handler: slog.DiscardHandler, lines: make(chan string, 1000)}
	path := tokensPath(t)
	return testProvider{Provider: identity.NewProvider(path, slog.New(log)), path: path, log: log}
}

// start runs the provider until the test ends.
func (p testProvider) start(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func (p testProvider) add(t *testing.T, name string) identity.TokenSecret {
	t.Helper()
	secret, err := identity.AddToken(p.path, name, identity.Grants{})
	must(t, err)
	return secret
}

// awaitLog returns the next line that contains part.
func (p testProvider) awaitLog(t *testing.T, part string) string {
	t.Helper()
	for {
		if line := receive(t, p.log.lines); strings.Contains(line, part) {
			return line
		}
	}
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case value := <-ch:
		return value
	case <-time.After(patience):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func (p testProvider) wantRevoked(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for len(got) < len(want) {
		got = append(got, receive(t, p.Revoked())...)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("revoked %q, want %q", got, want)
	}
}

func (p testProvider) wantNoneRevoked(t *testing.T) {
	t.Helper()
	select {
	case names := <-p.Revoked():
		t.Errorf("revoked %q, want none", names)
	default:
	}
}

func TestAuthenticate(t *testing.T) {
	p := newProvider(t)
	secret := identity.NewTokenSecret()
	if _, err := p.Authenticate("web", secret); !errors.Is(err, identity.ErrBadCredential) {
		t.Errorf("before Load: %v, want ErrBadCredential", err)
	}
	secret = p.add(t, "web")
	other := p.add(t, "db")
	must(t, p.Load())
	if p.Len() != 2 {
		t.Errorf("Len() = %d, want 2", p.Len())
	}
	token, err := p.Authenticate("web", secret)
	if err != nil || token.Name != "web" {
		t.Errorf("Authenticate = %+v, %v", token, err)
	}
	for name, credential := range map[string]struct {
		name   string
		secret identity.TokenSecret
	}{
		"wrong secret":        {"web", identity.NewTokenSecret()},
		"secret of another":   {"web", other},
		"unknown name":        {"nobody", secret},
		"no name":             {"", secret},
		"zero secret":         {"web", identity.TokenSecret{}},
		"unknown, zero value": {"nobody", identity.TokenSecret{}},
	} {
		t.Run(name, func(t *testing.T) {
			token, err := p.Authenticate(credential.name, credential.secret)
			if !errors.Is(err, identity.ErrBadCredential) || token.Name != "" {
				t.Errorf("Authenticate = %+v, %v, want ErrBadCredential", token, err)
			}
		})
	}
	p.wantNoneRevoked(t)
}

func TestLoadKeepsTokensWhenTheFileIsBroken(t *testing.T) {
	p := newProvider(t)
	secret := p.add(t, "web")
	must(t, p.Load())
	must(t, os.WriteFile(p.path, []byte("[[token]]\n"), 0o600))
	if err := p.Load(); err == nil || !strings.Contains(err.Error(), p.path+":1") {
		t.Errorf("Load = %v, want file and line", err)
	}
	if _, err := p.Authenticate("web", secret); err != nil {
		t.Errorf("after the failed Load: %v", err)
	}
	p.wantNoneRevoked(t)
}

func TestRevocationsGatherUntilReceived(t *testing.T) {
	p := newProvider(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		p.add(t, name)
	}
	must(t, p.Load())
	for _, name := range []string{"d", "a"} {
		must(t, identity.RevokeToken(p.path, name))
		must(t, p.Load())
	}
	// A new secret under the old name revokes too, and again does not count twice.
	for range 2 {
		must(t, identity.RevokeToken(p.path, "b"))
		p.add(t, "b")
		must(t, p.Load())
	}
	if got := receive(t, p.Revoked()); !slices.Equal(got, []string{"a", "b", "d"}) {
		t.Errorf("revoked %q, want a, b and d at once", got)
	}
	p.wantNoneRevoked(t)
	if p.Len() != 2 {
		t.Errorf("Len() = %d, want b and c", p.Len())
	}
}

func TestRevocationsAreNeverLost(t *testing.T) {
	p := newProvider(t)
	const count = 40
	var want []string
	for i := range count {
		name := fmt.Sprintf("t%02d", i)
		p.add(t, name)
		want = append(want, name)
	}
	must(t, p.Load())
	var wg sync.WaitGroup
	wg.Go(func() {
		for _, name := range want {
			if err := identity.RevokeToken(p.path, name); err != nil {
				t.Errorf("revoke: %v", err)
			}
			if err := p.Load(); err != nil {
				t.Errorf("load: %v", err)
			}
		}
	})
	p.wantRevoked(t, want...)
	wg.Wait()
}

func TestRunFollowsTheFile(t *testing.T) {
	p := newProvider(t)
	p.start(t)
	p.awaitLog(t, "no tokens, so no client can connect")

	secret := p.add(t, "web") // the file appears
	p.awaitLog(t, "tokens=1")
	if _, err := p.Authenticate("web", secret); err != nil {
		t.Errorf("Authenticate: %v", err)
	}
	p.add(t, "db") // it is renamed into place
	p.awaitLog(t, "tokens=2")
	p.wantNoneRevoked(t)

	must(t, identity.RevokeToken(p.path, "web"))
	p.wantRevoked(t, "web")
	if _, err := p.Authenticate("web", secret); !errors.Is(err, identity.ErrBadCredential) {
		t.Errorf("after its revocation: %v, want ErrBadCredential", err)
	}

	data, err := os.ReadFile(p.path)
	must(t, err)
	must(t, os.Remove(p.path))
	p.wantRevoked(t, "db")
	must(t, os.WriteFile(p.path, data, 0o600)) // it is written in place
	p.awaitLog(t, "tokens=1")
	file, err := os.OpenFile(p.path, os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = file.WriteString("# touched\n")
	must(t, errors.Join(err, file.Close()))
	p.awaitLog(t, "tokens=1")
	p.wantNoneRevoked(t)
}

func TestRunLogsABrokenFileOncePerChange(t *testing.T) {
	p := newProvider(t)
	p.add(t, "web")
	must(t, p.Load())
	p.start(t)
	for i, broken := range []string{"[[token]]\n", "nonsense\n"} {
		must(t, identity.WritePrivate(p.path, []byte(broken)))
		line := p.awaitLog(t, "ERROR")
		if !strings.Contains(line, p.path+":1") || !strings.Contains(line, "stay as they were") {
			t.Errorf("change %d: logged %q", i, line)
		}
		// Other changes in the directory make it read the file again.
		must(t, os.WriteFile(filepath.Join(filepath.Dir(p.path), "other"), nil, 0o600))
	}
	if p.Len() != 1 {
		t.Errorf("Len() = %d, want the tokens as they were", p.Len())
	}
	p.wantNoneRevoked(t)

	// Whatever was logged in between, no error was logged twice.
	must(t, identity.WritePrivate(p.path, []byte("# none\n")))
	p.wantRevoked(t, "web")
	p.awaitLog(t, "no tokens")
	select {
	case line := <-p.log.lines:
		t.Errorf("logged %q", line)
	default:
	}
}

func TestRunFollowsLinks(t *testing.T) {
	p := newProvider(t)
	target := tokensPath(t)
	_, err := identity.AddToken(target, "web", identity.Grants{})
	must(t, err)
	must(t, os.Symlink(target, p.path))
	must(t, p.Load())
	p.start(t)
	must(t, identity.RevokeToken(target, "web"))
	p.wantRevoked(t, "web")
}

func TestRunSurvivesALostDirectory(t *testing.T) {
	p := newProvider(t)
	dir := filepath.Join(filepath.Dir(p.path), "sub")
	path := filepath.Join(dir, "tokens.toml")
	p.Provider, p.path = identity.NewProvider(path, slog.New(p.log)), path
	p.start(t)
	p.awaitLog(t, "cannot watch")

	must(t, os.Mkdir(dir, 0o700))
	p.add(t, "web")
	p.awaitLog(t, "tokens=1")

	must(t, os.RemoveAll(dir))
	p.wantRevoked(t, "web")
	p.awaitLog(t, "cannot watch")
	must(t, os.Mkdir(dir, 0o700))
	p.add(t, "again")
	p.awaitLog(t, "tokens=1")
}

func TestRunEndsWithItsContext(t *testing.T) {
	p := newProvider(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Run(ctx); err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}

// Changed grants are told, with the last state of each token; a new secret is a
// revocation instead.
func TestRegranted(t *testing.T) {
	p := newProvider(t)
	kept, other := p.add(t, "kept"), p.add(t, "other")
	must(t, p.Load())
	rewrite := func(ports string) {
		t.Helper()
		data, err := os.ReadFile(p.path)
		must(t, err)
		text := regexp.MustCompile(`(?m)^ports = .*\n`).ReplaceAllString(string(data), "")
		text = strings.ReplaceAll(text, "name = \"kept\"\n", "name = \"kept\"\n"+ports)
		must(t, identity.WritePrivate(p.path, []byte(text)))
		must(t, p.Load())
	}
	rewrite("ports = [\"443\"]\n")
	rewrite("ports = [\"444\"]\n")
	got := receive(t, p.Regranted())
	if len(got) != 1 || !slices.Equal(got["kept"].Ports, []identity.PortRange{{First: 444, Last: 444}}) {
		t.Errorf("told %v", got)
	}
	p.wantNoneRevoked(t)
	if token, err := p.Authenticate("kept", kept); err != nil || token.Grants.AllowsPort(443) {
		t.Errorf("%+v, %v", token, err)
	}
	must(t, identity.RevokeToken(p.path, "other"))
	must(t, p.Load())
	p.wantRevoked(t, "other")
	if _, err := p.Authenticate("other", other); err == nil {
		t.Error("a revoked token is valid")
	}
	select {
	case got := <-p.Regranted():
		t.Errorf("told %v", got)
	default:
	}
}
