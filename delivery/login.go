package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
)

// login.go logs in at a backend: we for ourselves, or to try a login of a user who logs in
// here.

// errNoLogin is what a user is told who could not be asked about.
var errNoLogin = smtp.Refuse(454, smtp.Enhanced{4, 7, 0}, "authentication is not possible at the moment, try again later")

// Login logs in at a backend as a, on a connection of its own that has no other use, and says
// QUIT. What a lacks about the connection is filled in, and the mechanism is the strongest
// that the backend offers and that suits. It returns nil if the backend says 235. Otherwise
// the error is a *smtp.Reply: the backend's own refusal, or 454 4.7.0 with the cause if there
// was none: no endpoint can be reached, too many logins are under way for longer than
// WaitConnection, no mechanism suits, the server does not prove who it is, or the connection
// is in clear text and must not be.
//
// Endpoints are tried in order until one is reached. What they do does not count for what is
// up or down.
func (t *Transport) Login(ctx context.Context, backend string, a sasl.Account) error {
	b, err := t.enter(backend)
	if err != nil {
		return errNoLogin.Because(err)
	}
	defer t.leave()
	if err := b.enterLogin(ctx); err != nil {
		return errNoLogin.Because(err)
	}
	defer func() { <-b.logins }()
	return b.login(ctx, a)
}

// enterLogin waits for its turn.
func (b *backend) enterLogin(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.WaitConnection, errTooManyLogins)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	select {
	case b.logins <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("delivery: login at backend %s: %w", b.name, context.Cause(ctx))
	}
}

var errTooManyLogins = errors.New("too many logins are under way")

func (b *backend) login(ctx context.Context, a sasl.Account) error {
	c, err := b.reach(ctx)
	if err != nil {
		return errNoLogin.Because(err)
	}
	defer c.quit(b.ctx)
	err = b.logIn(ctx, c, a)
	if err == nil {
		return nil
	}
	if r, ok := err.(*smtp.Reply); ok && r.Code != 421 {
		return r
	}
	return errNoLogin.Because(fmt.Errorf("delivery: login at backend %s at %s: %w", b.name, c.ep.Endpoint, err))
}

// errNoMechanism means that there is nothing to log in with.
var errNoMechanism = errors.New("no mechanism that is offered suits, or it would show the password in clear text")

// logIn logs in on a connection, within the connect timeout.
func (b *backend) logIn(ctx context.Context, c *conn, a sasl.Account) error {
	ctx, cancel := context.WithTimeout(ctx, b.opts.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	a.Offered, a.AllowClear = c.client.Mechanisms(), b.clearLogin(c.ep)
	if a.Host == "" {
		a.Host = c.ep.host()
	}
	if state, ok := c.client.TLS(); ok {
		a.TLS = &state
	}
	name := sasl.Choose(a.Offered, a)
	if name == "" {
		return errNoMechanism
	}
	m, err := sasl.NewClient(name, a)
	if err != nil {
		return err
	}
	return c.client.Auth(ctx, m)
}

// clearLogin tells whether a password may go to ep without TLS.
func (b *backend) clearLogin(ep *endpoint) bool { return b.opts.ClearLogin || ep.local() }

// reach connects to the first endpoint that can be reached: first those that are not known
// to be down.
func (b *backend) reach(ctx context.Context) (*conn, error) {
	var errs []error
	for _, ep := range b.upFirst(time.Now()) {
		c, err := b.connectAsNobody(ctx, ep)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil || b.ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// upFirst returns the endpoints in order, those that are down and not to be tried yet last.
func (b *backend) upFirst(now time.Time) []*endpoint {
	b.mu.Lock()
	defer b.mu.Unlock()
	var up, down []*endpoint
	for ep := range b.endpoints() {
		if ep.down && now.Before(ep.retry) {
			down = append(down, ep)
		} else {
			up = append(up, ep)
		}
	}
	return append(up, down...)
}
