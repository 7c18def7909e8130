package resolver

import (
	"container/list"
	"time"
)

// cache.go keeps answers until they expire. It is bounded in entries and in bytes, since
// who owns a zone decides how large its answers are.

const (
	// maxTTL bounds every answer. A record that was wrong for a moment should not follow
	// us for days.
	maxTTL = time.Hour
	// RFC 9520, Section 3.2: a failure is remembered for a second at least, and longer if
	// it goes on, five minutes at most. Mail is tried again anyway; half a minute will do.
	minFailure = time.Second
	maxFailure = 30 * time.Second
)

// key is a question.
type key struct {
	name string // normalised; "." for the root
	typ  Type
}

// outcome is what came of a question: records, or an error. It is not changed once others
// can see it.
type outcome struct {
	meta    Meta
	records []Record
	err     *Error
	// remember tells that a failure came from the servers, and not from us.
	remember bool
}

// size is about what the outcome takes in the cache, in bytes.
func (o *outcome) size() int {
	size := 512 // entry, list, map, and the outcome itself
	for i := range o.records {
		size += o.records[i].size()
	}
	if o.err != nil {
		size += 512
	}
	if o.meta.EDE != nil {
		size += len(o.meta.EDE.Text)
	}
	return size
}

// entry is what the cache holds for a question.
type entry struct {
	key      key
	outcome  *outcome
	until    time.Time
	failures int // in a row, the next within maxFailure after until of the one before
	size     int
}

// cache is a map whose least recently used entries go first. It has no lock of its own.
type cache struct {
	entries, bytes int // limits
	used           int // bytes
	byKey          map[key]*list.Element
	recent         *list.List // of *entry, the one used last in front
}

func newCache(entries, bytes int) *cache {
	return &cache{entries: entries, bytes: bytes, byKey: make(map[key]*list.Element), recent: list.New()}
}

// get returns what is known now; nil if nothing is.
func (c *cache) get(k key, now time.Time) *outcome {
	el := c.byKey[k]
	if el == nil {
		return nil
	}
	e := el.Value.(*entry)
	if !now.Before(e.until) {
		return nil
	}
	c.recent.MoveToFront(el)
	return e.outcome
}

// put remembers an outcome, if it is worth it, in place of the one before.
func (c *cache) put(k key, o *outcome, now time.Time) {
	e := &entry{key: k, outcome: o, until: o.meta.Expires, size: o.size() + len(k.name)}
	old := c.byKey[k]
	if o.err != nil && o.err.Temporary() {
		if !o.remember {
			return // and what was known of earlier failures stays
		}
		if old != nil && now.Sub(old.Value.(*entry).until) < maxFailure {
			e.failures = old.Value.(*entry).failures
		}
		e.until = now.Add(backOff(e.failures))
		e.failures++
	}
	if old != nil {
		c.remove(old)
	}
	if !now.Before(e.until) || e.size > c.bytes || c.entries <= 0 {
		return
	}
	c.byKey[k] = c.recent.PushFront(e)
	c.used += e.size
	for c.used > c.bytes || c.recent.Len() > c.entries {
		c.remove(c.recent.Back())
	}
}

func (c *cache) remove(el *list.Element) {
	e := el.Value.(*entry)
	c.recent.Remove(el)
	delete(c.byKey, e.key)
	c.used -= e.size
}

// backOff is how long a failure is remembered that had so many before it.
func backOff(failures int) time.Duration {
	return min(minFailure<<min(failures, 10), maxFailure)
}
