package errand

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/resolver"
)

// names.go: look-ups.

type names struct{ dns resolver.DNS }

// LookUp implements guest.DNS. The name of a PTR may be an address as people write it.
func (n names) LookUp(ctx context.Context, typ uint16, name string) (guest.DNSAnswer, error) {
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
