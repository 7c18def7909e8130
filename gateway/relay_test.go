package gateway_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// relay_test.go: both halves in one process: clients of mail/smtp, the gateway, the
// transport of package delivery, and backends that are servers of mail/smtp.

// backend is a server that keeps what it gets.
type backend struct {
	// rcpt and message, if not nil, decide.
	rcpt    func(to smtp.Path) error
	message func(content []byte) (*smtp.Reply, error)
	forgets bool // what it gets

	srv  *smtp.Server
	addr string

	mu   sync.Mutex // guards what follows
	got  []envelope
	opts smtp.ServerOptions
}

type envelope struct {
	from    smtp.Sender
	to      []string
	content []byte
}

// messages returns what came so far.
func (b *backend) messages() []envelope {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.got
}

// start makes b listen.
func (b *backend) start(t testing.TB) *backend {
	t.Helper()
	b.opts.Hostname = "backend.test"
	srv, err := smtp.NewServer(smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) {
		return &backendSession{b: b}, nil
	}), b.opts)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b.srv, b.addr = srv, l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		shutdown(t, srv.Shutdown)
		<-served
	})
	return b
}

// shutdown ends something in time.
func shutdown(t testing.TB, f func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := f(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

type backendSession struct {
	smtp.Accept
	b *backend
	e envelope
}

func (s *backendSession) Mail(_ context.Context, from smtp.Sender) error {
	s.e = envelope{from: from}
	return nil
}

func (s *backendSession) Rcpt(_ context.Context, to smtp.Recipient) error {
	if s.b.rcpt != nil {
		if err := s.b.rcpt(to.Path); err != nil {
			return err
		}
	}
	s.e.to = append(s.e.to, to.Path.String())
	return nil
}

func (s *backendSession) Message(ctx context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	if s.b.forgets {
		return s.Accept.Message(ctx, body)
	}
	var content bytes.Buffer
	if _, err := body.WriteTo(&content); err != nil {
		return nil, err
	}
	if s.b.message != nil {
		if r, err := s.b.message(content.Bytes()); err != nil {
			return []*smtp.Reply{r}, err
		}
	}
	s.e.content = content.Bytes()
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.got = append(s.b.got, s.e)
	return []*smtp.Reply{smtp.Refuse(250, smtp.Enhanced{2, 6, 0}, fmt.Sprintf("backend has it as %d", len(s.b.got)))}, nil
}

// transport is the delivery half in the words of the gateway.
type transport struct{ *delivery.Transport }

func (t transport) Begin(ctx context.Context, backend string, from smtp.Sender, client smtp.Forwarded) (smtp.Transaction, error) {
	return t.Transport.BeginFor(ctx, backend, from, client)
}

// system is a gateway in front of backends.
type system struct {
	gw    *gateway.Gateway
	certs *certs.Store
}

// listeners of every system, by name.
var listeners = []gateway.Listener{
	{Name: "mx", Addresses: []gateway.Address{{Network: "tcp", Address: "127.0.0.1:0"}}, Chain: "in", ConnectionsPerIP: -1},
	{Name: "strict", Addresses: []gateway.Address{{Network: "tcp", Address: "127.0.0.1:0"}}, ConnectionsPerIP: -1,
		Server: smtp.ServerOptions{LineEndings: smtp.RejectLineEndings}},
	{Name: "submissions", Addresses: []gateway.Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: gateway.TLSImplicit, Chain: "in"},
}

// newSystem starts a gateway that sends example.com to the first backend, example.org to
// the second.
func newSystem(t testing.TB, links []policy.Link, backends ...*backend) *system {
	t.Helper()
	s := &system{}
	var err error
	if s.certs, err = certs.New(certs.Options{Hostname: "mx.example.net"}); err != nil {
		t.Fatal(err)
	}
	do := delivery.Options{LocalName: "mx.example.net", Backends: map[string]delivery.BackendOptions{}}
	rules := gateway.Rules{Chains: map[string]*policy.Chain{"in": policy.NewChain(links...)}}
	for i, b := range backends {
		name := fmt.Sprint("backend", i+1)
		do.Backends[name] = delivery.BackendOptions{Groups: [][]delivery.Endpoint{{{Network: "tcp", Address: b.addr}}}}
		rules.Routes = append(rules.Routes, gateway.Route{Domains: []string{[]string{"example.com", "example.org"}[i]}, Backend: name})
	}
	tr, err := delivery.New(do)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, tr.Shutdown) })
	s.gw, err = gateway.New(gateway.Options{Hostname: "mx.example.net", Listeners: listeners, Relay: transport{tr},
		TLS: s.certs.ServerConfig(), SpoolDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)}, rules)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.gw.Listen(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.gw.Serve() }()
	t.Cleanup(func() {
		shutdown(t, s.gw.Shutdown)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s
}

// client connects to a listener, with TLS where it has that from the beginning.
func (s *system) client(t testing.TB, listener string) *smtp.Client {
	t.Helper()
	nc, err := net.Dial("tcp", s.gw.Addr(listener).String())
	if err != nil {
		t.Fatal(err)
	}
	if listener == "submissions" {
		nc = tls.Client(nc, s.tls())
	}
	c, err := smtp.NewClient(context.Background(), nc, smtp.ClientOptions{LocalName: "client.test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (s *system) tls() *tls.Config {
	return &tls.Config{ServerName: "mx.example.net", RootCAs: s.certs.DefaultPool()}
}

type text []byte

func (s text) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write(s)
	return int64(n), err
}

func path(t testing.TB, s string) smtp.Path {
	p, err := smtp.ParsePath("<" + s + ">")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// send sends one message and returns what the server said: to the message, or to the first
// recipient that it refused.
func send(t testing.TB, c *smtp.Client, from smtp.Sender, message string, to ...string) *smtp.Reply {
	t.Helper()
	var rcpts []smtp.Recipient
	for _, s := range to {
		rcpts = append(rcpts, smtp.Recipient{Path: path(t, s)})
	}
	answers, err := c.Envelope(context.Background(), from, rcpts)
	if err != nil {
		return smtp.ReplyOf(err)
	}
	for _, err := range answers {
		if err != nil {
			c.Reset(context.Background())
			return smtp.ReplyOf(err)
		}
	}
	replies, err := c.Data(context.Background(), text(message))
	if err != nil {
		return smtp.ReplyOf(err)
	}
	return replies[0]
}

const message = "From: a@client.test\r\nSubject: test\r\n\r\n.hello\r\n..\r\n"

// TestThrough: a message from end to end, on each listener.
func TestThrough(t *testing.T) {
	b := (&backend{}).start(t)
	s := newSystem(t, nil, b)
	for _, c := range []struct {
		name, listener string
		starttls       bool
		from           smtp.Sender
		to             string
		with           string
	}{
		{"in clear", "mx", false, smtp.Sender{Path: path(t, "f@client.test")}, "a@example.com", "ESMTP"},
		{"STARTTLS", "mx", true, smtp.Sender{Path: path(t, "f@client.test")}, "a@example.com", "ESMTPS"},
		{"implicit TLS", "submissions", false, smtp.Sender{}, "a@example.com", "ESMTPS"},
		{"SMTPUTF8 and TLS", "mx", true, smtp.Sender{Path: path(t, "fü@client.test"), UTF8: true, Body: smtp.BodyEightBit}, "ä@example.com", "UTF8SMTPS"},
		{"8BITMIME", "mx", false, smtp.Sender{Path: path(t, "f@client.test"), Body: smtp.BodyEightBit}, "postmaster", "ESMTP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := s.client(t, c.listener)
			if c.starttls {
				if err := client.StartTLS(context.Background(), s.tls()); err != nil {
					t.Fatal(err)
				}
			}
			if r := send(t, client, c.from, message, c.to); !strings.HasPrefix(r.Line(), "250 2.6.0 backend has it") {
				t.Fatalf("got %q", r.Line())
			}
			got := b.messages()[len(b.messages())-1]
			c.from.Size = 0
			if got.from != c.from || got.to[0] != c.to {
				t.Errorf("envelope: got %+v %q", got.from, got.to)
			}
			head, ok := strings.CutSuffix(string(got.content), message)
			if !ok {
				t.Errorf("content: got %q, want it to end with %q", got.content, message)
			}
			want := []string{"Received: from client.test ([127.0.0.1])", " with " + c.with + " id ", "for <" + c.to + ">"}
			if state, ok := client.TLS(); ok {
				want = append(want, "(using TLSv1.3 with cipher "+tls.CipherSuiteName(state.CipherSuite)+")")
			}
			for _, part := range want {
				if !strings.Contains(head, part) {
					t.Errorf("%q is not in %q", part, head)
				}
			}
			if err := client.Quit(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSecure: what policy says of an encrypted connection ends it.
func TestSecure(t *testing.T) {
	var seen policy.TLS
	b := (&backend{}).start(t)
	s := newSystem(t, []policy.Link{{Filter: policy.Func("judge", policy.StagesOf(policy.StageSecure), func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
		seen = *e.Session.TLS
		if e.Session.Helo != "" {
			return policy.Verdict{}, fmt.Errorf("the name %q was said in clear", e.Session.Helo)
		}
		return policy.Verdict{Action: policy.Tempfail}, nil
	})}}, b)
	c := s.client(t, "mx")
	if err := c.StartTLS(context.Background(), s.tls()); smtp.ReplyOf(err).Line() != "451 4.7.1 deferred by policy, try again later" {
		t.Errorf("got %v", err)
	}
	if err := c.Noop(context.Background()); err == nil || !c.Broken() {
		t.Errorf("after it: %v, broken %v", err, c.Broken())
	}
	if seen.Version != tls.VersionTLS13 || seen.ServerName != "mx.example.net" {
		t.Errorf("policy saw %+v", seen)
	}
}

// TestRealBackend: what becomes of messages when backends refuse, or go away.
func TestRealBackend(t *testing.T) {
	var mu sync.Mutex
	var doing string
	is := func(s string) bool { mu.Lock(); defer mu.Unlock(); return doing == s }
	first := &backend{}
	first.rcpt = func(to smtp.Path) error {
		if to.Local == "nobody" {
			return smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "nobody is not here")
		}
		return nil
	}
	first.message = func([]byte) (*smtp.Reply, error) {
		switch {
		case is("refuse"):
			return nil, smtp.Refuse(554, smtp.Enhanced{5, 6, 0}, "not that")
		case is("defer"):
			return nil, smtp.Refuse(452, smtp.Enhanced{4, 3, 1}, "disk full")
		case is("hang up"):
			return nil, &smtp.Reply{Code: 421, Text: "going down"}
		case is("panic"):
			panic("fault of the backend")
		}
		return nil, nil
	}
	first.opts.MaxMessage = 100 << 10
	first.start(t)
	second := (&backend{}).start(t)
	s := newSystem(t, nil, first, second)
	client := s.client(t, "mx")
	for _, c := range []struct {
		doing, message string
		to             []string
		want           string
		got            [2]int // messages of the backends
	}{
		{"", message, []string{"a@example.com", "b@example.com"}, "250 2.6.0 backend has it as 1", [2]int{1, 0}},
		{"", message, []string{"nobody@example.com"}, "550 5.1.1 nobody is not here", [2]int{1, 0}},
		{"", message, []string{"a@example.com", "a@example.org"}, "452 4.5.3", [2]int{1, 0}},
		{"", message, []string{"a@example.org"}, "250 2.6.0 backend has it as 1", [2]int{1, 1}},
		{"refuse", message, []string{"a@example.com", "b@example.com"}, "554 5.6.0 not that", [2]int{1, 1}},
		{"defer", message, []string{"a@example.com", "b@example.com"}, "452 4.3.1 disk full", [2]int{1, 1}},
		{"hang up", message, []string{"a@example.com"}, "451 4.3.2 going down", [2]int{1, 1}},
		{"panic", message, []string{"a@example.com"}, "451 4.3.0", [2]int{1, 1}},
		{"", strings.Repeat("line of text\r\n", 10000), []string{"a@example.com"}, "552 5.3.4", [2]int{1, 1}}, // larger than the backend takes
		{"", message, []string{"a@example.com"}, "250 2.6.0 backend has it as 2", [2]int{2, 1}},               // all the time the same session
	} {
		mu.Lock()
		doing = c.doing
		mu.Unlock()
		r := send(t, client, smtp.Sender{}, c.message, c.to...)
		if !strings.HasPrefix(r.Line(), c.want) {
			t.Errorf("%q to %q: got %q, want %q", c.doing, c.to, r.Line(), c.want)
		}
		if got := [2]int{len(first.messages()), len(second.messages())}; got != c.got {
			t.Errorf("%q to %q: backends have %v, want %v", c.doing, c.to, got, c.got)
		}
	}
	shutdown(t, second.srv.Shutdown)
	if r := send(t, client, smtp.Sender{}, message, "a@example.org"); r.Code != 451 {
		t.Errorf("with the backend gone: got %q", r.Line())
	}
}

// TestHammer: a hundred clients at once. Every message is answered 250 and arrives once, as
// it was sent.
func TestHammer(t *testing.T) {
	const clients, each = 100, 20
	b := (&backend{}).start(t)
	noted := make(map[string]int)
	var mu sync.Mutex
	s := newSystem(t, []policy.Link{{Filter: policy.Func("note", policy.StagesOf(policy.StageMessage), func(_ context.Context, e *policy.Event) (policy.Verdict, error) {
		mu.Lock()
		defer mu.Unlock()
		noted[e.Session.ID]++
		return policy.Verdict{}, e.Edits.AddHeader(-1, "X-Noted", e.Tx.Sender.Path.Local)
	})}}, b)
	content := func(i, j int) string {
		size := 1 << (j % 13)
		if j == 0 && i%10 == 0 {
			size = 400 << 10 // more than stays in memory
		}
		return fmt.Sprintf("Subject: %d.%d\r\n\r\n%s\r\n", i, j, strings.Repeat("x", size))
	}
	var wg sync.WaitGroup
	for i := range clients {
		c := s.client(t, "mx")
		wg.Go(func() {
			for j := range each {
				r := send(t, c, smtp.Sender{Path: path(t, fmt.Sprintf("m%d.%d@client.test", i, j))}, content(i, j), "a@example.com", "b@example.com")
				if r.Code != 250 {
					t.Errorf("message %d of client %d: got %q", j, i, r.Line())
				}
			}
			c.Quit(context.Background())
		})
	}
	wg.Wait()
	seen := make(map[string]bool)
	for _, e := range b.messages() {
		var i, j int
		fmt.Sscanf(e.from.Path.Local, "m%d.%d", &i, &j)
		want := strings.Replace(content(i, j), "\r\n\r\n", fmt.Sprintf("\r\nX-Noted: m%d.%d\r\n\r\n", i, j), 1)
		if seen[e.from.Path.Local] || len(e.to) != 2 || !strings.HasPrefix(string(e.content), "Received: ") || !strings.HasSuffix(string(e.content), want) {
			t.Errorf("message %s: twice %v, to %q, content %.300q", e.from.Path, seen[e.from.Path.Local], e.to, e.content)
		}
		seen[e.from.Path.Local] = true
	}
	if len(seen) != clients*each || len(noted) != clients || s.gw.Stats.Relayed.Load() != clients*each {
		t.Errorf("messages: %d, sessions: %d, counted: %d; want %d, %d, %d", len(seen), len(noted), s.gw.Stats.Relayed.Load(), clients*each, clients, clients*each)
	}
}

// BenchmarkRelay sends messages of 4 KB through the gateway to a backend in this process,
// one after the other, in one session each. The allocations are those of all three.
func BenchmarkRelay(b *testing.B) {
	content := text("From: a@client.test\r\nTo: a@example.com\r\nSubject: benchmark\r\nMessage-ID: <1@client.test>\r\n\r\n" +
		strings.Repeat(strings.Repeat("x", 76)+"\r\n", 4096/78))
	for _, filters := range []int{0, 3} {
		b.Run(fmt.Sprintf("filters=%d", filters), func(b *testing.B) {
			var links []policy.Link
			for i := range filters {
				links = append(links, policy.Link{Filter: policy.Func(fmt.Sprint("filter", i), policy.AllStages,
					func(context.Context, *policy.Event) (policy.Verdict, error) { return policy.Verdict{}, nil })})
			}
			s := newSystem(b, links, (&backend{forgets: true}).start(b))
			c := s.client(b, "mx")
			from, to := smtp.Sender{Path: path(b, "f@client.test")}, []smtp.Recipient{{Path: path(b, "a@example.com")}}
			b.ReportAllocs()
			b.SetBytes(int64(len(content)))
			sent := 0
			for b.Loop() {
				if sent++; sent == 1000 { // as many as one connection may send
					c.Quit(context.Background())
					c, sent = s.client(b, "mx"), 1
				}
				if _, err := c.Envelope(context.Background(), from, to); err != nil {
					b.Fatal(err)
				}
				if r, err := c.Data(context.Background(), content); err != nil || r[0].Code != 250 {
					b.Fatal(r, err)
				}
			}
		})
	}
}
