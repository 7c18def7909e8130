package filter_test

import (
	"slices"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
)

// TestModule runs the SDK as what it is for: a module.
func TestModule(t *testing.T) {
	f := guests.Loader(t, "sdkguest", guests.Build(t, "testdata/sdkguest")).Must(t, `{"words": ["HELLO", "none", "o w"]}`)
	// Sessions are copies of one memory, and yet none has the random numbers of another. Those
	// of math/rand/v2, the third tag, are not asked about: nobody can seed them.
	seen := map[string]bool{}
	for range 3 {
		s := filtertest.New(t, filtertest.Options{Policy: f})
		r := s.MailFrom("a@example.com")
		if r.Err != nil || len(r.Tags) != 4 {
			t.Fatalf("got %q, %v", r.Tags, r.Err)
		}
		for _, tag := range append(r.Tags[:2:2], r.Tags[3]) {
			if seen[tag] {
				t.Errorf("%s was there before", tag)
			}
			seen[tag] = true
		}
		s.Close()
	}
	s := filtertest.New(t, filtertest.Options{Policy: f})
	s.MailFrom("a@example.com")
	r := s.Message("Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Transfer-Encoding: base64\n\n" +
		"aGVsbG8gd29ybGQ=\n--x\nContent-Type: a/b; name=\"=?utf-8?q?=C3=BC?=\"\n\nbye\n--x--\n")
	want := []string{
		`part=multipart/mixed  125 "--x\r\nContent" 661d`,
		`part=text/plain  11 "hello world" 0@0+5 2@4+3 5eb6`,
		`part=a/b ü 3 "bye" bfa9`,
	}
	if !slices.Equal(r.Tags, want) || r.Err != nil || r.Reply != "" {
		t.Errorf("got  %q, %v, %s\nwant %q", r.Tags, r.Err, r.Reply, want)
	}
	if want := []string{"words=-0.5", "words=-0.5"}; !slices.Equal(r.Scores, want) {
		t.Errorf("scores: got %q, want %q", r.Scores, want)
	}
}
