package resolver

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
)

// pin.go recognises a server by its key. A name and an authority say who a server is; a
// pin says which key it has, and needs nobody else's word (RFC 8310, Section 6.7).

// Pin is the SHA-256 digest of a public key, as its SubjectPublicKeyInfo is encoded.
type Pin [sha256.Size]byte

// PinOf returns the pin of a certificate's key.
func PinOf(cert *x509.Certificate) Pin { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// ParsePin reads a pin in base64, as RFC 7469, Section 2.4 writes it.
func ParsePin(s string) (Pin, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != sha256.Size {
		return Pin{}, fmt.Errorf("%q is not the base64 of a SHA-256 digest", s)
	}
	return Pin(b), nil
}

// String returns the pin as ParsePin reads it.
func (p Pin) String() string { return base64.StdEncoding.EncodeToString(p[:]) }

var errPin = errors.New("the server's key is none of those pinned")

// pinned returns what looks at the server's own certificate, after the handshake has shown
// that it has the key. It is nil without pins.
func pinned(pins []Pin) func(tls.ConnectionState) error {
	if len(pins) == 0 {
		return nil
	}
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 || !slices.Contains(pins, PinOf(cs.PeerCertificates[0])) {
			return errPin
		}
		return nil
	}
}
