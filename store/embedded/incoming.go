package embedded

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// incoming.go: messages that enter the queue.

// draft is a message that is not in the queue yet.
type draft struct {
	id   store.ID
	raw  [16]byte
	m    *store.Message
	st   *state
	size int64
	// buf is the content while it is small, file where it is large.
	buf  []byte
	file *bodyWriter
	past *attempts // what was said of it before
}

// newDraft prepares a message.
func newDraft(id store.ID, m *store.Message) *draft {
	d := &draft{id: id, m: m}
	d.raw, _ = id.Bytes() // it is ours, or was looked at
	d.st = &state{arrived: micros(m.Arrived), expires: micros(m.Expires), priority: int8(m.Priority),
		recipients: make([]stateRecipient, len(m.Recipients))}
	for i := range m.Recipients {
		r := &m.Recipients[i]
		d.st.recipients[i] = stateRecipient{destination: []byte(r.Destination), state: r.State, told: r.DelayTold, due: micros(r.Due), tries: uint32(r.Tries)}
	}
	return d
}

// batchSize is about what the records need in a batch.
func (d *draft) batchSize() int {
	return len(d.buf) + 768 + 128*len(d.m.Recipients)
}

// fill writes the records.
func (d *draft) fill(b *pebble.Batch) error {
	var space [1024]byte
	d.st.size = d.size
	d.st.inFile = d.file != nil
	d.st.attempts = d.past != nil
	k := key(kindState, d.raw)
	err := b.Set(k, seal(k, appendState(space[:0], d.st)), nil)
	k[0] = kindEnvelope
	err = errors.Join(err, b.Set(k, seal(k, appendEnvelope(space[:0], d.m)), nil))
	if d.past != nil {
		k[0] = kindAttempts
		err = errors.Join(err, b.Set(k, seal(k, appendAttempts(nil, d.past)), nil))
	}
	if d.file != nil {
		return err
	}
	k[0] = kindContent
	op := b.SetDeferred(len(k), len(d.buf)+sumLen)
	copy(op.Key, k)
	n := copy(op.Value, d.buf)
	binary.LittleEndian.PutUint32(op.Value[n:], checksum(k, d.buf))
	return errors.Join(err, op.Finish())
}

// report makes a draft of a report.
func (q *queue) report(r *store.Report) (*draft, error) {
	if err := checkMessage(r.Message); err != nil {
		return nil, err
	}
	d := newDraft(q.ids.Next(time.Now()), r.Message)
	d.size = int64(len(r.Content))
	if len(r.Content) <= maxInline {
		d.buf = r.Content
		return d, nil
	}
	err := q.toFile(d)
	if err == nil {
		_, err = d.file.Write(r.Content)
	}
	if err == nil {
		err = d.file.finish()
	}
	if err != nil {
		q.abort([]*draft{d})
		return nil, err
	}
	return d, nil
}

// toFile gives a content a file. If the ID may be another's, which it may not be for IDs of
// our own, the message's lock is held.
func (q *queue) toFile(d *draft) error {
	if !q.claim(d) {
		return store.ErrConflict // its file is not ours to overwrite
	}
	f, err := q.e.createBody(d.id)
	if err != nil {
		q.written(d.id)
		return err
	}
	d.file = f
	return nil
}

// claim notes that a file is being written, unless there is one that is needed.
func (q *queue) claim(d *draft) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, twice := q.writing[d.id]; twice || q.ix.entries[d.raw] != nil {
		return false
	}
	q.writing[d.id] = struct{}{}
	return true
}

// written notes that a file is no longer being written.
func (q *queue) written(id store.ID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.writing, id)
}

// abort forgets drafts that were not written.
func (q *queue) abort(list []*draft) {
	for _, d := range list {
		if d.file != nil {
			d.file.remove()
			q.written(d.id)
		}
	}
}

// abandon forgets drafts of which the disk may hold records: their files stay until they are
// swept, so that no record is without its file.
func (q *queue) abandon(list []*draft) {
	for _, d := range list {
		if d.file != nil {
			q.written(d.id)
		}
	}
}

// enter makes a draft that was written part of memory. Called with mu held.
func (q *queue) enter(d *draft) *entry {
	delete(q.writing, d.id)
	return q.ix.add(d.raw, d.st)
}

// incoming is a store.Incoming.
type incoming struct {
	q       *queue
	d       *draft
	restore bool // the ID may be there already
	err     error
	done    bool
}

// buffers are for contents that fit the database.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Begin implements store.Queue.
func (q *queue) Begin(ctx context.Context, m *store.Message) (store.Incoming, error) {
	if err := q.mayBegin(ctx, m); err != nil {
		return nil, err
	}
	in := &incoming{q: q, d: newDraft(q.ids.Next(time.Now()), m)}
	in.d.past = pastOf(m, nil)
	in.d.buf = (*buffers.Get().(*[]byte))[:0]
	return in, nil
}

func (q *queue) mayBegin(ctx context.Context, m *store.Message) error {
	if err := errors.Join(ctx.Err(), checkMessage(m)); err != nil {
		return err
	}
	if _, err := q.e.enter(); err != nil {
		return err
	}
	q.e.leave()
	return q.e.room()
}

// Restore implements store.Queue.
func (q *queue) Restore(ctx context.Context, m *store.Message) (store.Incoming, error) {
	if _, ok := m.ID.Bytes(); !ok {
		return nil, fmt.Errorf("embedded: %q is no ID of a message", m.ID)
	}
	if err := q.mayBegin(ctx, m); err != nil {
		return nil, err
	}
	in := &incoming{q: q, d: newDraft(m.ID, m), restore: true}
	in.d.past = pastOf(m, m.Attempts)
	return in, nil
}

// pastOf is what was said of a message before it came here, nil if nothing was.
func pastOf(m *store.Message, list []store.Attempt) *attempts {
	if len(list) == 0 && !slices.ContainsFunc(m.Recipients, func(r store.Recipient) bool { return r.Last != nil }) {
		return nil
	}
	past := &attempts{last: make([]*smtp.Reply, len(m.Recipients)), list: list[max(0, len(list)-maxAttempts):]}
	for i := range m.Recipients {
		past.last[i] = m.Recipients[i].Last
	}
	return past
}

// Write implements io.Writer.
func (in *incoming) Write(p []byte) (int, error) {
	if in.done {
		return 0, errors.New("embedded: the message is committed or aborted")
	}
	if in.err != nil {
		return 0, in.err
	}
	d := in.d
	d.size += int64(len(p))
	if d.file == nil && len(d.buf)+len(p) <= maxInline {
		d.buf = append(d.buf, p...)
		return len(p), nil
	}
	in.err = in.spill()
	n := 0
	if in.err == nil {
		n, in.err = d.file.Write(p)
	}
	return n, in.err
}

// spill moves the content to a file, unless it is in one, and looks whether there is room.
func (in *incoming) spill() error {
	if err := in.q.e.room(); err != nil {
		return err
	}
	d := in.d
	if d.file != nil {
		return nil
	}
	if err := in.toFile(); err != nil {
		return err
	}
	_, err := d.file.Write(d.buf)
	in.giveBuffer()
	return err
}

// toFile gives the content a file. A message that is restored may have been here a moment
// ago: its old file is removed when its end is safe, or it is being set aside. The lock of
// the message keeps that apart from the new file. And its end must be safe before the new
// file takes the place of the old, or a power cut could bring back its records alone.
func (in *incoming) toFile() error {
	if !in.restore {
		return in.q.toFile(in.d)
	}
	unlock := in.q.hold(in.d.raw)
	defer unlock()
	if in.q.exists(in.d.raw) {
		return store.ErrConflict
	}
	if err := in.q.e.flush(); err != nil {
		return err
	}
	return in.q.toFile(in.d)
}

func (q *queue) exists(id [16]byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ix.entries[id] != nil
}

// giveBuffer lets another use the buffer.
func (in *incoming) giveBuffer() {
	if b := in.d.buf; cap(b) > 0 && !in.restore {
		buffers.Put(&b)
	}
	in.d.buf = nil
}

// Commit implements store.Incoming.
func (in *incoming) Commit(ctx context.Context) (store.ID, error) {
	if err := in.commit(ctx, nil); err != nil {
		return "", err
	}
	return in.d.id, nil
}

// CommitLeased implements store.Incoming.
func (in *incoming) CommitLeased(ctx context.Context, dest store.Destination, lasts time.Duration) (*store.Lease, error) {
	if !in.d.waitsAt(dest) {
		in.Abort()
		return nil, fmt.Errorf("embedded: no recipient of the message waits at %q", dest)
	}
	var l *lease
	until := in.q.e.o.Now().Add(lasts - lasts/10)
	err := in.commit(ctx, func(e *entry) {
		// They must be due, says the caller, by a clock that we do not know.
		l = in.q.ix.lease(e, in.q.ix.places[dest], math.MaxInt64, in.q.clock()+lasts)
	})
	if err != nil {
		return nil, err
	}
	return in.q.toCaller(l, in.message(), until), nil
}

// waitsAt tells whether some recipient waits at a destination.
func (d *draft) waitsAt(dest store.Destination) bool {
	return slices.ContainsFunc(d.m.Recipients, func(r store.Recipient) bool {
		return r.Destination == dest && r.State == store.Waiting
	})
}

// message is the message as it would be read back.
func (in *incoming) message() *store.Message {
	m := *in.d.m
	m.ID, m.Size = in.d.id, in.d.size
	m.Recipients = slices.Clone(m.Recipients)
	fillState(&m, in.d.st)
	m.Origin.By = timeOf(micros(m.Origin.By))
	return &m
}

// commit writes the message, and calls enter with it while the index is held, before anybody
// else can have it.
func (in *incoming) commit(ctx context.Context, enter func(*entry)) error {
	if in.done {
		return errors.New("embedded: the message is committed or aborted")
	}
	if err := errors.Join(ctx.Err(), in.err); err != nil {
		in.Abort()
		return err
	}
	d, q := in.d, in.q
	if in.restore {
		unlock := q.hold(d.raw)
		defer unlock()
		if q.exists(d.raw) {
			in.Abort()
			return store.ErrConflict
		}
	}
	if d.file != nil {
		if err := d.file.finish(); err != nil {
			in.Abort()
			return err
		}
	}
	in.done = true
	doubt := doubt{refused: [][16]byte{d.raw}}
	err := q.e.write(synced, d.batchSize(), doubt, d.fill, nil)
	in.giveBuffer()
	if err != nil {
		q.abandon([]*draft{d})
		return err
	}
	if in.restore {
		q.ids.After(d.id)
	}
	q.mu.Lock()
	e := q.enter(d)
	if enter != nil {
		enter(e)
	}
	q.mu.Unlock()
	q.wakes.wake()
	return nil
}

// Abort implements store.Incoming.
func (in *incoming) Abort() {
	if in.done {
		return
	}
	in.done = true
	in.giveBuffer()
	in.q.abort([]*draft{in.d})
}
