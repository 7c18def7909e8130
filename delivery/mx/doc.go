// Package mx finds out where mail for a domain goes: which hosts take it, in which order,
// and at which addresses.
//
// A [Target] is what stands behind the at-sign of a recipient: a domain, or the literal of
// an address. [Find] makes a [Route] of it:
//
//	target ──> literal? ───────────────────────────────┐
//	   │                                               │
//	   └─> MX records ──> none? the domain itself      │
//	          │           null MX? no mail here        │
//	          v                                        v
//	       by preference, equals by lot ──> not us, nor behind us
//	          │
//	          v
//	       addresses of each host ──> guard ──> Route
//
// It follows RFC 5321, Section 5.1, and RFC 7505. Where mail goes must never depend on a
// look-up that failed: only a name server that says there is no MX record makes the domain
// its own host. A host whose look-up failed is passed over, and if no other is left the
// failure is temporary.
//
// What stands in the DNS of others is not to be trusted with our network. Each address goes
// through the netguard.Guard of the options, wherever it came from, and those that are
// refused are listed in the Route with the reason. How many hosts are looked up, and how many
// addresses of each are kept, is limited.
//
// Each part of a Route says whether its answers were authenticated, since DANE depends on it
// (RFC 7672, Section 2.2), and until when they hold.
//
// # Errors
//
// All of delivery reports what stands between a message and its next hop as an [Error]. It
// has a category, the reply that a sender is told, and by that whether trying again may help.
package mx
