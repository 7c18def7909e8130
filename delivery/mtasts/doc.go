// Package mtasts finds the MTA-STS policy of a domain (RFC 8461): which hosts may take its
// mail, and that they must show a certificate for it.
//
// A domain says with a TXT record that it has a policy, and which one by an id. The policy
// itself is a small text at https://mta-sts.DOMAIN/.well-known/mta-sts.txt, which the usual
// authorities of the web vouch for. The first look at a domain can be prevented by whoever
// stands between; what protects is that a policy once seen is kept, and holds for as long as
// it said. So this package is mostly a cache, and its rule is that no failure takes a policy
// away:
//
//	what is kept    TXT record          policy host       what applies
//	nothing         none                                  nothing
//	nothing         not known           not asked         nothing, with an error
//	nothing         an id               a policy          the new one
//	nothing         an id               fails             nothing, with an error
//	valid           the same id         not asked         what is kept
//	valid           another id          a policy          the new one, be it one of mode none
//	valid           another id          fails             what is kept, with an error
//	valid           none, or not known  not asked         what is kept, with an error
//	run out         the same id         a policy          the new one
//	run out         an id               fails             nothing, with an error
//
// The layers, each asked when the one before has nothing to say any more:
//
//	Lookup -> memory of this node -> flight -> Store, shared by all nodes -> TXT record -> HTTPS
//
// A flight is one look at one domain. Callers share it, and one that gives up does not end
// it. A policy host that failed is left alone for some minutes, for as long as the id is the
// same. Run looks at policies again before they run out, once a day, so that a domain that
// gets little mail has no day without one.
package mtasts
