package sasl

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

// Each mechanism, our client against our server, with what is right and what is not.
func TestBothEnds(t *testing.T) {
	conns := map[string]secured{"1.2": handshake(t, tls.VersionTLS12), "1.3": handshake(t, tls.VersionTLS13)}
	right := Account{User: "user", Password: "pencil", Token: bearerToken, Certificate: true}
	with := func(change func(*Account)) Account { a := right; change(&a); return a }
	wrong := with(func(a *Account) { a.Password, a.Token = "crayon", "other" })
	nobody := with(func(a *Account) { a.User, a.Token = "nobody", "other" })
	broken := with(func(a *Account) { a.User = "broken" })
	boss := with(func(a *Account) { a.Authz = "boss" })
	root := with(func(a *Account) { a.Authz = "root" })
	same := with(func(a *Account) { a.Authz = "user" })
	for version, conn := range conns {
		for _, name := range Mechanisms() {
			tests := []struct {
				what    string
				account Account
				want    string
				acts    string
			}{
				{"right", right, "235", "user"},
				{"authz is the user", same, "235", "user"},
				{"wrong", wrong, "535 5.7.8", ""},
				{"unknown user", nobody, "535 5.7.8", ""},
				{"trouble", broken, "454 4.7.0", ""},
				{"authz allowed", boss, "235", "boss"},
				{"authz refused", root, "535 5.7.8", ""},
			}
			for _, tt := range tests {
				if name == External && slices.Contains([]string{"wrong", "unknown user", "trouble"}, tt.what) {
					continue // the certificate is right in all of them
				}
				t.Run(version+" "+name+" "+tt.what, func(t *testing.T) {
					tt.account.TLS = &conn.client
					c, err := NewClient(name, tt.account)
					if err != nil && strings.HasPrefix(tt.what, "authz") && slices.Contains([]string{Login, CRAMMD5, XOAuth2}, name) {
						return // they have no authorization identity
					}
					if err != nil {
						t.Fatal(err)
					}
					s, err := New(context.Background(), strings.ToLower(name), people(t), Conn{TLS: &conn.server, Offered: Mechanisms()})
					if err != nil {
						t.Fatal(err)
					}
					if got := line(talk(t, c, s)); got != tt.want {
						t.Errorf("got %q, want %q", got, tt.want)
					}
					user := ""
					if tt.acts != "" {
						user = "user"
					}
					if s.Identity() != user || s.Authorized() != tt.acts {
						t.Errorf("authenticated as %q, acts as %q; want %q, %q", s.Identity(), s.Authorized(), user, tt.acts)
					}
					if _, _, err := s.Next([]byte("more")); line(err) != "501 5.5.2" {
						t.Errorf("after the end: %v", err)
					}
				})
			}
		}
	}
}

// What is sent, octet by octet, with ^A for \x01 and ^@ for NUL; "-" is no initial response.
// S: is what the server must say.
func TestHostileInput(t *testing.T) {
	long := strings.Repeat("x", MaxName+1)
	tests := []struct {
		name, mechanism string
		say             []string
		want            string
	}{
		{"no initial response", Plain, []string{"-", "^@user^@pencil"}, "235"},
		{"empty initial response", Plain, []string{""}, "501 5.5.2"},
		{"two fields", Plain, []string{"user^@pencil"}, "501 5.5.2"},
		{"four fields", Plain, []string{"^@user^@pencil^@"}, "501 5.5.2"},
		{"no name", Plain, []string{"user^@^@pencil"}, "501 5.5.2"},
		{"no password", Plain, []string{"^@user^@"}, "501 5.5.2"},
		{"long name", Plain, []string{"^@" + long + "^@pencil"}, "501 5.5.2"},
		{"long authz", Plain, []string{long + "^@user^@pencil"}, "501 5.5.2"},
		{"long password", Plain, []string{"^@user^@" + strings.Repeat("x", MaxPassword+1)}, "501 5.5.2"},
		{"too long at all", Plain, []string{strings.Repeat("x", MaxResponse+1)}, "500 5.5.6"},
		{"CR LF in the name", Plain, []string{"^@us\r\ner^@pencil"}, "501 5.5.2"},
		{"C1 control in the name", Plain, []string{"^@us\u0085er^@pencil"}, "501 5.5.2"},
		{"name is not UTF-8", Plain, []string{"^@us\xffer^@pencil"}, "501 5.5.2"},
		{"wide letters are the same letters", Plain, []string{"^@ｕｓｅｒ^@pencil"}, "235"},
		{"bad authz is told after the password alone", Plain, []string{"\x07^@user^@crayon"}, "535 5.7.8"},

		{"in two steps", Login, []string{"-", "user", "pencil"}, "235"},
		{"name first", Login, []string{"user", "pencil"}, "235"},
		{"empty name", Login, []string{"-", ""}, "501 5.5.2"},
		{"empty name at once", Login, []string{""}, "501 5.5.2"},
		{"control in the name", Login, []string{"-", "us\x00er"}, "501 5.5.2"},
		{"NUL in the password", Login, []string{"user", "pen\x00cil"}, "501 5.5.2"},
		{"empty password", Login, []string{"user", ""}, "501 5.5.2"},

		{"initial response", CRAMMD5, []string{"user 00112233445566778899aabbccddeeff"}, "501 5.7.0"},
		{"made-up digest", CRAMMD5, []string{"-", "user 00112233445566778899aabbccddeeff"}, "535 5.7.8"},
		{"no digest", CRAMMD5, []string{"-", "user"}, "501 5.5.2"},
		{"short digest", CRAMMD5, []string{"-", "user 0011"}, "501 5.5.2"},
		{"no name", CRAMMD5, []string{"-", " 00112233445566778899aabbccddeeff"}, "501 5.5.2"},
		{"empty", CRAMMD5, []string{"-", ""}, "501 5.5.2"},

		{"right", XOAuth2, []string{"user=user^Aauth=bearer " + bearerToken + "^A^A"}, "235"},
		{"refusal takes a line", XOAuth2, []string{"user=user^Aauth=Bearer x^A^A", ""}, "535 5.7.8"},
		{"any line", XOAuth2, []string{"user=user^Aauth=Bearer x^A^A", "user=user^Aauth=Bearer " + bearerToken + "^A^A"}, "535 5.7.8"},
		{"no end", XOAuth2, []string{"user=user^Aauth=Bearer x"}, "501 5.5.2"},
		{"other scheme", XOAuth2, []string{"user=user^Aauth=Basic x^A^A"}, "501 5.5.2"},
		{"no user", XOAuth2, []string{"user=^Aauth=Bearer x^A^A"}, "501 5.5.2"},
		{"another's token", XOAuth2, []string{"user=nobody^Aauth=Bearer " + bearerToken + "^A^A", ""}, "535 5.7.8"},
		{"empty token", XOAuth2, []string{"user=user^Aauth=Bearer ^A^A", ""}, "535 5.7.8"},
		{"two tokens", XOAuth2, []string{"user=user^Aauth=Bearer x^Aauth=Bearer y^A^A", ""}, "535 5.7.8"},
		{"control in the user", XOAuth2, []string{"user=us\ner^Aauth=Bearer x^A^A", ""}, "501 5.5.2"},
		{"long token", XOAuth2, []string{"user=user^Aauth=Bearer " + strings.Repeat("x", MaxToken+1) + "^A^A", ""}, "535 5.7.8"},

		{"token alone", OAuthBearer, []string{"n,,^Aauth=Bearer " + bearerToken + "^A^A"}, "235"},
		{"not well-formed", OAuthBearer, []string{"auth=Bearer x", "^A"}, "501 5.5.2"},
		{"empty line after the refusal", OAuthBearer, []string{"n,,^Aauth=Bearer x^A^A", ""}, "535 5.7.8"},
		{"no token", OAuthBearer, []string{"n,,^A^A", "^A"}, "535 5.7.8"},
		{"odd escape", OAuthBearer, []string{"n,a=us=er,^Aauth=Bearer x^A^A", "^A"}, "501 5.5.2"},
		{"escaped name", OAuthBearer, []string{"n,a=us=2Cer,^Aauth=Bearer " + bearerToken + "^A^A", "^A"}, "535 5.7.8"},
		{"channel binding", OAuthBearer, []string{"p=tls-unique,,^Aauth=Bearer x^A^A", "^A"}, "501 5.5.2"},
		{"empty", OAuthBearer, []string{"", ""}, "501 5.5.2"},

		{"empty", External, []string{""}, "235"},
		{"asked", External, []string{"-", ""}, "235"},
		{"another", External, []string{"nobody"}, "535 5.7.8"},
		{"NUL", External, []string{"us^@er"}, "501 5.5.2"},

		{"empty", SCRAMSHA256, []string{""}, "501 5.5.2"},
		{"no nonce", SCRAMSHA256, []string{"n,,n=user"}, "501 5.5.2"},
		{"empty nonce", SCRAMSHA256, []string{"n,,n=user,r="}, "501 5.5.2"},
		{"long nonce", SCRAMSHA256, []string{"n,,n=user,r=" + strings.Repeat("x", maxNonce)}, "501 5.5.2"},
		{"mandatory extension", SCRAMSHA256, []string{"n,,m=x,n=user,r=abc"}, "501 5.5.2"},
		{"empty name", SCRAMSHA256, []string{"n,,n=,r=abc"}, "501 5.5.2"},
		{"odd escape", SCRAMSHA256, []string{"n,,n=us=41er,r=abc"}, "501 5.5.2"},
		{"empty authz", SCRAMSHA256, []string{"n,a=,n=user,r=abc"}, "501 5.5.2"},
		{"authz without a=", SCRAMSHA256, []string{"n,boss,n=user,r=abc"}, "501 5.5.2"},
		{"binding without PLUS", SCRAMSHA256, []string{"p=tls-exporter,,n=user,r=abc"}, "501 5.5.2"},
		{"the list was cut on its way", SCRAMSHA256, []string{"y,,n=user,r=abc"}, "535 5.7.8"},
		{"no proof", SCRAMSHA256, []string{"n,,n=user,r=abc", "c=biws,r=abc"}, "501 5.5.2"},
		{"short proof", SCRAMSHA256, []string{"n,,n=user,r=abc", "c=biws,r=abc,p=AAAA"}, "501 5.5.2"},
		{"made-up proof", SCRAMSHA256, []string{"n,,n=user,r=abc", "c=biws,r=abc,p=" + strings.Repeat("A", 43) + "="}, "535 5.7.8"},
		{"PLUS without binding", SCRAMSHA256Plus, []string{"n,,n=user,r=abc"}, "501 5.5.2"},
		{"PLUS with another binding", SCRAMSHA256Plus, []string{"p=tls-telepathy,,n=user,r=abc"}, "535 5.7.8"},
		{"PLUS with the binding of old TLS", SCRAMSHA256Plus, []string{"p=tls-unique,,n=user,r=abc"}, "535 5.7.8"},
	}
	conn := handshake(t, tls.VersionTLS13)
	for _, tt := range tests {
		t.Run(tt.mechanism+" "+tt.name, func(t *testing.T) {
			s, err := New(context.Background(), tt.mechanism, people(t), Conn{TLS: &conn.server, Offered: Mechanisms()})
			if err != nil {
				t.Fatal(err)
			}
			for i, text := range tt.say {
				response := []byte(strings.NewReplacer("^A", "\x01", "^@", "\x00").Replace(text))
				if text == "-" {
					response = nil
				}
				_, done, err := s.Next(response)
				if err == nil && !done {
					continue
				}
				if i != len(tt.say)-1 || line(err) != tt.want {
					t.Errorf("response %d of %d: got %q, want %q (%v)", i+1, len(tt.say), line(err), tt.want, err)
				}
				if err != nil && s.Identity()+s.Authorized() != "" {
					t.Errorf("refused, and yet %q is known", s.Identity())
				}
				return
			}
			t.Errorf("the exchange goes on; want %q", tt.want)
		})
	}
}

// What a callback says is what the client hears; what cannot be said is trouble of ours.
func TestVerdicts(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"right", nil, "235"},
		{"denied", ErrDenied, "535 5.7.8"},
		{"denied, with a reason", errors.Join(errors.New("locked"), ErrDenied), "535 5.7.8"},
		{"words of its own", smtp.Refuse(534, smtp.Enhanced{5, 7, 9}, "too weak"), "534 5.7.9"},
		{"a reply that is no refusal", smtp.Refuse(250, smtp.Enhanced{2, 0, 0}, "fine"), "454 4.7.0"},
		{"time ran out", context.DeadlineExceeded, "454 4.7.0"},
	}
	for _, tt := range tests {
		c := Credentials{Password: func(context.Context, string, string) error { return tt.err }}
		s, err := New(context.Background(), Plain, c, Conn{AllowClear: true})
		if err != nil {
			t.Fatal(err)
		}
		_, done, err := s.Next([]byte("\x00user\x00secretword"))
		if line(err) != tt.want || done != (tt.want == "235") {
			t.Errorf("%s: got %q, %v; want %q", tt.name, line(err), done, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "secretword") {
			t.Errorf("%s: the error holds the password: %v", tt.name, err)
		}
	}
}

func TestAvailable(t *testing.T) {
	conn := handshake(t, tls.VersionTLS13)
	unverified := conn.server
	unverified.VerifiedChains = nil
	all := people(t)
	tests := []struct {
		name       string
		configured []string
		c          Credentials
		conn       Conn
		want       string
	}{
		{"in clear", nil, all, Conn{}, ""},
		{"in clear, allowed", nil, all, Conn{AllowClear: true}, "SCRAM-SHA-256 OAUTHBEARER XOAUTH2 PLAIN LOGIN"},
		{"TLS", nil, all, Conn{TLS: &conn.server}, "SCRAM-SHA-256-PLUS SCRAM-SHA-256 OAUTHBEARER XOAUTH2 PLAIN LOGIN"},
		{"passwords alone", nil, Credentials{Password: all.Password}, Conn{TLS: &conn.server}, "PLAIN LOGIN"},
		{"the operator's order", []string{"login", "PLAIN", "plain", "GSSAPI"}, all, Conn{TLS: &conn.server}, "LOGIN PLAIN"},
		{"certificate", []string{External, CRAMMD5}, all, Conn{TLS: &conn.server}, "EXTERNAL CRAM-MD5"},
		{"certificate that nobody verified", []string{External}, all, Conn{TLS: &unverified}, ""},
		{"nothing", nil, Credentials{}, Conn{TLS: &conn.server}, ""},
	}
	for _, tt := range tests {
		if got := strings.Join(Available(tt.configured, tt.c, tt.conn), " "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
	for _, name := range []string{"GSSAPI", "", "CRAM-MD5", "EXTERNAL"} {
		if _, err := New(context.Background(), name, all, Conn{TLS: &conn.server}); line(err) != "504 5.5.4" {
			t.Errorf("%q, which is not offered: %v", name, err)
		}
	}
}

func TestChoose(t *testing.T) {
	conn := handshake(t, tls.VersionTLS13)
	all := Mechanisms()
	tests := []struct {
		name    string
		offered []string
		account Account
		want    string
	}{
		{"strongest", all, Account{User: "u", Password: "p", TLS: &conn.client}, SCRAMSHA256Plus},
		{"token before password", all, Account{User: "u", Password: "p", Token: "t", TLS: &conn.client}, OAuthBearer},
		{"in lower case", []string{"plain"}, Account{User: "u", Password: "p", TLS: &conn.client}, Plain},
		{"in clear nothing that shows the password", []string{Plain, Login, CRAMMD5}, Account{User: "u", Password: "p"}, CRAMMD5},
		{"in clear nothing", []string{Plain, Login}, Account{User: "u", Password: "p"}, ""},
		{"in clear, allowed", []string{Login, Plain}, Account{User: "u", Password: "p", AllowClear: true}, Plain},
		{"LOGIN cannot act for others", []string{Login}, Account{User: "u", Authz: "v", Password: "p", TLS: &conn.client}, ""},
		{"certificate", all, Account{Certificate: true, TLS: &conn.client}, External},
		{"nothing known", []string{"GSSAPI"}, Account{User: "u", Password: "p", TLS: &conn.client}, ""},
	}
	for _, tt := range tests {
		if got := Choose(tt.offered, tt.account); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestPrepare(t *testing.T) {
	tests := []struct{ in, want string }{
		{"user@example.com", "user@example.com"},
		{"User", "User"},
		{"IX", "IX"},
		{"\u2168", "IX"},      // RFC 4013, Section 3, example 5
		{"\u00aa", "a"},       // example 4
		{"a\u00a0b", "a b"},   // all spaces are one
		{"e\u0301", "\u00e9"}, // composed
		{"John Doe", "John Doe"},
		{"", ""},
		{"\u0007", ""}, // example 6
		{"a\x7fb", ""},
		{"a\u200bb", ""}, // cannot be seen
		{"a\u202eb", ""}, // turns what follows around
		{"a\xffb", ""},
		{strings.Repeat("\ufdfa", 20), ""}, // fits, but not once it is written out
	}
	for _, tt := range tests {
		got, err := PrepareName(tt.in)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%q: got %q, %v; want %q", tt.in, got, err, tt.want)
		}
		if again, err := PrepareName(got); got != "" && (again != got || err != nil) {
			t.Errorf("%q: prepared twice it is %q, %v", tt.in, again, err)
		}
	}
}

// A Server is what a session of package smtp returns from Auth.
var _ smtp.Mechanism = (*Server)(nil)
