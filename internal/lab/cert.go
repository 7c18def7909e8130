package lab

// cert.go makes certificates, the bad ones too.

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Cert is a certificate with its key, and the one that issued it.
type Cert struct {
	*x509.Certificate
	Key    crypto.Signer
	Issuer *Cert // nil of one that signed itself

	encoded []byte // if it is not that of Certificate
}

// CertSpec says what is in a certificate. The zero value is a leaf without any names that
// is valid for a day.
type CertSpec struct {
	// Name is the common name.
	Name string
	// DNS are the DNS names. Without any the certificate has no such extension.
	DNS []string
	// Authority makes it one that may issue others.
	Authority bool
	// Expired makes it one that ended an hour ago, Future one that begins in an hour.
	Expired, Future bool
	// Negative gives it a serial number below zero, which is against RFC 5280, Section 4.1.2.2,
	// and which crypto/x509 does not read. Certificate is then what it would be without.
	Negative bool
	// Key is the key; nil makes a new one.
	Key crypto.Signer
}

// SelfSigned makes a certificate that signed itself: an authority, or a leaf.
func SelfSigned(t testing.TB, spec CertSpec) *Cert {
	t.Helper()
	return issue(t, nil, spec)
}

// Issue makes a certificate that c signed, whether c may do that or not.
func (c *Cert) Issue(t testing.TB, spec CertSpec) *Cert {
	t.Helper()
	return issue(t, c, spec)
}

// Leaf is Issue for a server with these DNS names.
func (c *Cert) Leaf(t testing.TB, names ...string) *Cert {
	t.Helper()
	return c.Issue(t, CertSpec{Name: names[0], DNS: names})
}

func issue(t testing.TB, issuer *Cert, spec CertSpec) *Cert {
	t.Helper()
	key := spec.Key
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatalf("lab: make key: %v", err)
		}
	}
	c := &Cert{Key: key, Issuer: issuer}
	template := spec.template(t)
	parent, signer := template, key
	if issuer != nil {
		parent, signer = issuer.Certificate, issuer.Key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err == nil {
		c.Certificate, err = x509.ParseCertificate(der)
	}
	if err == nil && spec.Negative {
		c.encoded, err = negative(c.Certificate, signer)
	}
	if err != nil {
		t.Fatalf("lab: make certificate %q: %v", spec.Name, err)
	}
	return c
}

// negative returns the certificate with a negative serial number, signed again. It is that of an
// ECDSA key.
func negative(c *x509.Certificate, signer crypto.Signer) ([]byte, error) {
	serial := c.SerialNumber.Bytes()
	tbs := bytes.Replace(c.RawTBSCertificate, serial, append([]byte{serial[0] | 0x80}, serial[1:]...), 1)
	sum := sha256.Sum256(tbs)
	signature, err := signer.Sign(rand.Reader, sum[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, // ecdsa-with-SHA256
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
}

// bytes is the certificate as it is sent.
func (c *Cert) bytes() []byte {
	if c.encoded != nil {
		return c.encoded
	}
	return c.Raw
}

func (spec CertSpec) template(t testing.TB) *x509.Certificate {
	// 63 bits, the first of them set, so that all take eight octets.
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 62))
	if err == nil {
		serial.SetBit(serial, 62, 1)
	}
	if err != nil {
		t.Fatalf("lab: make serial number: %v", err)
	}
	now := time.Now()
	c := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: spec.Name},
		DNSNames:     spec.DNS,
		NotBefore:    now.Add(-24 * time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	switch {
	case spec.Expired:
		c.NotAfter = now.Add(-time.Hour)
	case spec.Future:
		c.NotBefore = now.Add(time.Hour)
	}
	if spec.Authority {
		c.IsCA, c.BasicConstraintsValid = true, true
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageCertSign, nil
	}
	return c
}

// Pool is a pool with this certificate alone.
func (c *Cert) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.Certificate)
	return pool
}

// Chain returns the certificate with those above it, the last one, which signed itself, left
// out: what a server is set up with.
func (c *Cert) Chain() *tls.Certificate {
	var above []*Cert
	for at := c.Issuer; at != nil && at.Issuer != nil; at = at.Issuer {
		above = append(above, at)
	}
	return c.With(above...)
}

// With returns the certificate with others behind it, for a server.
func (c *Cert) With(others ...*Cert) *tls.Certificate {
	chain := &tls.Certificate{Certificate: [][]byte{c.bytes()}, PrivateKey: c.Key, Leaf: c.Certificate}
	for _, o := range others {
		chain.Certificate = append(chain.Certificate, o.bytes())
	}
	return chain
}

// TLSA returns the record data for the certificate, as in "3 1 1 0a1b...", for the usage,
// selector and matching type in how (RFC 6698, Section 2.1).
func (c *Cert) TLSA(t testing.TB, how string) string {
	t.Helper()
	var usage, selector, matching uint8
	if _, err := fmt.Sscan(how, &usage, &selector, &matching); err != nil {
		t.Fatalf("lab: %q is not like \"3 1 1\": %v", how, err)
	}
	data := c.bytes()
	if selector == 1 {
		data = c.RawSubjectPublicKeyInfo
	}
	switch matching {
	case 1:
		sum := sha256.Sum256(data)
		data = sum[:]
	case 2:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return strings.Join(strings.Fields(how), " ") + " " + hex.EncodeToString(data)
}

// Files writes what Chain returns to two files, for the software of others: the certificates,
// and the key.
func (c *Cert) Files(t testing.TB) (certFile, keyFile string) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.Key)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	var chain []byte
	for _, der := range c.Chain().Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	certFile, keyFile = filepath.Join(t.TempDir(), "chain.pem"), filepath.Join(t.TempDir(), "key.pem")
	for name, text := range map[string][]byte{certFile: chain, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatalf("lab: %v", err)
		}
	}
	return certFile, keyFile
}
