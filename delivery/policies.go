package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/store"
)

// policies.go keeps policies of MTA-STS in a store, for all nodes that share it: only what was
// seen before protects from one who keeps us from looking (RFC 8461, Section 10.2).

// policyKind is what policies of MTA-STS are called in a store.
const policyKind = "mta-sts"

// PolicyStore returns a place for policies of MTA-STS in a store.
func PolicyStore(p store.Policies) mtasts.Store { return policyStore{p} }

type policyStore struct{ policies store.Policies }

// Get implements mtasts.Store.
func (s policyStore) Get(ctx context.Context, domain string) (mtasts.Stored, bool, error) {
	p, err := s.policies.Get(ctx, policyKind, domain)
	if errors.Is(err, store.ErrNotFound) {
		return mtasts.Stored{}, false, nil
	}
	return mtasts.Stored(p), err == nil, err
}

// Put implements mtasts.Store.
func (s policyStore) Put(ctx context.Context, p mtasts.Stored) error {
	return s.policies.Put(ctx, policyKind, store.Policy(p))
}

// Delete implements mtasts.Store.
func (s policyStore) Delete(ctx context.Context, domain string) error {
	return s.policies.Delete(ctx, policyKind, domain)
}

// Each implements mtasts.Store.
func (s policyStore) Each(ctx context.Context, before time.Time, yield func(mtasts.Stored) bool) error {
	return s.policies.Each(ctx, policyKind, before, func(p store.Policy) bool { return yield(mtasts.Stored(p)) })
}
