package dane_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/delivery/dane"
)

// pki_test.go makes certificates.

// now is the time of the tests.
var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

// node is a certificate with its key.
type node struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

// spec says what a certificate is like. The zero value of each field is the usual.
type spec struct {
	name    string // of the subject
	dns     []string
	ca      bool
	key     *ecdsa.PrivateKey
	expired bool
	notYet  bool
	alter   func(*x509.Certificate)
}

var serial atomic.Int64

// issue makes a certificate; without an issuer it signs itself.
func issue(t testing.TB, by *node, s spec) *node {
	t.Helper()
	if s.key == nil {
		s.key = newKey(t)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: s.name}, DNSNames: s.dns,
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour), BasicConstraintsValid: true, IsCA: s.ca}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	if s.ca {
		c.KeyUsage |= x509.KeyUsageCertSign
	}
	if s.expired {
		c.NotAfter = now.Add(-time.Hour)
	}
	if s.notYet {
		c.NotBefore = now.Add(time.Hour)
	}
	if s.alter != nil {
		s.alter(c)
	}
	parent, signer := c, s.key
	if by != nil {
		parent, signer = by.Certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &s.key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &node{cert, s.key}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// chain are the certificates of nodes.
func chain(nodes ...*node) []*x509.Certificate {
	list := make([]*x509.Certificate, len(nodes))
	for i, n := range nodes {
		if n != nil {
			list[i] = n.Certificate
		}
	}
	return list
}

// tlsa is the record for a certificate.
func tlsa(n *node, usage, selector, mtype uint8) dane.Record {
	r, err := dane.Of(n.Certificate, usage, selector, mtype)
	if err != nil {
		panic(err)
	}
	return r
}
