// Package sasl holds the mechanisms by which a client of SMTP proves who it is: the
// framework of RFC 4422 as the AUTH command of RFC 4954 uses it, for both ends. It reads
// and writes decoded octets; base64 and the AUTH command belong to package smtp.
//
// # The ideas
//
// A [Server] is one exchange. All mechanisms ask one set of callbacks, [Credentials], and
// a callback that is nil is a kind of proof that does not exist: [Available] tells which
// mechanisms may be offered on a connection, so that none is offered that would be refused.
// What a callback answers becomes a reply in one place: [ErrDenied] is 535 5.7.8, a broken
// exchange 501 5.5.2, and every trouble of our own 454 4.7.0, as RFC 4954, Section 6 has it.
//
// A [Client] is the other end. [Choose] picks the strongest mechanism that a server offers
// and an [Account] has what it takes for.
//
//	mechanism           proof                    callback      who begins
//	SCRAM-SHA-256-PLUS  salted keys, TLS bound   SCRAM         client
//	SCRAM-SHA-256       salted keys              SCRAM         client
//	OAUTHBEARER         token                    Token         client
//	XOAUTH2             token                    Token         client
//	PLAIN               password                 Password      client
//	LOGIN               password                 Password      server
//	CRAM-MD5            HMAC of a secret         Secret        server
//	EXTERNAL            client certificate       Certificate   client
//
// # What a stranger learns
//
// Nothing about which users exist: an unknown user gets the same challenges as a known one
// and the same reply at the end. Comparisons take the same time wherever two values begin
// to differ. No error and no reply holds a password, a token or a proof.
package sasl
