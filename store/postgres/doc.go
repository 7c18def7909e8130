// Package postgres keeps a [store.Store] in PostgreSQL, which several nodes share.
//
// # The ideas
//
// Many callers' changes go into one transaction. A committer, one goroutine with a connection
// of its own, takes what waits for it: new messages and finished leases alike. All of it is
// one round trip, a pipeline of a few statements over arrays that the database commits at its
// end. While that is under way the next batch gathers; when nothing is under way nobody waits.
//
//	Commit ──┐                   ┌─ INSERT batch             (its id, and what took effect)
//	Commit ──┼──▶ committer ──▶ ─┼─ INSERT message, recipient
//	Finish ──┘                   ├─ DELETE recipient, message
//	                             └─ Sync: commit, synced
//
// A connection that is lost in the middle of that leaves open whether the database has
// committed. So each transaction carries a row with an id of its own. The batch is sent again,
// with the same id, on a new connection: either the id is not there, then the first try can
// not have been committed and never will be, since both have the same key; or it is, then its
// row tells what took effect. A message is never there twice, and never lost.
//
// What is leased is leased by the clock of the database. Rows of the queue that are due are
// found by an index in the order in which they are urgent, and taken with FOR UPDATE SKIP
// LOCKED, so that nodes do not wait for each other.
//
// Content of up to 256 KiB travels in the batch. Larger content is written in chunks while it
// arrives, under a name that is removed some time later if no message refers to it by then.
//
// Nodes wake each other with NOTIFY. It is a hint: each node looks for itself now and then,
// since notifications are lost with a connection, and relatives of PostgreSQL have none.
//
// Files are encrypted, all of them: keys of certificates and of accounts are among them, and
// a rule by their names would be right only until the first new name.
//
// # Locks
//
// Rows are locked in this order: message, recipient, blob. A batch that finishes leases of
// single recipients locks the recipient first; nothing else waits for a leased recipient.
package postgres
