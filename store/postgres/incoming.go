package postgres

// incoming.go takes messages in.

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/penstock/penstock/store"
)

// chunkSize is the size of chunks, and the largest content that is kept in the message's row.
const chunkSize = 256 << 10

var (
	errDone     = errors.New("postgres: the message was committed or aborted before")
	errBlobGone = errors.New("postgres: the content was removed, as nothing came for too long")
)

// incoming is a message that is being written.
type incoming struct {
	s       *Store
	ctx     context.Context
	m       store.Message
	restore bool
	buf     []byte
	blob    *uuid
	chunks  int32
	ended   bool
	err     error // of a Write
}

// Begin begins a message.
func (q *queue) Begin(ctx context.Context, m *store.Message) (store.Incoming, error) {
	in, err := q.begin(ctx, m)
	if err != nil {
		return nil, err
	}
	in.m.ID, in.m.Attempts = q.s.ids.Next(time.Now()), nil
	return in, nil
}

// Restore begins a message that was in a store before.
func (q *queue) Restore(ctx context.Context, m *store.Message) (store.Incoming, error) {
	in, err := q.begin(ctx, m)
	if err != nil {
		return nil, err
	}
	if _, ok := m.ID.Bytes(); !ok {
		return nil, fmt.Errorf("postgres: %q is not an ID", m.ID)
	}
	in.restore = true
	return in, nil
}

func (q *queue) begin(ctx context.Context, m *store.Message) (*incoming, error) {
	if q.s.closed.Load() {
		return nil, store.ErrClosed
	}
	if !slices.ContainsFunc(m.Recipients, func(r store.Recipient) bool { return r.State == store.Waiting || r.State == store.Held }) {
		return nil, errNoRecipients
	}
	in := &incoming{s: q.s, ctx: ctx, m: *m}
	in.m.Size = 0
	return in, nil
}

// Write adds content. A chunk that is full is written to the database.
func (in *incoming) Write(p []byte) (int, error) {
	if in.ended {
		return 0, errDone
	}
	written := 0
	for len(p) > 0 && in.err == nil {
		if len(in.buf) == chunkSize { // and there is more
			in.err = in.flush()
			continue
		}
		n := min(len(p), chunkSize-len(in.buf))
		in.grow(n)
		in.buf = append(in.buf, p[:n]...)
		p, written = p[n:], written+n
	}
	in.m.Size += int64(written)
	return written, in.err
}

// grow makes room as append does, but never for more than a chunk.
func (in *incoming) grow(n int) {
	if need := len(in.buf) + n; need > cap(in.buf) {
		grown := make([]byte, len(in.buf), min(chunkSize, max(need, 2*cap(in.buf), 4<<10)))
		copy(grown, in.buf)
		in.buf = grown
	}
}

// flush writes a chunk. With the first one it is noted that nobody refers to it yet.
func (in *incoming) flush() error {
	if in.blob == nil {
		id := newUUID()
		if _, err := in.s.exec(in.ctx, "begin a content", idempotent,
			"INSERT INTO blob (id, until) VALUES ($1, clock_timestamp() + $2::interval) ON CONFLICT DO NOTHING", id, blobGrace); err != nil {
			return err
		}
		in.blob = &id
		in.s.open.add(id)
	}
	if in.chunks == math.MaxInt32 {
		return store.ErrFull
	}
	_, err := in.s.exec(in.ctx, "write a content", idempotent,
		"INSERT INTO chunk (blob, n, sum, data) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING", *in.blob, in.chunks, sum(in.buf), in.buf)
	in.chunks++
	in.buf = in.buf[:0]
	return err
}

// Commit makes the message part of the queue.
func (in *incoming) Commit(ctx context.Context) (store.ID, error) {
	if _, err := in.commit(ctx, "", 0); err != nil {
		return "", err
	}
	return in.m.ID, nil
}

// CommitLeased is Commit and hands out a lease.
func (in *incoming) CommitLeased(ctx context.Context, d store.Destination, lasts time.Duration) (*store.Lease, error) {
	began := time.Now()
	token := newToken()
	leased, err := in.commit(ctx, d, lasts, token)
	if err != nil {
		return nil, err
	}
	l := &store.Lease{
		Message: in.returned(), Recipients: leased, Destination: d,
		Until: until(began, lasts), Token: strconv.FormatInt(token, 36),
	}
	if in.blob == nil {
		in.s.kept.put(in.m.ID, in.buf, l.Until)
	}
	return l, nil
}

// commit hands the message to the committer. With a token the recipients at d are leased.
func (in *incoming) commit(ctx context.Context, d store.Destination, lasts time.Duration, token ...int64) (leased []int, err error) {
	if in.ended {
		return nil, errDone
	}
	defer in.Abort()
	if in.err == nil && in.blob != nil {
		in.err = in.flush()
	}
	if in.err != nil {
		return nil, in.err
	}
	r, err := newRecord(&in.m)
	if err != nil {
		return nil, err
	}
	if len(token) > 0 {
		if leased = r.lease(d, token[0], lasts); len(leased) == 0 {
			return nil, fmt.Errorf("postgres: no recipient waits at %q", d)
		}
	}
	o := &op{records: []*record{r}, urgent: true, special: in.restore || in.blob != nil, failed: errBlobGone}
	if in.blob != nil {
		r.blob = in.blob
	} else if in.buf != nil {
		r.body = in.buf
	}
	if in.restore {
		o.failed = store.ErrConflict
	}
	if err := in.s.commits.submit(ctx, o); err != nil {
		return nil, err
	}
	if r.waits() {
		in.s.wake.all(queueTopic)
	}
	return leased, nil
}

// Abort forgets the message. What was written of it is removed in time.
func (in *incoming) Abort() {
	if in.ended {
		return
	}
	in.ended = true
	if in.blob != nil {
		in.s.open.remove(*in.blob)
	}
}

// returned is the message as the database has it.
func (in *incoming) returned() *store.Message {
	m := in.m
	m.Arrived, m.Expires = stored(m.Arrived), stored(m.Expires)
	m.Origin.By = stored(m.Origin.By)
	m.Recipients = append([]store.Recipient(nil), m.Recipients...)
	for i := range m.Recipients {
		m.Recipients[i].Due = stored(m.Recipients[i].Due)
	}
	return &m
}
