package resolver

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzReply: whatever a server sends is a failure, or an answer within all limits to the
// question that was asked.
func FuzzReply(f *testing.F) {
	zone := &fake{}
	zone.zone = parseZone(f, exampleZone)
	for _, typ := range []Type{TypeA, TypeAAAA, TypeMX, TypeTXT, TypeTLSA, TypePTR, TypeCNAME, TypeNS} {
		for _, name := range []string{"a.example.net.", "example.net.", "_25._tcp.mx1.example.net.", "none.example.net."} {
			q := newQuery(name, typ)
			m := zone.answer(q)
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: 6, ExtraText: "x"}}
			b, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b, name, uint16(typ))
			f.Add(b[:len(b)-3], name, uint16(typ))
		}
	}
	f.Fuzz(func(t *testing.T, wire []byte, name string, typ uint16) {
		k, err := question(name, Type(typ))
		if err != nil {
			return
		}
		query := newQuery(k.name, k.typ)
		if len(wire) > 1 {
			query.Id = binary.BigEndian.Uint16(wire)
		}
		if _, err := query.Pack(); err != nil {
			t.Fatalf("the query for %q cannot be sent: %v", name, err)
		}
		m, err := parseReply(query, wire)
		if err != nil {
			return
		}
		if m.Id != query.Id || !m.Response || len(m.Question) > 1 {
			t.Fatalf("took %v for a reply to %v", m, query)
		}
		if len(m.Question) == 1 && (fold(m.Question[0].Name) != k.name || m.Question[0].Qtype != typ) {
			t.Fatalf("took a reply about %q for one about %q", m.Question[0].Name, k.name)
		}
		if e := extended(m); e != nil && len(e.Text) > maxText {
			t.Errorf("%d octets of text", len(e.Text))
		}
		checkAnswer(t, m, k)
		query.Id++
		if _, err := parseReply(query, wire); !errors.Is(err, errForeign) {
			t.Errorf("another number: got %v, want errForeign", err)
		}
	})
}

func checkAnswer(t *testing.T, m *dns.Msg, k key) {
	a, err := readAnswer(m, k.name, k.typ)
	if err != nil {
		return
	}
	if a.links > maxChain || len(a.records) > maxRecords || a.ttl < 0 || a.ttl > time.Hour {
		t.Errorf("%d links, %d records, for %v", a.links, len(a.records), a.ttl)
	}
	if a.links == 0 && a.canonical != k.name || a.open && len(a.records) > 0 {
		t.Errorf("got %+v for %s", a, k.name)
	}
	for _, r := range a.records {
		if r.Name != a.canonical || r.Type != k.typ || r.Host != strings.ToLower(r.Host) {
			t.Errorf("got %+v for %s %s", r, k.name, k.typ)
		}
	}
}

// FuzzText: a text comes out with the octets that were sent, whatever they are.
func FuzzText(f *testing.F) {
	for _, s := range []string{"v=spf1 -all", "\x00\xff", `\"`, `\065`, "\\", ""} {
		f.Add(s)
	}
	query := newQuery("x.example", TypeTXT)
	m := new(dns.Msg)
	m.SetReply(query)
	head, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var data []byte
		for rest := text; rest != "" || data == nil; {
			n := min(len(rest), 255)
			data = append(append(data, byte(n)), rest[:n]...)
			rest = rest[n:]
		}
		wire := append([]byte(nil), head...)
		wire[7] = 1 // one answer, whose owner is the name of the question
		wire = append(wire, 0xc0, 12, 0, 16, 0, 1, 0, 0, 0, 60)
		wire = append(binary.BigEndian.AppendUint16(wire, uint16(len(data))), data...)
		if len(wire) > dns.MaxMsgSize {
			return
		}
		m, err := parseReply(query, wire)
		if err != nil {
			t.Fatal(err)
		}
		a, err := readAnswer(m, "x.example", TypeTXT)
		if err != nil || len(a.records) != 1 || a.records[0].Text != text {
			t.Errorf("got %+v, %v; want %q", a, err, text)
		}
	})
}

// FuzzNormalise: a name that is taken can be sent, and comes back the same.
func FuzzNormalise(f *testing.F) {
	for _, s := range []string{"example.net", "Example.NET.", ".", "a..b", `odd'(name)@x;".example`, "sp ace.x", strings.Repeat("a.", 126) + "a"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, ok := normalise(s)
		if !ok {
			return
		}
		wire, err := newQuery(name, TypeA).Pack()
		if err != nil {
			t.Fatalf("%q cannot be sent as %q: %v", s, name, err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(wire); err != nil || fold(m.Question[0].Name) != name {
			t.Errorf("%q was sent as %q and came back as %v, %v", s, name, m.Question, err)
		}
		if hostName(name) && strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) {
			t.Errorf("%q passes for the name of a host", name)
		}
	})
}
