package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// outside_test.go: a filter that reaches beyond its session, in a running gateway with its
// own store, a DNS server and a web server.

// dnsServer answers for web.test, and knows no other name.
func dnsServer(t *testing.T) string {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan error, 1)
	srv := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if !strings.EqualFold(q.Question[0].Name, "web.test.") {
			m.Rcode = dns.RcodeNameError
		}
		for _, s := range []string{"web.test. 60 IN A 127.0.0.1", `web.test. 60 IN TXT "a text"`} {
			if rr, err := dns.NewRR(s); err == nil && m.Rcode == 0 && rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	})}
	go func() { ended <- srv.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		_ = srv.Shutdown()
		<-ended
	})
	return pc.LocalAddr().String()
}

const outsideConfig = `
hostname: mx.example.org
listeners:
  - {name: all, address: "127.0.0.1:0", chain: all, reverse_dns: {enabled: false}}
  - {name: public, address: "127.0.0.1:0", chain: public, reverse_dns: {enabled: false}}
  - {name: nothing, address: "127.0.0.1:0", chain: nothing, reverse_dns: {enabled: false}}
routes: [{domains: [example.org], backend: store}]
backends: {store: {addresses: ["smtp://BACKEND"]}}
store: {driver: embedded, path: $DIR/store}
delivery: {resolver: {address: "RESOLVER"}}
certificates: {dir: $DIR/certificates}
filters:
  cache: $CACHE
  secrets: {token: "file:$DIR/token", other: "file:$DIR/token"}
  chains:
    all:
      - module: MODULE
        name: all
        config: {url: "URL"}
        grant:
          kv: {}
          dns: {}
          http: {hosts: ["HOST"], private: [127.0.0.1]}
          dsn: {rate: 2/1h}
          secret: [token]
    public:
      - {module: MODULE, name: public, config: {url: "URL"}, grant: {http: {hosts: ["HOST"]}}}
    nothing:
      - {module: MODULE, name: nothing, config: {url: "URL"}}
`

// TestOutside: what a filter may do beyond its session it can do, and nothing else.
func TestOutside(t *testing.T) {
	t.Parallel()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Test", "!")
		fmt.Fprint(w, "hello")
	}))
	defer srv.Close()
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	module := filepath.Join(dir, "outside.wasm")
	if err := os.WriteFile(module, guests.Build(t, filepath.Join("testdata", "outside")), 0o600); err != nil {
		t.Fatal(err)
	}
	pf := peers.Postfix(t, peers.PostfixOptions{})
	host := "http://web.test:" + u.Port()
	yaml := strings.NewReplacer("BACKEND", pf.Addr, "RESOLVER", dnsServer(t), "MODULE", module, "URL", host+"/", "HOST", host).Replace(outsideConfig)
	g := startGatewayIn(t, yaml, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, "token"), []byte("hush-hush\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	})
	ask := func(listener, what string) string {
		c := dialSMTP(t, g.addr[listener])
		defer c.Close()
		from, to := address(t, "a@example.net"), address(t, what+"@example.org")
		rcpts, err := c.Envelope(t.Context(), smtp.Sender{Path: from}, []smtp.Recipient{{Path: to}})
		if err != nil && len(rcpts) == 0 {
			t.Fatal(err)
		}
		return strings.TrimPrefix(smtp.ReplyOf(rcpts[0]).Line(), "450 4.7.1 ")
	}
	for _, tt := range [][2]string{
		{"count", "1"}, {"count", "2"}, {"keep", "kept"}, {"kept", "a value true"}, {"swap", "true"}, {"kept", "another true"},
		{"txt", "a text"}, {"ip", "127.0.0.1"}, {"none", "not found true"}, {"fetch", "200 hello!"}, {"both", "helloa text"},
		{"secret", "hush-hush"}, {"other", "EPERM"}, {"stray", "not found true"}, {"notify", "sent"},
	} {
		if got := ask("all", tt[0]); got != tt[1] {
			t.Errorf("%s: got %q, want %q", tt[0], got, tt[1])
		}
	}
	if got := ask("all", "notify"); !strings.Contains(got, "ELIMIT") {
		t.Errorf("above the rate: got %q", got)
	}
	if got := ask("public", "fetch"); got != "EPERM" {
		t.Errorf("a name that leads to this machine: got %q, want EPERM", got)
	}
	for _, what := range []string{"count", "kept", "txt", "fetch", "both", "secret", "notify"} {
		for range 2 {
			if got := ask("nothing", what); !strings.Contains(got, "EPERM") {
				t.Errorf("%s without a grant: got %q", what, got)
			}
		}
	}
	for _, capability := range []string{"kv", "dns", "http", "secret", "dsn"} {
		n := 0
		for line := range strings.Lines(g.log()) {
			if strings.Contains(line, "not granted") && strings.Contains(line, `nothing`) && strings.Contains(line, capability) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s was spoken of %d times, want once", capability, n)
		}
	}
	got := string(pf.Wait(t, 1)[0])
	for _, want := range []string{"Subject: A notice\r\n", "Auto-Submitted: auto-generated\r\n", "something happened\r\n"} {
		if !strings.Contains(strings.ReplaceAll(strings.ReplaceAll(got, "\r\n", "\n"), "\n", "\r\n"), want) {
			t.Errorf("the notification lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(g.log(), "hush-hush") {
		t.Error("the secret is in the log")
	}
}

func address(t *testing.T, s string) smtp.Path {
	t.Helper()
	p, err := smtp.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
