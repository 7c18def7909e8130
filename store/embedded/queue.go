package embedded

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// queue.go: messages that wait. Each method decides in memory, writes, and then lets memory
// know; a message's lock keeps two of them apart in between.

// maxAttempts is how many attempts are kept of a message.
const maxAttempts = 50

// queue is a store.Queue.
type queue struct {
	e     *engine
	ids   store.IDs
	start time.Time // leases run by the time since then
	wakes wakes

	locks [256]sync.Mutex // of messages, by the last octet of their ID

	mu      sync.Mutex
	ix      *index                // guarded by mu
	writing map[store.ID]struct{} // guarded by mu: contents in files that no record knows yet
}

func newQueue(e *engine) *queue {
	// Tokens of an earlier process must not fit.
	return &queue{e: e, start: e.o.Now(), ix: newIndex(rand.Uint64() >> 1), writing: make(map[store.ID]struct{})}
}

// clock is the time that leases run out by.
func (q *queue) clock() time.Duration { return q.e.o.Now().Sub(q.start) }

// hold locks a message.
func (q *queue) hold(id [16]byte) (unlock func()) {
	l := &q.locks[id[15]]
	l.Lock()
	return l.Unlock
}

// look returns the state of a message as it is in memory, nil if there is none.
func (q *queue) look(id [16]byte) *state {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e := q.ix.entries[id]; e != nil {
		return e.state()
	}
	return nil
}

// tick ends leases that ran out.
func (q *queue) tick() {
	q.mu.Lock()
	expired := q.ix.expire(q.clock())
	q.mu.Unlock()
	if expired {
		q.wakes.wake()
	}
}

// Lease implements store.Queue.
func (q *queue) Lease(ctx context.Context, d store.Destination, now time.Time, limit int, lasts time.Duration) ([]*store.Lease, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	until := q.e.o.Now().Add(lasts - lasts/10)
	q.mu.Lock()
	clock := q.clock()
	q.ix.expire(clock)
	var granted []*lease
	if p := q.ix.places[d]; p != nil {
		granted = q.ix.grant(p, now.UnixMicro(), limit, clock+lasts)
	}
	states := make([]*state, len(granted))
	for i, l := range granted {
		states[i] = l.e.state()
	}
	q.mu.Unlock()

	list := make([]*store.Lease, 0, len(granted))
	for i, l := range granted {
		m, err := q.read(l.e.id, states[i])
		if errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
			continue // it is set aside, and the lease with it; or it went while we looked
		} else if err != nil {
			q.giveBack(granted[i:])
			if len(list) > 0 {
				return list, nil
			}
			return nil, err
		}
		list = append(list, q.toCaller(l, m, until))
	}
	return list, nil
}

// toCaller is a lease as the caller sees it.
func (q *queue) toCaller(l *lease, m *store.Message, until time.Time) *store.Lease {
	return &store.Lease{
		Message: m, Recipients: slices.Clone(l.recipients), Destination: l.place.name,
		Until: until, Token: strconv.FormatUint(l.token, 36),
	}
}

// giveBack ends leases that nobody got.
func (q *queue) giveBack(list []*lease) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range list {
		if q.ix.leases[l.token] == l {
			q.ix.take(l.e)
			q.ix.release(l)
			q.ix.put(l.e)
		}
	}
}

// mine returns a caller's lease. Called with mu held.
func (q *queue) mine(l *store.Lease) (*lease, error) {
	q.ix.expire(q.clock())
	mine := q.ix.find(l.Token)
	if mine == nil {
		return nil, store.ErrLeaseLost
	}
	return mine, nil
}

// Extend implements store.Queue.
func (q *queue) Extend(ctx context.Context, l *store.Lease, lasts time.Duration) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	mine, err := q.mine(l)
	if err != nil {
		return err
	}
	mine.until = q.clock() + lasts
	if mine.at >= 0 {
		q.ix.expiry.remove(mine.at)
		q.ix.expiry.push(mine)
	}
	l.Until = q.e.o.Now().Add(lasts - lasts/10)
	return nil
}

// Return implements store.Queue.
func (q *queue) Return(ctx context.Context, l *store.Lease) error {
	q.mu.Lock()
	mine, err := q.mine(l)
	if err == nil && mine.busy {
		err = store.ErrLeaseLost
	}
	if err == nil {
		q.ix.take(mine.e)
		q.ix.release(mine)
		q.ix.put(mine.e)
	}
	q.mu.Unlock()
	if err == nil {
		q.wakes.wake()
	}
	return err
}

// Finish implements store.Queue.
func (q *queue) Finish(ctx context.Context, l *store.Lease, outcomes []store.Outcome, attempt *store.Attempt, reports ...*store.Report) error {
	if err := checkOutcomes(l, outcomes); err != nil {
		return err
	}
	id, ok := l.Message.ID.Bytes()
	if !ok {
		return store.ErrLeaseLost
	}
	unlock := q.hold(id)
	defer unlock()
	mine, st, err := q.beginFinish(l, id)
	if err != nil {
		return err
	}
	replies := make([]*smtp.Reply, len(outcomes))
	for n, i := range mine.recipients {
		st.recipients[i].apply(&outcomes[n])
		replies[n] = outcomes[n].Reply
	}
	c := &change{id: id, st: st, reports: reports}
	if st.alive() {
		c.attempts, err = q.addAttempt(id, st, mine.recipients, replies, attempt)
	}
	if err == nil {
		err = q.write(c)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ix.leases[mine.token] != mine { // it was set aside, or the disk came back with another
		return err
	}
	if err != nil {
		mine.busy = false
		q.ix.expiry.push(mine)
		return err
	}
	q.ix.take(mine.e)
	q.ix.release(mine)
	q.settle(mine.e, c)
	return nil
}

func checkOutcomes(l *store.Lease, outcomes []store.Outcome) error {
	if len(outcomes) != len(l.Recipients) {
		return fmt.Errorf("embedded: %d outcomes for %d recipients", len(outcomes), len(l.Recipients))
	}
	for _, o := range outcomes {
		if o.State > store.Failed {
			return fmt.Errorf("embedded: no such state: %d", o.State)
		}
	}
	return nil
}

// beginFinish finds a lease, and keeps it from running out.
func (q *queue) beginFinish(l *store.Lease, id [16]byte) (*lease, *state, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	mine, err := q.mine(l)
	if err != nil {
		return nil, nil, err
	}
	if mine.busy || mine.e.id != id || len(mine.recipients) != len(l.Recipients) {
		return nil, nil, store.ErrLeaseLost
	}
	mine.busy = true
	q.ix.expiry.remove(mine.at)
	return mine, mine.e.state(), nil
}

// apply makes an outcome part of a recipient's state.
func (r *stateRecipient) apply(o *store.Outcome) {
	r.state = o.State
	if o.State == store.Waiting {
		r.due = micros(o.Due)
	}
	if o.Tried {
		r.tries++
	}
	r.told = r.told || o.DelayTold
}

// addAttempt returns the record of attempts with one more, nil if nothing is to be told.
func (q *queue) addAttempt(id [16]byte, st *state, recipients []int, replies []*smtp.Reply, attempt *store.Attempt) (*attempts, error) {
	if attempt == nil && !slices.ContainsFunc(replies, func(r *smtp.Reply) bool { return r != nil }) {
		return nil, nil
	}
	a, err := q.readAttempts(id, st)
	if err != nil {
		return nil, q.trouble(id, err)
	}
	for n, i := range recipients {
		if replies[n] != nil {
			a.last[i] = replies[n]
		}
	}
	if attempt != nil {
		a.list = append(a.list, *attempt)
		a.list = a.list[max(0, len(a.list)-maxAttempts):]
	}
	st.attempts = true
	return a, nil
}

// change is a message that changes, with what enters the queue in the same step.
type change struct {
	id       [16]byte
	st       *state
	attempts *attempts // nil if they stay as they are
	reports  []*store.Report
	drafts   []*draft
	safe     bool // it must be synced in any case
}

// write writes a change. With reports it is safe when write returns.
func (q *queue) write(c *change) error {
	doubt := doubt{changed: [][16]byte{c.id}}
	for _, r := range c.reports {
		d, err := q.report(r)
		if err != nil {
			q.abort(c.drafts)
			return err
		}
		c.drafts = append(c.drafts, d)
		doubt.changed, doubt.entered = append(doubt.changed, d.raw), append(doubt.entered, d.raw)
	}
	var then func()
	alive := c.st.alive()
	if !alive && c.st.inFile {
		then = func() { q.dropBody(c.id) }
	}
	size := 256
	for _, d := range c.drafts {
		size += d.batchSize()
	}
	err := q.e.write(c.safe || len(c.drafts) > 0, size, doubt, func(b *pebble.Batch) error {
		var err error
		if alive {
			err = c.fill(b)
		} else {
			err = forget(b, c.id, c.st)
		}
		for _, d := range c.drafts {
			err = errors.Join(err, d.fill(b))
		}
		return err
	}, then)
	if err != nil {
		q.abandon(c.drafts)
	}
	return err
}

// fill writes the records that changed.
func (c *change) fill(b *pebble.Batch) error {
	k := key(kindState, c.id)
	err := b.Set(k, seal(k, appendState(nil, c.st)), nil)
	if c.attempts != nil {
		k := key(kindAttempts, c.id)
		err = errors.Join(err, b.Set(k, seal(k, appendAttempts(nil, c.attempts)), nil))
	}
	return err
}

// forget removes a message's records. Those that are written once are deleted in the way
// that leaves nothing behind if they did not reach a table yet.
func forget(b *pebble.Batch, id [16]byte, st *state) error {
	err := errors.Join(b.Delete(key(kindState, id), nil), b.SingleDelete(key(kindEnvelope, id), nil))
	if !st.inFile {
		err = errors.Join(err, b.SingleDelete(key(kindContent, id), nil))
	}
	if st.attempts {
		err = errors.Join(err, b.Delete(key(kindAttempts, id), nil))
	}
	return err
}

// settle lets memory know of a change that was written. The message is taken; mu is held.
func (q *queue) settle(e *entry, c *change) {
	wake := len(c.drafts) > 0
	if c.st.alive() {
		q.ix.change(e, c.st)
		q.ix.put(e)
		wake = true
	} else {
		q.ix.remove(e)
	}
	for _, d := range c.drafts {
		q.enter(d)
	}
	if wake {
		q.wakes.wake()
	}
}

// Update implements store.Queue.
func (q *queue) Update(ctx context.Context, id store.ID, alter func(*store.Message) bool, reports ...*store.Report) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	raw, ok := id.Bytes()
	if !ok {
		return store.ErrNotFound
	}
	unlock := q.hold(raw)
	defer unlock()
	st := q.look(raw)
	if st == nil {
		return store.ErrNotFound
	}
	m, err := q.readHeld(raw, st)
	if err != nil {
		return err
	}
	if !alter(m) {
		return nil
	}
	if len(m.Recipients) != len(st.recipients) {
		return errors.New("embedded: recipients cannot be added or removed")
	}
	st.expires = micros(m.Expires)
	var altered []int
	for i := range m.Recipients {
		same, err := st.recipients[i].alter(&m.Recipients[i])
		if err != nil {
			return err
		}
		if !same {
			altered = append(altered, i)
		}
	}
	return q.update(&change{id: raw, st: st, reports: reports, safe: true}, altered)
}

// alter takes over what a caller of Update may change, and tells whether that is nothing.
func (r *stateRecipient) alter(n *store.Recipient) (same bool, err error) {
	if n.State > store.Failed {
		return false, fmt.Errorf("embedded: no such state: %d", n.State)
	}
	due := micros(n.Due)
	same = r.state == n.State && r.due == due && r.told == n.DelayTold && string(r.destination) == string(n.Destination)
	r.state, r.due, r.told, r.destination = n.State, due, n.DelayTold, []byte(n.Destination)
	return same, nil
}

// update writes a change, unless recipients that it is about are leased; they cannot be
// leased meanwhile.
func (q *queue) update(c *change, altered []int) error {
	q.mu.Lock()
	q.ix.expire(q.clock())
	e := q.ix.entries[c.id]
	if e == nil {
		q.mu.Unlock()
		return store.ErrNotFound
	}
	list := e.recipients()
	if slices.ContainsFunc(altered, func(i int) bool { return list[i].leased }) {
		q.mu.Unlock()
		return store.ErrLeased
	}
	q.ix.take(e)
	for _, i := range altered {
		list[i].leased = true
	}
	q.ix.put(e)
	q.mu.Unlock()

	err := q.write(c)

	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ix.entries[c.id] != e {
		return err
	}
	q.ix.take(e)
	for _, i := range altered {
		list[i].leased = false
	}
	if err != nil {
		q.ix.put(e)
		return err
	}
	q.settle(e, c)
	return nil
}

// Destinations implements store.Queue.
func (q *queue) Destinations(ctx context.Context, yield func(store.Waits) bool) error {
	q.mu.Lock()
	q.ix.expire(q.clock())
	list := make([]store.Waits, 0, len(q.ix.places))
	for _, p := range q.ix.places {
		if p.waiting+p.leased == 0 {
			continue
		}
		w := store.Waits{Destination: p.name, Waiting: p.waiting}
		if due, ok := p.earliest(); ok {
			w.Due = time.UnixMicro(due).UTC()
		}
		list = append(list, w)
	}
	q.mu.Unlock()
	for _, w := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !yield(w) {
			break
		}
	}
	return nil
}

// Watch implements store.Queue.
func (q *queue) Watch(ctx context.Context) <-chan struct{} { return q.wakes.watch(ctx) }

// Count implements store.Queue.
func (q *queue) Count(ctx context.Context) (store.Counts, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ix.expire(q.clock())
	c := store.Counts{Messages: int64(len(q.ix.entries)), Octets: q.ix.octets, Leased: q.ix.leased, Recipients: make(map[store.State]int64)}
	for s, n := range q.ix.states {
		if n > 0 {
			c.Recipients[store.State(s)] = n
		}
	}
	if q.ix.ages.len() > 0 {
		c.Oldest = timeOf(q.ix.ages.list[0].arrived)
	}
	return c, nil
}

// wakes tells those who watch.
type wakes struct {
	mu       sync.Mutex
	watchers map[chan struct{}]struct{} // guarded by mu
}

// wake gives each watcher a value, unless it has one.
func (w *wakes) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.watchers {
		signal(c)
	}
}

// watch returns a channel that is closed when ctx ends.
func (w *wakes) watch(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	if w.watchers == nil {
		w.watchers = make(map[chan struct{}]struct{})
	}
	w.watchers[c] = struct{}{}
	w.mu.Unlock()
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watchers, c)
		close(c)
	})
	return c
}

// checkMessage tells whether a message can be kept.
func checkMessage(m *store.Message) error {
	var errs []error
	if len(m.Recipients) == 0 {
		errs = append(errs, errors.New("no recipient"))
	}
	alive := false
	for i := range m.Recipients {
		r := &m.Recipients[i]
		alive = alive || r.State == store.Waiting || r.State == store.Held
		if r.State > store.Failed {
			errs = append(errs, fmt.Errorf("recipient %d: no such state: %d", i, r.State))
		}
		if r.Tries < 0 || r.Tries > math.MaxUint32 {
			errs = append(errs, fmt.Errorf("recipient %d: %d tries", i, r.Tries))
		}
	}
	if len(m.Recipients) > 0 && !alive {
		errs = append(errs, errors.New("no recipient waits or is held"))
	}
	if m.Priority < math.MinInt8 || m.Priority > math.MaxInt8 {
		errs = append(errs, fmt.Errorf("priority %d", m.Priority))
	}
	if len(errs) > 0 {
		return fmt.Errorf("embedded: not a message that can wait: %w", errors.Join(errs...))
	}
	return nil
}
