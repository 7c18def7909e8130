package sasl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
)

// login.go leads a whole login on a Client of package smtp: which mechanism, a token that has
// to be fetched, and what to do when one of both is refused.

// ErrNoMechanism means that nothing that the server offers suits the account: it has no
// credentials for it, or they would go out in clear text.
var ErrNoMechanism = errors.New("sasl: no mechanism that the server offers suits")

// LoginOptions are how to log in. The zero value of each field means its default.
type LoginOptions struct {
	// Mechanism is the only one to be used. Default: what Choose says.
	Mechanism string
	// Refresh returns a token, for an account of which Token is empty, and a new one if the
	// server has refused that of Token. Nil: there is no other token.
	Refresh func(ctx context.Context) (string, error)
	// Custom makes the clients of mechanisms that this package does not have, or does not have
	// like that, by name in upper case. They come before all others. One that shows a secret
	// is for TLS; Auth refuses it in clear text unless the Client allows that.
	Custom map[string]func(Account) (smtp.AuthClient, error)
}

// LogIn logs in at the server of c, by the strongest mechanism that the server offers and that
// suits. What the account has to know of the connection is filled in: TLS, AllowClear and
// Offered.
//
// A mechanism that the server offers and then does not know (504) is followed by the next one.
// A token that is refused (535) is refreshed, once. Any other refusal is the error, a
// *smtp.Reply. The error is ErrNoMechanism if nothing suits; else it is that of
// [smtp.Client.Auth], or of Refresh.
func LogIn(ctx context.Context, c *smtp.Client, a Account, o LoginOptions) error {
	l := login{a, o}
	if state, ok := c.TLS(); ok {
		l.TLS = &state
	}
	l.AllowClear, l.Offered = c.MaySecrets(), c.Mechanisms()
	offered, fresh := l.Offered, false
	if l.Token == "" && l.Refresh != nil {
		if err := l.refresh(ctx); err != nil {
			return err
		}
		fresh = true
	}
	for {
		name := l.choose(offered)
		if name == "" {
			return fmt.Errorf("%w: it offers %q", ErrNoMechanism, l.Offered)
		}
		err := l.try(ctx, c, name)
		r, refused := err.(*smtp.Reply)
		switch {
		case !refused || c.Broken():
			return err
		case r.Code == 504:
			offered = slices.DeleteFunc(slices.Clone(offered), func(o string) bool { return o == name })
			if l.choose(offered) == "" {
				return err
			}
		case r.Code == 535 && (name == XOAuth2 || name == OAuthBearer) && l.Refresh != nil && !fresh:
			if err := l.refresh(ctx); err != nil {
				return errors.Join(err, r)
			}
			fresh = true
		default:
			return err
		}
	}
}

// login is one call of LogIn.
type login struct {
	Account
	LoginOptions
}

// refresh gets a token.
func (l *login) refresh(ctx context.Context) error {
	token, err := l.Refresh(ctx)
	if err != nil {
		return fmt.Errorf("sasl: refreshing the token: %w", err)
	}
	l.Token = token
	return nil
}

// choose returns the mechanism to try, or the empty string.
func (l *login) choose(offered []string) string {
	if l.Mechanism != "" {
		offered = slices.DeleteFunc(slices.Clone(offered), func(o string) bool { return !strings.EqualFold(o, l.Mechanism) })
	}
	for _, o := range offered {
		if l.Custom[o] != nil {
			return o
		}
	}
	return Choose(offered, l.Account)
}

// try is one exchange.
func (l *login) try(ctx context.Context, c *smtp.Client, name string) error {
	if make := l.Custom[name]; make != nil {
		m, err := make(l.Account)
		if err != nil {
			return fmt.Errorf("sasl: %s: %w", name, err)
		}
		return c.Auth(ctx, m)
	}
	m, err := NewClient(name, l.Account)
	if err != nil {
		return err
	}
	return c.Auth(ctx, m)
}
