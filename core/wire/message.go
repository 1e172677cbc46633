package wire

import "time"

// The methods in this file wrap the body of a message into the envelope of its
// direction. A body that both sides may send has both methods.

// ClientMessage returns the message that carries x.
func (x *Hello) ClientMessage() *ClientMessage {
	return &ClientMessage{Kind: &ClientMessage_Hello{Hello: x}}
}

// ClientMessage returns the message that carries x.
func (x *RegisterTunnel) ClientMessage() *ClientMessage {
	return &ClientMessage{Kind: &ClientMessage_RegisterTunnel{RegisterTunnel: x}}
}

// ClientMessage returns the message that carries x.
func (x *CloseTunnel) ClientMessage() *ClientMessage {
	return &ClientMessage{Kind: &ClientMessage_CloseTunnel{CloseTunnel: x}}
}

// ClientMessage returns the message that carries x.
func (x *Pong) ClientMessage() *ClientMessage {
	return &ClientMessage{Kind: &ClientMessage_Pong{Pong: x}}
}

// ClientMessage returns the message that carries x to a server.
func (x *Goodbye) ClientMessage() *ClientMessage {
	return &ClientMessage{Kind: &ClientMessage_Goodbye{Goodbye: x}}
}

// ServerMessage returns the message that carries x to a client.
func (x *Goodbye) ServerMessage() *ServerMessage {
	return &ServerMessage{Kind: &ServerMessage_Goodbye{Goodbye: x}}
}

// ServerMessage returns the message that carries x.
func (x *Welcome) ServerMessage() *ServerMessage {
	return &ServerMessage{Kind: &ServerMessage_Welcome{Welcome: x}}
}

// ServerMessage returns the message that carries x.
func (x *TunnelRegistered) ServerMessage() *ServerMessage {
	return &ServerMessage{Kind: &ServerMessage_TunnelRegistered{TunnelRegistered: x}}
}

// ServerMessage returns the message that carries x.
func (x *TunnelRejected) ServerMessage() *ServerMessage {
	return &ServerMessage{Kind: &ServerMessage_TunnelRejected{TunnelRejected: x}}
}

// ServerMessage returns the message that carries x.
func (x *NeedProxyConn) ServerMessage() *ServerMessage {
	return &ServerMessage{Kind: &ServerMessage_NeedProxyConn{NeedProxyConn: x}}
}

// ServerMessage returns the message that carries x.
func (x *Ping) ServerMessage() *ServerMessage {
	return &ServerMessage{Kind: &ServerMessage_Ping{Ping: x}}
}

// NewGoodbye returns a Goodbye with the given refusal. A retryAfter of 0 or
// less leaves the delay to the receiver; one above [MaxRetryAfter] is cut.
func NewGoodbye(refusal *Refusal, retryAfter time.Duration) *Goodbye {
	retryAfter = min(max(retryAfter, 0), MaxRetryAfter)
	return &Goodbye{Refusal: refusal, RetryAfterMs: uint64(retryAfter.Milliseconds())}
}

// Err returns the Goodbye as an error of type *RefusedError.
func (x *Goodbye) Err() error {
	return &RefusedError{Refusal: x.GetRefusal(), RetryAfter: milliseconds(x.GetRetryAfterMs(), MaxRetryAfter)}
}

// Err returns the rejection as an error of type *RefusedError.
func (x *TunnelRejected) Err() error { return x.GetRefusal().Err() }

// Heartbeat returns the interval of the server's Pings.
func (x *Welcome) Heartbeat() time.Duration {
	return milliseconds(x.GetHeartbeatMs(), MaxHeartbeat)
}

// milliseconds converts without overflow, whatever the peer sent.
func milliseconds(ms uint64, most time.Duration) time.Duration {
	if ms > uint64(most/time.Millisecond) {
		return most
	}
	return time.Duration(ms) * time.Millisecond
}
