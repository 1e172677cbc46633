package wire

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Limits that Validate enforces, beside those of sizes and charsets.
const (
	MaxName          = 64                    // bytes of any name
	MaxHostname      = 255                   // bytes of Hello.hostname
	MaxVersionText   = 128                   // bytes of client_version and server_version
	MaxAddress       = 261                   // bytes of host:port: 255, a colon and five digits
	MaxAddresses     = 16                    // TunnelSpec.bind, TunnelRegistered.public_addresses
	MaxNeedProxyConn = 1 << 16               // NeedProxyConn.n
	MaxPool          = 1 << 16               // Welcome.pool_max
	MinHeartbeat     = 10 * time.Millisecond // Welcome.heartbeat_ms
	MaxHeartbeat     = time.Hour             // Welcome.heartbeat_ms
	MaxRetryAfter    = 24 * time.Hour        // Goodbye.retry_after_ms
	maxPort          = uint32(1<<16) - 1     // of any port
)

var errUnknownKind = errors.New("message of a kind that this protocol version does not have")

// Validate reports what is wrong with a message from a client, or nil. It
// checks form only: whether a version, credential or port is acceptable is for
// the server to decide.
func (x *ClientMessage) Validate() error {
	var err error
	switch kind := x.GetKind().(type) {
	case *ClientMessage_Hello:
		err = kind.Hello.validate()
	case *ClientMessage_RegisterTunnel:
		err = kind.RegisterTunnel.GetSpec().Validate()
	case *ClientMessage_CloseTunnel:
		err = ValidateName(kind.CloseTunnel.GetName())
	case *ClientMessage_Pong:
	case *ClientMessage_Goodbye:
		err = kind.Goodbye.validate()
	default:
		return errUnknownKind
	}
	return within(x.KindName(), err)
}

// Validate reports what is wrong with a message from a server, or nil. It
// checks form only.
func (x *ServerMessage) Validate() error {
	var err error
	switch kind := x.GetKind().(type) {
	case *ServerMessage_Welcome:
		err = kind.Welcome.validate()
	case *ServerMessage_TunnelRegistered:
		err = kind.TunnelRegistered.validate()
	case *ServerMessage_TunnelRejected:
		err = kind.TunnelRejected.validate()
	case *ServerMessage_NeedProxyConn:
		err = between("n", uint64(kind.NeedProxyConn.GetN()), 1, MaxNeedProxyConn)
	case *ServerMessage_Ping:
	case *ServerMessage_Goodbye:
		err = kind.Goodbye.validate()
	default:
		return errUnknownKind
	}
	return within(x.KindName(), err)
}

// Validate reports what is wrong with the form of a tunnel specification, or
// nil. Whether its type is known is for the server to decide.
func (x *TunnelSpec) Validate() error {
	if err := ValidateName(x.GetName()); err != nil {
		return err
	}
	if err := ValidateName(x.GetType()); err != nil {
		return within("type", err)
	}
	first, last := x.GetPortFirst(), x.GetPortLast()
	if random := first == 0 && last == 0; !random && (first < 1 || first > last || last > maxPort) {
		return fmt.Errorf("ports %d to %d: want a range within 1 to %d, or 0 to 0 for any", first, last, maxPort)
	}
	if err := between("number of bind addresses", uint64(len(x.GetBind())), 0, MaxAddresses); err != nil {
		return err
	}
	for _, bind := range x.GetBind() {
		if err := text("bind", bind, MaxAddress); err != nil {
			return err
		}
		if _, err := netip.ParseAddr(bind); err != nil {
			return fmt.Errorf("bind %q is no IP address", bind)
		}
	}
	return nil
}

// ValidateName reports whether s may name a client, a credential or a tunnel:
// 1 to 64 of the characters A-Z a-z 0-9 . _ -
func ValidateName(s string) error {
	if len(s) < 1 || len(s) > MaxName {
		return fmt.Errorf("name of %d bytes: want 1 to %d", len(s), MaxName)
	}
	for _, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == '-':
		default:
			return fmt.Errorf("name %q: want only letters, digits and . _ -", s)
		}
	}
	return nil
}

func (x *Hello) validate() error {
	if err := ValidateName(x.GetName()); err != nil {
		return err
	}
	if err := size("instance", x.GetInstance(), InstanceSize); err != nil {
		return err
	}
	if err := text("hostname", x.GetHostname(), MaxHostname); err != nil {
		return err
	}
	if err := text("client_version", x.GetClientVersion(), MaxVersionText); err != nil {
		return err
	}
	if err := between("pool_max", uint64(x.GetPoolMax()), 0, MaxPool); err != nil {
		return err
	}
	switch auth := x.GetAuth().(type) {
	case *Hello_Credential:
		if err := ValidateName(auth.Credential.GetName()); err != nil {
			return within("credential", err)
		}
		return within("credential", size("secret", auth.Credential.GetSecret(), SecretSize))
	case *Hello_Proof:
		return size("proof", auth.Proof, ProofSize)
	}
	return errors.New("neither credential nor proof")
}

func (x *Goodbye) validate() error {
	if err := x.GetRefusal().validate(); err != nil {
		return err
	}
	return between("retry_after_ms", x.GetRetryAfterMs(), 0, uint64(MaxRetryAfter.Milliseconds()))
}

func (x *Refusal) validate() error {
	if x == nil {
		return errors.New("refusal is missing")
	}
	return text("reason", x.GetReason(), MaxReason)
}

func (x *Welcome) validate() error {
	if x.GetControlId() == 0 {
		return errors.New("control_id is missing")
	}
	if err := size("session_key", x.GetSessionKey(), SessionKeySize); err != nil {
		return err
	}
	err := between("heartbeat_ms", x.GetHeartbeatMs(),
		uint64(MinHeartbeat.Milliseconds()), uint64(MaxHeartbeat.Milliseconds()))
	if err != nil {
		return err
	}
	if _, err := hostPort("proxy_address", x.GetProxyAddress()); err != nil {
		return err
	}
	if mode := x.GetMode(); mode != ModePlain && mode != ModeTLS {
		return fmt.Errorf("mode %d is unknown", mode)
	}
	for _, tunnel := range x.GetTunnels() {
		if err := tunnel.validate(); err != nil {
			return within("tunnel", err)
		}
	}
	if err := text("server_version", x.GetServerVersion(), MaxVersionText); err != nil {
		return err
	}
	return between("pool_max", uint64(x.GetPoolMax()), 0, MaxPool)
}

func (x *TunnelRegistered) validate() error {
	if err := ValidateName(x.GetName()); err != nil {
		return err
	}
	if x.GetId() == 0 {
		return errors.New("id is missing")
	}
	addresses := x.GetPublicAddresses()
	if err := between("number of public addresses", uint64(len(addresses)), 1, MaxAddresses); err != nil {
		return err
	}
	for _, address := range addresses {
		host, err := hostPort("public address", address)
		if err != nil {
			return err
		}
		if host == "" {
			return fmt.Errorf("public address %q has no host", address)
		}
	}
	return nil
}

func (x *TunnelRejected) validate() error {
	if err := ValidateName(x.GetName()); err != nil {
		return err
	}
	return x.GetRefusal().validate()
}

// within puts the place of an error before it.
func within(place string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", place, err)
}

func size(field string, value []byte, want int) error {
	if len(value) != want {
		return fmt.Errorf("%s of %d bytes: want %d", field, len(value), want)
	}
	return nil
}

func between(field string, value, least, most uint64) error {
	if value < least || value > most {
		return fmt.Errorf("%s is %d: want %d to %d", field, value, least, most)
	}
	return nil
}

// text checks that value is short and safe to print and log.
func text(field, value string, limit int) error {
	if len(value) > limit {
		return fmt.Errorf("%s of %d bytes: want at most %d", field, len(value), limit)
	}
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) }
	if !utf8.ValidString(value) || strings.ContainsFunc(value, unprintable) {
		return fmt.Errorf("%s %q: want printable text", field, value)
	}
	return nil
}

// hostPort checks host:port and returns the host, which may be empty.
func hostPort(field, value string) (string, error) {
	if err := text(field, value, MaxAddress); err != nil {
		return "", err
	}
	host, port, err := net.SplitHostPort(value)
	if err != nil {
		return "", fmt.Errorf("%s %q: want host:port", field, value)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%s %q: want a port of 1 to %d", field, value, maxPort)
	}
	return host, nil
}
