package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
)

// connect.go makes a connection ready for MAIL: connect, greeting, TLS, EHLO.

// clearPause is how long an endpoint that cannot do the TLS it offers is spoken to in
// clear text, with TLSOpportunistic, before TLS is tried again.
const clearPause = 10 * time.Minute

var errNoSTARTTLS = errors.New("backend does not offer STARTTLS")

// handshakeError is a STARTTLS that was begun and failed. The connection is gone.
type handshakeError struct{ cause error }

func (e *handshakeError) Error() string { return e.cause.Error() }
func (e *handshakeError) Unwrap() error { return e.cause }

// tlsConfig is how TLS is spoken with e.
func (o BackendOptions) tlsConfig(e Endpoint) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    o.CAs,
		ServerName: o.ServerName,
		// Without verify any certificate is taken: it is there to keep listeners out,
		// not to tell who is on the other side.
		InsecureSkipVerify: o.TLS != TLSVerify,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
	}
	if c.ServerName == "" {
		c.ServerName = e.host()
	}
	return c
}

// connect makes a new connection to ep, within the connect timeout, and logs in if that is
// wanted. Whatever fails is an error that names the endpoint; a greeting that refuses too.
func (b *backend) connect(ctx context.Context, ep *endpoint) (*conn, error) {
	c, err := b.connectAsNobody(ctx, ep)
	if err != nil || b.opts.User == "" {
		return c, err
	}
	if err := b.logIn(ctx, c, sasl.Account{User: b.opts.User, Password: b.opts.Password}); err != nil {
		c.client.Close()
		return nil, fmt.Errorf("delivery: logging in at %s: %w", ep.Endpoint, err)
	}
	return c, nil
}

// connectAsNobody is connect without a login.
func (b *backend) connectAsNobody(ctx context.Context, ep *endpoint) (*conn, error) {
	limited, cancel := context.WithTimeout(ctx, b.opts.ConnectTimeout)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	c, err := b.open(limited, ep, b.wantsTLS(ep))
	var failed *handshakeError
	if b.opts.TLS == TLSOpportunistic && errors.As(err, &failed) && ctx.Err() == nil {
		b.log.Warn("TLS with the backend failed, going on in clear text",
			"backend", b.name, "remote", ep.String(), "err", err)
		b.mu.Lock()
		ep.clear = time.Now().Add(clearPause)
		b.mu.Unlock()
		c, err = b.open(limited, ep, false)
	}
	if err != nil {
		return nil, fmt.Errorf("delivery: connecting to %s: %w", ep.Endpoint, err)
	}
	return c, nil
}

// wantsTLS tells whether STARTTLS is to be tried.
func (b *backend) wantsTLS(ep *endpoint) bool {
	switch {
	case ep.ImplicitTLS, b.opts.TLS == TLSOff:
		return false
	case b.opts.TLS != TLSOpportunistic:
		return true
	case ep.Network == "unix":
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !time.Now().Before(ep.clear)
}

// open makes one attempt.
func (b *backend) open(ctx context.Context, ep *endpoint, startTLS bool) (*conn, error) {
	nc, err := b.dial(ctx, ep.Network, ep.Address)
	if err != nil {
		return nil, err
	}
	stream := nc
	if ep.ImplicitTLS {
		tc := tls.Client(nc, ep.tls)
		if err := tc.HandshakeContext(ctx); err != nil {
			nc.Close()
			return nil, fmt.Errorf("TLS handshake: %w", err)
		}
		stream = tc
	}
	client, err := smtp.NewClient(ctx, stream, smtp.ClientOptions{
		LocalName: b.localName, LMTP: ep.LMTP, Timeouts: b.opts.Timeouts, NoChunking: b.opts.NoChunking,
		ClearAuth: b.clearLogin(ep),
		Log:       b.log.With("backend", b.name, "remote", ep.String()),
	})
	if err != nil {
		return nil, err
	}
	if startTLS {
		if err := b.startTLS(ctx, client, ep); err != nil {
			client.Close()
			return nil, err
		}
	}
	return b.newConn(ep, client, nc), nil
}

// startTLS encrypts the connection. With TLSOpportunistic a backend that does not offer
// it, or refuses, is no error.
func (b *backend) startTLS(ctx context.Context, client *smtp.Client, ep *endpoint) error {
	optional := b.opts.TLS == TLSOpportunistic
	if _, ok := client.Extension("STARTTLS"); !ok {
		if optional {
			return nil
		}
		return errNoSTARTTLS
	}
	err := client.StartTLS(ctx, ep.tls)
	if err == nil {
		return nil
	}
	_, shaken := client.TLS()
	switch {
	case shaken: // it is the EHLO behind it that failed
		return err
	case !client.Broken():
		if _, refused := errors.AsType[*smtp.Reply](err); refused && optional {
			return nil
		}
		return err
	}
	return &handshakeError{err}
}

// dialer is the default of Options.Dial. The limit of the time comes with the context.
func dialer(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}
