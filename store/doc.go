// Package store says what must survive a restart and be shared by nodes: the queue, the
// modules of filters, their state, files such as certificates, policies of other domains,
// and a little about the nodes themselves. It holds interfaces and the types they speak in;
// drivers are in packages below it. A third driver can be written from the comments here,
// and is right if it passes package storetest.
//
// # The ideas
//
// A message is one record: envelope, recipients with what became of each, and content. It is
// made in one step ([Incoming.Commit]) and is either there whole or not at all. Commit
// returns when the message is safe: synced to disk, or committed by the database. Nothing
// else in this package makes that promise so often, and so drivers gather commits of many
// callers into one.
//
//	Begin ── Write … ── Commit ──▶ recipients wait, each at its destination until its time
//	                                   │
//	              Lease (destination, due) ──▶ one message, its due recipients there
//	                                   │
//	              Finish (an outcome for each) ──▶ gone, or waiting for the next time
//
// What is handed out for delivery is a [Lease]: the recipients of one message that are due at
// one destination. It belongs to one holder for a time, and comes back by itself when that
// time is over. Finish takes it back with what became of each recipient, and may put a report
// about them into the queue in the same step, so that a crash loses neither and doubles
// neither. Who finishes a lease that has run out meanwhile is told [ErrLeaseLost], and
// nothing is changed: another has it, or may have it.
//
// A message whose recipients are all done is removed with its content.
//
// # Time
//
// Times that are stored come from the caller, except for when a lease runs out: that is by
// the store's own clock (for a database, the database's), so that nodes whose clocks differ
// agree. Times have microseconds and are UTC.
//
// # Errors
//
// Every error that is not one of the sentinels here means that the outcome is unknown or
// nothing happened; a try later is right, and a client is told 4xx. Contexts end waits. All
// methods are safe for concurrent use unless they say otherwise.
package store
