package tlsrpt

import (
	"bytes"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// example is what is counted of company-y.example, as in RFC 8460, Appendix B.
func example() sums {
	s := make(sums)
	p := Policy{Type: STS, Strings: []string{"version: STSv1", "mode: testing", "mx: *.mail.company-y.example", "max_age: 86400"},
		MXHosts: []string{"*.mail.company-y.example"}}.clean("company-y.example")
	s.add("company-y.example", p, nil, 5326)
	for _, f := range []struct {
		Failure
		n int64
	}{
		{Failure{Type: CertificateExpired, SendingIP: netip.MustParseAddr("2001:db8:abcd:12::1"), ReceivingHost: "mx1.mail.company-y.example"}, 100},
		{Failure{Type: STARTTLSNotSupported, SendingIP: netip.MustParseAddr("2001:db8:abcd:13::1"), ReceivingHost: "mx2.mail.company-y.example",
			ReceivingIP: netip.MustParseAddr("203.0.113.56"), Additional: "https://reports.company-x.example/report_info?id=5065427c-23d3#StarttlsNotSupported"}, 200},
		{Failure{Type: ValidationFailure, SendingIP: netip.MustParseAddr("198.51.100.62"), ReceivingIP: netip.MustParseAddr("203.0.113.58"),
			ReceivingHost: "mx-backup.mail.company-y.example", ReceivingHelo: "mx-backup.mail", Reason: "X509_V_ERR_PROXY_PATH_LENGTH_EXCEEDED"}, 3},
	} {
		s.add("company-y.example", p, &f.Failure, f.n)
	}
	dane := Policy{Type: TLSA, Strings: []string{"3 1 1 ABCD"}, Domain: "mx1.mail.company-y.example"}.clean("company-y.example")
	s.add("company-y.example", dane, nil, 2)
	return s
}

var companyX = sender{organization: "Company-X", contact: "sts-reporting@company-x.example", submitter: "company-x.example"}

func TestReport(t *testing.T) {
	got, err := json.MarshalIndent(companyX.report("2016-04-01", "company-y.example", example()["company-y.example"]), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/report.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestRows: what is stored of a day is read again, and adds up with what others stored.
func TestRows(t *testing.T) {
	data, err := example().encode()
	if err != nil {
		t.Fatal(err)
	}
	both := make(sums)
	for range 2 {
		if err := both.decode(data); err != nil {
			t.Fatal(err)
		}
	}
	twice := example()
	twice.merge(example())
	if !reflect.DeepEqual(both, twice) {
		t.Errorf("got %+v, want %+v", both, twice)
	}
	if err := both.decode([]byte(`{"../../x":[]}`)); err == nil {
		t.Error("a name that is no domain was taken")
	}
}

// TestMail: the message is as RFC 8460, Section 5.3 has it, and a reader finds the report.
func TestMail(t *testing.T) {
	const d, domain = "2016-04-01", "company-y.example"
	rep := companyX.report(d, domain, example()[domain])
	compressed, err := rep.compress()
	if err != nil {
		t.Fatal(err)
	}
	m, err := companyX.mail(address(t, "noreply@company-x.example"), address(t, "reports@company-y.example"), d, domain, compressed, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitAfterSeq(string(m.Content), "\n") {
		if line != "" && !strings.HasSuffix(line, "\r\n") || len(line) > 1000 || strings.IndexFunc(line, func(r rune) bool { return r > 0x7e }) >= 0 {
			t.Errorf("bad line %q", line)
		}
	}
	msg, err := mail.ReadMessage(bytes.NewReader(m.Content))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"Subject":              "Report Domain: company-y.example Submitter: company-x.example Report-ID: <" + rep.ID + ">",
		"TLS-Report-Domain":    domain,
		"TLS-Report-Submitter": "company-x.example",
		"TLS-Required":         "No",
		"From":                 "<noreply@company-x.example>",
		"To":                   "<reports@company-y.example>",
	} {
		if got := msg.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if _, err := msg.Header.Date(); err != nil {
		t.Error(err)
	}
	typ, params, err := mime.ParseMediaType(msg.Header.Get("Content-Type"))
	if err != nil || typ != "multipart/report" || params["report-type"] != "tlsrpt" {
		t.Fatalf("type %q %v, %v", typ, params, err)
	}
	mr := multipart.NewReader(msg.Body, params["boundary"])
	for _, want := range []string{"text/plain; charset=us-ascii", "application/tlsrpt+gzip"} {
		p, err := mr.NextRawPart()
		if err != nil {
			t.Fatal(err)
		}
		if got := p.Header.Get("Content-Type"); got != want {
			t.Errorf("got part %q, want %q", got, want)
		}
		if want == "application/tlsrpt+gzip" && p.FileName() != "company-x.example!company-y.example!1459468800!1459555199!"+companyX.mark(d, domain)+".json.gz" {
			t.Errorf("file name %q", p.FileName())
		}
	}
	if _, err := mr.NextRawPart(); err != io.EOF {
		t.Errorf("behind the last part: %v", err)
	}
	got, err := ReadMessage(m.Content)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, rep) {
		t.Errorf("got %+v, want %+v", got, rep)
	}
}
