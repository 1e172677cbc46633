package config

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cproxy/cproxy/core/rate"
)

// PortRange is an inclusive range of TCP ports. Both ends are at least 1,
// except in the zero value, which means "any port the server picks".
type PortRange struct {
	First, Last uint16
}

// IsZero reports whether the range leaves the choice to the server.
func (r PortRange) IsZero() bool { return r == PortRange{} }

// Contains reports whether port lies in the range.
func (r PortRange) Contains(port uint16) bool { return r.First <= port && port <= r.Last }

// String gives "443", "20000-20100" or, for the zero value, "random".
func (r PortRange) String() string {
	switch {
	case r.IsZero():
		return "random"
	case r.First == r.Last:
		return strconv.Itoa(int(r.First))
	default:
		return fmt.Sprintf("%d-%d", r.First, r.Last)
	}
}

// Local is the address of a LocalServer, as net.Dial takes it.
type Local struct {
	Network string // "tcp" or "unix"
	Address string // "host:port", or an absolute path
}

// String gives the form used in configuration files.
func (l Local) String() string {
	if l.Network == "unix" {
		return "unix:" + l.Address
	}
	return l.Address
}

// ProxyProtocol is the version of the PROXY header a tunnel writes to its
// LocalServer; the zero value writes none.
type ProxyProtocol string

// The PROXY protocol versions of the HAProxy specification.
const (
	ProxyNone ProxyProtocol = ""
	ProxyV1   ProxyProtocol = "v1"
	ProxyV2   ProxyProtocol = "v2"
)

// LogFormat is the form of log lines.
type LogFormat string

// The log formats.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// sunPathMax is the longest path of a unix socket: sun_path holds 108 bytes
// with the closing zero (unix(7)).
const sunPathMax = 107

// maxQuoted bounds how much of a bad value a message repeats.
const maxQuoted = 60

// valueError is a mistake in one value; its text is a whole message.
type valueError struct{ text string }

func (e *valueError) Error() string { return e.text }

// badValue says what a value must be, and what it is if it is a text or number.
func badValue(want string, got any) error {
	switch v := got.(type) {
	case string:
		v = conceal(v) // before it is cut: half a secret is none the less secret
		if len(v) > maxQuoted {
			v = v[:maxQuoted]
		}
		return &valueError{fmt.Sprintf("must be %s; got %q", want, v)}
	case int64:
		return &valueError{fmt.Sprintf("must be %s; got %d", want, v)}
	default:
		return &valueError{"must be " + want}
	}
}

// textOf gives a value for which quotes are optional where it is a number.
func textOf(v any) (text string, ok bool) {
	if n, isInt := v.(int64); isInt {
		return strconv.FormatInt(n, 10), true
	}
	text, ok = v.(string)
	return text, ok
}

func parseDuration(v any) (time.Duration, error) {
	text, _ := v.(string)
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, badValue(kindDuration.want(), v)
	}
	return d, nil
}

// parseRate takes 65536, "65536" or "10MB".
func parseRate(v any) (rate.Bytes, error) {
	text, _ := textOf(v)
	r, err := rate.Parse(text)
	if err != nil {
		return 0, badValue(kindRate.want(), v)
	}
	return r, nil
}

// parsePortRange takes 443, "443" or "20000-20100"; 0 gives the zero value.
func parsePortRange(v any) (PortRange, error) {
	text, ok := textOf(v)
	if !ok {
		return PortRange{}, badValue(kindPort.want(), v)
	}
	if text == "0" {
		return PortRange{}, nil
	}
	first, last, isRange := strings.Cut(text, "-")
	if !isRange {
		last = first
	}
	lo, okLo := parsePort(first)
	hi, okHi := parsePort(last)
	if !okLo || !okHi {
		return PortRange{}, badValue(kindPort.want(), v)
	}
	if lo > hi {
		return PortRange{}, &valueError{
			fmt.Sprintf("range %q ends before it starts; write \"%d-%d\"", text, hi, lo),
		}
	}
	return PortRange{First: lo, Last: hi}, nil
}

// parsePort takes 1 to 65535 in digits alone.
func parsePort(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && n > 0 && text[0] != '0' && text[0] != '+'
}

func parseAddr(v any) (netip.Addr, error) {
	text, _ := v.(string)
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, badValue(`an IP address in quotes such as "127.0.0.1" or "::"`, v)
	}
	return addr.Unmap(), nil
}

// parseLocal takes 8080, "8080", "host:port" or "unix:/path".
func parseLocal(v any) (Local, error) {
	text, ok := textOf(v)
	if !ok {
		return Local{}, badValue(kindLocal.want(), v)
	}
	if path, isUnix := strings.CutPrefix(text, "unix:"); isUnix {
		switch {
		case !filepath.IsAbs(path) || strings.ContainsRune(path, 0):
			return Local{}, badValue("an absolute path after unix:", text)
		case len(path) > sunPathMax:
			return Local{}, &valueError{fmt.Sprintf(
				"socket path is %d bytes long; move the socket to a path of at most %d", len(path), sunPathMax)}
		}
		return Local{Network: "unix", Address: filepath.Clean(path)}, nil
	}
	if !strings.Contains(text, ":") {
		text = net.JoinHostPort("127.0.0.1", text)
	}
	if _, err := splitHostPort(text, false); err != nil {
		return Local{}, badValue(kindLocal.want(), v)
	}
	return Local{Network: "tcp", Address: text}, nil
}

// splitHostPort checks "host:port". Listen addresses may leave out the host and
// may have port 0, where the kernel picks one.
func splitHostPort(text string, listen bool) (port uint16, err error) {
	host, digits, err := net.SplitHostPort(text)
	if err != nil {
		return 0, badValue(`an address such as "host:7000" or "[::1]:7000"`, text)
	}
	if strings.ContainsAny(host, " \t\r\n/\x00") || (host == "" && !listen) {
		return 0, badValue("an address with a host name or IP address before the colon", text)
	}
	if listen && digits == "0" {
		return 0, nil
	}
	port, ok := parsePort(digits)
	if !ok {
		return 0, badValue("an address that ends in a port from 1 to 65535", text)
	}
	return port, nil
}

func parseLevel(v any) (slog.Level, error) {
	switch v {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	default:
		return 0, badValue(kindLevel.want(), v)
	}
}

func parseFormat(v any) (LogFormat, error) {
	switch v {
	case string(LogText), string(LogJSON):
		return LogFormat(v.(string)), nil
	default:
		return "", badValue(kindFormat.want(), v)
	}
}

func parseProxyProtocol(v any) (ProxyProtocol, error) {
	switch v {
	case string(ProxyV1), string(ProxyV2):
		return ProxyProtocol(v.(string)), nil
	default:
		return ProxyNone, badValue(kindProxyProtocol.want(), v)
	}
}

func parseSecret(v any) (Secret, error) {
	text, ok := v.(string)
	if !ok {
		return Secret{}, badValue(kindSecret.want(), nil)
	}
	return NewSecret(text), nil
}
