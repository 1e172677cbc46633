package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/cproxy/cproxy/core/rate"
)

// tokensHeader is the first line of every tokens file written here.
const tokensHeader = "# Managed by `cproxy-server token`, which keeps no comments. Re-read whenever it changes."

// Token is one client's entry in the tokens file.
type Token struct {
	Name    string
	Hash    [sha256.Size]byte // of the secret; see TokenSecret.Hash
	Created time.Time         // zero if the file does not say
	Grants  Grants
}

// Tokens is the content of a tokens file, in its order. Names are unique.
type Tokens []Token

// Find returns the token of that name.
func (t Tokens) Find(name string) (Token, bool) {
	i := t.index(name)
	if i < 0 {
		return Token{}, false
	}
	return t[i], true
}

func (t Tokens) index(name string) int {
	return slices.IndexFunc(t, func(token Token) bool { return token.Name == name })
}

// rawTokens is the file as TOML sees it. The fields are plain, so that all that
// is wrong with their content can be reported at once.
type rawTokens struct {
	Token []rawToken `toml:"token"`
}

type rawToken struct {
	Name       string    `toml:"name"`
	SHA256     string    `toml:"sha256"`
	Created    time.Time `toml:"created"`
	Ports      []string  `toml:"ports"`
	Bind       []string  `toml:"bind"`
	MaxTunnels int       `toml:"max_tunnels"`
	RateUp     any       `toml:"rate_up"` // text with a unit, or a number
	RateDown   any       `toml:"rate_down"`
}

// decodeTokens reads a tokens file strictly and reports every problem it can
// find, each with its line where that is known. The file's name is for the
// errors.
func decodeTokens(file string, data []byte) (Tokens, error) {
	var raw rawTokens
	decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := decoder.Decode(&raw); err != nil {
		return nil, explainTOML(file, err)
	}
	d := tokensDecoder{file: file, lines: tokenLines(data), seen: make(map[string]bool, len(raw.Token))}
	tokens := make(Tokens, 0, len(raw.Token))
	for i, r := range raw.Token {
		tokens = append(tokens, d.token(i, r))
	}
	if len(d.problems) > 0 {
		return nil, errors.Join(d.problems...)
	}
	return tokens, nil
}

// explainTOML puts file and line in front of what the TOML decoder complains of.
func explainTOML(file string, err error) error {
	if unknown, ok := errors.AsType[*toml.StrictMissingError](err); ok {
		problems := make([]error, 0, len(unknown.Errors))
		for i := range unknown.Errors {
			row, _ := unknown.Errors[i].Position()
			problems = append(problems, fmt.Errorf("%s:%d: unknown key %q: use [[token]] with name, sha256, created, ports, bind, max_tunnels, rate_up, rate_down",
				file, row, strings.Join(unknown.Errors[i].Key(), ".")))
		}
		return errors.Join(problems...)
	}
	if invalid, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, _ := invalid.Position()
		return fmt.Errorf("%s:%d: %w", file, row, err)
	}
	return fmt.Errorf("%s: %w", file, err)
}

// tokensDecoder checks one token after the other and collects what is wrong.
type tokensDecoder struct {
	file     string
	lines    []map[string]int
	seen     map[string]bool
	problems []error
}

func (d *tokensDecoder) token(i int, raw rawToken) Token {
	token := Token{Name: raw.Name, Created: raw.Created}
	if err := CheckName(raw.Name); err != nil {
		d.complain(i, "name", err)
	} else if d.seen[raw.Name] {
		d.complain(i, "name", fmt.Errorf("token %q is there twice: remove one", raw.Name))
	}
	d.seen[raw.Name] = true
	if n, err := hex.Decode(token.Hash[:], hashText(raw.SHA256)); err != nil || n != len(token.Hash) {
		d.complain(i, "sha256", fmt.Errorf("sha256 of token %q is not 64 hexadecimal digits: "+
			"restore it, or revoke the token and add it again", raw.Name))
	}
	for _, text := range raw.Ports {
		ports, err := ParsePortRange(text)
		if err != nil {
			d.complain(i, "ports", err)
		}
		token.Grants.Ports = append(token.Grants.Ports, ports)
	}
	for _, text := range raw.Bind {
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			d.complain(i, "bind", fmt.Errorf("%q is no IP address: write one without port or zone, as in 127.0.0.1", text))
		}
		token.Grants.Bind = append(token.Grants.Bind, addr.Unmap())
	}
	if raw.MaxTunnels < 0 {
		d.complain(i, "max_tunnels", errors.New("max_tunnels is negative: use 0 for the server's limit"))
	}
	token.Grants.MaxTunnels = raw.MaxTunnels
	token.Grants.RateUp = d.rate(i, "rate_up", raw.RateUp)
	token.Grants.RateDown = d.rate(i, "rate_down", raw.RateDown)
	return token
}

// rate reads a byte rate; a key that is not there is no limit.
func (d *tokensDecoder) rate(i int, key string, value any) rate.Bytes {
	text := ""
	switch v := value.(type) {
	case nil:
		return 0
	case string:
		text = v
	case int64:
		text = strconv.FormatInt(v, 10)
	}
	r, err := rate.Parse(text)
	if err != nil {
		d.complain(i, key, fmt.Errorf("%s: %w", key, err))
	}
	return r
}

// hashText returns what to decode as a hash; text of a wrong length becomes text
// that cannot be decoded, since hex.Decode trusts the size of its destination.
func hashText(s string) []byte {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return []byte("wrong length")
	}
	return []byte(s)
}

func (d *tokensDecoder) complain(i int, key string, err error) {
	if i < len(d.lines) {
		line, ok := d.lines[i][key]
		if !ok {
			line = d.lines[i][""]
		}
		d.problems = append(d.problems, fmt.Errorf("%s:%d: %w", d.file, line, err))
		return
	}
	d.problems = append(d.problems, fmt.Errorf("%s: token %d: %w", d.file, i+1, err))
}

// tokenLines returns, for each [[token]] in a valid TOML file, the lines of its
// keys, and under "" the line of its header. Tokens written as an inline array
// have no lines.
func tokenLines(data []byte) []map[string]int {
	var (
		parser unstable.Parser
		lines  []map[string]int
	)
	parser.Reset(data)
	for parser.NextExpression() {
		expr := parser.Expression()
		keys := expr.Key()
		if !keys.Next() {
			continue
		}
		key := keys.Node()
		line := parser.Shape(key.Raw).Start.Line
		switch {
		case expr.Kind == unstable.ArrayTable:
			lines = append(lines, map[string]int{"": line})
		case expr.Kind == unstable.KeyValue && len(lines) > 0:
			lines[len(lines)-1][string(key.Data)] = line
		}
	}
	return lines
}

// encodeTokens writes the file that decodeTokens reads.
func encodeTokens(tokens Tokens) []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, tokensHeader)
	for _, token := range tokens {
		fmt.Fprintf(&b, "\n[[token]]\nname = %q\nsha256 = \"%x\"\n", token.Name, token.Hash)
		if !token.Created.IsZero() {
			fmt.Fprintf(&b, "created = %s\n", token.Created.Format(time.RFC3339Nano))
		}
		writeStrings(&b, "ports", token.Grants.Ports)
		writeStrings(&b, "bind", token.Grants.Bind)
		if token.Grants.MaxTunnels != 0 {
			fmt.Fprintf(&b, "max_tunnels = %d\n", token.Grants.MaxTunnels)
		}
		writeRate(&b, "rate_up", token.Grants.RateUp)
		writeRate(&b, "rate_down", token.Grants.RateDown)
	}
	return b.Bytes()
}

func writeRate(b *bytes.Buffer, key string, r rate.Bytes) {
	if r != 0 {
		fmt.Fprintf(b, "%s = %q\n", key, r)
	}
}

// writeStrings writes a TOML array of strings, or nothing if there are none.
// What it is given prints without a character TOML would escape.
func writeStrings[T fmt.Stringer](b *bytes.Buffer, key string, values []T) {
	if len(values) == 0 {
		return
	}
	texts := make([]string, 0, len(values))
	for _, value := range values {
		texts = append(texts, `"`+value.String()+`"`)
	}
	fmt.Fprintf(b, "%s = [%s]\n", key, strings.Join(texts, ", "))
}
