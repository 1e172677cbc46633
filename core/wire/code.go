package wire

// The values of [Code]; wire.proto says what each means.
const (
	CodeUnspecified     = Code_CODE_UNSPECIFIED
	CodeVersion         = Code_CODE_VERSION
	CodeBadCredential   = Code_CODE_BAD_CREDENTIAL
	CodeForbidden       = Code_CODE_FORBIDDEN
	CodeUnavailable     = Code_CODE_UNAVAILABLE
	CodeRate            = Code_CODE_RATE
	CodeSuperseded      = Code_CODE_SUPERSEDED
	CodeStaleEpoch      = Code_CODE_STALE_EPOCH
	CodeRevoked         = Code_CODE_REVOKED
	CodeShutdown        = Code_CODE_SHUTDOWN
	CodeKicked          = Code_CODE_KICKED
	CodePortTaken       = Code_CODE_PORT_TAKEN
	CodePortNotGranted  = Code_CODE_PORT_NOT_GRANTED
	CodePortOutOfRange  = Code_CODE_PORT_OUT_OF_RANGE
	CodeBindNotGranted  = Code_CODE_BIND_NOT_GRANTED
	CodeTunnelLimit     = Code_CODE_TUNNEL_LIMIT
	CodeDuplicateTunnel = Code_CODE_DUPLICATE_TUNNEL
	CodeBadRequest      = Code_CODE_BAD_REQUEST
	CodeProtocol        = Code_CODE_PROTOCOL
	CodeDone            = Code_CODE_DONE
	CodeNotResumable    = Code_CODE_NOT_RESUMABLE
)

// The values of [Mode].
const (
	ModePlain = Mode_MODE_PLAIN // no encryption on ProxyConns
	ModeTLS   = Mode_MODE_TLS   // TLS 1.3 on ProxyConns
)

// codeInfo is what the project as a whole says about a code.
type codeInfo struct {
	permanent bool   // trying again with the same input cannot help
	label     string // for error messages
	advice    string // the reason when the refuser gives none
}

// info is the one table of what each code means. Codes that it does not know,
// which a newer peer may send, count as temporary: a permanent mistake costs
// a client its service, a temporary one some retries.
func (c Code) info() codeInfo {
	switch c {
	case CodeVersion:
		return codeInfo{true, "no common protocol version", "upgrade the older of cproxy-client and cproxy-server"}
	case CodeBadCredential:
		return codeInfo{true, "bad credential", "get a new join string with `cproxy-server token add`"}
	case CodeForbidden:
		return codeInfo{true, "forbidden", "ask the operator of the server to allow it"}
	case CodeUnavailable:
		return codeInfo{false, "authority unavailable", "try again later; the operator of the server finds the cause in its log"}
	case CodeRate:
		return codeInfo{false, "too many attempts", "wait before trying again"}
	case CodeSuperseded:
		return codeInfo{false, "superseded", "another client runs under the same name; give each its own `name`"}
	case CodeStaleEpoch:
		return codeInfo{false, "stale epoch", "a newer connection of this client exists; connect again"}
	case CodeRevoked:
		return codeInfo{true, "credential revoked", "get a new join string with `cproxy-server token add`"}
	case CodeShutdown:
		return codeInfo{false, "server stops", "connect again later"}
	case CodeKicked:
		return codeInfo{false, "disconnected by an operator", "connect again later"}
	case CodePortTaken:
		return codeInfo{false, "port taken", "choose another `remote_port` or free it on the server"}
	case CodePortNotGranted:
		return codeInfo{true, "port not granted", "choose a `remote_port` that the token grants"}
	case CodePortOutOfRange:
		return codeInfo{true, "port out of range", "choose a `remote_port` inside the server's `limits.ports`"}
	case CodeBindNotGranted:
		return codeInfo{true, "bind address not granted", "choose a `bind` address that the token grants"}
	case CodeTunnelLimit:
		return codeInfo{true, "too many tunnels", "remove a tunnel or raise the limit on the server"}
	case CodeDuplicateTunnel:
		return codeInfo{true, "duplicate tunnel", "give each tunnel its own name"}
	case CodeBadRequest:
		return codeInfo{true, "bad request", "check the configuration; if it is right, report a bug"}
	case CodeNotResumable:
		return codeInfo{false, "session unknown", "the client logs in with its credential"}
	case CodeProtocol:
		return codeInfo{false, "protocol violation", "check that both ends are CProxy; if they are, report a bug"}
	case CodeDone:
		return codeInfo{false, "done", "nothing is left to do"}
	case CodeUnspecified:
	}
	return codeInfo{false, "refused", "the peer's log says why"}
}

// Label returns the code in words, for messages and log lines.
func (c Code) Label() string { return c.info().label }
