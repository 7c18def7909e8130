package embedded

import (
	"math"
	"strconv"
	"time"

	"github.com/penstock/penstock/store"
)

// index.go: what waits where, in memory. A million messages must fit, so there is one small
// object for a message whose recipients wait at one place, and nothing is kept that is not
// needed to decide who is next.
//
// All methods are called with queue.mu held. A change of a message is always: take it out of
// all counts and heaps, change it, put it back.

// entry is a message.
type entry struct {
	id                     [16]byte
	arrived, size, expires int64
	more                   *more // nil for a message with one recipient
	one                    [1]recipient
	unit                   unit // of the only destination, or of the first
	age                    int32
	priority               int8
	inFile, attempts       bool
}

// more is what messages with several recipients need.
type more struct {
	recipients []recipient
	units      []*unit // of destinations behind the first
}

// recipient is what changes of a recipient.
type recipient struct {
	due    int64
	place  *place
	tries  uint32
	state  store.State
	told   bool
	leased bool
}

// unit is the recipients of a message that wait at a place, and are not leased.
type unit struct {
	e     *entry
	place *place
	due   int64 // the earliest
	tries uint32
	// at is where the unit is in later, or in ready; dueAt where it is in readyDue. -1 is
	// nowhere.
	at, dueAt int32
	isReady   bool
}

// place is a destination.
type place struct {
	name    store.Destination
	waiting int // recipients that wait and are not leased
	leased  int
	users   int // recipients of messages in the index, whatever their state
	later   heap[*unit]
	// ready are units that were due at some call; readyDue are the same by due time.
	ready, readyDue heap[*unit]
}

// lease is what is handed out.
type lease struct {
	token      uint64
	e          *entry
	place      *place
	recipients []int
	until      time.Duration // by the store's clock
	at         int           // in index.expiry
	busy       bool          // it is being finished, and does not run out meanwhile
}

// index is all of it.
type index struct {
	entries map[[16]byte]*entry
	places  map[store.Destination]*place
	leases  map[uint64]*lease
	expiry  heap[*lease]
	ages    heap[*entry]
	tokens  uint64
	octets  int64
	states  [store.Failed + 1]int64
	leased  int64
}

func newIndex(token uint64) *index {
	ix := &index{
		entries: make(map[[16]byte]*entry),
		places:  make(map[store.Destination]*place),
		leases:  make(map[uint64]*lease),
		tokens:  token,
	}
	ix.expiry = heap[*lease]{
		less: func(a, b *lease) bool { return a.until < b.until },
		set:  func(l *lease, i int) { l.at = i },
	}
	ix.ages = heap[*entry]{
		less: func(a, b *entry) bool { return a.arrived < b.arrived },
		set:  func(e *entry, i int) { e.age = int32(i) },
	}
	return ix
}

func newPlace(name store.Destination) *place {
	byDue := func(a, b *unit) bool { return a.due < b.due }
	setAt := func(u *unit, i int) { u.at = int32(i) }
	return &place{
		name:     name,
		later:    heap[*unit]{less: byDue, set: setAt},
		ready:    heap[*unit]{less: moreUrgent, set: setAt},
		readyDue: heap[*unit]{less: byDue, set: func(u *unit, i int) { u.dueAt = int32(i) }},
	}
}

// moreUrgent is the order of Lease.
func moreUrgent(a, b *unit) bool {
	switch {
	case a.e.priority != b.e.priority:
		return a.e.priority > b.e.priority
	case a.tries != b.tries:
		return a.tries < b.tries
	}
	return a.due < b.due
}

// recipients are a message's, to be changed in place.
func (e *entry) recipients() []recipient {
	if e.more != nil {
		return e.more.recipients
	}
	return e.one[:]
}

// use returns a destination, with one user more.
func (ix *index) use(name []byte) *place {
	p := ix.places[store.Destination(name)]
	if p == nil {
		p = newPlace(store.Destination(name))
		ix.places[p.name] = p
	}
	p.users++
	return p
}

// drop is use backwards.
func (ix *index) drop(p *place) {
	if p.users--; p.users == 0 {
		delete(ix.places, p.name)
	}
}

// add makes an entry of a state. Nobody may have that ID.
func (ix *index) add(id [16]byte, s *state) *entry {
	e := &entry{id: id, arrived: s.arrived, size: s.size, expires: s.expires, priority: s.priority, inFile: s.inFile, attempts: s.attempts}
	e.unit.e = e
	if len(s.recipients) > 1 {
		e.more = &more{recipients: make([]recipient, len(s.recipients))}
	}
	list := e.recipients()
	for i := range s.recipients {
		r := &s.recipients[i]
		list[i] = recipient{due: r.due, place: ix.use(r.destination), tries: r.tries, state: r.state, told: r.told}
	}
	ix.entries[id] = e
	ix.octets += e.size
	ix.ages.push(e)
	ix.put(e)
	return e
}

// remove forgets a message and its leases. It must be taken.
func (ix *index) remove(e *entry) {
	delete(ix.entries, e.id)
	ix.octets -= e.size
	ix.ages.remove(int(e.age))
	for _, r := range e.recipients() {
		ix.drop(r.place)
	}
}

// take takes a message out of counts and heaps.
func (ix *index) take(e *entry) {
	ix.count(e, -1)
	ix.unqueue(&e.unit)
	if e.more != nil {
		for _, u := range e.more.units {
			ix.unqueue(u)
		}
		e.more.units = e.more.units[:0]
	}
}

// put is take backwards.
func (ix *index) put(e *entry) {
	ix.count(e, 1)
	e.unit.place = nil
	list := e.recipients()
	for i := range list {
		r := &list[i]
		if r.state != store.Waiting || r.leased {
			continue
		}
		u := e.unitAt(r.place)
		u.due = min(u.due, r.due)
		u.tries = min(u.tries, r.tries)
	}
	if e.unit.place != nil {
		e.unit.place.later.push(&e.unit)
	}
	if e.more != nil {
		for _, u := range e.more.units {
			u.place.later.push(u)
		}
	}
}

// unitAt returns the unit of a place, a new one if there is none.
func (e *entry) unitAt(p *place) *unit {
	fresh := unit{e: e, place: p, due: math.MaxInt64, tries: math.MaxUint32, at: -1, dueAt: -1}
	if e.unit.place == nil {
		e.unit = fresh
	}
	if e.unit.place == p {
		return &e.unit
	}
	for _, u := range e.more.units {
		if u.place == p {
			return u
		}
	}
	e.more.units = append(e.more.units, &fresh)
	return e.more.units[len(e.more.units)-1]
}

// unqueue takes a unit out of its heaps.
func (ix *index) unqueue(u *unit) {
	if u.place == nil {
		return
	}
	if u.isReady {
		u.place.ready.remove(int(u.at))
		u.place.readyDue.remove(int(u.dueAt))
	} else {
		u.place.later.remove(int(u.at))
	}
	u.place, u.isReady = nil, false
}

// count adds a message to the counts, or takes it off.
func (ix *index) count(e *entry, n int64) {
	for _, r := range e.recipients() {
		ix.states[r.state] += n
		switch {
		case r.leased:
			ix.leased += n
			r.place.leased += int(n)
		case r.state == store.Waiting:
			r.place.waiting += int(n)
		}
	}
}

// grant leases what is due, up to limit.
func (ix *index) grant(p *place, now int64, limit int, until time.Duration) []*lease {
	for p.later.len() > 0 && p.later.list[0].due <= now {
		u := p.later.list[0]
		p.later.remove(0)
		u.isReady = true
		p.ready.push(u)
		p.readyDue.push(u)
	}
	var granted []*lease
	var tooSoon []*unit // somebody's clock was ahead of this one
	for len(granted) < limit && p.ready.len() > 0 {
		u := p.ready.list[0]
		if u.due > now {
			p.ready.remove(0)
			p.readyDue.remove(int(u.dueAt))
			u.isReady = false
			tooSoon = append(tooSoon, u)
			continue
		}
		granted = append(granted, ix.lease(u.e, p, now, until))
	}
	for _, u := range tooSoon {
		p.later.push(u)
	}
	return granted
}

// lease leases the recipients of a message that are due at a place; nil if there is none.
func (ix *index) lease(e *entry, p *place, now int64, until time.Duration) *lease {
	l := &lease{e: e, place: p, until: until}
	list := e.recipients()
	for i := range list {
		if r := &list[i]; r.place == p && r.state == store.Waiting && !r.leased && r.due <= now {
			l.recipients = append(l.recipients, i)
		}
	}
	if len(l.recipients) == 0 {
		return nil
	}
	ix.take(e)
	for _, i := range l.recipients {
		list[i].leased = true
	}
	ix.put(e)
	ix.tokens++
	l.token = ix.tokens
	ix.leases[l.token] = l
	ix.expiry.push(l)
	return l
}

// find returns a lease by its token.
func (ix *index) find(token string) *lease {
	n, err := strconv.ParseUint(token, 36, 64)
	if err != nil {
		return nil
	}
	return ix.leases[n]
}

// release ends a lease. Its message must be taken.
func (ix *index) release(l *lease) {
	list := l.e.recipients()
	for _, i := range l.recipients {
		list[i].leased = false
	}
	delete(ix.leases, l.token)
	if l.at >= 0 {
		ix.expiry.remove(l.at)
	}
}

// expire ends the leases that ran out, and tells whether there were any.
func (ix *index) expire(now time.Duration) bool {
	any := false
	for ix.expiry.len() > 0 && ix.expiry.list[0].until <= now {
		l := ix.expiry.list[0]
		ix.take(l.e)
		ix.release(l)
		ix.put(l.e)
		any = true
	}
	return any
}

// discard forgets a message that is not taken, with its leases.
func (ix *index) discard(e *entry) {
	ix.take(e)
	for _, l := range ix.leases {
		if l.e == e {
			ix.release(l)
		}
	}
	ix.remove(e)
}

// state is what the record of a message holds.
func (e *entry) state() *state {
	list := e.recipients()
	s := &state{arrived: e.arrived, size: e.size, expires: e.expires, priority: e.priority, inFile: e.inFile, attempts: e.attempts,
		recipients: make([]stateRecipient, len(list))}
	for i := range list {
		r := &list[i]
		s.recipients[i] = stateRecipient{destination: []byte(r.place.name), state: r.state, told: r.told, due: r.due, tries: r.tries}
	}
	return s
}

// change makes a message what s says; the message must be taken. Leases stay as they are.
func (ix *index) change(e *entry, s *state) {
	e.expires, e.attempts = s.expires, s.attempts
	list := e.recipients()
	for i := range s.recipients {
		n, r := &s.recipients[i], &list[i]
		r.due, r.tries, r.state, r.told = n.due, n.tries, n.state, n.told
		if string(r.place.name) != string(n.destination) {
			old := r.place
			r.place = ix.use(n.destination)
			ix.drop(old)
		}
	}
}

// alive tells whether some recipient still waits or is held.
func (s *state) alive() bool {
	for i := range s.recipients {
		if st := s.recipients[i].state; st == store.Waiting || st == store.Held {
			return true
		}
	}
	return false
}

// earliest is when the next unit of a place is due, false if there is none.
func (p *place) earliest() (due int64, ok bool) {
	if p.readyDue.len() > 0 {
		due, ok = p.readyDue.list[0].due, true
	}
	if p.later.len() > 0 && (!ok || p.later.list[0].due < due) {
		due, ok = p.later.list[0].due, true
	}
	return due, ok
}

// heap is a binary heap whose things know where they are.
type heap[T any] struct {
	list []T
	less func(a, b T) bool
	set  func(t T, i int)
}

func (h *heap[T]) len() int { return len(h.list) }

func (h *heap[T]) push(t T) {
	h.list = append(h.list, t)
	h.set(t, len(h.list)-1)
	h.up(len(h.list) - 1)
}

// remove takes out what is at i.
func (h *heap[T]) remove(i int) {
	last := len(h.list) - 1
	h.set(h.list[i], -1)
	if i != last {
		h.list[i] = h.list[last]
		h.set(h.list[i], i)
	}
	var zero T
	h.list[last] = zero
	h.list = h.list[:last]
	if i < last && !h.up(i) {
		h.down(i)
	}
	// What a burst needed is given back.
	if cap(h.list) > 1024 && len(h.list) < cap(h.list)/4 {
		h.list = append(make([]T, 0, cap(h.list)/2), h.list...)
	}
}

// up moves what is at i towards the top, and tells whether it moved.
func (h *heap[T]) up(i int) bool {
	moved := false
	for i > 0 {
		parent := (i - 1) / 2
		if !h.less(h.list[i], h.list[parent]) {
			break
		}
		h.swap(i, parent)
		i, moved = parent, true
	}
	return moved
}

func (h *heap[T]) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h.list) {
			return
		}
		if right := child + 1; right < len(h.list) && h.less(h.list[right], h.list[child]) {
			child = right
		}
		if !h.less(h.list[child], h.list[i]) {
			return
		}
		h.swap(i, child)
		i = child
	}
}

func (h *heap[T]) swap(i, j int) {
	h.list[i], h.list[j] = h.list[j], h.list[i]
	h.set(h.list[i], i)
	h.set(h.list[j], j)
}
