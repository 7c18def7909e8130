// Package errand runs errands for filters: what they may do beyond their sessions, as package
// guest wants it. It keeps values, looks names up, asks web servers, sends notifications and
// hands out secrets.
//
//	guest.Env ── guest.Services ──▶ Runner ─▶ store    values, by the filter's name
//	                                   ├────▶ resolver names
//	                                   ├────▶ netguard, then a web server
//	                                   └────▶ queue    notifications
//
// A Runner is one filter's. What it may do was granted by the operator, and package guest
// holds requests against that; but which address a host's name leads to is seen here alone,
// when a connection is made, and held against the grant then.
package errand

import (
	"context"
	"crypto/x509"
	"errors"
	"time"

	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/resolver"
	"github.com/penstock/penstock/store"
)

// Options are what a Runner works with. What is nil makes the calls that need it EUNAVAIL.
type Options struct {
	// Name is the filter's; its values are kept under it.
	Name string
	// Grants are what it may do.
	Grants guest.Grants
	// Values keep what it wants to keep: a store.KV, or a Memory.
	Values Values
	// Names looks names up, of web servers too.
	Names resolver.DNS
	// Mail takes notifications.
	Mail Mailer
	// Hostname is our own name, in notifications.
	Hostname string
	// Secrets are the values of those that it may read, by name.
	Secrets map[string]string
	// Roots are the authorities that web servers' certificates may come from. Nil is those of
	// the system.
	Roots *x509.CertPool
}

// Values is the part of a store.KV that filters use, with its errors.
type Values interface {
	Get(ctx context.Context, space, key string) ([]byte, error)
	Set(ctx context.Context, space, key string, value []byte, expires time.Time, quota int64) error
	Delete(ctx context.Context, space, key string) error
	Add(ctx context.Context, space, key string, delta int64, expires time.Time, quota int64) (int64, error)
	Swap(ctx context.Context, space, key string, old, value []byte, expires time.Time, quota int64) (bool, error)
}

// Runner is who runs one filter's errands. Safe for concurrent use. Close it when no session
// uses the filter any more.
type Runner struct {
	services guest.Services
	web      *web
	share    *share // of the resolver
}

// New returns a Runner.
func New(o Options) *Runner {
	r := &Runner{share: newShare()}
	g := o.Grants
	if g.KV != nil && o.Values != nil {
		quota := g.KV.Quota
		if quota <= 0 {
			quota = guest.DefaultQuota
		}
		r.services.KV = values{o.Values, o.Name, quota}
	}
	if g.DNS != nil && o.Names != nil {
		r.services.DNS = names{o.Names, r.share}
	}
	if g.HTTP != nil {
		r.web = newWeb(*g.HTTP, o.Names, r.share, o.Roots)
		r.services.HTTP = r.web
	}
	if g.DSN != nil && o.Mail != nil {
		r.services.DSN = newPost(o)
	}
	if len(g.Secrets) > 0 {
		r.services.Secrets = secrets(o.Secrets)
	}
	return r
}

// Services returns what the filter's Envs call.
func (r *Runner) Services() guest.Services { return r.services }

// Close closes connections that wait for another request, and ends look-ups that nobody
// waits for any more.
func (r *Runner) Close() {
	r.share.close()
	if r.web != nil {
		r.web.transport.CloseIdleConnections()
	}
}

type secrets map[string]string

// Secret implements guest.Secrets.
func (s secrets) Secret(name string) (string, bool) {
	v, ok := s[name]
	return v, ok
}

// values are a filter's in a store.
type values struct {
	in    Values
	space string
	quota int64
}

// kvError is what an error of a store is to package guest.
func kvError(err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return guest.ErrNotFound
	case errors.Is(err, store.ErrFull):
		return guest.ErrFull
	case errors.Is(err, store.ErrConflict):
		return guest.ErrBad
	}
	return err
}

// until is when a time to live ends; the zero time for none.
func until(ttl time.Duration) time.Time {
	if ttl <= 0 {
		return time.Time{}
	}
	return time.Now().Add(ttl)
}

// Get implements guest.KV.
func (v values) Get(ctx context.Context, key string) ([]byte, error) {
	b, err := v.in.Get(ctx, v.space, key)
	return b, kvError(err)
}

// Set implements guest.KV.
func (v values) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return kvError(v.in.Set(ctx, v.space, key, value, until(ttl), v.quota))
}

// Add implements guest.KV.
func (v values) Add(ctx context.Context, key string, delta int64, ttl time.Duration) (int64, error) {
	n, err := v.in.Add(ctx, v.space, key, delta, until(ttl), v.quota)
	return n, kvError(err)
}

// Swap implements guest.KV.
func (v values) Swap(ctx context.Context, key string, old, value []byte, ttl time.Duration) (bool, error) {
	ok, err := v.in.Swap(ctx, v.space, key, old, value, until(ttl), v.quota)
	return ok, kvError(err)
}

// Delete implements guest.KV.
func (v values) Delete(ctx context.Context, key string) error {
	return kvError(v.in.Delete(ctx, v.space, key))
}
