// Package testnet is a small internet in memory, for tests.
//
// [DNS] is what a resolver would say, written like a zone:
//
//	d := testnet.NewDNS(`
//		example.com              MX    10 mx1.example.net
//		mx1.example.net          A     192.0.2.1
//		mx1.example.net          AAAA  2001:db8::1
//		alias.example            CNAME example.com
//		_25._tcp.mx1.example.net TLSA  3 1 1 0123abcd
//		_mta-sts.example.com     TXT   v=STSv1; id=1
//		broken.example           FAIL            # of all types: a temporary failure
//		half.example             FAIL  AAAA      # of one type
//		forged.example           BOGUS
//		lame.example             HANG            # no answer until the caller gives up
//	`)
//	d.Sign("example.com", "example.net") // answers of these zones are authenticated
package testnet

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/resolver"
)

// TTL is how long the answers of a DNS hold.
const TTL = 5 * time.Minute

// DNS is a resolver.DNS whose records a test writes. It is safe for concurrent use.
type DNS struct {
	// Now is the clock; nil is time.Now. It is set before the first look-up.
	Now func() time.Time

	mu      sync.Mutex
	records []resolver.Record
	faults  map[question]fault
	signed  []string
	asked   []Question
}

var _ resolver.DNS = (*DNS)(nil)

// Question is what was asked.
type Question struct {
	Name string
	Type resolver.Type
}

// question is where a fault is; Type is zero for all types.
type question = Question

// fault is how a look-up goes wrong.
type fault struct {
	kind error
	hang bool
	ede  *resolver.ExtendedError
}

var types = map[string]resolver.Type{
	"A": resolver.TypeA, "AAAA": resolver.TypeAAAA, "MX": resolver.TypeMX, "TXT": resolver.TypeTXT,
	"TLSA": resolver.TypeTLSA, "CNAME": resolver.TypeCNAME, "PTR": resolver.TypePTR, "NS": resolver.TypeNS, "SRV": resolver.TypeSRV,
}

// NewDNS returns a DNS with the records of a zone, one in each line: the name, the type and
// the data, as the package comment shows. What follows " #" is left out. It panics if it
// cannot read a line.
func NewDNS(zone string) *DNS {
	d := new(DNS)
	d.Set(zone)
	return d
}

// Set puts other records, and faults, in place of those that are there. It panics if it cannot
// read a line.
func (d *DNS) Set(zone string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records, d.faults = nil, make(map[question]fault)
	d.add(zone)
}

// Add adds records and faults. It panics if it cannot read a line.
func (d *DNS) Add(zone string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.add(zone)
}

// Sign makes answers authentic whose names, each one of a chain of CNAMEs, are in one of the
// zones, the deepest Unsign excepted.
func (d *DNS) Sign(zones ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, z := range zones {
		d.signed = append(d.signed, canonical(z))
	}
}

// Unsign takes names or zones out of those that were signed.
func (d *DNS) Unsign(zones ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, z := range zones {
		d.signed = append(d.signed, "!"+canonical(z))
	}
}

// Asked returns what was looked up so far; a look-up of addresses counts for each family.
func (d *DNS) Asked() []Question {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.asked)
}

func (d *DNS) add(zone string) {
	for line := range strings.SplitSeq(zone, "\n") {
		line, _, _ = strings.Cut(line, " #")
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if err := d.addLine(line); err != nil {
			panic(fmt.Sprintf("testnet: %q: %v", line, err))
		}
	}
}

func (d *DNS) addLine(line string) error {
	f := strings.Fields(line)
	if len(f) < 2 {
		return fmt.Errorf("want a name and a type")
	}
	name, word := canonical(f[0]), f[1]
	switch word {
	case "FAIL", "BOGUS", "HANG":
		q := question{Name: name}
		if len(f) > 2 {
			q.Type = types[f[2]]
		}
		d.faults[q] = faultOf(word)
		return nil
	}
	typ, ok := types[word]
	if !ok {
		return fmt.Errorf("unknown type %s", word)
	}
	_, data, _ := strings.Cut(line, word)
	r := resolver.Record{Name: name, Type: typ, TTL: uint32(TTL / time.Second)}
	err := parse(&r, strings.TrimSpace(data))
	d.records = append(d.records, r)
	return err
}

func faultOf(word string) fault {
	switch word {
	case "BOGUS":
		return fault{kind: resolver.ErrBogus, ede: &resolver.ExtendedError{Code: 6, Text: "bogus"}}
	case "HANG":
		return fault{kind: resolver.ErrTemporary, hang: true}
	}
	return fault{kind: resolver.ErrTemporary}
}

// parse fills in the data of a record.
func parse(r *resolver.Record, data string) (err error) {
	f := strings.Fields(data)
	if len(f) == 0 && r.Type != resolver.TypeTXT {
		return fmt.Errorf("no data")
	}
	switch r.Type {
	case resolver.TypeA, resolver.TypeAAAA:
		if r.Addr, err = netip.ParseAddr(f[0]); err == nil && r.Addr.Is4() != (r.Type == resolver.TypeA) {
			err = fmt.Errorf("address of the other family")
		}
	case resolver.TypeMX:
		if len(f) != 2 {
			return fmt.Errorf("want a preference and a host")
		}
		r.Host = canonical(f[1])
		r.Preference, err = number[uint16](f[0])
	case resolver.TypeTXT:
		r.Text = strings.Trim(data, `"`)
	case resolver.TypeTLSA:
		if len(f) != 4 {
			return fmt.Errorf("want usage, selector, matching type and data")
		}
		return parseTLSA(&r.TLSA, f)
	default:
		r.Host = canonical(f[len(f)-1])
	}
	return err
}

func parseTLSA(t *resolver.TLSA, f []string) error {
	for i, p := range []*uint8{&t.Usage, &t.Selector, &t.MatchingType} {
		n, err := number[uint8](f[i])
		if err != nil {
			return err
		}
		*p = n
	}
	data, err := hex.DecodeString(f[3])
	t.Data = string(data)
	return err
}

func number[T uint8 | uint16](s string) (T, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err == nil && uint64(T(n)) != n {
		err = strconv.ErrRange
	}
	return T(n), err
}

// canonical is a name in lower case, without the dot at its end; the root is ".".
func canonical(name string) string {
	name = strings.ToLower(name)
	if name == "." {
		return name
	}
	return strings.TrimSuffix(name, ".")
}

// Lookup is that of resolver.DNS.
func (d *DNS) Lookup(ctx context.Context, name string, typ resolver.Type) (resolver.Answer, error) {
	asked := canonical(name)
	a, f := d.find(asked, typ)
	var err error
	switch {
	case f.hang:
		<-ctx.Done()
		err = &resolver.Error{Name: asked, Type: typ, Kind: f.kind, Cause: context.Cause(ctx)}
	case f.kind != nil:
		e := &resolver.Error{Name: asked, Type: typ, Kind: f.kind}
		if e.EDE = f.ede; !e.Temporary() {
			e.Meta = a.Meta
		}
		err = e
	case ctx.Err() != nil:
		err = &resolver.Error{Name: asked, Type: typ, Kind: resolver.ErrTemporary, Cause: context.Cause(ctx)}
	}
	if err != nil {
		return resolver.Answer{}, err
	}
	return a, nil
}

// find follows CNAMEs and returns what is there, or the fault that the look-up has; that
// there is nothing is one.
func (d *DNS) find(name string, typ resolver.Type) (resolver.Answer, fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, Question{name, typ})
	now := time.Now
	if d.Now != nil {
		now = d.Now
	}
	a := resolver.Answer{Meta: resolver.Meta{Canonical: name, Authentic: true, Expires: now().Add(TTL)}}
	for range 10 {
		a.Authentic = a.Authentic && d.isSigned(a.Canonical)
		if f, ok := d.faults[question{Name: a.Canonical}]; ok {
			return a, f
		}
		if f, ok := d.faults[question{a.Canonical, typ}]; ok {
			return a, f
		}
		next := ""
		for _, r := range d.records {
			switch {
			case r.Name != a.Canonical:
			case r.Type == typ:
				a.Records = append(a.Records, r)
			case r.Type == resolver.TypeCNAME:
				next = r.Host
			}
		}
		switch {
		case len(a.Records) > 0:
			return a, fault{}
		case next == "":
			return a, fault{kind: d.nothing(a.Canonical)}
		}
		a.Canonical = next
	}
	return a, fault{kind: resolver.ErrTemporary} // a loop
}

// nothing tells why there are no records: the name is there, or something below it, or not.
func (d *DNS) nothing(name string) error {
	for _, r := range d.records {
		if r.Name == name || strings.HasSuffix(r.Name, "."+name) {
			return resolver.ErrNoData
		}
	}
	return resolver.ErrNoName
}

// isSigned tells whether the last word about the deepest zone of the name is that it is.
func (d *DNS) isSigned(name string) bool {
	depth, signed := -1, false
	for _, z := range d.signed {
		zone, not := strings.CutPrefix(z, "!")
		if (zone == "." || name == zone || strings.HasSuffix(name, "."+zone)) && len(zone) >= depth {
			depth, signed = len(zone), !not
		}
	}
	return signed
}

// LookupAddrs is that of resolver.DNS.
func (d *DNS) LookupAddrs(ctx context.Context, name string, f resolver.Families) (resolver.Addrs, error) {
	var list resolver.Addrs
	var failed []error
	for _, typ := range []resolver.Type{resolver.TypeA, resolver.TypeAAAA} {
		if f == resolver.IPv4 && typ == resolver.TypeAAAA || f == resolver.IPv6 && typ == resolver.TypeA {
			continue
		}
		a, err := d.Lookup(ctx, name, typ)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		list.Meta = a.Meta
		for _, r := range a.Records {
			list.Addrs = append(list.Addrs, r.Addr)
		}
	}
	temporary := slices.IndexFunc(failed, func(err error) bool { return err.(*resolver.Error).Temporary() })
	switch {
	case len(list.Addrs) > 0 && temporary >= 0:
		list.Failed = failed[temporary]
	case len(list.Addrs) > 0:
	case temporary >= 0:
		return resolver.Addrs{}, failed[temporary]
	default:
		return resolver.Addrs{}, failed[0]
	}
	return list, nil
}

// values takes a value from each record.
func values[T any](a resolver.Answer, err error, value func(resolver.Record) T) (resolver.Result[T], error) {
	if err != nil {
		return resolver.Result[T]{}, err
	}
	r := resolver.Result[T]{Meta: a.Meta}
	for _, rec := range a.Records {
		r.Records = append(r.Records, value(rec))
	}
	return r, nil
}

func host(r resolver.Record) string { return r.Host }

// LookupMX is that of resolver.DNS.
func (d *DNS) LookupMX(ctx context.Context, name string) (resolver.Result[resolver.MX], error) {
	a, err := d.Lookup(ctx, name, resolver.TypeMX)
	slices.SortStableFunc(a.Records, func(a, b resolver.Record) int { return int(a.Preference) - int(b.Preference) })
	return values(a, err, func(r resolver.Record) resolver.MX { return resolver.MX{Preference: r.Preference, Host: r.Host} })
}

// LookupTXT is that of resolver.DNS.
func (d *DNS) LookupTXT(ctx context.Context, name string) (resolver.Result[string], error) {
	a, err := d.Lookup(ctx, name, resolver.TypeTXT)
	return values(a, err, func(r resolver.Record) string { return r.Text })
}

// LookupTLSA is that of resolver.DNS.
func (d *DNS) LookupTLSA(ctx context.Context, name string) (resolver.Result[resolver.TLSA], error) {
	a, err := d.Lookup(ctx, name, resolver.TypeTLSA)
	return values(a, err, func(r resolver.Record) resolver.TLSA { return r.TLSA })
}

// LookupCNAME is that of resolver.DNS.
func (d *DNS) LookupCNAME(ctx context.Context, name string) (resolver.Result[string], error) {
	a, err := d.Lookup(ctx, name, resolver.TypeCNAME)
	return values(a, err, host)
}

// LookupPTR is that of resolver.DNS. The name is that of RFC 1035, Section 3.5, for IPv4; for
// others there are no records.
func (d *DNS) LookupPTR(ctx context.Context, addr netip.Addr) (resolver.Result[string], error) {
	b := addr.Unmap().AsSlice()
	slices.Reverse(b)
	var name strings.Builder
	for _, o := range b {
		fmt.Fprintf(&name, "%d.", o)
	}
	a, err := d.Lookup(ctx, name.String()+"in-addr.arpa", resolver.TypePTR)
	return values(a, err, host)
}
