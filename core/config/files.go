package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/knadh/koanf/parsers/toml/v2"
	"github.com/knadh/koanf/providers/rawbytes"
	"github.com/knadh/koanf/v2"
	gotoml "github.com/pelletier/go-toml/v2"
)

const (
	// maxFileBytes is far above any sensible configuration; it keeps a wrong
	// path (a disk image, /dev/zero) from filling memory.
	maxFileBytes = 1 << 20
	// maxSyntaxErrors is after how many the rest of a file is not looked at.
	maxSyntaxErrors = 50
)

// sourceFile is one file as read.
type sourceFile struct {
	path string
	data []byte
	mode fs.FileMode
}

// readFile reads at most limit bytes of a file or pipe.
func readFile(path string, limit int64) (sourceFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return sourceFile{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return sourceFile{}, err
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return sourceFile{}, err
	}
	if int64(len(data)) > limit {
		return sourceFile{}, fmt.Errorf("it is larger than %d KiB", limit>>10)
	}
	return sourceFile{path: path, data: data, mode: info.Mode()}, nil
}

// unreadable words the error of readFile for a user.
func unreadable(what string, err error) string {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return what + " does not exist; create it or correct the path"
	case errors.Is(err, fs.ErrPermission):
		return what + " cannot be read: permission denied; let the user that runs this program read it"
	default:
		return what + " cannot be read: " + err.Error() + "; correct the path or repair the file"
	}
}

// dropInDir gives the folder of drop-in files: X.d for X.toml.
func dropInDir(path string) string {
	return strings.TrimSuffix(path, ".toml") + ".d"
}

// dropIns lists the *.toml files of a folder in lexical order, hidden ones left
// out. A folder that does not exist has none.
func dropIns(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted by name
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		name := e.Name()
		if !e.IsDir() && strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".") {
			paths = append(paths, filepath.Join(dir, name))
		}
	}
	return paths, nil
}

// parsed is what one file holds.
type parsed struct {
	values   map[string]any
	lines    map[string]int // path -> line, see scanner
	problems []Problem
	whole    bool // nothing of the file had to be left out
}

// parseFile decodes one file. Syntax errors and keys defined twice are problems;
// their lines are left out and the others returned all the same, so that all
// mistakes of a file show at once. It gives up, without values, where a mistake
// is not within one line, as with a bracket that is never closed.
func parseFile(file sourceFile) parsed {
	var broken []Problem
	data := bytes.Clone(file.data)
	for range maxSyntaxErrors {
		k := koanf.New(".")
		s, err := scan(file.path, bytes.Clone(data))
		// Decoding comes even if the scan failed: only its errors have positions.
		if loadErr := k.Load(rawbytes.Provider(s.data), toml.Parser()); loadErr != nil {
			err = loadErr
		}
		problems := append(s.duplicate, broken...)
		if err == nil {
			return parsed{k.Raw(), s.lines, problems, len(broken) == 0}
		}
		found := syntaxProblem(file, err)
		broken = append(broken, found)
		if !dropLine(data, found.Line) {
			return parsed{problems: append(problems, found)}
		}
	}
	return parsed{problems: broken}
}

// dropLine blanks a line that is not TOML by itself and, if it is a header, the
// lines of its table. It reports false if the line alone is fine, so that the
// mistake lies elsewhere.
func dropLine(data []byte, line int) bool {
	text := lineOf(data, line)
	var discard map[string]any
	if line == 0 || gotoml.Unmarshal(text, &discard) == nil {
		return false
	}
	rest := data[cap(data)-cap(text)+len(text):]
	if isHeader(text) {
		for text := range bytes.Lines(rest) {
			if isHeader(text) {
				break
			}
			blank(text)
		}
	}
	blank(text)
	return true
}

func isHeader(line []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(line), []byte("[")) }

// syntaxProblem places an error of the TOML parser. Its message holds single
// characters of the file at most, never a value.
func syntaxProblem(file sourceFile, err error) Problem {
	at, ok := errors.AsType[*gotoml.DecodeError](err)
	if !ok {
		return Problem{File: file.path, Message: "not valid TOML: " + err.Error() + "; correct the file"}
	}
	line, column := at.Position()
	message := fmt.Sprintf("not valid TOML at column %d: %s; correct this line",
		column, strings.TrimPrefix(at.Error(), "toml: "))
	return Problem{File: file.path, Line: line, Message: message}
}
