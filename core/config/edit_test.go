package config

import (
	"reflect"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

func TestApplyEdits(t *testing.T) {
	edits := []Edit{{Key: "server", Value: "new:1"}, {Key: "pin", Remove: true}, {Key: "token", Value: "n:s"}}
	tests := []struct {
		name, text, want, removed string
	}{
		{"empty", "", "server = \"new:1\"\ntoken = \"n:s\"\n", ""},
		{"all there", "server = 'old:2' # ours\n\ntoken=\"a:b\"\n[log]\ntoken = 1\n", "server = \"new:1\" # ours\n\ntoken=\"n:s\"\n[log]\ntoken = 1\n", ""},
		{"pin", "  pin = \"x\"\nserver = \"o\"\ntoken = \"t\"", "#  pin = \"x\"\nserver = \"new:1\"\ntoken = \"n:s\"", "pin"},
		{"many lines", "pin = \"\"\"a\nb\"\"\"\nserver = \"o\"\ntoken = \"t\"\n", "#pin = \"\"\"a\n#b\"\"\"\nserver = \"new:1\"\ntoken = \"n:s\"\n", "pin"},
		{"suggested", "# one\n#server = \"x\"\n\n#token = \"y\"\nname = \"me\"\n[[tunnel]]\n#server = \"no\"\n", "# one\n#server = \"x\"\nserver = \"new:1\"\n\n#token = \"y\"\ntoken = \"n:s\"\nname = \"me\"\n[[tunnel]]\n#server = \"no\"\n", ""},
		{"only tables", "# comment\n[[tunnel]]\nname = \"web\"\n", "server = \"new:1\"\ntoken = \"n:s\"\n# comment\n[[tunnel]]\nname = \"web\"\n", ""},
		{"no last line break", "name = \"me\"", "name = \"me\"\nserver = \"new:1\"\n\ntoken = \"n:s\"\n", ""},
		{"line breaks of Windows", "name = \"me\"\r\n[log]\r\n", "name = \"me\"\r\nserver = \"new:1\"\r\ntoken = \"n:s\"\r\n[log]\r\n", ""},
		{"quoted key", "\"server\" = \"x\"\ntoken = \"t\"\n", "\"server\" = \"new:1\"\ntoken = \"n:s\"\n", ""},
		{"a list", "server = [ # two\n\"a:1\",\n\"b:2\", # b\n] # end\ntoken = 7 # odd\npin = [\n1 ]\n", "server = \"new:1\" # end\ntoken = \"n:s\" # odd\n#pin = [\n#1 ]\n", "pin"},
		{"dotted key", "pool.max = 3\nserver = \"x\"\ntoken = \"t\"\n", "pool.max = 3\nserver = \"new:1\"\ntoken = \"n:s\"\n", ""},
		{"added before a removed key", "server = \"o\"\n#token = \"NAME\"\npin = \"x\"\n", "server = \"new:1\"\n#token = \"NAME\"\ntoken = \"n:s\"\n#pin = \"x\"\n", "pin"},
		{"behind an array", "bind = [\n 1,\n]\n[log]\n", "bind = [\n 1,\n]\nserver = \"new:1\"\ntoken = \"n:s\"\n[log]\n", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ApplyEdits("client.toml", []byte(test.text), edits)
			if err != nil || string(got.Text) != test.want || strings.Join(got.Removed, " ") != test.removed {
				t.Errorf("got %v, %v\n%s\nwant\n%s", got.Removed, err, got.Text, test.want)
			}
		})
	}
	for _, text := range []string{
		"server = \"a\"\nserver = \"b\"\n", "server = ", "token.x = 1\n", "[server]\n", "name = \"\"\"\n#token = 1\n\"\"\"\n",
	} {
		if _, err := ApplyEdits("client.toml", []byte(text), edits); err == nil || !strings.Contains(err.Error(), "client.toml") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What goes away with a list is told.
func TestApplyEditsTellsReplacedLists(t *testing.T) {
	text := "server = [\"a:1\", \"new:1\", \"b:2\"]\npin = [\"x\", \"y\"]\ntoken = [\"n:s\"]\ntoken_file = [\"f\"]\n"
	edits := []Edit{{Key: "server", Value: "new:1"}, {Key: "pin", Value: "z"}, {Key: "token", Value: "n:s"}, {Key: "token_file", Remove: true}}
	got, err := ApplyEdits("client.toml", []byte(text), edits)
	want := map[string][]string{"server": {"a:1", "b:2"}, "pin": {"x", "y"}}
	if err != nil || !reflect.DeepEqual(got.Lists, want) {
		t.Errorf("got %v, %v", got.Lists, err)
	}
}

// Whatever a file says, an edited one says the same but for the edited keys.
func FuzzApplyEdits(f *testing.F) {
	for _, text := range []string{
		"", "server = \"x\"\n", "pin='''a\nb'''\ntoken.x = 1", "#server = 1\n[[tunnel]]\nname=\"a\"", "a = {b = 1}\r\n[token]\r\n", "x = [\n1,\n]\n[server]",
		"server = \"a\" # c\n\n[log]\nlevel = \"info\"", "\"pin\" = \"\\u0041\"",
		"#token = 1\npin = \"x\"\n",
	} {
		f.Add(text)
	}
	edits := []Edit{{Key: "server", Value: "new:1"}, {Key: "pin", Remove: true}, {Key: "token", Value: "n:s"}}
	f.Fuzz(func(t *testing.T, text string) {
		var before, after map[string]any
		if toml.Unmarshal([]byte(text), &before) != nil {
			return
		}
		edited, err := ApplyEdits("client.toml", []byte(text), edits)
		if err != nil {
			return
		}
		got := edited.Text
		for _, key := range []string{"server", "pin", "token"} {
			switch before[key].(type) {
			case map[string]any, []any:
				return // dotted keys and tables of that name: a mistake that stays one
			}
		}
		if err := toml.Unmarshal(got, &after); err != nil {
			t.Fatalf("%v\n%q\nbecame\n%q", err, text, got)
		}
		if after["server"] != "new:1" || after["token"] != "n:s" {
			t.Fatalf("%q\nbecame\n%q", text, got)
		}
		for _, key := range []string{"server", "pin", "token"} {
			delete(before, key)
			delete(after, key)
		}
		a, _ := toml.Marshal(before)
		b, _ := toml.Marshal(after)
		if string(a) != string(b) {
			t.Fatalf("%q\nbecame\n%q", text, got)
		}
	})
}
