package relay

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"golang.org/x/sys/unix"
)

// parcel is a State as the tests send it to another process: JSON, with places
// among the descriptors beside it in place of their numbers.
type parcel struct {
	State  State
	Routes []parcelRoute // of the listeners
}

type parcelRoute struct {
	Pool    *ToPool
	Preface *ToPreface
	Target  *ToTarget
}

// maxRights is how many descriptors one message can carry (SCM_MAX_FD, unix(7)).
const maxRights = 253

const parcelChunk = 32 << 10

// eachDescriptor finds every descriptor by its type, whatever State.each says.
func eachDescriptor(v reflect.Value, visit func(*Descriptor)) {
	if d, ok := reflect.TypeAssert[*Descriptor](v.Addr()); ok {
		visit(d)
		return
	}
	switch v.Kind() { //nolint:exhaustive // the others hold none
	case reflect.Struct:
		if v.Type().PkgPath() == reflect.TypeFor[State]().PkgPath() {
			for _, field := range v.Fields() {
				eachDescriptor(field, visit)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			eachDescriptor(v.Index(i), visit)
		}
	case reflect.Pointer:
		if !v.IsNil() {
			eachDescriptor(v.Elem(), visit)
		}
	}
}

// sendState sends a State, whose descriptors stay the sender's to close.
func sendState(socket int, s *State) error {
	p := parcel{State: *s}
	p.State.Listeners = slices.Clone(s.Listeners)
	for i := range p.State.Listeners {
		var r parcelRoute
		switch route := p.State.Listeners[i].Route.(type) {
		case ToPool:
			r.Pool = &route
		case ToPreface:
			r.Preface = &route
		case ToTarget:
			r.Target = &route
		}
		p.Routes = append(p.Routes, r)
		p.State.Listeners[i].Route = nil
	}
	b, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	var copied parcel // the places go into a copy: s keeps its descriptors
	if err := json.Unmarshal(b, &copied); err != nil {
		return fmt.Errorf("decode state: %w", err)
	}
	var rights []int
	eachDescriptor(reflect.ValueOf(&copied.State).Elem(), func(d *Descriptor) {
		if *d >= 0 {
			rights = append(rights, int(*d))
			*d = Descriptor(len(rights) - 1)
		}
	})
	if b, err = json.Marshal(copied); err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	head := binary.BigEndian.AppendUint64(nil, uint64(len(b)))
	head = binary.BigEndian.AppendUint64(head, uint64(len(rights)))
	for _, chunk := range slices.Concat([][]byte{head}, slices.Collect(slices.Chunk(b, parcelChunk))) {
		if err := unix.Sendmsg(socket, chunk, nil, nil, 0); err != nil {
			return fmt.Errorf("send state: %w", err)
		}
	}
	for some := range slices.Chunk(rights, maxRights) {
		if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(some...), nil, 0); err != nil {
			return fmt.Errorf("send descriptors: %w", err)
		}
	}
	return nil
}

// receiveState takes a State from the socket.
func receiveState(socket int) (*State, error) {
	chunk, oob := make([]byte, parcelChunk), make([]byte, unix.CmsgSpace(4*maxRights))
	receive := func() (b []byte, rights []int, err error) {
		n, m, _, _, err := unix.Recvmsg(socket, chunk, oob, unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 {
			return nil, nil, fmt.Errorf("receive %d bytes: %w", n, err)
		}
		if m > 0 {
			control, err := unix.ParseSocketControlMessage(oob[:m])
			if err != nil {
				return nil, nil, fmt.Errorf("parse control message: %w", err)
			}
			if rights, err = unix.ParseUnixRights(&control[0]); err != nil {
				return nil, nil, fmt.Errorf("parse rights: %w", err)
			}
		}
		return chunk[:n], rights, nil
	}
	head, _, err := receive()
	if err != nil {
		return nil, err
	}
	size, count := binary.BigEndian.Uint64(head), binary.BigEndian.Uint64(head[8:])
	var encoded []byte
	var rights []int
	for uint64(len(encoded)) < size || uint64(len(rights)) < count {
		b, some, err := receive()
		if err != nil {
			return nil, err
		}
		if uint64(len(encoded)) < size {
			encoded = append(encoded, b...)
		}
		rights = append(rights, some...)
	}
	var p parcel
	if err := json.Unmarshal(encoded, &p); err != nil {
		return nil, fmt.Errorf("decode state: %w", err)
	}
	eachDescriptor(reflect.ValueOf(&p.State).Elem(), func(d *Descriptor) {
		if *d >= 0 {
			*d = Descriptor(rights[*d])
		}
	})
	for i, r := range p.Routes {
		switch {
		case r.Pool != nil:
			p.State.Listeners[i].Route = *r.Pool
		case r.Preface != nil:
			p.State.Listeners[i].Route = *r.Preface
		case r.Target != nil:
			p.State.Listeners[i].Route = *r.Target
		}
	}
	return &p.State, nil
}
