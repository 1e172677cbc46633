// Package wire is the vocabulary of the control connection (CtlConn): the
// messages that cproxy-client and cproxy-server exchange, their framing, their
// limits and the negotiation of the protocol version.
//
// The messages are protocol buffers, defined in wire.proto. Each travels as a
// varint length followed by that many bytes, at most [MaxMessage]. The client
// opens with Hello; the server answers with Welcome or with Goodbye:
//
//	client                                   server
//	Hello{version, name, auth}         -->
//	                                   <--   Welcome{control id, session key, tunnels}
//	RegisterTunnel{spec}               -->
//	                                   <--   TunnelRegistered | TunnelRejected
//	                                   <--   NeedProxyConn, Ping
//	Pong, CloseTunnel                  -->
//	Goodbye                           <-->   Goodbye
//
// Nothing here knows about streams: everything about a running stream travels
// in band on its ProxyConn (package frame).
//
// A [Reader] decodes and bounds the size, and its result has not been checked
// further: call Validate on a received message before using any of its fields.
// The generated String methods show secrets. Log messages only as slog values:
// every message that carries a secret has a LogValue method that masks it.
package wire
