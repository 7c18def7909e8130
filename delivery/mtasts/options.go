package mtasts

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/penstock/penstock/internal/netguard"
	"github.com/penstock/penstock/resolver"
)

// options.go: settings, their defaults and what may be wrong with them.

// Options are the settings of a Cache. The zero value of each field means its default.
type Options struct {
	// DNS looks up records, and the addresses of policy hosts. Required.
	DNS resolver.DNS
	// Fresh is asked for records by Renew and Run: it should have no cache, or Renew sees a
	// new id only when the old record has run out. Nil is DNS.
	Fresh resolver.DNS
	// Families are the addresses of policy hosts that are tried. Default both.
	Families resolver.Families
	// Store keeps policies. Nil keeps them in memory, MaxBytes at most and until the process
	// ends; that is a weaker protection, since the first look at a domain is then one of many.
	Store Store
	// Lead tells whether this node is the one that looks at policies again, of those that
	// share the Store. Run asks it each time. Nil is yes.
	Lead func(ctx context.Context) (bool, error)

	// RootCAs are the authorities whose word on policy hosts counts. Nil means those of the
	// system.
	RootCAs *x509.CertPool
	// Check returns an error for an address that must not be connected to: the owner of a
	// domain decides where its policy host is. Nil lets addresses of the public Internet
	// through alone.
	Check func(netip.Addr) error
	// Dial connects to an address and port that Check let through. Nil is that of net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Timeout is how long a look at a domain may take: record, connection, policy and all.
	// Default a minute (RFC 8461, Section 3.3).
	Timeout time.Duration
	// Backoff is how long a policy host that failed is left alone, unless the id changes; it
	// doubles up to an hour with each failure. Default, and least, five minutes (RFC 8461,
	// Section 3.3).
	Backoff time.Duration
	// Refresh is how often policies are looked at again that nobody asks for. Default a day
	// (RFC 8461, Section 3.3).
	Refresh time.Duration
	// Unused is how long after the last mail to a domain its policy is still looked at again.
	// After that it is kept for as long as it said. Default 30 days.
	Unused time.Duration

	// MaxBytes is how much memory domains may take, about. Default 32 MiB.
	MaxBytes int
	// Flights is how many looks at domains may be under way. More end at once as if nobody
	// could be reached. Default 1000.
	Flights int

	// Log gets what an operator should know: policies that could not be fetched. Nil discards.
	Log *slog.Logger
	// Now is the clock. Nil is time.Now.
	Now func() time.Time
}

// Validate returns every problem of the options, joined, or nil.
func (o Options) Validate() error {
	var errs []error
	if o.DNS == nil {
		errs = append(errs, errors.New("mtasts: nobody to ask for records"))
	}
	for _, n := range []struct {
		name  string
		value int64
	}{
		{"timeout", int64(o.Timeout)}, {"backoff", int64(o.Backoff)}, {"refresh", int64(o.Refresh)},
		{"unused", int64(o.Unused)}, {"max bytes", int64(o.MaxBytes)}, {"flights", int64(o.Flights)},
	} {
		if n.value < 0 {
			errs = append(errs, fmt.Errorf("mtasts: %s is negative", n.name))
		}
	}
	if o.Backoff > 0 && o.Backoff < leastBackoff {
		errs = append(errs, fmt.Errorf("mtasts: backoff is less than %v", leastBackoff))
	}
	return errors.Join(errs...)
}

const leastBackoff = 5 * time.Minute

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

func (o Options) withDefaults() Options {
	setDefault(&o.Fresh, o.DNS)
	setDefault(&o.Timeout, time.Minute)
	setDefault(&o.Backoff, leastBackoff)
	setDefault(&o.Refresh, 24*time.Hour)
	setDefault(&o.Unused, 30*24*time.Hour)
	setDefault(&o.MaxBytes, 32<<20)
	setDefault(&o.Flights, 1000)
	if o.Lead == nil {
		o.Lead = func(context.Context) (bool, error) { return true, nil }
	}
	if o.Check == nil {
		o.Check = netguard.Guard{}.Check
	}
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Store == nil {
		o.Store = newMemory(o.MaxBytes)
	}
	return o
}
