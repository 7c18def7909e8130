// Bodymatch looks for fixed strings in header fields and in the body. It is a Penstock
// filter; README.md beside it tells how it is configured.
package main

import (
	"strings"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func init() { newFilter().Serve() }

func main() {}

// newFilter returns the filter with its handlers.
func newFilter() *filter.Filter {
	f := filter.New("bodymatch")
	var s scanner
	f.Configure(func(c filter.Config) error {
		s = readScanner(c)
		return c.Err()
	})
	f.OnData(func(w filter.Reply, m *filter.Message) {
		found, err := s.scan(m)
		if err != nil {
			// What could not be read may hold what we look for. Later is better than never.
			m.Log(filter.LevelError, "the message could not be read", "err", err.Error())
			w.Tempfail(451, "4.3.0", "message cannot be checked now, try again later")
			return
		}
		s.answer(w, m, found)
	})
	return f
}

// rule is one entry of the configuration.
type rule struct {
	name   string
	texts  []string // in lower case if fold
	fold   bool
	body   bool     // look in the body
	fields []string // look in these header fields
	action string
	reply  string
}

// scanner is the configuration.
type scanner struct {
	rules []rule
	limit int64 // octets of the body
}

var actions = []string{"reject", "tempfail", "quarantine", "discard", "tag"}

func readScanner(c filter.Config) scanner {
	c.Only("rules", "limit")
	s := scanner{limit: c.Size("limit", 10<<20)}
	for _, rc := range c.List("rules") {
		s.rules = append(s.rules, readRule(rc))
	}
	return s
}

func readRule(c filter.Config) rule {
	c.Only("name", "texts", "in", "fold_case", "action", "reply")
	r := rule{
		name:   c.String("name"),
		texts:  c.Strings("texts"),
		fold:   c.Bool("fold_case", true),
		action: c.String("action", "reject"),
		reply:  c.String("reply", "message content is not accepted here"),
	}
	if r.name == "" || strings.Trim(strings.ToLower(r.name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		c.Fail("name", "want a name of letters, digits, dot, hyphen and underscore")
	}
	if len(r.texts) == 0 {
		c.Fail("texts", "want at least one text")
	}
	for i, t := range r.texts {
		if t == "" || len(t) > maxText {
			c.Fail("texts", "a text has 1 to 1024 octets")
		}
		if r.fold {
			r.texts[i] = string(foldASCII([]byte(t)))
		}
	}
	if !contains(actions, r.action) {
		c.Fail("action", "want one of "+strings.Join(actions, ", "))
	}
	for _, place := range c.Strings("in", "body", "Subject") {
		if strings.EqualFold(place, "body") {
			r.body = true
		} else {
			r.fields = append(r.fields, place)
		}
	}
	return r
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// scan returns for each rule whether one of its texts was found.
func (s scanner) scan(m *filter.Message) (found []bool, err error) {
	found = make([]bool, len(s.rules))
	body := false
	for i, r := range s.rules {
		found[i] = r.inHeader(m.Header)
		body = body || r.body && !found[i]
	}
	if body {
		err = s.scanBody(m.Body, found)
	}
	return found, err
}

// inHeader looks at fields as a person sees them: unfolded, encoded words read.
func (r rule) inHeader(h filter.Header) bool {
	for _, name := range r.fields {
		for _, value := range h.Values(name) {
			value = filter.Decode(value)
			if r.fold {
				value = string(foldASCII([]byte(value)))
			}
			if r.in(value) {
				return true
			}
		}
	}
	return false
}

func (r rule) in(s string) bool {
	for _, t := range r.texts {
		if strings.Contains(s, t) {
			return true
		}
	}
	return false
}

// answer tags every rule that found something. Of the other actions that of the first
// rule counts.
func (s scanner) answer(w filter.Reply, m *filter.Message, found []bool) {
	decided := false
	for i, r := range s.rules {
		if !found[i] {
			continue
		}
		if err := m.Tag("match", r.name); err != nil {
			m.Log(filter.LevelWarn, "tag not set", "rule", r.name, "err", err.Error())
		}
		if !decided && r.action != "tag" {
			decided = true
			r.act(w)
		}
	}
}

func (r rule) act(w filter.Reply) {
	switch r.action {
	case "reject":
		w.Reject(550, "5.7.1", r.reply)
	case "tempfail":
		w.Tempfail(451, "4.7.1", r.reply)
	case "quarantine":
		w.Quarantine("rule " + r.name)
	case "discard":
		w.Discard()
	}
}
