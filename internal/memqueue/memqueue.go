// Package memqueue is a queue in memory, for tests of what looks at a queue and changes it.
// It keeps nothing, and what is leased from it is leased until the test says otherwise.
package memqueue

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// Queue is a store.Queue of which the methods here work. Its zero value is empty.
type Queue struct {
	store.Queue // nil: other methods panic

	// BeforeUpdate is called before each Update looks at its message, without a lock. Set it
	// before the queue is used.
	BeforeUpdate func(store.ID)
	// Lost are contents that Content returns ErrCorrupt for. Set it before, too.
	Lost map[store.ID]bool

	ids store.IDs

	mu       sync.Mutex // guards what follows
	messages map[store.ID]*store.Message
	contents map[store.ID][]byte
	leased   map[store.ID][]int
	updates  int
}

// Add puts a message into the queue and returns its ID.
func (q *Queue) Add(m store.Message, content string) store.ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.add(&m, []byte(content))
}

func (q *Queue) add(m *store.Message, content []byte) store.ID {
	if q.messages == nil {
		q.messages, q.contents, q.leased = map[store.ID]*store.Message{}, map[store.ID][]byte{}, map[store.ID][]int{}
	}
	m = clone(m)
	m.ID, m.Size = q.ids.Next(m.Arrived), int64(len(content))
	q.messages[m.ID], q.contents[m.ID] = m, content
	return m.ID
}

func clone(m *store.Message) *store.Message {
	c := *m
	c.Recipients, c.Attempts = slices.Clone(m.Recipients), slices.Clone(m.Attempts)
	return &c
}

// Borrow leases recipients of a message for good.
func (q *Queue) Borrow(id store.ID, recipients ...int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leased[id] = recipients
}

// Updates is how many Updates changed something.
func (q *Queue) Updates() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.updates
}

// Message implements store.Queue.
func (q *Queue) Message(_ context.Context, id store.ID) (*store.Message, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if m := q.messages[id]; m != nil {
		return clone(m), nil
	}
	return nil, store.ErrNotFound
}

// content is a store.Content.
type content struct{ *bytes.Reader }

func (content) Close() error { return nil }

// Content implements store.Queue.
func (q *Queue) Content(_ context.Context, id store.ID) (store.Content, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, ok := q.contents[id]
	switch {
	case !ok:
		return nil, store.ErrNotFound
	case q.Lost[id]:
		return nil, store.ErrCorrupt
	}
	return content{bytes.NewReader(b)}, nil
}

// List implements store.Queue.
func (q *Queue) List(_ context.Context, f store.Filter, after store.ID, yield func(*store.Message) bool) error {
	q.mu.Lock()
	all := slices.Sorted(maps.Keys(q.messages))
	var list []*store.Message
	for _, id := range all {
		if m := q.messages[id]; id > after && match(f, m) {
			list = append(list, clone(m))
		}
	}
	q.mu.Unlock()
	for _, m := range list {
		if !yield(m) {
			break
		}
	}
	return nil
}

// match tells whether a message matches. Each condition is about any one of its recipients.
func match(f store.Filter, m *store.Message) bool {
	some := func(is func(r *store.Recipient) bool) bool {
		return slices.ContainsFunc(m.Recipients, func(r store.Recipient) bool { return is(&r) })
	}
	sender := m.Sender.Path.String()
	if m.Sender.Path.IsNull() {
		sender = "<>"
	}
	return (len(f.States) == 0 || some(func(r *store.Recipient) bool { return slices.Contains(f.States, r.State) })) &&
		(f.Destination == "" || some(func(r *store.Recipient) bool { return r.Destination == f.Destination })) &&
		(f.Domain == "" || some(func(r *store.Recipient) bool { return strings.EqualFold(r.Path.Domain.String(), f.Domain) })) &&
		(f.SenderDomain == "" || strings.EqualFold(m.Sender.Path.Domain.String(), f.SenderDomain)) &&
		(f.Sender == "" || f.Sender == sender) &&
		(f.Before.IsZero() || m.Arrived.Before(f.Before)) && (f.After.IsZero() || m.Arrived.After(f.After))
}

// Count implements store.Queue.
func (q *Queue) Count(context.Context) (store.Counts, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c := store.Counts{Recipients: map[store.State]int64{}}
	for id, m := range q.messages {
		c.Messages++
		c.Octets += m.Size
		c.Leased += int64(len(q.leased[id]))
		for _, r := range m.Recipients {
			c.Recipients[r.State]++
		}
		if c.Oldest.IsZero() || m.Arrived.Before(c.Oldest) {
			c.Oldest = m.Arrived
		}
	}
	return c, nil
}

// Destinations implements store.Queue.
func (q *Queue) Destinations(_ context.Context, yield func(store.Waits) bool) error {
	q.mu.Lock()
	waits := map[store.Destination]store.Waits{}
	for id, m := range q.messages {
		for i, r := range m.Recipients {
			if r.State != store.Waiting {
				continue
			}
			w := waits[r.Destination]
			w.Destination = r.Destination
			if !slices.Contains(q.leased[id], i) {
				w.Waiting++
				if w.Due.IsZero() || r.Due.Before(w.Due) {
					w.Due = r.Due
				}
			}
			waits[r.Destination] = w
		}
	}
	q.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(waits)) {
		if !yield(waits[name]) {
			break
		}
	}
	return nil
}

// Watch implements store.Queue: nothing ever comes.
func (q *Queue) Watch(ctx context.Context) <-chan struct{} {
	c := make(chan struct{})
	context.AfterFunc(ctx, func() { close(c) })
	return c
}

// Lease implements store.Queue: nothing is given out.
func (q *Queue) Lease(context.Context, store.Destination, time.Time, int, time.Duration) ([]*store.Lease, error) {
	return nil, nil
}

// Update implements store.Queue.
func (q *Queue) Update(_ context.Context, id store.ID, change func(*store.Message) bool, reports ...*store.Report) error {
	if q.BeforeUpdate != nil {
		q.BeforeUpdate(id)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	m := q.messages[id]
	if m == nil {
		return store.ErrNotFound
	}
	change(clone(m)) // it may be called again
	next := clone(m)
	if !change(next) {
		return nil
	}
	left := false
	for i, r := range next.Recipients {
		if r != m.Recipients[i] && slices.Contains(q.leased[id], i) {
			return store.ErrLeased
		}
		left = left || r.State == store.Waiting || r.State == store.Held
	}
	q.updates++
	q.messages[id] = next
	if !left {
		delete(q.messages, id)
		delete(q.contents, id)
	}
	for _, r := range reports {
		q.add(r.Message, r.Content)
	}
	return nil
}

// Recipient is a recipient that waits at a destination until due.
func Recipient(address string, d store.Destination, due time.Time) store.Recipient {
	p, err := smtp.ParseAddress(address)
	if err != nil {
		panic("memqueue: " + err.Error()) // a fault of the test
	}
	return store.Recipient{Recipient: smtp.Recipient{Path: p}, Destination: d, Due: due}
}
