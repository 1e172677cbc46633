package config

import (
	"strconv"
	"strings"
)

// kind is the type of a setting.
type kind int

const (
	kindString kind = iota
	kindInt
	kindDuration
	kindRate
	kindPort
	kindPorts
	kindAddrs
	kindLocal
	kindLevel
	kindFormat
	kindProxyProtocol
	kindSecret
	kindServers
	kindPins
)

// label names the type in the documentation.
func (k kind) label() string {
	switch k {
	case kindString, kindSecret:
		return "string"
	case kindInt:
		return "integer"
	case kindDuration:
		return "duration"
	case kindRate:
		return "rate"
	case kindPort:
		return "port or range"
	case kindPorts:
		return "port ranges"
	case kindAddrs:
		return "addresses"
	case kindLocal:
		return "local address"
	case kindLevel:
		return "log level"
	case kindFormat:
		return "log format"
	case kindProxyProtocol:
		return "version"
	case kindServers:
		return "server or list"
	case kindPins:
		return "pin or list"
	}
	return "unknown"
}

// want completes the sentence "must be ...".
func (k kind) want() string {
	switch k {
	case kindString, kindSecret:
		return "a text in quotes"
	case kindInt:
		return "a whole number without quotes, such as 100"
	case kindDuration:
		return `a duration in quotes such as "500ms", "30s" or "5m"`
	case kindRate:
		return `bytes per second: a whole number, or one in quotes with kB, MB, GB, KiB, MiB or GiB such as "10MB" (0 is no limit)`
	case kindPort:
		return `a port from 1 to 65535 or a range such as "20000-20100"`
	case kindPorts:
		return `a list of ports and ranges such as ["443", "20000-20100"]`
	case kindAddrs:
		return `a list of IP addresses such as ["127.0.0.1", "::1"]`
	case kindLocal:
		return `a port such as 8080, "host:port" or "unix:/path/to/socket"`
	case kindLevel:
		return `"debug", "info", "warn" or "error"`
	case kindFormat:
		return `"text" or "json"`
	case kindProxyProtocol:
		return `"v1" or "v2" (leave the key out for no PROXY header)`
	case kindServers:
		return `a server in quotes such as "host:7000", or a list such as ["host:7000", "[::1]:7000"]`
	case kindPins:
		return `a fingerprint in quotes such as "sha256:...", or a list of such`
	}
	return "a known type"
}

// isList reports whether text forms separate several values by commas.
func (k kind) isList() bool {
	return k == kindPorts || k == kindAddrs || k == kindServers || k == kindPins
}

// fromText gives the value that a TOML file would hold for a text taken from
// the environment, a flag or the table of keys. A text that does not fit stays
// a text, so that decoding reports it like any other wrong type.
func (k kind) fromText(text string) any {
	switch {
	case k == kindInt:
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
		return text
	case k.isList():
		list := []any{}
		for item := range strings.SplitSeq(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				list = append(list, item)
			}
		}
		return list
	default:
		return text
	}
}
