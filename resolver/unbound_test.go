package resolver_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/resolver"
)

// unbound_test.go asks a real validating resolver about zones that are signed, signed
// wrongly, and not signed.

// signer is the authoritative server of some zones, on the loopback. It signs its answers
// while it gives them; that a type is not there it says with a record for the name alone
// (RFC 4470).
type signer struct {
	addr  string
	zones map[string]*zone
}

// zone is a zone with one key for all. Without a key it is not signed.
type zone struct {
	key    *dns.DNSKEY
	secret crypto.Signer
	rrs    []dns.RR
	spoil  func(*dns.RRSIG) // what is done to signatures, nil if nothing
	silent bool
}

func newZone(t *testing.T, name string, signed bool, text string) *zone {
	t.Helper()
	z := &zone{}
	text = fmt.Sprintf("$ORIGIN %[1]s\n$TTL 300\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 127.0.0.1\n%[2]s", name, text)
	p := dns.NewZoneParser(strings.NewReader(text), name, "zone")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		z.rrs = append(z.rrs, rr)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	if !signed {
		return z
	}
	z.key = &dns.DNSKEY{
		Hdr:   dns.RR_Header{Name: name, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: 300},
		Flags: 257, Protocol: 3, Algorithm: dns.ECDSAP256SHA256,
	}
	secret, err := z.key.Generate(256)
	if err != nil {
		t.Fatal(err)
	}
	z.secret = secret.(crypto.Signer)
	z.rrs = append(z.rrs, z.key)
	return z
}

// newSigner starts the server for the time of the test.
func newSigner(t *testing.T, zones map[string]*zone) *signer {
	t.Helper()
	s := &signer{zones: zones}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = l.Addr().String()
	pc, err := net.ListenPacket("udp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	for _, srv := range []*dns.Server{{PacketConn: pc, UDPSize: 4096}, {Listener: l}} {
		started, done := make(chan struct{}), make(chan struct{})
		srv.Handler, srv.NotifyStartedFunc = s, func() { close(started) }
		go func() {
			defer close(done)
			srv.ActivateAndServe()
		}()
		<-started
		t.Cleanup(func() {
			srv.Shutdown()
			<-done
		})
	}
	return s
}

// ServeDNS answers one query of the resolver.
func (s *signer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	name := strings.ToLower(q.Question[0].Name)
	for origin, z := range s.zones {
		if !dns.IsSubDomain(origin, name) {
			continue
		}
		if z.silent {
			return
		}
		m := new(dns.Msg)
		m.SetReply(q)
		m.Authoritative = true
		m.SetEdns0(4096, true)
		z.answer(m, origin, name, q.Question[0].Qtype)
		w.WriteMsg(m)
		return
	}
}

// answer fills in a reply.
func (z *zone) answer(m *dns.Msg, origin, name string, typ uint16) {
	present := z.types(name)
	switch {
	case slices.Contains(present, typ):
		m.Answer = z.signed(origin, z.set(name, typ))
		return
	case slices.Contains(present, dns.TypeCNAME):
		m.Answer = z.signed(origin, z.set(name, dns.TypeCNAME))
		return
	}
	m.Ns = z.signed(origin, z.set(origin, dns.TypeSOA))
	if z.key == nil {
		if len(present) == 0 {
			m.Rcode = dns.RcodeNameError
		}
		return
	}
	// RFC 4470, Section 4: a record that covers nothing but this name. A name that does
	// not exist is said to have no types.
	present = append(present, dns.TypeRRSIG, dns.TypeNSEC)
	slices.Sort(present)
	m.Ns = append(m.Ns, z.signed(origin, []dns.RR{&dns.NSEC{
		Hdr:        dns.RR_Header{Name: name, Rrtype: dns.TypeNSEC, Class: dns.ClassINET, Ttl: 60},
		NextDomain: `\000.` + name, TypeBitMap: present,
	}})...)
}

func (z *zone) types(name string) []uint16 {
	var list []uint16
	for _, rr := range z.rrs {
		if t := rr.Header().Rrtype; rr.Header().Name == name && !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	return list
}

func (z *zone) set(name string, typ uint16) []dns.RR {
	var list []dns.RR
	for _, rr := range z.rrs {
		if rr.Header().Name == name && rr.Header().Rrtype == typ {
			list = append(list, rr)
		}
	}
	return list
}

// signed returns the set with its signature. The keys' own is never spoiled.
func (z *zone) signed(origin string, set []dns.RR) []dns.RR {
	if z.key == nil {
		return set
	}
	h := set[0].Header()
	now := time.Now()
	sig := &dns.RRSIG{
		Hdr:       dns.RR_Header{Name: h.Name, Rrtype: dns.TypeRRSIG, Class: dns.ClassINET, Ttl: h.Ttl},
		Algorithm: z.key.Algorithm, KeyTag: z.key.KeyTag(), SignerName: origin,
		Inception: uint32(now.Add(-time.Hour).Unix()), Expiration: uint32(now.Add(time.Hour).Unix()),
	}
	if h.Rrtype != dns.TypeDNSKEY && z.spoil != nil {
		z.spoil(sig)
	}
	if err := sig.Sign(z.secret, set); err != nil {
		return nil
	}
	return append(slices.Clone(set), sig)
}

func lookup(t *testing.T, r *resolver.Resolver, name string, typ resolver.Type, limit time.Duration) (resolver.Answer, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return r.Lookup(ctx, name, typ)
}

// TestUnbound shows what the AD bit and the extended errors of a real resolver lead to.
func TestUnbound(t *testing.T) {
	const mail = `
@ MX 10 mx
mx A 192.0.2.1
mx AAAA 2001:db8::1
_25._tcp.mx TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
out CNAME mx.insecure.peers.
in CNAME mx
`
	zones := map[string]*zone{
		"secure.peers.":   newZone(t, "secure.peers.", true, mail),
		"insecure.peers.": newZone(t, "insecure.peers.", false, mail),
		"bogus.peers.":    newZone(t, "bogus.peers.", true, mail),
		"silent.peers.":   newZone(t, "silent.peers.", false, mail),
	}
	zones["silent.peers."].silent = true
	zones["bogus.peers."].spoil = func(sig *dns.RRSIG) { // expired two days ago
		sig.Inception, sig.Expiration = sig.Inception-2*86400, sig.Expiration-2*86400
	}
	many := ""
	for i := range 200 {
		many += fmt.Sprintf("many A 192.0.2.%d\n", i)
	}
	zones["many.peers."] = newZone(t, "many.peers.", false, many)
	auth := newSigner(t, zones)
	opt := peers.UnboundOptions{
		Data:  []string{"local.peers. MX 0 .", "1.2.0.192.in-addr.arpa. PTR mx.secure.peers."},
		Zones: map[string]string{},
	}
	for name, z := range zones {
		opt.Zones[name] = auth.addr
		if z.key != nil {
			opt.Anchors = append(opt.Anchors, strings.Join(strings.Fields(z.key.String()), " "))
		}
	}
	unbound := peers.Unbound(t, opt)
	r, err := resolver.New(resolver.Options{
		Servers: []resolver.Server{{Address: unbound.Addr}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()

	for _, tt := range []struct {
		name      string
		typ       resolver.Type
		records   int
		authentic bool
		err       error
		canonical string
	}{
		{"secure.peers", resolver.TypeMX, 1, true, nil, ""},
		{"mx.secure.peers", resolver.TypeAAAA, 1, true, nil, ""},
		{"_25._tcp.mx.secure.peers", resolver.TypeTLSA, 1, true, nil, ""},
		{"in.secure.peers", resolver.TypeA, 1, true, nil, "mx.secure.peers"},
		// The end of the chain is insecure, and so is the whole answer; its first step
		// alone is not.
		{"out.secure.peers", resolver.TypeA, 1, false, nil, "mx.insecure.peers"},
		{"out.secure.peers", resolver.TypeCNAME, 1, true, nil, ""},
		{"mx.secure.peers", resolver.TypeTXT, 0, true, resolver.ErrNoData, ""},
		{"insecure.peers", resolver.TypeMX, 1, false, nil, ""},
		{"mx.insecure.peers", resolver.TypeTXT, 0, false, resolver.ErrNoData, ""},
		{"none.insecure.peers", resolver.TypeTXT, 0, false, resolver.ErrNoName, ""},
		{"bogus.peers", resolver.TypeMX, 0, false, resolver.ErrBogus, ""},
		{"_25._tcp.mx.bogus.peers", resolver.TypeTLSA, 0, false, resolver.ErrBogus, ""},
		{"silent.peers", resolver.TypeMX, 0, false, resolver.ErrTemporary, ""},
		{"local.peers", resolver.TypeMX, 1, false, nil, ""},
		{"elsewhere.peers", resolver.TypeMX, 0, false, resolver.ErrTemporary, ""},
		{"many.many.peers", resolver.TypeA, 200, false, nil, ""}, // over TCP
	} {
		limit := time.Minute
		if strings.HasPrefix(tt.name, "silent") { // Unbound would try for a minute
			limit = 300 * time.Millisecond
		}
		a, err := lookup(t, r, tt.name, tt.typ, limit)
		meta := a.Meta
		if e := (*resolver.Error)(nil); errors.As(err, &e) {
			meta = e.Meta
		}
		if len(a.Records) != tt.records || meta.Authentic != tt.authentic || !errors.Is(err, tt.err) {
			t.Errorf("%s %s: got %+v, %v; want %d records, authentic %v, %v", tt.name, tt.typ, a, err, tt.records, tt.authentic, tt.err)
		}
		if tt.canonical != "" && meta.Canonical != tt.canonical {
			t.Errorf("%s: got the name %s, want %s", tt.name, meta.Canonical, tt.canonical)
		}
		if errors.Is(err, resolver.ErrBogus) {
			t.Log(err)
		}
	}
	id := r.Name(t.Context(), netip.MustParseAddr("192.0.2.1"))
	if id.Status != resolver.Confirmed || id.Name != "mx.secure.peers" {
		t.Errorf("192.0.2.1: got %+v, want mx.secure.peers, confirmed", id)
	}
	if s := r.Stats(); s.Streams == 0 || s.Bogus != 2 || s.Foreign != 0 {
		t.Errorf("got %+v, want a stream, two bogus answers, nothing foreign", s)
	}
}
