package embedded

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/penstock/penstock/store"
)

// kv.go: what filters keep. A write waits for no sync: a filter counts, and a count that a
// power cut sets back by a moment is right enough; what is written is safe soon after.

// kv is a store.KV.
type kv struct {
	e  *engine
	mu sync.Mutex // held while a value changes
	// used is how many octets spaces have, as far as they were asked for; guarded by mu.
	used  map[string]int64
	swept map[string]*swept // by space; guarded by mu
}

// swept is what is known of the sweeps of a space that was full.
type swept struct {
	busy   bool // one is under way
	values int  // that the last one saw
	credit int  // values that the next one may look at
}

// sweepCredit is how many values may be looked at for each change that finds no room. A space
// that stays full is swept now and then, not each time: whoever fills it, who may be a stranger
// that sends mail, does not slow down all filters.
const sweepCredit = 256

func newKV(e *engine) *kv {
	return &kv{e: e, used: make(map[string]int64), swept: make(map[string]*swept)}
}

// forget makes sizes be counted again.
func (s *kv) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.used)
}

func encodeValue(value []byte, expires time.Time) []byte {
	e := &encoder{}
	e.time(expires)
	return append(e.b, value...)
}

// decodeValue returns a value that did not run out, or ErrNotFound.
func (s *kv) decodeValue(record []byte) ([]byte, time.Time, error) {
	d := &decoder{b: record}
	expires := d.time()
	if d.err != nil {
		return nil, expires, broken("value", d.err)
	}
	if !expires.IsZero() && !s.e.o.Now().Before(expires) {
		return nil, expires, store.ErrNotFound
	}
	return d.b, expires, nil
}

// Get implements store.KV.
func (s *kv) Get(ctx context.Context, space, key string) ([]byte, error) {
	value, _, err := s.get(space, key)
	return value, err
}

func (s *kv) get(space, key string) ([]byte, time.Time, error) {
	record, err := s.e.get(nameKey(kindKV, space, key))
	if err != nil {
		return nil, time.Time{}, err
	}
	return s.decodeValue(record)
}

// Set implements store.KV.
func (s *kv) Set(ctx context.Context, space, key string, value []byte, expires time.Time, quota int64) error {
	return s.change(ctx, space, func() error { return s.set(ctx, space, key, value, expires, quota) })
}

// change calls f with mu held, and again if it found no room and something that ran out may
// have made some.
func (s *kv) change(ctx context.Context, space string, f func() error) error {
	w, err := s.tryChange(space, f)
	if w == nil {
		return err
	}
	values, err := s.sweepBelow(ctx, nameKey(kindKV, space, ""))
	s.mu.Lock()
	defer s.mu.Unlock()
	w.busy, w.values = false, values
	if err != nil {
		return err
	}
	return f()
}

// tryChange calls f with mu held. If the space is full and may be swept, it returns what must
// be told of that.
func (s *kv) tryChange(space string, f func() error) (*swept, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := f()
	if err != errFull {
		return nil, err
	}
	w := s.swept[space]
	if w == nil {
		w = &swept{}
		s.swept[space] = w
	}
	if w.credit += sweepCredit; w.busy || w.credit < w.values {
		return nil, err
	}
	w.busy, w.credit = true, 0
	return w, err
}

// errFull: the quota is reached.
var errFull = fmt.Errorf("%w: the quota is reached", store.ErrFull)

// set is called with mu held.
func (s *kv) set(ctx context.Context, space, key string, value []byte, expires time.Time, quota int64) error {
	if err := errors.Join(ctx.Err(), s.e.room()); err != nil {
		return err
	}
	k := nameKey(kindKV, space, key)
	old, err := s.size(k, key)
	if err != nil {
		return err
	}
	used, err := s.usage(ctx, space)
	if err != nil {
		return err
	}
	size := int64(len(key) + len(value))
	if quota > 0 && used-old+size > quota {
		return errFull
	}
	err = s.e.write(soon, len(k)+len(value)+64, doubt{}, func(b *pebble.Batch) error {
		return b.Set(k, seal(k, encodeValue(value, expires)), nil)
	}, nil)
	if err != nil {
		delete(s.used, space)
		return err
	}
	s.used[space] = used - old + size
	return nil
}

// size is what a key and its value have, whether they ran out or not.
func (s *kv) size(k []byte, key string) (int64, error) {
	record, err := s.e.get(k)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCorrupt) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	return recordSize(key, record), nil
}

func recordSize(key string, record []byte) int64 {
	d := &decoder{b: record}
	d.time()
	return int64(len(key) + len(d.b))
}

// usage is how much a space has. Called with mu held.
func (s *kv) usage(ctx context.Context, space string) (int64, error) {
	if n, ok := s.used[space]; ok {
		return n, nil
	}
	prefix := nameKey(kindKV, space, "")
	var n int64
	err := s.e.each(ctx, prefix, func(k, record []byte) bool {
		n += recordSize(string(k[len(prefix):]), record)
		return true
	})
	if err == nil {
		s.used[space] = n
	}
	return n, err
}

// sweepBelow removes what ran out, and returns how many values there were. Nobody waits for it
// but a moment.
func (s *kv) sweepBelow(ctx context.Context, prefix []byte) (values int, err error) {
	var keys [][]byte
	err = s.e.each(ctx, prefix, func(k, record []byte) bool {
		values++
		if _, _, err := s.decodeValue(record); errors.Is(err, store.ErrNotFound) {
			keys = append(keys, k)
		}
		return true
	})
	for some := range slices.Chunk(keys, sweepCredit) {
		err = errors.Join(err, ctx.Err())
		if err != nil {
			break
		}
		err = s.removeOver(some)
	}
	return values, err
}

// removeOver removes those of keys whose values ran out and were not set again meanwhile.
func (s *kv) removeOver(keys [][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var over [][]byte
	sizes := make(map[string]int64)
	for _, k := range keys {
		record, err := s.e.get(k)
		if errors.Is(err, store.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if _, _, err := s.decodeValue(record); !errors.Is(err, store.ErrNotFound) {
			continue
		}
		d := &decoder{b: k[1:]}
		space := d.text()
		sizes[space] += recordSize(string(d.b), record)
		over = append(over, k)
	}
	if err := s.e.remove(over...); err != nil {
		clear(s.used)
		return err
	}
	for space, size := range sizes {
		s.shrink(space, size)
	}
	return nil
}

// shrink notes that a space has less. Called with mu held.
func (s *kv) shrink(space string, size int64) {
	if used, ok := s.used[space]; ok {
		s.used[space] = used - size
	}
}

// sweep removes what ran out in all spaces.
func (s *kv) sweep(ctx context.Context) {
	if _, err := s.sweepBelow(ctx, []byte{kindKV}); err != nil && ctx.Err() == nil {
		s.e.o.Log.Warn("store: sweep values that ran out", "err", err)
	}
}

// Delete implements store.KV.
func (s *kv) Delete(ctx context.Context, space, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	k := nameKey(kindKV, space, key)
	old, err := s.size(k, key)
	if err != nil {
		return err
	}
	err = s.e.write(soon, 64, doubt{}, func(b *pebble.Batch) error { return b.Delete(k, nil) }, nil)
	if err != nil {
		delete(s.used, space)
		return err
	}
	s.shrink(space, old)
	return nil
}

// Add implements store.KV.
func (s *kv) Add(ctx context.Context, space, key string, delta int64, expires time.Time, quota int64) (sum int64, err error) {
	err = s.change(ctx, space, func() error {
		sum, err = s.add(ctx, space, key, delta, expires, quota)
		return err
	})
	return sum, err
}

// add is called with mu held.
func (s *kv) add(ctx context.Context, space, key string, delta int64, expires time.Time, quota int64) (int64, error) {
	value, until, err := s.get(space, key)
	var n int64
	switch {
	case errors.Is(err, store.ErrNotFound):
		until = expires
	case err != nil:
		return 0, err
	default:
		if n, err = strconv.ParseInt(string(value), 10, 64); err != nil {
			return 0, store.ErrConflict
		}
	}
	if delta > 0 && n > math.MaxInt64-delta || delta < 0 && n < math.MinInt64-delta {
		return 0, store.ErrConflict
	}
	n += delta
	return n, s.set(ctx, space, key, strconv.AppendInt(nil, n, 10), until, quota)
}

// Swap implements store.KV.
func (s *kv) Swap(ctx context.Context, space, key string, old, value []byte, expires time.Time, quota int64) (swapped bool, err error) {
	err = s.change(ctx, space, func() error {
		swapped, err = s.swap(ctx, space, key, old, value, expires, quota)
		return err
	})
	return swapped, err
}

// swap is called with mu held.
func (s *kv) swap(ctx context.Context, space, key string, old, value []byte, expires time.Time, quota int64) (bool, error) {
	now, _, err := s.get(space, key)
	there := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	if there != (old != nil) || there && !bytes.Equal(now, old) {
		return false, nil
	}
	if err := s.set(ctx, space, key, value, expires, quota); err != nil {
		return false, err
	}
	return true, nil
}

// Each implements store.KV.
func (s *kv) Each(ctx context.Context, yield func(space, key string, value []byte, expires time.Time) bool) error {
	return s.e.each(ctx, []byte{kindKV}, func(k, record []byte) bool {
		d := &decoder{b: k[1:]}
		space := d.text()
		value, expires, err := s.decodeValue(record)
		if d.err != nil || err != nil {
			return true
		}
		return yield(space, string(d.b), value, expires)
	})
}

// Drop implements store.KV.
func (s *kv) Drop(ctx context.Context, space string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, space)
	var keys [][]byte
	err := s.e.each(ctx, nameKey(kindKV, space, ""), func(k, _ []byte) bool {
		keys = append(keys, k)
		return true
	})
	if err != nil {
		return err
	}
	return s.e.remove(keys...)
}
