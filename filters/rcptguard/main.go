// Rcptguard refuses recipients by lists of addresses, domains and local parts. It is a
// Penstock filter; README.md beside it tells how it is configured.
package main

import (
	"strings"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func init() { newFilter().Serve() }

func main() {}

// newFilter returns the filter with its handlers.
func newFilter() *filter.Filter {
	f := filter.New("rcptguard")
	var g guard
	f.Configure(func(c filter.Config) error {
		g = readGuard(c)
		return c.Err()
	})
	f.OnRcptTo(func(w filter.Reply, r *filter.RcptEvent) {
		if g.refuses(r.Rcpt()) {
			g.reply.give(w)
		}
	})
	return f
}

// guard is the configuration.
type guard struct {
	blocked, allowed patterns
	reply            reply
}

func readGuard(c filter.Config) guard {
	c.Only("blocked", "allowed", "code", "enhanced", "text")
	return guard{readPatterns(c, "blocked"), readPatterns(c, "allowed"), readReply(c)}
}

// refuses tells whether a is blocked, or not allowed where something is. Blocked wins: a
// list of exceptions is easier to read than an order of rules.
func (g guard) refuses(a filter.Address) bool {
	return g.blocked.match(a) || !g.allowed.empty() && !g.allowed.match(a)
}

// patterns is a list, sorted by kind, so that a look-up costs the number of labels in
// the address and not the length of the list.
type patterns struct {
	addresses map[string]bool // local@domain
	domains   map[string]bool // domain
	parents   map[string]bool // of *.domain
	locals    map[string]bool // of local@*
}

func readPatterns(c filter.Config, key string) patterns {
	p := patterns{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}}
	for _, s := range c.Strings(key) {
		if !p.add(strings.ToLower(s)) {
			c.Fail(key, s+" is not local@domain, domain, *.domain or local@*, with the domain in A-labels (xn--...)")
		}
	}
	return p
}

func (p patterns) add(s string) bool {
	at := strings.LastIndexByte(s, '@')
	local, domain := s[:max(at, 0)], s[at+1:]
	switch {
	case at < 0 && strings.HasPrefix(s, "*."):
		p.parents[s[2:]] = true
		return isDomain(s[2:])
	case at < 0:
		p.domains[s] = true
		return isDomain(s)
	case domain == "*":
		p.locals[local] = true
		return local != ""
	}
	p.addresses[s] = true
	return local != "" && isDomain(domain)
}

// isDomain keeps mistakes out of the lists; it is no syntax check.
func isDomain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '*' || c == '@' {
			return false
		}
	}
	return s != "" && s[0] != '.' && s[len(s)-1] != '.'
}

func (p patterns) empty() bool {
	return len(p.addresses)+len(p.domains)+len(p.parents)+len(p.locals) == 0
}

// match compares without regard to case. Only the final system may say that a local
// part has none (RFC 5321, Section 2.4), but no real one makes a difference, and a list
// that can be passed with a capital letter is no list.
func (p patterns) match(a filter.Address) bool {
	local, domain := strings.ToLower(a.Local()), a.Domain()
	if p.locals[local] || p.domains[domain] || p.addresses[local+"@"+domain] {
		return true
	}
	for {
		_, parent, ok := strings.Cut(domain, ".")
		if !ok {
			return false
		}
		if p.parents[parent] {
			return true
		}
		domain = parent
	}
}

// reply is what the client is told.
type reply struct {
	code           int
	enhanced, text string
}

func readReply(c filter.Config) reply {
	r := reply{int(c.Int("code", 550)), c.String("enhanced"), c.String("text", "recipient is not accepted here")}
	if r.code < 400 || r.code > 599 || r.code == 421 {
		c.Fail("code", "want a code from 400 to 599, but not 421")
		return r
	}
	class := string(rune('0' + r.code/100))
	if r.enhanced == "" {
		r.enhanced = class + ".7.1"
	}
	if !isEnhanced(r.enhanced, class) {
		c.Fail("enhanced", "want "+class+".x.y, to go with the code")
	}
	return r
}

func isEnhanced(s, class string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || parts[0] != class {
		return false
	}
	for _, p := range parts {
		if len(p) < 1 || len(p) > 3 || strings.Trim(p, "0123456789") != "" || len(p) > 1 && p[0] == '0' {
			return false
		}
	}
	return true
}

func (r reply) give(w filter.Reply) {
	if r.code < 500 {
		w.Tempfail(r.code, r.enhanced, r.text)
		return
	}
	w.Reject(r.code, r.enhanced, r.text)
}
