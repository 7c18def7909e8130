package lab

// zone.go makes the zones and signs them (RFC 4034, RFC 4035) with one key for each zone.
// Signing is simple where everything is known in advance, and it has to be done here:
// tools that sign refuse to make the mistakes that a test needs.

import (
	"crypto"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Kind says how a zone hangs on its parent.
type Kind int

// The kinds of zones.
const (
	// Signed zones have a DS in their parent. They are secure if that is.
	Signed Kind = iota
	// Insecure zones have no DS, and no signatures.
	Insecure
	// Bogus zones are signed, but the DS in the parent is of another key.
	Bogus
	// Lame zones are delegated to a server that refuses all questions, so that the resolver
	// says SERVFAIL at once.
	Lame
	// Silent zones are delegated to a server that answers no question, so that the resolver
	// keeps its clients waiting.
	Silent
)

// ttl of all records, in seconds. No test lasts so long.
const ttl = 3600

// Zone is a zone of the world. It is filled before World.Start; what is changed later counts
// from World.Update on. Its methods are for one goroutine at a time.
type Zone struct {
	t       testing.TB
	name    string // absolute, in lower case
	kind    Kind
	server  string // the address that its NS record leads to
	records []dns.RR
	broken  []set // whose signatures are wrong
	dropped []set // whose signatures are missing
	key     *dns.DNSKEY
	signer  crypto.Signer
	empty   bool // nobody has its records
}

// set names an RRset.
type set struct {
	name string
	typ  uint16
}

func newZone(t testing.TB, name string, kind Kind, server string) *Zone {
	z := &Zone{t: t, name: dns.CanonicalName(name), kind: kind, server: server, empty: kind == Lame || kind == Silent}
	z.Add("@ SOA ns hostmaster 1 3600 600 86400 60", "@ NS ns", "ns A "+server)
	if kind == Signed || kind == Bogus {
		z.key, z.signer = newKey(t, z.name)
		z.records = append(z.records, z.key)
	}
	return z
}

// newKey makes a key for the zone that signs everything in it.
func newKey(t testing.TB, zone string) (*dns.DNSKEY, crypto.Signer) {
	key := &dns.DNSKEY{
		Hdr:       dns.RR_Header{Name: zone, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: ttl},
		Flags:     dns.ZONE | dns.SEP,
		Protocol:  3,
		Algorithm: dns.ECDSAP256SHA256,
	}
	private, err := key.Generate(256)
	if err != nil {
		t.Fatalf("lab: make key of %s: %v", zone, err)
	}
	return key, private.(crypto.Signer)
}

// Name is the name of the zone, without a dot at the end unless it is the root.
func (z *Zone) Name() string {
	if z.name == "." {
		return z.name
	}
	return strings.TrimSuffix(z.name, ".")
}

// Add adds records in the form of a zone file, one a line. Names without a dot at the end
// are in the zone, and @ is the zone itself.
func (z *Zone) Add(lines ...string) {
	z.t.Helper()
	p := dns.NewZoneParser(strings.NewReader(strings.Join(lines, "\n")+"\n"), z.name, "")
	p.SetDefaultTTL(ttl)
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		if name := dns.CanonicalName(rr.Header().Name); !dns.IsSubDomain(z.name, name) {
			z.t.Fatalf("lab: %s is not in the zone %s", name, z.name)
		}
		rr.Header().Name = dns.CanonicalName(rr.Header().Name)
		z.records = append(z.records, rr)
	}
	if err := p.Err(); err != nil {
		z.t.Fatalf("lab: records of %s: %v", z.name, err)
	}
}

// TLSA adds a TLSA record for port 25 of a host in the zone: "3 1 1" and such, and the
// certificate.
func (z *Zone) TLSA(host, how string, c *Cert) {
	z.t.Helper()
	z.Add("_25._tcp." + host + " TLSA " + c.TLSA(z.t, how))
}

// Remove takes an RRset out.
func (z *Zone) Remove(name string, typ uint16) {
	name = z.absolute(name)
	z.records = slices.DeleteFunc(z.records, func(rr dns.RR) bool {
		return rr.Header().Name == name && rr.Header().Rrtype == typ
	})
}

// Break makes the signature of an RRset wrong, which is what a changed record looks like.
// The name is as in Add.
func (z *Zone) Break(name string, typ uint16) {
	z.broken = append(z.broken, set{z.absolute(name), typ})
}

// Unsign leaves the signature of an RRset out.
func (z *Zone) Unsign(name string, typ uint16) {
	z.dropped = append(z.dropped, set{z.absolute(name), typ})
}

func (z *Zone) absolute(name string) string {
	switch {
	case name == "@":
		return z.name
	case strings.HasSuffix(name, "."):
		return dns.CanonicalName(name)
	case z.name == ".":
		return dns.CanonicalName(name)
	}
	return dns.CanonicalName(name + "." + z.name)
}

// delegate adds what the parent says about a child.
func (z *Zone) delegate(child *Zone) {
	ns := strings.TrimSuffix(child.name, ".")
	z.Add(fmt.Sprintf("%s. NS ns.%s.", ns, ns), fmt.Sprintf("ns.%s. A %s", ns, child.server))
	switch child.kind {
	case Signed:
		z.records = append(z.records, child.key.ToDS(dns.SHA256))
	case Bogus:
		other, _ := newKey(z.t, child.name)
		z.records = append(z.records, other.ToDS(dns.SHA256))
	}
}

// anchor is the DS of the zone, for a resolver that is to trust it.
func (z *Zone) anchor() string { return z.key.ToDS(dns.SHA256).String() }

// file returns the zone as a zone file, with its signatures.
func (z *Zone) file() string {
	records := z.records
	if z.key != nil {
		records = z.sign()
	}
	var b strings.Builder
	for _, rr := range records {
		fmt.Fprintln(&b, rr)
	}
	return b.String()
}

// sign returns the records with NSEC records and signatures.
func (z *Zone) sign() []dns.RR {
	sets := make(map[set][]dns.RR)
	for _, rr := range z.records {
		k := set{rr.Header().Name, rr.Header().Rrtype}
		sets[k] = append(sets[k], rr)
	}
	for _, nsec := range z.chain(sets) {
		sets[set{nsec.Hdr.Name, dns.TypeNSEC}] = []dns.RR{nsec}
	}
	var all []dns.RR
	for k, rrs := range sets {
		all = append(all, rrs...)
		if z.authoritative(k) && !slices.Contains(z.dropped, k) {
			all = append(all, z.signature(k, rrs))
		}
	}
	return all
}

// authoritative tells whether the zone signs a set: not the NS records of a delegation, nor
// what is below one (RFC 4035, Section 2.2).
func (z *Zone) authoritative(k set) bool {
	cut := z.cut(k.name)
	return cut == "" || cut == k.name && (k.typ == dns.TypeDS || k.typ == dns.TypeNSEC)
}

// cut returns the delegation that the name is at or below; empty if there is none.
func (z *Zone) cut(name string) string {
	for _, rr := range z.records {
		if h := rr.Header(); h.Rrtype == dns.TypeNS && h.Name != z.name && dns.IsSubDomain(h.Name, name) {
			return h.Name
		}
	}
	return ""
}

// signature signs a set.
func (z *Zone) signature(k set, rrs []dns.RR) *dns.RRSIG {
	now := time.Now()
	sig := &dns.RRSIG{
		Hdr:        dns.RR_Header{Name: k.name, Rrtype: dns.TypeRRSIG, Class: dns.ClassINET, Ttl: rrs[0].Header().Ttl},
		Algorithm:  z.key.Algorithm,
		Inception:  uint32(now.Add(-time.Hour).Unix()),
		Expiration: uint32(now.Add(24 * time.Hour).Unix()),
		KeyTag:     z.key.KeyTag(),
		SignerName: z.name,
	}
	if err := sig.Sign(z.signer, rrs); err != nil {
		z.t.Fatalf("lab: sign %s %s: %v", k.name, dns.Type(k.typ), err)
	}
	if slices.Contains(z.broken, k) {
		sig.Signature = flip(sig.Signature)
	}
	return sig
}

// flip changes one letter of base64.
func flip(s string) string {
	other := byte('A')
	if s[10] == other {
		other = 'B'
	}
	return s[:10] + string(other) + s[11:]
}

// chain returns the NSEC records (RFC 4034, Section 4): each name that has authoritative
// records, or a delegation, points to the next in canonical order.
func (z *Zone) chain(sets map[set][]dns.RR) []*dns.NSEC {
	types := make(map[string][]uint16)
	for k := range sets {
		if cut := z.cut(k.name); cut == "" || cut == k.name && (k.typ == dns.TypeNS || k.typ == dns.TypeDS) {
			types[k.name] = append(types[k.name], k.typ)
		}
	}
	var names []string
	for name := range types {
		names = append(names, name)
	}
	slices.SortFunc(names, canonical)
	var nsecs []*dns.NSEC
	for i, name := range names {
		bitmap := append(types[name], dns.TypeNSEC, dns.TypeRRSIG)
		slices.Sort(bitmap)
		nsecs = append(nsecs, &dns.NSEC{
			Hdr:        dns.RR_Header{Name: name, Rrtype: dns.TypeNSEC, Class: dns.ClassINET, Ttl: 60},
			NextDomain: names[(i+1)%len(names)],
			TypeBitMap: bitmap,
		})
	}
	return nsecs
}

// canonical is the order of RFC 4034, Section 6.1: label by label from the right.
func canonical(a, b string) int {
	x, y := dns.SplitDomainName(a), dns.SplitDomainName(b)
	slices.Reverse(x)
	slices.Reverse(y)
	return slices.Compare(x, y)
}
