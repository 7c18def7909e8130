// Headertag adds, sets and removes header fields by rules. It is a Penstock filter;
// README.md beside it tells how it is configured.
package main

import (
	"strings"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func init() { newFilter().Serve() }

func main() {}

// newFilter returns the filter with its handlers.
func newFilter() *filter.Filter {
	f := filter.New("headertag")
	var rules []rule
	f.Configure(func(c filter.Config) error {
		rules = readRules(c)
		return c.Err()
	})
	f.OnHeaders(func(_ filter.Reply, m *filter.HeadersEvent) {
		for _, r := range rules {
			if !r.when.holds(m.Header) {
				continue
			}
			// A mark that cannot be made is no reason to lose mail, and the other rules
			// may still be followed.
			if err := r.apply(m); err != nil {
				m.Log(filter.LevelWarn, "rule not applied", "field", r.field, "err", err.Error())
			}
		}
	})
	return f
}

// rule is one entry of the configuration.
type rule struct {
	when  condition
	do    string // add, set or remove
	field string
	value template
}

func readRules(c filter.Config) []rule {
	c.Only("rules")
	var rules []rule
	for _, rc := range c.List("rules") {
		rules = append(rules, readRule(rc))
	}
	return rules
}

func readRule(c filter.Config) (r rule) {
	c.Only("when", "add", "set", "remove", "value")
	r.when = readCondition(c.Sub("when"), c.Has("when"))
	for _, do := range []string{"add", "set", "remove"} {
		if !c.Has(do) {
			continue
		}
		if r.do != "" {
			c.Fail(do, "a rule has one of add, set and remove")
		}
		r.do, r.field = do, c.String(do)
		if !isFieldName(r.field) {
			c.Fail(do, "want the name of a header field")
		}
	}
	switch {
	case r.do == "":
		c.Fail("add", "a rule has one of add, set and remove")
	case c.Has("value") == (r.do == "remove"):
		c.Fail("value", "belongs to add and set, and to them alone")
	}
	var why string
	if r.value, why = parseTemplate(c.String("value")); why != "" {
		c.Fail("value", why)
	}
	return r
}

// isFieldName is RFC 5322, Section 2.2.
func isFieldName(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == ':' {
			return false
		}
	}
	return s != ""
}

func (r rule) apply(m *filter.HeadersEvent) error {
	switch r.do {
	case "add":
		return m.Header.Add(r.field, r.value.expand(m))
	case "set":
		return m.Header.Set(r.field, r.value.expand(m))
	}
	return m.Header.Delete(r.field)
}

// condition is the part "when". The zero condition always holds.
type condition struct {
	field string
	kind  string // contains, equals or exists
	text  string // in lower case
	want  bool   // of exists
}

func readCondition(c filter.Config, given bool) (w condition) {
	if !given {
		return w
	}
	c.Only("header", "contains", "equals", "exists")
	if w.field = c.String("header"); !isFieldName(w.field) {
		c.Fail("header", "want the name of a header field")
	}
	for _, kind := range []string{"contains", "equals", "exists"} {
		if !c.Has(kind) {
			continue
		}
		if w.kind != "" {
			c.Fail(kind, "a condition has one of contains, equals and exists")
		}
		w.kind = kind
	}
	switch w.kind {
	case "":
		c.Fail("header", "needs one of contains, equals and exists beside it")
	case "exists":
		w.want = c.Bool("exists")
	default:
		w.text = strings.ToLower(c.String(w.kind))
	}
	return w
}

// holds looks at all fields of the name: one that matches is enough. Text is compared as
// a person sees it, without regard to case.
func (w condition) holds(h filter.Header) bool {
	switch w.kind {
	case "":
		return true
	case "exists":
		return h.Has(w.field) == w.want
	}
	for _, v := range h.Values(w.field) {
		v = strings.ToLower(filter.Decode(v))
		if v == w.text || w.kind == "contains" && strings.Contains(v, w.text) {
			return true
		}
	}
	return false
}

// template is a value with places to fill: text and names in turn, text first.
type template []string

// variables are what ${name} may stand for.
var variables = map[string]func(m *filter.HeadersEvent) string{
	"from":      func(m *filter.HeadersEvent) string { return m.From().String() },
	"helo":      func(m *filter.HeadersEvent) string { return m.Helo() },
	"client_ip": func(m *filter.HeadersEvent) string { return m.ClientIP().String() },
	"rdns":      func(m *filter.HeadersEvent) string { return m.RDNS() },
	"user":      func(m *filter.HeadersEvent) string { return m.User() },
	"conn_id":   func(m *filter.HeadersEvent) string { return m.ConnID() },
}

// parseTemplate splits a value. why tells what is wrong with it.
func parseTemplate(s string) (t template, why string) {
	for {
		before, rest, ok := strings.Cut(s, "${")
		t = append(t, before)
		if !ok {
			return t, ""
		}
		name, after, ok := strings.Cut(rest, "}")
		if !ok {
			return t, "${ without }"
		}
		if variables[name] == nil {
			return t, "unknown ${" + name + "}; there are from, helo, client_ip, rdns, user and conn_id"
		}
		t, s = append(t, name), after
	}
}

func (t template) expand(m *filter.HeadersEvent) string {
	var b strings.Builder
	for i, part := range t {
		if i%2 == 1 {
			part = clean(variables[part](m))
		}
		b.WriteString(part)
	}
	return b.String()
}

// clean keeps a client from making a rule fail with a control character in its name.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
