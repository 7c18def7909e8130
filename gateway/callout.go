package gateway

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// callout.go asks the backend whether a recipient exists, and remembers the answer.
//
// The question is a transaction of the null sender that ends after RCPT. A yes is
// remembered for long, a no for a short time, since a mailbox may be made any minute. That
// the backend could not say is remembered for seconds: it spares a backend in trouble the
// same question from everybody. Where it is told to, an old yes counts while the backend
// cannot be asked; a no never does, nor does silence become one.
//
// Yes and no have memory of their own, so that whoever guesses addresses fills only the
// second. A question that is being asked already is waited for and not asked again.
//
// Wiring: one per backend and CalloutOptions, see known.go; check is asked at RCPT after the
// filters. Its error is the answer to the client. ask is
// askRelay(relay); tests give their own.

// askFunc asks whether a backend takes mail of the sender for the recipient: nil is yes,
// a permanent *smtp.Reply is no, and any other error says that it could not be found out.
type askFunc func(ctx context.Context, backend string, sender smtp.Sender, to smtp.Recipient) error

// askRelay asks a backend by beginning a transaction that is never finished. Only what is
// said about the recipient is a no: a backend that refuses the null sender or us says
// nothing about who lives there, and its refusal becomes a temporary one.
func askRelay(relay Relay) askFunc {
	return func(ctx context.Context, backend string, sender smtp.Sender, to smtp.Recipient) error {
		tx, err := relay.Begin(ctx, backend, sender, smtp.Forwarded{})
		if err != nil {
			return notPermanent(err)
		}
		defer tx.Abort()
		err = tx.Rcpt(ctx, to)
		if r, ok := errors.AsType[*smtp.Reply](err); ok && aboutRecipient(r) {
			return err
		}
		return notPermanent(err)
	}
}

// aboutRecipient tells whether a refusal is about the recipient. What the first RCPT gets
// may be the answer to MAIL, so the code has to tell: of the address or the mailbox (RFC
// 3463, Sections 3.2 and 3.3), but not of the sender's address, or no code and a reply
// that RCPT alone has a use for (RFC 5321, Section 4.3.2). 5.6.7 is RFC 6531, Section 3.5,
// and 550 5.4.1 is how Exchange says that there is no such recipient.
func aboutRecipient(r *smtp.Reply) bool {
	if !r.Permanent() {
		return false
	}
	switch r.Enh {
	case smtp.Enhanced{}:
		return r.Code == 550 || r.Code == 551 || r.Code == 553
	case smtp.Enhanced{5, 1, 7}, smtp.Enhanced{5, 1, 8}:
		return false
	case smtp.Enhanced{5, 6, 7}:
		return true
	case smtp.Enhanced{5, 4, 1}:
		return r.Code == 550
	}
	return r.Enh[0] == 5 && (r.Enh[1] == 1 || r.Enh[1] == 2)
}

// notPermanent makes a permanent refusal a temporary one.
func notPermanent(err error) error {
	if r, ok := errors.AsType[*smtp.Reply](err); ok && r.Permanent() {
		return errCallout(err)
	}
	return err
}

// errCallout is temporary: nobody said that the recipient does not exist.
func errCallout(err error) error {
	return smtp.Refuse(451, smtp.Enhanced{4, 4, 3}, "the recipient cannot be verified now, try again later").Because(err)
}

// calloutSettings are the settings of a callout. The zero value of each field means its
// default.
type calloutSettings struct {
	// positive, negative and temporary are how long a yes, a no and a failure to ask are
	// remembered. Defaults 1 hour, 5 minutes and 5 seconds.
	positive, negative, temporary time.Duration
	// stale is how much longer a yes counts while the backend cannot be asked. Default: not
	// at all.
	stale time.Duration
	// timeout is for one question. Default 10 s.
	timeout time.Duration
	// entries is how many recipients are remembered that exist, and half as many of the
	// others. Default 50000, which take 10 to 20 MiB.
	entries int
}

// validate returns every problem, joined.
func (s calloutSettings) validate() error {
	var errs []error
	for name, d := range map[string]time.Duration{"positive": s.positive, "negative": s.negative, "temporary": s.temporary, "stale": s.stale, "timeout": s.timeout} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("callout: %s: must not be negative", name))
		}
	}
	if s.temporary > time.Minute {
		errs = append(errs, errors.New("callout: temporary: failures are remembered for a minute at most"))
	}
	if s.entries < 0 {
		errs = append(errs, errors.New("callout: entries: must not be negative"))
	}
	return errors.Join(errs...)
}

func (s calloutSettings) withDefaults() calloutSettings {
	def := func(p *time.Duration, d time.Duration) {
		if *p == 0 {
			*p = d
		}
	}
	def(&s.positive, time.Hour)
	def(&s.negative, 5*time.Minute)
	def(&s.temporary, 5*time.Second)
	def(&s.timeout, 10*time.Second)
	if s.entries == 0 {
		s.entries = 50_000
	}
	return s
}

// callout knows which recipients exist. It is safe for concurrent use.
type callout struct {
	calloutSettings
	ask askFunc
	now func() time.Time

	hits, asked, failed, stales atomic.Int64 // for metrics

	mu      sync.Mutex // guards what follows
	exist   *lru
	others  *lru // that do not, or nobody could say
	running map[calloutKey]*question
}

type calloutKey struct {
	backend string
	to      smtp.Path
}

// answer is what is remembered of a recipient.
type answer struct {
	err   error // nil: it exists
	until time.Time
	// staleUntil is when a yes ends to count though nobody could be asked.
	staleUntil time.Time
}

// question is one that is being asked. done is closed when err is set.
type question struct {
	done chan struct{}
	err  error
	// given up: whoever asked has left, and its error is about itself.
	givenUp bool
}

// newCallout returns a callout that has asked nothing yet. The settings are valid.
func newCallout(s calloutSettings, ask askFunc, now func() time.Time) *callout {
	s = s.withDefaults()
	return &callout{calloutSettings: s, ask: ask, now: now, exist: newLRU(s.entries), others: newLRU(max(s.entries/2, 1)),
		running: make(map[calloutKey]*question)}
}

// check returns nil if the recipient exists, the backend's own reply if it does not, and
// another error, a temporary one, if that could not be found out.
func (c *callout) check(ctx context.Context, backend string, to smtp.Path) error {
	key := calloutKey{backend, to}
	for {
		a, q, mine := c.look(key)
		switch {
		case a != nil:
			c.hits.Add(1)
			return a.err
		case mine:
			return c.put(ctx, key, q)
		}
		select {
		case <-q.done:
			if !q.givenUp {
				return q.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// look returns the answer that is known, or the question that is being asked; mine if the
// caller has to ask it.
func (c *callout) look(key calloutKey) (a *answer, q *question, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for _, l := range []*lru{c.exist, c.others} {
		if a := l.get(key); a != nil && now.Before(a.until) {
			return a, nil, false
		}
	}
	if q := c.running[key]; q != nil {
		return nil, q, false
	}
	q = &question{done: make(chan struct{}), givenUp: true}
	c.running[key] = q
	return nil, q, true
}

// put asks the question and remembers the answer.
func (c *callout) put(ctx context.Context, key calloutKey, q *question) error {
	defer func() { // also when ask panics: others wait
		c.mu.Lock()
		delete(c.running, key)
		c.mu.Unlock()
		close(q.done)
	}()
	c.asked.Add(1)
	limited, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err := c.ask(limited, key.backend, smtp.Sender{UTF8: key.to.NeedsUTF8()}, smtp.Recipient{Path: key.to})
	if err != nil && ctx.Err() != nil {
		return err
	}
	q.err, q.givenUp = c.learn(key, err), false
	return q.err
}

// learn remembers what came back and returns what to answer.
func (c *callout) learn(key calloutKey, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if err == nil {
		c.others.remove(key)
		until := now.Add(c.positive)
		c.exist.add(key, &answer{until: until, staleUntil: until.Add(c.stale)})
		return nil
	}
	if r, ok := errors.AsType[*smtp.Reply](err); ok && r.Permanent() {
		c.exist.remove(key)
		c.others.add(key, &answer{err: err, until: now.Add(c.negative)})
		return err
	}
	c.failed.Add(1)
	if old := c.exist.get(key); old != nil && now.Before(old.staleUntil) {
		c.stales.Add(1)
		c.exist.add(key, &answer{until: now.Add(c.temporary), staleUntil: old.staleUntil})
		return nil
	}
	if _, ok := errors.AsType[*smtp.Reply](err); !ok {
		err = errCallout(err)
	}
	c.others.add(key, &answer{err: err, until: now.Add(c.temporary)})
	return err
}

// lru is a map of answers that forgets what was not asked for the longest time. It is
// not safe for concurrent use.
type lru struct {
	most  int
	order *list.List // of *lruEntry, the latest in front
	byKey map[calloutKey]*list.Element
}

type lruEntry struct {
	key calloutKey
	*answer
}

func newLRU(most int) *lru {
	return &lru{most: most, order: list.New(), byKey: make(map[calloutKey]*list.Element)}
}

func (l *lru) get(key calloutKey) *answer {
	e := l.byKey[key]
	if e == nil {
		return nil
	}
	l.order.MoveToFront(e)
	return e.Value.(*lruEntry).answer
}

func (l *lru) add(key calloutKey, a *answer) {
	if e := l.byKey[key]; e != nil {
		e.Value.(*lruEntry).answer = a
		l.order.MoveToFront(e)
		return
	}
	if l.order.Len() >= l.most {
		l.remove(l.order.Back().Value.(*lruEntry).key)
	}
	l.byKey[key] = l.order.PushFront(&lruEntry{key, a})
}

func (l *lru) remove(key calloutKey) {
	if e := l.byKey[key]; e != nil {
		l.order.Remove(e)
		delete(l.byKey, key)
	}
}
