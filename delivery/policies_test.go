package delivery

import (
	"reflect"
	"testing"
	"time"

	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/store/embedded"
)

// TestPolicyStore: what is put is got, and "nothing" is told from "not known".
func TestPolicyStore(t *testing.T) {
	st, err := embedded.Open(t.TempDir(), embedded.Options{MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	s, ctx, now := PolicyStore(st.Policies()), t.Context(), time.Now().UTC().Round(time.Microsecond)
	if _, ok, err := s.Get(ctx, "example.com"); ok || err != nil {
		t.Errorf("nothing is kept: got %v, %v", ok, err)
	}
	want := mtasts.Stored{Domain: "example.com", Data: []byte("{}"), Fetched: now, Refresh: now.Add(time.Hour), Expires: now.Add(2 * time.Hour)}
	if err := s.Put(ctx, want); err != nil {
		t.Fatal(err)
	}
	if got, ok, err := s.Get(ctx, "example.com"); !reflect.DeepEqual(got, want) || !ok || err != nil {
		t.Errorf("got %+v, %v, %v, want %+v", got, ok, err, want)
	}
	for after, want := range map[time.Duration]int{time.Minute: 0, 2 * time.Hour: 1} {
		n := 0
		if err := s.Each(ctx, now.Add(after), func(mtasts.Stored) bool { n++; return true }); err != nil || n != want {
			t.Errorf("due after %v: got %d, %v, want %d", after, n, err, want)
		}
	}
	if err := s.Delete(ctx, "example.com"); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := s.Get(ctx, "example.com"); ok || err == nil {
		t.Errorf("a store that is closed: got %v, %v", ok, err)
	}
}
