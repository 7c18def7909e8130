package gateway

import (
	"net/netip"
	"time"
)

// greet.go decides who waits for the greeting. Programs that send spam do not wait for it
// (RFC 5321, Section 4.3.1 says that a client must); real servers do, and would lose the
// time at each connection, so only those wait of whom nothing good is known.
//
// Wiring: the result is how long to hold the 220 back while looking for input. Input that
// comes earlier is answered 554 5.5.0 or 421, and told to reputation.bad.

// greetDelay returns how long to hold back the greeting: delay, or nothing if the client
// has a good record or no address (a unix socket). Whom the listener trusts need not be
// asked about at all.
func greetDelay(delay time.Duration, rep *reputation, a netip.Addr) time.Duration {
	if delay <= 0 || !a.IsValid() || rep.known(a) {
		return 0
	}
	return delay
}
