package storetest

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/store"
)

// testMove exports a store and imports it into the same one after all was removed, twice.
func testMove(t *testing.T, e *Env) {
	ctx, s := context.Background(), e.Store
	q := s.Queue()
	m := full(t)
	m.Origin.Reason, m.Recipients[1].Destination = "\xff\x00", "\xfe"
	first := commit(t, q, m, "Subject: x\r\n\r\nhello\r\n")
	l := one(t, q, here, now)
	check(t, q.Finish(ctx, l, outcomes(l, later(now)), &store.Attempt{Time: now, Destination: here, Recipients: []int{0}, Reply: reply(451, "later")}))
	second := commit(t, q, mail(t, user(1)), strings.Repeat("x", 400_000))
	digest, err := s.Modules().Put(ctx, []byte("one"))
	check(t, err)
	_, err = s.Modules().Activate(ctx, "name", digest, "", "me")
	check(t, err)
	other, err := s.Modules().Put(ctx, []byte("two"))
	check(t, err)
	_, err = s.Modules().Activate(ctx, "name", other, "*", "you")
	check(t, err)
	check(t, s.Files().Write(ctx, "a/b", []byte("file")))
	check(t, s.KV().Set(ctx, "s", "\x00", []byte("v"), time.Time{}, 0))

	var b bytes.Buffer
	out, err := store.Export(ctx, s, &b)
	check(t, err)
	if want := (store.Moved{Messages: 2, Octets: 400_021, Modules: 2, Names: 1, Files: 1, Values: 1}); out != want {
		t.Errorf("export: got %+v, want %+v", out, want)
	}
	before := []*store.Message{get(t, q, first), get(t, q, second)}
	again, err := store.Import(ctx, s, bytes.NewReader(b.Bytes()))
	check(t, err)
	if again.Present != 6 || again.Messages+again.Files+again.Values != 0 {
		t.Errorf("import of what is there: got %+v", again)
	}
	for _, id := range []store.ID{first, second} {
		check(t, q.Update(ctx, id, func(m *store.Message) bool {
			for i := range m.Recipients {
				m.Recipients[i].State = store.Failed
			}
			return true
		}))
	}
	check(t, s.Modules().Remove(ctx, "name"))
	check(t, s.Files().Delete(ctx, "a/b"))
	check(t, s.KV().Drop(ctx, "s"))
	in, err := store.Import(ctx, s, bytes.NewReader(b.Bytes()))
	check(t, err)
	if in != out {
		t.Errorf("import: got %+v, want %+v", in, out)
	}
	for _, m := range before {
		sameMessage(t, get(t, q, m.ID), m)
	}
	if got := read(t, q, second); len(got) != 400_000 {
		t.Errorf("content: got %d octets", len(got))
	}
	if v, err := s.Modules().Versions(ctx, "name"); err != nil || len(v) != 2 || v[0].Digest != other || v[1].By != "me" {
		t.Errorf("versions: got %+v, %v", v, err)
	}
	if v, err := s.KV().Get(ctx, "s", "\x00"); err != nil || string(v) != "v" {
		t.Errorf("value: got %q, %v", v, err)
	}
	found, err := store.Check(ctx, s, func(what string, err error) { t.Errorf("%s: %v", what, err) })
	check(t, err)
	if found != out {
		t.Errorf("check: got %+v, want %+v", found, out)
	}
	for _, cut := range []int{0, 100, 512, b.Len() / 2, b.Len() - 2000} {
		if _, err := store.Import(ctx, s, bytes.NewReader(b.Bytes()[:cut])); err == nil && cut < b.Len()-2000 {
			t.Errorf("import of the first %d octets: got no error", cut)
		}
	}
	if _, err := store.Import(ctx, s, strings.NewReader(fmt.Sprint(strings.Repeat("x", 2000)))); err == nil {
		t.Error("import of nonsense: got no error")
	}
}
