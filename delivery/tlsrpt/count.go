package tlsrpt

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// count.go: the counts of a day. A report tells how often, not when and for whom (RFC 8460,
// Section 4.2), so nothing is kept of a session but one more of its kind. All that comes from
// a peer is cut here, before it is kept.

// Limits of what is kept of a domain on one day. What is beyond them is counted less exactly:
// a failure as one of its type alone. Policies beyond theirs are not told.
const (
	maxPolicies = 32
	maxDetails  = 200 // of a policy
	maxStrings  = 64  // of a policy, and as many patterns
	maxString   = 512
	maxText     = 255
)

// A day is a date in UTC, in the form of dayForm, so that days are ordered as texts.
type day string

const dayForm = time.DateOnly

func dayOf(t time.Time) day { return day(t.UTC().Format(dayForm)) }

// begin is the first moment of d, zero if it is none.
func (d day) begin() time.Time {
	t, err := time.Parse(dayForm, string(d))
	if err != nil {
		return time.Time{}
	}
	return t
}

// end is the first moment behind d.
func (d day) end() time.Time { return d.begin().Add(24 * time.Hour) }

// sums are the counts of domains, on one day.
type sums map[string]*domainSum

// domainSum is what is counted of a domain, by the key of its policies.
type domainSum struct {
	policies map[string]*policySum
}

// policySum is what is counted of a policy.
type policySum struct {
	policy     Policy
	ok, failed int64
	details    map[Failure]int64
}

// key tells policies apart.
func (p Policy) key() string {
	return strings.Join([]string{string(p.Type), p.Domain, strings.Join(p.Strings, "\n"), strings.Join(p.MXHosts, "\n")}, "\x00")
}

// add counts events of one kind, and returns about how many octets more that takes. The policy
// and the failure are clean already.
func (s sums) add(domain string, p Policy, f *Failure, n int64) (size int) {
	d := s[domain]
	if d == nil {
		d = &domainSum{policies: make(map[string]*policySum)}
		s[domain] = d
		size += len(domain) + 200
	}
	key := p.key()
	ps := d.policies[key]
	if ps == nil {
		if len(d.policies) >= maxPolicies {
			return size
		}
		ps = &policySum{policy: p, details: make(map[Failure]int64)}
		d.policies[key] = ps
		size += 2*len(key) + 300
	}
	if f == nil {
		ps.ok += n
		return size
	}
	ps.failed += n
	return size + ps.detail(*f, n)
}

func (p *policySum) detail(f Failure, n int64) (size int) {
	_, ok := p.details[f]
	if !ok && len(p.details) >= maxDetails {
		f = Failure{Type: f.Type}
		_, ok = p.details[f]
	}
	if !ok {
		size = len(f.ReceivingHost) + len(f.ReceivingHelo) + len(f.Reason) + len(f.Additional) + 250
	}
	p.details[f] += n
	return size
}

// merge adds what another counted.
func (s sums) merge(other sums) (size int) {
	for domain, d := range other {
		for _, p := range d.policies {
			size += s.add(domain, p.policy, nil, p.ok)
			for f, n := range p.details {
				size += s.add(domain, p.policy, &f, n)
			}
		}
	}
	return size
}

// shards is in how many parts the domains of a day are stored, read and told.
const shards = 64

func shardOf(domain string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(domain)) // never fails
	return int(h.Sum32() % shards)
}

// The form in which sums are stored: JSON, an object for each domain.
type (
	rowPolicy struct {
		Policy  Policy
		OK      int64       `json:",omitempty"`
		Details []rowDetail `json:",omitempty"`
	}
	rowDetail struct {
		Failure Failure
		Count   int64
	}
)

// encode writes sums down. The same sums give the same octets.
func (s sums) encode() ([]byte, error) {
	rows := make(map[string][]rowPolicy, len(s))
	for domain, d := range s {
		rows[domain] = d.rows()
	}
	return json.Marshal(rows)
}

// rows lists the policies and their details, in an order that depends on nothing but them.
func (d *domainSum) rows() []rowPolicy {
	var list []rowPolicy
	for _, key := range slices.Sorted(maps.Keys(d.policies)) {
		p := d.policies[key]
		r := rowPolicy{Policy: p.policy, OK: p.ok}
		for f, n := range p.details {
			r.Details = append(r.Details, rowDetail{f, n})
		}
		slices.SortFunc(r.Details, func(a, b rowDetail) int { return compareFailures(a.Failure, b.Failure) })
		list = append(list, r)
	}
	return list
}

func compareFailures(a, b Failure) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.ReceivingHost, b.ReceivingHost), a.ReceivingIP.Compare(b.ReceivingIP),
		a.SendingIP.Compare(b.SendingIP), cmp.Compare(a.ReceivingHelo, b.ReceivingHelo), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Additional, b.Additional))
}

// decode adds what encode wrote.
func (s sums) decode(data []byte) error {
	var rows map[string][]rowPolicy
	if err := json.Unmarshal(data, &rows); err != nil {
		return fmt.Errorf("tlsrpt: counts: %w", err)
	}
	for domain, list := range rows {
		if !isName(domain) {
			return errors.New("tlsrpt: counts: of what is no domain")
		}
		for _, r := range list {
			p := r.Policy.clean(domain)
			s.add(domain, p, nil, r.OK)
			for _, d := range r.Details {
				f := d.Failure.clean()
				s.add(domain, p, &f, d.Count)
			}
		}
	}
	return nil
}

// clean returns p for a domain as it is kept: complete, cut, and with slices of its own.
func (p Policy) clean(domain string) Policy {
	p.Type = cmp.Or(p.Type, NoPolicy)
	p.Domain = strings.ToLower(strings.TrimSuffix(clip(p.Domain, maxText), "."))
	if p.Domain == "" {
		p.Domain = domain
	}
	p.Strings, p.MXHosts = clipAll(p.Strings), clipAll(p.MXHosts)
	return p
}

func clipAll(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list[:min(len(list), maxStrings)])
	for i, s := range list {
		list[i] = clip(s, maxString)
	}
	return list
}

// clean returns f as it is kept.
func (f Failure) clean() Failure {
	f.Type = ResultType(clip(string(cmp.Or(f.Type, ValidationFailure)), 64))
	f.SendingIP, f.ReceivingIP = plain(f.SendingIP), plain(f.ReceivingIP)
	f.ReceivingHost, f.ReceivingHelo = clip(f.ReceivingHost, maxText), clip(f.ReceivingHelo, maxText)
	f.Reason, f.Additional = clip(f.Reason, maxText), clip(f.Additional, maxText)
	return f
}

// plain is an address without a zone, which is nobody else's business.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// clip makes text printable and cuts it to n octets, between characters.
func clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
		for i := 0; i < utf8.UTFMax && !utf8.ValidString(s); i++ { // cut within a character
			s = s[:len(s)-1]
		}
	}
	s = strings.ToValidUTF8(s, "?") // not longer, as it is octets that are replaced
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}

// isName tells whether s is a domain name in A-labels and lower case, and so can be the name
// of a file, too.
func isName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}
