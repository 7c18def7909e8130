package peers

// tls.go makes certificates as files, the form in which other people's servers
// and clients take them.

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// CA is a certificate authority of one test. It is valid for a day.
type CA struct {
	File string // its certificate, PEM
	PEM  []byte // the same bytes

	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Certificate is a host's certificate with its private key, as files and in
// memory. The key file is readable by its owner alone.
type Certificate struct {
	CertFile string // PEM
	KeyFile  string // PEM, PKCS #8
	TLS      tls.Certificate
}

// NewCA makes a certificate authority with a P-256 key. Its files, and those of
// what it issues, are removed when the test ends.
func NewCA(t testing.TB) *CA {
	t.Helper()
	ca := &CA{dir: openDir(t, "ca"), key: newKey(t)}
	template := newTemplate(t, "Penstock test CA")
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &ca.key.PublicKey, ca.key)
	if err == nil {
		ca.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatalf("peers: make CA: %v", err)
	}
	ca.File = filepath.Join(ca.dir, "ca.pem")
	ca.PEM = writePEM(t, ca.File, "CERTIFICATE", der, 0o644)
	return ca
}

// Issue makes a certificate for host names and IP addresses, for use by a server
// or a client. The first name is the common name as well.
func (ca *CA) Issue(t testing.TB, names ...string) Certificate {
	t.Helper()
	if len(names) == 0 {
		t.Fatal("peers: Issue needs a name")
	}
	key := newKey(t)
	template := newTemplate(t, names[0])
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatalf("peers: issue certificate for %s: %v", strings.Join(names, ", "), err)
	}
	return ca.write(t, template.SerialNumber.Text(16), der, key)
}

// write stores a certificate and its key in the CA's directory.
func (ca *CA) write(t testing.TB, base string, der []byte, key *ecdsa.PrivateKey) Certificate {
	t.Helper()
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatalf("peers: %v", err)
	}
	c := Certificate{
		CertFile: filepath.Join(ca.dir, base+".pem"),
		KeyFile:  filepath.Join(ca.dir, base+".key"),
	}
	certPEM := writePEM(t, c.CertFile, "CERTIFICATE", der, 0o644)
	keyPEM := writePEM(t, c.KeyFile, "PRIVATE KEY", keyDER, 0o600)
	if c.TLS, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		t.Fatalf("peers: %v", err)
	}
	return c
}

// Pool returns a pool with this authority alone, for tls.Config's RootCAs or
// ClientCAs.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatalf("peers: make key: %v", err)
	}
	return key
}

func newTemplate(t testing.TB, commonName string) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		t.Fatalf("peers: make serial number: %v", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: commonName},
		NotBefore:    time.Now().Add(-time.Hour), // for clocks that differ a little
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
}

func writePEM(t testing.TB, path, kind string, der []byte, mode os.FileMode) []byte {
	t.Helper()
	b := pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	if err := os.WriteFile(path, b, mode); err != nil {
		t.Fatalf("peers: %v", err)
	}
	return b
}
