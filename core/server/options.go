package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/rate"
	"github.com/cproxy/cproxy/core/relay"
)

// Options configure a Server. They may not be changed after New.
type Options struct {
	CtlListen   string // host:port of the control port
	ProxyListen string // host:port of the proxy port; the host is an address or empty
	TLS         *tls.Config
	Loops       int // event loops, at least 1
	// Descriptors is how many files the process may have open (RLIMIT_NOFILE).
	// Visitors are bounded so that their ProxyConns find one; 0 leaves that out.
	Descriptors int
	Policy      Policy
	// Secret is what session keys are derived from; 32 random bytes.
	Secret        [32]byte
	Authenticator Authenticator
	// Revoked delivers subjects whose Controls end at once; nil if there are
	// no revocations. A name is sent after Authenticate has begun to refuse it.
	Revoked <-chan []string
	// PortsFile is where the public ports of tunnels are remembered from one run
	// to the next, made at need; empty: they are not. Nobody else may write it.
	PortsFile string
	// Regranted delivers grants that have changed, by subject; nil if none do. They
	// are sent after Authenticate has begun to give them.
	Regranted <-chan map[string]identity.Grants
	Version   string
	Log       *slog.Logger
	// Ready is called once, when both ports are being served.
	Ready func(ctl, proxy netip.AddrPort)
}

// Policy is the part of the configuration that Reconfigure replaces while the
// server runs.
type Policy struct {
	// ProxyAdvertise is the host:port at which clients reach the proxy port, which
	// counts from their next connection on; empty: where it listens.
	ProxyAdvertise   string
	PublicBind       []netip.Addr // where tunnels listen that do not ask for an address
	Ports            []identity.PortRange
	MaxTunnels       int           // per client; 0: no limit
	MaxConns         int           // PublicConns per tunnel; 0: no limit
	RateUp, RateDown rate.Bytes    // of a tunnel, from and to its visitors; 0: no limit
	PoolMax          int           // idle ProxyConns kept per client; 0: none is used twice
	Grace            time.Duration // for a client to come back before its listeners close
	Heartbeat        time.Duration
	Relay            relay.Settings
	HandshakeTimeout time.Duration // from accept to Hello, 5 s when zero
}

// Login is what an Authenticator is asked: the credential, and facts about who
// presents it.
type Login struct {
	Token    string
	Secret   identity.TokenSecret
	Client   string // the name that the client gives itself
	Hostname string
	Version  string
	Peer     netip.AddrPort

	doubt func() // nil, or to be called before the rest of an answer takes long
}

// Identity is who a client is, and what it may do.
type Identity struct {
	Subject string
	Grants  identity.Grants
}

// Authenticator decides who may connect. It is called on the goroutine of the
// connection and may block until ctx ends. An error that wraps
// identity.ErrBadCredential refuses for good; every other one means that
// nobody could decide, and refuses for now.
type Authenticator interface {
	Authenticate(ctx context.Context, l Login) (Identity, error)
}

// Tokens is the built-in Authenticator: the subject is the token's name.
func Tokens(p *identity.Provider) Authenticator { return tokens{p} }

type tokens struct{ provider *identity.Provider }

func (t tokens) Authenticate(_ context.Context, l Login) (Identity, error) {
	token, err := t.provider.Authenticate(l.Token, l.Secret)
	if errors.Is(err, identity.ErrBadCredential) {
		// A token that was added a moment ago may not have been read yet, and
		// this refusal is for good.
		if l.doubt != nil {
			l.doubt()
		}
		token, err = t.provider.AuthenticateAnew(l.Token, l.Secret)
	}
	if err != nil {
		return Identity{}, err
	}
	return Identity{Subject: token.Name, Grants: token.Grants}, nil
}

// room is what there is before the first client.
func (o *Options) room() room {
	r := room{descriptors: o.Descriptors, loops: o.Loops}
	r.fit(0, 0)
	return r
}

func (o *Options) check() error {
	var problems []error
	if o.TLS == nil {
		problems = append(problems, errors.New("no TLS configuration"))
	}
	if o.Authenticator == nil {
		problems = append(problems, errors.New("no authenticator"))
	}
	if o.Log == nil {
		problems = append(problems, errors.New("no logger"))
	}
	if o.Loops < 1 {
		problems = append(problems, fmt.Errorf("%d event loops: at least 1 is needed", o.Loops))
	}
	problems = append(problems, o.Policy.check())
	return errors.Join(problems...)
}

func (p *Policy) check() error {
	var problems []error
	if len(p.PublicBind) == 0 {
		problems = append(problems, errors.New("no public bind address"))
	}
	if len(p.Ports) == 0 {
		problems = append(problems, errors.New("no public ports"))
	}
	if p.Heartbeat <= 0 {
		problems = append(problems, errors.New("no heartbeat interval"))
	}
	return errors.Join(problems...)
}
