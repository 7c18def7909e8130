package postgres

// message.go reads messages, finds them, and changes them.

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/penstock/penstock/store"
)

func sortLeasings(list []*leasing) {
	slices.SortFunc(list, func(a, b *leasing) int {
		slices.Sort(a.recipients)
		return cmp.Or(cmp.Compare(a.rank, b.rank), a.due.Compare(b.due), bytes.Compare(a.message[:], b.message[:]))
	})
	if n := len(list); n > 0 {
		slices.Sort(list[n-1].recipients) // one alone is compared with nothing
	}
}

// messageSQL reads whole messages in one statement, so that each is as it was at one moment.
const messageSQL = `SELECT m.id, m.arrived, m.expires, m.size, m.priority, m.envelope,
		r.destination, r.state, r.due, r.tries, r.told, r.envelope, r.last, r.leased, a.data
	FROM message m,
	LATERAL (SELECT array_agg(destination) AS destination, array_agg(state) AS state, array_agg(due) AS due,
			array_agg(tries) AS tries, array_agg(told) AS told, array_agg(envelope) AS envelope, array_agg(last) AS last,
			array_agg(until IS NOT NULL AND until > clock_timestamp()) AS leased
		FROM (SELECT * FROM recipient WHERE message = m.id ORDER BY idx) AS o) AS r,
	LATERAL (SELECT array_agg(data ORDER BY n) AS data FROM attempt WHERE message = m.id) AS a `

// found is a message that was read.
type found struct {
	*store.Message
	leased []bool
	err    error // it cannot be read
}

// rawMessage is a row of messageSQL.
type rawMessage struct {
	id               uuid
	arrived, expires time.Time
	size             int64
	priority         int16
	envelope         []byte
	destination      [][]byte
	state            []int16
	due              []time.Time
	tries            []int32
	told             []bool
	recipient, last  [][]byte
	leased           []bool
	attempts         [][]byte
}

func (r *rawMessage) scan(row pgx.Row) error {
	return row.Scan(&r.id, &r.arrived, &r.expires, &r.size, &r.priority, &r.envelope, &r.destination, &r.state, &r.due,
		&r.tries, &r.told, &r.recipient, &r.last, &r.leased, &r.attempts)
}

// message makes a message of the row. What can be read is there even if something cannot.
func (r *rawMessage) message() found {
	m := &store.Message{
		ID: store.IDFromBytes(r.id), Arrived: r.arrived.UTC(), Expires: r.expires.UTC(), Size: r.size, Priority: int(r.priority),
	}
	f := found{Message: m, leased: r.leased, err: decodeEnvelope(r.envelope, m)}
	keep := func(err error) {
		if f.err == nil {
			f.err = err
		}
	}
	for i := range r.destination {
		p, err := decodeRecipient(r.recipient[i])
		keep(err)
		last, err := decodeReply(r.last[i])
		keep(err)
		m.Recipients = append(m.Recipients, store.Recipient{
			Recipient: p, Destination: store.Destination(r.destination[i]), State: store.State(r.state[i]),
			Due: r.due[i].UTC(), Tries: int(r.tries[i]), Last: last, DelayTold: r.told[i],
		})
	}
	for _, b := range r.attempts {
		a, err := decodeAttempt(b)
		keep(err)
		m.Attempts = append(m.Attempts, a)
	}
	return f
}

func collect(rows pgx.Rows, err error) ([]found, error) {
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (found, error) {
		var r rawMessage
		if err := r.scan(row); err != nil {
			return found{}, err
		}
		return r.message(), nil
	})
}

// read returns the messages of IDs, without those that are not there.
func (q *queue) read(ctx context.Context, ids []uuid) (map[uuid]*found, error) {
	var list []found
	err := q.s.run(ctx, "read messages", idempotent, func(ctx context.Context, c *pgxpool.Conn) (err error) {
		list, err = collect(c.Query(ctx, messageSQL+"WHERE m.id = ANY($1::uuid[])", ids))
		return err
	})
	messages := make(map[uuid]*found, len(list))
	for i := range list {
		id, _ := list[i].ID.Bytes()
		messages[id] = &list[i]
	}
	return messages, err
}

// Message returns what is known of a message.
func (q *queue) Message(ctx context.Context, id store.ID) (*store.Message, error) {
	b, ok := id.Bytes()
	if !ok {
		return nil, store.ErrNotFound
	}
	list, err := q.read(ctx, []uuid{b})
	if err != nil {
		return nil, err
	}
	f := list[b]
	if f == nil {
		return nil, store.ErrNotFound
	}
	if f.err != nil {
		return nil, f.err
	}
	return f.Message, nil
}

// listPage is how many messages are read at a time.
const listPage = 200

// List calls yield with messages.
func (q *queue) List(ctx context.Context, f store.Filter, after store.ID, yield func(*store.Message) bool) error {
	where, args := conditions(f, after)
	sql := fmt.Sprintf("%sWHERE %s ORDER BY m.id LIMIT %d", messageSQL, where, listPage)
	for {
		var page []found
		err := q.s.run(ctx, "list", idempotent, func(ctx context.Context, c *pgxpool.Conn) (err error) {
			page, err = collect(c.Query(ctx, sql, args...))
			return err
		})
		if err != nil {
			return err
		}
		for _, m := range page {
			// One that is corrupt shows as far as it can be read.
			if !yield(m.Message) {
				return nil
			}
		}
		if len(page) < listPage {
			return nil
		}
		args[0], _ = page[len(page)-1].ID.Bytes()
	}
}

// conditions are those of a filter. The first argument is the ID to begin behind.
func conditions(f store.Filter, after store.ID) (string, []any) {
	start, _ := after.Bytes() // zero, which is before all, for what is no ID
	args := []any{start}
	where := []string{"m.id > $1"}
	add := func(sql string, arg any) {
		args = append(args, arg)
		where = append(where, fmt.Sprintf(sql, len(args)))
	}
	if len(f.States) > 0 {
		var states []int16
		for _, s := range f.States {
			states = append(states, int16(s))
		}
		add("EXISTS (SELECT FROM recipient x WHERE x.message = m.id AND x.state = ANY($%d::smallint[]))", states)
	}
	if f.Destination != "" {
		add("EXISTS (SELECT FROM recipient x WHERE x.message = m.id AND x.destination = $%d)", []byte(f.Destination))
	}
	if f.Domain != "" {
		add("EXISTS (SELECT FROM recipient x WHERE x.message = m.id AND x.domain = $%d)", []byte(f.Domain))
	}
	if f.SenderDomain != "" {
		add("m.sender_domain = $%d", []byte(f.SenderDomain))
	}
	if f.Sender != "" {
		add("m.sender = $%d", []byte(strings.TrimSuffix(strings.TrimPrefix(f.Sender, "<"), ">")))
	}
	if !f.Before.IsZero() {
		add("m.arrived < $%d", f.Before)
	}
	if !f.After.IsZero() {
		add("m.arrived > $%d", f.After)
	}
	return strings.Join(where, " AND "), args
}

// Update changes a message.
func (q *queue) Update(ctx context.Context, id store.ID, change func(*store.Message) bool, reports ...*store.Report) error {
	b, ok := id.Bytes()
	if !ok {
		return store.ErrNotFound
	}
	records, err := q.s.newRecords(reports)
	if err != nil {
		return err
	}
	changed := false
	err = q.s.tx(ctx, "update a message", once, func(ctx context.Context, tx pgx.Tx) error {
		changed = false
		list, err := lockMessage(ctx, tx, b)
		if err != nil {
			return err
		}
		m := clone(list.Message)
		if !change(m) {
			return nil
		}
		changed = true
		return q.write(ctx, tx, b, list, m, records)
	})
	if err == nil && changed {
		q.s.wake.all(queueTopic)
	}
	return err
}

// lockMessage reads a message that nobody else changes until the transaction ends, but for
// being leased.
func lockMessage(ctx context.Context, tx pgx.Tx, id uuid) (*found, error) {
	if _, err := tx.Exec(ctx, lockSQL, []uuid{id}); err != nil {
		return nil, err
	}
	list, err := collect(tx.Query(ctx, messageSQL+"WHERE m.id = $1", id))
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, store.ErrNotFound
	}
	if list[0].err != nil {
		return nil, list[0].err
	}
	return &list[0], nil
}

func clone(m *store.Message) *store.Message {
	c := *m
	c.Recipients = slices.Clone(m.Recipients)
	c.Attempts = slices.Clone(m.Attempts)
	return &c
}

// mustHit is for changes of recipients that may have been leased in between.
func mustHit(tag pgconn.CommandTag) error {
	if tag.RowsAffected() == 0 {
		return store.ErrLeased
	}
	return nil
}

// write writes what differs between was and m, and reports.
func (q *queue) write(ctx context.Context, tx pgx.Tx, id uuid, was *found, m *store.Message, records []*record) error {
	if len(m.Recipients) != len(was.Recipients) {
		return fmt.Errorf("postgres: a change must not add or remove recipients")
	}
	var p pgx.Batch
	if !m.Expires.Equal(was.Expires) {
		p.Queue("UPDATE message SET expires = $2 WHERE id = $1", id, m.Expires)
	}
	for i := range m.Recipients {
		now, old := &m.Recipients[i], &was.Recipients[i]
		if now.State == old.State && now.Due.Equal(old.Due) && now.Destination == old.Destination && now.DelayTold == old.DelayTold {
			continue
		}
		if was.leased[i] {
			return store.ErrLeased
		}
		p.Queue(`UPDATE recipient SET state = $3, due = $4, destination = $5, told = $6, token = NULL, until = NULL
			WHERE message = $1 AND idx = $2 AND (until IS NULL OR until <= clock_timestamp())`,
			id, i, int16(now.State), now.Due, []byte(now.Destination), now.DelayTold).Exec(mustHit)
	}
	p.Queue(removeSQL, []uuid{id}, blobGrace)
	var rows rows
	for _, r := range records {
		rows.add(r, &op{})
	}
	rows.queue(&p)
	return tx.SendBatch(ctx, &p).Close()
}
