package users

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"

	"github.com/penstock/penstock/mail/smtp/sasl"
)

// scheme.go: the ways to keep a password, as text and as something that checks.

// Scheme is a way to keep a password.
type Scheme string

// The schemes, in the order in which PLAIN and LOGIN prefer them.
const (
	Argon2id Scheme = "argon2id"
	Bcrypt   Scheme = "bcrypt"
	SCRAM    Scheme = "scram-sha-256"
	Clear    Scheme = "plain"
)

// Schemes returns all schemes, in the order in which PLAIN and LOGIN prefer them.
func Schemes() []Scheme { return []Scheme{Argon2id, Bcrypt, SCRAM, Clear} }

// What new hashes are made with. The costs of argon2id are the smallest that OWASP's
// Password Storage Cheat Sheet recommends, since a gateway logs in on each connection.
const (
	argonMemory = 19 * 1024 // KiB
	argonTime   = 2
	argonLanes  = 1
	argonKey    = 32
	bcryptCost  = 12
)

// Bounds of what a line may ask for. The largest hash takes about two seconds.
const (
	maxArgonMemory = 256 * 1024  // KiB
	maxArgonWork   = 1024 * 1024 // KiB times passes
	maxArgonLanes  = 16
	maxBcryptCost  = 15
	maxBcrypt      = 72 // octets of a password that bcrypt looks at
)

// hash checks passwords against one line.
type hash interface {
	// check tells whether the password is the one. It may take long.
	check(password string) bool
	// cost is equal for hashes that take equally long.
	cost() string
}

// NewHash returns the part of a line behind the colon for a password.
func NewHash(s Scheme, password string) (string, error) {
	prepared, err := sasl.PreparePassword(password)
	if err != nil {
		return "", err
	}
	switch s {
	case Argon2id:
		return newArgon(prepared), nil
	case Bcrypt:
		if len(prepared) > maxBcrypt {
			return "", fmt.Errorf("users: bcrypt looks at %d octets of a password, this one has %d", maxBcrypt, len(prepared))
		}
		text, err := bcrypt.GenerateFromPassword([]byte(prepared), bcryptCost)
		return string(text), err
	case SCRAM:
		keys, err := sasl.NewSCRAMKeys(prepared, 0)
		return formatSCRAM(keys), err
	case Clear:
		if prepared != strings.TrimSpace(prepared) {
			return "", errors.New("users: a password in clear cannot begin or end with a space")
		}
		return clearPrefix + prepared, nil
	}
	return "", fmt.Errorf("users: no scheme %q", s)
}

const (
	scramPrefix  = "{SCRAM-SHA-256}"
	scramRFC5803 = "SCRAM-SHA-256$"
	clearPrefix  = "{PLAIN}"
	argonPrefix  = "$argon2id$"
)

// parseHash reads the part behind the colon. Its errors never hold it.
func parseHash(text string) (Scheme, hash, error) {
	for _, prefix := range []string{"{ARGON2ID}", "{BLF-CRYPT}"} {
		if rest, ok := strings.CutPrefix(text, prefix); ok && strings.HasPrefix(rest, "$") {
			text = rest
		}
	}
	switch {
	case strings.HasPrefix(text, argonPrefix):
		h, err := parseArgon(text)
		return Argon2id, h, err
	case strings.HasPrefix(text, "$2a$"), strings.HasPrefix(text, "$2b$"), strings.HasPrefix(text, "$2y$"):
		h, err := parseBcrypt(text)
		return Bcrypt, h, err
	case strings.HasPrefix(text, scramPrefix):
		h, err := parseSCRAM(text[len(scramPrefix):])
		return SCRAM, h, err
	case strings.HasPrefix(text, scramRFC5803):
		h, err := parseSCRAM(text[len(scramRFC5803):])
		return SCRAM, h, err
	case strings.HasPrefix(text, clearPrefix):
		h := clearHash(text[len(clearPrefix):])
		if _, err := sasl.PreparePassword(string(h)); err != nil {
			return Clear, h, errors.New("the password is empty, too long, or holds what is not for text")
		}
		return Clear, h, nil
	}
	return "", nil, errors.New("a hash that is not known here; it begins with $argon2id$, $2a$, $2b$, $2y$, {SCRAM-SHA-256} or {PLAIN}")
}

// argonHash is a hash of argon2id (RFC 9106) in the text form that all its programs share.
type argonHash struct {
	memory, time uint32
	lanes        uint8
	salt, key    []byte
}

func newArgon(password string) string {
	salt := make([]byte, sasl.SaltSize)
	rand.Read(salt) // never fails; the program ends if it cannot
	key := argon2.IDKey([]byte(password), salt, argonTime, argonMemory, argonLanes, argonKey)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("%sv=%d$m=%d,t=%d,p=%d$%s$%s", argonPrefix, argon2.Version,
		argonMemory, argonTime, argonLanes, b64.EncodeToString(salt), b64.EncodeToString(key))
}

func parseArgon(text string) (*argonHash, error) {
	malformed := errors.New("malformed argon2id hash; the form is $argon2id$v=19$m=19456,t=2,p=1$salt$hash")
	fields := strings.Split(text, "$")
	if len(fields) != 6 || fields[2] != "v="+strconv.Itoa(argon2.Version) {
		return nil, malformed
	}
	costs := strings.Split(fields[3], ",")
	if len(costs) != 3 {
		return nil, malformed
	}
	memory, err1 := number(costs[0], "m=")
	time, err2 := number(costs[1], "t=")
	lanes, err3 := number(costs[2], "p=")
	salt, err4 := base64.RawStdEncoding.DecodeString(fields[4])
	key, err5 := base64.RawStdEncoding.DecodeString(fields[5])
	if errors.Join(err1, err2, err3, err4, err5) != nil {
		return nil, malformed
	}
	switch {
	case lanes < 1 || lanes > maxArgonLanes:
		return nil, fmt.Errorf("argon2id with p=%d, not 1 to %d", lanes, maxArgonLanes)
	case memory < 8*lanes || memory > maxArgonMemory:
		return nil, fmt.Errorf("argon2id with m=%d, not %d to %d", memory, 8*lanes, maxArgonMemory)
	case time < 1 || time > maxArgonWork/memory:
		return nil, fmt.Errorf("argon2id with t=%d, not 1 to %d for m=%d", time, maxArgonWork/memory, memory)
	case len(salt) < 8 || len(salt) > 64 || len(key) < 16 || len(key) > 64:
		return nil, errors.New("argon2id with a salt that is not 8 to 64 octets, or a hash that is not 16 to 64")
	}
	return &argonHash{uint32(memory), uint32(time), uint8(lanes), salt, key}, nil
}

// number reads a number of up to seven digits behind a prefix.
func number(s, prefix string) (int, error) {
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok || len(digits) > 7 {
		return 0, errors.New("not a number")
	}
	n, err := strconv.ParseUint(digits, 10, 32)
	return int(n), err
}

func (h *argonHash) check(password string) bool {
	key := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.lanes, uint32(len(h.key)))
	return subtle.ConstantTimeCompare(key, h.key) == 1
}

func (h *argonHash) cost() string { return fmt.Sprintf("argon2id %d %d %d", h.memory, h.time, h.lanes) }

// bcryptHash is the text itself; the library takes it apart.
type bcryptHash string

func parseBcrypt(text string) (bcryptHash, error) {
	const alphabet = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	cost, err := bcrypt.Cost([]byte(text))
	if err != nil || len(text) != 60 || strings.Trim(text[7:], alphabet) != "" {
		return "", errors.New("malformed bcrypt hash; it has 60 characters")
	}
	if cost > maxBcryptCost {
		return "", fmt.Errorf("bcrypt with cost %d, not %d to %d", cost, bcrypt.MinCost, maxBcryptCost)
	}
	return bcryptHash(text), nil
}

func (h bcryptHash) check(password string) bool {
	return bcrypt.CompareHashAndPassword([]byte(h), []byte(password)) == nil
}

func (h bcryptHash) cost() string { return "bcrypt " + string(h[4:6]) }

// scramHash is the keys of SCRAM-SHA-256, which check a password that is sent as well.
type scramHash sasl.SCRAMKeys

func formatSCRAM(k sasl.SCRAMKeys) string {
	b64 := base64.StdEncoding
	return fmt.Sprintf("%s%d$%s$%s:%s", scramPrefix, k.Iterations,
		b64.EncodeToString(k.Salt), b64.EncodeToString(k.StoredKey), b64.EncodeToString(k.ServerKey))
}

// parseSCRAM reads iterations, salt, stored key and server key, with any of the separators
// that programs put between them.
func parseSCRAM(text string) (scramHash, error) {
	malformed := errors.New("malformed SCRAM hash; the form is {SCRAM-SHA-256}iterations$salt$storedkey:serverkey")
	fields := strings.FieldsFunc(text, func(r rune) bool { return r == '$' || r == ':' || r == ',' })
	if len(fields) != 4 {
		return scramHash{}, malformed
	}
	n, err := number(fields[0], "")
	if err != nil {
		return scramHash{}, malformed
	}
	k := sasl.SCRAMKeys{Iterations: n}
	for i, to := range []*[]byte{&k.Salt, &k.StoredKey, &k.ServerKey} {
		if *to, err = base64.StdEncoding.DecodeString(fields[i+1]); err != nil {
			return scramHash{}, malformed
		}
	}
	return scramHash(k), k.Validate()
}

func (h scramHash) check(password string) bool { return sasl.SCRAMKeys(h).Check(password) }

func (h scramHash) cost() string { return "scram " + strconv.Itoa(h.Iterations) }

// clearHash is a password itself.
type clearHash string

// check compares sums, so that the time does not tell the length.
func (h clearHash) check(password string) bool {
	a, b := sha256.Sum256([]byte(h)), sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

func (h clearHash) cost() string { return "clear" }
