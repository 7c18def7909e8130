package gateway_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
)

// certs_test.go: which certificate a client gets to see.

// certFile writes a certificate for a name, with its key.
func certFile(t *testing.T, name string, serial int64) certs.File {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "pair.pem")
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	if err := os.WriteFile(file, both, 0o600); err != nil {
		t.Fatal(err)
	}
	return certs.File{Cert: file, Key: file}
}

// secure connects to a listener with TLS, asking for a name.
func (s *system) secure(t *testing.T, listener, name string) *smtp.Client {
	t.Helper()
	nc, err := net.Dial("tcp", s.gw.Addr(listener).String())
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{ServerName: name, InsecureSkipVerify: true}
	if listener == "submissions" {
		nc = tls.Client(nc, config)
	}
	c, err := smtp.NewClient(t.Context(), nc, smtp.ClientOptions{LocalName: "client.test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if listener != "submissions" {
		if err := c.StartTLS(t.Context(), config); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func serial(c *smtp.Client) int64 {
	st, _ := c.TLS()
	return st.PeerCertificates[0].SerialNumber.Int64()
}

// TestCertificates: by the name that is asked for, the default for any other, with STARTTLS
// as with implicit TLS; new ones count for new connections, and old connections go on.
func TestCertificates(t *testing.T) {
	parity.Row(t, "SS-16", "SS-17", "SS-18", "SS-57")
	s := newSystem(t, nil, (&backend{}).start(t))
	own, other := certFile(t, "mx.example.net", 1), certFile(t, "*.example.org", 2)
	if err := s.certs.Update([]certs.File{own, other}, certs.ACME{}); err != nil {
		t.Fatal(err)
	}
	for _, listener := range []string{"mx", "submissions"} {
		for name, want := range map[string]int64{"mx.example.net": 1, "a.example.org": 2, "A.EXAMPLE.org": 2, "": 1, "elsewhere.test": 1, "under_score.test": 1, "a.b.example.org": 1} {
			if got := serial(s.secure(t, listener, name)); got != want {
				t.Errorf("%s, asked for %q: got certificate %d, want %d", listener, name, got, want)
			}
		}
	}
	before := s.secure(t, "mx", "a.example.org")
	if err := s.certs.Update([]certs.File{own, certFile(t, "*.example.org", 3)}, certs.ACME{}); err != nil {
		t.Fatal(err)
	}
	if got := serial(s.secure(t, "submissions", "a.example.org")); got != 3 {
		t.Errorf("behind the update: got certificate %d", got)
	}
	if r := send(t, before, smtp.Sender{}, message, "a@example.com"); r.Code != 250 {
		t.Errorf("on a connection from before: %v", r)
	}
}
