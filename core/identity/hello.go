package identity

import (
	"errors"
	"fmt"
	"io"
	"net"
)

// Facts of TLS 1.3 that decide what a ClientHello may look like: RFC 8446 4
// (handshake header), 5.1 (records).
const (
	recordHeaderSize    = 5
	recordTypeHandshake = 0x16
	recordMajorVersion  = 0x03
	maxRecordPayload    = 1 << 14
	messageHeaderSize   = 4
	messageClientHello  = 0x01
)

// maxHelloSize bounds what AwaitClientHello buffers, record headers included.
const maxHelloSize = 64 << 10

// maxEmptyReads is how often in a row a conn may return neither bytes nor error.
const maxEmptyReads = 100

// ErrNotTLS tells that a peer's first bytes are no TLS ClientHello.
var ErrNotTLS = errors.New("peer does not speak TLS")

// AwaitClientHello reads from conn until one whole ClientHello is buffered, in
// one TLS record or over several, and returns a conn whose Read gives those
// bytes again before it reads on. Until then the peer has cost a buffer about as
// large as what it sent; a caller that limits concurrent handshakes takes a slot only
// when AwaitClientHello has returned.
//
// It fails with ErrNotTLS at the first byte that cannot belong to a ClientHello,
// or when one exceeds 64 KiB. It blocks until the peer has sent enough, conn's
// deadline passes, or conn is closed; it never reads past the ClientHello. The
// returned conn owns conn; on an error closing conn is still the caller's task.
func AwaitClientHello(conn net.Conn) (net.Conn, error) {
	var scan helloScanner
	buffer := make([]byte, 0, 512)
	for empty := 0; !scan.done(); {
		if len(buffer) == cap(buffer) {
			buffer = append(buffer, 0)[:len(buffer)]
		}
		space := buffer[len(buffer):cap(buffer)]
		n, err := conn.Read(space[:min(len(space), scan.want())])
		buffer = buffer[:len(buffer)+n]
		if scanErr := scan.feed(space[:n]); scanErr != nil {
			return nil, fmt.Errorf("read ClientHello: %w", scanErr)
		}
		if scan.done() {
			break // an error that came with the last byte shows at the next Read
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(buffer) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("read ClientHello: %w", err)
		}
		if n > 0 {
			empty = 0
		} else if empty++; empty == maxEmptyReads {
			return nil, fmt.Errorf("read ClientHello: %w", io.ErrNoProgress)
		}
	}
	return &replayConn{Conn: conn, pending: buffer}, nil
}

// helloScanner follows the first bytes of a connection through record headers
// and the handshake message inside them, and keeps no byte itself.
type helloScanner struct {
	total        int // bytes seen
	headerSeen   int // of the current record header
	recordLeft   int // payload of the current record still to come
	messageSeen  int // of the message, header included
	messageLeft  int // known once the message's header is complete
	headerLength int // the length field of the current record, as far as seen
}

// done reports whether the whole ClientHello has been seen.
func (s *helloScanner) done() bool {
	return s.messageSeen >= messageHeaderSize && s.messageLeft == 0
}

// want returns how many bytes may be read without passing the end of what is
// known to belong to the ClientHello; it is positive until done.
func (s *helloScanner) want() int {
	if s.recordLeft > 0 {
		return s.recordLeft
	}
	return recordHeaderSize - s.headerSeen
}

// feed takes the next bytes, no more than want.
func (s *helloScanner) feed(p []byte) error {
	for _, c := range p {
		if s.total++; s.total > maxHelloSize {
			return helloTooLarge()
		}
		var err error
		if s.recordLeft == 0 {
			err = s.headerByte(c)
		} else {
			err = s.payloadByte(c)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *helloScanner) headerByte(c byte) error {
	switch s.headerSeen {
	case 0:
		if c != recordTypeHandshake {
			return notTLS("record type is 0x%02x, not 0x%02x", c, recordTypeHandshake)
		}
	case 1:
		if c != recordMajorVersion {
			return notTLS("record version begins with 0x%02x, not 0x%02x", c, recordMajorVersion)
		}
	case 2: // the minor version must be ignored (RFC 8446 5.1)
	case 3:
		s.headerLength = int(c) << 8
		if s.headerLength > maxRecordPayload {
			return notTLS("record is longer than %d bytes", maxRecordPayload)
		}
	case 4:
		return s.beginRecord(s.headerLength | int(c))
	}
	s.headerSeen++
	return nil
}

func (s *helloScanner) beginRecord(length int) error {
	switch {
	case length == 0:
		return notTLS("record is empty")
	case length > maxRecordPayload:
		return notTLS("record is longer than %d bytes", maxRecordPayload)
	case s.messageSeen >= messageHeaderSize && length > s.messageLeft:
		return notTLS("record is longer than the ClientHello")
	}
	s.headerSeen, s.recordLeft = 0, length
	return nil
}

func (s *helloScanner) payloadByte(c byte) error {
	s.recordLeft--
	if s.messageSeen >= messageHeaderSize {
		s.messageLeft--
		return nil
	}
	switch s.messageSeen {
	case 0:
		if c != messageClientHello {
			return notTLS("first message is of type 0x%02x, not ClientHello", c)
		}
	default:
		if s.messageSeen == 1 && c != 0 { // the first of three length bytes counts 64 KiB each
			return helloTooLarge()
		}
		s.messageLeft = s.messageLeft<<8 | int(c)
	}
	if s.messageSeen++; s.messageSeen == messageHeaderSize {
		return s.beginMessage()
	}
	return nil
}

// beginMessage checks the length of the ClientHello. The client waits for an
// answer after it, so its end must be the end of a record.
func (s *helloScanner) beginMessage() error {
	switch {
	case s.messageLeft > maxHelloSize-messageHeaderSize-recordHeaderSize:
		return helloTooLarge()
	case s.messageLeft == 0:
		return notTLS("ClientHello is empty")
	case s.recordLeft > s.messageLeft:
		return notTLS("record is longer than the ClientHello")
	}
	return nil
}

func helloTooLarge() error {
	return notTLS("ClientHello is longer than %d KiB", maxHelloSize>>10)
}

func notTLS(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrNotTLS}, args...)...)
}

// replayConn is a conn whose first bytes have been read already.
type replayConn struct {
	net.Conn
	pending []byte
}

// Read returns the bytes read before, then those of the conn. Like crypto/tls,
// which serialises its reads, it expects one reader at a time.
func (c *replayConn) Read(p []byte) (int, error) {
	if len(c.pending) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.pending)
	if c.pending = c.pending[n:]; len(c.pending) == 0 {
		c.pending = nil // the buffer must not live as long as the connection
	}
	return n, nil
}

// NetConn returns the conn underneath. Its Read no longer gives the ClientHello.
func (c *replayConn) NetConn() net.Conn { return c.Conn }
