package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/mail/smtp/sasl"
	"github.com/penstock/penstock/mail/smtp/sasl/users"
	"github.com/penstock/penstock/resolver"
)

// listeners.go: the receiving half in the words of package gateway, and those who know users
// and names.

// doorman is what the listeners need of others.
type doorman struct {
	log *slog.Logger
	// transport is set before the first session.
	transport func() *delivery.Transport
	users     map[string]*users.File // by path
	senders   map[string]*senderFile // likewise
	// signer signs what is submitted; nil if there is no key.
	signer func(context.Context, smtp.Domain, smtp.Content) ([]message.Field, error)
}

func newDoorman(log *slog.Logger) *doorman {
	return &doorman{log: log, users: make(map[string]*users.File), senders: make(map[string]*senderFile)}
}

// listeners returns the listeners, and what is wrong with them and the files that they name.
func (d *doorman) listeners(c *config.Config) ([]gateway.Listener, config.Problems) {
	var list []gateway.Listener
	var problems config.Problems
	for i, l := range c.Listeners {
		at := "listeners[" + strconv.Itoa(i) + "]"
		fail := func(key string, err error) { problems = append(problems, c.Problem(at+"."+key, oneLine(err))) }
		before := len(problems)
		gl := listener(l)
		if l.ClientCertificates.CAFile != "" {
			pool, err := readPool(string(l.ClientCertificates.CAFile))
			if err != nil {
				fail("client_certificates.ca_file", err)
			}
			gl.ClientCAs = pool
		}
		logins, err := d.loginsOf(l.Auth)
		if err != nil {
			fail("auth.users", err)
		}
		gl.Logins = logins
		if gl.Submission, err = d.submission(l.Submission); err != nil {
			fail("submission.senders", err)
		}
		list = append(list, gl)
		problems = append(problems, checkValues(c, at, gl)...)
		if len(problems) == before {
			if err := validListener(gl); err != nil {
				problems = append(problems, c.Problem(at, oneLine(err)))
			}
		}
	}
	return list, problems
}

// checkValues finds values of a listener that package gateway refuses, and puts that at their
// keys: each is tried alone, in a listener that has nothing else.
func checkValues(c *config.Config, at string, l gateway.Listener) config.Problems {
	var problems config.Problems
	try := func(key string, set func(to *gateway.Listener)) {
		plain := gateway.Listener{Name: "a", Addresses: []gateway.Address{{Network: "tcp", Address: ":0"}}}
		set(&plain)
		if err := validListener(plain); err != nil {
			problems = append(problems, c.Problem(key, oneLine(err)))
		}
	}
	for i, a := range l.Addresses {
		try(addressKey(at, i, len(l.Addresses)), func(to *gateway.Listener) { to.Addresses = []gateway.Address{a} })
	}
	for i, w := range l.Server.Disabled {
		try(at+".disabled_commands["+strconv.Itoa(i)+"]", func(to *gateway.Listener) { to.Server.Disabled = []string{w} })
	}
	for i, w := range l.Server.Without {
		try(at+".disabled_extensions["+strconv.Itoa(i)+"]", func(to *gateway.Listener) { to.Server.Without = []string{w} })
	}
	for _, r := range []struct {
		key  string
		rate gateway.Rate
	}{
		{"connection_rate", l.ConnectionRate}, {"connection_rate_network", l.ConnectionRateNetwork},
		{"message_rate", l.MessageRate}, {"message_rate_network", l.MessageRateNetwork}, {"recipient_rate", l.RecipientRate}, {"auth_failure_rate", l.AuthFailureRate},
	} {
		try(at+".limits."+r.key, func(to *gateway.Listener) { to.ConnectionRate = r.rate })
	}
	try(at+".banner", func(to *gateway.Listener) { to.Server.Banner = l.Server.Banner })
	try(at+".hello_text", func(to *gateway.Listener) { to.Server.HelloText = l.Server.HelloText })
	try(at+".auth.required_text", func(to *gateway.Listener) { to.Server.Auth.RequiredText = l.Server.Auth.RequiredText })
	return problems
}

// addressKey is the key of the i-th of n addresses of a listener; one alone need be no list.
func addressKey(at string, i, n int) string {
	if n == 1 {
		return at + ".address"
	}
	return at + ".address[" + strconv.Itoa(i) + "]"
}

// validListener asks package gateway about a listener, with everything around it in order.
func validListener(l gateway.Listener) error {
	o := gateway.Options{Hostname: "localhost", Listeners: []gateway.Listener{l}, Relay: transportRelay{}, TLS: &tls.Config{}}
	err := o.Validate()
	if several, ok := err.(interface{ Unwrap() []error }); ok && len(several.Unwrap()) == 1 {
		err = several.Unwrap()[0]
	}
	if inner := errors.Unwrap(err); inner != nil {
		return inner // without the listener's name, which the key has
	}
	return err
}

// listener is what needs no file.
func listener(l config.Listener) gateway.Listener {
	lim := l.Limits
	gl := gateway.Listener{
		Name: l.Name, TLS: gateway.TLSMode(l.TLS), MinTLS: tlsVersion(l.TLSMinVersion), ClientAuth: clientAuth(l.ClientCertificates.Mode),
		Chain: l.Chain, Relay: l.Accept == config.AcceptAny, Routing: l.SenderRouting == config.True, Trusted: networks(l.TrustedNetworks),
		Proxies: networks(l.ProxyProtocol.Trusted), ProxyTimeout: l.ProxyProtocol.Timeout,
		XClient: networks(l.XClient.Trusted), XClientRelay: l.XClient.Relay == config.True, XForward: networks(l.XForward.Trusted),
		ReverseDNS: l.ReverseDNS.Timeout, Connections: lim.Connections, ConnectionsPerIP: lim.ConnectionsPerIP,
		ConnectionRate: rate(lim.ConnectionRate), ConnectionRateNetwork: rate(lim.ConnectionRateNetwork),
		MessageRate: rate(lim.MessageRate), MessageRateNetwork: rate(lim.MessageRateNetwork), RecipientRate: rate(lim.RecipientRate), AuthFailureRate: rate(lim.AuthFailureRate),
		GreetDelay: time.Duration(max(lim.GreetDelay, 0)), Hops: lim.Hops, MaxHeader: int(lim.HeaderSize),
		Server: smtp.ServerOptions{
			Banner: l.Banner, HelloText: l.HelloText, LMTP: l.Protocol == config.ProtocolLMTP,
			Disabled: l.DisabledCommands, Without: l.DisabledExtensions,
			Auth: smtp.AuthOptions{Required: l.Auth.Required == config.True, RequiredText: l.Auth.RequiredText,
				Insecure: l.Auth.Insecure == config.True, MaxFailures: lim.AuthFailures, FailureDelay: time.Duration(lim.AuthDelay)},
			MaxMessage: int64(lim.MessageSize), MaxRecipients: lim.Recipients, MaxMessages: lim.Messages,
			MaxLine: int(lim.LineLength), MaxCommands: lim.Commands, MaxBadCommands: lim.BadCommands, MaxErrors: lim.Errors,
			ErrorDelay: time.Duration(lim.ErrorDelay), MaxUnauthenticated: lim.UnauthenticatedCommands,
			IdleTimeout: lim.IdleTimeout, StressTimeout: lim.StressTimeout, SessionTimeout: lim.SessionTimeout,
			HandshakeTimeout: lim.HandshakeTimeout, MinRate: int64(lim.DataMinRate),
		},
	}
	for _, a := range l.Address {
		a = a.Absolute() // a socket has to be found later, wherever we are then
		ga := gateway.Address{Network: a.Network, Address: a.Address}
		if a.Network == "unix" {
			ga.Mode = fs.FileMode(l.SocketMode)
		}
		gl.Addresses = append(gl.Addresses, ga)
	}
	if l.ReverseDNS.Enabled == config.False {
		gl.ReverseDNS = -1
	}
	if l.LineEndings == config.LineEndingsReject {
		gl.Server.LineEndings = smtp.RejectLineEndings
	}
	return gl
}

func rate(r config.Rate) gateway.Rate {
	if r.Off() {
		return gateway.Rate{}
	}
	return gateway.Rate{Count: r.Count, Per: r.Per}
}

func tlsVersion(v config.TLSVersion) uint16 {
	switch v {
	case config.TLS10:
		return tls.VersionTLS10
	case config.TLS11:
		return tls.VersionTLS11
	case config.TLS12:
		return tls.VersionTLS12
	case config.TLS13:
		return tls.VersionTLS13
	}
	return 0
}

func clientAuth(m config.ClientAuth) tls.ClientAuthType {
	switch m {
	case config.ClientAuthRequest:
		return tls.RequestClientCert
	case config.ClientAuthRequire:
		return tls.RequireAnyClientCert
	case config.ClientAuthVerifyIfGiven:
		return tls.VerifyClientCertIfGiven
	case config.ClientAuthVerify:
		return tls.RequireAndVerifyClientCert
	}
	return tls.NoClientCert
}

func networks(list config.Networks) gateway.Networks {
	var n gateway.Networks
	for _, one := range list {
		if one.Unix {
			n.Unix = true
		} else {
			n.Prefixes = append(n.Prefixes, one.Prefix)
		}
	}
	return n
}

func routes(c *config.Config) []gateway.Route {
	var list []gateway.Route
	for _, r := range c.Routes {
		b := c.Backends[r.Backend]
		gr := gateway.Route{Backend: backendOf(r), Recipients: recipients(b), Queue: b.Mode == config.ModeQueue, QueueWhenDown: b.WhenDown == config.WhenDownQueue}
		for _, d := range r.Domains {
			gr.Domains = append(gr.Domains, string(d))
		}
		for _, a := range r.Recipients {
			gr.Addresses = append(gr.Addresses, string(a))
		}
		if r.Handler != "" {
			gr.Recipients.Accept = true // nobody else need be asked
		}
		list = append(list, gr)
	}
	return list
}

func recipients(b config.Backend) gateway.Recipients {
	switch {
	case b.Recipients.File != "":
		return gateway.Recipients{List: &gateway.ListOptions{Path: b.Recipients.File, Separators: b.Separator}}
	case b.Recipients.Word == config.RecipientsCallout:
		c := b.Callout
		return gateway.Recipients{Callout: &gateway.CalloutOptions{Positive: c.Positive, Negative: c.Negative, Stale: c.Stale,
			Timeout: c.Timeout, Entries: c.Entries}}
	}
	return gateway.Recipients{Accept: b.Recipients.Word == config.RecipientsAccept}
}

// loginsOf is who may log in.
func (d *doorman) loginsOf(a config.Auth) (gateway.Logins, error) {
	l := gateway.Logins{Filter: a.Users.Filter}
	for _, m := range a.Mechanisms {
		l.Mechanisms = append(l.Mechanisms, string(m))
	}
	switch {
	case a.Users.File != "":
		file, err := d.userFile(a.Users.File)
		if err != nil {
			return gateway.Logins{}, err
		}
		l.Credentials = file.Credentials
		return l, d.servable(file, l.Mechanisms)
	case a.Users.Backend != "":
		l.Credentials = func() sasl.Credentials { return d.backendCredentials(a.Users.Backend, l.Mechanisms) }
	}
	return l, nil
}

// userFile opens a file of users, once.
func (d *doorman) userFile(path string) (*users.File, error) {
	if file, ok := d.users[path]; ok {
		return file, nil
	}
	file, err := users.Open(path)
	if err != nil {
		return nil, err
	}
	for _, w := range file.Warnings() {
		d.log.Warn("users: "+w, "file", path)
	}
	d.users[path] = file
	return file, nil
}

// servable warns of mechanisms that are configured and that some user has no secret for: they
// are not offered until all have.
func (d *doorman) servable(file *users.File, mechanisms []string) error {
	for _, m := range mechanisms {
		if lacking := file.Without(m); len(lacking) > 0 {
			d.log.Warn("users: a mechanism is not offered, since not all users can use it; gateway user add gives them what they need",
				"mechanism", m, "users", len(lacking), "user", lacking[0])
		}
	}
	return nil
}

// reloadUsers reads the files again that have changed.
func (d *doorman) reloadUsers() {
	for path, file := range d.users {
		changed, err := file.Reload()
		switch {
		case err != nil:
			d.log.Error("users: the old ones are kept", "file", path, "err", err)
		case changed:
			d.log.Info("users: read again", "file", path)
			for _, w := range file.Warnings() {
				d.log.Warn("users: "+w, "file", path)
			}
		}
	}
}

// usersEvery is how often files of users are looked at.
const usersEvery = 5 * time.Second

// backendCredentials try the login at a backend.
func (d *doorman) backendCredentials(backend string, mechanisms []string) sasl.Credentials {
	try := func(ctx context.Context, a sasl.Account) error {
		err := d.transport().Login(ctx, backend, a)
		if r, ok := errors.AsType[*smtp.Reply](err); ok && r.Code == 535 {
			return fmt.Errorf("%w: %w", sasl.ErrDenied, r)
		}
		return err
	}
	c := sasl.Credentials{Password: func(ctx context.Context, user, password string) error {
		return try(ctx, sasl.Account{User: user, Password: password})
	}}
	if slices.Contains(mechanisms, sasl.XOAuth2) || slices.Contains(mechanisms, sasl.OAuthBearer) {
		c.Token = func(ctx context.Context, r sasl.TokenRequest) (string, error) {
			return "", try(ctx, sasl.Account{User: r.User, Token: r.Token, Host: r.Host, Port: r.Port})
		}
	}
	return c
}

// newResolver is who looks up the names of clients. Looking them up must not use up what
// other questions need, so that it has bounds of its own.
func newResolver(c *config.Config, log *slog.Logger) (*resolver.Resolver, error) {
	o, err := resolverOptions(c, log)
	if err != nil {
		return nil, err
	}
	return resolver.New(o)
}

func resolverOptions(c *config.Config, log *slog.Logger) (resolver.Options, error) {
	o := resolver.Options{Budget: 5 * time.Second, Inflight: 200, Plain: true, Log: log}
	r := c.Delivery.Resolver
	if r.Address.Auto() {
		return o, o.Validate()
	}
	var cas *x509.CertPool
	if r.CAFile != "" {
		var err error
		if cas, err = readPool(string(r.CAFile)); err != nil {
			return o, err
		}
	}
	for _, a := range r.Address {
		s, err := resolver.ParseServer(a)
		if err != nil {
			return o, err
		}
		s.Trust = resolver.Trust(r.Trusted)
		if s.Network == "tls" || s.Network == "https" {
			s.CAs = cas
		}
		o.Servers = append(o.Servers, s)
	}
	return o, o.Validate()
}

// needsNames tells whether some listener looks names up.
func needsNames(c *config.Config) bool {
	return slices.ContainsFunc(c.Listeners, func(l config.Listener) bool { return l.ReverseDNS.Enabled != config.False })
}

// nameOf returns the verified name of an address.
func nameOf(r *resolver.Resolver) func(context.Context, netip.Addr) string {
	return func(ctx context.Context, a netip.Addr) string { return r.Name(ctx, a).Name }
}
