package sasl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
)

// loginSession is a server's session that lets people log in.
type loginSession struct {
	smtp.Accept
	conn    *smtp.Conn
	offered []string
	lies    []string // offered and not known
	creds   Credentials
	note    func(string)
}

func (s *loginSession) Conn() Conn {
	c := Conn{AllowClear: true}
	if state, ok := s.conn.TLS(); ok {
		c.TLS = &state
	}
	return c
}

func (s *loginSession) Mechanisms() []string {
	return append(slices.Clone(s.lies), Available(s.offered, s.creds, s.Conn())...)
}

func (s *loginSession) Auth(ctx context.Context, mechanism string) (smtp.Mechanism, error) {
	s.note(mechanism)
	if slices.Contains(s.lies, mechanism) {
		return nil, smtp.Refuse(504, smtp.Enhanced{5, 5, 4}, "not known after all")
	}
	c := s.Conn()
	c.Offered = Available(s.offered, s.creds, c)
	return New(ctx, mechanism, s.creds, c)
}

// dialServer returns a client of a server that lets people log in, and what it was asked for.
func dialServer(t *testing.T, secure, clearAuth bool, sess loginSession) (*smtp.Client, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var asked []string
	sess.note = func(s string) { mu.Lock(); asked = append(asked, s); mu.Unlock() }
	o := smtp.ServerOptions{Hostname: "mx.test", Auth: smtp.AuthOptions{Insecure: true, FailureDelay: -1}}
	if secure {
		cert, _ := certificate(t)
		o.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	}
	srv, err := smtp.NewServer(smtp.HandlerFunc(func(_ context.Context, c *smtp.Conn) (smtp.Session, error) {
		mine := sess
		mine.conn = c
		return &mine, nil
	}), o)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	served := make(chan struct{})
	go func() { defer close(served); srv.ServeConn(theirs) }()
	do := smtp.DialOptions{Conn: ours, ClientOptions: smtp.ClientOptions{LocalName: "client.test", ClearAuth: clearAuth}}
	if secure {
		do.TLS, do.TLSConfig = smtp.TLSRequired, &tls.Config{InsecureSkipVerify: true}
	}
	c, err := smtp.Dial(t.Context(), "mx.test", do)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); <-served; srv.Shutdown(context.Background()) })
	return c, func() []string { mu.Lock(); defer mu.Unlock(); return asked }
}

// TestLogIn: the mechanism follows from what is offered and what there is to prove it with,
// and nothing that shows a secret goes out in clear text unasked.
func TestLogIn(t *testing.T) {
	parity.Row(t, "SC-17", "SC-25", "SC-34")
	password := Account{User: "user", Password: "pencil"}
	token := Account{User: "user", Token: bearerToken}
	refused := errors.New("the issuer is away")
	tokens := func(list ...string) func(context.Context) (string, error) {
		return func(context.Context) (string, error) {
			if len(list) == 0 {
				return "", refused
			}
			token := list[0]
			list = list[1:]
			return token, nil
		}
	}
	custom := map[string]func(Account) (smtp.AuthClient, error){"X-WORD": func(a Account) (smtp.AuthClient, error) {
		c, err := NewClient(Plain, a)
		return named{c}, err
	}}
	for _, tt := range []struct {
		name    string
		secure  bool
		clear   bool // secrets may go out in clear
		offered string
		lies    string
		account Account
		options LoginOptions
		asked   string
		want    string // of the error
	}{
		{"strongest", true, false, "PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256 SCRAM-SHA-256-PLUS", "", password, LoginOptions{}, "SCRAM-SHA-256-PLUS", ""},
		{"plain", true, false, "PLAIN LOGIN", "", password, LoginOptions{}, "PLAIN", ""},
		{"login", true, false, "LOGIN", "", password, LoginOptions{}, "LOGIN", ""},
		{"cram", true, false, "CRAM-MD5", "", password, LoginOptions{}, "CRAM-MD5", ""},
		{"chosen", true, false, "PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256", "", password, LoginOptions{Mechanism: "login"}, "LOGIN", ""},
		{"chosen and not offered", true, false, "PLAIN", "", password, LoginOptions{Mechanism: "LOGIN"}, "", "no mechanism"},
		{"wrong password", true, false, "PLAIN LOGIN", "", Account{User: "user", Password: "pen"}, LoginOptions{}, "PLAIN", "535 5.7.8"},
		{"trouble", true, false, "PLAIN LOGIN", "", Account{User: "broken", Password: "pencil"}, LoginOptions{}, "PLAIN", "454 4.7.0"},
		{"in clear", false, false, "PLAIN LOGIN", "", password, LoginOptions{}, "", "no mechanism"},
		{"in clear, no secret shown", false, false, "PLAIN SCRAM-SHA-256", "", password, LoginOptions{}, "", "no authentication without TLS"},
		{"in clear, allowed", false, true, "PLAIN LOGIN", "", password, LoginOptions{}, "PLAIN", ""},
		{"in clear, allowed, better", false, true, "PLAIN SCRAM-SHA-256", "", password, LoginOptions{}, "SCRAM-SHA-256", ""},
		{"nothing offered", true, false, "EXTERNAL", "", password, LoginOptions{}, "", "no mechanism"},
		{"no credentials", true, false, "PLAIN", "", Account{User: "user"}, LoginOptions{}, "", "no mechanism"},
		{"xoauth2", true, false, "PLAIN XOAUTH2", "", token, LoginOptions{}, "XOAUTH2", ""},
		{"oauthbearer", true, false, "PLAIN XOAUTH2 OAUTHBEARER", "", token, LoginOptions{}, "OAUTHBEARER", ""},
		{"token refused", true, false, "XOAUTH2", "", Account{User: "user", Token: "old"}, LoginOptions{}, "XOAUTH2", "535"},
		{"token refreshed", true, false, "XOAUTH2", "", Account{User: "user", Token: "old"}, LoginOptions{Refresh: tokens(bearerToken)}, "XOAUTH2 XOAUTH2", ""},
		{"bearer token refreshed", true, false, "OAUTHBEARER", "", Account{User: "user", Token: "old"}, LoginOptions{Refresh: tokens(bearerToken)}, "OAUTHBEARER OAUTHBEARER", ""},
		{"refreshed once", true, false, "XOAUTH2", "", Account{User: "user", Token: "old"}, LoginOptions{Refresh: tokens("old-too", bearerToken)}, "XOAUTH2 XOAUTH2", "535"},
		{"first token", true, false, "XOAUTH2", "", Account{User: "user"}, LoginOptions{Refresh: tokens(bearerToken)}, "XOAUTH2", ""},
		{"first token refused", true, false, "XOAUTH2", "", Account{User: "user"}, LoginOptions{Refresh: tokens("old", bearerToken)}, "XOAUTH2", "535"},
		{"no token", true, false, "XOAUTH2", "", Account{User: "user"}, LoginOptions{Refresh: tokens()}, "", "the issuer is away"},
		{"no token any more", true, false, "XOAUTH2", "", Account{User: "user", Token: "old"}, LoginOptions{Refresh: tokens()}, "XOAUTH2", "the issuer is away"},
		{"offered and not known", true, false, "LOGIN", "SCRAM-SHA-256 PLAIN", password, LoginOptions{}, "SCRAM-SHA-256 PLAIN LOGIN", ""},
		{"none known", true, false, "EXTERNAL", "PLAIN", password, LoginOptions{}, "PLAIN", "504"},
		{"of our own", true, false, "PLAIN", "X-WORD", password, LoginOptions{Custom: custom}, "X-WORD PLAIN", ""},
		{"of our own alone", true, false, "PLAIN", "X-WORD", password, LoginOptions{Custom: custom, Mechanism: "X-WORD"}, "X-WORD", "504"},
		{"of our own, not offered", true, false, "PLAIN", "", password, LoginOptions{Custom: custom}, "PLAIN", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, asked := dialServer(t, tt.secure, tt.clear, loginSession{offered: strings.Fields(tt.offered), lies: strings.Fields(tt.lies), creds: people(t)})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := LogIn(ctx, c, tt.account, tt.options)
			if (err == nil) != (tt.want == "") || !strings.Contains(fmt.Sprint(err), tt.want) && err != nil || c.LoggedIn() != (err == nil) {
				t.Errorf("got %v, logged in %v, want %q", err, c.LoggedIn(), tt.want)
			}
			if got := strings.Join(asked(), " "); got != tt.asked {
				t.Errorf("asked for %s, want %s", got, tt.asked)
			}
			if err := c.Noop(ctx); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// named is PLAIN under another name.
type named struct{ *Client }

func (n named) Start() (string, []byte, error) {
	_, initial, err := n.Client.Start()
	return "X-WORD", initial, err
}
