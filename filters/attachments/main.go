// Attachments refuses messages by what is attached to them: file names, media types, and how
// deep and how many the parts are. It is a Penstock filter; README.md beside it tells how it
// is configured.
package main

import (
	"errors"
	"strconv"
	"strings"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func init() { newFilter().Serve() }

func main() {}

// newFilter returns the filter with its handlers.
func newFilter() *filter.Filter {
	f := filter.New("attachments")
	var r rules
	f.Configure(func(c filter.Config) error {
		r = readRules(c)
		return c.Err()
	})
	f.OnData(func(w filter.Reply, m *filter.Message) {
		why, err := r.look(m)
		switch {
		case err != nil:
			// What could not be looked at may hold what we refuse. Later is better than never.
			m.Log(filter.LevelError, "the parts of the message could not be read", "err", err.Error())
			w.Tempfail(451, "4.3.0", "message cannot be checked now, try again later")
		case why != "":
			if err := m.Tag("match", why); err != nil {
				m.Log(filter.LevelWarn, "tag not set", "err", err.Error())
			}
			r.act(w, why)
		}
	})
	return f
}

// rules are the configuration.
type rules struct {
	endings   map[string]bool // in lower case, without the dot
	anywhere  bool            // look at all dots of a name, not at the last alone
	types     []string        // "kind/name", or "kind/" for all of a kind
	disguised bool
	malformed bool
	depth     int
	parts     int
	action    string
	reply     string
}

var actions = []string{"reject", "tempfail", "quarantine", "discard", "tag"}

func readRules(c filter.Config) rules {
	c.Only("extensions", "more_extensions", "anywhere", "types", "disguised", "malformed", "depth", "parts", "action", "reply")
	r := rules{
		endings:   map[string]bool{},
		anywhere:  c.Bool("anywhere", false),
		disguised: c.Bool("disguised", true),
		malformed: c.Bool("malformed", false),
		depth:     number(c, "depth", 10, filter.MaxPartDepth),
		parts:     number(c, "parts", 200, filter.MaxParts),
		action:    c.String("action", "reject"),
		reply:     c.String("reply", "attachments of this kind are not accepted here"),
	}
	r.addEndings(c, "extensions", defaultEndings)
	r.addEndings(c, "more_extensions", nil)
	for _, t := range c.Strings("types", defaultTypes...) {
		r.types = append(r.types, readType(c, t))
	}
	if !contains(actions, r.action) {
		c.Fail("action", "want one of "+strings.Join(actions, ", "))
	}
	return r
}

func number(c filter.Config, key string, def, most int64) int {
	n := c.Int(key, def)
	if n < 1 || n > most {
		c.Fail(key, "want 1 to "+strconv.FormatInt(most, 10))
	}
	return int(n)
}

// addEndings reads a list of endings, with or without their dots.
func (r rules) addEndings(c filter.Config, key string, def []string) {
	for _, e := range c.Strings(key, def...) {
		e = strings.ToLower(strings.TrimPrefix(e, "."))
		if e == "" || strings.ContainsAny(e, "./\\:* ") {
			c.Fail(key, "want endings of file names such as exe, each without another dot")
			continue
		}
		r.endings[e] = true
	}
}

// readType reads "kind/name" or "kind/*".
func readType(c filter.Config, t string) string {
	kind, name, ok := strings.Cut(strings.ToLower(t), "/")
	if !ok || kind == "" || name == "" || strings.ContainsAny(kind+name, "/; ") || strings.Contains(strings.TrimSuffix(name, "*"), "*") || name != "*" && strings.HasSuffix(name, "*") {
		c.Fail("types", "want media types such as application/hta, or application/*")
	}
	if name == "*" {
		name = ""
	}
	return kind + "/" + name
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

var errNoParts = errors.New("the gateway lists fewer parts than there are")

// look goes through the parts until something is found, and says what in a few words that a
// stranger has not chosen.
func (r rules) look(m *filter.Message) (why string, err error) {
	n, err := m.PartCount()
	if err != nil {
		return "", err
	}
	if n > r.parts {
		return "too many parts", nil
	}
	seen := 0
	for p := range m.Parts() {
		seen++
		if why := r.part(p); why != "" {
			return why, nil
		}
	}
	if seen != n {
		return "", errNoParts
	}
	return "", nil
}

// part says what is wrong with a part, or nothing.
func (r rules) part(p *filter.Part) string {
	flags := p.Flags()
	switch {
	case flags&filter.PartTruncated != 0:
		return "too many parts"
	case flags&filter.PartDeep != 0 || p.Depth() > r.depth:
		return "parts too deep"
	case flags&filter.PartOpaque != 0:
		return "a message that is hidden" // it may hold anything, and some readers open it
	case r.malformed && flags != 0:
		return "malformed"
	}
	if t := r.refusedType(p.Type()); t != "" {
		return "type " + t
	}
	for _, name := range p.FileNames() {
		if why := r.name(name); why != "" {
			return why
		}
	}
	return ""
}

// refusedType returns the rule that refuses a media type.
func (r rules) refusedType(t string) string {
	for _, rule := range r.types {
		if t == rule || strings.HasSuffix(rule, "/") && strings.HasPrefix(t, rule) {
			return strings.TrimSuffix(rule, "/")
		}
	}
	return ""
}

// name says what is wrong with a file name.
func (r rules) name(name string) string {
	for _, e := range endings(name, r.anywhere) {
		if r.endings[e] {
			return "name ." + e
		}
	}
	if r.disguised && isDisguised(name) {
		return "a disguised name"
	}
	return ""
}

func (r rules) act(w filter.Reply, why string) {
	switch r.action {
	case "reject":
		w.Reject(550, "5.7.1", r.reply+": "+why)
	case "tempfail":
		w.Tempfail(451, "4.7.1", r.reply+": "+why)
	case "quarantine":
		w.Quarantine("attachment: " + why)
	case "discard":
		w.Discard()
	}
}
