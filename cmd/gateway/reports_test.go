package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/mail/auth"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// reports_test.go: reports about TLS that come and go, and the keys that sign what goes.

// foreignReport is a message with a report of somebody else about example.org.
func foreignReport(t *testing.T, id string) notice {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprintf(z, `{"organization-name":"Far \u001b[31mMail","date-range":{"start-datetime":"2026-11-25T00:00:00Z","end-datetime":"2026-11-25T23:59:59Z"},
		"contact-info":"tls@far.example","report-id":%q,"policies":[{"policy":{"policy-type":"sts","policy-string":["version: STSv1","mode: enforce"],
		"policy-domain":"example.org","mx-host":"mx.example.org"},"summary":{"total-successful-session-count":7,"total-failure-session-count":2},
		"failure-details":[{"result-type":"certificate-expired","receiving-mx-hostname":"mx.example.org","receiving-ip":"192.0.2.1","failed-session-count":2}]}]}`, id)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return notice("From: <noreply@far.example>\r\nTo: <tlsrpt@example.org>\r\nSubject: Report Domain: example.org\r\nMIME-Version: 1.0\r\n" +
		"Content-Type: multipart/report; report-type=\"tlsrpt\"; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n" +
		"--b\r\nContent-Type: application/tlsrpt+gzip\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
		base64.StdEncoding.EncodeToString(packed.Bytes()) + "\r\n--b--\r\n")
}

// TestReportsOfOthers: a report that was answered with 250 is there, whatever happens then, and
// shown; what is none is refused, and recipients beside it get their mail.
func TestReportsOfOthers(t *testing.T) {
	files, kept := t.TempDir(), t.TempDir()
	token, errs, code := gatewayRun(t, files, nil, "token", "new", "--role", "read", "me")
	if code != 0 {
		t.Fatal(errs)
	}
	mails := t.TempDir()
	back, addr, err := startMaildrop(mails)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = back.Shutdown(t.Context()) })
	yaml := fmt.Sprintf(`
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0"}
routes:
  - {recipients: [tlsrpt@example.org], handler: tlsrpt}
  - {domains: [example.org], backend: mailstore}
backends:
  mailstore: {addresses: ["smtp://%s"]}
store: {path: %s/store}
filters: {cache: $CACHE}
certificates: {dir: $DIR/certificates}
admin: {tokens: "file:%s/tokens.txt", address: "127.0.0.1:0"}
`, addr, kept, files)
	g := startGateway(t, yaml)
	sendFrom := func(from string, content smtp.Content, to ...string) []*smtp.Reply {
		t.Helper()
		c := dialSMTP(t, g.addr["mx"])
		var rcpts []smtp.Recipient
		for _, a := range to {
			rcpts = append(rcpts, smtp.Recipient{Path: path(t, a)})
		}
		if _, err := c.Envelope(t.Context(), smtp.Sender{Path: path(t, from)}, rcpts); err != nil {
			t.Fatal(err)
		}
		replies, err := c.Data(t.Context(), content)
		if err != nil {
			t.Fatal(err)
		}
		return replies
	}
	send := func(content smtp.Content, to ...string) []*smtp.Reply {
		t.Helper()
		return sendFrom("noreply@far.example", content, to...)
	}
	if r := send(foreignReport(t, "one"), "TLSrpt@example.org"); r[0].Code != 250 {
		t.Errorf("got %v", r[0])
	}
	if r := send(notice("From: <a@b.example>\r\n\r\nhello\r\n"), "tlsrpt@example.org"); r[0].Code != 550 || r[0].Enh != (smtp.Enhanced{5, 6, 0}) {
		t.Errorf("got %v", r[0])
	}
	if r := send(foreignReport(t, "two"), "tlsrpt@example.org", "bob@example.org"); r[0].Code != 250 {
		t.Errorf("got %v", r[0])
	}
	for _, to := range [][]string{{"tlsrpt@example.org", "bob@example.org"}, {"bob@example.org", "tlsrpt@example.org"}} {
		if r := sendFrom("victim@example.org", notice("From: <a@b.example>\r\n\r\nbuy\r\n"), to...); r[0].Code != 250 {
			t.Errorf("got %v", r[0])
		}
	}
	g.await("the refusal", func(l map[string]any) bool {
		return l["msg"] == "delivery" && l["destination"] == "backend:handler:tlsrpt" && l["failed"] == 1.0
	})
	g.awaitNth("both", 2, func(l map[string]any) bool {
		return l["msg"] == "got a report about TLS" && l["organization"] == "Far  [31mMail"
	})
	g.await("the other recipient", func(l map[string]any) bool { return l["msg"] == "delivery" && l["code"] == 250.0 })
	g.signal(syscall.SIGKILL)
	<-g.done

	g = startGateway(t, yaml)
	env := []string{tokenVariable + "=" + strings.TrimSpace(token), "TZ=UTC"}
	run := func(args ...string) string {
		t.Helper()
		out, errs, code := gatewayRun(t, files, env, append(append([]string{"tlsrpt"}, args...), "--admin", g.addr[adminName])...)
		if code != 0 || errs != "" || strings.ContainsRune(out, 0x1b) {
			t.Errorf("tlsrpt %v: exit code %d\n%q%s", args, code, out, errs)
		}
		return out
	}
	var page api.TLSReportPage
	if err := json.Unmarshal([]byte(run("list", "--domain", "example.org", "--json")), &page); err != nil {
		t.Fatal(err)
	}
	if len(page.Reports) != 2 || page.Reports[0].Failed != 2 || page.Reports[0].Successful != 7 || page.Reports[0].Sender != "noreply@far.example" {
		t.Fatalf("got %+v", page)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"list"}, "2026-11-25"},
		{[]string{"list", "--domain", "example.com"}, "there are no reports"},
		{[]string{"show", page.Reports[0].ID}, "certificate-expired"},
		{[]string{"show", page.Reports[0].ID}, "7 good, 2 failed"},
		{[]string{"show", page.Reports[0].ID, "--json"}, `"mx_hosts"`},
	} {
		if out := run(tt.args...); !strings.Contains(out, tt.want) {
			t.Errorf("%v: no %q in\n%s", tt.args, tt.want, out)
		}
	}
	if _, errs, code := gatewayRun(t, files, env, "tlsrpt", "show", "x", "--admin", g.addr[adminName]); code != exitProblem || !strings.Contains(errs, "no report x") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	names, _ := filepath.Glob(filepath.Join(mails, "*.eml"))
	for _, name := range names {
		if text, err := os.ReadFile(name); err != nil || bytes.Contains(text, []byte("could not be delivered")) {
			t.Errorf("what was no report came back to who was said to have sent it: %v\n%s", err, text)
		}
	}
	if len(names) < 3 {
		t.Errorf("mail of the other recipient: %v", names)
	}
}

// verified tells how many signatures of a message a record holds good.
func verified(t *testing.T, content []byte, name, record string) (good int) {
	t.Helper()
	list, err := dkim.VerifyWithOptions(bytes.NewReader(content), &dkim.VerifyOptions{LookupTXT: func(asked string) ([]string, error) {
		if asked != name {
			return nil, errors.New("no such name")
		}
		return []string{record}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range list {
		if v.Err == nil {
			good++
		}
	}
	return good
}

// TestDKIM: a key is made once, is nobody else's to read, and signs what a user submits.
func TestDKIM(t *testing.T) {
	dir := t.TempDir()
	var made keyRecord
	out, errs, code := gatewayRun(t, dir, nil, "dkim", "new", "Example.org", "--selector", "s1", "--json")
	if err := json.Unmarshal([]byte(out), &made); code != 0 || err != nil || made.Name != "s1._domainkey.example.org" || made.File != "example.org.s1.pem" {
		t.Fatalf("exit code %d, %v, %s%s", code, err, out, errs)
	}
	file := filepath.Join(dir, made.File)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"new", "example.org", "--selector", "s1"}, exitProblem, "is there already"},
		{[]string{"new", "example.org"}, exitUsage, "--selector is needed"},
		{[]string{"new", "[192.0.2.1]", "--selector", "s"}, exitUsage, "is not a domain"},
		{[]string{"new", "example.org", "--selector", "*"}, exitUsage, "use letters"},
		{[]string{"new", "example.org", "--selector", "s", "--type", "dsa"}, exitUsage, "there are rsa and ed25519"},
		{[]string{"new", "example.org", "--selector", "s2", "--type", "ed25519", "--out", "s2.pem"}, 0, `s2._domainkey.example.org. IN TXT "v=DKIM1; k=ed25519; p=`},
		{[]string{"new", "example.org", "--selector", "s3", "--out", "none/s3.pem"}, exitProblem, "no such file"},
	} {
		out, errs, code := gatewayRun(t, dir, nil, append([]string{"dkim"}, tt.args...)...)
		if code != tt.code || !strings.Contains(out+errs, tt.want) {
			t.Errorf("%v: exit code %d, want %d with %q\n%s%s", tt.args, code, tt.code, tt.want, out, errs)
		}
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the key was overwritten: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	mails := t.TempDir()
	back, addr, err := startMaildrop(mails)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = back.Shutdown(t.Context()) })
	yaml := fmt.Sprintf(`
hostname: mx.example.org
listeners:
  - {name: out, address: "127.0.0.1:0", accept: any, trusted_networks: [127.0.0.1/32]}
routes:
  - {domains: ["*"], backend: mailstore}
backends:
  mailstore: {addresses: ["smtp://%s"]}
store: {driver: embedded, path: $DIR/store}
filters: {cache: $CACHE}
certificates: {dir: $DIR/certificates}
delivery:
  dkim:
    - {domain: example.org, selector: s1, key: "file:%s"}
`, addr, file)
	g := startGateway(t, yaml)
	out, errs, code = gatewayRun(t, g.dir, nil, "dkim", "show", "-c", "penstock.yaml")
	if code != 0 || !strings.HasPrefix(out, `s1._domainkey.example.org. IN TXT ( "v=DKIM1; k=rsa; p=`) {
		t.Errorf("exit code %d\n%s%s", code, out, errs)
	}
	submit := func(n int) []byte {
		t.Helper()
		c := dialSMTP(t, g.addr["out"])
		if _, err := c.Envelope(t.Context(), smtp.Sender{Path: path(t, "ann@example.org")}, []smtp.Recipient{{Path: path(t, "bob@far.example")}}); err != nil {
			t.Fatal(err)
		}
		replies, err := c.Data(t.Context(), notice("From: Ann <ann@example.org>\r\nTo: bob@far.example\r\nSubject: hello\r\n\r\nHello Bob\r\n"))
		if err != nil || replies[0].Code != 250 {
			t.Fatalf("%v, %v", replies, err)
		}
		text, err := os.ReadFile(filepath.Join(mails, fmt.Sprintf("%04d.eml", n)))
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	if text := submit(1); verified(t, text, made.Name, made.Text) != 1 {
		t.Errorf("no good signature:\n%s", text)
	}

	// A key that is replaced counts as soon as its file lies still.
	second, text, err := auth.NewKey(auth.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	g.await("new key", func(l map[string]any) bool { return l["msg"] == "keys that sign mail: read again" })
	record, err := auth.Record(second.Public())
	if err != nil {
		t.Fatal(err)
	}
	if text := submit(2); verified(t, text, made.Name, record) != 1 {
		t.Errorf("no signature of the new key:\n%s", text)
	}
	if err := os.WriteFile(file, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, errs, code := gatewayRun(t, g.dir, nil, "check", "-c", "penstock.yaml"); code != exitProblem || !strings.Contains(errs, "delivery.dkim[0].key: ") {
		t.Errorf("check: exit code %d\n%s", code, errs)
	}
}

// TestUnsigned: what can never be signed goes without, and what cannot now waits.
func TestUnsigned(t *testing.T) {
	d := newDoorman(slog.New(slog.DiscardHandler))
	for _, err := range []error{auth.ErrUnsignable, errors.New("broken")} {
		d.signer = func(context.Context, smtp.Domain, smtp.Content) ([]message.Field, error) {
			return nil, fmt.Errorf("sign: %w", err)
		}
		if _, got := d.sign(t.Context(), smtp.Domain{}, notice("")); (got == nil) != errors.Is(err, auth.ErrUnsignable) {
			t.Errorf("%v: got %v", err, got)
		}
	}
}

// TestReportGoesOut: a report is queued, signed, and nobody hears if it gets nowhere.
func TestReportGoesOut(t *testing.T) {
	s, err := embedded.Open(t.TempDir(), embedded.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tr, err := delivery.New(delivery.Options{LocalName: "mx.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.Shutdown(t.Context()) }()
	route := func(smtp.Path) store.Destination { return "mx:far.example" }
	e, err := delivery.NewEngine(delivery.EngineOptions{Queue: s.Queue(), Transport: tr, Hostname: "mx.example.org", Route: route})
	if err != nil {
		t.Fatal(err)
	}
	key, _, err := auth.NewKey(auth.Ed25519)
	if err != nil {
		t.Fatal(err)
	}
	record, err := auth.Record(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := auth.NewSigner([]auth.Key{{Domain: path(t, "a@example.org").Domain, Selector: "s", Signer: key}})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeping{store: s, engine: e, route: route}
	mail := tlsrpt.Mail{From: path(t, "postmaster@mx.example.org"), To: path(t, "tls@far.example"),
		Content: []byte("From: <postmaster@mx.example.org>\r\nTLS-Required: No\r\n\r\nhello\r\n")}
	if err := k.report(t.Context(), signer, mail); err != nil {
		t.Fatal(err)
	}
	if err := e.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	err = s.Queue().List(t.Context(), store.Filter{}, "", func(m *store.Message) bool {
		n++
		if r := m.Recipients[0]; r.Notify != smtp.NotifyNever || !m.Origin.TLSOptional || r.Destination != "mx:far.example" {
			t.Errorf("got %+v, %+v", m.Origin, r)
		}
		c, err := s.Queue().Content(t.Context(), m.ID)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		var b bytes.Buffer
		if _, err := c.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		if verified(t, b.Bytes(), "s._domainkey.example.org", record) != 1 {
			t.Errorf("no good signature:\n%s", b.Bytes())
		}
		return true
	})
	if err != nil || n != 1 {
		t.Errorf("%d messages, %v", n, err)
	}
}
