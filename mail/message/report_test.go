package message_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
)

var update = flag.Bool("update", false, "write testdata/report")

// content is a message in memory.
type content string

func (c content) Size() int64 { return int64(len(c)) }
func (c content) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, string(c))
	return int64(n), err
}

// broken is a message that cannot be read.
type broken struct{ content }

var errBroken = errors.New("disk")

func (broken) WriteTo(io.Writer) (int64, error) { return 0, errBroken }

func address(t testing.TB, s string) smtp.Path {
	t.Helper()
	p, err := smtp.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func domain(t testing.TB, s string) smtp.Domain {
	t.Helper()
	d, err := smtp.ParseDomain(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

const plainMessage = "Received: from a.example by mx1.example.net; Tue, 1 Sep 2026 10:00:00 +0000\r\n" +
	"From: Alice <alice@example.org>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=, or so\r\nMessage-ID: <1@example.org>\r\n\r\n" +
	"Hello,\r\n--\r\nAlice\r\n"

// typicalReport is about one recipient that failed.
func typicalReport(t testing.TB) message.Report {
	return message.Report{
		Reporting: domain(t, "mx1.example.net"),
		To:        address(t, "alice@example.org"),
		EnvID:     "QQ314159",
		LogID:     "m0001",
		Arrived:   time.Date(2026, 9, 1, 10, 0, 0, 0, time.UTC),
		Now:       time.Date(2026, 9, 1, 10, 0, 5, 0, time.UTC),
		MessageID: "report-1@mx1.example.net",
		Original:  content(plainMessage),
		Recipients: []message.ReportRecipient{{
			Original: smtp.OriginalRecipient{Type: "rfc822", Address: "Bob.B@example.com"},
			Final:    address(t, "bob@store.example.com"),
			Diagnostic: &smtp.Reply{Code: 550, Enh: smtp.Enhanced{5, 1, 1},
				Text: "<bob@store.example.com>: no such user here\nsee https://example.com/help"},
			RemoteMTA:   "mx.example.com",
			LastAttempt: time.Date(2026, 9, 1, 10, 0, 4, 0, time.UTC),
		}},
	}
}

// reports are one of each kind. Their text is in testdata/report.
func reports(t testing.TB) map[string]message.Report {
	at := time.Date(2026, 9, 1, 14, 0, 0, 0, time.UTC)
	full := typicalReport(t)
	full.Return = smtp.ReturnFull
	eight := full
	eight.Original = content("From: alice@example.org\r\nSubject: eight\r\nContent-Type: text/plain; charset=utf-8\r\n" +
		"Content-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n")
	long := full
	long.MaxReturned = 20
	tls := full
	tls.RequireTLS = true

	delayed := typicalReport(t)
	delayed.Recipients = []message.ReportRecipient{
		{Final: address(t, "bob@example.com"), Action: message.ActionDelayed, LastAttempt: at, WillRetryUntil: at.Add(120 * time.Hour),
			Diagnostic: &smtp.Reply{Code: 451, Enh: smtp.Enhanced{4, 4, 1}, Text: "no host of example.com answered"}},
		{Final: address(t, "carol@xn--mnchen-3ya.example"), Action: message.ActionDelayed, WillRetryUntil: at.Add(120 * time.Hour)},
	}
	mixed := typicalReport(t)
	mixed.Recipients = append(mixed.Recipients,
		message.ReportRecipient{Final: address(t, "box@example.com"), Action: message.ActionDelivered},
		message.ReportRecipient{Final: address(t, "old@example.com"), Action: message.ActionRelayed, RemoteMTA: "old.example.com"},
		message.ReportRecipient{Final: address(t, "list@example.com"), Action: message.ActionExpanded},
		message.ReportRecipient{Final: address(t, "late@example.com"), Action: message.ActionFailed, Status: smtp.Enhanced{4, 4, 7}},
		message.ReportRecipient{Final: address(t, "odd@example.com"), Action: message.ActionFailed, Status: smtp.Enhanced{2, 0, 0}})
	delivered := typicalReport(t)
	delivered.Recipients = mixed.Recipients[1:2]
	delivered.Original = nil

	utf := typicalReport(t)
	utf.UTF8 = true
	utf.Return = smtp.ReturnFull
	utf.Original = content("From: Jörg <jörg@example.org>\r\nSubject: Grüße\r\n\r\nviele\r\n")
	utf.Recipients = []message.ReportRecipient{{
		Original:   smtp.OriginalRecipient{Type: "utf-8", Address: `bj\x{F6}rn\x{2B}x@example.com`},
		Final:      address(t, "björn+x@example.com"),
		Diagnostic: &smtp.Reply{Code: 550, Enh: smtp.Enhanced{5, 2, 2}, Text: "das Fach von björn ist voll"},
		RemoteMTA:  "mx.example.com",
	}}
	utfHeader := utf
	utfHeader.Return = ""
	ascii := utf // the same for a reader who does not know UTF-8
	ascii.UTF8 = false
	utfTo := ascii
	utfTo.To = address(t, "jörg@example.org")
	utfTo.Name = "Störungsstelle"
	asciiName := ascii
	asciiName.Name = utfTo.Name

	hostile := full
	hostile.EnvID = "x\r\nInjected: 1"
	hostile.LogID = "m\n\nAction: delivered"
	hostile.Name = `"<a@b>, ` + "\x00"
	hostile.Original = content("Subject: a\rInjected: 1\nInjected: \x00\xff\r\n" + strings.Repeat("x", 30) + ": " + strings.Repeat("y", 1200) + "\r\n\r\n--=_\n.\n")
	hostile.Recipients = []message.ReportRecipient{{
		Final:     address(t, `"a  <>\"b"@example.com`),
		RemoteMTA: "mx\r\n\r\nFinal-Recipient: rfc822; x@example.com",
		Diagnostic: &smtp.Reply{Code: 554, Text: "a\r\n\r\n--=_0\r\nContent-Type: text/html\n\xff\u202e\x1b[31m " +
			strings.Repeat("z", 1500) + strings.Repeat(" ", 1200) + "end"},
	}}
	return map[string]message.Report{
		"failed": typicalReport(t), "failed-full": full, "failed-8bit": eight, "failed-too-long": long, "failed-requiretls": tls,
		"delayed": delayed, "mixed": mixed, "delivered": delivered, "hostile": hostile,
		"utf8-full": utf, "utf8-header": utfHeader, "utf8-as-ascii": ascii, "utf8-sender": utfTo, "utf8-name": asciiName,
	}
}

func TestReportGolden(t *testing.T) {
	for name, r := range reports(t) {
		got := checkReport(t, r)
		file := filepath.Join("testdata", "report", name+".eml")
		if *update {
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is\n%s\nwant\n%s\n(-update rewrites it)", name, got, want)
		}
	}
}

// checkReport holds what must be true of every report, whatever strangers wrote.
func checkReport(t testing.TB, r message.Report) []byte {
	t.Helper()
	from, raw, err := r.Message()
	if err != nil {
		t.Fatal(err)
	}
	checkOctets(t, from, raw)
	if !from.Path.IsNull() || from.RequireTLS != r.RequireTLS || from.Size != int64(len(raw)) {
		t.Errorf("MAIL is %+v", from)
	}
	m, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	checkHeader(t, m.Header, r)
	typ, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || typ != "multipart/report" || params["report-type"] != "delivery-status" || len(params) != 2 {
		t.Fatalf("Content-Type is %s %v, %v", typ, params, err)
	}
	var types []string
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("part %d: %v\n%s", len(types), err, raw)
		}
		types = append(types, checkPart(t, r, from, p, len(types)))
	}
	want := 2
	if r.Original != nil {
		want = 3
	}
	if len(types) != want {
		t.Fatalf("the parts are %q\n%s", types, raw)
	}
	return raw
}

// checkOctets holds the lines and the promises of MAIL.
func checkOctets(t testing.TB, from smtp.Sender, raw []byte) {
	t.Helper()
	eight := false
	for line := range bytes.SplitSeq(bytes.TrimSuffix(raw, []byte("\r\n")), []byte("\r\n")) {
		if len(line) > 998 || bytes.ContainsAny(line, "\r\n\x00") {
			t.Fatalf("a line of %d octets: %.200q", len(line), line)
		}
		eight = eight || slices.ContainsFunc(line, func(c byte) bool { return c >= 0x80 })
	}
	if !bytes.HasSuffix(raw, []byte("--\r\n")) || eight != (from.Body == smtp.BodyEightBit) {
		t.Fatalf("BODY=%s, 8 bits: %v\n%s", from.Body, eight, raw)
	}
	header, _, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	if !from.UTF8 && slices.ContainsFunc(header, func(c byte) bool { return c >= 0x80 }) {
		t.Fatalf("a header in UTF-8 without SMTPUTF8\n%s", raw)
	}
}

func checkHeader(t testing.TB, h mail.Header, r message.Report) {
	t.Helper()
	known := strings.Fields("From To Subject Date Message-Id References Auto-Submitted Mime-Version Content-Type Content-Transfer-Encoding")
	for name, values := range h {
		if len(values) != 1 || !slices.Contains(known, name) {
			t.Errorf("%s is there %d times", name, len(values))
		}
	}
	if list, err := h.AddressList("From"); err != nil || len(list) != 1 {
		t.Errorf("From is %q: %v", h.Get("From"), err)
	}
	if h.Get("To") != "<"+r.To.String()+">" {
		t.Errorf("To is %q", h.Get("To"))
	}
	if date, err := h.Date(); err != nil || !date.Equal(r.Now.Truncate(time.Second)) {
		t.Errorf("Date is %q: %v", h.Get("Date"), err)
	}
	if h.Get("Auto-Submitted") != "auto-replied" || h.Get("Mime-Version") != "1.0" {
		t.Errorf("the header is %v", h)
	}
}

// checkPart looks at a part and returns its type.
func checkPart(t testing.TB, r message.Report, from smtp.Sender, p *multipart.Part, n int) string {
	t.Helper()
	typ, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
	if err != nil || len(p.Header) > 3 {
		t.Fatalf("part %d has the header %v, %v", n, p.Header, err)
	}
	encoding := p.Header.Get("Content-Transfer-Encoding")
	body, err := io.ReadAll(p)
	if err != nil {
		t.Fatal(err)
	}
	if encoding == "quoted-printable" {
		if body, err = io.ReadAll(quotedprintable.NewReader(bytes.NewReader(body))); err != nil {
			t.Fatal(err)
		}
	}
	allowed := [][]string{
		{"text/plain"}, {"message/delivery-status"}, {"message/rfc822", "text/rfc822-headers"},
	}[min(n, 2)]
	if from.UTF8 {
		allowed = append(allowed, "message/global-delivery-status", "message/global", "message/global-headers")
	}
	if !slices.Contains(allowed, typ) {
		t.Fatalf("part %d is %s", n, typ)
	}
	switch {
	case n == 0 && !utf8.Valid(body):
		t.Errorf("the text is not UTF-8: %q", body)
	case n == 1:
		if encoding == "quoted-printable" || typ == "message/delivery-status" && encoding != "" {
			t.Errorf("%s is %s", typ, encoding)
		}
		checkStatus(t, r, body)
	case strings.HasPrefix(typ, "message/") && encoding == "quoted-printable":
		t.Errorf("%s is %s", typ, encoding)
	case typ == "message/rfc822", typ == "message/global":
		if want := string(r.Original.(content)); string(body) != want || r.RequireTLS {
			t.Errorf("returned is %q, want %q", body, want)
		}
	}
	return typ
}

// checkStatus reads the fields for programs: one block for the message, one for each
// recipient.
func checkStatus(t testing.TB, r message.Report, body []byte) {
	t.Helper()
	blocks := strings.Split(strings.TrimSuffix(string(body), "\r\n"), "\r\n\r\n")
	if len(blocks) != 1+len(r.Recipients) {
		t.Fatalf("%d blocks for %d recipients:\n%s", len(blocks), len(r.Recipients), body)
	}
	for i, block := range blocks {
		h, rest := message.Parse([]byte(block + "\r\n\r\n"))
		if len(rest) != 0 {
			t.Fatalf("%q is no field", rest)
		}
		if i == 0 {
			if h.Get("Reporting-MTA") != "dns; "+r.Reporting.String() {
				t.Errorf("the message's block is %q", block)
			}
			continue
		}
		rcpt := r.Recipients[i-1]
		for _, name := range strings.Fields("Final-Recipient Action Status") {
			if h.Count(name) != 1 {
				t.Errorf("%s is there %d times in %q", name, h.Count(name), block)
			}
		}
		if h.Get("Action") != rcpt.Action.String() {
			t.Errorf("Action is %q", h.Get("Action"))
		}
		if final := h.Get("Final-Recipient"); !rcpt.Final.NeedsUTF8() && final != "rfc822; "+rcpt.Final.String() {
			t.Errorf("Final-Recipient is %q", final)
		}
		class := h.Get("Status")[:2]
		if want := map[message.Action]string{message.ActionFailed: "5. 4.", message.ActionDelayed: "4."}[rcpt.Action]; want != "" &&
			!strings.Contains(want, class) || want == "" && class != "2." {
			t.Errorf("Status is %q for %v", h.Get("Status"), rcpt.Action)
		}
	}
}

func TestReportErrors(t *testing.T) {
	if _, _, err := (message.Report{}).Message(); !errors.Is(err, message.ErrReport) || !strings.Contains(err.Error(), "our name, the sender") {
		t.Errorf("an empty report: %v", err)
	}
	r := typicalReport(t)
	r.Original = broken{plainMessage}
	if _, _, err := r.Message(); !errors.Is(err, errBroken) {
		t.Errorf("a message that cannot be read: %v", err)
	}
}

// TestReportMadeUp: the identifier of a report is made up, and another for each.
func TestReportMadeUp(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		r := typicalReport(t)
		r.MessageID = ""
		m, err := mail.ReadMessage(bytes.NewReader(checkReport(t, r)))
		if err != nil {
			t.Fatal(err)
		}
		id := m.Header.Get("Message-Id")
		if !strings.HasSuffix(id, "@mx1.example.net>") || seen[id] {
			t.Errorf("Message-ID is %q", id)
		}
		seen[id] = true
	}
}

// TestReportLargeHeader: what is returned stays small, however large the message.
func TestReportLargeHeader(t *testing.T) {
	var b strings.Builder
	for i := range 20000 {
		fmt.Fprintf(&b, "X-%d: filler\r\n", i)
	}
	r := typicalReport(t)
	r.Return = smtp.ReturnFull
	r.Original = content(b.String() + "\r\n" + strings.Repeat("body\r\n", 1<<20))
	if raw := checkReport(t, r); len(raw) > 80<<10 {
		t.Errorf("the report has %d octets", len(raw))
	}
}

func TestWants(t *testing.T) {
	alice := address(t, "alice@example.org")
	for _, tt := range []struct {
		from   smtp.Path
		notify smtp.Notify
		want   smtp.Notify
	}{
		{alice, 0, smtp.NotifyFailure | smtp.NotifyDelay},
		{alice, smtp.NotifyNever, 0},
		{alice, smtp.NotifySuccess, smtp.NotifySuccess},
		{alice, smtp.NotifyFailure, smtp.NotifyFailure},
		{alice, smtp.NotifyNever | smtp.NotifyFailure, 0},
		{alice, smtp.NotifySuccess | smtp.NotifyDelay, smtp.NotifySuccess | smtp.NotifyDelay},
		{smtp.Path{}, 0, 0},
		{smtp.Path{}, smtp.NotifyFailure, 0},
	} {
		for _, event := range []smtp.Notify{smtp.NotifySuccess, smtp.NotifyFailure, smtp.NotifyDelay} {
			if got := message.Wants(tt.from, tt.notify, event); got != tt.want.Has(event) {
				t.Errorf("Wants(<%v>, %v, %v) = %v", tt.from, tt.notify, event, got)
			}
		}
	}
}

// FuzzReportStaysWhole: no text of a stranger breaks a field, a block or a part.
func FuzzReportStaysWhole(f *testing.F) {
	hostile := reports(f)["hostile"].Recipients[0]
	f.Add(plainMessage, hostile.Diagnostic.Text, hostile.RemoteMTA, "env", "m1", "rfc822", "bob@example.com", "bob", true, false)
	f.Add("Subject: ü\r\n\r\nbody", "größer", "mx", "é", "", "utf-8", `\x{FC}@example.com`, "ü", true, true)
	f.Add("\n", "\n", "\r", " ", " ", ";", "\x00", `"`, false, true)
	f.Fuzz(func(t *testing.T, msg, said, host, env, id, typ, orig, local string, full, utf bool) {
		final, err := smtp.ParseAddress(local + "@example.com")
		if err != nil {
			final = address(t, "bob@example.com")
		}
		r := typicalReport(t)
		r.Original, r.EnvID, r.LogID, r.UTF8 = content(msg), env, id, utf
		if full {
			r.Return = smtp.ReturnFull
		}
		for _, a := range []message.Action{message.ActionFailed, message.ActionDelayed, message.ActionRelayed} {
			r.Recipients = append(r.Recipients, message.ReportRecipient{
				Original: smtp.OriginalRecipient{Type: typ, Address: orig}, Final: final, Action: a,
				Diagnostic: &smtp.Reply{Code: 550, Text: said}, RemoteMTA: host,
			})
		}
		checkReport(t, r)
	})
}
