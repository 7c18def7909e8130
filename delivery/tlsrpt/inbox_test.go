package tlsrpt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

type content string

func (c content) WriteTo(w io.Writer) (int64, error) { return bytes.NewReader([]byte(c)).WriteTo(w) }
func (c content) Size() int64                        { return int64(len(c)) }

func reportOf(id string) content {
	return content("Content-Type: application/tlsrpt+json\r\n\r\n" + fmt.Sprintf(
		`{"organization-name":"X","report-id":%q,"policies":[{"policy":{"policy-type":"sts","policy-domain":"example.com"},"summary":{"total-failure-session-count":2}}]}`, id))
}

func TestInbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		files := newMemFiles()
		box, err := NewInbox(InboxOptions{Files: files, Daily: 4})
		if err != nil {
			t.Fatal(err)
		}
		code := func(c content) int {
			if err := box.Take(t.Context(), c, address(t, "noreply@x.example"), "192.0.2.1"); err != nil {
				return smtp.ReplyOf(err).Code
			}
			return 250
		}
		for _, c := range []struct {
			in   content
			want int
		}{
			{reportOf("1"), 250},
			{reportOf("1"), 250}, // again: it is there
			{reportOf("2"), 250},
			{"Subject: hello\r\n\r\nhello\r\n", 550},
			{content(strings.Repeat("x", MaxMessage+1)), 552},
			{reportOf("3"), 250},
			{reportOf("4"), 250},
			{reportOf("5"), 452}, // enough for today
		} {
			if got := code(c.in); got != c.want {
				t.Errorf("%.40q: got %d, want %d", c.in, got, c.want)
			}
		}
		time.Sleep(24 * time.Hour)
		files.fail = func(string, string) error { return errors.New("broken") }
		if got := code(reportOf("5")); got != 451 {
			t.Errorf("broken store: got %d", got)
		}
		files.fail = nil
		if got := code(reportOf("5")); got != 250 {
			t.Errorf("the next day: got %d", got)
		}

		var all, pages []string
		collect := func(after string, n int) (last string) {
			err := box.List(t.Context(), after, func(r Received) bool {
				last = r.ID
				pages = append(pages, r.Report.ID)
				n--
				return n > 0
			})
			if err != nil {
				t.Fatal(err)
			}
			return last
		}
		collect("", 100)
		all, pages = pages, nil
		if len(all) != 5 || all[0] != "5" {
			t.Errorf("got %v", all)
		}
		for last := collect("", 2); last != ""; last = collect(last, 2) {
		}
		if !slices.Equal(all, pages) {
			t.Errorf("in pages: %v, at once: %v", pages, all)
		}

		var first Received
		if err := box.List(t.Context(), "", func(r Received) bool { first = r; return false }); err != nil {
			t.Fatal(err)
		}
		got, err := box.Show(t.Context(), first.ID)
		if err != nil || got.Sender != "noreply@x.example" || got.Client != "192.0.2.1" || got.Report.Policies[0].Summary.Failed != 2 {
			t.Errorf("got %+v, %v", got, err)
		}
		for _, id := range []string{"", "x", "2000-01-01-../../sent/a", "2000-01-01-0123456789abcdef", first.ID + "/x"} {
			if _, err := box.Show(t.Context(), id); !errors.Is(err, ErrNoReport) {
				t.Errorf("%q: %v", id, err)
			}
		}
		time.Sleep(92 * 24 * time.Hour)
		if err := box.forget(t.Context()); err != nil || len(files.names(gotFolder)) != 0 {
			t.Errorf("%v, left %v", err, files.names(gotFolder))
		}
	})
}

// TestInboxFlood: large reports fill a day's room before it is a burden, and small ones still
// find some.
func TestInboxFlood(t *testing.T) {
	files := newMemFiles()
	box, err := NewInbox(InboxOptions{Files: files, DailySize: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	text := `"` + strings.Repeat("x", 255) + `"`
	large := `{"policy":{"policy-type":"sts","policy-domain":"example.com","policy-string":[` + strings.TrimSuffix(strings.Repeat(text+",", 60), ",") + `]}}`
	taken := 0
	for i := range 20 {
		in := fmt.Sprintf("Content-Type: application/tlsrpt+json\r\n\r\n"+`{"organization-name":"X","report-id":"%d","policies":[%s]}`, i, large)
		if box.Take(t.Context(), content(in), smtp.Path{}, "") == nil {
			taken++
		}
	}
	if taken < 3 || taken > 6 {
		t.Errorf("%d of 20 reports of 16 KB were taken", taken)
	}
	if err := box.Take(t.Context(), reportOf("small"), smtp.Path{}, ""); err != nil {
		t.Errorf("a small one: %v", err)
	}
}
