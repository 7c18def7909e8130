package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"log/slog"
	"slices"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
	"github.com/penstock/penstock/policy"
)

// login.go: who a client is. The mechanisms are those of package sasl; what they ask about
// a user goes to the filters, which may refuse, and to whoever knows the users: Credentials,
// or the filters themselves. The filters come first where the client says its name; of a
// token and a certificate it is Credentials that knows whose they are.

// Logins say who may log in on a listener. The zero value is nobody.
type Logins struct {
	// Credentials returns what checks what clients say; it is asked for each exchange. Nil
	// with Filter, or if nobody can log in.
	Credentials func() sasl.Credentials
	// Filter leaves the decision to the filters of the chain: one of them must accept at
	// StageAuth, and none refuse. They see passwords and tokens then, and only then.
	Filter bool
	// Mechanisms are offered in this order, where they can work. Empty means sasl.Defaults.
	Mechanisms []string
}

// hasLogins tells whether anybody can log in. Where filters decide there must be one that
// is asked.
func (s *session) hasLogins() bool {
	if s.l.Logins.Filter {
		return s.rules.Chains[s.l.Chain].Stages().Has(policy.StageAuth)
	}
	return s.l.Logins.Credentials != nil
}

// Mechanisms implements smtp.AuthSession.
func (s *session) Mechanisms() []string {
	s.offered = sasl.Available(s.l.Logins.Mechanisms, s.credentials(""), s.saslConn())
	return s.offered
}

// saslConn is what an exchange has to know of the connection.
func (s *session) saslConn() sasl.Conn {
	c := sasl.Conn{AllowClear: s.l.Server.Auth.Insecure || s.proxy.endedTLS(), Hostname: s.l.gw.opts.Hostname, Offered: s.offered}
	if st, ok := s.conn.TLS(); ok {
		c.TLS = &st
	}
	return c
}

// errLogins is the answer to an address that has failed too often.
var errLogins = smtp.Refuse(454, smtp.Enhanced{4, 7, 0}, "too many failed logins from your address, try again later")

// Auth implements smtp.AuthSession.
func (s *session) Auth(ctx context.Context, mechanism string) (smtp.Mechanism, error) {
	if !s.mayTry() {
		return nil, errLogins
	}
	server, err := sasl.New(ctx, mechanism, s.credentials(mechanism), s.saslConn())
	if err != nil {
		s.forgive()
		return nil, err
	}
	return &login{s, server, mechanism}, nil
}

// mayTry counts a login as a failed one until it is known to be none: clients that try many at
// once must not get more tries by that. An exchange that is given up stays counted.
func (s *session) mayTry() bool {
	if !s.limited() {
		return true
	}
	ok, _ := s.l.authFailures.take(s.payer(), 1)
	return ok
}

// forgive takes back what mayTry has counted.
func (s *session) forgive() {
	if s.limited() {
		s.l.authFailures.give(s.payer(), 1)
	}
}

// login is an exchange that is counted and logged.
type login struct {
	s         *session
	server    *sasl.Server
	mechanism string
}

// Next implements smtp.Mechanism.
func (l *login) Next(response []byte) (challenge []byte, done bool, err error) {
	challenge, done, err = l.server.Next(response)
	s := l.s
	switch {
	case err != nil:
		// The name is left out: it may be a password that was typed in the wrong place.
		s.log.LogAttrs(context.Background(), slog.LevelInfo, "login failed", slog.String("conn", s.facts.ID),
			slog.String("remote", s.remote()), slog.String("mechanism", l.mechanism), slog.Any("err", err))
		s.l.gw.Stats.LoginsFailed.Add(1)
		if !smtp.ReplyOf(err).Permanent() {
			s.forgive() // no fault of the client
		}
	case done:
		s.forgive()
		s.facts.User = l.server.Authorized()
		s.loggedIn = true
		s.l.gw.Stats.Logins.Add(1)
		s.log.LogAttrs(context.Background(), slog.LevelInfo, "logged in", slog.String("conn", s.facts.ID),
			slog.String("remote", s.remote()), slog.String("mechanism", l.mechanism), slog.String("user", s.facts.User))
	}
	return challenge, done, err
}

// credentials are those of the listener, with the filters asked too. Each callback has the
// context of the command that it belongs to.
func (s *session) credentials(mechanism string) sasl.Credentials {
	if s.l.Logins.Filter {
		return s.filterCredentials(mechanism)
	}
	c := s.l.Logins.Credentials()
	if !s.rules.Chains[s.l.Chain].Stages().Has(policy.StageAuth) {
		return c
	}
	ask := func(ctx context.Context, user string) error {
		_, err := s.askLogin(ctx, policy.Auth{Mechanism: mechanism, User: user})
		return err
	}
	if own := c.Password; own != nil {
		c.Password = func(ctx context.Context, user, password string) error {
			if err := ask(ctx, user); err != nil {
				return err
			}
			return own(ctx, user, password)
		}
	}
	if own := c.Secret; own != nil {
		c.Secret = func(ctx context.Context, user string) (string, error) {
			if err := ask(ctx, user); err != nil {
				return "", err
			}
			return own(ctx, user)
		}
	}
	if own := c.SCRAM; own != nil {
		c.SCRAM = func(ctx context.Context, user string) (sasl.SCRAMKeys, error) {
			if err := ask(ctx, user); err != nil {
				return sasl.SCRAMKeys{}, err
			}
			return own(ctx, user)
		}
	}
	if own := c.Token; own != nil {
		c.Token = func(ctx context.Context, r sasl.TokenRequest) (string, error) {
			user, err := own(ctx, r)
			if err != nil {
				return "", err
			}
			return user, ask(ctx, cmp.Or(user, r.User))
		}
	}
	if own := c.Certificate; own != nil {
		c.Certificate = func(ctx context.Context, state *tls.ConnectionState, authz string) (string, error) {
			user, err := own(ctx, state, authz)
			if err != nil {
				return "", err
			}
			return user, ask(ctx, user)
		}
	}
	return c
}

// filterCredentials leave all to the filters.
func (s *session) filterCredentials(mechanism string) sasl.Credentials {
	decide := func(ctx context.Context, a policy.Auth) error {
		a.Mechanism = mechanism
		accepted, err := s.askLogin(ctx, a)
		if err == nil && !accepted {
			err = sasl.ErrDenied
		}
		return err
	}
	return sasl.Credentials{
		Password: func(ctx context.Context, user, password string) error {
			return decide(ctx, policy.Auth{User: user, Password: password, Reveal: true})
		},
		Token: func(ctx context.Context, r sasl.TokenRequest) (string, error) {
			return r.User, decide(ctx, policy.Auth{User: r.User, Token: r.Token, Reveal: true})
		},
		Certificate: func(ctx context.Context, state *tls.ConnectionState, authz string) (string, error) {
			names := sasl.CertificateNames(state.PeerCertificates[0])
			if len(names) == 0 {
				return "", sasl.ErrDenied
			}
			user := names[0]
			if slices.Contains(names, authz) {
				user = authz
			}
			return user, decide(ctx, policy.Auth{User: user, Reveal: true})
		},
	}
}

// askLogin asks the filters about a login.
func (s *session) askLogin(ctx context.Context, a policy.Auth) (accepted bool, err error) {
	d := s.run.DecideAuth(ctx, &a)
	return d.Action == policy.Accept, s.heed(d.Verdict, policy.StageAuth)
}
