package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// read.go: what is asked of messages, and what becomes of those that cannot be read.

// reader is a database or a moment of it.
type reader interface {
	pebble.Reader
}

// get returns a copy of a record, ErrNotFound, or ErrCorrupt.
func get(db reader, k []byte) ([]byte, error) {
	v, closer, err := db.Get(k)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return nil, store.ErrNotFound
	case err != nil && pebble.IsCorruptionError(err):
		return nil, fmt.Errorf("%w: %w", store.ErrCorrupt, err)
	case err != nil:
		return nil, fmt.Errorf("embedded: read: %w", err)
	}
	record, err := unseal(k, v)
	record = bytes.Clone(record)
	return record, errors.Join(err, closer.Close())
}

// get reads a record of the database as it is. While the disk fails, nothing that is read
// means anything.
func (e *engine) get(k []byte) ([]byte, error) {
	db, err := e.enter()
	if err != nil {
		return nil, err
	}
	defer e.leave()
	record, err := get(db, k)
	if failure := e.disk.failure(); failure != nil {
		return nil, outage(failure)
	}
	return record, err
}

// broken is the error of a record that does not fit its form, or is missing.
func broken(what string, err error) error {
	if err == nil || errors.Is(err, store.ErrCorrupt) {
		return err
	}
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, errRecord) {
		return fmt.Errorf("%w: %s: %v", store.ErrCorrupt, what, err)
	}
	return err
}

// message puts together what is known of a message. A missing envelope is ErrNotFound.
func message(get func(k []byte) ([]byte, error), id [16]byte, st *state) (*store.Message, error) {
	record, err := get(key(kindEnvelope, id))
	if err != nil {
		return nil, err
	}
	m := &store.Message{ID: store.IDFromBytes(id)}
	if err := decodeEnvelope(record, m); err != nil {
		return nil, broken("envelope", err)
	}
	if len(m.Recipients) != len(st.recipients) {
		return nil, broken("recipients of state and envelope", errRecord)
	}
	m.Size, m.Priority = st.size, int(st.priority)
	fillState(m, st)
	if !st.attempts {
		return m, nil
	}
	a, err := past(get, id, st)
	if err != nil {
		return nil, err
	}
	for i := range m.Recipients {
		m.Recipients[i].Last = a.last[i]
	}
	m.Attempts = a.list
	return m, nil
}

// fillState takes over what the state says.
func fillState(m *store.Message, st *state) {
	m.Arrived, m.Expires = timeOf(st.arrived), timeOf(st.expires)
	for i := range m.Recipients {
		r, s := &m.Recipients[i], &st.recipients[i]
		r.Destination, r.State, r.DelayTold = store.Destination(s.destination), s.state, s.told
		r.Due, r.Tries = timeOf(s.due), int(s.tries)
	}
}

// past reads the attempts of a message.
func past(get func(k []byte) ([]byte, error), id [16]byte, st *state) (*attempts, error) {
	if !st.attempts {
		return &attempts{last: make([]*smtp.Reply, len(st.recipients))}, nil
	}
	record, err := get(key(kindAttempts, id))
	if err != nil {
		return nil, broken("attempts", err)
	}
	a, err := decodeAttempts(record)
	if err == nil && len(a.last) != len(st.recipients) {
		err = errRecord
	}
	if err != nil {
		return nil, broken("attempts", err)
	}
	return a, nil
}

func (q *queue) readAttempts(id [16]byte, st *state) (*attempts, error) {
	return past(q.e.get, id, st)
}

// read returns a message whose state is known, with its lock.
func (q *queue) read(id [16]byte, st *state) (*store.Message, error) {
	unlock := q.hold(id)
	defer unlock()
	// While another of its leases was finished, the state may have changed.
	if now := q.look(id); now != nil {
		st = now
	}
	return q.readHeld(id, st)
}

// readHeld is read for who holds the lock.
func (q *queue) readHeld(id [16]byte, st *state) (*store.Message, error) {
	m, err := message(q.e.get, id, st)
	return m, q.trouble(id, err)
}

// trouble sets a message aside that memory has and that cannot be read. Who calls it holds
// the message's lock.
func (q *queue) trouble(id [16]byte, err error) error {
	if !errors.Is(err, store.ErrNotFound) && !errors.Is(err, store.ErrCorrupt) {
		return err
	}
	q.mu.Lock()
	e := q.ix.entries[id]
	if e == nil {
		q.mu.Unlock()
		return store.ErrNotFound
	}
	inFile := e.inFile
	q.ix.discard(e)
	q.mu.Unlock()
	q.e.setAside(id, inFile, err)
	return broken("a record is missing", err)
}

// setAside moves what there is of a message to corrupt/.
func (e *engine) setAside(id [16]byte, inFile bool, why error) {
	name := store.IDFromBytes(id)
	e.corrupt.Add(1)
	e.o.Log.Error("store: a message is corrupt and was set aside", "msg", name, "folder", e.path(corruptName), "err", why)
	db, err := e.enter()
	if err != nil {
		return // it will be found again
	}
	err = e.keepRecords(db, string(name), id)
	e.leave()
	if err == nil && inFile {
		from, _ := e.bodyPath(name)
		if err := e.o.FS.Rename(from, e.path(corruptName, string(name)+".body")); err != nil {
			e.o.Log.Warn("store: set content aside", "msg", name, "err", err)
		}
	}
	if err == nil {
		err = e.syncDir(e.path(corruptName))
	}
	if err == nil {
		err = e.write(synced, 128, doubt{}, func(b *pebble.Batch) error {
			var err error
			for _, kind := range recordKinds {
				err = errors.Join(err, b.Delete(key(kind, id), nil))
			}
			return err
		}, nil)
	}
	if err != nil {
		e.o.Log.Error("store: set a corrupt message aside", "msg", name, "err", err)
	}
}

// keepRecords writes what can be read of a message to files, as it is.
func (e *engine) keepRecords(db *pebble.DB, name string, id [16]byte) error {
	for _, kind := range recordKinds {
		v, closer, err := db.Get(key(kind, id))
		if err != nil {
			continue
		}
		v = bytes.Clone(v)
		if err := errors.Join(closer.Close(), e.writeFile(e.path(corruptName, name+"."+string(kind)), v)); err != nil {
			return err
		}
	}
	return nil
}

// Message implements store.Queue.
func (q *queue) Message(ctx context.Context, id store.ID) (*store.Message, error) {
	raw, ok := id.Bytes()
	if !ok {
		return nil, store.ErrNotFound
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	unlock := q.hold(raw)
	defer unlock()
	st := q.look(raw)
	if st == nil {
		return nil, store.ErrNotFound
	}
	return q.readHeld(raw, st)
}

// Content implements store.Queue.
func (q *queue) Content(ctx context.Context, id store.ID) (store.Content, error) {
	raw, ok := id.Bytes()
	if !ok {
		return nil, store.ErrNotFound
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q.mu.Lock()
	e := q.ix.entries[raw]
	if e == nil {
		q.mu.Unlock()
		return nil, store.ErrNotFound
	}
	size, inFile := e.size, e.inFile
	q.mu.Unlock()
	c, err := q.content(id, raw, size, inFile)
	if err == nil {
		return c, nil
	}
	unlock := q.hold(raw)
	defer unlock()
	return nil, q.trouble(raw, err)
}

func (q *queue) content(id store.ID, raw [16]byte, size int64, inFile bool) (store.Content, error) {
	if inFile {
		return q.e.openBody(id, size, func(err error) {
			unlock := q.hold(raw)
			defer unlock()
			_ = q.trouble(raw, err) // who reads gets err itself
		})
	}
	b, err := q.e.get(key(kindContent, raw))
	if err == nil && int64(len(b)) != size {
		err = broken("length of the content", errRecord)
	}
	return inline(b), err
}

// page is how many messages List looks at between two looks at the world.
const page = 256

// List implements store.Queue.
func (q *queue) List(ctx context.Context, f store.Filter, after store.ID, yield func(*store.Message) bool) error {
	from := []byte{kindState}
	if raw, ok := after.Bytes(); ok {
		from = append(key(kindState, raw), 0)
	} else if after != "" {
		return fmt.Errorf("embedded: %q is no ID of a message", after)
	}
	var corrupt error
	for from != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, err := q.e.page(&f, from)
		if err != nil {
			return err
		}
		for id, err := range p.bad {
			corrupt = errors.Join(corrupt, q.doubtful(id, err))
		}
		for _, m := range p.list {
			if !yield(m) {
				return corrupt
			}
		}
		from = p.next
	}
	return corrupt
}

// doubtful looks again at a message that could not be read, and sets it aside if it still
// cannot.
func (q *queue) doubtful(id [16]byte, why error) error {
	unlock := q.hold(id)
	defer unlock()
	st := q.look(id)
	if st == nil {
		return nil // it was set aside before
	}
	if _, err := message(q.e.get, id, st); err == nil {
		_, err = q.e.get(key(kindState, id))
		if err == nil {
			return nil
		}
		why = err
	}
	err := q.trouble(id, why)
	return fmt.Errorf("message %s: %w", store.IDFromBytes(id), err)
}

// pageful is what is read at a time.
type pageful struct {
	list []*store.Message
	bad  map[[16]byte]error // what could not be read
	next []byte             // where to go on; nil at the end
}

// page returns the messages that match among the next ones.
func (e *engine) page(f *store.Filter, from []byte) (p pageful, err error) {
	db, err := e.enter()
	if err != nil {
		return p, err
	}
	defer e.leave()
	moment := db.NewSnapshot()
	defer moment.Close()
	it, err := moment.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: []byte{kindState + 1}})
	if err != nil {
		return p, fmt.Errorf("embedded: list: %w", err)
	}
	var st state
	seen := 0
	for ok := it.First(); ok; ok = it.Next() {
		if seen++; seen > page {
			p.next = bytes.Clone(it.Key())
			break
		}
		if len(it.Key()) != 17 {
			continue
		}
		id := [16]byte(it.Key()[1:])
		m, err := match(moment, it, f, &st)
		if err != nil {
			if p.bad == nil {
				p.bad = make(map[[16]byte]error)
			}
			p.bad[id] = broken("envelope", err)
		} else if m != nil {
			p.list = append(p.list, m)
		}
	}
	if err := it.Close(); err != nil {
		return p, fmt.Errorf("embedded: list: %w", err)
	}
	if failure := e.disk.failure(); failure != nil {
		return p, outage(failure)
	}
	return p, nil
}

// match returns the message at an iterator, nil if the filter does not want it.
func match(db reader, it *pebble.Iterator, f *store.Filter, st *state) (*store.Message, error) {
	v, err := it.ValueAndErr()
	if err != nil {
		return nil, err
	}
	record, err := unseal(it.Key(), v)
	if err == nil {
		err = decodeState(record, st)
	}
	if err != nil || !matchState(f, st) {
		return nil, err
	}
	m, err := message(func(k []byte) ([]byte, error) { return get(db, k) }, [16]byte(it.Key()[1:]), st)
	if err != nil || !matchAddresses(f, m) {
		return nil, err
	}
	return m, nil
}

// matchState looks at what needs no second record.
func matchState(f *store.Filter, st *state) bool {
	if at := timeOf(st.arrived); !f.Before.IsZero() && !at.Before(f.Before) || !f.After.IsZero() && !at.After(f.After) {
		return false
	}
	states, place := len(f.States) == 0, f.Destination == ""
	for i := range st.recipients {
		r := &st.recipients[i]
		states = states || slices.Contains(f.States, r.state)
		place = place || string(f.Destination) == string(r.destination)
	}
	return states && place
}

func matchAddresses(f *store.Filter, m *store.Message) bool {
	sender := m.Sender.Path
	if f.SenderDomain != "" && !strings.EqualFold(f.SenderDomain, sender.Domain.String()) {
		return false
	}
	if f.Sender != "" && !matchSender(f.Sender, sender) {
		return false
	}
	return f.Domain == "" || slices.ContainsFunc(m.Recipients, func(r store.Recipient) bool {
		return strings.EqualFold(f.Domain, r.Path.Domain.String())
	})
}

// matchSender compares addresses, with brackets or without.
func matchSender(want string, p smtp.Path) bool {
	if !strings.HasPrefix(want, "<") {
		want = "<" + want + ">"
	}
	w, err := smtp.ParsePath(want)
	return err == nil && w == p
}
