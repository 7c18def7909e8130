package filter_test

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy/guest"
)

// A filter that looks for the words of its configuration where mail readers show them.
func scanner(t *testing.T) *filter.Filter {
	f := filter.New("scanner")
	var words, none, many *filter.MatchSet
	f.Configure(func(c filter.Config) error {
		words = c.MatchSet("words", filter.Fold)
		none = c.MatchSet("none", filter.Literal)
		var list []string
		for i := range 100 {
			list = append(list, fmt.Sprint("z", i))
		}
		var err error
		many, err = c.NewMatchSet(filter.Regexp, list[:60]...)
		return err
	})
	f.OnData(func(w filter.Reply, m *filter.Message) {
		show := func(what string, hits []filter.Hit, err error) {
			if err != nil {
				t.Error(err)
			}
			_ = m.Tag(what, fmt.Sprint(hits))
		}
		hits, err := m.Body.Match(words, 0)
		show("body", hits, err)
		hits, err = m.Header.Match(words)
		show("header", hits, err)
		hits, err = m.Body.Match(none, 0)
		show("none", hits, err)
		for p := range m.Parts() {
			hits, err = p.Match(words, 2)
			show("part", hits, err)
			sum, err := p.Hash(filter.SHA256)
			if want := sha256.Sum256([]byte("a viagra\r\nb")); err != nil || string(sum) != string(want[:]) {
				t.Errorf("hash: got %x, %v, want %x", sum, err, want)
			}
			hits, err = p.Match(many, 0)
			show("many", hits, err)
		}
		if sum, err := m.Body.Hash(filter.MD5); err != nil || len(sum) != 16 {
			t.Errorf("hash of the body: %x, %v", sum, err)
		}
	})
	return f
}

func TestScan(t *testing.T) {
	s := filtertest.New(t, filtertest.Options{Filter: scanner(t), Config: `{"words": ["cheap", "VIAGRA"]}`})
	s.MailFrom("a@example.com")
	r := s.Message("Subject: Cheap\nContent-Transfer-Encoding: base64\n\nYSB2aWFncmENCmI=\n")
	if want := "[body=[] header=[{0 9 5}] none=[] part=[{1 2 6}] many=[]]"; fmt.Sprint(r.Tags) != want || r.Err != nil {
		t.Errorf("got %v, %v, want %s", r.Tags, r.Err, want)
	}
	_, err := filtertest.Load(scanner(t), guest.Options{Config: []byte(`{"words": ["` + strings.Repeat("x", 300) + `"]}`)})
	if err == nil || !strings.Contains(err.Error(), "words: filter: make a set of patterns: mg1: EINVAL") {
		t.Errorf("a long pattern: got %v", err)
	}
}
