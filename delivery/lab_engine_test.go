package delivery_test

// lab_engine_test.go: our own engine in the lab, with all that it stands on: the resolver that
// asks unbound, a cache of MTA-STS policies, and a store.

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// labEngine is an engine in the lab. It notes what becomes of each recipient, and what is to be
// reported about TLS.
type labEngine struct {
	*delivery.Engine

	mu     sync.Mutex
	fates  map[string]chan string // by address; guarded by mu
	events []tlsrpt.Event         // guarded by mu
}

// labGuard lets mail go to the addresses of the lab.
func labGuard(t *testing.T) *mx.Guard {
	t.Helper()
	g, err := mx.NewGuard(mx.GuardOptions{AllowLocal: true, Machine: func() ([]netip.Addr, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// policies is a cache of MTA-STS policies.
func (s *site) policies(t *testing.T, timeout time.Duration) *mtasts.Cache {
	t.Helper()
	c, err := mtasts.New(mtasts.Options{
		DNS: s.DNS, RootCAs: s.Authority.Pool(), Dial: s.Dial, Timeout: timeout,
		Check: func(netip.Addr) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// engine starts an engine; change may change the options of its planner.
func (s *site) engine(t *testing.T, change func(*delivery.PlanOptions)) *labEngine {
	t.Helper()
	guard := labGuard(t)
	plan := delivery.PlanOptions{MX: mx.Options{DNS: s.DNS, Guard: guard}, STS: s.policies(t, time.Minute)}
	change(&plan)
	planner, err := delivery.NewPlanner(plan)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := delivery.New(delivery.Options{LocalName: "client.test"})
	if err != nil {
		t.Fatal(err)
	}
	queue, err := embedded.Open("store", embedded.Options{FS: vfs.NewMem(), Memtable: 1 << 20, Cache: 1 << 20, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	e := &labEngine{fates: make(map[string]chan string)}
	e.Engine, err = delivery.NewEngine(delivery.EngineOptions{
		Queue: queue.Queue(), Transport: transport, Hostname: "client.test",
		Route: func(smtp.Path) store.Destination { return "backend:reports" },
		Outbound: &delivery.OutboundOptions{
			Planner: planner, Guard: guard, Dial: s.Dial, Hooks: e, Recorder: e,
			Secure: delivery.SecureOptions{Authorities: s.Authority.Pool()},
		},
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		e.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ran
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := e.Shutdown(ctx); err != nil {
			t.Errorf("shutdown of the engine: %v", err)
		}
		if err := transport.Shutdown(ctx); err != nil {
			t.Errorf("shutdown of the transport: %v", err)
		}
		if err := queue.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// send sends a message to addresses of one domain, and returns what became of each: "sent", or
// "deferred" or "bounced" with the enhanced code, a colon and the words.
func (e *labEngine) send(t *testing.T, sender smtp.Sender, content string, to ...string) []string {
	t.Helper()
	k := delivery.Keeping{Sender: sender, Origin: store.Origin{Trusted: true}, Content: labContent(content)}
	var waits []chan string
	for _, address := range to {
		path, err := smtp.ParseAddress(address)
		if err != nil {
			t.Fatal(err)
		}
		target, err := mx.ParseTarget(address)
		if err != nil {
			t.Fatal(err)
		}
		k.Recipients = append(k.Recipients, delivery.KeptRecipient{
			Recipient: smtp.Recipient{Path: path}, Destination: delivery.MXDestination(target),
		})
		waits = append(waits, e.wait(path.String()))
	}
	if _, err := e.Keep(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	var said []string
	for i, fate := range waits {
		select {
		case s := <-fate:
			said = append(said, s)
		case <-limit.C:
			t.Fatalf("%s: nothing after a minute", to[i])
		}
	}
	return said
}

// wait returns where the fate of an address will be told.
func (e *labEngine) wait(address string) chan string {
	fate := make(chan string, 1)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fates[address] = fate
	return fate
}

// labContent is a message.
type labContent string

func (c labContent) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, string(c))
	return int64(n), err
}

func (c labContent) Size() int64 { return int64(len(c)) }

// told notes fates.
func (e *labEngine) told(o delivery.Outgoing, fates []delivery.Fate, what string) {
	for _, f := range fates {
		said := what
		if what != "sent" {
			said = fmt.Sprintf("%s %s: %s", what, f.Reply.Enh, f.Reply.Line())
		}
		e.mu.Lock()
		fate := e.fates[o.Message.Recipients[f.Recipient].Path.String()]
		e.mu.Unlock()
		select {
		case fate <- said:
		default:
		}
	}
}

// The Hooks. They leave all as it is.

func (e *labEngine) Route(context.Context, delivery.Outgoing) (delivery.Way, error) {
	return delivery.Way{}, nil
}

func (e *labEngine) Deliver(context.Context, delivery.Outgoing, []delivery.Hop) (delivery.Turn, error) {
	return delivery.Turn{}, nil
}

func (e *labEngine) Deferred(_ context.Context, o delivery.Outgoing, f []delivery.Fate) {
	e.told(o, f, "deferred")
}

func (e *labEngine) Bounced(_ context.Context, o delivery.Outgoing, f []delivery.Fate) {
	e.told(o, f, "bounced")
}

func (e *labEngine) Delivered(_ context.Context, o delivery.Outgoing, f []delivery.Fate) {
	e.told(o, f, "sent")
}

// Record implements tlsrpt.Recorder.
func (e *labEngine) Record(v tlsrpt.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, v)
}

// failures are the kinds of failures that were reported about a domain, in order, each once.
func (e *labEngine) failures(domain string) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var kinds []string
	for _, v := range e.events {
		if v.Domain == domain && v.Failure != nil {
			kinds = append(kinds, string(v.Failure.Type))
		}
	}
	slices.Sort(kinds)
	return slices.Compact(kinds)
}

// askEngine sends a message to each domain with our engine.
func (s *site) askEngine(t *testing.T) {
	usual := s.engine(t, func(*delivery.PlanOptions) {})
	required := s.engine(t, func(o *delivery.PlanOptions) { o.DANE = delivery.DANERequired })
	both := s.engine(t, func(o *delivery.PlanOptions) { o.Both = true })
	hasty := s.engine(t, func(o *delivery.PlanOptions) { o.STS = s.policies(t, 2*time.Second) })
	t.Run("rows", func(t *testing.T) {
		for _, r := range s.rows() {
			e := usual
			switch {
			case r.required:
				e = required
			case r.both:
				e = both
			case r.hasty:
				e = hasty
			}
			t.Run(r.name, func(t *testing.T) {
				t.Parallel()
				s.row(r).ask(t, e, r)
			})
		}
	})
}

// ask sends the message of a row, and looks at all that is to be seen of it.
func (s *site) ask(t *testing.T, e *labEngine, r labRow) {
	to, content := "ours@"+s.domain(), "Subject: to one\r\n\r\nHello.\r\n"
	if r.tlsOptional {
		content = "TLS-Required: No\r\n" + content
	}
	var sender smtp.Sender
	if r.requireTLS { // which is of no consequence to the null sender (RFC 8689, Section 4.2.1)
		path, err := smtp.ParseAddress("from@client.test")
		if err != nil {
			t.Fatal(err)
		}
		sender = smtp.Sender{Path: path, RequireTLS: true}
	}
	got, text, _ := strings.Cut(e.send(t, sender, content, to)[0], ": ")
	if got == "sent" {
		got = s.sent(to)
	}
	if got != r.ours {
		t.Errorf("got %s, want %s: %s", got, r.ours, text)
	}
	if report := strings.Join(e.failures(s.domain()), " "); report != r.report && !r.anyReport {
		t.Errorf("got reports of %q, want %q", report, r.report)
	}
	if n := s.connections(); n > 0 && r.unreached {
		t.Errorf("got %d connections to %s, want none", n, s.mx())
	}
	if found := s.messages(to); r.sni != "" && (len(found) == 0 || found[0].TLS.ServerName != r.sni) {
		t.Errorf("got messages %+v, want one with the SNI %s", found, r.sni)
	}
}
