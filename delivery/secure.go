package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/mail/smtp"
)

// secure.go brings a connection to a host to where its demand is met and mail may go: greeting,
// EHLO, STARTTLS, certificate, EHLO again. What is asked of the certificate is in check.go.
//
//	demand          no STARTTLS, or refused   handshake fails      certificate
//	clear           not asked
//	opportunistic   goes on in clear          again, in clear      any
//	encrypted       refused                   refused              any
//	authenticated   refused                   refused              checked
//
// A handshake fails also on a certificate that crypto/tls cannot read, whoever asks for it. The
// connection is gone then, and "again" is on a new one.
//
// Some servers fail at a first message that is longer than those of old, as one with a key for
// an exchange that quantum computers cannot break. Before a host with such a server counts as one
// without TLS it is asked with a short one.

// Securer brings connections to what their demand asks for, and keeps the sessions of TLS for
// the next one. Its methods are safe for concurrent use.
type Securer struct {
	opt      SecureOptions
	sessions tls.ClientSessionCache
}

// SecureOptions are the settings of a Securer. The zero value of each field means its default.
type SecureOptions struct {
	// Authorities are those that certificates are held against where a valid one is asked for.
	// Nil means those of the system.
	Authorities *x509.CertPool
	// Sessions is how many sessions of TLS are kept, to save a later connection the greater
	// part of a handshake. Default 1,000; negative keeps none.
	Sessions int
	// Now is the clock that certificates are held against. Nil is time.Now.
	Now func() time.Time
}

// NewSecurer returns a Securer.
func NewSecurer(o SecureOptions) *Securer {
	setDefault(&o.Sessions, 1000)
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Securer{opt: o}
	if o.Sessions > 0 {
		s.sessions = tls.NewLRUClientSessionCache(o.Sessions)
	}
	return s
}

// Approach is how a host is spoken to.
type Approach struct {
	// Client are the settings of the dialogue. LocalName is required.
	Client smtp.ClientOptions
	// Addr is the address of the host and Local ours, for errors and reports. The zero values
	// are those of the connection.
	Addr, Local netip.Addr
	// Clear says no STARTTLS, since it has failed a moment ago (see [Secured.Again]). It counts
	// only where clear text is allowed.
	Clear bool
	// Short begins TLS with a short message, without a key exchange that is safe from quantum
	// computers (see [Secured.Shorter]).
	Short bool
	// Full takes no session of TLS up again (see [Secured.Stale]).
	Full bool
	// Examine checks the certificate also where nobody asks for a valid one, for the sake of
	// Secured.Doubt.
	Examine bool
}

// Secured is what a host has shown.
type Secured struct {
	// Client is ready for MAIL. Nil if there was an error.
	Client *smtp.Client
	// Shown is what the connection is worth: DemandClear, DemandEncrypted with a certificate
	// that was not asked for, or what demand was met.
	Shown Demand
	// Proof says what the certificate was accepted for.
	Proof Proof
	// Doubt is why the connection is less than it could be, where that is allowed: it is in
	// clear, or its certificate is not valid though a policy in testing asks for one, or
	// Approach.Examine. Nil if there is none.
	Doubt error
	// Chain is what the host sent as certificates, its own first, also if they were not accepted.
	Chain []*x509.Certificate
	// Events are what is to be reported about it, with an error too.
	Events []tlsrpt.Event
	// Again tells, with an error, that the host may get its mail in clear text, on a new
	// connection with Approach.Clear. Shorter tells that before this it should be tried with
	// Approach.Short.
	Again, Shorter bool
	// Stale tells, with an error, that the certificate that was refused was that of an earlier
	// connection, whose session was taken up again. The host may have another by now, and should be
	// tried with Approach.Full.
	Stale bool

	// met is a host whose demand the certificates meet, with Proof, and unmet one whose demand
	// they do not meet; nil if none is known.
	met, unmet *PlannedHost
	requireTLS bool // REQUIRETLS was offered over TLS
}

// TLS returns the version of TLS in words, such as "TLS 1.3". Empty in clear.
func (s *Secured) TLS() string {
	if s.Client == nil {
		return ""
	}
	state, ok := s.Client.TLS()
	if !ok {
		return ""
	}
	return tls.VersionName(state.Version)
}

// Secure begins a dialogue with h on nc, which it takes over, and closes if it fails. The error
// is an *mx.Error: of category SMTP if the host answered with a refusal, Network if the
// connection broke, TLS or DANE if it did not show what h.Demand asks for, Policy if it is not
// what the sender's REQUIRETLS asks for. All of them are about this host, and others may be
// tried. Secured is filled as far as it came.
func (s *Securer) Secure(ctx context.Context, nc net.Conn, h *PlannedHost, a Approach) (Secured, error) {
	d := &securing{Securer: s, Approach: a, h: h, ctx: ctx}
	d.out.met = h
	d.Addr, d.Local = known(d.Addr, nc.RemoteAddr()), known(d.Local, nc.LocalAddr())
	client, err := smtp.NewClient(ctx, nc, a.Client)
	if err != nil {
		return d.out, d.broken("beginning the dialogue", err)
	}
	d.client = client
	if err := d.run(); err != nil {
		client.Close()
		return d.out, err
	}
	d.out.Client = client
	return d.out, nil
}

// Connect is Secure on a connection that dial makes. Where TLS fails in a way that another try may
// mend, it makes another connection: two at most, the last one in clear text where that is allowed.
// The error is that of dial, or of Secure.
func (s *Securer) Connect(ctx context.Context, dial func(context.Context) (net.Conn, error), h *PlannedHost, a Approach) (Secured, error) {
	out := Secured{met: h}
	for {
		nc, err := dial(ctx)
		if err != nil {
			return out, err
		}
		before := out
		out, err = s.Secure(ctx, nc, h, a)
		if a.Clear { // TLS was tried before, and that is what there is to tell
			out.Events, out.Chain, out.Doubt = append(before.Events, out.Events...), before.Chain, before.Doubt
		}
		switch {
		case err == nil:
			return out, nil
		case out.Stale:
			a.Full = true
		case out.Shorter:
			a.Short = true
		case out.Again:
			a.Clear = true
		default:
			return out, err
		}
	}
}

// known returns addr, or the one of a connection.
func known(addr netip.Addr, of net.Addr) netip.Addr {
	if tcp, ok := of.(*net.TCPAddr); ok && !addr.IsValid() {
		return tcp.AddrPort().Addr().Unmap()
	}
	return addr
}

// securing is one Secure under way.
type securing struct {
	*Securer
	Approach
	h      *PlannedHost
	ctx    context.Context
	client *smtp.Client
	out    Secured
	refuse error // of the certificate
}

func (d *securing) run() error {
	demand := d.h.Demand
	if demand == DemandClear || d.Clear && !demand.Encrypted() {
		d.out.Shown = DemandClear
		return nil // what there is to report was reported when TLS failed
	}
	if _, ok := d.client.Extension("STARTTLS"); !ok {
		return d.withoutTLS(errors.New("STARTTLS is not offered"))
	}
	if err := d.startTLS(); err != nil || d.out.Shown == DemandClear {
		return err
	}
	_, d.out.requireTLS = d.client.Extension("REQUIRETLS")
	if d.h.RequireTLS && !d.out.requireTLS {
		return d.fault(policyError(mx.Policy, 550, smtp.Enhanced{5, 7, 30}, d.h.Name, "the next hop does not promise to use TLS alone (REQUIRETLS)", nil))
	}
	d.report(nil)
	return nil
}

// startTLS tries TLS, and goes on in clear text where the host refuses and may.
func (d *securing) startTLS() error {
	err := d.client.StartTLS(d.ctx, d.config())
	if err == nil {
		return nil
	}
	_, encrypted := d.client.TLS()
	reply, said := errors.AsType[*smtp.Reply](err)
	switch {
	case d.refuse != nil:
		return d.badCertificate(d.refuse)
	case encrypted && (said || d.h.Demand.Encrypted()):
		return d.broken("EHLO over TLS", err)
	case encrypted:
		return d.badHandshake(err) // with TLS 1.3 a server ends its handshake after we have ended ours
	case !d.client.Broken():
		return d.withoutTLS(fmt.Errorf("STARTTLS is refused: %w", err))
	case said:
		return d.broken("STARTTLS", reply) // 421
	}
	return d.badHandshake(err)
}

// config is how TLS is spoken.
func (d *securing) config() *tls.Config {
	c := d.h.baseConfig()
	if d.Short {
		c.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
	}
	if d.sessions != nil {
		// A session may come from a connection of which less was asked: VerifyConnection is
		// called for a resumed one as for any other. That sessions are kept apart by demand
		// makes it the exception that it has to refuse one.
		c.ClientSessionCache = &sessionsFor{d.sessions, string(d.h.Demand) + " " + d.h.Name + " ", d}
	}
	c.VerifyConnection = func(state tls.ConnectionState) error {
		d.out.Chain = state.PeerCertificates
		d.out.Proof, d.refuse = d.h.Check(state.PeerCertificates, d.opt.check())
		d.out.Shown = d.out.Proof.Shown
		if d.refuse == nil && d.Examine && d.out.Proof.Doubt == nil && !d.h.Demand.Authenticated() {
			d.out.Proof.Doubt = d.h.checkPKIX(state.PeerCertificates, d.opt.check())
		}
		d.out.Doubt = d.out.Proof.Doubt
		d.out.Stale = d.refuse != nil && state.DidResume
		return d.refuse
	}
	return c
}

func (o SecureOptions) check() CheckOptions {
	c := CheckOptions{Authorities: o.Authorities}
	if o.Now != nil {
		c.Now = o.Now()
	}
	return c
}

// sessionsFor is a part of a cache, for one handshake.
type sessionsFor struct {
	tls.ClientSessionCache
	prefix string
	d      *securing
}

// maxSession is how many octets the ticket and the certificates of a session may have that is
// kept. Those of most hosts have less than eight thousand; those of a host that means to fill our
// memory could have three hundred thousand.
const maxSession = 32 << 10

// Get and Put implement tls.ClientSessionCache.
func (s *sessionsFor) Get(key string) (*tls.ClientSessionState, bool) {
	if s.d.Full {
		return nil, false
	}
	return s.ClientSessionCache.Get(s.prefix + key)
}

func (s *sessionsFor) Put(key string, state *tls.ClientSessionState) {
	ticket, _, err := state.ResumptionState()
	size := len(ticket)
	for _, cert := range s.d.out.Chain {
		size += len(cert.Raw)
	}
	if err != nil || size > maxSession {
		state = nil // which forgets the one that was kept
	}
	s.ClientSessionCache.Put(s.prefix+key, state)
}

// withoutTLS is for a host that does not begin TLS.
func (d *securing) withoutTLS(why error) error {
	d.report(&tlsrpt.Failure{Type: tlsrpt.STARTTLSNotSupported, Additional: why.Error()})
	if !d.h.Demand.Encrypted() {
		d.out.Shown, d.out.Doubt = DemandClear, why
		return nil
	}
	return d.fault(d.insecure(smtp.Enhanced{4, 7, 4}, "the host does not offer the TLS that this mail needs", why))
}

// badHandshake is for TLS that failed, for whatever reason but the certificate.
func (d *securing) badHandshake(err error) error {
	if d.ctx.Err() != nil {
		return d.broken("TLS handshake", err)
	}
	f := tlsrpt.Failure{Type: tlsrpt.ValidationFailure, Reason: "handshake", Additional: err.Error()}
	if strings.Contains(err.Error(), "failed to parse certificate") {
		f.Reason = "unreadable-certificate"
	}
	d.report(&f)
	if !d.h.Demand.Encrypted() {
		d.out.Again, d.out.Doubt = true, err
	}
	failed, _ := errors.AsType[*smtp.ClientError](err)
	d.out.Shorter = !d.Short && failed != nil && failed.Kind == smtp.KindTLS && f.Reason == "handshake"
	return d.fault(d.insecure(smtp.Enhanced{4, 7, 5}, "TLS with the host failed", err))
}

// badCertificate is for a certificate that is not what is asked for. It is reported under the
// policy that asks.
func (d *securing) badCertificate(err error) error {
	f := &tlsrpt.Failure{Type: resultOf(err), Additional: err.Error()}
	by, text := tlsrpt.STS, "the certificate of the host is not valid for it, which we ask for"
	_, byDANE := errors.AsType[*dane.VerifyError](err)
	switch {
	case byDANE:
		by, text = tlsrpt.TLSA, "the certificate of the host is not one that its TLSA records allow (DANE)"
	case d.h.Enforced:
		text = "the certificate of the host is not valid for it, which the domain's policy asks for (MTA-STS)"
	case d.h.RequireTLS:
		text = "the certificate of the host is not valid for it, which the sender asks for (REQUIRETLS)"
	}
	for _, p := range d.h.Reports {
		switch own := d.doubt(p.Type); {
		case p.Type == by || p.Type == tlsrpt.NoPolicy:
			d.note(p, f)
		case own != nil:
			d.note(p, own)
		}
	}
	return d.fault(d.insecure(smtp.Enhanced{4, 7, 5}, text, err))
}

// insecure is the error about a host that does not show the TLS it must. DANE and MTA-STS keep
// mail back and do not return it: who owns the domain will see to it, or whoever is between us
// goes away. REQUIRETLS by itself returns it (RFC 8689, Section 4.2.1).
func (d *securing) insecure(enh smtp.Enhanced, text string, err error) *mx.Error {
	category, code := mx.TLS, 451
	if d.h.DANE.Applies() {
		category = mx.DANE
	} else if d.h.RequireTLS && !d.h.Enforced {
		category, code, enh = mx.Policy, 550, smtp.Enhanced{5, 7, 30}
	}
	return policyError(category, code, enh, d.h.Name, text, err)
}

// broken is the error of a dialogue that ended: the host's own word, or none.
func (d *securing) broken(doing string, err error) error {
	if reply, ok := errors.AsType[*smtp.Reply](err); ok {
		if reply.Permanent() && d.h.Demand.Encrypted() && !d.encrypted() {
			// Nobody has shown yet who he is. Whoever is between us and the host could have mail
			// returned with a word, as that it takes none at all (RFC 7504).
			reply = smtp.Refuse(451, smtp.Enhanced{4, reply.Enh[1], reply.Enh[2]}, reply.Text)
		}
		return d.fault(&mx.Error{Category: mx.SMTP, Reply: reply, Host: d.h.Name, Err: fmt.Errorf("%s: %w", doing, err)})
	}
	text := "the connection with the host broke"
	if errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
		text = "the host did not answer in time"
	}
	return d.fault(policyError(mx.Network, 451, smtp.Enhanced{4, 4, 2}, d.h.Name, text, fmt.Errorf("%s: %w", doing, err)))
}

// encrypted tells whether TLS has begun.
func (d *securing) encrypted() bool {
	if d.client == nil {
		return false
	}
	_, ok := d.client.TLS()
	return ok
}

func isTimeout(err error) bool {
	n, ok := errors.AsType[net.Error](err)
	return ok && n.Timeout()
}

func (d *securing) fault(e *mx.Error) error {
	e.Addr = d.Addr
	return e
}

// report notes what is to be reported of the session, for each policy it is held to: the
// failure, or what is doubtful under the policy, or a success.
func (d *securing) report(f *tlsrpt.Failure) {
	for _, p := range d.h.Reports {
		if f == nil {
			d.note(p, d.doubt(p.Type))
			continue
		}
		d.note(p, f)
	}
}

// note notes an event under a policy; without a failure a success.
func (d *securing) note(p tlsrpt.Policy, f *tlsrpt.Failure) {
	if d.h.domain == "" {
		return
	}
	if f != nil {
		f = d.dressed(*f)
	}
	d.out.Events = append(d.out.Events, tlsrpt.Event{Domain: d.h.domain, Policy: p, MXHost: d.h.Name, Failure: f})
}

// doubt is what is wrong with a session that goes on, under a policy.
func (d *securing) doubt(t tlsrpt.PolicyType) *tlsrpt.Failure {
	switch {
	case t == tlsrpt.TLSA && len(d.h.DANE.Usable) == 0:
		return &tlsrpt.Failure{Type: tlsrpt.TLSAInvalid, Reason: "no-usable-record"}
	case t != tlsrpt.STS:
		return nil
	case !d.h.Named:
		return &tlsrpt.Failure{Type: tlsrpt.ValidationFailure, Reason: "mx-mismatch", Additional: "the policy names " + some(d.h.STS.MX)}
	case d.out.Doubt != nil && d.h.testing():
		return &tlsrpt.Failure{Type: resultOf(d.out.Doubt), Additional: d.out.Doubt.Error()}
	}
	return nil
}

// dressed is a failure with all that is known of the session.
func (d *securing) dressed(f tlsrpt.Failure) *tlsrpt.Failure {
	f.SendingIP, f.ReceivingIP, f.ReceivingHost = d.Local, d.Addr, d.h.Name
	if d.client != nil && d.client.Greeting != nil {
		f.ReceivingHelo, _, _ = strings.Cut(d.client.Greeting.Text, " ")
	}
	return &f
}

// Meets tells whether the connection may be used for a host of a later plan, which may ask for
// more, or for another certificate. The host and the address are taken to be the same. Many
// domains have the same hosts and ask the same of them, and to check a certificate costs more than
// a message: what was found for the last that asked is true for who asks the same. It is for one
// goroutine at a time.
func (s *Secured) Meets(h *PlannedHost, o CheckOptions) bool {
	switch {
	case h.Refused != nil, s.Client == nil, s.Client.Broken(), h.RequireTLS && !s.requireTLS:
		return false
	case !h.Demand.Encrypted():
		return true
	case s.Shown == DemandClear:
		return false
	case s.met == h, asksSame(s.met, h) && s.Proof.names(h):
		return true
	case asksSame(s.unmet, h) && slices.Equal(s.unmet.Names, h.Names):
		return false
	}
	p, err := h.Check(s.Chain, o)
	if err != nil {
		s.unmet = h
		return false
	}
	s.met, s.Proof = h, p
	if p.Shown.Authenticated() {
		s.Shown = p.Shown
	}
	return true
}

// asksSame tells whether two hosts ask the same of certificates, but for the names that DANE
// asks for.
func asksSame(a, b *PlannedHost) bool {
	return a != nil && a.Demand == b.Demand && a.Name == b.Name && (!b.Demand.byDANE() || slices.Equal(a.DANE.Usable, b.DANE.Usable))
}

// names tells whether the certificate has a name that DANE asks for at a host, if it asks for one.
func (p *Proof) names(h *PlannedHost) bool {
	return !h.Demand.byDANE() || p.Match.Name == "" || slices.Contains(h.Names, p.Match.Name)
}
