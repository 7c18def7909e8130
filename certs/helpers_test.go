package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// A spec says what a test's certificate is to be. Zero times mean "valid now".
type spec struct {
	label     string // the subject's common name, by which tests tell certificates apart
	names     []string
	key       crypto.Signer // nil is ecdsaKey()
	notBefore time.Time
	notAfter  time.Time
}

// One key of each kind is enough, and RSA keys take long to make.
var (
	ecdsaKey = sync.OnceValue(func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p224Key  = sync.OnceValue(func() crypto.Signer { return must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)) })
	rsaKey   = sync.OnceValue(func() crypto.Signer { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	edKey    = sync.OnceValue(func() crypto.Signer {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return must(key, err)
	})
)

func must[T any](v T, err error) T {
	if err != nil {
		panic("certs test: " + err.Error())
	}
	return v
}

// issue makes a self-signed certificate and returns it and its key in PEM.
func issue(s spec) (certPEM, keyPEM []byte) {
	if s.key == nil {
		s.key = ecdsaKey()
	}
	if s.notBefore.IsZero() {
		s.notBefore = time.Now().Add(-time.Hour)
	}
	if s.notAfter.IsZero() {
		s.notAfter = time.Now().Add(90 * 24 * time.Hour)
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: s.label},
		DNSNames:  s.names,
		NotBefore: s.notBefore,
		NotAfter:  s.notAfter,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, s.key.Public(), s.key))
	key := must(x509.MarshalPKCS8PrivateKey(s.key))
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
}

// put writes a pair to dir, in files named after the label.
func put(t testing.TB, dir string, s spec) File {
	t.Helper()
	certPEM, keyPEM := issue(s)
	f := File{Cert: filepath.Join(dir, s.label+".crt"), Key: filepath.Join(dir, s.label+".key")}
	write(t, f.Cert, certPEM)
	write(t, f.Key, keyPEM)
	return f
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, o Options) *Store {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatalf("New(%+v): %v", o, err)
	}
	return s
}

// openFiles makes a Store for mx1.example.test with certificates after specs, in memory
// but for their files.
func openFiles(t testing.TB, specs ...spec) *Store {
	t.Helper()
	dir := t.TempDir()
	o := Options{Hostname: "mx1.example.test"}
	for _, s := range specs {
		o.Files = append(o.Files, put(t, dir, s))
	}
	return open(t, o)
}

// hello is what a client of today offers; rsaHello one of ten years ago.
func hello(name string) *tls.ClientHelloInfo {
	return &tls.ClientHelloInfo{
		ServerName:        name,
		SupportedVersions: []uint16{tls.VersionTLS13, tls.VersionTLS12},
		SupportedCurves:   []tls.CurveID{tls.X25519, tls.CurveP256},
		SupportedPoints:   []uint8{0},
		SignatureSchemes: []tls.SignatureScheme{
			tls.ECDSAWithP256AndSHA256, tls.Ed25519, tls.PSSWithSHA256, tls.PKCS1WithSHA256,
		},
		CipherSuites: []uint16{
			tls.TLS_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		},
	}
}

func rsaHello(name string) *tls.ClientHelloInfo {
	h := hello(name)
	h.SupportedVersions = []uint16{tls.VersionTLS12}
	h.SignatureSchemes = []tls.SignatureScheme{tls.PKCS1WithSHA256}
	h.CipherSuites = []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	return h
}

// chosen returns the label of the certificate that a handshake would get.
func chosen(t testing.TB, s *Store, h *tls.ClientHelloInfo) string {
	t.Helper()
	c, err := s.ServerConfig().GetCertificate(h)
	if err != nil || c == nil {
		t.Fatalf("GetCertificate(%q) = %v, %v; want a certificate", h.ServerName, c, err)
	}
	return labelOf(c.Leaf)
}

// labelOf tells our own certificate from those of files.
func labelOf(leaf *x509.Certificate) string {
	if len(leaf.Subject.Organization) == 1 && leaf.Subject.Organization[0] == "Penstock self-signed" {
		return "self"
	}
	return leaf.Subject.CommonName
}

// A logbook collects a Store's log. Stores log only from the goroutine that calls them.
type logbook struct{ bytes.Buffer }

func (b *logbook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&b.Buffer, nil))
}
