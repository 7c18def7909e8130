package postgres

// batch.go is the SQL of a batch. Statements work on arrays, one element for a row, and refer
// to a caller by n, its number in the batch. What may turn out not to be possible for one
// caller, such as to finish a lease that has run out, is no error: the row of the batch tells
// in done for whom it was done, and what depends on it looks there.

import (
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	batchSQL = `INSERT INTO batch (id) VALUES ($1)`
	doneSQL  = `SELECT done FROM batch WHERE id = $1`
	// relaxSQL is for batches that may be lost in a crash: the database does not wait for its
	// disk.
	relaxSQL = `SELECT set_config('synchronous_commit', 'off', true)`

	messagesSQL = `INSERT INTO message (id, arrived, expires, size, priority, sender, sender_domain, envelope, sum, body)
		SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::smallint[],
			$6::bytea[], $7::bytea[], $8::bytea[], $9::bigint[], $10::bytea[])`

	recipientColumns = `message, idx, destination, domain, state, rank, due, tries, told, envelope, last, token, until`
	recipientsSQL    = `INSERT INTO recipient (` + recipientColumns + `)
		SELECT message, idx, destination, domain, state, rank, due, tries, told, envelope, last,
			nullif(token, 0), CASE WHEN token <> 0 THEN clock_timestamp() + lasts * interval '1 microsecond' END
		FROM unnest($1::uuid[], $2::integer[], $3::bytea[], $4::bytea[], $5::smallint[], $6::smallint[], $7::timestamptz[],
			$8::integer[], $9::boolean[], $10::bytea[], $11::bytea[], $12::bigint[], $13::bigint[])
			AS u (message, idx, destination, domain, state, rank, due, tries, told, envelope, last, token, lasts)`

	// conditionalSQL inserts what needs something: a content in chunks that is still there,
	// no message of that ID, a lease that was finished (needs is then its n).
	conditionalSQL = `WITH
		parts AS (SELECT id FROM blob WHERE id = ANY($11::uuid[]) FOR UPDATE),
		wanted AS (SELECT u.* FROM unnest($2::uuid[], $3::timestamptz[], $4::timestamptz[], $5::bigint[], $6::smallint[],
				$7::bytea[], $8::bytea[], $9::bytea[], $10::bigint[], $11::uuid[], $12::bytea[], $13::integer[], $14::boolean[])
				AS u (id, arrived, expires, size, priority, sender, sender_domain, envelope, sum, blob, body, n, needs)
			WHERE (u.blob IS NULL OR u.blob IN (SELECT id FROM parts))
			AND (NOT u.needs OR u.n = ANY((SELECT done FROM batch WHERE id = $1)::integer[]))),
		made AS (INSERT INTO message (id, arrived, expires, size, priority, sender, sender_domain, envelope, sum, blob, body)
			SELECT id, arrived, expires, size, priority, sender, sender_domain, envelope, sum, blob, body FROM wanted
			ON CONFLICT (id) DO NOTHING RETURNING id, blob),
		kept AS (UPDATE blob SET until = NULL WHERE id IN (SELECT blob FROM made))
		UPDATE batch SET done = done || ARRAY(SELECT n FROM wanted JOIN made USING (id)) WHERE id = $1`

	// onlyDone restricts rows to those of whom something was done.
	onlyDone               = ` WHERE u.n = ANY((SELECT done FROM batch WHERE id = $1)::integer[])`
	conditionalReceiverSQL = `INSERT INTO recipient (` + recipientColumns + `)
		SELECT message, idx, destination, domain, state, rank, due, tries, told, envelope, last,
			nullif(token, 0), CASE WHEN token <> 0 THEN clock_timestamp() + lasts * interval '1 microsecond' END
		FROM unnest($2::uuid[], $3::integer[], $4::bytea[], $5::bytea[], $6::smallint[], $7::smallint[], $8::timestamptz[],
			$9::integer[], $10::boolean[], $11::bytea[], $12::bytea[], $13::bigint[], $14::bigint[], $15::integer[])
			AS u (message, idx, destination, domain, state, rank, due, tries, told, envelope, last, token, lasts, n)` + onlyDone
	attemptsSQL = `INSERT INTO attempt (message, data)
		SELECT message, data FROM unnest($2::integer[], $3::uuid[], $4::bytea[]) WITH ORDINALITY AS u (n, message, data, place)` +
		onlyDone + ` ORDER BY place`

	// Whose token a recipient has holds its lease, even if that ran out: whoever takes or changes
	// the recipient then changes the token, too. So a database that was away for longer than a
	// lease still learns what was delivered meanwhile, if nobody was quicker.

	// lastSQL finishes leases of the only recipient of a message whose last word is said: all
	// of it goes.
	lastSQL = `WITH
		r AS (DELETE FROM recipient r USING unnest($2::integer[], $3::uuid[], $4::bigint[]) AS u (n, message, token)
			WHERE r.message = u.message AND r.idx = 0 AND r.token = u.token
			RETURNING u.n, r.message),
		m AS (DELETE FROM message USING r WHERE id = r.message RETURNING blob),
		b AS (UPDATE blob SET until = clock_timestamp() + $5::interval WHERE id IN (SELECT blob FROM m WHERE blob IS NOT NULL))
		UPDATE batch SET done = done || ARRAY(SELECT n FROM r) WHERE id = $1`

	// The other leases are finished in steps. The messages are locked first, so that of two
	// nodes that finish the last recipients of one, the second sees what the first did.
	lockSQL = `SELECT count(*) FROM (SELECT FROM message WHERE id = ANY($1::uuid[]) ORDER BY id FOR UPDATE) AS locked`
	heldSQL = `WITH held AS (SELECT u.n, u.want FROM unnest($2::integer[], $3::uuid[], $4::bigint[], $5::integer[]) AS u (n, message, token, want)
			JOIN recipient r ON r.message = u.message AND r.token = u.token FOR UPDATE OF r)
		UPDATE batch SET done = done || ARRAY(SELECT n FROM held GROUP BY n, want HAVING count(*) = want) WHERE id = $1`
	finishSQL = `UPDATE recipient r SET state = u.state, due = CASE u.state WHEN 0 THEN u.due ELSE r.due END,
			tries = r.tries + u.tried, rank = r.rank / 64 * 64 + least(r.tries + u.tried, 63), told = r.told OR u.told,
			last = coalesce(u.last, r.last), token = NULL, until = NULL
		FROM unnest($2::integer[], $3::uuid[], $4::integer[], $5::smallint[], $6::timestamptz[], $7::integer[], $8::boolean[], $9::bytea[])
			AS u (n, message, idx, state, due, tried, told, last)` + onlyDone + ` AND r.message = u.message AND r.idx = u.idx`
	trimSQL = `DELETE FROM attempt a WHERE a.message = ANY($1::uuid[])
		AND a.n <= (SELECT b.n FROM attempt b WHERE b.message = a.message ORDER BY b.n DESC OFFSET 50 LIMIT 1)`
	// removeSQL removes messages of which nobody is left.
	removeSQL = `WITH
		m AS (DELETE FROM message m WHERE m.id = ANY($1::uuid[])
			AND NOT EXISTS (SELECT FROM recipient r WHERE r.message = m.id AND r.state IN (0, 1)) RETURNING id, blob),
		r AS (DELETE FROM recipient WHERE message IN (SELECT id FROM m)),
		a AS (DELETE FROM attempt WHERE message IN (SELECT id FROM m))
		UPDATE blob SET until = clock_timestamp() + $2::interval WHERE id IN (SELECT blob FROM m WHERE blob IS NOT NULL)`
)

// batch is what goes into one transaction.
type batch struct {
	id  uuid
	ops []*op
}

// queueOn writes the statements of a batch into p.
func (b *batch) queueOn(p *pgx.Batch) (asks bool) {
	var plain, special rows
	var finished finishRows
	urgent := false
	for _, o := range b.ops {
		urgent = urgent || o.urgent
		for _, r := range o.records {
			if o.conditional() {
				special.add(r, o)
			} else {
				plain.add(r, o)
			}
		}
		finished.add(o)
	}
	if !urgent {
		p.Queue(relaxSQL)
	}
	p.Queue(batchSQL, b.id)
	plain.queue(p)
	finished.queue(p, b.id)
	special.queueConditional(p, b.id)
	asks = len(special.id) > 0 || finished.any()
	if asks {
		p.Queue(doneSQL, b.id)
	}
	return asks
}

// rows are messages and recipients by column.
type rows struct {
	id                   []uuid
	arrived, expires     []time.Time
	size                 []int64
	priority             []int16
	sender, senderDomain [][]byte
	envelope, body       [][]byte
	sum                  []int64
	blob                 []*uuid
	n                    []int32
	needs                []bool
	message              []uuid
	idx                  []int32
	destination, domain  [][]byte
	state, rank          []int16
	due                  []time.Time
	tries                []int32
	told                 []bool
	recipient, last      [][]byte
	token, lasts         []int64
	recipientN           []int32
	attemptN             []int32
	attemptMessage       []uuid
	attempt              [][]byte
}

func (c *rows) add(r *record, o *op) {
	c.id = append(c.id, r.id)
	c.arrived = append(c.arrived, r.arrived)
	c.expires = append(c.expires, r.expires)
	c.size = append(c.size, r.size)
	c.priority = append(c.priority, r.priority)
	c.sender = append(c.sender, r.sender)
	c.senderDomain = append(c.senderDomain, r.senderDomain)
	c.envelope = append(c.envelope, r.envelope)
	c.sum = append(c.sum, sum(r.body))
	c.body = append(c.body, r.body)
	c.blob = append(c.blob, r.blob)
	c.n = append(c.n, o.n)
	c.needs = append(c.needs, o.finish != nil)
	for i := range r.recipients {
		p := &r.recipients[i]
		c.message = append(c.message, r.id)
		c.idx = append(c.idx, int32(i))
		c.destination = append(c.destination, p.destination)
		c.domain = append(c.domain, p.domain)
		c.state = append(c.state, p.state)
		c.rank = append(c.rank, p.rank)
		c.due = append(c.due, p.due)
		c.tries = append(c.tries, p.tries)
		c.told = append(c.told, p.told)
		c.recipient = append(c.recipient, p.envelope)
		c.last = append(c.last, p.last)
		c.token = append(c.token, p.token)
		c.lasts = append(c.lasts, p.lasts)
		c.recipientN = append(c.recipientN, o.n)
	}
	for _, a := range r.attempts {
		c.attemptN = append(c.attemptN, o.n)
		c.attemptMessage = append(c.attemptMessage, r.id)
		c.attempt = append(c.attempt, a)
	}
}

func (c *rows) recipients(first ...any) []any {
	return append(first, c.message, c.idx, c.destination, c.domain, c.state, c.rank, c.due, c.tries, c.told,
		c.recipient, c.last, c.token, c.lasts)
}

func (c *rows) queue(p *pgx.Batch) {
	if len(c.id) == 0 {
		return
	}
	p.Queue(messagesSQL, c.id, c.arrived, c.expires, c.size, c.priority, c.sender, c.senderDomain, c.envelope, c.sum, c.body)
	p.Queue(recipientsSQL, c.recipients()...)
}

func (c *rows) queueConditional(p *pgx.Batch, id uuid) {
	if len(c.id) == 0 {
		return
	}
	p.Queue(conditionalSQL, id, c.id, c.arrived, c.expires, c.size, c.priority, c.sender, c.senderDomain, c.envelope,
		c.sum, c.blob, c.body, c.n, c.needs)
	p.Queue(conditionalReceiverSQL, append(c.recipients(id), c.recipientN)...)
	if len(c.attempt) > 0 {
		p.Queue(attemptsSQL, id, c.attemptN, c.attemptMessage, c.attempt)
	}
}

// finishRows are leases that end, by column: those that are all of a message, and others.
type finishRows struct {
	lastN       []int32
	lastMessage []uuid
	lastToken   []int64

	n       []int32
	message []uuid
	token   []int64
	want    []int32

	rowN       []int32
	rowMessage []uuid
	idx        []int32
	state      []int16
	due        []time.Time
	tried      []int32
	told       []bool
	last       [][]byte

	attemptN       []int32
	attemptMessage []uuid
	attempt        [][]byte
}

func (c *finishRows) any() bool { return len(c.lastN)+len(c.n) > 0 }

func (c *finishRows) add(o *op) {
	f := o.finish
	if f == nil {
		return
	}
	if f.all {
		c.lastN = append(c.lastN, o.n)
		c.lastMessage = append(c.lastMessage, f.message)
		c.lastToken = append(c.lastToken, f.token)
		return
	}
	c.n = append(c.n, o.n)
	c.message = append(c.message, f.message)
	c.token = append(c.token, f.token)
	c.want = append(c.want, int32(len(f.rows)))
	for _, r := range f.rows {
		c.rowN = append(c.rowN, o.n)
		c.rowMessage = append(c.rowMessage, f.message)
		c.idx = append(c.idx, r.idx)
		c.state = append(c.state, r.state)
		c.due = append(c.due, r.due)
		c.tried = append(c.tried, r.tried)
		c.told = append(c.told, r.told)
		c.last = append(c.last, r.last)
	}
	if f.attempt != nil {
		c.attemptN = append(c.attemptN, o.n)
		c.attemptMessage = append(c.attemptMessage, f.message)
		c.attempt = append(c.attempt, f.attempt)
	}
}

func (c *finishRows) queue(p *pgx.Batch, id uuid) {
	if len(c.n) > 0 {
		p.Queue(lockSQL, c.message)
		p.Queue(heldSQL, id, c.n, c.message, c.token, c.want)
		p.Queue(finishSQL, id, c.rowN, c.rowMessage, c.idx, c.state, c.due, c.tried, c.told, c.last)
		if len(c.attempt) > 0 {
			p.Queue(attemptsSQL, id, c.attemptN, c.attemptMessage, c.attempt)
			p.Queue(trimSQL, c.attemptMessage)
		}
		p.Queue(removeSQL, c.message, blobGrace)
	}
	if len(c.lastN) > 0 {
		p.Queue(lastSQL, id, c.lastN, c.lastMessage, c.lastToken, blobGrace)
	}
}
