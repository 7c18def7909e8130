package delivery

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// options.go: settings, their defaults and what may be wrong with them.

// TLSMode says how far a connection to a backend must be encrypted. It does not switch
// off the implicit TLS of smtps endpoints: TLSOff with one of these is an error of
// Validate.
type TLSMode string

// The values of TLSMode. The empty one is TLSOpportunistic.
const (
	// TLSOff never says STARTTLS.
	TLSOff TLSMode = "off"
	// TLSOpportunistic says STARTTLS where it is offered, takes any certificate, and
	// goes on in clear text where it is refused or fails (RFC 7435). It leaves unix
	// sockets alone, which nobody can listen to.
	TLSOpportunistic TLSMode = "opportunistic"
	// TLSRequired takes any certificate, but no clear text.
	TLSRequired TLSMode = "required"
	// TLSVerify asks for a certificate of a trusted authority for the right name.
	TLSVerify TLSMode = "verify"
)

// BackendOptions are the settings of one backend. The zero value of each field but
// Groups means its default.
type BackendOptions struct {
	// Groups are the backend's endpoints. Groups are tried in order; endpoints of one
	// group are equals that share the load. Required.
	Groups [][]Endpoint
	// TLS says what is asked of TLS. Default TLSOpportunistic.
	TLS TLSMode
	// CAs are the authorities that TLSVerify trusts. Nil means those of the system.
	CAs *x509.CertPool
	// ServerName is the name that TLSVerify asks of the certificate, and that SNI
	// carries. Default the host of the endpoint; required with TLSVerify for sockets.
	ServerName string
	// NoChunking sends by DATA where the backend offers CHUNKING, too, and takes no binary
	// content for it.
	NoChunking bool
	// XClient makes a backend that offers XCLIENT take the connection for that of the client
	// for whom it is used, and XForward tells it of that client for its log. Who the client is
	// comes with BeginFor. The backend must trust us for that; one that offers neither to us
	// is not told. One that offers XCLIENT once per connection, like Postfix, costs a
	// connection per client.
	XClient, XForward bool
	// User and Password log us in on every connection, with the strongest mechanism that the
	// backend offers and that suits. Default none. Not together with XClient, behind which
	// a backend forgets who logged in.
	User, Password string
	// ClearLogin lets passwords out without TLS, ours and those of Login. To endpoints on this
	// machine they may go in any case.
	ClearLogin bool
	// Logins is how many Logins may be under way at once. Their connections are beside those
	// of Connections. Default 10.
	Logins int
	// Connections is how many connections there may be to all endpoints together, idle
	// ones included. It should not exceed what the backend takes of one client.
	// Default 50.
	Connections int
	// Pace is how fast messages from the queue are handed over. Mail whose client waits is not
	// held to it. Zero is no limit.
	Pace Pace
	// WaitConnection is how long a transaction waits for one of them to be free before
	// it is told 451 4.3.2. Default 10 s.
	WaitConnection time.Duration
	// IdleTimeout is how long a connection is kept for the next transaction. Default
	// 30 s, less than any common server's patience.
	IdleTimeout time.Duration
	// MaxUses is how many transactions a connection serves. Default 1000.
	MaxUses int
	// ConnectTimeout is for making one connection ready: connect, greeting, TLS, EHLO.
	// Default 30 s.
	ConnectTimeout time.Duration
	// Timeouts are those of the dialogue. Defaults of RFC 5321, Section 4.5.3.2.
	Timeouts smtp.Timeouts
}

func (o BackendOptions) withDefaults() BackendOptions {
	setDefault(&o.TLS, TLSOpportunistic)
	setDefault(&o.Connections, 50)
	setDefault(&o.Logins, 10)
	setDefault(&o.WaitConnection, 10*time.Second)
	setDefault(&o.IdleTimeout, 30*time.Second)
	setDefault(&o.MaxUses, 1000)
	setDefault(&o.ConnectTimeout, 30*time.Second)
	return o
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Validate returns every problem, joined.
func (o BackendOptions) Validate() error {
	errs := o.checkGroups()
	switch o.TLS {
	case "", TLSOff, TLSOpportunistic, TLSRequired, TLSVerify:
	default:
		errs = append(errs, fmt.Errorf("tls: %q is none of off, opportunistic, required, verify", o.TLS))
	}
	switch {
	case (o.User == "") != (o.Password == ""):
		errs = append(errs, errors.New("login: user and password need each other"))
	case o.User != "" && o.XClient:
		errs = append(errs, errors.New("login: cannot be together with XCLIENT"))
	}
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"connections", int64(o.Connections)}, {"logins", int64(o.Logins)}, {"wait for a connection", int64(o.WaitConnection)},
		{"messages of the pace", int64(o.Pace.Messages)}, {"time of the pace", int64(o.Pace.Per)}, {"idle timeout", int64(o.IdleTimeout)}, {"uses of a connection", int64(o.MaxUses)},
		{"connect timeout", int64(o.ConnectTimeout)},
		{"greeting timeout", int64(o.Timeouts.Greeting)}, {"command timeout", int64(o.Timeouts.Command)},
		{"data start timeout", int64(o.Timeouts.DataInit)}, {"data block timeout", int64(o.Timeouts.DataBlock)},
		{"data end timeout", int64(o.Timeouts.DataEnd)},
	} {
		if n.value < 0 {
			errs = append(errs, fmt.Errorf("%s: must not be negative", n.name))
		}
	}
	return errors.Join(errs...)
}

func (o BackendOptions) checkGroups() []error {
	var errs []error
	if len(o.Groups) == 0 {
		errs = append(errs, errors.New("addresses: none"))
	}
	seen := make(map[Endpoint]bool)
	for i, group := range o.Groups {
		if len(group) == 0 {
			errs = append(errs, fmt.Errorf("addresses: group %d is empty", i+1))
		}
		for _, e := range group {
			if err := o.checkEndpoint(e); err != nil {
				errs = append(errs, fmt.Errorf("address %s: %w", e, err))
			}
			if seen[e] {
				errs = append(errs, fmt.Errorf("address %s: given twice", e))
			}
			seen[e] = true
		}
	}
	return errs
}

func (o BackendOptions) checkEndpoint(e Endpoint) error {
	if err := e.validate(); err != nil {
		return err
	}
	if e.ImplicitTLS && o.TLS == TLSOff {
		return errors.New("implicit TLS contradicts tls: off")
	}
	if e.Network == "unix" && o.TLS == TLSVerify && o.ServerName == "" {
		return errors.New("tls: verify needs a server name for a socket")
	}
	return nil
}

// same tells whether o and p, both with defaults, mean the same, so that a reload may
// keep the connections.
func (o BackendOptions) same(p BackendOptions) bool {
	return slices.EqualFunc(o.Groups, p.Groups, slices.Equal[[]Endpoint]) &&
		o.TLS == p.TLS && o.CAs.Equal(p.CAs) && o.ServerName == p.ServerName &&
		o.NoChunking == p.NoChunking && o.XClient == p.XClient && o.XForward == p.XForward &&
		o.User == p.User && o.Password == p.Password && o.ClearLogin == p.ClearLogin && o.Logins == p.Logins &&
		o.Connections == p.Connections && o.Pace == p.Pace && o.WaitConnection == p.WaitConnection &&
		o.IdleTimeout == p.IdleTimeout && o.MaxUses == p.MaxUses &&
		o.ConnectTimeout == p.ConnectTimeout && o.Timeouts == p.Timeouts
}

// Options are the settings of a Transport.
type Options struct {
	// LocalName is what we say in EHLO and LHLO: a domain name or an address literal.
	// Required.
	LocalName string
	// Backends by name. There may be none yet, see Transport.Update.
	Backends map[string]BackendOptions
	// Handlers are backends within this program, by name. Of a backend of the same name nothing
	// is seen.
	Handlers map[string]Handler
	// ProbeEvery is how long an endpoint may be without contact before it is asked what it
	// offers, for Offers; at the start all are asked. It should be less than ten minutes. 0 is
	// never: Offers knows what real mail has taught it then.
	ProbeEvery time.Duration
	// Dial makes connections. Nil means a net.Dialer. It is called by many goroutines
	// at once. A connection that is no syscall.Conn is used like any other, but when
	// the backend closes it while it is idle this is noticed later.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Log gets what an operator should know: endpoints that go down or come back, TLS
	// that fails; the dialogue at debug level. Nil discards.
	Log *slog.Logger
}

// Validate returns every problem, joined, in the order of the backends' names.
func (o Options) Validate() error {
	var errs []error
	if _, err := smtp.ParseDomain(o.LocalName); err != nil {
		errs = append(errs, fmt.Errorf("local name: %w", err))
	}
	if o.ProbeEvery < 0 {
		errs = append(errs, errors.New("time between probes: must not be negative"))
	}
	return errors.Join(append(errs, checkBackends(o.Backends)...)...)
}

func checkBackends(backends map[string]BackendOptions) []error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(backends)) {
		if name == "" {
			errs = append(errs, errors.New("backend: has no name"))
		}
		for _, err := range unjoin(backends[name].Validate()) {
			errs = append(errs, fmt.Errorf("backend %s: %w", name, err))
		}
	}
	return errs
}

// unjoin takes what errors.Join made apart, so that each problem has its place in front.
func unjoin(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}
