package admin_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/admin/api"
)

// fakeQueue has messages 1 to n. Its fields are set before it is asked.
type fakeQueue struct {
	n     int
	long  int // octets in each message
	at    int // the list fails here; 0 is never
	err   error
	got   api.QueueFilter
	acted api.QueueAction
}

func (q *fakeQueue) id(i int) string { return fmt.Sprintf("%026d", i) }

func (q *fakeQueue) List(_ context.Context, f api.QueueFilter, after string, yield func(api.QueueMessage) bool) error {
	q.got = f
	for i := 1; i <= q.n; i++ {
		if i == q.at {
			return q.err
		}
		if q.id(i) > after && !yield(api.QueueMessage{ID: q.id(i), Sender: "<>", Reason: strings.Repeat("x", q.long)}) {
			return nil
		}
	}
	return nil
}

func (q *fakeQueue) Counts(context.Context) (api.QueueCounts, error) {
	return api.QueueCounts{Messages: int64(q.n)}, q.err
}

func (q *fakeQueue) Show(_ context.Context, id string) (api.QueueMessage, error) {
	return api.QueueMessage{ID: id}, q.err
}

func (q *fakeQueue) Why(_ context.Context, id string) (api.QueueExplanation, error) {
	return api.QueueExplanation{Message: api.QueueMessage{ID: id}}, q.err
}

func (q *fakeQueue) Act(_ context.Context, a api.QueueAction) (api.QueueDone, error) {
	q.acted = a
	return api.QueueDone{Messages: append([]string{}, a.IDs...)}, q.err
}

// TestQueueRequests: who may, and what makes no sense.
func TestQueueRequests(t *testing.T) {
	q := &fakeQueue{n: 3}
	r := start(t, &fake{}, func(o *admin.Options) { o.Queue = q })
	many := `"` + strings.Repeat(`x","`, api.QueueActionMax) + `x"`
	for _, tt := range []struct {
		method, path, body string
		role               api.Role
		status             int
	}{
		{"GET", "/v1/queue", "", "", 401},
		{"GET", "/v1/queue", "", api.RoleRead, 200},
		{"GET", "/v1/queue", "", api.RoleUpload, 200},
		{"POST", "/v1/queue", "", api.RoleAdmin, 405},
		{"GET", "/v1/queue?state=held&state=waiting&domain=example.org&sender=%3C%3E&before=2026-03-01T12:00:00Z&limit=1000&after=x", "", api.RoleRead, 200},
		{"GET", "/v1/queue?state=hold", "", api.RoleRead, 400},
		{"GET", "/v1/queue?domian=example.org", "", api.RoleRead, 400}, // misspelt: it would list all
		{"GET", "/v1/queue?domain=a&domain=b", "", api.RoleRead, 400},
		{"GET", "/v1/queue?before=yesterday", "", api.RoleRead, 400},
		{"GET", "/v1/queue?limit=0", "", api.RoleRead, 400},
		{"GET", "/v1/queue?limit=1001", "", api.RoleRead, 400},
		{"GET", "/v1/queue?a=%zz", "", api.RoleRead, 400},
		{"GET", "/v1/queue/counts", "", api.RoleRead, 200},
		{"GET", "/v1/queue/x", "", api.RoleRead, 200},
		{"GET", "/v1/queue/x/why", "", api.RoleRead, 200},
		{"DELETE", "/v1/queue/x", "", api.RoleAdmin, 405},
		{"GET", "/v1/queue/actions", "", api.RoleOperate, 405},
		{"POST", "/v1/queue/actions", `{"verb": "hold", "ids": ["x"]}`, api.RoleRead, 403},
		{"POST", "/v1/queue/actions", `{"verb": "hold", "ids": ["x"]}`, api.RoleUpload, 403},
		{"POST", "/v1/queue/actions", `{"verb": "hold", "ids": ["x"]}`, api.RoleOperate, 200},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "filter": {}}`, api.RoleAdmin, 200},
		{"POST", "/v1/queue/actions", `{"verb": "bounce", "ids": ["x"], "text": "no"}`, api.RoleOperate, 200},
		{"POST", "/v1/queue/actions", `{"verb": "bounce", "ids": ["x"]}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "ids": ["x"], "text": "no"}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "delete", "ids": ["x"]}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "drop"}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "ids": []}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "filter": null}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "ids": ["x"], "filter": {"domain": "example.org"}}`, api.RoleOperate, 200},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "ids": ["x"], "filter": {"sender": "<>"}}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "filter": {"domian": "example.org"}}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "filter": {"state": ["hold"]}}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "drop", "filter": {}, "limit": 1001}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "hold", "ids": [` + many + `]}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `{"verb": "hold", "ids": ["x"]} {}`, api.RoleOperate, 400},
		{"POST", "/v1/queue/actions", `"` + strings.Repeat("x", 100<<10) + `"`, api.RoleOperate, 413},
		{"POST", "/v1/queue/actions", "", api.RoleOperate, 400},
	} {
		if resp, body := r.ask(tt.method, tt.path, tt.role, strings.NewReader(tt.body)); resp.StatusCode != tt.status || !json.Valid([]byte(body)) {
			t.Errorf("%s %s %.100s as %s: %d, want %d\n%s", tt.method, tt.path, tt.body, tt.role, resp.StatusCode, tt.status, body)
		}
	}
	if text := r.log.String(); !strings.Contains(text, "queue changed") || !strings.Contains(text, "token=the-operate") || !strings.Contains(text, "verb=bounce") {
		t.Errorf("the log does not say who did what:\n%s", text)
	}
}

// TestWithoutStore: there is no queue.
func TestWithoutStore(t *testing.T) {
	r := start(t, &fake{}, nil)
	for _, path := range []string{"/v1/queue", "/v1/queue/counts", "/v1/queue/x", "/v1/queue/x/why"} {
		if resp, body := r.ask("GET", path, api.RoleRead, nil); resp.StatusCode != 409 || !strings.Contains(body, "no store is configured") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
}

// TestQueueClient: client and server understand each other.
func TestQueueClient(t *testing.T) {
	q := &fakeQueue{n: 250}
	r := start(t, &fake{}, func(o *admin.Options) { o.Queue = q })
	c := r.client(api.RoleOperate)
	f := api.QueueFilter{States: []api.QueueState{api.QueueHeld, api.QueueWaiting}, Destination: "backend:a b&c", Domain: "example.org",
		SenderDomain: "example.net", Sender: "a+b@example.net", Before: time.Unix(1000, 5000).UTC(), Since: time.Unix(500, 0).UTC()}
	var sizes []int
	for after := ""; ; {
		p, err := c.Queue(t.Context(), f, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(p.Messages))
		if after = p.Next; after == "" {
			break
		}
	}
	if fmt.Sprint(sizes) != "[100 100 50]" || fmt.Sprint(q.got) != fmt.Sprint(f) {
		t.Errorf("pages of %v, the filter is %+v", sizes, q.got)
	}
	if p, err := c.Queue(t.Context(), f, q.id(250), 0); err != nil || p.Messages == nil || len(p.Messages) != 0 {
		t.Errorf("an empty list: %+v %v", p, err)
	}
	if n, err := c.QueueCounts(t.Context()); err != nil || n.Messages != 250 {
		t.Errorf("%+v %v", n, err)
	}
	if m, err := c.QueueMessage(t.Context(), "a/b"); err != nil || m.ID != "a/b" {
		t.Errorf("%+v %v", m, err)
	}
	if x, err := c.QueueWhy(t.Context(), "x"); err != nil || x.Message.ID != "x" {
		t.Errorf("%+v %v", x, err)
	}
	done, err := c.QueueAct(t.Context(), api.QueueAction{Verb: api.QueueHold, Filter: &f, After: "x", Limit: 7, Dry: true})
	if err != nil || done.Verb != api.QueueHold || !done.Dry || fmt.Sprint(*q.acted.Filter) != fmt.Sprint(f) || q.acted.Limit != 7 || q.acted.After != "x" {
		t.Errorf("%+v %v, %+v", done, err, q.acted)
	}
	q.err = &api.Error{Code: api.CodeNotFound, Message: "m"}
	if _, err := c.QueueMessage(t.Context(), "x"); err == nil || err.Error() != "m" {
		t.Errorf("an error: %v", err)
	}
}

// TestLongList: a list ends after so many octets, and an error in the middle of one is told.
func TestLongList(t *testing.T) {
	q := &fakeQueue{n: 100, long: 100 << 10}
	r := start(t, &fake{}, func(o *admin.Options) { o.Queue = q })
	c := r.client(api.RoleRead)
	p, err := c.Queue(t.Context(), api.QueueFilter{}, "", 1000)
	if n := len(p.Messages); err != nil || n < 40 || n > 43 || p.Next != q.id(n) {
		t.Errorf("%d messages, next %q, %v", n, p.Next, err)
	}
	q.at, q.err = 10, errors.New("open /secret: no")
	p, err = c.Queue(t.Context(), api.QueueFilter{}, "", 1000)
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeInternal || len(p.Messages) != 9 || p.Next != q.id(9) || strings.Contains(err.Error(), "secret") {
		t.Errorf("%d messages, next %q, %v", len(p.Messages), p.Next, err)
	}
	if !strings.Contains(r.log.String(), "secret") {
		t.Error("the log does not say why the list ended")
	}
	q.at, q.long = 2, 1
	if p, err = c.Queue(t.Context(), api.QueueFilter{}, "", 1000); err == nil || len(p.Messages) > 0 {
		t.Errorf("an error before anything was sent: %+v %v", p, err)
	}
}
