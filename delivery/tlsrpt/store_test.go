package tlsrpt

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"testing"
	"time"

	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// stored are the files of a real store.
type stored struct{ store.Files }

func (s stored) Read(ctx context.Context, name string) ([]byte, error) {
	data, err := s.Files.Read(ctx, name)
	return data, known(err)
}

func (s stored) List(ctx context.Context, folder string, recursive bool) ([]string, error) {
	names, err := s.Files.List(ctx, folder, recursive)
	return names, known(err)
}

func known(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return errors.Join(fs.ErrNotExist, err)
	}
	return err
}

// TestStore: with the files of a store in a folder, counts of a day that is over are added up
// and told once, and reports that come are kept.
func TestStore(t *testing.T) {
	s, err := embedded.Open(t.TempDir(), embedded.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	files := stored{s.Files()}
	var mails []Mail
	r, err := New(Options{Submitter: "company-x.example", From: address(t, "a@company-x.example"), Files: files, Spread: -1,
		DNS:  zone{texts: map[string][]string{"_smtp._tls.company-y.example": {"v=TLSRPTv1; rua=mailto:reports@company-y.example"}}},
		Mail: func(_ context.Context, m Mail) error { mails = append(mails, m); return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.web.close()
	if err := r.sendDue(t.Context()); err != nil {
		t.Fatalf("with nothing there: %v", err)
	}
	over := dayOf(time.Now().Add(-48 * time.Hour))
	row, err := example().encode()
	if err != nil {
		t.Fatal(err)
	}
	folder := shardFolder(over, shardOf("company-y.example"))
	for _, name := range []string{"a-0", "b-0", "damaged"} {
		data := row
		if name == "damaged" {
			data = row[:len(row)/2]
		}
		if err := files.Write(t.Context(), path.Join(folder, name), data); err != nil {
			t.Fatal(err)
		}
	}
	r.Record(event(nil)) // of today, which is nobody's business yet
	r.flush(t.Context())
	for range 2 {
		if err := r.sendDue(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(mails) != 1 {
		t.Fatalf("%d reports", len(mails))
	}
	rep, err := ReadMessage(mails[0].Content)
	if err != nil {
		t.Fatal(err)
	}
	if ok, bad := rep.Sessions(); ok != 2*(5326+2) || bad != 2*303 {
		t.Errorf("%d good, %d failed", ok, bad)
	}
	left, err := days(t.Context(), files, rowsFolder)
	if err != nil || len(left) != 1 || left[0] == over {
		t.Errorf("left: %v, %v", left, err)
	}

	box, err := NewInbox(InboxOptions{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	if err := box.List(t.Context(), "", func(Received) bool { return true }); err != nil {
		t.Errorf("an empty inbox: %v", err)
	}
	if err := box.Take(t.Context(), content(mails[0].Content), address(t, "a@company-x.example"), ""); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := box.List(t.Context(), "", func(got Received) bool { n++; return got.Report.ID == rep.ID }); err != nil || n != 1 {
		t.Errorf("%d reports, %v", n, err)
	}
	if err := box.forget(t.Context()); err != nil {
		t.Error(err)
	}
}
