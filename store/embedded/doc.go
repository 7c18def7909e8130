// Package embedded keeps a store in one directory of this machine, for one process.
//
//	LOCK            held while a process has the store open
//	FORMAT          the version of this layout
//	db/             a Pebble database: the log, and what is in no file of its own
//	bodies/xx/ID    contents larger than 256 KiB, xx being the last character of the ID
//	corrupt/        what did not fit its checksum, for a person to look at
//
// # What a message is
//
// A message has up to four records, each ended by a CRC-32C of key and value:
//
//	's' ID   its state: recipients' destinations, states, due times; small, rewritten
//	'e' ID   its envelope: what MAIL and RCPT said, where it came from; written once
//	'b' ID   its content, if that is not in a file; written once
//	'a' ID   attempts, and what the next hop said last; there after the first attempt
//
// They are written in one batch to the database's log and synced, many callers' batches with
// one call, before Commit returns. A file of content is synced, and its folder too, before
// the batch that speaks of it is written; so there may be a file without a message, which is
// swept, and never the other way round. Values of some size leave the tree of keys when they
// reach a table: what is compacted later is keys, and a body is written once.
//
// Which recipient is due where and when, what is leased, and all counts are in memory, made
// from the 's' records at start. A lease does not outlive the process: what was being
// delivered is due again.
//
// # When the disk fails
//
// A database whose log could not be written or synced cannot go on: what it believes and
// what the disk holds may differ. All its files go through one layer (disk.go), which after
// the first failure lets nothing more reach the disk, while callers get errors. The database
// is then closed and opened again, as often as it takes, and is made to agree with memory:
// what was finished and not yet synced is written again, and what was refused is removed.
//
// # Locks
//
// Taken in this order: a message's (queue.locks), the engine's gate, the index, the engine's
// list of what is not synced.
package embedded
