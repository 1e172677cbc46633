package client

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"

	"github.com/cproxy/cproxy/core/identity"
	"github.com/cproxy/cproxy/core/wire"
)

// handshakeError adds to the error of a TLS handshake what to look at: mostly it
// is the wrong port.
func handshakeError(conn *tls.Conn, err error) error {
	_, wrongALPN := errors.AsType[*identity.ALPNError](err)
	_, wrongPin := errors.AsType[*identity.PinError](err)
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	op, isOp := errors.AsType[*net.OpError](err)
	foreign := conn.ConnectionState().NegotiatedProtocol != wire.ALPN
	switch {
	case wrongALPN, (wrongPin || untrusted) && foreign, isOp && op.Op == "remote error": // an alert (crypto/tls)
		return fmt.Errorf("what answers speaks TLS but is not the control port of a cproxy-server: check host and port of `server`: %w", err)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: the other end closed the connection; is this the data port? `server` wants the address of ctl_listen; "+
			"if it is, check that a cproxy-server runs there, and its log", err)
	default:
		return advised(err)
	}
}
