package resolver

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// ask.go: which server is asked, when the next one is, and what a reply code means.

// reply is what a server said that knows about the name, be it that there is nothing.
type reply struct {
	*dns.Msg
	authentic bool
	server    string
}

// failure is why a server gave no such reply.
type failure struct {
	kind   error // ErrTemporary or ErrBogus
	ede    *ExtendedError
	server string
	cause  error
	heard  bool // the server did reply; asking it again would not help
}

// ask asks the servers in turn until one knows. One that does not answer is asked again
// when all others were; one that says it cannot tell is not (RFC 9520, Section 3.1).
func (r *Resolver) ask(ctx context.Context, name string, typ Type) (*reply, *failure) {
	last := &failure{kind: ErrTemporary}
	hosts := r.order()
	for range r.opt.Tries {
		for i, h := range hosts {
			if h == nil {
				continue
			}
			rep, f := r.try(ctx, h, newQuery(name, typ))
			if f == nil {
				return rep, nil
			}
			last = f
			// A server that found the records to be bogus speaks for all: another one
			// could only be wrong, or confirm it.
			if f.kind == ErrBogus || ctx.Err() != nil {
				return nil, last
			}
			if f.heard {
				hosts[i] = nil
			}
		}
	}
	return nil, last
}

// order returns the servers, those that did not answer lately at the end.
func (r *Resolver) order() []*host {
	now := r.opt.Now().UnixNano()
	hosts := slices.Clone(r.hosts)
	slices.SortStableFunc(hosts, func(a, b *host) int {
		return down(a, now) - down(b, now)
	})
	return hosts
}

func down(h *host, now int64) int {
	if h.down.Load() > now {
		return 1
	}
	return 0
}

// try asks one server once, and once more without EDNS if it does not know that.
func (r *Resolver) try(ctx context.Context, h *host, query *dns.Msg) (*reply, *failure) {
	whole := ctx
	ctx, cancel := context.WithTimeout(whole, r.opt.Timeout)
	defer cancel()
	before := h.replies.Load()
	m, err := h.exchange(ctx, query, &r.counters)
	if err == nil && refusesEDNS(m) {
		// RFC 6891, Section 7. Such a server cannot validate, so that an AD bit of the
		// second reply means nothing.
		query.Extra, query.AuthenticatedData = nil, false
		m, err = h.exchange(ctx, query, &r.counters)
	}
	if err != nil {
		if whole.Err() == nil { // else it did not have its time
			r.silent(h, before, err)
		}
		return nil, &failure{kind: ErrTemporary, server: h.Address, cause: err}
	}
	r.heard(h)
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
		if referral(m) {
			return nil, &failure{kind: ErrTemporary, server: h.Address, heard: true, cause: errReferral}
		}
		edns := query.IsEdns0() != nil
		return &reply{m, m.AuthenticatedData && edns && h.Authenticates(), h.Address}, nil
	}
	return nil, r.failed(h, m)
}

// refusesEDNS tells whether the reply may have another code if the query has no EDNS.
func refusesEDNS(m *dns.Msg) bool {
	switch m.Rcode {
	case dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers:
		return true
	}
	return false
}

var errReferral = errors.New("the server refers us to others instead of asking them")

// referral tells whether a server that does no recursion says that it has no records. That
// is not to be taken for an answer.
func referral(m *dns.Msg) bool {
	return m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 && !m.RecursionAvailable && !m.Authoritative
}

// failed is the failure of a server that says so.
func (r *Resolver) failed(h *host, m *dns.Msg) *failure {
	f := &failure{kind: ErrTemporary, ede: extended(m), server: h.Address, heard: true}
	if m.Rcode == dns.RcodeServerFailure && f.ede.bogus() {
		f.kind = ErrBogus
	}
	code, ok := dns.RcodeToString[m.Rcode]
	if !ok {
		code = "unknown reply code"
	}
	f.cause = errors.New(code)
	return f
}

// silent notes that a server did not answer. If others had replies from it meanwhile, then
// it is the name that takes long, and not the server.
func (r *Resolver) silent(h *host, before uint64, err error) {
	if errors.Is(err, context.DeadlineExceeded) {
		r.counters.timeouts.Add(1)
	}
	if h.replies.Load() != before {
		return
	}
	if h.down.Swap(r.opt.Now().Add(downTime).UnixNano()) == 0 {
		r.opt.Log.Warn("dns server does not answer", "remote", h.Address, "err", err)
	}
}

// heard notes that a server answered.
func (r *Resolver) heard(h *host) {
	h.replies.Add(1)
	if h.down.Load() != 0 && h.down.Swap(0) != 0 {
		r.opt.Log.Info("dns server answers again", "remote", h.Address)
	}
}

// resolve is a flight: it asks until the name is known to have records or none. Where a
// server leaves the end of a chain of CNAMEs open, that is asked for, too; all replies
// together are as authentic as the least of them.
func (r *Resolver) resolve(ctx context.Context, k key) *outcome {
	o := &outcome{meta: Meta{Canonical: k.name, Authentic: true}}
	ttl := maxTTL
	for links := 0; ; {
		rep, f := r.ask(ctx, o.meta.Canonical, k.typ)
		if f != nil {
			return r.failure(k, f)
		}
		a, err := readAnswer(rep.Msg, o.meta.Canonical, k.typ)
		if links += linksOf(a); err == nil && links > maxChain {
			err = errChain
		}
		if err != nil {
			return r.failure(k, &failure{kind: ErrTemporary, ede: extended(rep.Msg), server: rep.server, cause: err})
		}
		o.records, ttl = a.records, min(ttl, a.ttl)
		o.meta.Canonical = a.canonical
		o.meta.Authentic = o.meta.Authentic && rep.authentic
		o.meta.EDE = extended(rep.Msg)
		if !a.open {
			o.meta.Expires = r.opt.Now().Add(ttl)
			o.err = none(k, rep, o)
			return o
		}
	}
}

func linksOf(a *answer) int {
	if a == nil {
		return 0
	}
	return a.links
}

// none returns the error for an outcome without records, nil for one that has some.
func none(k key, rep *reply, o *outcome) *Error {
	if len(o.records) > 0 {
		return nil
	}
	kind := ErrNoData
	if rep.Rcode == dns.RcodeNameError {
		kind = ErrNoName
	}
	return &Error{Name: k.name, Type: k.typ, Kind: kind, Meta: o.meta, Server: rep.server}
}

// failure is the outcome if nobody knows.
func (r *Resolver) failure(k key, f *failure) *outcome {
	r.counters.failures.Add(1)
	if f.kind == ErrBogus {
		r.counters.bogus.Add(1)
	}
	err := &Error{Name: k.name, Type: k.typ, Kind: f.kind, Meta: Meta{EDE: f.ede}, Server: f.server, Cause: f.cause}
	// When we are being closed, the servers are not to blame.
	return &outcome{meta: err.Meta, err: err, remember: r.ctx.Err() == nil}
}

// Authenticates asks, past the cache, for the name servers of the root, which is signed,
// and tells whether the answer was authenticated. False with a nil error means that DANE
// is not to be had from these servers. An error is of kind ErrTemporary. The context bounds
// it, and so does the budget of a look-up. See Health for a watch.
func (r *Resolver) Authenticates(ctx context.Context) (bool, error) {
	return r.authenticates(ctx, ".")
}

func (r *Resolver) authenticates(ctx context.Context, name string) (bool, error) {
	k, err := question(name, TypeNS)
	if err != nil {
		return false, err
	}
	if !r.enter() {
		return false, &Error{Name: k.name, Type: TypeNS, Kind: ErrTemporary, Cause: errClosed}
	}
	defer r.running.Done()
	ctx, cancel := context.WithTimeout(ctx, r.opt.Budget)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	o := r.resolve(ctx, k)
	if o.err != nil && o.err.Temporary() {
		return false, o.err
	}
	// That there is no such name, or are no such records, is signed too.
	return o.meta.Authentic, nil
}

// until is the deadline of a flight that starts now.
func (r *Resolver) until() (context.Context, context.CancelFunc) {
	return context.WithDeadline(r.ctx, time.Now().Add(r.opt.Budget))
}
