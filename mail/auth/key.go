package auth

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// key.go: the keys that sign, as files and as records in DNS.

// KeyType is the algorithm of a key.
type KeyType string

// The types of keys. Every receiver knows RSA; Ed25519 (RFC 8463) is shorter and quicker, and
// who does not know it passes it over. Both may sign one message.
const (
	RSA     KeyType = "rsa"
	Ed25519 KeyType = "ed25519"
)

// RFC 8301, Section 3.2: signers use at least 2048 bits. Receivers need not take more than 4096.
const (
	rsaBits    = 2048
	maxRSABits = 4096
)

// ErrKey is behind each error about a key that cannot sign.
var ErrKey = errors.New("auth: not a key that signs mail")

// ParseKey reads a private key in PEM form: PKCS #8 or, for RSA, PKCS #1; RSA of 2048 to 4096
// bits, or Ed25519. Blocks of other kinds are passed over. Its error is ErrKey, and says
// nothing of what the key is.
func ParseKey(text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case "PRIVATE KEY":
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%w: it is damaged", ErrKey)
			}
			return usable(key)
		case "RSA PRIVATE KEY":
			key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%w: it is damaged, or encrypted", ErrKey)
			}
			return usable(key)
		case "ENCRYPTED PRIVATE KEY":
			return nil, fmt.Errorf("%w: it is encrypted", ErrKey)
		}
	}
	return nil, fmt.Errorf("%w: there is no private key in PEM form", ErrKey)
}

func usable(key any) (crypto.Signer, error) {
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if n := key.N.BitLen(); n < rsaBits || n > maxRSABits {
			return nil, fmt.Errorf("%w: RSA of %d bits; it must have %d to %d", ErrKey, n, rsaBits, maxRSABits)
		}
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	}
	return nil, fmt.Errorf("%w: it is neither RSA nor Ed25519", ErrKey)
}

// NewKey makes a key and returns its PEM form too, which ParseKey reads.
func NewKey(t KeyType) (crypto.Signer, []byte, error) {
	var key crypto.Signer
	var err error
	switch t {
	case RSA:
		key, err = rsa.GenerateKey(rand.Reader, rsaBits)
	case Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("%w: %q is neither rsa nor ed25519", ErrKey, t)
	}
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("auth: key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Record returns the text of the TXT record with a public key. RFC 6376, Section 3.6.1. The
// error is ErrKey for what is no public key of a signer.
func Record(public crypto.PublicKey) (string, error) {
	switch public := public.(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrKey, err)
		}
		return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der), nil
	case ed25519.PublicKey: // RFC 8463, Section 4.2: the key alone, without a wrapping
		return "v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public), nil
	}
	return "", fmt.Errorf("%w: it is neither RSA nor Ed25519", ErrKey)
}

// ZoneLine returns a record as a line of a zone file: the name, and the text in strings of 255
// octets at most (RFC 1035, Section 3.3.14).
func ZoneLine(name, text string) string {
	var parts []string
	for len(text) > 255 {
		parts = append(parts, `"`+text[:255]+`"`)
		text = text[255:]
	}
	parts = append(parts, `"`+text+`"`)
	if len(parts) == 1 {
		return name + ". IN TXT " + parts[0]
	}
	return name + ". IN TXT ( " + strings.Join(parts, " ") + " )"
}
