package wire

import (
	"encoding/hex"
	"fmt"
	"log/slog"

	"google.golang.org/protobuf/reflect/protoreflect"
)

const masked = "***"

// The Format methods below make package fmt mask secrets as LogValue does,
// whatever the verb: fmt would otherwise find the generated String methods.

// KindName returns the name of the message inside, such as "Hello", or
// "unknown" for one that this version does not know.
func (x *ClientMessage) KindName() string { return kindName(x.ProtoReflect()) }

// KindName returns the name of the message inside, such as "Welcome", or
// "unknown" for one that this version does not know.
func (x *ServerMessage) KindName() string { return kindName(x.ProtoReflect()) }

// LogValue names the message and shows its body with secrets masked.
func (x *ClientMessage) LogValue() slog.Value { return envelopeValue(x.ProtoReflect()) }

// LogValue names the message and shows its body with secrets masked.
func (x *ServerMessage) LogValue() slog.Value { return envelopeValue(x.ProtoReflect()) }

// LogValue shows the Hello with its credential or proof masked.
func (x *Hello) LogValue() slog.Value {
	auth := "none"
	switch a := x.GetAuth().(type) {
	case *Hello_Credential:
		auth = "credential " + a.Credential.GetName() + ":" + masked
	case *Hello_Proof:
		auth = "proof " + masked
	}
	return slog.GroupValue(
		slog.Uint64("version", uint64(x.GetVersion())),
		slog.String("name", x.GetName()),
		slog.String("instance", hex.EncodeToString(x.GetInstance())),
		slog.Uint64("epoch", x.GetEpoch()),
		slog.String("hostname", x.GetHostname()),
		slog.String("client_version", x.GetClientVersion()),
		slog.String("auth", auth),
		slog.Uint64("pool_max", uint64(x.GetPoolMax())),
	)
}

// LogValue shows the name and masks the secret.
func (x *Credential) LogValue() slog.Value {
	return slog.StringValue(x.GetName() + ":" + masked)
}

// LogValue shows the Welcome with its session key masked.
func (x *Welcome) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Uint64("version", uint64(x.GetVersion())),
		slog.Uint64("control", x.GetControlId()),
		slog.Uint64("epoch", x.GetEpoch()),
		slog.String("session_key", masked),
		slog.Duration("heartbeat", x.Heartbeat()),
		slog.String("proxy_address", x.GetProxyAddress()),
		slog.String("mode", x.GetMode().String()),
		slog.Bool("resumed", x.GetResumed()),
		slog.Int("tunnels", len(x.GetTunnels())),
		slog.String("server_version", x.GetServerVersion()),
		slog.Uint64("pool_max", uint64(x.GetPoolMax())),
	)
}

// Format prints what LogValue shows.
func (x *ClientMessage) Format(f fmt.State, _ rune) { format(f, x) }

// Format prints what LogValue shows.
func (x *ServerMessage) Format(f fmt.State, _ rune) { format(f, x) }

// Format prints what LogValue shows.
func (x *Hello) Format(f fmt.State, _ rune) { format(f, x) }

// Format prints what LogValue shows.
func (x *Credential) Format(f fmt.State, _ rune) { format(f, x) }

// Format prints what LogValue shows.
func (x *Welcome) Format(f fmt.State, _ rune) { format(f, x) }

func format(f fmt.State, x slog.LogValuer) {
	_, _ = fmt.Fprint(f, x.LogValue().Resolve()) // fmt.State keeps the error
}

func kindName(m protoreflect.Message) string {
	if field := kindField(m); field != nil {
		return string(field.Message().Name())
	}
	return "unknown"
}

func envelopeValue(m protoreflect.Message) slog.Value {
	field := kindField(m)
	if field == nil {
		return slog.StringValue("unknown")
	}
	body := m.Get(field).Message().Interface()
	value := slog.StringValue(fmt.Sprint(body))
	if v, ok := body.(slog.LogValuer); ok {
		value = v.LogValue()
	}
	return slog.GroupValue(slog.Attr{Key: string(field.Message().Name()), Value: value})
}

// kindField returns the field of an envelope that is set, or nil.
func kindField(m protoreflect.Message) protoreflect.FieldDescriptor {
	return m.WhichOneof(m.Descriptor().Oneofs().Get(0))
}
