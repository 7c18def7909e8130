package admin

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/admin/api"
)

// token.go: who may come in. A file has one token in a line,
//
//	name:role[,role]:hash        hash: 64 hexadecimal digits, SHA-256 of the token
//
// with empty lines and lines that begin with # between them.
//
// A fast hash is enough. A slow one is there to make guessing a password dear, of which
// there are few that people choose. A token is 256 bits from the system's generator: there
// is nothing to guess, at whatever speed, and who reads the hash has to search them all.
// A slow hash would only let strangers spend our time.

// Token is a line of the file: what is known of a token without knowing it.
type Token struct {
	Name  string
	Roles []api.Role
	Hash  [sha256.Size]byte
}

// NewToken returns a new token, to be shown once, and the line to be kept of it. It fails
// if the name or a role is not one.
func NewToken(name string, roles ...api.Role) (secret string, t Token, err error) {
	var b [32]byte
	rand.Read(b[:]) // it never fails
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:])
	t = Token{Name: name, Roles: roles, Hash: sha256.Sum256([]byte(secret))}
	return secret, t, t.check()
}

// tokenPrefix lets scanners for leaked secrets know one of ours.
const tokenPrefix = "penstock_"

// Limits of the file.
const (
	maxTokenFile = 1 << 20
	maxTokens    = 1000
	maxTokenName = 64
)

// check returns what is wrong with a name or with roles.
func (t Token) check() error {
	if !validName(t.Name) {
		return fmt.Errorf("%q is not a name: use up to %d letters, digits, dots, hyphens and underscores", t.Name, maxTokenName)
	}
	if len(t.Roles) == 0 {
		return fmt.Errorf("%s has no role", t.Name)
	}
	for _, r := range t.Roles {
		if !slices.Contains(api.Roles(), r) {
			return fmt.Errorf("%q is no role; there are %v", r, api.Roles())
		}
	}
	return nil
}

// validName tells whether s can name a token or a filter. The first letter is what keeps
// it from being a hidden file or a flag.
func validName(s string) bool {
	letter := func(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' }
	if s == "" || len(s) > maxTokenName || !letter(s[0]) && s[0] != '_' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !letter(c) && c != '.' && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

// String returns the line of the file.
func (t Token) String() string {
	words := make([]string, len(t.Roles))
	for i, r := range t.Roles {
		words[i] = string(r)
	}
	return t.Name + ":" + strings.Join(words, ",") + ":" + hex.EncodeToString(t.Hash[:])
}

// may tells whether one of the token's roles covers want.
func (t Token) may(want api.Role) bool {
	return slices.ContainsFunc(t.Roles, func(r api.Role) bool { return r.Covers(want) })
}

// ParseTokens reads a token file. The error joins all lines that make no sense, by their
// numbers, and has no part of a hash.
func ParseTokens(file []byte) ([]Token, error) {
	if len(file) > maxTokenFile {
		return nil, fmt.Errorf("more than %d octets", maxTokenFile)
	}
	var tokens []Token
	var errs []error
	sc := bufio.NewScanner(bytes.NewReader(file))
	sc.Buffer(nil, maxTokenFile+1)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		t, err := parseToken(line)
		if err == nil && slices.ContainsFunc(tokens, func(o Token) bool { return o.Name == t.Name }) {
			err = fmt.Errorf("%s is there twice", t.Name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		tokens = append(tokens, t)
	}
	if len(tokens) > maxTokens {
		errs = append(errs, fmt.Errorf("more than %d tokens", maxTokens))
	}
	return tokens, errors.Join(append(errs, sc.Err())...)
}

func parseToken(line string) (Token, error) {
	parts := strings.Split(line, ":")
	if len(parts) != 3 {
		return Token{}, errors.New("is not name:role:hash")
	}
	t := Token{Name: parts[0]}
	for r := range strings.SplitSeq(parts[1], ",") {
		t.Roles = append(t.Roles, api.Role(strings.TrimSpace(r)))
	}
	if err := t.check(); err != nil {
		return Token{}, err
	}
	if n, err := hex.Decode(t.Hash[:], []byte(cut(parts[2], 2*sha256.Size))); err != nil || n != sha256.Size || len(parts[2]) != 2*sha256.Size {
		return Token{}, fmt.Errorf("the hash of %s is not %d hexadecimal digits", t.Name, 2*sha256.Size)
	}
	return t, nil
}

func cut(s string, n int) string { return s[:min(len(s), n)] }

// ReadTokens reads the token file at path. A file that is not there has no tokens. The
// warnings are about its permissions.
func ReadTokens(path string) (tokens []Token, warnings []string, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, []string{path + " is not there: nobody is let in until gateway token new has made it"}, nil
	}
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxTokenFile+1))
	if err == nil {
		tokens, err = ParseTokens(data)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		warnings = append(warnings, fmt.Sprintf("%s can be read by others (mode %#o): chmod o= it", path, info.Mode().Perm()))
	}
	return tokens, warnings, nil
}

// keyring is the tokens of a file, read again when it changes.
type keyring struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	mu     sync.Mutex // guards what follows
	tokens []Token
	state  string    // of the file when it was read
	looked time.Time // at the file's state
	warned []string
}

// every is how often the file is looked at, at most.
const every = time.Second

// load reads the file. With an error the old tokens stay.
func (k *keyring) load() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.read()
}

// read is load with mu held.
func (k *keyring) read() error {
	k.looked = k.now()
	k.state = fileState(k.path) // before reading: a change in between is seen the next time
	tokens, warnings, err := ReadTokens(k.path)
	if err != nil {
		return fmt.Errorf("admin: tokens: %w", err)
	}
	k.tokens = tokens
	for _, w := range warnings {
		if !slices.Contains(k.warned, w) {
			k.log.Warn("admin: tokens", "problem", w)
		}
	}
	k.warned = warnings
	return nil
}

// fileState changes when the file does.
func fileState(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(info.ModTime().UnixNano(), info.Size(), info.Mode())
}

// find returns the token that secret is. It takes the same time whichever it is, and
// whether it is any.
func (k *keyring) find(secret string) (Token, bool) {
	hash := sha256.Sum256([]byte(secret))
	var found Token
	ok := 0
	for _, t := range k.current() {
		if subtle.ConstantTimeCompare(hash[:], t.Hash[:]) == 1 {
			found, ok = t, 1
		}
	}
	return found, ok == 1
}

// current returns the tokens, from the file if it has changed.
func (k *keyring) current() []Token {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.now(); now.Sub(k.looked) >= every {
		k.looked = now
		if fileState(k.path) != k.state {
			if err := k.read(); err != nil {
				k.log.Error("admin: the old tokens are kept", "err", err)
			}
		}
	}
	return k.tokens
}
