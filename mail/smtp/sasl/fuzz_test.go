package sasl

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

// FuzzServer: whatever a client says, in whatever mechanism, nothing panics, every error is
// a refusal, and nobody is let in: the secrets are made anew in each run. Responses are
// separated by LF; the first is missing if begin is false.
func FuzzServer(f *testing.F) {
	secret := rand.Text()
	keys, err := DeriveSCRAMKeys(secret, []byte("0123456789abcdef"), MinIterations)
	if err != nil {
		f.Fatal(err)
	}
	only := func(right bool) error {
		if right {
			return nil
		}
		return ErrDenied
	}
	creds := Credentials{
		Password: func(_ context.Context, user, password string) error {
			return only(user == "user" && password == secret)
		},
		Secret: func(_ context.Context, user string) (string, error) { return secret, only(user == "user") },
		SCRAM:  func(_ context.Context, user string) (SCRAMKeys, error) { return keys, only(user == "user") },
		Token:  func(_ context.Context, r TokenRequest) (string, error) { return "user", only(r.Token == secret) },
		Certificate: func(context.Context, *tls.ConnectionState, string) (string, error) {
			return "", ErrDenied
		},
		Authorize: func(context.Context, string, string) error { return nil },
		Decoy:     []byte(secret),
	}
	conn := handshake(f, tls.VersionTLS13)
	for i, seed := range []string{
		"p=tls-exporter,,n=user,r=abc\nc=biws,r=abc,p=" + strings.Repeat("A", 43) + "=\n",
		"n,a=boss,n=us=2Cer,r=abc,x=y\nc=biws,r=abc,p=" + strings.Repeat("A", 43) + "=\n",
		"n,a=user,\x01host=h\x01port=25\x01auth=Bearer t\x01\x01\n\x01",
		"user=user\x01auth=Bearer t\x01\x01\n",
		"boss\x00user\x00secret",
		"user\nsecret",
		"user 00112233445566778899aabbccddeeff",
		"user",
	} {
		f.Add(uint8(i), true, []byte(seed))
		f.Add(uint8(i), false, []byte(seed))
	}
	f.Fuzz(func(t *testing.T, which uint8, begin bool, said []byte) {
		names := Mechanisms()
		s, err := New(context.Background(), names[int(which)%len(names)], creds, Conn{TLS: &conn.server, Offered: names})
		if err != nil {
			t.Fatal(err)
		}
		responses := bytes.Split(said, []byte("\n"))
		if !begin {
			responses = append([][]byte{nil}, responses...)
		}
		for _, r := range responses {
			challenge, done, err := s.Next(r)
			if done || s.Identity() != "" || s.Authorized() != "" {
				t.Fatalf("%q was let in", said)
			}
			if err == nil {
				if challenge == nil {
					t.Fatal("neither a challenge nor an end")
				}
				continue
			}
			if reply, ok := err.(*smtp.Reply); !ok || !reply.Temporary() && !reply.Permanent() {
				t.Fatalf("the error is no refusal: %v", err)
			}
		}
	})
}

// FuzzClient: whatever a server says, nothing panics, and SCRAM believes nobody who does not
// know the keys.
func FuzzClient(f *testing.F) {
	conn := handshake(f, tls.VersionTLS13)
	f.Add(uint8(0), []byte("r=NONCEx,s=AAAA,i=4096\nv=AAAA"))
	f.Add(uint8(2), []byte(`{"status":"401"}`))
	f.Add(uint8(5), []byte("Username:\nPassword:\nmore"))
	f.Add(uint8(6), []byte("<1@host>\nmore"))
	slow := regexp.MustCompile(`i=0*[0-9]{6}`) // legal, and a second long
	f.Fuzz(func(t *testing.T, which uint8, said []byte) {
		names := Mechanisms()
		name := names[int(which)%len(names)]
		c, err := NewClient(name, Account{User: "user", Password: rand.Text(), Token: "t", Certificate: true, TLS: &conn.client})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Start(); err != nil {
			t.Fatal(err)
		}
		m, scram := c.mech.(*scramClient)
		if scram {
			said = bytes.ReplaceAll(said, []byte("NONCE"), []byte(m.nonce))
		}
		if slow.Match(said) {
			return
		}
		for challenge := range bytes.SplitSeq(said, []byte("\n")) {
			if _, err := c.Next(challenge); err != nil {
				break
			}
		}
		if c.Finish() == nil && scram {
			t.Fatalf("%s believed %q", name, said)
		}
	})
}
