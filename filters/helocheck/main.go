// Helocheck refuses clients that call themselves what they cannot be. It is a Penstock
// filter; README.md beside it tells how it is configured.
package main

import (
	"strings"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func init() { newFilter().Serve() }

func main() {}

// newFilter returns the filter with its handlers. The name is looked at when the client
// says MAIL FROM and not at HELO: only then is it known who authenticated. Mail programs
// of our own users call themselves anything.
func newFilter() *filter.Filter {
	f := filter.New("helocheck")
	var s settings
	f.Configure(func(c filter.Config) error {
		s = readSettings(c)
		return c.Err()
	})
	f.OnMailFrom(func(w filter.Reply, e *filter.MailEvent) {
		if e.User() != "" && !s.authenticated || s.trusts(e.ClientIP()) {
			return
		}
		fault := s.fault(e.Helo(), e.ClientIP())
		if fault == "" {
			return
		}
		if err := e.Tag("helo", fault); err != nil {
			e.Log(filter.LevelWarn, "tag not set", "err", err.Error())
		}
		s.act(w, fault)
	})
	return f
}

// settings is the configuration.
type settings struct {
	ours          map[string]bool
	bareAddress   bool
	malformed     bool
	unqualified   bool
	wrongLiteral  bool
	authenticated bool // check authenticated users as well
	trust         []network
	action        string
}

// network is one of the networks that are not checked.
type network struct {
	ip   filter.IP
	bits int
}

func readSettings(c filter.Config) settings {
	c.Only("our_names", "bare_address", "malformed", "unqualified", "wrong_literal", "authenticated", "trust", "action")
	s := settings{
		ours:          map[string]bool{},
		bareAddress:   c.Bool("bare_address", true),
		malformed:     c.Bool("malformed", true),
		unqualified:   c.Bool("unqualified", false),
		wrongLiteral:  c.Bool("wrong_literal", true),
		authenticated: c.Bool("authenticated", false),
		action:        c.String("action", "reject"),
	}
	for _, name := range c.Strings("our_names") {
		s.ours[canonical(name)] = true
	}
	for _, text := range c.Strings("trust") {
		ip, bits, ok := filter.ParsePrefix(text)
		if !ok {
			c.Fail("trust", text+" is not a network such as 192.0.2.0/24")
		}
		s.trust = append(s.trust, network{ip, bits})
	}
	if s.action != "reject" && s.action != "tempfail" && s.action != "tag" {
		c.Fail("action", "want reject, tempfail or tag")
	}
	return s
}

// canonical makes names comparable: a final dot means the same name.
func canonical(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// trusts tells whether the client is not checked. One without an address is a local
// socket.
func (s settings) trusts(ip filter.IP) bool {
	if !ip.IsValid() {
		return true
	}
	for _, n := range s.trust {
		if ip.In(n.ip, n.bits) {
			return true
		}
	}
	return false
}

// The faults. They are the values of the tag.
const (
	faultOurs         = "ours"
	faultBareAddress  = "bare-address"
	faultMalformed    = "malformed"
	faultUnqualified  = "unqualified"
	faultWrongLiteral = "wrong-literal"
)

// replies say what is wrong to a client's operator.
var replies = map[string]string{
	faultOurs:         "you are not us: HELO names this host",
	faultBareAddress:  "HELO with an address needs brackets (RFC 5321, Section 4.1.3)",
	faultMalformed:    "HELO is not a domain name or address literal (RFC 5321, Section 4.1.1.1)",
	faultUnqualified:  "HELO is not a fully qualified domain name (RFC 5321, Section 2.3.5)",
	faultWrongLiteral: "HELO has an address that is not yours",
}

// fault returns what is wrong with the name; empty if nothing is, or nothing that is
// looked for.
func (s settings) fault(helo string, client filter.IP) string {
	if _, ok := filter.ParseIP(helo); ok {
		return only(s.bareAddress, faultBareAddress)
	}
	if strings.HasPrefix(helo, "[") {
		ip, ok := parseLiteral(helo)
		switch {
		case !ok:
			return only(s.malformed, faultMalformed)
		case ip != client:
			return only(s.wrongLiteral, faultWrongLiteral)
		}
		return ""
	}
	name := canonical(helo)
	switch {
	case s.ours[name]:
		return faultOurs
	case !isHostName(name):
		return only(s.malformed, faultMalformed)
	case !strings.Contains(name, "."):
		return only(s.unqualified, faultUnqualified)
	}
	return ""
}

func only(on bool, fault string) string {
	if on {
		return fault
	}
	return ""
}

// parseLiteral reads [192.0.2.1] and [IPv6:2001:db8::1] (RFC 5321, Section 4.1.3).
func parseLiteral(s string) (filter.IP, bool) {
	in, ok := strings.CutSuffix(s[1:], "]")
	if !ok {
		return filter.IP{}, false
	}
	if len(in) > 5 && strings.EqualFold(in[:5], "IPv6:") {
		ip, ok := filter.ParseIP(in[5:])
		return ip, ok && strings.Contains(in[5:], ":")
	}
	ip, ok := filter.ParseIP(in)
	return ip, ok && !strings.Contains(in, ":")
}

// isHostName takes what names of hosts look like in practice: RFC 1123, Section 2.1, and
// the underscore, which many have.
func isHostName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		if strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

func (s settings) act(w filter.Reply, fault string) {
	switch s.action {
	case "reject":
		w.Reject(550, "5.7.1", replies[fault])
	case "tempfail":
		w.Tempfail(450, "4.7.1", replies[fault])
	}
}
