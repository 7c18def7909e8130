package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/mail/smtp"
)

// mx_test.go holds what gateway mx says of a small Internet against files, and against the
// examples in docs/outbound.md.

// mxWorld is that Internet.
func mxWorld(t *testing.T) (set []string) {
	t.Helper()
	w := lab.New(t)
	w.Real(t)
	w.Zone("test", lab.Signed)
	authority := w.Authority

	z := w.Zone("dane.test", lab.Signed)
	z.Add("@ MX 10 mx1", "@ MX 20 mx2")
	leaf := authority.Leaf(t, "mx1.dane.test")
	own := lab.SelfSigned(t, lab.CertSpec{Name: "mx2"})
	w.Host("mx1.dane.test", lab.HostOptions{Certificate: leaf.Chain()})
	w.Host("mx2.dane.test", lab.HostOptions{Certificate: own.With()})
	z.TLSA("mx1", "3 1 1", leaf)
	z.TLSA("mx1", "0 0 1", leaf)
	z.TLSA("mx2", "3 1 1", leaf) // of another host: no match

	z = w.Zone("sts.test", lab.Insecure)
	z.Add("@ MX 10 mx", "@ MX 20 other", "@ MX 30 old")
	w.Host("mx.sts.test", lab.HostOptions{Certificate: authority.Leaf(t, "mx.sts.test").Chain()})
	w.Host("other.sts.test", lab.HostOptions{Certificate: authority.Leaf(t, "other.sts.test").Chain()})
	w.Host("old.sts.test", lab.HostOptions{})
	w.Policy("sts.test", lab.PolicyOptions{ID: "20261126", Body: "version: STSv1\nmode: enforce\nmax_age: 604800\nmx: mx.sts.test\nmx: old.sts.test\n"})

	z = w.Zone("odd.test", lab.Insecure)
	z.Add("@ MX 5 .", "@ MX 10 192.0.2.1.", "@ MX 15 private", "private A 10.0.0.1", "@ MX 20 clear", "@ MX 30 silent", "silent A 127.0.1.250",
		"alias CNAME odd.test.", "null MX 0 .", "own MX 10 us.example.net.")
	z.Add("hang MX 10 hangs")
	w.Host("hangs.odd.test", lab.HostOptions{Hang: "GREETING"})
	w.Host("clear.odd.test", lab.HostOptions{Greeting: smtp.Refuse(554, smtp.Enhanced{5, 7, 1}, "go away \x1b[2J")})
	w.Policy("odd.test", lab.PolicyOptions{ID: "1", Handler: http.NotFoundHandler()})
	w.Zone("bogus.test", lab.Bogus).Add("@ MX 10 mx1.dane.test.")
	w.Start()

	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, kv := range []string{"hostname=us.example.net", "delivery.resolver.address=" + w.Resolver, "delivery.authorities=" + roots,
		"delivery.block_local_addresses=false", "delivery.resolver.probe=test"} {
		set = append(set, "--set", kv)
	}
	return set
}

// lasting leaves out what is another each time: digests, dates, how long things took, and the
// names of the authority. Hosts of the lab get addresses as they are in documents.
func lasting(text string) string {
	for _, r := range []struct{ from, to string }{
		{`\b[0-9a-f]{32,}\b`, "DIGEST"}, {`\b20\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?`, "DATE"},
		{`"seconds": [0-9.e-]+`, `"seconds": 0`}, {`\b127\.0\.1\.`, "192.0.2."}, {`\b127\.0\.0\.1:53\b`, "192.0.2.53:53"},
		{`TLS_[A-Z0-9_]+`, "CIPHER"},
	} {
		text = regexp.MustCompile(r.from).ReplaceAllString(text, r.to)
	}
	return text
}

func TestMX(t *testing.T) {
	if !lab.Enter(t) {
		return
	}
	set := mxWorld(t)
	for _, tt := range []struct {
		name string
		args []string
		exit int
	}{
		{"dane", []string{"--connect", "postmaster@dane.test"}, exitOK},
		{"dane-plan", []string{"dane.test"}, exitOK},
		{"sts", []string{"--connect", "--all", "sts.test"}, exitOK},
		{"odd", []string{"--connect", "--set", "delivery.connect_timeout=1s", "odd.test"}, exitWaits},
		{"alias", []string{"alias.odd.test"}, exitOK},
		{"hang", []string{"--connect", "--timeout", "2s", "hang.odd.test"}, exitWaits},
		{"guarded", []string{"--set", "delivery.block_local_addresses=true", "dane.test"}, exitReturns},
		{"required", []string{"--set", "delivery.dane=required", "sts.test"}, exitWaits},
		{"requiretls", []string{"--requiretls", "--set", "delivery.mta_sts=off", "sts.test"}, exitReturns},
		{"off", []string{"--set", "delivery.dane=off", "--set", "delivery.mta_sts=off", "dane.test"}, exitOK},
		{"null", []string{"null.odd.test"}, exitReturns},
		{"nobody", []string{"nobody.dane.test"}, exitReturns},
		{"own", []string{"own.odd.test"}, exitReturns},
		{"bogus", []string{"bogus.test"}, exitWaits},
		{"literal", []string{"--connect", "[127.0.1.1]"}, exitOK},
		{"relay", []string{"--connect", "--set", "delivery.relay=mx1.dane.test", "bogus.test"}, exitOK},
		{"relay-mx", []string{"--set", "delivery.relay=mx:sts.test", "bogus.test"}, exitOK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			exit := run(t.Context(), append(append([]string{"mx"}, set...), tt.args...), &stdout, &stderr)
			if exit != tt.exit || stderr.Len() > 0 {
				t.Errorf("exits %d, want %d; %s", exit, tt.exit, stderr.String())
			}
			got := "$ gateway mx " + strings.Join(tt.args, " ") + "\n" + lasting(stdout.String())
			if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' && r != '\n' }) {
				t.Errorf("what a host wrote reaches the terminal:\n%q", got)
			}
			file := filepath.Join("testdata", "mx", tt.name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil || got != string(want) {
				t.Errorf("%v; got\n%s\nwant\n%s\n(go test ./cmd/gateway -run TestMX -update writes it anew)", err, got, want)
			}
		})
	}
	t.Run("json", func(t *testing.T) { mxJSON(t, set) })
	t.Run("docs", func(t *testing.T) { mxDocs(t, set) })
}

// mxJSON: what programs get is all there is.
func mxJSON(t *testing.T, set []string) {
	var stdout, stderr bytes.Buffer
	if exit := run(t.Context(), append(append([]string{"mx"}, set...), "--json", "--connect", "dane.test"), &stdout, &stderr); exit != exitOK {
		t.Fatalf("exits %d; %s", exit, stderr.String())
	}
	var r mxReport
	d := json.NewDecoder(&stdout)
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	if r.Target != "dane.test" || !r.Records.Authentic || !r.Resolver.Validating || len(r.Hosts) != 2 || r.Verdict.Outcome != outcomeGoes {
		t.Fatalf("got %+v", r)
	}
	h := r.Hosts[0]
	if h.Name != "mx1.dane.test" || h.Demand != "dane" || len(h.DANE.Records) != 2 || len(h.Attempts) != 1 {
		t.Fatalf("got %+v", h)
	}
	c := h.Attempts[0]
	if c.TLS != tls.VersionName(tls.VersionTLS13) || c.Shown != "dane" || c.Match == "" || len(c.Chain) == 0 || len(c.Dialogue) < 5 || c.Error != nil {
		t.Errorf("got %+v", c)
	}
	if c := r.Hosts[1].Attempts[0]; c.Error == nil || !c.Error.Temporary || c.Error.Category != "dane" {
		t.Errorf("the second host: got %+v", c)
	}
}

// mxDocs runs the examples of docs/outbound.md.
func mxDocs(t *testing.T, set []string) {
	text, err := os.ReadFile("../../docs/outbound.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```console\n\\$ gateway mx ([^\n]*)\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(examples) == 0 {
		t.Fatal("there is no example")
	}
	for _, e := range examples {
		var stdout, stderr bytes.Buffer
		run(t.Context(), append(append([]string{"mx"}, set...), strings.Fields(e[1])...), &stdout, &stderr)
		if got, want := lasting(stdout.String()), lasting(e[2]); got != want || stderr.Len() > 0 {
			t.Errorf("gateway mx %s: %s got\n%s\nwant\n%s", e[1], stderr.String(), got, want)
		}
	}
}

// TestMXUsage: what is wrong with the call or the configuration is said, and nothing is asked.
func TestMXUsage(t *testing.T) {
	file := filepath.Join(t.TempDir(), "penstock.yaml")
	if err := os.WriteFile(file, []byte("listeners: 7\ndelivery: {dane: on, port: 70000}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		exit int
		want []string
	}{
		{[]string{}, exitUsage, []string{"the usage is"}},
		{[]string{"a..b"}, exitUsage, []string{`"a..b"`, "5.1.2"}},
		{[]string{"-c", file, "example.com"}, exitProblem, []string{"penstock.yaml:2: delivery.dane", "penstock.yaml:2: delivery.port"}},
		{[]string{"--set", "delivery.resolver.address=tls://1.2.3.4.5", "example.com"}, exitProblem, []string{"delivery.resolver.address"}},
		{[]string{"--set", "delivery.authorities=/nowhere", "example.com"}, exitProblem, []string{"delivery.authorities"}},
	} {
		var stdout, stderr bytes.Buffer
		exit := run(t.Context(), append([]string{"mx"}, tt.args...), &stdout, &stderr)
		if exit != tt.exit || stdout.Len() > 0 {
			t.Errorf("%v: exits %d, want %d; %s", tt.args, exit, tt.exit, stdout.String())
		}
		for _, want := range tt.want {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("%v: got %s, want %q", tt.args, stderr.String(), want)
			}
		}
		if strings.Contains(stderr.String(), "listeners") {
			t.Errorf("%v: got %s, which is not about deliveries", tt.args, stderr.String())
		}
	}
}

// TestJSONText: what a host elsewhere says cannot reach the terminal by way of --json.
func TestJSONText(t *testing.T) {
	said := "ü \x1b[31m \x7f \u009b31m \u202e \U000e0041 \xff 😀\r\n"
	var out bytes.Buffer
	if err := (&remote{json: true}).print(&out, []string{said}, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := out.String(), "[\n  \"ü \\u001b[31m \\u007f \\u009b31m \\u202e \\udb40\\udc41 \\ufffd 😀\\r\\n\"\n]\n"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var back []string
	if err := json.Unmarshal(out.Bytes(), &back); err != nil || back[0] != strings.ToValidUTF8(said, "\ufffd") {
		t.Errorf("got %q, %v", back, err)
	}
}
