package resolver

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// message.go makes queries and reads replies. What it reads was sent by strangers: a reply
// is first held against its query, then only those records are taken that belong to the
// name asked for.

const (
	// udpSize is announced with EDNS. Larger datagrams would be fragmented on common
	// paths, and fragments can be forged.
	udpSize = 1232
	// maxChain is how many CNAMEs are followed.
	maxChain = 10
	// maxRecords is how many records an answer may have. A message of 64 KiB could hold
	// four thousand; mail needs a few dozen.
	maxRecords = 1000
	// maxName is the longest name in characters, the dot at its end not counted
	// (RFC 1035, Section 2.3.4, which counts the octets of the wire).
	maxName = 253
	maxText = 256 // octets kept of an extended error's text
)

// normalise returns the name as the cache knows it: in lower case, without the dot at its
// end, with unusual octets escaped as replies have them.
func normalise(name string) (string, bool) {
	if name == "." {
		return name, true
	}
	name = strings.TrimSuffix(name, ".")
	if name == "" || len(name) > maxName {
		return "", false
	}
	plain := true
	label := 0
	for i := range len(name) {
		c := name[i]
		switch {
		case c == '.':
			if label == 0 {
				return "", false
			}
			label = -1
		case c < ' ' || c > '~' || c == '\\':
			return "", false
		case 'A' <= c && c <= 'Z' || special(c):
			plain = false
		}
		if label++; label > 63 {
			return "", false
		}
	}
	if label == 0 {
		return "", false
	}
	if !plain {
		name = escape(strings.ToLower(name))
	}
	return name, true
}

// special tells whether replies have the character with a backslash before it.
func special(c byte) bool { return strings.IndexByte(` '@;()"`, c) >= 0 }

func escape(name string) string {
	var b strings.Builder
	for i := range len(name) {
		if special(name[i]) {
			b.WriteByte('\\')
		}
		b.WriteByte(name[i])
	}
	return b.String()
}

// fold makes of a name in a reply what normalise makes of a name of ours.
func fold(name string) string {
	name = strings.ToLower(name)
	if len(name) > 1 {
		name = strings.TrimSuffix(name, ".")
	}
	return name
}

// newQuery returns the question for a normalised name, with EDNS and the AD bit: RFC 6840,
// Section 5.7 lets that ask for the AD bit in the reply without the signatures.
func newQuery(name string, typ Type) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(name), uint16(typ))
	m.AuthenticatedData = true
	m.SetEdns0(udpSize, false)
	return m
}

// newID returns a number that nobody can guess.
func newID() uint16 {
	var b [2]byte
	rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint16(b[:])
}

// errForeign: what came is no reply to the query. Whoever sent it knows less than the
// server does, so that one goes on waiting for the server.
var errForeign = errors.New("not the reply to our query")

// parseReply reads what came and holds it against the query.
func parseReply(query *dns.Msg, wire []byte) (reply *dns.Msg, err error) {
	// The library has been fuzzed, by us too. Still, a slip of it while it reads
	// a stranger's bytes must not end the process.
	defer func() {
		if p := recover(); p != nil {
			reply, err = nil, fmt.Errorf("unreadable reply: %v", p)
		}
	}()
	if len(wire) < 12 || binary.BigEndian.Uint16(wire) != query.Id {
		return nil, errForeign
	}
	m := new(dns.Msg)
	if err := m.Unpack(wire); err != nil {
		// A reply that was cut within a record is read again over TCP.
		if m.Truncated && m.Response && echoes(query, m) {
			return &dns.Msg{MsgHdr: m.MsgHdr, Question: m.Question}, nil
		}
		return nil, fmt.Errorf("unreadable reply: %w", err)
	}
	if !m.Response || m.Opcode != dns.OpcodeQuery || !echoes(query, m) {
		return nil, errForeign
	}
	return m, nil
}

// echoes tells whether the reply repeats the question. Some servers send an error
// without it; an answer must have it.
func echoes(query, reply *dns.Msg) bool {
	if len(reply.Question) == 0 {
		return reply.Rcode != dns.RcodeSuccess && reply.Rcode != dns.RcodeNameError && !reply.Truncated
	}
	q, r := query.Question[0], reply.Question[0]
	return len(reply.Question) == 1 && q.Qtype == r.Qtype && q.Qclass == r.Qclass && strings.EqualFold(q.Name, r.Name)
}

// extended returns the first extended error of a reply, nil if it has none.
func extended(m *dns.Msg) *ExtendedError {
	opt := m.IsEdns0()
	if opt == nil {
		return nil
	}
	for _, o := range opt.Option {
		if e, ok := o.(*dns.EDNS0_EDE); ok {
			return &ExtendedError{Code: e.InfoCode, Text: strings.Clone(e.ExtraText[:min(len(e.ExtraText), maxText)])}
		}
	}
	return nil
}

func extendedName(code uint16) (string, bool) {
	s, ok := dns.ExtendedErrorCodeToString[code]
	return s, ok
}

// bogus tells whether the server failed because records do not validate: the codes from
// DNSSEC Bogus to NSEC Missing (RFC 8914, Sections 4.7 to 4.13).
func (e *ExtendedError) bogus() bool {
	return e != nil && e.Code >= dns.ExtendedErrorCodeDNSBogus && e.Code <= dns.ExtendedErrorCodeNSECMissing
}

var (
	errChain = errors.New("the chain of CNAMEs does not end")
	errLarge = errors.New("the answer has too many records")
)

// answer is what a reply says about a name.
type answer struct {
	canonical string
	records   []Record // none: there are none, or, if open, they were not sent
	ttl       time.Duration
	open      bool // the chain ends in a name that the reply says nothing about
	links     int  // CNAMEs followed
}

// readAnswer takes from a reply of NOERROR or NXDOMAIN what belongs to the name. The time
// to live is the least of all records used, CNAMEs included; without records it is that of
// RFC 2308, Section 5, and 0 if the reply gives none.
func readAnswer(m *dns.Msg, name string, typ Type) (*answer, error) {
	if len(m.Answer) > maxRecords {
		return nil, errLarge
	}
	a := &answer{canonical: name, ttl: maxTTL}
	for typ != TypeCNAME {
		next, ttl, ok := link(m.Answer, a.canonical)
		if !ok {
			break
		}
		if a.links++; a.links > maxChain {
			return nil, errChain
		}
		a.canonical, a.ttl = next, min(a.ttl, ttl)
	}
	if m.Rcode == dns.RcodeSuccess {
		a.take(m.Answer, typ)
	}
	if len(a.records) == 0 {
		ttl, ok := negativeTTL(m.Ns, a.canonical)
		if a.open = !ok && a.links > 0 && m.Rcode == dns.RcodeSuccess; !a.open {
			a.ttl = min(a.ttl, ttl)
		}
	}
	return a, nil
}

// take adds the records of the canonical name.
func (a *answer) take(section []dns.RR, typ Type) {
	for _, rr := range section {
		h := rr.Header()
		if h.Class != dns.ClassINET || h.Rrtype != uint16(typ) || fold(h.Name) != a.canonical {
			continue
		}
		r, ok := record(rr)
		if !ok {
			continue
		}
		// One string for all: a set has one owner.
		r.Name, r.Type, r.TTL = a.canonical, typ, h.Ttl
		a.records = append(a.records, r)
		a.ttl = min(a.ttl, seconds(h.Ttl))
	}
}

// link returns where the CNAME of a name leads.
func link(section []dns.RR, name string) (target string, ttl time.Duration, ok bool) {
	for _, rr := range section {
		if c, is := rr.(*dns.CNAME); is && c.Hdr.Class == dns.ClassINET && fold(c.Hdr.Name) == name {
			return fold(c.Target), seconds(c.Hdr.Ttl), true
		}
	}
	return "", 0, false
}

// negativeTTL returns how long an answer without records holds: RFC 2308, Section 5. The
// SOA must be of a zone that the name is in.
func negativeTTL(section []dns.RR, name string) (time.Duration, bool) {
	for _, rr := range section {
		if soa, ok := rr.(*dns.SOA); ok && within(name, fold(soa.Hdr.Name)) {
			return min(seconds(soa.Hdr.Ttl), seconds(soa.Minttl)), true
		}
	}
	return 0, false
}

// within tells whether the name is the zone's own or below it.
func within(name, zone string) bool {
	rest, ok := strings.CutSuffix(name, zone)
	return zone == "." || ok && (rest == "" || strings.HasSuffix(rest, "."))
}

// seconds is a time to live. RFC 2181, Section 8: one with the highest bit set is 0.
func seconds(ttl uint32) time.Duration {
	if ttl > 1<<31-1 {
		return 0
	}
	return time.Duration(ttl) * time.Second
}

// record turns a record of the library into ours. It is false for one that makes no sense.
func record(rr dns.RR) (r Record, ok bool) {
	switch rr := rr.(type) {
	case *dns.A:
		r.Addr, ok = netip.AddrFromSlice(rr.A.To4())
	case *dns.AAAA:
		r.Addr, ok = netip.AddrFromSlice(rr.AAAA.To16())
	case *dns.CNAME:
		r.Host, ok = fold(rr.Target), true
	case *dns.NS:
		r.Host, ok = fold(rr.Ns), true
	case *dns.PTR:
		r.Host, ok = fold(rr.Ptr), true
	case *dns.MX:
		r.Host, r.Preference, ok = fold(rr.Mx), rr.Preference, true
	case *dns.SRV:
		r.Host, r.Preference, r.Weight, r.Port, ok = fold(rr.Target), rr.Priority, rr.Weight, rr.Port, true
	case *dns.TXT:
		r.Text, ok = unescape(strings.Join(rr.Txt, "")), true
	case *dns.TLSA:
		var data []byte
		data, err := hex.DecodeString(rr.Certificate)
		r.TLSA = TLSA{Usage: rr.Usage, Selector: rr.Selector, MatchingType: rr.MatchingType, Data: string(data)}
		ok = err == nil
	}
	return r, ok
}

// unescape gives back the octets that the library writes as \DDD or behind a backslash.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] != '\\' || i+1 == len(s):
			b = append(b, s[i])
		case i+3 < len(s) && digits(s[i+1:i+4]):
			b = append(b, (s[i+1]-'0')*100+(s[i+2]-'0')*10+s[i+3]-'0')
			i += 3
		default:
			i++
			b = append(b, s[i])
		}
	}
	return string(b)
}

// digits tells whether there are only digits.
func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
