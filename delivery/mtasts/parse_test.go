package mtasts

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseRecord(t *testing.T) {
	for _, tt := range []struct {
		texts []string
		id    string
		err   error
	}{
		{[]string{"v=STSv1; id=20160831085700Z;"}, "20160831085700Z", nil}, // RFC 8461, Section 3.1
		{[]string{"v=STSv1;id=1"}, "1", nil},
		{[]string{"v=STSv1; \t id=1 ; "}, "1", nil},
		{[]string{"v=STSv1 ; id=1"}, "1", nil}, // erratum 6285
		{[]string{"v=STSv1; ext=a:b!; id=1; x.y-z_1=2"}, "1", nil},
		{[]string{"v=STSv1; id=1; id=2"}, "1", nil}, // the first counts
		{[]string{"v=spf1 -all", "v=STSv1; id=1"}, "1", nil},
		{[]string{"v=STSv1; id=1", "v=STSv1 ; id=2"}, "1", nil}, // the second does not begin as the text says
		{[]string{"v=STSv1; id=" + strings.Repeat("a", 32)}, strings.Repeat("a", 32), nil},

		{nil, "", ErrNoRecord},
		{[]string{""}, "", ErrNoRecord},
		{[]string{"v=spf1 -all"}, "", ErrNoRecord},
		{[]string{"V=STSv1; id=1"}, "", ErrNoRecord}, // the grammar says %s
		{[]string{"v=STSv10; id=1"}, "", ErrNoRecord},
		{[]string{" v=STSv1; id=1"}, "", ErrNoRecord},
		{[]string{"id=1; v=STSv1;"}, "", ErrNoRecord}, // the version comes first
		{[]string{"v=STSv1; id=1", "v=STSv1; id=1"}, "", errRecords},
		{[]string{"v=STSv1;"}, "", errNoID},
		{[]string{"v=STSv1; ext=1"}, "", errNoID},
		{[]string{"v=STSv1; ID=1"}, "", errNoID},
		{[]string{"v=STSv1; id="}, "", errRecordField},
		{[]string{"v=STSv1; id=a-b"}, "", errID},
		{[]string{"v=STSv1; id=" + strings.Repeat("a", 33)}, "", errID},
		{[]string{"v=STSv1; id"}, "", errRecordField},
		{[]string{"v=STSv1;; id=1"}, "", errRecordField},
		{[]string{"v=STSv1; id=1;;"}, "", errRecordField},
		{[]string{"v=STSv1; id=1; a=b=c"}, "", errRecordField},
		{[]string{"v=STSv1; id=1; a=\xff"}, "", errRecordField},
		{[]string{"v=STSv1; id=1; -a=b"}, "", errRecordField},
		{[]string{"v=STSv1; id=1 2"}, "", errRecordField},
		{[]string{"v=STSv1 x; id=1"}, "", errRecordField},
		{[]string{"v=STSv1 "}, "", errRecordField},
	} {
		id, err := ParseRecord(tt.texts)
		if id != tt.id || !errors.Is(err, tt.err) {
			t.Errorf("record %q: got %q, %v, want %q, %v", tt.texts, id, err, tt.id, tt.err)
		}
	}
}

func TestParsePolicy(t *testing.T) {
	const year = 31557600
	for _, tt := range []struct {
		body string
		mode Mode
		age  int
		mx   string // separated by spaces
		err  error
	}{
		// RFC 8461, Section 3.2, with both ends of lines.
		{"version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmx: backupmx.example.com\nmax_age: 604800\n",
			Enforce, 604800, "mail.example.com *.example.net backupmx.example.com", nil},
		{"version: STSv1\r\nmode: testing\r\nmx: mail.example.com\r\nmax_age: 1\r\n", Testing, 1, "mail.example.com", nil},
		{"version: STSv1\r\nmode: testing\nmx: a.example\r\nmax_age: 1", Testing, 1, "a.example", nil}, // mixed, and none at the end
		{"version: STSv1\nmode: none\nmax_age: 0\n", None, 0, "", nil},
		{"version:STSv1\nmode:none\nmax_age:\t 7 \t\n", None, 7, "", nil},
		{"version: STSv1\nmode: none\nmax_age: 31557600\n\n\r\n", None, year, "", nil},
		{"version: STSv1\nmode: none\nmax_age: 0000000007\n", None, 7, "", nil},
		{"version: STSv1\nmode: enforce\nmx: MX.Example.COM\nmx: xn--bcher-kva.example\nmax_age: 1\n", Enforce, 1, "mx.example.com xn--bcher-kva.example", nil},
		{"version: STSv1\nmode: enforce\nmax_age: 1\nmx: a.example\nnew.key: wert, grün: 1\n", Enforce, 1, "a.example", nil},
		// The first counts: whoever takes the last lets enforce become none.
		{"version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 9\nmode: none\nmax_age: 1\nversion: STSv2\n", Enforce, 9, "a.example", nil},
		{"version: STSv1\nmode: enforce\nmx: a.example\nmax_age: 9\nmax_age: much\n", Enforce, 9, "a.example", nil},

		{"", "", 0, "", errNoVersion},
		{"mode: none\nversion: STSv1\nmax_age: 1\n", "", 0, "", errNotFirst},
		{"\ufeffversion: STSv1\nmode: none\nmax_age: 1\n", "", 0, "", errNoField},
		{"version: STSv2\nmode: none\nmax_age: 1\n", "", 0, "", errVersion},
		{"version: stsv1\nmode: none\nmax_age: 1\n", "", 0, "", errVersion},
		{"Version: STSv1\nmode: none\nmax_age: 1\n", "", 0, "", errNotFirst},
		{"version: STSv1\nmax_age: 1\n", "", 0, "", errNoMode},
		{"version: STSv1\nmode: None\nmax_age: 1\n", "", 0, "", errMode},
		{"version: STSv1\nmode: report\nmax_age: 1\n", "", 0, "", errMode},
		{"version: STSv1\nmode: none\n", "", 0, "", errNoMaxAge},
		{"version: STSv1\nmode: none\nmax_age: 31557601\n", "", 0, "", errMaxAge},
		{"version: STSv1\nmode: none\nmax_age: 00000000001\n", "", 0, "", errMaxAge},
		{"version: STSv1\nmode: none\nmax_age: -1\n", "", 0, "", errMaxAge},
		{"version: STSv1\nmode: none\nmax_age: +1\n", "", 0, "", errMaxAge},
		{"version: STSv1\nmode: none\nmax_age: 1.5\n", "", 0, "", errMaxAge},
		{"version: STSv1\nmode: none\nmax_age: \n", "", 0, "", errNoField},
		{"version: STSv1\nmode: enforce\nmax_age: 1\n", "", 0, "", errNoMX},
		{"version: STSv1\nmode: testing\nmax_age: 1\n", "", 0, "", errNoMX},
		{"version: STSv1\nmode: enforce\nmx: *\nmax_age: 1\n", "", 0, "", errMX},
		{"version: STSv1\nmode: enforce\nmx: *.*.example\nmax_age: 1\n", "", 0, "", errMX},
		{"version: STSv1\nmode: enforce\nmx: m*.example\nmax_age: 1\n", "", 0, "", errMX},
		{"version: STSv1\nmode: enforce\nmx: .example\nmax_age: 1\n", "", 0, "", errMX},
		{"version: STSv1\nmode: enforce\nmx: a.example.\nmax_age: 1\n", "", 0, "", errMX},
		{"version: STSv1\nmode: enforce\nmx: a.example, b.example\nmax_age: 1\n", "", 0, "", errMX},
		{"version: STSv1\nmode: enforce\nmx: bücher.example\nmax_age: 1\n", "", 0, "", errMX},
		{"version: STSv1\nmode: none\nmax_age: 1\nnonsense\n", "", 0, "", errNoField},
		{"version: STSv1\nmode: none\nmax_age: 1\n key: value\n", "", 0, "", errNoField},
		{"version: STSv1\nmode: none\nmax_age: 1\nkey : value\n", "", 0, "", errNoField},
		{"version: STSv1\nmode: none\nmax_age: 1\nkey: a\x00b\n", "", 0, "", errNoField},
		{"version: STSv1\nmode: none\nmax_age: 1\nkey: \xff\n", "", 0, "", errNoField},
		{"version: STSv1\rmode: none\rmax_age: 1\r", "", 0, "", errNoField},
		{"<html>not here</html>", "", 0, "", errNoField},
	} {
		p, err := ParsePolicy([]byte(tt.body))
		if p.Mode != tt.mode || p.MaxAge != time.Duration(tt.age)*time.Second || strings.Join(p.MX, " ") != tt.mx || !errors.Is(err, tt.err) {
			t.Errorf("policy %q: got %s for %v, mx %q, %v", tt.body, p.Mode, p.MaxAge, p.MX, err)
		}
	}
	if _, err := ParsePolicy(make([]byte, MaxBody+1)); err == nil {
		t.Error("a policy of more than 64 KiB: got no error")
	}
	p, err := ParsePolicy([]byte("version: STSv1 \r\nmode: none\r\n\r\nmax_age: 1"))
	if want := []string{"version: STSv1", "mode: none", "max_age: 1"}; err != nil || !slices.Equal(p.Text, want) {
		t.Errorf("text: got %q, %v, want %q", p.Text, err, want)
	}
}

func TestMatch(t *testing.T) {
	p, err := ParsePolicy([]byte("version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.Example.net\nmax_age: 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]bool{
		"mail.example.com": true, "MAIL.Example.COM": true, "mail.example.com.": true,
		"example.com": false, "a.mail.example.com": false, "xmail.example.com": false,
		"a.example.net": true, "A.EXAMPLE.NET.": true, "*.example.net": true,
		"a.b.example.net": false, // a wildcard is one label
		"example.net":     false, ".example.net": false, "aexample.net": false, "": false, ".": false,
	} {
		if got := p.Match(host); got != want {
			t.Errorf("match of %q: got %v, want %v", host, got, want)
		}
	}
}

// FuzzParseRecord: an id is one that could be in the record, whatever else is.
func FuzzParseRecord(f *testing.F) {
	f.Add("v=STSv1; id=20160831085700Z;", "v=spf1 -all")
	f.Add("v=STSv1 ; ext=1; id=1; id=2", "")
	f.Add("v=STSv1;;", "v=STSv1; id=1")
	f.Fuzz(func(t *testing.T, a, b string) {
		id, err := ParseRecord([]string{a, b})
		if (err == nil) != isID(id) {
			t.Fatalf("got id %q with error %v", id, err)
		}
		if err == nil && !strings.Contains(a, "id="+id) && !strings.Contains(b, "id="+id) {
			t.Fatalf("id %q is in none of %q, %q", id, a, b)
		}
	})
}

// FuzzParsePolicy: what is taken is complete and within bounds, and its lines are the same
// policy again, since that is how it is kept.
func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte("version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmax_age: 604800\n"))
	f.Add([]byte("version: STSv1\r\nmode: none\r\nmax_age: 0\r\nmode: enforce\r\next: \xc3\xbc"))
	f.Add([]byte("version:STSv1 \n\n\nmode:testing\nmx:a\nmax_age:31557600"))
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := ParsePolicy(body)
		if err != nil {
			return
		}
		if p.MaxAge < 0 || p.MaxAge > MaxMaxAge || len(p.MX) == 0 && p.Mode != None {
			t.Fatalf("%q: got %+v", body, p)
		}
		for _, mx := range p.MX {
			if host := strings.Replace(mx, "*", "x", 1); !isHostName(host) || !p.Match(host) {
				t.Fatalf("%q: pattern %q does not match %q", body, mx, host)
			}
		}
		again, err := ParsePolicy([]byte(strings.Join(p.Text, "\n")))
		if err != nil || again.Mode != p.Mode || again.MaxAge != p.MaxAge || !slices.Equal(again.MX, p.MX) || !slices.Equal(again.Text, p.Text) {
			t.Fatalf("%q: read again: got %+v, %v, want %+v", body, again, err, p)
		}
	})
}
