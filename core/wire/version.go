package wire

import "fmt"

const (
	// ALPN is the TLS application protocol (RFC 7301) of the control
	// connection. It changes only when the framing does; see [Version].
	ALPN = "cproxy-ctl/1"

	// Version is the newest protocol version that this build speaks.
	Version uint32 = 1

	// MinVersion is the oldest protocol version that this build speaks.
	MinVersion uint32 = 1
)

// Negotiate is the server's half of version negotiation: given the newest
// version that a client speaks, as its Hello says, it returns the version to
// put into Welcome, or a refusal whose reason says which side to upgrade.
func Negotiate(clientVersion uint32) (uint32, *Refusal) {
	return negotiate(clientVersion, MinVersion, Version)
}

func negotiate(client, oldest, newest uint32) (uint32, *Refusal) {
	if client < oldest {
		return 0, NewRefusal(CodeVersion, fmt.Sprintf(
			"the client speaks protocol version %d at most and this server needs %s; upgrade cproxy-client",
			client, versions(oldest, newest)))
	}
	return min(client, newest), nil
}

// CheckVersion is the client's half of version negotiation: it returns nil if
// this build speaks the version in the server's Welcome, and otherwise a
// refusal whose reason says which side to upgrade.
func CheckVersion(serverVersion uint32) *Refusal {
	return checkVersion(serverVersion, MinVersion, Version)
}

func checkVersion(server, oldest, newest uint32) *Refusal {
	switch {
	case server < oldest:
		return NewRefusal(CodeVersion, fmt.Sprintf(
			"the server speaks protocol version %d at most and this client needs %s; upgrade cproxy-server",
			server, versions(oldest, newest)))
	case server > newest:
		return NewRefusal(CodeVersion, fmt.Sprintf(
			"the server insists on protocol version %d and this client speaks %s; upgrade cproxy-client",
			server, versions(oldest, newest)))
	}
	return nil
}

func versions(oldest, newest uint32) string {
	if oldest == newest {
		return fmt.Sprintf("version %d", newest)
	}
	return fmt.Sprintf("versions %d to %d", oldest, newest)
}
