package certs

// set.go is the choice itself: an index from names to certificates that is built once
// and never changed, so that handshakes read it without a lock.

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"
)

// A set maps normalised names to certificates. Each list has at most one certificate for
// each kind of key, the preferred kind first. All have their Leaf.
type set struct {
	exact    map[string][]*tls.Certificate
	wild     map[string][]*tls.Certificate // by the name behind "*."
	fallback []*tls.Certificate            // never empty; the last one is self-signed
}

// newSet indexes certs, which stand in the order of preference between equals.
func newSet(hostname string, own *tls.Certificate, certs []*tls.Certificate, now time.Time) *set {
	s := &set{
		exact: make(map[string][]*tls.Certificate),
		wild:  make(map[string][]*tls.Certificate),
	}
	for _, c := range certs {
		names, _ := namesOf(c.Leaf)
		for _, name := range names {
			if parent, ok := splitWildcard(name); ok {
				s.wild[parent] = merge(s.wild[parent], c, now)
			} else {
				s.exact[name] = merge(s.exact[name], c, now)
			}
		}
	}
	s.fallback = slices.Concat(s.exact[hostname], s.wild[parentOf(hostname)], []*tls.Certificate{own})
	return s
}

// merge puts c into the list of one name, where it may displace one of its own kind.
func merge(list []*tls.Certificate, c *tls.Certificate, now time.Time) []*tls.Certificate {
	same := func(o *tls.Certificate) bool { return kind(o) == kind(c) }
	if i := slices.IndexFunc(list, same); i < 0 {
		list = append(list, c)
	} else if better(c.Leaf, list[i].Leaf, now) {
		list[i] = c
	}
	slices.SortStableFunc(list, func(a, b *tls.Certificate) int { return cmp.Compare(kind(a), kind(b)) })
	return list
}

// better reports whether a is to be served in place of b. A certificate that was put in
// place ahead of its time would expire last, but no client would take it yet.
func better(a, b *x509.Certificate, now time.Time) bool {
	if early, earlyB := now.Before(a.NotBefore), now.Before(b.NotBefore); early != earlyB {
		return earlyB
	}
	return a.NotAfter.After(b.NotAfter)
}

// kind ranks the kinds of keys. ECDSA comes first as the cheapest that most peers know;
// few know Ed25519 in certificates, and RSA costs us the most.
func kind(c *tls.Certificate) int {
	switch c.Leaf.PublicKeyAlgorithm {
	case x509.ECDSA:
		return 0
	case x509.Ed25519:
		return 1
	default:
		return 2
	}
}

// namesOf returns the normalised names of a certificate, and those that no client can
// ask for. The subject's common name counts only where there is no other name, as it
// does for the clients that still look at it.
func namesOf(leaf *x509.Certificate) (names, useless []string) {
	candidates := leaf.DNSNames
	if len(candidates) == 0 && leaf.Subject.CommonName != "" {
		candidates = []string{leaf.Subject.CommonName}
	}
	for _, raw := range candidates {
		bare, wildcard := splitWildcard(raw)
		name, ok := normalise(bare)
		switch {
		case !ok:
			useless = append(useless, raw)
		case wildcard:
			names = append(names, "*."+name)
		default:
			names = append(names, name)
		}
	}
	return names, useless
}

// choose returns the certificate for a handshake, never nil.
func (s *set) choose(hello *tls.ClientHelloInfo) *tls.Certificate {
	var lists [3][]*tls.Certificate // in the order of preference
	if name, ok := normalise(hello.ServerName); ok {
		lists[0] = s.exact[name]
		lists[1] = s.wild[parentOf(name)]
	}
	lists[2] = s.fallback

	// SupportsCertificate would verify the name as well. We have done that already,
	// and the default is to be served for names that it does not hold.
	client := *hello
	client.ServerName = ""
	var first *tls.Certificate
	for _, list := range lists {
		for _, c := range list {
			if client.SupportsCertificate(c) == nil {
				return c
			}
			first = cmp.Or(first, c)
		}
	}
	// The client can use none of them. crypto/tls finds the words to tell it.
	return first
}
