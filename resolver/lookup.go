package resolver

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// lookup.go: the look-ups by type.

// DNS is what others ask of a Resolver, so that they can be tested without one. Each
// method may be called by several goroutines at a time. Each returns records, one at least,
// or an *Error: ErrNotFound if there are none, ErrTemporary if that is not known, ErrBadName
// for a name that can be none. Whether the answer was authenticated stands in the Meta of
// the result, and for ErrNotFound in that of the error.
type DNS interface {
	// Lookup returns the records of a type, wherever a chain of CNAMEs leads. TypeCNAME
	// asks for the CNAME of the name itself.
	Lookup(ctx context.Context, name string, typ Type) (Answer, error)
	// LookupAddrs returns the addresses of a host, of the families asked for. If one
	// family fails, the addresses of the other are returned. Without any, the name does
	// not exist (ErrNoName), or has none (ErrNoData) if both families say so.
	LookupAddrs(ctx context.Context, name string, f Families) (Addrs, error)
	// LookupMX returns the mail exchangers, the most preferred first.
	LookupMX(ctx context.Context, name string) (Result[MX], error)
	// LookupTXT returns the texts, the strings of each record joined.
	LookupTXT(ctx context.Context, name string) (Result[string], error)
	// LookupTLSA returns the TLSA records of a name like _25._tcp.mx.example.net.
	LookupTLSA(ctx context.Context, name string) (Result[TLSA], error)
	// LookupCNAME returns where the CNAME of the name leads, one step.
	LookupCNAME(ctx context.Context, name string) (Result[string], error)
	// LookupPTR returns the names of an address. They are what the owner of the address
	// says; see Resolver.Name.
	LookupPTR(ctx context.Context, addr netip.Addr) (Result[string], error)
}

var _ DNS = (*Resolver)(nil)

// Families says which addresses are wanted.
type Families int

// The values of Families.
const (
	Both Families = iota // IPv4 and IPv6
	IPv4
	IPv6
)

// Lookup is that of DNS.
func (r *Resolver) Lookup(ctx context.Context, name string, typ Type) (Answer, error) {
	o, err := r.lookup(ctx, name, typ)
	if err != nil {
		return Answer{}, err
	}
	return Answer{o.meta, slices.Clone(o.records)}, nil
}

// values looks up and takes a value from each record.
func values[T any](ctx context.Context, r *Resolver, name string, typ Type, value func(*Record) T) (Result[T], error) {
	o, err := r.lookup(ctx, name, typ)
	if err != nil {
		return Result[T]{}, err
	}
	list := make([]T, len(o.records))
	for i := range o.records {
		list[i] = value(&o.records[i])
	}
	return Result[T]{o.meta, list}, nil
}

// target is where a record points.
func target(r *Record) string { return r.Host }

// LookupMX is that of DNS.
func (r *Resolver) LookupMX(ctx context.Context, name string) (Result[MX], error) {
	res, err := values(ctx, r, name, TypeMX, func(r *Record) MX { return MX{r.Preference, r.Host} })
	slices.SortStableFunc(res.Records, func(a, b MX) int { return int(a.Preference) - int(b.Preference) })
	return res, err
}

// LookupTXT is that of DNS.
func (r *Resolver) LookupTXT(ctx context.Context, name string) (Result[string], error) {
	return values(ctx, r, name, TypeTXT, func(r *Record) string { return r.Text })
}

// LookupTLSA is that of DNS.
func (r *Resolver) LookupTLSA(ctx context.Context, name string) (Result[TLSA], error) {
	return values(ctx, r, name, TypeTLSA, func(r *Record) TLSA { return r.TLSA })
}

// LookupCNAME is that of DNS.
func (r *Resolver) LookupCNAME(ctx context.Context, name string) (Result[string], error) {
	return values(ctx, r, name, TypeCNAME, target)
}

// LookupPTR is that of DNS.
func (r *Resolver) LookupPTR(ctx context.Context, addr netip.Addr) (Result[string], error) {
	return values(ctx, r, reverseName(addr), TypePTR, target)
}

// LookupAddrs is that of DNS. Both families are asked for at the same time.
func (r *Resolver) LookupAddrs(ctx context.Context, name string, f Families) (Addrs, error) {
	switch f {
	case IPv4:
		return one(r.lookup(ctx, name, TypeA))
	case IPv6:
		return one(r.lookup(ctx, name, TypeAAAA))
	}
	k, err := question(name, TypeA)
	if err != nil {
		return Addrs{}, err
	}
	k6 := key{k.name, TypeAAAA}
	v4, call4 := r.find(k)
	v6, call6 := r.find(k6)
	return merge(wait(ctx, k, v4, call4), wait(ctx, k6, v6, call6))
}

// one makes Addrs of one family.
func one(o *outcome, err error) (Addrs, error) {
	if err != nil {
		return Addrs{}, err
	}
	return Addrs{Meta: o.meta, Addrs: addresses(nil, o.records)}, nil
}

// merge puts both families together.
func merge(v4, v6 *outcome) (Addrs, error) {
	if v4.err != nil && v6.err != nil {
		return Addrs{}, worse(v4.err, v6.err)
	}
	first, second := v4, v6
	if v4.err != nil {
		first, second = v6, v4
	}
	a := Addrs{Meta: first.meta, Addrs: make([]netip.Addr, 0, len(v4.records)+len(v6.records))}
	a.Addrs = addresses(addresses(a.Addrs, v4.records), v6.records)
	if second.err != nil && !errors.Is(second.err, ErrNotFound) {
		a.Failed = second.err
		return a, nil
	}
	a.Meta = join(first.meta, second.meta)
	return a, nil
}

// join is what is true of two answers.
func join(a, b Meta) Meta {
	a.Authentic = a.Authentic && b.Authentic
	a.Expires = earlier(a.Expires, b.Expires)
	return a
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// worse returns the error that says less for sure. That a name has no addresses is known
// if neither family has any.
func worse(a, b *Error) *Error {
	switch {
	case b.Kind == ErrBogus, !a.Temporary() && b.Temporary():
		return b
	case a.Temporary():
		return a
	case b.Kind == ErrNoName:
		a, b = b, a
	}
	both := *a
	both.Meta = join(a.Meta, b.Meta)
	return &both
}

func addresses(list []netip.Addr, records []Record) []netip.Addr {
	for i := range records {
		list = append(list, records[i].Addr)
	}
	return list
}
