package sasl

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// scram.go: what both ends of SCRAM-SHA-256 share (RFC 5802, RFC 7677): keys, names and the
// form of messages. The client proves that it knows the password without showing it, the
// server proves that it holds the keys, and the keys do not let anybody log in.

// Limits of iterations. RFC 7677, Section 4 asks for no fewer than MinIterations; more than
// MaxIterations would let one end keep the other busy for minutes.
const (
	MinIterations     = 4096
	DefaultIterations = 100_000 // some 20 ms of one core
	MaxIterations     = 5_000_000
)

// SaltSize is the length of the salts that we make, in octets.
const SaltSize = 16

const (
	maxSalt  = 255 // octets
	maxNonce = 512 // octets, both ends' together
)

// SCRAMKeys are what a server keeps of a password.
type SCRAMKeys struct {
	Iterations int    // MinIterations to MaxIterations
	Salt       []byte // 1 to 255 octets
	StoredKey  []byte // 32 octets; checks the client's proof
	ServerKey  []byte // 32 octets; makes the server's
}

// NewSCRAMKeys derives keys from a password with a salt of its own. Zero iterations mean
// DefaultIterations. The password is prepared first.
func NewSCRAMKeys(password string, iterations int) (SCRAMKeys, error) {
	if iterations == 0 {
		iterations = DefaultIterations
	}
	salt := make([]byte, SaltSize)
	rand.Read(salt) // never fails; the program ends if it cannot
	return DeriveSCRAMKeys(password, salt, iterations)
}

// DeriveSCRAMKeys derives the keys that belong to a password, a salt and a number of
// iterations, which takes a time in proportion to the latter.
func DeriveSCRAMKeys(password string, salt []byte, iterations int) (SCRAMKeys, error) {
	prepared, err := PreparePassword(password)
	if err != nil {
		return SCRAMKeys{}, err
	}
	if err := checkParameters(salt, iterations); err != nil {
		return SCRAMKeys{}, err
	}
	salted, err := pbkdf2.Key(sha256.New, prepared, salt, iterations, sha256.Size)
	if err != nil {
		return SCRAMKeys{}, fmt.Errorf("sasl: derive keys: %w", err)
	}
	clientKey := sign(salted, "Client Key")
	storedKey := sha256.Sum256(clientKey)
	return SCRAMKeys{iterations, salt, storedKey[:], sign(salted, "Server Key")}, nil
}

// Check tells whether the keys belong to a password. It takes as long as deriving them.
func (k SCRAMKeys) Check(password string) bool {
	other, err := DeriveSCRAMKeys(password, k.Salt, k.Iterations)
	return err == nil && hmac.Equal(other.StoredKey, k.StoredKey)
}

// Validate tells what of the keys is out of bounds. The error does not hold them.
func (k SCRAMKeys) Validate() error {
	if err := checkParameters(k.Salt, k.Iterations); err != nil {
		return err
	}
	if len(k.StoredKey) != sha256.Size || len(k.ServerKey) != sha256.Size {
		return errors.New("sasl: SCRAM keys are 32 octets each")
	}
	return nil
}

func checkParameters(salt []byte, iterations int) error {
	if iterations < MinIterations || iterations > MaxIterations {
		return fmt.Errorf("sasl: %d SCRAM iterations, not %d to %d", iterations, MinIterations, MaxIterations)
	}
	if len(salt) == 0 || len(salt) > maxSalt {
		return fmt.Errorf("sasl: SCRAM salt of %d octets, not 1 to %d", len(salt), maxSalt)
	}
	return nil
}

// decoyKeys are keys for a user that does not exist. They are the same each time for one
// secret and one name, and no password belongs to them.
func decoyKeys(secret []byte, iterations int, user string) SCRAMKeys {
	if iterations == 0 {
		iterations = DefaultIterations
	}
	return SCRAMKeys{
		Iterations: iterations,
		Salt:       sign(secret, "salt "+user)[:SaltSize],
		StoredKey:  sign(secret, "stored key "+user),
		ServerKey:  sign(secret, "server key "+user),
	}
}

func sign(key []byte, text string) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// newNonce returns visible ASCII without a comma (RFC 5802, Section 7: printable).
func newNonce() string {
	var random [18]byte
	rand.Read(random[:])
	return base64.StdEncoding.EncodeToString(random[:])
}

func validNonce(s string) bool {
	if s == "" || len(s) > maxNonce {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == ',' {
			return false
		}
	}
	return true
}

// escapeName and unescapeName turn a name into a saslname and back (RFC 5802, Section 5.1):
// the comma ends a field, so it is written =2C, and = is =3D.
func escapeName(name string) string {
	return strings.NewReplacer("=", "=3D", ",", "=2C").Replace(name)
}

func unescapeName(s string) (string, bool) {
	var b strings.Builder
	for {
		plain, rest, escaped := strings.Cut(s, "=")
		b.WriteString(plain)
		if !escaped {
			return b.String(), true
		}
		switch {
		case strings.HasPrefix(rest, "2C"):
			b.WriteByte(',')
		case strings.HasPrefix(rest, "3D"):
			b.WriteByte('=')
		default:
			return "", false
		}
		s = rest[2:]
	}
}

// cutField takes the attribute with the letter name, such as "r=...", from the front of a
// message. The fields of a message have a fixed order (RFC 5802, Section 5).
func cutField(s string, name byte) (value, rest string, ok bool) {
	field, rest, _ := strings.Cut(s, ",")
	if len(field) < 2 || field[0] != name || field[1] != '=' {
		return "", s, false
	}
	return field[2:], rest, true
}
