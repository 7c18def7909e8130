package dane_test

import (
	"strings"
	"testing"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/internal/parity"
)

func TestParseRecord(t *testing.T) {
	parity.Row(t, "MX-60")
	for _, c := range []struct{ in, want string }{
		{"3 1 1 00ff", "3 1 1 00ff"},
		{"3 1 1 00FF", "3 1 1 00ff"},
		{" 3\t1  1 ( 00\n ff ) ", "3 1 1 00ff"},  // as zone files break lines
		{"DANE-EE SPKI SHA2-256 00", "3 1 1 00"}, // RFC 7218
		{"dane-ta cert full 00", "2 0 0 00"},
		{"255 255 255 00", "255 255 255 00"}, // without a meaning, and a zone may have it
		{"256 1 1 00", ""},
		{"-1 1 1 00", ""},
		{"3 1 1", ""},
		{"3 1 1 0", ""},
		{"3 1 1 0g", ""},
		{"3 SPKI DANE-EE 00", ""},
		{"", ""},
		{"3 1 0 " + strings.Repeat("00", 65532), "3 1 0 " + strings.Repeat("00", 65532)},
		{"3 1 0 " + strings.Repeat("00", 65533), ""}, // more than a record can hold
	} {
		r, err := dane.ParseRecord(c.in)
		got := ""
		if err == nil {
			got = dane.Format(r)
		}
		if got != c.want {
			t.Errorf("%.60q: got %.60q (%v), want %.60q", c.in, got, err, c.want)
		}
	}
	r := dane.Record{Usage: 3, Selector: 1, MatchingType: 9}
	if got, want := dane.Describe(r), "DANE-EE(3) SPKI(1) unknown(9)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// FuzzRecordRoundTrip: what is read is written so that it is read the same again.
func FuzzRecordRoundTrip(f *testing.F) {
	for _, s := range []string{"3 1 1 00ff", "DANE-TA Cert SHA2-512 (00 11)", "9 9 9 ", "3 1 1 zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := dane.ParseRecord(s)
		if err != nil {
			return
		}
		again, err := dane.ParseRecord(dane.Format(r))
		if err != nil || again != r {
			t.Errorf("%q: got %v, then %v (%v)", s, r, again, err)
		}
	})
}

// TestUsable: which records count. Each line has those of a host; with a plus those that
// decide. RFC 7672, Section 3.1.3, RFC 7671, Section 9.
func TestUsable(t *testing.T) {
	leaf := issue(t, nil, spec{name: "leaf", dns: []string{host}})
	of := func(usage, selector, mtype uint8) dane.Record { return tlsa(leaf, usage, selector, mtype) }
	type line struct {
		r    dane.Record
		want bool
	}
	for _, c := range []struct {
		what  string
		lines []line
	}{
		{"one", []line{{of(3, 1, 1), true}}},
		{"for authorities of the web", []line{{of(0, 0, 1), false}, {of(1, 1, 1), false}}},
		{"unknown parameters", []line{{dane.Record{Usage: 4, Selector: 1, MatchingType: 1, Data: of(3, 1, 1).Data}, false},
			{dane.Record{Usage: 3, Selector: 2, MatchingType: 1, Data: of(3, 1, 1).Data}, false},
			{dane.Record{Usage: 3, Selector: 1, MatchingType: 3, Data: of(3, 1, 1).Data}, false},
			{dane.Record{Usage: 255, Selector: 255, MatchingType: 255, Data: "x"}, false}}},
		{"lengths", []line{{dane.Record{Usage: 3, Selector: 1, MatchingType: 1, Data: of(3, 1, 1).Data[:20]}, false},
			{dane.Record{Usage: 3, Selector: 1, MatchingType: 1, Data: of(3, 1, 2).Data}, false},
			{dane.Record{Usage: 3, Selector: 1, MatchingType: 2, Data: of(3, 1, 1).Data}, false},
			{dane.Record{Usage: 3, Selector: 1, MatchingType: 1}, false},
			{dane.Record{Usage: 3, Selector: 1, MatchingType: 0}, false},
			{dane.Record{Usage: 2, Selector: 0, MatchingType: 0, Data: of(3, 0, 0).Data[:100]}, false},
			{dane.Record{Usage: 2, Selector: 0, MatchingType: 0, Data: of(3, 0, 0).Data + "x"}, false},
			{dane.Record{Usage: 3, Selector: 1, MatchingType: 0, Data: of(3, 0, 0).Data}, false}, // a certificate is no key
			{dane.Record{Usage: 3, Selector: 0, MatchingType: 0, Data: of(3, 1, 0).Data}, false}}},
		{"digests of one kind", []line{{of(3, 1, 1), false}, {of(3, 1, 2), true}}},
		{"digests of four kinds", []line{{of(3, 1, 1), false}, {of(3, 1, 2), true}, {of(3, 0, 1), true}, {of(2, 1, 1), true}, {of(2, 0, 2), true}}},
		{"full data stays", []line{{of(3, 1, 0), true}, {of(3, 1, 2), true}, {of(3, 1, 1), false}}},
		{"a digest that is not usable takes none away", []line{{of(3, 1, 1), true}, {dane.Record{Usage: 3, Selector: 1, MatchingType: 2, Data: "x"}, false}, {of(1, 1, 2), false}}},
		{"none", nil},
	} {
		var records, want []dane.Record
		for _, l := range c.lines {
			records = append(records, l.r)
			if l.want {
				want = append(want, l.r)
			}
		}
		got := dane.Usable(records)
		if len(got) != len(want) {
			t.Errorf("%s: got %d records, want %d", c.what, len(got), len(want))
			continue
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s: got %s, want %s", c.what, dane.Format(got[i]), dane.Format(want[i]))
			}
		}
	}
}

// FuzzUsableIsIdempotent: what is usable stays usable, and comes from the records.
func FuzzUsableIsIdempotent(f *testing.F) {
	leaf := issue(f, nil, spec{name: "leaf"})
	f.Add(uint8(3), uint8(1), uint8(1), tlsa(leaf, 3, 1, 1).Data, uint8(3), uint8(1), uint8(2), tlsa(leaf, 3, 1, 2).Data)
	f.Add(uint8(2), uint8(0), uint8(0), tlsa(leaf, 2, 0, 0).Data, uint8(2), uint8(1), uint8(0), tlsa(leaf, 2, 1, 0).Data)
	f.Fuzz(func(t *testing.T, u, s, m uint8, data string, u2, s2, m2 uint8, data2 string) {
		records := []dane.Record{{Usage: u, Selector: s, MatchingType: m, Data: data}, {Usage: u2, Selector: s2, MatchingType: m2, Data: data2}}
		once := dane.Usable(records)
		twice := dane.Usable(once)
		if len(once) != len(twice) {
			t.Errorf("%v: got %v, then %v", records, once, twice)
		}
		for _, r := range once {
			if dane.Why(r) != "" || r != records[0] && r != records[1] {
				t.Errorf("%v: got %v", records, r)
			}
		}
		if len(once) == 0 && (dane.Why(records[0]) == "" || dane.Why(records[1]) == "") {
			t.Errorf("%v: none left", records)
		}
	})
}
