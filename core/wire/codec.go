package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// MaxMessage is the largest encoded message in bytes, its length prefix not
// counted.
const MaxMessage = 64 << 10

var (
	// ErrTooLarge says that a message is larger than [MaxMessage]. Of such a
	// message nothing is sent, and nothing but its length is read.
	ErrTooLarge = errors.New("control message larger than 64 KiB")

	// ErrMalformed says that the bytes read are no message. The connection
	// cannot be used any further.
	ErrMalformed = errors.New("malformed control message")
)

// readBuffer is small on purpose: a server holds one per client, most messages
// are a few dozen bytes, and TLS has a buffer of its own beneath.
const readBuffer = 128

// Reader reads messages from a control connection. It is not safe for
// concurrent use. It reads ahead, so nothing else may read from the same
// connection.
//
// Its methods block as long as the underlying reader does. They return io.EOF
// if the connection ends between two messages, io.ErrUnexpectedEOF if it ends
// inside one, [ErrTooLarge], [ErrMalformed], or the error of the underlying
// reader, wrapped. After an error the Reader is of no further use.
type Reader struct {
	buf *bufio.Reader
}

// NewReader returns a Reader of r. It does not own r.
func NewReader(r io.Reader) *Reader {
	return &Reader{buf: bufio.NewReaderSize(r, readBuffer)}
}

// Await blocks until the next message begins, and leaves all of it to be read.
// Its error is that of the underlying reader as it is: a server awaits clients by
// the thousand, and wording would take more memory than the waiting. After one
// that is temporary, such as a deadline, the Reader can be used again.
func (r *Reader) Await() error {
	_, err := r.buf.Peek(1)
	return err
}

// ReadClientMessage reads the next message of a client. The result is decoded
// only: call its Validate method before using it.
func (r *Reader) ReadClientMessage() (*ClientMessage, error) {
	m := new(ClientMessage)
	if err := r.read(m); err != nil {
		return nil, err
	}
	return m, nil
}

// ReadServerMessage reads the next message of a server. The result is decoded
// only: call its Validate method before using it.
func (r *Reader) ReadServerMessage() (*ServerMessage, error) {
	m := new(ServerMessage)
	if err := r.read(m); err != nil {
		return nil, err
	}
	return m, nil
}

func (r *Reader) read(m proto.Message) error {
	// Looking first tells an error of the connection from one of the bytes,
	// and a clean end from an end inside a message.
	if _, err := r.buf.Peek(1); err != nil {
		if errors.Is(err, io.EOF) {
			return io.EOF
		}
		return fmt.Errorf("read control message: %w", err)
	}
	src := &source{buf: r.buf}
	options := protodelim.UnmarshalOptions{
		MaxSize:          MaxMessage,
		UnmarshalOptions: proto.UnmarshalOptions{DiscardUnknown: true},
	}
	err := options.UnmarshalFrom(src, m)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*protodelim.SizeTooLargeError](err); ok {
		return ErrTooLarge
	}
	if src.err != nil {
		err = src.err
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("read control message: %w", err)
	}
	return fmt.Errorf("%w: %w", ErrMalformed, err)
}

// source remembers the first error of the reader below it, which protodelim
// mixes with errors of its own.
type source struct {
	buf *bufio.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.buf.Read(p)
	s.note(err)
	return n, err
}

func (s *source) ReadByte() (byte, error) {
	b, err := s.buf.ReadByte()
	s.note(err)
	return b, err
}

func (s *source) note(err error) {
	if s.err == nil {
		s.err = err
	}
}

// Writer writes messages to a control connection, each with one Write. It is
// not safe for concurrent use.
type Writer struct {
	w   io.Writer
	buf []byte
}

// NewWriter returns a Writer to w. It does not own w.
func NewWriter(w io.Writer) *Writer {
	return &Writer{w: w}
}

// WriteClientMessage writes m. It returns [ErrTooLarge], with nothing written,
// or the wrapped error of the underlying writer; after that one the connection
// cannot be used any further.
func (w *Writer) WriteClientMessage(m *ClientMessage) error { return w.write(m) }

// WriteServerMessage is WriteClientMessage for the other direction.
func (w *Writer) WriteServerMessage(m *ServerMessage) error { return w.write(m) }

func (w *Writer) write(m proto.Message) error {
	size := proto.Size(m)
	if size > MaxMessage {
		return fmt.Errorf("write control message: %w", ErrTooLarge)
	}
	buf := protowire.AppendVarint(w.buf[:0], uint64(size))
	buf, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(buf, m)
	if err != nil {
		return fmt.Errorf("encode control message: %w", err)
	}
	_, err = w.w.Write(buf)
	clear(buf) // it may have held a secret
	w.buf = buf[:0]
	if cap(buf) > readBuffer {
		w.buf = nil // large messages are rare; do not keep their memory
	}
	if err != nil {
		return fmt.Errorf("write control message: %w", err)
	}
	return nil
}
