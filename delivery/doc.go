// Package delivery hands messages to the next hop. That is one of the operator's own backends:
// [Transport] keeps connections to them, over SMTP or LMTP, and lends one out per mail
// transaction. Or it is a host elsewhere, which MX records lead to: a [Planner] says which hosts
// take the mail of a domain and what TLS they must show, and a [Securer] brings a connection to
// that. The [Engine] delivers what waits in a store, both ways; and what may be used without it
// can be: [Dial] connects to a domain.
//
// # Elsewhere
//
// A message waits at the destination of its domain. Destinations that are served by the same
// hosts are one site and share what the site bears, in workers and connections; a worker is
// never kept by a host that does not answer, a plan that takes long, or a line (site.go). An
// attempt goes over the hosts and addresses of the plan until each recipient has an answer, and
// nothing that DANE, MTA-STS or REQUIRETLS forbids is ever sent, or returned for that alone
// (journey.go).
//
// # Backends
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
//	engine.go       workers and what they lease   site.go         who works where
//	attempt.go      one try at a message          journey.go      the same, elsewhere
//	outbound.go     settings of that              links.go        connections kept for it
//	hosts.go        who was not there             hooks.go        what others say about it
//	keep.go         messages that come in         tlsoptional.go  what they say of TLS
//	schedule.go     when to try again             report.go       what the sender is told
//	operate.go      what a person does            explain.go      why a message waits
//
// # Locks
//
// Transport.mu guards the set of backends and the count of transactions, backend.mu all
// that changes in one backend and its endpoints. Transport.mu is taken first where both
// are held. Engine.mu guards destinations, sites and workers, and is taken before Transport.mu;
// links.mu, hosts.mu and outbound.mu are taken alone. None is held while anything waits for the
// network.
package delivery
