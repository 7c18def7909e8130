package certs

import (
	"crypto/tls"
	"slices"
	"strings"
	"time"
)

// expiry.go tells how long the certificates that are shown will last.

// Expiry is a certificate that is shown to clients.
type Expiry struct {
	// Names are those that get it, as A-labels in lower case, sorted.
	Names []string
	// NotAfter is its last moment.
	NotAfter time.Time
}

// Expiries returns the certificates that handshakes are served with now, the one that ends
// first in front. The self-signed one is among them only if our host name has no other.
func (s *Store) Expiries() []Expiry {
	set := s.set.Load()
	names := make(map[*tls.Certificate][]string)
	add := func(name string, list []*tls.Certificate) {
		for _, c := range list {
			names[c] = append(names[c], name)
		}
	}
	for name, list := range set.exact {
		add(name, list)
	}
	for parent, list := range set.wild {
		add("*."+parent, list)
	}
	if len(set.fallback) == 1 {
		add(s.hostname, set.fallback)
	}
	var all []Expiry
	for c, list := range names {
		slices.Sort(list)
		all = append(all, Expiry{Names: slices.Compact(list), NotAfter: c.Leaf.NotAfter})
	}
	slices.SortFunc(all, func(a, b Expiry) int {
		if n := a.NotAfter.Compare(b.NotAfter); n != 0 {
			return n
		}
		return strings.Compare(strings.Join(a.Names, " "), strings.Join(b.Names, " "))
	})
	return all
}
