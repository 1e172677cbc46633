package client

import (
	"errors"
	"testing"

	"github.com/cproxy/cproxy/core/wire"
)

// codeRule is what a client does about one code.
type codeRule struct {
	permanent bool
	session   bool // is worth a proof after this Goodbye
}

// codeRules has every code. Permanent refusals end a client only before its
// first Welcome; TestFirstRefusal and the others show what happens later.
func codeRules() map[wire.Code]codeRule {
	return map[wire.Code]codeRule{
		wire.CodeUnspecified:     {false, true},
		wire.CodeVersion:         {true, false},
		wire.CodeBadCredential:   {true, false},
		wire.CodeForbidden:       {true, false},
		wire.CodeUnavailable:     {false, true},
		wire.CodeRate:            {false, true},
		wire.CodeSuperseded:      {false, false},
		wire.CodeStaleEpoch:      {false, true},
		wire.CodeRevoked:         {true, false},
		wire.CodeShutdown:        {false, true},
		wire.CodeKicked:          {false, true},
		wire.CodePortTaken:       {false, true},
		wire.CodePortNotGranted:  {true, false},
		wire.CodePortOutOfRange:  {true, false},
		wire.CodeBindNotGranted:  {true, false},
		wire.CodeTunnelLimit:     {true, false},
		wire.CodeDuplicateTunnel: {true, false},
		wire.CodeBadRequest:      {true, false},
		wire.CodeProtocol:        {false, true},
		wire.CodeDone:            {false, false},
		wire.CodeNotResumable:    {false, false},
	}
}

func TestEveryCodeHasARule(t *testing.T) {
	rules := codeRules()
	for number, name := range wire.Code_name {
		if _, known := rules[wire.Code(number)]; !known {
			t.Errorf("nobody has decided what a client does about %s", name)
		}
	}
}

func TestFirstRefusal(t *testing.T) {
	for code, rule := range codeRules() {
		t.Run(code.String(), func(t *testing.T) {
			s := newFakeServer(t)
			r := start(t, s.options(), nil)
			s.login().goodbye(code)
			if !rule.permanent {
				if k := s.login(); k.hello.GetEpoch() != 2 || k.hello.GetCredential() == nil {
					t.Errorf("second Hello: %v, want epoch 2 with the credential", k.hello)
				}
				return
			}
			err := r.result()
			if refused, ok := errors.AsType[*wire.RefusedError](err); !ok || refused.Code() != code || !IsRefused(err) {
				t.Errorf("Run = %v, want a refusal for good with %v", err, code)
			}
		})
	}
}

func TestRefusalWhileConnected(t *testing.T) {
	for code, rule := range codeRules() {
		t.Run(code.String(), func(t *testing.T) {
			s := newFakeServer(t)
			start(t, s.options(), nil)
			s.login().welcome(nil).goodbye(code)
			k := s.login() // whatever it was
			if got := k.hello.GetProof() != nil; got != rule.session || k.hello.GetEpoch() != 2 {
				t.Errorf("next Hello: %v, want a proof: %v", k.hello, rule.session)
			}
			k.welcome(nil).quiet()
		})
	}
}

// A proof that is refused for now is tried again; one that is refused for good,
// or not known, is not.
func TestRefusalOfAProof(t *testing.T) {
	for code, rule := range codeRules() {
		t.Run(code.String(), func(t *testing.T) {
			s := newFakeServer(t)
			start(t, s.options(), nil)
			s.login().welcome(nil).drop()
			k := s.login()
			if k.hello.GetProof() == nil {
				t.Fatalf("second Hello: %v, want a proof", k.hello)
			}
			k.goodbye(code)
			k = s.login()
			want := !rule.permanent && code != wire.CodeNotResumable
			if got := k.hello.GetProof() != nil; got != want || k.hello.GetEpoch() != 3 {
				t.Errorf("third Hello: %v, want a proof: %v", k.hello, want)
			}
			k.welcome(nil).quiet()
		})
	}
}

func TestRefusalOfTheOnlyTunnel(t *testing.T) {
	for code, rule := range codeRules() {
		t.Run(code.String(), func(t *testing.T) {
			s := newFakeServer(t)
			r := start(t, s.options(local("web")), nil)
			k := s.login().welcome(nil)
			k.registers("web")
			k.reject("web", code)
			if !rule.permanent {
				k.registers("web")
				return
			}
			err := r.result()
			if refused, ok := errors.AsType[*wire.RefusedError](err); !ok || refused.Code() != code || !IsRefused(err) {
				t.Errorf("Run = %v, want a refusal for good with %v", err, code)
			}
		})
	}
}

// Once connected, a tunnel that is refused for good ends nothing but itself.
func TestRefusalOfATunnelLater(t *testing.T) {
	for code, rule := range codeRules() {
		t.Run(code.String(), func(t *testing.T) {
			s := newFakeServer(t)
			start(t, s.options(local("web")), nil)
			s.login().welcome(nil).drop()
			k := s.login().welcome(nil)
			k.registers("web")
			k.reject("web", code)
			if rule.permanent {
				k.quiet()
				return
			}
			k.registers("web")
		})
	}
}
