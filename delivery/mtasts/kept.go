package mtasts

import (
	"container/list"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// kept.go: policies where they outlive this process, or at least its memory of domains.

// Store keeps policies, for all nodes that share it. Its methods are safe for concurrent use.
type Store interface {
	// Get returns what is kept for a domain, and whether anything is. An error means that
	// this is not known.
	Get(ctx context.Context, domain string) (Stored, bool, error)
	// Put keeps a policy in place of what was kept for its domain.
	Put(ctx context.Context, s Stored) error
	// Delete forgets a domain. It is no error if nothing is kept.
	Delete(ctx context.Context, domain string) error
	// Each calls yield with those whose Refresh is before a time, until it returns false.
	Each(ctx context.Context, before time.Time, yield func(Stored) bool) error
}

// Stored is a policy as it is stored.
type Stored struct {
	Domain string
	Data   []byte // JSON
	// Fetched is when the policy was fetched, Refresh when to look at it again, and Expires
	// when it does not hold any more.
	Fetched, Refresh, Expires time.Time
}

// data is Stored.Data.
type data struct {
	ID     string    `json:"id"`
	Used   time.Time `json:"used"` // by about a day
	Policy string    `json:"policy"`
}

// kept is a policy that is or was kept.
type kept struct {
	policy *Policy
	used   time.Time
}

// valid tells whether there is a policy that holds.
func (k kept) valid(now time.Time) bool { return k.policy != nil && now.Before(k.policy.Expires) }

// encode returns what is stored for a domain.
func (k kept) encode(domain string, refresh time.Time) Stored {
	p := k.policy
	b, err := json.Marshal(data{p.ID, k.used.UTC(), strings.Join(p.Text, "\n")})
	if err != nil {
		panic("mtasts: strings and times that are no JSON: " + err.Error())
	}
	return Stored{Domain: domain, Data: b, Fetched: p.Fetched, Refresh: refresh, Expires: p.Expires}
}

// decode reads what is stored.
func decode(s Stored) (kept, error) {
	var d data
	if err := json.Unmarshal(s.Data, &d); err != nil {
		return kept{}, fmt.Errorf("mtasts: what is stored for %s: %w", s.Domain, err)
	}
	p, err := ParsePolicy([]byte(d.Policy))
	if err != nil {
		return kept{}, fmt.Errorf("mtasts: what is stored for %s: %w", s.Domain, err)
	}
	p.ID, p.Fetched, p.Expires = d.ID, s.Fetched, s.Expires
	return kept{&p, d.Used}, nil
}

// leastRefresh keeps policies that hold for minutes from being fetched for ever.
const leastRefresh = time.Hour

// refreshAt is when to look at a policy again: in its first half, and nodes and domains not
// all at the same time.
func (c *Cache) refreshAt(p *Policy) time.Time {
	d := min(c.opt.Refresh, p.MaxAge/2)
	d -= time.Duration(rand.Float64() * float64(d) / 4)
	return p.Fetched.Add(max(d, leastRefresh))
}

// memory is a Store for those who have none. Beyond its size it forgets what was put or read
// longest ago.
type memory struct {
	max int

	mu     sync.Mutex
	used   int                      // guarded by mu
	places map[string]*list.Element // of Stored; guarded by mu
	recent list.List                // the latest first; guarded by mu
}

func newMemory(size int) *memory { return &memory{max: size, places: make(map[string]*list.Element)} }

// perEntry is about what an entry of a map and a list takes beside its octets.
const perEntry = 256

func (s Stored) size() int { return perEntry + len(s.Domain) + len(s.Data) }

// Get implements Store.
func (m *memory) Get(_ context.Context, domain string) (Stored, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.places[domain]
	if e == nil {
		return Stored{}, false, nil
	}
	m.recent.MoveToFront(e)
	return e.Value.(Stored), true, nil
}

// Put implements Store.
func (m *memory) Put(_ context.Context, s Stored) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(m.places[s.Domain])
	m.places[s.Domain] = m.recent.PushFront(s)
	m.used += s.size()
	for m.used > m.max {
		m.drop(m.recent.Back())
	}
	return nil
}

// drop is called with mu held. It may be given nil.
func (m *memory) drop(e *list.Element) {
	if e == nil {
		return
	}
	s := m.recent.Remove(e).(Stored)
	delete(m.places, s.Domain)
	m.used -= s.size()
}

// Delete implements Store.
func (m *memory) Delete(_ context.Context, domain string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(m.places[domain])
	return nil
}

// Each implements Store.
func (m *memory) Each(_ context.Context, before time.Time, yield func(Stored) bool) error {
	m.mu.Lock()
	var due []Stored
	for e := m.recent.Front(); e != nil; e = e.Next() {
		if s := e.Value.(Stored); s.Refresh.Before(before) {
			due = append(due, s)
		}
	}
	m.mu.Unlock()
	for _, s := range due {
		if !yield(s) {
			break
		}
	}
	return nil
}
