package sasl

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

// The examples of the standards.

// RFC 7677, Section 3.
func TestSCRAMExample(t *testing.T) {
	const (
		nonce  = "rOprNGfwEbeRWgbNEkqO"
		more   = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
		first  = "n,,n=user,r=" + nonce
		second = "r=" + nonce + more + ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
		third  = "c=biws,r=" + nonce + more + ",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
		fourth = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
	)
	salt, err := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := DeriveSCRAMKeys("pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	creds := Credentials{SCRAM: func(context.Context, string) (SCRAMKeys, error) { return keys, nil }}
	s, err := New(context.Background(), SCRAMSHA256, creds, Conn{AllowClear: true})
	if err != nil {
		t.Fatal(err)
	}
	s.mech.(*asking).mechanism.(*scramServer).nonce = more
	c, err := NewClient(SCRAMSHA256, Account{User: "user", Password: "pencil"})
	if err != nil {
		t.Fatal(err)
	}
	c.mech.(*scramClient).nonce = nonce

	_, said, err := c.Start()
	same(t, string(said), first, err)
	said, _, err = s.Next(said)
	same(t, string(said), second, err)
	said, err = c.Next(said)
	same(t, string(said), third, err)
	said, _, err = s.Next(said)
	same(t, string(said), fourth, err)
	said, err = c.Next(said)
	same(t, string(said), "", err)
	if _, done, err := s.Next(said); !done || err != nil || c.Finish() != nil {
		t.Errorf("not done: %v", err)
	}
	if !keys.Check("pencil") || keys.Check("pencils") {
		t.Error("the keys do not check a password")
	}
}

func same(t *testing.T, got, want string, err error) {
	t.Helper()
	if err != nil || got != want {
		t.Fatalf("got %q, %v\nwant %q", got, err, want)
	}
}

// RFC 2195, Section 2.
func TestCRAMExample(t *testing.T) {
	const challenge, response = "<1896.697170952@postoffice.reston.mci.net>", "tim b913a602c7eda7a495b4e6e7334d3890"
	creds := Credentials{Secret: func(context.Context, string) (string, error) { return "tanstaaftanstaaf", nil }}
	s, err := New(context.Background(), CRAMMD5, creds, Conn{AllowClear: true, Offered: []string{CRAMMD5}})
	if err != nil {
		t.Fatal(err)
	}
	s.mech.(*cramServer).challenge = []byte(challenge)
	c, err := NewClient(CRAMMD5, Account{User: "tim", Password: "tanstaaftanstaaf"})
	if err != nil {
		t.Fatal(err)
	}
	_, said, err := c.Start()
	if said != nil || err != nil {
		t.Fatalf("begins with %q, %v", said, err)
	}
	said, _, err = s.Next(nil)
	same(t, string(said), challenge, err)
	said, err = c.Next(said)
	same(t, string(said), response, err)
	if _, done, err := s.Next(said); !done || err != nil || s.Identity() != "tim" {
		t.Errorf("not done: %v", err)
	}
}

// RFC 7628, Sections 4.1 and 4.3.
func TestBearerExample(t *testing.T) {
	const first = "n,a=user@example.com,\x01host=server.example.com\x01port=143\x01auth=Bearer " + bearerToken + "\x01\x01"
	var asked TokenRequest
	var answer error
	creds := Credentials{Token: func(_ context.Context, r TokenRequest) (string, error) { asked = r; return "", answer }}
	a := Account{User: "user@example.com", Token: bearerToken, Host: "server.example.com", Port: 143, AllowClear: true}
	c, err := NewClient(OAuthBearer, a)
	if err != nil {
		t.Fatal(err)
	}
	_, said, err := c.Start()
	same(t, string(said), first, err)
	s, err := New(context.Background(), OAuthBearer, creds, Conn{AllowClear: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err := s.Next(said); !done || err != nil || s.Identity() != "user@example.com" {
		t.Errorf("not done: %v", err)
	}
	if want := (TokenRequest{OAuthBearer, "user@example.com", bearerToken, "server.example.com", 143}); asked != want {
		t.Errorf("asked for %+v, want %+v", asked, want)
	}

	answer = &TokenError{Scope: "example_scope", OpenIDConfiguration: "https://example.com/.well-known/openid-configuration"}
	s, err = New(context.Background(), OAuthBearer, creds, Conn{AllowClear: true})
	if err != nil {
		t.Fatal(err)
	}
	challenge, done, err := s.Next(said)
	if done || err != nil {
		t.Fatalf("no challenge: %v, %v", done, err)
	}
	var got map[string]string
	if err := json.Unmarshal(challenge, &got); err != nil || got["status"] != "invalid_token" || got["scope"] != "example_scope" ||
		got["openid-configuration"] != "https://example.com/.well-known/openid-configuration" {
		t.Errorf("challenge %q, %v", challenge, err)
	}
	said, err = c.Next(challenge)
	same(t, string(said), "\x01", err)
	if _, _, err := s.Next(said); line(err) != "535 5.7.8" || !strings.Contains(c.Reason(), "invalid_token") || c.Finish() == nil {
		t.Errorf("the refusal is %v, the client knows %q", err, c.Reason())
	}
}

// A callback's own JSON is what the client gets, and its own reply what comes after it.
func TestTokenErrorJSON(t *testing.T) {
	const own = `{"status":"401","schemes":"bearer mac","scope":"https://mail.example/"}`
	creds := Credentials{Token: func(context.Context, TokenRequest) (string, error) { return "", &TokenError{JSON: []byte(own)} }}
	for _, name := range []string{XOAuth2, OAuthBearer} {
		s, err := New(context.Background(), name, creds, Conn{AllowClear: true})
		if err != nil {
			t.Fatal(err)
		}
		c, err := NewClient(name, Account{User: "u", Token: "t", AllowClear: true})
		if err != nil {
			t.Fatal(err)
		}
		_, said, _ := c.Start()
		challenge, _, err := s.Next(said)
		same(t, string(challenge), own, err)
	}
}

// Someone between client and server, with a TLS connection to each, gets no further than the
// binding; nor does one who takes PLUS out of the list.
func TestChannelBinding(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		near, far := handshake(t, version), handshake(t, version)
		meet := func(name string, client, server *tls.ConnectionState, offered []string) string {
			t.Helper()
			c, err := NewClient(name, Account{User: "user", Password: "pencil", TLS: client, Offered: offered})
			if err != nil {
				t.Fatal(err)
			}
			s, err := New(context.Background(), name, people(t), Conn{TLS: server})
			if err != nil {
				t.Fatal(err)
			}
			return line(talk(t, c, s))
		}
		if got := meet(SCRAMSHA256Plus, &near.client, &near.server, nil); got != "235" {
			t.Errorf("%x: one connection: %s", version, got)
		}
		if got := meet(SCRAMSHA256Plus, &near.client, &far.server, nil); got != "535 5.7.8" {
			t.Errorf("%x: two connections: %s", version, got)
		}
		if got := meet(SCRAMSHA256, &near.client, &near.server, []string{SCRAMSHA256, Plain}); got != "535 5.7.8" {
			t.Errorf("%x: a list that was cut: %s", version, got)
		}
		if got := meet(SCRAMSHA256, &near.client, &near.server, []string{SCRAMSHA256Plus, SCRAMSHA256}); got != "235" {
			t.Errorf("%x: a client that does not bind: %s", version, got)
		}
	}
	conn := handshake(t, tls.VersionTLS13)
	if value, ok := channelBinding("tls-server-end-point", &conn.server); ok {
		t.Errorf("a binding that nobody can know: %x", value)
	}
	if canBind(&tls.ConnectionState{}) || canBind(nil) {
		t.Error("a binding without a connection")
	}
}

// Whoever asks for a user that does not exist sees what a real one would show, each time the
// same.
func TestDecoy(t *testing.T) {
	salt := func(user string) string {
		s, err := New(context.Background(), SCRAMSHA256, people(t), Conn{AllowClear: true})
		if err != nil {
			t.Fatal(err)
		}
		said, _, err := s.Next([]byte("n,,n=" + user + ",r=abc"))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(said), ",")
		return rest
	}
	one, two, real := salt("nobody"), salt("noone"), salt("user")
	if one != salt("nobody") {
		t.Error("the salt changes")
	}
	if one == two || len(one) != len(real) {
		t.Errorf("%q, %q and %q are not alike", one, two, real)
	}
}

// A server that does not know the keys, or says 235 too early, is not believed.
func TestClientDistrusts(t *testing.T) {
	nonces := func(c *Client) string { return "r=" + c.mech.(*scramClient).nonce }
	tests := []struct {
		name string
		say  func(c *Client) []string
	}{
		{"yes at once", func(*Client) []string { return nil }},
		{"yes without a signature", func(c *Client) []string { return []string{nonces(c) + "x,s=AAAA,i=4096"} }},
		{"another's nonce", func(*Client) []string { return []string{"r=abc,s=AAAA,i=4096"} }},
		{"no nonce of its own", func(c *Client) []string { return []string{nonces(c) + ",s=AAAA,i=4096"} }},
		{"few iterations", func(c *Client) []string { return []string{nonces(c) + "x,s=AAAA,i=1"} }},
		{"endless iterations", func(c *Client) []string { return []string{nonces(c) + "x,s=AAAA,i=2000000000"} }},
		{"no salt", func(c *Client) []string { return []string{nonces(c) + "x,s=,i=4096"} }},
		{"not a message", func(*Client) []string { return []string{"hello"} }},
		{"wrong signature", func(c *Client) []string { return []string{nonces(c) + "x,s=AAAA,i=4096", "v=AAAA"} }},
		{"error", func(c *Client) []string { return []string{nonces(c) + "x,s=AAAA,i=4096", "e=other-error"} }},
		{"flood", func(*Client) []string { return []string{strings.Repeat("x", maxChallenge+1)} }},
	}
	for _, tt := range tests {
		c, err := NewClient(SCRAMSHA256, Account{User: "user", Password: "pencil"})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for _, challenge := range tt.say(c) {
			if _, err = c.Next([]byte(challenge)); err != nil {
				break
			}
		}
		if err = errors.Join(err, c.Finish()); err == nil {
			t.Errorf("%s: believed", tt.name)
		} else if strings.Contains(err.Error(), "pencil") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
