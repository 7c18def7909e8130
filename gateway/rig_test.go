package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// rig_test.go: a gateway between a client that says what it is told to and a far side
// that notes what it hears.

func TestMain(m *testing.M) { leak.Main(m) }

// far is a Relay. Its zero value takes everything.
type far struct {
	begin func(backend string) error
	rcpt  func(backend, to string) error
	data  func(rcpts []string, content []byte) ([]*smtp.Reply, error)
	// offers are the extensions of backends by name; who is not in it is not known.
	offers map[string]smtp.Extensions

	mu       sync.Mutex // guards what follows
	heard    []string   // "begin b <from>", "rcpt <to>", "data <to> <to>", "abort"
	messages [][]byte   // of Data
	begun    []begun    // of Begin
	open     int        // transactions that have not ended
}

func (f *far) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = append(f.heard, fmt.Sprintf(format, args...))
}

// told returns what was heard, and forgets it.
func (f *far) told() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.heard
	f.heard = nil
	return h
}

// last returns the last message, nil if there is none.
func (f *far) last() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.messages) == 0 {
		return nil
	}
	return f.messages[len(f.messages)-1]
}

func (f *far) count(d int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open += d
	return f.open
}

// begun is a transaction as the far side was told of it.
type begun struct {
	sender smtp.Sender
	client smtp.Forwarded
	rcpts  []smtp.Recipient // as they were offered
}

// lastBegun returns the last transaction that began.
func (f *far) lastBegun() begun {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.begun[len(f.begun)-1]
}

// Offers implements Offers.
func (f *far) Offers(backend string) (smtp.Extensions, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e, ok := f.offers[backend]
	return e, ok
}

func (f *far) Begin(_ context.Context, backend string, from smtp.Sender, client smtp.Forwarded) (smtp.Transaction, error) {
	f.note("begin %s <%s>", backend, from.Path)
	f.mu.Lock()
	f.begun = append(f.begun, begun{sender: from, client: client})
	f.mu.Unlock()
	if f.begin != nil {
		if err := f.begin(backend); err != nil {
			return nil, err
		}
	}
	f.count(1)
	return &farTransaction{far: f, backend: backend}, nil
}

type farTransaction struct {
	far     *far
	backend string
	rcpts   []string
	ended   bool
}

func (tx *farTransaction) Rcpt(_ context.Context, to smtp.Recipient) error {
	if tx.ended {
		panic("RCPT in a transaction that has ended")
	}
	name := to.Path.String()
	tx.far.note("rcpt <%s>", name)
	tx.far.mu.Lock()
	b := &tx.far.begun[len(tx.far.begun)-1]
	b.rcpts = append(b.rcpts, to)
	tx.far.mu.Unlock()
	if tx.far.rcpt != nil {
		if err := tx.far.rcpt(tx.backend, name); err != nil {
			if _, ok := errors.AsType[*smtp.Reply](err); !ok {
				tx.end()
			}
			return err
		}
	}
	tx.rcpts = append(tx.rcpts, "<"+name+">")
	return nil
}

func (tx *farTransaction) Data(_ context.Context, content smtp.Content) ([]*smtp.Reply, error) {
	if tx.ended {
		panic("DATA in a transaction that has ended")
	}
	defer tx.end()
	var b bytes.Buffer
	n, err := content.WriteTo(&b)
	if err != nil {
		return nil, err
	}
	if n != content.Size() || n != int64(b.Len()) {
		return nil, fmt.Errorf("content of %d octets says %d and wrote %d", b.Len(), content.Size(), n)
	}
	tx.far.note("data %s", strings.Join(tx.rcpts, " "))
	if tx.far.data != nil {
		return tx.far.data(tx.rcpts, b.Bytes())
	}
	tx.far.mu.Lock()
	defer tx.far.mu.Unlock()
	tx.far.messages = append(tx.far.messages, b.Bytes())
	return slices.Repeat([]*smtp.Reply{smtp.Refuse(250, smtp.Enhanced{2, 0, 0}, "queued as 1")}, len(tx.rcpts)), nil
}

func (tx *farTransaction) Abort() {
	if !tx.ended {
		tx.far.note("abort")
		tx.end()
	}
}

func (tx *farTransaction) end() {
	if !tx.ended {
		tx.ended = true
		tx.far.count(-1)
	}
}

// journal is a log in memory.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// rig is what a test changes of a gateway. Its zero value has one listener "mx", takes
// mail for example.com at backend "a" and for example.org at "b", and has no filters.
type rig struct {
	far      far
	listener Listener
	more     []Listener
	links    []policy.Link
	routes   []Route
	out      bool // Rules.Out
	options  func(*Options)

	gw  *Gateway
	log journal
}

const testHost = "mx.example.net"

// build makes the gateway, which is shut down at the end of the test.
func (r *rig) build(t testing.TB) *Gateway {
	t.Helper()
	def := func(p *string, v string) {
		if *p == "" {
			*p = v
		}
	}
	l := r.listener
	def(&l.Name, "mx")
	if l.Addresses == nil {
		l.Addresses = []Address{{Network: "tcp", Address: "127.0.0.1:0"}}
	}
	def((*string)(&l.TLS), "off")
	def(&l.Chain, "in")
	o := Options{Hostname: testHost, Listeners: append([]Listener{l}, r.more...), Relay: &r.far,
		SpoolDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&r.log, nil))}
	if r.options != nil {
		r.options(&o)
	}
	gw, err := New(o, r.rules(nil))
	if err != nil {
		t.Fatal(err)
	}
	r.gw = gw
	return gw
}

// rules are those of the rig, with the Release.
func (r *rig) rules(release func()) Rules {
	routes := r.routes
	if routes == nil {
		routes = []Route{{Domains: []string{"example.com"}, Backend: "a"}, {Domains: []string{"example.org"}, Backend: "b"}}
	}
	return Rules{Routes: routes, Chains: map[string]*policy.Chain{"in": policy.NewChain(r.links...)}, Out: r.out, Release: release}
}

// start makes the gateway serve.
func (r *rig) start(t testing.TB) *rig {
	t.Helper()
	gw := r.build(t)
	if err := gw.Listen(); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- gw.Serve() }()
	t.Cleanup(func() {
		r.stop(t)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return r
}

// stop shuts the gateway down. No client can hold it up.
func (r *rig) stop(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := r.gw.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if n := r.gw.Connections(); n != 0 {
		t.Errorf("connections after Shutdown: %d", n)
	}
	if n := r.far.count(0); n != 0 {
		t.Errorf("transactions of the far side that nobody ended: %d", n)
	}
	if c := r.gw.load.counts(); c.sessions != 0 || c.spool != 0 {
		t.Errorf("%d sessions and %d octets of messages are counted after the last", c.sessions, c.spool)
	}
	if len(r.gw.perIP) != 0 {
		t.Errorf("addresses are counted after the last connection: %v", r.gw.perIP)
	}
}

// peer is a client.
type peer struct {
	t  testing.TB
	nc net.Conn
	r  *bufio.Reader
}

// dial connects to a listener; the greeting is not read.
func (r *rig) dial(t testing.TB, listener string) *peer {
	t.Helper()
	addr := r.gw.Addr(listener)
	nc, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		t.Fatal(err)
	}
	return newPeer(t, nc)
}

func newPeer(t testing.TB, nc net.Conn) *peer {
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return &peer{t: t, nc: nc, r: bufio.NewReader(nc)}
}

// piped connects through memory, as tests with a false clock need it. wait ends the
// session.
func (r *rig) piped(t testing.TB) (p *peer, wait func()) {
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.gw.listeners[0].srv.ServeConn(server)
	}()
	return &peer{t: t, nc: client, r: bufio.NewReader(client)}, func() {
		client.Close()
		<-done
	}
}

// hello is a client that has read the greeting and said EHLO.
func (r *rig) hello(t testing.TB) *peer {
	t.Helper()
	p := r.dial(t, "mx")
	p.talk(" => 220", "EHLO client.test => 250")
	return p
}

func (p *peer) send(s string) {
	p.t.Helper()
	if _, err := p.nc.Write([]byte(s)); err != nil {
		p.t.Fatalf("sending %.60q: %v", s, err)
	}
}

// reply reads one reply: its lines joined by "\n"; "closed" if there is none.
func (p *peer) reply() string {
	var lines []string
	for {
		line, err := p.r.ReadString('\n')
		if err != nil {
			return strings.Join(append(lines, "closed"), "\n")
		}
		line = strings.TrimRight(line, "\r\n")
		lines = append(lines, line)
		if len(line) < 4 || line[3] != '-' {
			return strings.Join(lines, "\n")
		}
	}
}

// talk runs steps of the form "command => reply". The reply need only begin so. A command
// that is empty says nothing; " => closed" waits for the end.
func (p *peer) talk(steps ...string) {
	p.t.Helper()
	for _, step := range steps {
		cmd, want, ok := strings.Cut(step, " => ")
		if !ok {
			p.t.Fatalf("step %q has no reply", step)
		}
		if cmd != "" {
			p.send(cmd + "\r\n")
		}
		if got := p.reply(); !strings.HasPrefix(got, want) {
			p.t.Fatalf("%.80q: got %q, want %q", cmd, got, want)
		}
	}
}

// begin says MAIL and RCPT for each of to, all of which must be taken.
func (p *peer) begin(to ...string) {
	p.t.Helper()
	p.talk("MAIL FROM:<from@client.test> => 250")
	for _, r := range to {
		p.talk("RCPT TO:<" + r + "> => 250")
	}
}

const testMessage = "From: a@client.test\r\nSubject: test\r\n\r\nThe sesame is opened.\r\n"

// data sends a message and returns the reply.
func (p *peer) data(message string) string {
	p.t.Helper()
	p.talk("DATA => 354")
	p.send(strings.ReplaceAll(message, "\r\n.", "\r\n..") + ".\r\n")
	return p.reply()
}

// is fails the test if two lists differ.
func is(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// filter is a link whose filter does f at one stage and has no objection at others.
func filter(name string, stage policy.Stage, f func(e *policy.Event) policy.Verdict) policy.Link {
	return policy.Link{MayAccept: true, Filter: policy.Func(name, policy.StagesOf(stage),
		func(_ context.Context, e *policy.Event) (policy.Verdict, error) { return f(e), nil })}
}

// path reads an address.
func path(s string) smtp.Path {
	p, err := smtp.ParsePath("<" + s + ">")
	if err != nil {
		panic("gateway test: " + err.Error())
	}
	return p
}

// body is what of a message stands behind our Received field.
func body(message []byte) string {
	rest := string(message)
	if !strings.HasPrefix(rest, "Received: ") {
		return "(no Received) " + rest
	}
	for {
		_, after, _ := strings.Cut(rest, "\r\n")
		rest = after
		if rest == "" || rest[0] != '\t' {
			return rest
		}
	}
}
