// Package users reads and writes a file of users, and checks their passwords.
//
// # The file
//
// Each line is a name, a colon and a hash. A name may have several lines, one for each
// scheme. Empty lines and those that begin with # are passed over.
//
//	# who                 how the password is kept
//	alice@example.com:{SCRAM-SHA-256}100000$SALT$STOREDKEY:SERVERKEY
//	bob:$argon2id$v=19$m=19456,t=2,p=1$SALT$HASH
//	carol:$2y$12$SALTANDHASH
//	dave:{PLAIN}secret
//
// SCRAM-SHA-256 serves SCRAM, PLAIN and LOGIN, and is what new lines are made of. argon2id
// and bcrypt serve PLAIN and LOGIN. A password in clear serves all mechanisms, CRAM-MD5
// too, and is worth to a thief what it is worth to its owner: avoid it. Lines of other
// programs are understood where they mean the same: "SCRAM-SHA-256$100000:SALT$..." (RFC
// 5803), commas in place of $ and :, and {BLF-CRYPT} or {ARGON2ID} in front of a hash.
//
// If a name has several lines, PLAIN and LOGIN are checked against one of them, the first
// of argon2id, bcrypt, SCRAM-SHA-256, clear: a second password is never let in beside it.
//
// Names are compared letter by letter, as sasl.PrepareName returns them.
//
// # Cost
//
// Hashes are made to be slow. A [File] computes as many at once as there are processors,
// so that a crowd of strangers that try passwords takes neither all memory nor, by waiting
// in turn, the place of the rest of the program. The numbers in a hash have upper bounds,
// so that a line of the file cannot do so either.
//
// # Locks
//
// A File holds one immutable table behind an atomic pointer; mu serves those who reload.
package users
