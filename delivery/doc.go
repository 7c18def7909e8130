// Package delivery hands messages to the next hop. What it has so far is the way to
// the operator's own backends: [Transport] keeps connections to them, over SMTP or
// LMTP, and lends one out per mail transaction.
//
// # The ideas
//
// A backend is a name with [Endpoint]s in groups. Groups are tried in order; within a
// group the endpoint with the fewest transactions is next, and equals are drawn by
// lot. An endpoint that cannot be reached is left alone for a while that doubles from
// one second to one minute; then one transaction tries it, and the others do not wait
// for the outcome.
//
// A transaction ([Transport.Begin]) is lent a connection, and nothing is said on it
// before the first recipient. MAIL and the first RCPT go together, so that a refused
// sender is the answer to that recipient. Up to there nothing was promised to anybody,
// and a pooled connection that turns out to be dead is replaced without a word. From
// there on nothing is ever sent twice: what fails is an error, and whoever has the
// message tries again.
//
//	Begin ──> lease (FIFO) ──> pick: idle? ──yes──> look: quiet? ──yes──> transaction
//	                             │ no      <────────── no, closed          │
//	                             └──> dial, greeting, TLS, EHLO ──────────>│
//	                                     │ fails: down, next endpoint      │
//	                                     v none left: 451 4.4.1            v
//	                                                         Data, Abort: idle again
//
// The connections of a backend, idle or busy, never exceed its cap. A transaction that
// finds none free waits in line, and is told 451 4.3.2 when that takes too long. Logins,
// which have a cap of their own, and questions what an endpoint offers are beside it.
//
// # Errors
//
// When in doubt, temporary. A *smtp.Reply is the backend's own word, or ours about a
// backend that lacks what the message needs. Everything else is an error that
// smtp.ReplyOf makes 451. A 421 of the backend speaks about its connection to us and is
// never passed on as one.
//
// # What a backend offers
//
// Whoever receives mail for a backend must not promise what the backend cannot keep.
// [Transport.Offers] tells without waiting what all its endpoints have said lately; what is
// asked for in vain all the same is refused at the recipient. Parameters about reports are
// left out for a backend without DSN.
//
// # Files
//
//	endpoint.go     where a backend is            options.go      settings
//	transport.go    all backends                  backend.go      leases, pool, health
//	connect.go      a connection made ready       conn.go         one connection
//	transaction.go  one mail transaction          introduce.go    for whom it is
//	probe.go        what a backend says, asked    offers.go       the same, remembered
//	login.go        logins tried at a backend     handler.go      backends that are no servers
//
//	plan.go         what hosts must show          demand.go       the same, decided
//	planner.go      plans made and kept           secure.go       a connection made so
//	check.go        what a certificate is worth   source.go       who we are to a host
//	dial.go         a connection for others       connection.go   the same, and why not
//
// # Locks
//
// Transport.mu guards the set of backends and the count of transactions, backend.mu all
// that changes in one backend and its endpoints. Transport.mu is taken first where both
// are held. Neither is held while anything waits for the network.
package delivery
