package embedded

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/store"
)

// TestFullSpace: changes of a space that is full, and stays so, do not look at all that is in
// it each time. Values are read one by one, so what is allocated tells. What runs out makes
// room all the same.
func TestFullSpace(t *testing.T) {
	var late atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	s, err := Open(t.TempDir(), Options{Now: now})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const values, quota = 8000, 8000 * 10
	ctx, kv := t.Context(), s.KV()
	set := func(i int) error {
		return kv.Set(ctx, "s", fmt.Sprintf("%09d", i), []byte("x"), now().Add(time.Hour), quota)
	}
	for i := range values {
		if err := set(i); err != nil {
			t.Fatal(i, err)
		}
	}
	for name, f := range map[string]func(){
		"set": func() {
			if err := set(values); !errors.Is(err, store.ErrFull) {
				t.Errorf("set: got %v", err)
			}
		},
		"delete and set": func() {
			if err := errors.Join(kv.Delete(ctx, "s", fmt.Sprintf("%09d", 7)), set(7)); err != nil {
				t.Error(err)
			}
		},
	} {
		if n := testing.AllocsPerRun(100, f); n > values {
			t.Errorf("%s: %.0f allocations, with %d values there", name, n, values)
		}
	}
	late.Store(int64(time.Hour))
	tries := 1
	for set(values) != nil && tries < values {
		tries++
	}
	if most := values/sweepCredit + 1; tries > most {
		t.Errorf("what ran out made room after %d tries, want %d at most", tries, most)
	}
	if err := kv.Set(ctx, "s", "k", make([]byte, quota-11), time.Time{}, quota); err != nil {
		t.Errorf("all of them ran out, but one: %v", err)
	}
}
