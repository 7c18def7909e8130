// Package resolver looks names up in the DNS, and says of every answer whether it was
// authenticated.
//
// That one bit is why the package exists. A sender that relies on DANE must know whether
// the MX and TLSA records it got were validated (RFC 7672, Section 2.1), and the standard
// library does not tell. We do not validate ourselves: a validating resolver on this
// machine does, and says so in the AD bit of its replies (RFC 6840, Section 5.8). The bit
// is as good as the way it came. It counts only from a server on the loopback or a unix
// socket, or from one that was marked as trusted and is reached over TLS; from any other
// server it is ignored, and all answers are unauthenticated.
//
// The way of a look-up:
//
//	Lookup... -> cache -> flight -> servers, in order -> UDP -> TCP if truncated or lost
//
// A flight is one question that is being asked. Callers with the same question share it,
// and one that gives up does not end it for the others. It has a budget of its own, so
// that it ends in seconds whatever the servers do; its answer goes into the cache even if
// nobody waits any more.
//
// What an answer may be:
//
//   - records, with their canonical name (the end of the chain of CNAMEs), the time until
//     which they hold, and whether they were authenticated;
//   - none: the name does not exist, or has no records of the type. That too may be
//     authenticated, and for DANE it makes a difference;
//   - unknown: a server failed, did not answer or refused. Such an error is temporary and
//     must never be read as "none";
//   - bogus: unknown, because the validation failed (RFC 8914 tells that from other
//     failures). Trying again may help, another resolver that does not validate must not.
//
// For the same reason servers whose AD bit counts are not mixed with others: an attacker
// who makes the former fail would have us believe the latter.
//
// A resolver that stops validating says so with a bit that is not there. A Health asks it
// each minute for something that is known to be signed, so that somebody notices.
//
// Names are in ASCII, absolute with or without the dot at the end. Names that come out are
// in lower case without it; the root is ".". Octets that are not common in names are
// escaped as in RFC 1035, Section 5.1.
package resolver
