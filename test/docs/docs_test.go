package docs

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/cproxy/cproxy/core/config"
	"github.com/cproxy/cproxy/core/frame"
	"github.com/cproxy/cproxy/core/wire"
)

func protocol(t *testing.T) string {
	t.Helper()
	return readFile(t, "docs", "protocol.md")
}

// TestMessages compares the fields of every message with the table under its
// heading, both ways.
func TestMessages(t *testing.T) {
	page := protocol(t)
	messages := wire.File_core_wire_wire_proto.Messages()
	for i := range messages.Len() {
		message := messages.Get(i)
		t.Run(string(message.Name()), func(t *testing.T) {
			var want []string
			for j := range message.Fields().Len() {
				field := message.Fields().Get(j)
				want = append(want, fmt.Sprintf("%d `%s` %s", field.Number(), field.Name(), fieldType(field)))
			}
			var got []string
			for _, row := range rows(section(t, page, "### "+string(message.Name()))) {
				got = append(got, strings.Join(row[:3], " "))
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("the page has\n  %s\nthe code has\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
			}
		})
	}
}

func fieldType(field protoreflect.FieldDescriptor) string {
	name := field.Kind().String()
	switch {
	case field.Message() != nil:
		name = string(field.Message().Name())
	case field.Enum() != nil:
		name = string(field.Enum().Name())
	}
	if field.IsList() {
		name = "repeated " + name
	}
	return name
}

// TestEnums compares the values of every enum, and what kind of refusal each
// code is.
func TestEnums(t *testing.T) {
	page := protocol(t)
	enums := wire.File_core_wire_wire_proto.Enums()
	for i := range enums.Len() {
		enum := enums.Get(i)
		t.Run(string(enum.Name()), func(t *testing.T) {
			table := rows(section(t, page, "### "+string(enum.Name())))
			if len(table) != enum.Values().Len() {
				t.Errorf("the page has %d values, the code %d", len(table), enum.Values().Len())
			}
			for j := range enum.Values().Len() {
				value := enum.Values().Get(j)
				at := slices.IndexFunc(table, func(row []string) bool { return row[1] == fmt.Sprintf("`%s`", value.Name()) })
				if at < 0 {
					t.Errorf("%s is missing", value.Name())
					continue
				}
				row := table[at]
				if row[0] != fmt.Sprint(value.Number()) {
					t.Errorf("%s is %s on the page, %d in the code", value.Name(), row[0], value.Number())
				}
				if enum.Name() == "Code" && row[2] != refusalKind(wire.Code(value.Number())) {
					t.Errorf("%s is %s on the page, %s in the code", value.Name(), row[2], refusalKind(wire.Code(value.Number())))
				}
			}
		})
	}
}

func refusalKind(code wire.Code) string {
	if wire.NewRefusal(code, "").GetPermanent() {
		return "permanent"
	}
	return "temporary"
}

// TestFrames compares the frame types and which lengths the codec takes.
func TestFrames(t *testing.T) {
	table := rows(section(t, protocol(t), "### Frame types"))
	number := 0
	for {
		kind := frame.Type(number + 1)
		if strings.HasPrefix(kind.String(), "type ") {
			break
		}
		if number >= len(table) {
			t.Fatalf("%s is missing", kind)
		}
		row := table[number]
		number++
		if row[0] != strconv.Itoa(number) || row[1] != fmt.Sprintf("`%s`", kind) {
			t.Errorf("row %d is %q, want %s", number, row[:2], kind)
		}
		first, last, isRange := strings.Cut(row[3], " to ")
		if !isRange {
			last = first
		}
		low, high := parseInt(t, first), parseInt(t, last)
		for length, want := range map[int]bool{low: true, high: true, high + 1: false, low - 1: false} {
			if length >= 0 && taken(kind, length) != want {
				t.Errorf("%s of length %d: the page says that %v is right", kind, length, want)
			}
		}
	}
	if len(table) != number {
		t.Errorf("the page has %d frame types, the code %d", len(table), number)
	}
}

func taken(kind frame.Type, length int) bool {
	var b [frame.HeaderSize]byte
	frame.Header{Type: kind, Seq: 1, Length: uint32(length)}.Put(b[:])
	_, err := frame.ParseHeader(b[:])
	return err == nil
}

func parseInt(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestResetCodes(t *testing.T) {
	table := rows(section(t, protocol(t), "### Reset codes"))
	for i, row := range table {
		if code := frame.ResetCode(i + 1); row[0] != strconv.Itoa(i+1) || row[1] != code.String() {
			t.Errorf("row %d is %q, want %s", i+1, row[:2], code)
		}
	}
	if next := frame.ResetCode(len(table) + 1); !strings.HasPrefix(next.String(), "reset code ") {
		t.Errorf("%s is missing", next)
	}
}

// TestLayouts checks that the fields of fixed layouts follow each other and
// fill them.
func TestLayouts(t *testing.T) {
	tests := []struct {
		heading, first string
		size           int
	}{
		{"## 9 Opening a ProxyConn", "magic", frame.PrefaceSize},
		{"## 10 Frames", "type", frame.HeaderSize},
		{"### START", "tunnel", frame.StartSize},
	}
	for _, test := range tests {
		t.Run(test.heading, func(t *testing.T) {
			table := rows(section(t, protocol(t), test.heading))
			at := slices.IndexFunc(table, func(row []string) bool { return row[2] == test.first })
			if at < 0 {
				t.Fatalf("there is no layout that begins with %s", test.first)
			}
			end := 0
			for _, row := range table[at:] {
				if row[0] != strconv.Itoa(end) {
					break // the next table
				}
				end += parseInt(t, row[1])
			}
			if end != test.size {
				t.Errorf("the layout has %d bytes, want %d", end, test.size)
			}
		})
	}
}

// TestVectors computes what the page gives as test vectors.
func TestVectors(t *testing.T) {
	key, exporter := make([]byte, wire.SessionKeySize), make([]byte, wire.ResumeExporterSize)
	for i := range key {
		key[i], exporter[i] = byte(i), byte(0x40+i)
	}
	p := frame.Preface{Mode: frame.Plain, ControlID: 0x1122334455667788, Epoch: 2, ProxyID: 3}
	preface, ready := p.Seal(frame.NewKey(key), frame.Exporter{}), p.Ready(frame.NewKey(key), frame.Exporter{})
	var start [frame.HeaderSize + frame.StartSize]byte
	frame.PutStart(start[:], 1, frame.Stream{
		Tunnel: 7, Source: netip.MustParseAddrPort("192.0.2.1:50000"), Destination: netip.MustParseAddrPort("198.51.100.2:443"),
	})
	want := []string{
		hex.EncodeToString(preface[:]), hex.EncodeToString(ready[:]),
		hex.EncodeToString(wire.ResumeProof(key, 2, exporter)), hex.EncodeToString(start[:]),
	}
	page := protocol(t)
	got := fences(page[strings.Index(page, "\n## 17 "):], "")
	for i := range got {
		got[i] = strings.ReplaceAll(got[i], "\n", "")
	}
	if !slices.Equal(got, want) {
		t.Errorf("the page has\n%s\nthe code computes\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestReadmeConfiguration loads the snippets of the README.
func TestReadmeConfiguration(t *testing.T) {
	snippets := fences(readFile(t, "README.md"), "toml")
	if len(snippets) != 2 {
		t.Fatalf("the README has %d snippets of TOML, want one for the server and one for the client", len(snippets))
	}
	load := func(t *testing.T, text string, loader func(config.Source) error) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "test.toml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := loader(config.Source{Path: path}); err != nil {
			t.Error(err)
		}
	}
	t.Run("server", func(t *testing.T) {
		load(t, snippets[0], func(s config.Source) error {
			_, _, err := config.LoadServer(s)
			return err
		})
	})
	t.Run("client", func(t *testing.T) {
		written := "server = \"tunnel.example.net:7000\"\ntoken = \"office:" + strings.Repeat("A", 43) + "\"\n"
		load(t, written+snippets[1], func(s config.Source) error {
			c, _, err := config.LoadClient(s)
			if err == nil && len(c.Tunnels) != 1 {
				t.Errorf("%d tunnels", len(c.Tunnels))
			}
			return err
		})
	})
}
