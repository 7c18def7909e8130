package filter_test

import (
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/internal/guests"
)

// Sessions are copies of one memory, and yet none has the random numbers of another. Those of
// math/rand/v2, the third tag, are not asked about: nobody can seed them.
func TestRandomNumbersOfCopies(t *testing.T) {
	f := guests.Loader(t, "randguest", guests.Build(t, "testdata/randguest")).Must(t, "{}")
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
}
