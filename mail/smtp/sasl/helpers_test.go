package sasl

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// bearerToken is the token of RFC 7628, Section 4.1.
const bearerToken = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="

// people is a set of credentials with one user, "user" with the password "pencil", who is
// let act as "boss".
func people(t testing.TB) Credentials {
	t.Helper()
	keys, err := DeriveSCRAMKeys("pencil", []byte("0123456789abcdef"), MinIterations)
	if err != nil {
		t.Fatal(err)
	}
	known := func(user string, right bool) error {
		switch {
		case user == "broken":
			return errors.New("the store is away")
		case user != "user" || !right:
			return ErrDenied
		}
		return nil
	}
	return Credentials{
		Password: func(_ context.Context, user, password string) error { return known(user, password == "pencil") },
		Secret: func(_ context.Context, user string) (string, error) {
			return "pencil", known(user, true)
		},
		SCRAM: func(_ context.Context, user string) (SCRAMKeys, error) { return keys, known(user, true) },
		Token: func(_ context.Context, r TokenRequest) (string, error) {
			if r.User == "broken" {
				return "", errors.New("the issuer is away")
			}
			if r.Token != bearerToken {
				return "", &TokenError{Scope: "mail", Err: errors.New("unknown")}
			}
			return "user", nil
		},
		Certificate: func(_ context.Context, state *tls.ConnectionState, _ string) (string, error) {
			return CertificateNames(state.PeerCertificates[0])[0], nil
		},
		Authorize: func(_ context.Context, user, authz string) error {
			if user == "user" && authz == "boss" {
				return nil
			}
			return ErrDenied
		},
		Decoy:           []byte("0123456789abcdef"),
		DecoyIterations: MinIterations,
	}
}

// secured are the two ends of one TLS connection.
type secured struct {
	client, server tls.ConnectionState
}

// certificate returns a certificate for "user" that signs itself.
func certificate(t testing.TB) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "user"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, leaf
}

// handshake makes a TLS connection of one version in which the client shows a verified
// certificate for "user".
func handshake(t testing.TB, version uint16) secured {
	t.Helper()
	cert, leaf := certificate(t)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	own := []tls.Certificate{cert}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	client := tls.Client(a, &tls.Config{Certificates: own, InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
	server := tls.Server(b, &tls.Config{Certificates: own, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots,
		MinVersion: version, MaxVersion: version, SessionTicketsDisabled: true})
	failed := make(chan error, 1)
	go func() { failed <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-failed); err != nil {
		t.Fatal(err)
	}
	return secured{client.ConnectionState(), server.ConnectionState()}
}

// talk leads an exchange between both ends, as AUTH would, and returns the server's error.
func talk(t testing.TB, c *Client, s *Server) error {
	t.Helper()
	_, response, err := c.Start()
	if err != nil {
		t.Fatal(err)
	}
	for range 8 {
		challenge, done, err := s.Next(response)
		if err != nil {
			if _, ok := err.(*smtp.Reply); !ok {
				t.Fatalf("the server's error is no reply: %v", err)
			}
			return err
		}
		if done {
			if err := c.Finish(); err != nil {
				t.Fatalf("the client is not content: %v", err)
			}
			return nil
		}
		if response, err = c.Next(challenge); err != nil {
			t.Fatalf("the client is not content: %v", err)
		}
	}
	t.Fatal("the exchange has no end")
	return nil
}

// line is a reply as it is compared in tables.
func line(err error) string {
	if err == nil {
		return "235"
	}
	r := smtp.ReplyOf(err)
	return r.Line()[:3] + " " + r.Enh.String()
}
