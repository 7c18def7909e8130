package errand

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/resolver"
)

// names.go: look-ups.

// maxLookUps is how many questions one filter may have under way. The resolver is there for
// all filters and takes so many and no more, and it asks on when nobody waits any longer: so
// what a filter has begun counts until it is over. Names that are slow to look up are easy to
// come by, and whoever sends mail chooses which are looked up.
const maxLookUps = 200

// share is a filter's of a resolver.
type share struct {
	places  chan struct{} // of questions under way
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
}

func newShare() *share {
	s := &share{places: make(chan struct{}, maxLookUps)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// close ends look-ups.
func (s *share) close() {
	s.stop()
	s.running.Wait()
}

// lookUp calls ask, which may go on when ctx has ended: then its context has not, and what it
// found is lost.
func lookUp[T any](ctx context.Context, s *share, ask func(ctx context.Context) (T, error)) (none T, err error) {
	select {
	case s.places <- struct{}{}:
	case <-ctx.Done():
		return none, ctx.Err()
	}
	type result struct {
		found T
		err   error
	}
	done := make(chan result, 1)
	s.running.Go(func() {
		defer func() { <-s.places }()
		found, err := ask(s.ctx)
		done <- result{found, err}
	})
	select {
	case r := <-done:
		return r.found, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	}
}

// names is a guest.DNS.
type names struct {
	dns resolver.DNS
	*share
}

// LookUp implements guest.DNS. The name of a PTR may be an address as people write it.
func (n names) LookUp(ctx context.Context, typ uint16, name string) (guest.DNSAnswer, error) {
	return lookUp(ctx, n.share, func(ctx context.Context) (guest.DNSAnswer, error) { return n.ask(ctx, typ, name) })
}

func (n names) ask(ctx context.Context, typ uint16, name string) (guest.DNSAnswer, error) {
	if addr, err := netip.ParseAddr(name); err == nil && resolver.Type(typ) == resolver.TypePTR {
		r, err := n.dns.LookupPTR(ctx, addr)
		if err != nil {
			return guest.DNSAnswer{}, dnsError(err)
		}
		a := answerOf(r.Meta)
		for _, host := range r.Records {
			a.Records = append(a.Records, guest.DNSRecord{Host: host})
		}
		return a, nil
	}
	r, err := n.dns.Lookup(ctx, name, resolver.Type(typ))
	if err != nil {
		return guest.DNSAnswer{}, dnsError(err)
	}
	a := answerOf(r.Meta)
	for _, rec := range r.Records {
		a.Records = append(a.Records, guest.DNSRecord{Addr: rec.Addr, Text: rec.Text, Host: rec.Host,
			Priority: rec.Preference, Weight: rec.Weight, Port: rec.Port})
	}
	return a, nil
}

func answerOf(m resolver.Meta) guest.DNSAnswer {
	return guest.DNSAnswer{Secure: m.Authentic, TTL: max(0, time.Until(m.Expires))}
}

func dnsError(err error) error {
	switch {
	case errors.Is(err, resolver.ErrNotFound):
		return guest.ErrNotFound
	case errors.Is(err, resolver.ErrBadName):
		return guest.ErrBad
	}
	return err
}
