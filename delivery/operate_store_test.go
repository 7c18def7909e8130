package delivery

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// TestOperateOnStore: the operations and the explanation on a store as it is used, with leases
// of another node.
func TestOperateOnStore(t *testing.T) {
	st, err := embedded.Open(t.TempDir(), embedded.Options{MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	q := st.Queue()
	e := operated(t, q, nowhere)
	add := func(due time.Time) store.ID {
		t.Helper()
		m := twoRecipients(t, "alice@example.net")
		m.Recipients[0].Due = due
		in, err := q.Begin(t.Context(), &m)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Abort()
		if _, err := in.Write([]byte("Subject: x\r\n\r\nhello\r\n")); err != nil {
			t.Fatal(err)
		}
		id, err := in.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	leased := add(noon.Add(-time.Minute))
	got, err := q.Lease(t.Context(), mailstore, noon, 1, time.Minute)
	if err != nil || len(got) != 1 {
		t.Fatalf("%v %v", got, err)
	}
	free := add(noon.Add(time.Hour))

	x, err := e.Why(t.Context(), leased)
	if err != nil || x.Recipients[0].Kind != ReasonUnderWay || x.Recipients[1].Kind != ReasonScheduled {
		t.Errorf("%+v %v", x.Recipients, err)
	}
	all := func(f store.Filter) Choice { return Choice{Filter: &f} }
	done, err := e.Bounce(t.Context(), all(store.Filter{Domain: "example.org"}), "moved")
	if err != nil || len(done.Messages) != 1 || done.Messages[0] != free || done.Reports != 1 || len(done.Problems) != 1 || !errors.Is(done.Problems[0].Err, store.ErrLeased) {
		t.Errorf("bounce: %+v %v", done, err)
	}
	done, err = e.Retry(t.Context(), all(store.Filter{Sender: "alice@example.net"}))
	if err != nil || done.Recipients != 2 || len(done.Problems) > 0 {
		t.Errorf("retry of what others have not: %+v %v", done, err)
	}
	if err := q.Return(t.Context(), got[0]); err != nil {
		t.Fatal(err)
	}
	for _, op := range []struct {
		name string
		do   func() (Done, error)
		want int
	}{
		{"hold", func() (Done, error) { return e.Hold(t.Context(), all(store.Filter{Sender: "alice@example.net"})) }, 3},
		{"release", func() (Done, error) {
			return e.Release(t.Context(), all(store.Filter{States: []store.State{store.Held}}))
		}, 3},
		{"drop", func() (Done, error) { return e.Drop(t.Context(), Choice{IDs: []store.ID{leased, free}}) }, 3},
	} {
		if done, err := op.do(); err != nil || done.Recipients != op.want || len(done.Problems) > 0 {
			t.Errorf("%s: %+v %v", op.name, done, err)
		}
	}
	var reports []string
	err = q.List(t.Context(), store.Filter{}, "", func(m *store.Message) bool {
		reports = append(reports, m.Sender.Path.String()+" "+string(m.Origin.ReportOf)+" "+m.Recipients[0].Path.String())
		return true
	})
	if want := " " + string(free) + " alice@example.net"; err != nil || strings.Join(reports, ",") != want {
		t.Errorf("left: %q %v, want %q", reports, err, want)
	}
}
