package errand

import (
	"context"
	"errors"
	"strconv"
	"testing"
	"time"

	"github.com/penstock/penstock/store"
)

// A value for which there is no room costs no more than one for which there is, however many
// there are: nobody may have all wait for a look at all of them.
func TestMemoryFull(t *testing.T) {
	var m Memory
	const n = 100_000
	ctx, expires, quota := context.Background(), time.Now().Add(time.Hour), sizeOf("000000", []byte("v"))*n
	for i := range n {
		if err := m.Set(ctx, "a", strconv.Itoa(100_000+i), []byte("v"), expires, quota); err != nil {
			t.Fatal(err)
		}
	}
	from := time.Now()
	for range 5000 {
		if err := m.Set(ctx, "a", "another", []byte("v"), expires, quota); !errors.Is(err, store.ErrFull) {
			t.Fatalf("got %v, want %v", err, store.ErrFull)
		}
	}
	if took := time.Since(from); took > 5*time.Second {
		t.Errorf("5000 values were refused in %v", took)
	}
}
