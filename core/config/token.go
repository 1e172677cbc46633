package config

import (
	"encoding/base64"
	"strings"
)

const (
	// maxTokenFileBytes is far above the longest token.
	maxTokenFileBytes = 4096
	maxNameBytes      = 64
	hashBytes         = 32 // SHA-256, and the size of a token's secret
	wantName          = "1 to 64 of the characters A-Z a-z 0-9 . _ -"
	wantToken         = "must be NAME:SECRET as \"cproxy-server token add\" printed it; copy it again, or use \"cproxy-client join\""
)

// token gives the credential of the client, from token or from the file that
// token_file names, and reports what is wrong with it.
func (l *loader) token(inline Secret, file string) Secret {
	l.warnExposed()
	switch {
	case !inline.IsZero() && file != "":
		at := l.origin("token_file")
		l.check("token", &valueError{"is set beside token_file at " + at.String() + "; keep one of the two"})
		return Secret{}
	case file != "":
		return l.readToken(file)
	case inline.IsZero():
		if !l.faulty("token") && !l.faulty("token_file") {
			l.missing(l.origin("token"), "token",
				`is missing, and token_file as well; run "cproxy-client join STRING --config FILE" with the join string of the server`)
		}
		return Secret{}
	case tokenName(inline) == "":
		l.check("token", &valueError{wantToken})
	}
	return inline
}

// readToken reads the token file; a line break at its end does not count.
func (l *loader) readToken(path string) Secret {
	file, err := readFile(path, maxTokenFileBytes)
	if err != nil {
		l.check("token_file", &valueError{unreadable(path, err)})
		return Secret{}
	}
	if file.mode.IsRegular() && file.mode.Perm()&0o077 != 0 {
		l.warn(l.origin("token_file"), "token_file", "other users may read "+path+"; run chmod 600 on it")
	}
	token := NewSecret(strings.TrimRight(string(file.data), "\r\n"))
	if tokenName(token) == "" {
		l.check("token_file", &valueError{path + " " + wantToken})
	}
	return token
}

// warnExposed warns of configuration files that hold a token for all to read.
func (l *loader) warnExposed() {
	for _, y := range l.layers {
		if at, ok := y.origins["token"]; ok && y.mode&0o004 != 0 {
			l.warn(at, "token", "every user may read this file; run chmod 600 on it, or move the token to a token_file")
		}
	}
}

// tokenName gives the NAME of a well-formed NAME:SECRET, else "".
func tokenName(token Secret) string {
	name, secret, _ := strings.Cut(token.Reveal(), ":")
	if !validName(name) || !validHash(secret) {
		return ""
	}
	return name
}

func validName(name string) bool {
	if name == "" || len(name) > maxNameBytes {
		return false
	}
	for _, c := range []byte(name) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z'
		digit := '0' <= c && c <= '9'
		if !letter && !digit && !strings.ContainsRune("._-", rune(c)) {
			return false
		}
	}
	return true
}

// validPin accepts "sha256:" and the unpadded base64url of 32 bytes only.
func validPin(pin string) bool {
	hash, ok := strings.CutPrefix(pin, "sha256:")
	return ok && validHash(hash)
}

// validHash accepts 32 bytes in unpadded base64url. Strict decoding refuses
// other spellings of the same bytes, except for line breaks, which the length
// excludes.
func validHash(text string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	return err == nil && len(b) == hashBytes && len(text) == base64.RawURLEncoding.EncodedLen(hashBytes)
}
