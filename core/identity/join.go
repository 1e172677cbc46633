package identity

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
)

const joinScheme = "cproxy://"

// joinShape is what every complaint about a join string ends in.
const joinShape = "it must be cproxy://NAME:SECRET@HOST:PORT?pin=sha256:..., copied whole from `cproxy-server token add`"

// maxHostLength is the longest host name DNS can carry (RFC 1035 2.3.4).
const maxHostLength = 253

// Join is everything a client needs to connect: the name and secret of its
// token, the server's control address, and the pin of the server's key. It
// prints with the secret masked; Reveal returns the whole text.
type Join struct {
	Name    string
	Secret  TokenSecret
	Address string // "host:port" as net.Dial takes it; IPv6 in brackets
	Pin     *Pin   // nil: verify by CA file or system roots
}

// ParseJoin reads cproxy://NAME:SECRET@HOST:PORT?pin=sha256:... and nothing
// looser: no path, no escapes, no query key but pin. White space around it is
// ignored, so a line read from a file works. Errors never contain the secret.
func ParseJoin(s string) (Join, error) {
	join, err := parseJoin(strings.TrimSpace(s))
	if err != nil {
		return Join{}, fmt.Errorf("read join string: %w: %s", err, joinShape)
	}
	return join, nil
}

func parseJoin(s string) (Join, error) {
	rest, ok := strings.CutPrefix(s, joinScheme)
	if !ok {
		return Join{}, errors.New("it does not begin with " + joinScheme)
	}
	credential, rest, ok := strings.Cut(rest, "@")
	if !ok {
		return Join{}, errors.New("it has no @ between credential and host")
	}
	name, secret, err := ParseCredential(credential)
	if err != nil {
		return Join{}, err
	}
	address, query, hasQuery := strings.Cut(rest, "?")
	if err := checkAddress(address); err != nil {
		return Join{}, err
	}
	join := Join{Name: name, Secret: secret, Address: address}
	if hasQuery {
		if join.Pin, err = parseJoinQuery(query); err != nil {
			return Join{}, err
		}
	}
	return join, nil
}

// parseJoinQuery accepts exactly one pin. What it refuses is not quoted: with a
// stray ? in it, the query could be anything.
func parseJoinQuery(query string) (*Pin, error) {
	text, ok := strings.CutPrefix(query, "pin=")
	if !ok || strings.Contains(text, "&") {
		return nil, errors.New("after ? only one pin=... may follow")
	}
	pin, err := ParsePin(text)
	if err != nil {
		return nil, errors.New("its pin is damaged")
	}
	return &pin, nil
}

// checkAddress accepts HOST:PORT with a DNS name, an IPv4 address or an IPv6
// address in brackets. It does not quote the address: after a misplaced @ it
// could hold the secret.
func checkAddress(address string) error {
	colon := strings.LastIndexByte(address, ':')
	if colon < 0 || strings.HasSuffix(address, "]") {
		return errors.New("the port is missing after the host")
	}
	if err := checkPort(address[colon+1:]); err != nil {
		return err
	}
	return checkHost(address[:colon])
}

func checkPort(port string) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return errors.New("the port is not a number from 1 to 65535")
	}
	return nil
}

func checkHost(host string) error {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		addr, err := netip.ParseAddr(inner)
		if !closed || err != nil || !addr.Is6() || addr.Zone() != "" {
			return errors.New("the host in brackets is not an IPv6 address without a zone")
		}
		return nil
	}
	if strings.Contains(host, ":") {
		return errors.New("an IPv6 host needs brackets, as in [2001:db8::1]:7000")
	}
	if strings.Trim(host, "0123456789.") == "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return errors.New("the host is neither an IPv4 address nor a name")
		}
		return nil
	}
	return checkHostName(host)
}

func checkHostName(host string) error {
	if len(host) > maxHostLength {
		return fmt.Errorf("the host name is longer than %d bytes", maxHostLength)
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(host, "."), ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return errors.New("the host name has an empty label, or one with a hyphen at its edge")
		}
		for i := range len(label) {
			if c := label[i]; !isAlphanumeric(c) && c != '-' && c != '_' {
				return errors.New("the host name has a character that is not allowed")
			}
		}
	}
	return nil
}

// Reveal returns the whole join string, secret included. It does not check the
// fields; ParseJoin of the result does.
func (j Join) Reveal() string { return j.text(j.Secret.Reveal()) }

// String returns the join string with the secret masked.
func (j Join) String() string { return j.text(masked) }

// GoString returns the join string with the secret masked.
func (j Join) GoString() string { return j.String() }

// LogValue returns the join string with the secret masked.
func (j Join) LogValue() slog.Value { return slog.StringValue(j.String()) }

// MarshalText returns the join string with the secret masked, so that no encoder
// writes it by accident.
func (j Join) MarshalText() ([]byte, error) { return []byte(j.String()), nil }

func (j Join) text(secret string) string {
	s := joinScheme + j.Name + ":" + secret + "@" + j.Address
	if j.Pin != nil {
		s += "?pin=" + j.Pin.String()
	}
	return s
}
