package identity

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ErrBadCredential tells that a token's name is unknown or its secret wrong;
// which of the two is not told.
var ErrBadCredential = errors.New("credential is not valid: " +
	"it was revoked or mistyped; get a new join string from `cproxy-server token add`")

// Provider answers from a tokens file who may connect, and follows the file
// while Run runs. Authenticate, Len, Revoked and Regranted may be used from any
// goroutine at any time.
type Provider struct {
	path string
	log  *slog.Logger

	current atomic.Pointer[snapshot]
	revoked chan []string
	granted chan map[string]Grants

	// mu serialises readers of the file; it is never held by Authenticate.
	mu sync.Mutex
	// broken is the digest of the last content that was refused, so that it is
	// logged once, however often it is read.
	broken [sha256.Size]byte
	// seen is what AuthenticateAnew read last.
	seen sighting
}

// sighting is what a file had in it when it looked so.
type sighting struct {
	stamp  fileStamp
	tokens Tokens // nil if it could not be read
}

// fileStamp tells one state of a file from another. The zero one is of no file.
type fileStamp struct {
	device, inode     uint64
	size              int64
	modified, changed unix.Timespec
}

func stampOf(path string) fileStamp {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return fileStamp{}
	}
	return fileStamp{device: s.Dev, inode: s.Ino, size: s.Size, modified: s.Mtim, changed: s.Ctim}
}

// snapshot is one state of the file; it is never modified.
type snapshot struct {
	digest [sha256.Size]byte
	tokens map[string]Token
}

// NewProvider returns a provider without tokens. Load reads the file, Run
// follows it.
func NewProvider(path string, log *slog.Logger) *Provider {
	p := &Provider{path: path, log: log, revoked: make(chan []string, 1), granted: make(chan map[string]Grants, 1)}
	p.current.Store(&snapshot{})
	return p
}

// Load reads the file now. If it cannot be read or is damaged, the tokens stay
// as they were and the error says what is wrong with it.
func (p *Provider) Load() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, err := p.load()
	return err
}

// Len returns how many tokens there are now.
func (p *Provider) Len() int { return len(p.current.Load().tokens) }

// Authenticate returns the token of that name if secret is its secret, and
// ErrBadCredential otherwise. An unknown name costs the same work as a wrong
// secret, so that time does not tell which names exist. It never blocks.
func (p *Provider) Authenticate(name string, secret TokenSecret) (Token, error) {
	token, known := p.current.Load().tokens[name]
	matches := secret.Matches(token.Hash) // of zeros if unknown
	if !known || !matches {
		return Token{}, ErrBadCredential
	}
	return token, nil
}

// AuthenticateAnew is Authenticate by what the file says at this moment, for a
// token that was added so recently that Run has not read it. It takes over no
// more than the token that it returns: the file may be half written, which only
// Run, who waits until it rests, can tell. It blocks on the disk, but reads a file
// only once as long as that does not change, whoever asks how often.
func (p *Provider) AuthenticateAnew(name string, secret TokenSecret) (Token, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stamp := stampOf(p.path) // before it is read: a change meanwhile shows the next time
	if stamp == (fileStamp{}) || stamp != p.seen.stamp {
		tokens, err := LoadTokens(p.path)
		if err != nil {
			tokens = nil // what is wrong with the file is for Run to say
		}
		p.seen = sighting{stamp: stamp, tokens: tokens}
	}
	token, known := p.seen.tokens.Find(name)
	matches := secret.Matches(token.Hash)
	if !known || !matches {
		return Token{}, ErrBadCredential
	}
	previous := p.current.Load()
	next := &snapshot{tokens: maps.Clone(previous.tokens)} // without a digest: Run reads the file again
	if next.tokens == nil {
		next.tokens = make(map[string]Token)
	}
	next.tokens[name] = token
	p.current.Store(next)
	p.publish(revokedBetween(previous, next))
	p.publishGrants(grantedBetween(previous, next))
	return token, nil
}

// Revoked delivers names of tokens that were removed, or whose secret changed,
// since the names delivered before. A name is delivered after Authenticate has
// begun to refuse its old secret, and none is lost: while nobody receives, names
// gather into one sorted delivery. A name may be valid again, with another
// secret, by the time it is received. The channel is never closed and is meant
// for one receiver.
func (p *Provider) Revoked() <-chan []string { return p.revoked }

// Regranted delivers the grants of tokens whose secret stayed the same and whose
// grants changed, by name, since the ones delivered before; of several changes of
// a token the last counts. It is delivered after Authenticate has begun to give
// them. The channel is never closed and is meant for one receiver.
func (p *Provider) Regranted() <-chan map[string]Grants { return p.granted }

// load reads the file and reports whether its content is new; mu is held.
func (p *Provider) load() (changed bool, err error) {
	data, err := readTokens(p.path)
	if err != nil {
		return false, err
	}
	previous := p.current.Load()
	digest := sha256.Sum256(data)
	if previous.tokens != nil && digest == previous.digest {
		return false, nil
	}
	tokens, err := decodeTokens(p.path, data)
	if err != nil {
		return false, fmt.Errorf("read tokens file: %w", err)
	}
	p.seen = sighting{} // must never bring back what this takes away
	next := &snapshot{digest: digest, tokens: make(map[string]Token, len(tokens))}
	for _, token := range tokens {
		next.tokens[token.Name] = token
	}
	p.current.Store(next)
	p.publish(revokedBetween(previous, next))
	p.publishGrants(grantedBetween(previous, next))
	return true, nil
}

// reload is load for Run, which has nobody to return an error to.
func (p *Provider) reload() {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed, err := p.load()
	if err != nil {
		p.logBroken(err)
		return
	}
	p.broken = [sha256.Size]byte{}
	switch n := p.Len(); {
	case changed && n == 0:
		p.log.Warn("there are no tokens, so no client can connect: add one with `cproxy-server token add NAME`", "path", p.path)
	case changed:
		p.log.Info("tokens file read", "path", p.path, "tokens", n)
	}
}

// logBroken logs a refused file once per content. What is wrong with a file that
// cannot even be read stands in for its content.
func (p *Provider) logBroken(err error) {
	data, readErr := readTokens(p.path)
	if readErr != nil {
		data = []byte(readErr.Error())
	}
	digest := sha256.Sum256(data)
	if digest == p.broken {
		return
	}
	p.broken = digest
	p.log.Error("tokens file refused, the tokens stay as they were: correct it, it is read again on change",
		"path", p.path, "error", err)
}

// publish adds names to what the receiver of Revoked has not taken yet. It does
// not block: mu makes it the only sender, and it empties the channel first.
func (p *Provider) publish(names []string) {
	if len(names) == 0 {
		return
	}
	select {
	case waiting := <-p.revoked:
		names = append(names, waiting...)
	default:
	}
	slices.Sort(names)
	p.revoked <- slices.Compact(names)
}

func revokedBetween(previous, next *snapshot) []string {
	var names []string
	for name, old := range previous.tokens {
		if token, kept := next.tokens[name]; !kept || token.Hash != old.Hash {
			names = append(names, name)
		}
	}
	return names
}

// publishGrants adds changed grants to what the receiver of Regranted has not
// taken yet. It does not block, as publish.
func (p *Provider) publishGrants(changed map[string]Grants) {
	if len(changed) == 0 {
		return
	}
	select {
	case waiting := <-p.granted:
		maps.Copy(waiting, changed)
		changed = waiting
	default:
	}
	p.granted <- changed
}

func grantedBetween(previous, next *snapshot) map[string]Grants {
	changed := make(map[string]Grants)
	for name, old := range previous.tokens {
		if token, kept := next.tokens[name]; kept && token.Hash == old.Hash && !reflect.DeepEqual(token.Grants, old.Grants) {
			changed[name] = token.Grants
		}
	}
	return changed
}
