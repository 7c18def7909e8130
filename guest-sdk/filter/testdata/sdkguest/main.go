// A guest of the SDK's tests: it tells random numbers of all kinds at MAIL, and what the
// gateway finds in a message at its end.
package main

import (
	"encoding/hex"
	"io"
	"math/rand"
	randv2 "math/rand/v2"
	"strconv"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func init() {
	f := filter.New("sdkguest")
	seen := f.Metric("parts")
	var words *filter.MatchSet
	f.Configure(func(c filter.Config) error {
		words = c.MatchSet("words", filter.Fold)
		return nil
	})
	f.OnMailFrom(func(_ filter.Reply, e *filter.MailEvent) {
		_ = e.Tag("v1", strconv.FormatInt(rand.Int63(), 10))
		_ = e.Tag("again", strconv.FormatInt(rand.Int63(), 10))
		_ = e.Tag("v2", strconv.FormatUint(randv2.Uint64(), 10))
		_ = e.Tag("rand", strconv.FormatUint(e.Rand().Uint64(), 10))
	})
	f.OnData(func(w filter.Reply, m *filter.Message) {
		for p := range m.Parts() {
			if err := tell(m, p, words, seen); err != nil {
				w.Tempfail(451, "4.3.0", err.Error())
			}
		}
	})
	f.Serve()
}

// tell notes what there is to know of a part.
func tell(m *filter.Message, p *filter.Part, words *filter.MatchSet, seen *filter.Metric) error {
	head := make([]byte, 12)
	n, err := p.Content().Read(head)
	if err != nil && err != io.EOF {
		return err
	}
	hits, err := p.Match(words, 0)
	if err != nil {
		return err
	}
	sum, err := p.Hash(filter.MD5)
	if err != nil {
		return err
	}
	line := p.Type() + " " + p.FileName() + " " + strconv.FormatInt(p.Content().Size(), 10) + " " + strconv.Quote(string(head[:n]))
	for _, h := range hits {
		line += " " + strconv.Itoa(h.Pattern) + "@" + strconv.FormatInt(h.Off, 10) + "+" + strconv.Itoa(h.Len)
		if err := m.Score("words", -500); err != nil {
			return err
		}
	}
	if err := m.Count(seen, 1); err != nil {
		return err
	}
	return m.Tag("part", line+" "+hex.EncodeToString(sum[:2]))
}

func main() {}
