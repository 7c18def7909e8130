// Package smtp holds the Simple Mail Transfer Protocol of RFC 5321 and its
// extensions as a library: addresses, replies, the framing of commands and mail
// data, a server and a client. It knows nothing of the gateway that is built on
// it and imports the standard library and x/net/idna alone.
//
// # The ideas
//
// A [Path] and a [Domain] are values in canonical form. Two addresses that mean
// the same mailbox by the rules of the standard are equal with ==, however they
// were written: quoted or not, with a source route or not, in A-labels or
// U-labels. Policy, routing and delivery all use this one form.
//
// A [Reply] is what one side tells the other. It is also an error, so that a
// refusal travels through Go code as errors do; [ReplyOf] is the one place that
// turns any error into a reply, and what it does not know becomes 451.
//
// The server ([Server]) owns the dialogue: sequence, syntax, limits, batching of
// replies. A [Session] of the caller decides at each stage. The client ([Client])
// speaks SMTP and LMTP. What one of them writes, the other reads; both use the
// same framing of mail data, which ends at CRLF.CRLF and nowhere else.
//
// [Dial] makes a Client ready and [Client.Send] sends a message in one call; what a
// login needs is in package sasl. A gateway, which has to answer its own client
// between MAIL and the content, uses [Client.Envelope] and [Client.Data]. Failures
// are a [*Reply] or a [*ClientError], which says where and what.
//
//	bytes    wire.go (commands)     data.go (mail data)
//	words    command.go             path.go, domain.go, reply.go
//	talk     server.go, conn.go,    client.go, client_dial.go,
//	         session.go             client_send.go, client_error.go
//
// # Locks
//
// A Server has one lock, for its set of connections. Everything else belongs to
// the goroutine of its connection. A Client is for one goroutine at a time.
package smtp
