package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// Trust says how a client verifies the server. With pins the server's key must
// be one of them, whatever its certificate says. With a CA file the certificate
// must lead to one of its roots and be valid for the server's name. With both,
// both must hold; with neither, the system's roots decide.
type Trust struct {
	Pins   []Pin
	CAFile string // PEM
}

// Equal tells whether both accept the same servers, as far as their text says.
func (t Trust) Equal(other Trust) bool {
	return slices.Equal(t.Pins, other.Pins) && t.CAFile == other.CAFile
}

// ALPNError tells that the peer did not agree to the expected application
// protocol (RFC 7301): it speaks TLS, but is not the other half of this port.
type ALPNError struct {
	Want string
	Got  string // empty: the peer took no part in the negotiation
}

// Error says which protocol was expected and what to look at.
func (e *ALPNError) Error() string {
	got := "no protocol"
	if e.Got != "" {
		got = "protocol " + e.Got
	}
	return fmt.Sprintf("peer speaks %s where %s is expected: check that host and port are those of CProxy "+
		"and that no other TLS service or proxy answers there", got, e.Want)
}

// ServerTLS returns a new configuration for the server's side: TLS 1.3 only, no
// session tickets, and only peers that negotiate alpn.
func ServerTLS(id *ServerIdentity, alpn string) *tls.Config {
	config := baseTLS(alpn)
	config.Certificates = []tls.Certificate{id.cert}
	config.VerifyConnection = func(state tls.ConnectionState) error {
		return checkALPN(state, alpn)
	}
	return config
}

// ClientTLS returns a new configuration for the client's side: TLS 1.3 only, no
// resumption, and only a server that trust accepts and that negotiates alpn.
// serverName is the host the client dials, without its port; pins alone do not
// need it. A server with another key than the pinned ones ends the handshake
// with a *PinError. It reads the CA file at once; call it again to re-read.
func ClientTLS(trust Trust, serverName, alpn string) (*tls.Config, error) {
	config := baseTLS(alpn)
	config.ServerName = serverName
	if trust.CAFile != "" {
		roots, err := readRoots(trust.CAFile)
		if err != nil {
			return nil, err
		}
		config.RootCAs = roots
	}
	if len(trust.Pins) == 0 || trust.CAFile != "" {
		if serverName == "" {
			return nil, errors.New("verify server: its name is needed to check its certificate: give a server name or a pin")
		}
	} else {
		config.InsecureSkipVerify = true // VerifyConnection checks the pinned key instead
	}
	pins := slices.Clone(trust.Pins)
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := checkPin(state, pins); err != nil {
			return err
		}
		return checkALPN(state, alpn)
	}
	return config, nil
}

// baseTLS is what both sides have in common. Neither ever gets a KeyLogWriter:
// no environment variable may make a daemon write its keys down.
func baseTLS(alpn string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		NextProtos:             []string{alpn},
		SessionTicketsDisabled: true,
	}
}

func readRoots(path string) (*x509.CertPool, error) {
	data, _, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read CA file: %s holds no certificate in PEM form", path)
	}
	return roots, nil
}

func checkPin(state tls.ConnectionState, pins []Pin) error {
	if len(pins) == 0 {
		return nil
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("server presented no certificate")
	}
	got := PinOf(state.PeerCertificates[0])
	if !slices.ContainsFunc(pins, got.equal) {
		return &PinError{Want: pins, Got: got}
	}
	return nil
}

// checkALPN closes the gap crypto/tls leaves: it refuses two lists without a
// common entry, but not a peer that sends none.
func checkALPN(state tls.ConnectionState, alpn string) error {
	if state.NegotiatedProtocol != alpn {
		return &ALPNError{Want: alpn, Got: state.NegotiatedProtocol}
	}
	return nil
}
