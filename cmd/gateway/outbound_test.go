package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/penstock/penstock/admin/client"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// outbound_test.go: the program sends to a host that DNS names. What the hosts of others may do
// is tested in package delivery.

// nameServer answers on the loopback with the records of a zone.
func nameServer(t *testing.T, zone string) (addr string) {
	t.Helper()
	var records []dns.RR
	p := dns.NewZoneParser(strings.NewReader("$TTL 60\n"+zone), ".", "zone")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		records = append(records, rr)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started, done := make(chan struct{}), make(chan struct{})
	s := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		m.RecursionAvailable, m.Rcode = true, dns.RcodeNameError
		for _, rr := range records {
			if strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
				if m.Rcode = dns.RcodeSuccess; rr.Header().Rrtype == q.Question[0].Qtype {
					m.Answer = append(m.Answer, rr)
				}
			}
		}
		w.WriteMsg(m)
	})}
	go func() {
		defer close(done)
		s.ActivateAndServe()
	}()
	<-started
	t.Cleanup(func() {
		s.Shutdown()
		<-done
	})
	return pc.LocalAddr().String()
}

const outboundConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0", accept: any, trusted_networks: [127.0.0.0/8], limits: {greet_delay: off}, reverse_dns: {enabled: false}}
store: {driver: embedded, path: $DIR/store}
certificates: {dir: $DIR/certificates}
filters: {cache: $CACHE}
admin: {tokens: "file:$DIR/tokens.txt", address: "127.0.0.1:0"}
delivery:
  resolver: {address: "RESOLVER"}
  port: PORT
  block_local_addresses: false
  block_reserved_networks: false
  schedule: {first: 1s, max: 2s, expire: 1h}
`

// TestSendsOut: mail from a client that may relay reaches the mail exchanger of its recipient's
// domain, and one that cannot is explained.
func TestSendsOut(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		peers.Missing(t, "127.0.0.2", err.Error())
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	sink := newSink(t, l)
	resolver := nameServer(t, `
elsewhere.test.    MX 10 mx.elsewhere.test.
mx.elsewhere.test. A  127.0.0.2
nowhere.test.      MX 0 .
`)
	var token string
	g := startGatewayIn(t, strings.NewReplacer("RESOLVER", resolver, "PORT", port).Replace(outboundConfig), func(dir string) {
		out, errs, code := gatewayRun(t, dir, nil, "token", "new", "--role", "read", "reader")
		if code != 0 {
			t.Fatal(errs)
		}
		token = strings.TrimSpace(out)
	})
	c := dialSMTP(t, g.addr["mx"])
	raw := []byte("From: alice@example.net\r\nSubject: out\r\n\r\nhello\r\n")
	if r := send(t, c, "bob@elsewhere.test", raw); r.Code != 250 {
		t.Fatalf("got %s", r.Line())
	}
	defer func() {
		if t.Failed() {
			t.Log(g.log())
		}
	}()
	got := sink.wait(t)
	if want := "alice@example.net bob@elsewhere.test"; got.envelope != want || !bytes.HasSuffix(got.content, []byte("\r\n\r\nhello\r\n")) || got.helo != "mx.example.org" {
		t.Errorf("got %q by %s:\n%s", got.envelope, got.helo, got.content)
	}
	// RFC 7505: no mail for this domain. The report goes where mail for its sender does.
	c2 := dialSMTP(t, g.addr["mx"])
	from := smtp.Sender{Path: path(t, "carol@elsewhere.test")}
	if _, err := c2.Envelope(t.Context(), from, []smtp.Recipient{{Path: path(t, "bob@nowhere.test")}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c2.Data(t.Context(), bytes.NewReader(raw)); err != nil {
		t.Fatal(err)
	}
	report := sink.wait(t)
	if report.envelope != " carol@elsewhere.test" || !bytes.Contains(report.content, []byte("5.1.10")) {
		t.Errorf("got a report for %q:\n%s", report.envelope, report.content)
	}
	outFigures(t, g, token)
}

// outFigures: what there is to be seen of it.
func outFigures(t *testing.T, g *gatewayProcess, token string) {
	cl, err := client.New(g.addr[adminName], token, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	text, err := cl.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, labels string
		least, most  float64
	}{
		{"penstock_resolver_validating", "", 0, 0}, // the server sets no AD bit
		{"penstock_resolver_probes_total", "result=answered", 1, 1},
		{"penstock_delivery_lookups_total", "event=query", 4, 40},
		{"penstock_delivery_plans_total", "result=made", 1, 4},
		{"penstock_delivery_plans_total", "result=failed", 1, 4},
		{"penstock_mtasts_events_total", "event=lookup", 1, 9},
		{"penstock_tlsrpt_sessions_total", "result=dropped", 0, 0},
		{"penstock_tlsrpt_reports_total", "result=sent", 0, 0},
	} {
		if got, ok := value(families[tt.name], tt.labels); !ok || got < tt.least || got > tt.most {
			t.Errorf("%s{%s} = %v %v, want %v to %v", tt.name, tt.labels, got, ok, tt.least, tt.most)
		}
	}
}

// sunk is a message that a sink took.
type sunk struct {
	helo, envelope string
	content        []byte
}

// sink is a mail host that takes all there is.
type sink struct{ got chan sunk }

func newSink(t *testing.T, l net.Listener) *sink {
	t.Helper()
	s := &sink{make(chan sunk, 10)}
	srv, err := smtp.NewServer(smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) {
		return &sinkSession{sink: s}, nil
	}), smtp.ServerOptions{Hostname: "mx.elsewhere.test"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = srv.Shutdown(ctx) // cut off or not, Serve returns
		<-served
	})
	return s
}

func (s *sink) wait(t *testing.T) sunk {
	t.Helper()
	select {
	case m := <-s.got:
		return m
	case <-time.After(patience):
		t.Fatal("nothing came")
	}
	return sunk{}
}

type sinkSession struct {
	smtp.Accept
	sink *sink
	sunk sunk
}

func (s *sinkSession) Helo(_ context.Context, name string) error {
	s.sunk.helo = name
	return nil
}

func (s *sinkSession) Mail(_ context.Context, from smtp.Sender) error {
	s.sunk.envelope = from.Path.String()
	return nil
}

func (s *sinkSession) Rcpt(_ context.Context, to smtp.Recipient) error {
	s.sunk.envelope += " " + to.Path.String()
	return nil
}

func (s *sinkSession) Message(_ context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return nil, err
	}
	s.sunk.content = content
	s.sink.got <- s.sunk
	return nil, nil
}
