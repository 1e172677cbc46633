package server

import (
	"log/slog"
	"net/netip"

	"github.com/cproxy/cproxy/core/wire"
)

// maxRefusedKeys bounds the addresses and tokens whose refused logins have lines
// of their own.
const maxRefusedKeys = 1024

// refusedLogin gives the attributes of the line `client refused`, which programs
// read too: they keep their names and their order. What the client says of itself
// is one printable line, see wire.ValidateName.
func refusedLogin(hello *wire.Hello, peer netip.AddrPort, r *wire.Refusal) []any {
	return []any{
		"client", hello.GetName(), "subject", hello.GetCredential().GetName(), "source", peer.String(),
		"code", r.GetCode().Label(), "reason", r.GetReason(),
	}
}

// logRefused logs a refused login. Repetitions are counted by network and token,
// so that a noisy client hides none that shares its address; an address that is
// made to wait has one line, whatever tokens it tries.
func (d *door) logRefused(hello *wire.Hello, peer netip.AddrPort, r *wire.Refusal) {
	key := network(peer.Addr()).String()
	if r.GetCode() != wire.CodeRate {
		key += " " + hello.GetCredential().GetName()
	}
	d.logins.Log(slog.LevelWarn, key, "client refused", refusedLogin(hello, peer, r)...)
}
