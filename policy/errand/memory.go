package errand

import (
	"bytes"
	"context"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/penstock/penstock/store"
)

// memory.go: values where there is no store. They are lost with the process.

// perValue is about what a value takes in memory beside its octets; it counts for the quota,
// so that many small values take no more than few large ones.
const perValue = 128

// Memory is Values in memory. The zero Memory is empty. Safe for concurrent use.
type Memory struct {
	mu     sync.Mutex
	spaces map[string]*space // guarded by mu
}

// space is the values of one name.
type space struct {
	values map[string]kept
	used   int64
	swept  time.Time // when values that are over were last looked for
}

// sweepEvery is how often all values of a full space are looked at: what filters keep may be
// of their clients' choice, who would have everybody wait for it.
const sweepEvery = time.Second

type kept struct {
	value   []byte
	expires time.Time
}

func (k kept) over(now time.Time) bool { return !k.expires.IsZero() && !now.Before(k.expires) }

func sizeOf(key string, value []byte) int64 { return int64(len(key)+len(value)) + perValue }

// Get implements Values.
func (m *Memory) Get(_ context.Context, name, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.find(name, key)
	if !ok {
		return nil, store.ErrNotFound
	}
	return slices.Clone(k.value), nil
}

// find is called with mu held.
func (m *Memory) find(name, key string) (kept, bool) {
	s := m.spaces[name]
	if s == nil {
		return kept{}, false
	}
	k, ok := s.values[key]
	if ok && k.over(time.Now()) {
		s.drop(key)
		return kept{}, false
	}
	return k, ok
}

func (s *space) drop(key string) {
	if k, ok := s.values[key]; ok {
		s.used -= sizeOf(key, k.value)
		delete(s.values, key)
	}
}

// sweep drops what is over, if that was not looked for lately.
func (s *space) sweep(now time.Time) {
	if now.Sub(s.swept) < sweepEvery {
		return
	}
	s.swept = now
	for key, k := range s.values {
		if k.over(now) {
			s.drop(key)
		}
	}
}

// Set implements Values.
func (m *Memory) Set(_ context.Context, name, key string, value []byte, expires time.Time, quota int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.set(name, key, value, expires, quota)
}

// set is called with mu held.
func (m *Memory) set(name, key string, value []byte, expires time.Time, quota int64) error {
	if m.spaces == nil {
		m.spaces = make(map[string]*space)
	}
	s := m.spaces[name]
	if s == nil {
		s = &space{values: make(map[string]kept)}
		m.spaces[name] = s
	}
	size := sizeOf(key, value)
	left := func() int64 {
		old := int64(0)
		if k, ok := s.values[key]; ok {
			old = sizeOf(key, k.value)
		}
		return quota - s.used + old
	}
	if quota > 0 && size > left() {
		s.sweep(time.Now())
		if size > left() {
			return store.ErrFull
		}
	}
	s.drop(key)
	s.values[key] = kept{slices.Clone(value), expires}
	s.used += size
	return nil
}

// Delete implements Values.
func (m *Memory) Delete(_ context.Context, name, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.spaces[name]; s != nil {
		s.drop(key)
	}
	return nil
}

// Add implements Values.
func (m *Memory) Add(_ context.Context, name, key string, delta int64, expires time.Time, quota int64) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var n int64
	if k, ok := m.find(name, key); ok {
		var err error
		if n, err = strconv.ParseInt(string(k.value), 10, 64); err != nil {
			return 0, store.ErrConflict
		}
		expires = k.expires
	}
	if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		return 0, store.ErrConflict
	}
	n += delta
	return n, m.set(name, key, strconv.AppendInt(nil, n, 10), expires, quota)
}

// Swap implements Values.
func (m *Memory) Swap(_ context.Context, name, key string, old, value []byte, expires time.Time, quota int64) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.find(name, key)
	if ok != (old != nil) || ok && !bytes.Equal(k.value, old) {
		return false, nil
	}
	if err := m.set(name, key, value, expires, quota); err != nil {
		return false, err
	}
	return true, nil
}
