package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// nodes_test.go: two nodes with one database. One is killed, the database goes away and comes
// back, and of what clients heard 250 for nothing is lost.

const nodeConfig = `
hostname: NAME
listeners:
  - {name: mx, address: "127.0.0.1:0", chain: inbound}
routes:
  - {domains: [example.org], backend: mailstore}
backends:
  mailstore: {addresses: ["smtp://BACKEND"], mode: queue, recipients: accept, connections: 8}
filters:
  cache: $CACHE
  chains: {inbound: [{module: "builtin:helocheck"}]}
certificates: {dir: $DIR/certificates}
admin: {tokens: "file:$DIR/tokens.txt", address: "127.0.0.1:0"}
store: {driver: postgres, url: "URL", key: "file:$DIR/key", timeout: 2s}
delivery: {lease: 8s, schedule: {first: 1s, factor: 1, max: 1s}}
`

// tide is what a tideBackend does with messages.
type tide int

const (
	ebb   tide = iota // refuses them for now
	slack             // reads them, and gives no answer
	flood             // takes them
)

// tideBackend is a backend that takes messages at times.
type tideBackend struct {
	addr string

	mu    sync.Mutex
	tide  tide
	turn  chan struct{}       // closed when the tide turns
	came  map[string]int      // messages that were taken, by the local part of the recipient
	slack map[string][]string // those that have no answer yet, by the node that sent them
}

func newTideBackend(t *testing.T) *tideBackend {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &tideBackend{addr: l.Addr().String(), turn: make(chan struct{}), came: map[string]int{}, slack: map[string][]string{}}
	srv, err := smtp.NewServer(smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return &tideSession{b: b}, nil }),
		smtp.ServerOptions{Hostname: "back.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		b.set(flood)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(ctx) // cut off or not, Serve returns
		<-served
	})
	return b
}

// hush turns the tide for what comes next. Messages without an answer stay so.
func (b *tideBackend) hush(to tide) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tide = to
}

// set turns the tide. Messages without an answer are taken then.
func (b *tideBackend) set(to tide) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tide = to
	close(b.turn)
	b.turn = make(chan struct{})
}

// arrived is how often each message was taken.
func (b *tideBackend) arrived() map[string]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.came)
}

// unanswered are the messages of a node that have no answer.
func (b *tideBackend) unanswered(node string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.slack[node])
}

type tideSession struct {
	smtp.Accept
	b        *tideBackend
	node, to string
}

func (s *tideSession) Helo(_ context.Context, name string) error {
	s.node = name
	return nil
}

func (s *tideSession) Mail(context.Context, smtp.Sender) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.b.tide == ebb {
		return smtp.Refuse(451, smtp.Enhanced{4, 3, 2}, "not now")
	}
	return nil
}

func (s *tideSession) Rcpt(_ context.Context, to smtp.Recipient) error {
	s.to = to.Path.Local
	return nil
}

func (s *tideSession) Message(ctx context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	replies, err := s.Accept.Message(ctx, body)
	if err != nil {
		return nil, err
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.tide == slack {
		b.slack[s.node] = append(b.slack[s.node], s.to)
		turn := b.turn
		b.mu.Unlock()
		<-turn
		b.mu.Lock()
	}
	b.came[s.to]++ // also if whoever sent it is not there to hear of it
	return replies, nil
}

// nodes are gateways with one database and one backend.
type nodes struct {
	t             *testing.T
	yaml          string
	secret, files string // the operator's token, and the folder of what nodes share
}

func newNodes(t *testing.T, url, backend string) *nodes {
	t.Helper()
	n := &nodes{t: t, files: t.TempDir(), yaml: strings.NewReplacer("URL", url, "BACKEND", backend).Replace(nodeConfig)}
	out, errs, code := gatewayRun(t, n.files, nil, "token", "new", "--role", string(api.RoleAdmin), "operator")
	if code != 0 {
		t.Fatalf("token new: %d %q %q", code, out, errs)
	}
	n.secret = strings.TrimSpace(out)
	if err := os.WriteFile(filepath.Join(n.files, "key"), []byte(strings.Repeat("5a", 32)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// start starts a node.
func (n *nodes) start(name string) *gatewayProcess {
	n.t.Helper()
	return startGatewayIn(n.t, strings.Replace(n.yaml, "NAME", name, 1), func(dir string) {
		for _, file := range []string{"key", "tokens.txt"} {
			b, err := os.ReadFile(filepath.Join(n.files, file))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, file), b, 0o600)
			}
			if err != nil {
				n.t.Fatal(err)
			}
		}
	})
}

// run runs a command against a node and reads the JSON that it prints.
func (n *nodes) run(g *gatewayProcess, into any, args ...string) {
	n.t.Helper()
	args = append(args, "--json", "--admin", g.addr[adminName])
	out, errs, code := gatewayRun(n.t, n.files, []string{tokenVariable + "=" + n.secret}, args...)
	if err := json.Unmarshal([]byte(out), into); err != nil || code != 0 {
		n.t.Fatalf("gateway %s: exit code %d, %v\n%s%s", strings.Join(args, " "), code, err, out, errs)
	}
}

// queued are the messages that wait, as a node knows them.
func (n *nodes) queued(g *gatewayProcess) map[string]bool {
	n.t.Helper()
	var p api.QueuePage
	n.run(g, &p, "queue", "list", "--limit", "1000")
	ids := map[string]bool{}
	for _, m := range p.Messages {
		ids[m.ID] = true
	}
	return ids
}

// known are the nodes that a node knows of.
func (n *nodes) known(g *gatewayProcess) []api.Node {
	n.t.Helper()
	var s api.Status
	n.run(g, &s, "status")
	return s.Nodes
}

// sendAll sends a message to each recipient, over nodes in turn and several at a time, and returns
// what was said.
func (n *nodes) sendAll(to []string, over ...*gatewayProcess) map[string]*smtp.Reply {
	n.t.Helper()
	var mu sync.Mutex
	replies := map[string]*smtp.Reply{}
	var wg sync.WaitGroup
	const clients = 4
	for i := range clients {
		c := dialSMTP(n.t, over[i%len(over)].addr["mx"])
		wg.Go(func() {
			for j := i; j < len(to); j += clients {
				r := sendQuietly(n.t, c, to[j])
				mu.Lock()
				replies[to[j]] = r
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return replies
}

// sendQuietly is send for goroutines: what goes wrong is a reply.
func sendQuietly(t *testing.T, c *smtp.Client, local string) *smtp.Reply {
	from, to := path(t, "alice@example.net"), path(t, local+"@example.org")
	rcpts, err := c.Envelope(t.Context(), smtp.Sender{Path: from}, []smtp.Recipient{{Path: to}})
	if err == nil {
		err = rcpts[0]
	}
	if err != nil {
		return smtp.ReplyOf(err)
	}
	replies, err := c.Data(t.Context(), strings.NewReader("Subject: "+local+"\r\n\r\nHello\r\n"))
	if err != nil {
		return smtp.ReplyOf(err)
	}
	return replies[0]
}

// eventually waits until ok is.
func eventually(t *testing.T, what string, logs []*gatewayProcess, ok func() bool) {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-late.C:
			for _, g := range logs {
				t.Logf("log of a node:\n%s", g.log())
			}
			t.Fatalf("it did not happen: %s", what)
		}
	}
}

// allOf tells whether all messages have arrived.
func allOf(came map[string]int, want []string) bool {
	return !slices.ContainsFunc(want, func(m string) bool { return came[m] == 0 })
}

func numbered(prefix string, n int) (to []string) {
	for i := range n {
		to = append(to, fmt.Sprintf("%s%d", prefix, i))
	}
	return to
}

// TestTwoNodes: what a node took and died with is delivered by the other, and nothing twice but
// what it was about to deliver. While the database is away nobody hears 250, and after that
// mail flows again by itself.
func TestTwoNodes(t *testing.T) {
	pg := peers.Postgres(t)
	back := newTideBackend(t)
	n := newNodes(t, pg.URL(pg.Database(t)), back.addr)
	one, two := n.start("mx1.example.org"), n.start("mx2.example.org")
	both := []*gatewayProcess{one, two}

	// Both take messages that nobody wants yet, and both know of all of them.
	first := numbered("first", 40)
	for to, r := range n.sendAll(first, both...) {
		if r.Code != 250 {
			t.Fatalf("%s: %s", to, r.Line())
		}
	}
	ids := n.queued(two)
	if len(ids) != len(first) || !maps.Equal(ids, n.queued(one)) {
		t.Errorf("%d messages wait according to one node, %d according to the other, want %d", len(n.queued(one)), len(ids), len(first))
	}

	eventually(t, "each node knows of both", both, func() bool {
		for _, g := range both {
			if nodes := n.known(g); len(nodes) != 2 || nodes[0].Self == nodes[1].Self || nodes[0].Version != nodes[1].Version {
				return false
			}
		}
		return true
	})

	// One dies with as many conversations as it may have.
	back.set(slack)
	eventually(t, "both nodes deliver", both, func() bool {
		return len(back.unanswered("mx1.example.org")) == 8 && len(back.unanswered("mx2.example.org")) == 8
	})
	one.signal(syscall.SIGKILL)
	<-one.done
	died := time.Now()
	inFlight := back.unanswered("mx1.example.org")
	back.set(flood)
	eventually(t, "all arrives", both[1:], func() bool { return allOf(back.arrived(), first) })
	eventually(t, "nothing waits", both[1:], func() bool { return len(n.queued(two)) == 0 })
	t.Logf("what the node had that died was delivered after %v", time.Since(died).Round(100*time.Millisecond))
	twice := 0
	for to, times := range back.arrived() {
		switch {
		case times == 1:
		case times == 2 && slices.Contains(inFlight, to):
			twice++
		default:
			t.Errorf("%s arrived %d times; under way with the node that died were %v", to, times, inFlight)
		}
	}
	t.Logf("%d of %d messages that were under way arrived twice", twice, len(inFlight))

	// The database goes away with messages in it, and with some that are under way: the backend
	// takes those while there is nobody to tell it to.
	one = n.start("mx1.example.org")
	both[0] = one
	back.set(slack)
	under, kept, refused := numbered("under", 8), numbered("kept", 8), numbered("refused", 4)
	for to, r := range n.sendAll(under, both...) {
		if r.Code != 250 {
			t.Fatalf("%s: %s", to, r.Line())
		}
	}
	eventually(t, "all is under way", both, func() bool {
		all := slices.Concat(back.unanswered("mx1.example.org"), back.unanswered("mx2.example.org"))
		return !slices.ContainsFunc(under, func(m string) bool { return !slices.Contains(all, m) })
	})
	back.hush(ebb)
	for to, r := range n.sendAll(kept, both...) {
		if r.Code != 250 {
			t.Fatalf("%s: %s", to, r.Line())
		}
	}
	stopped := time.Now()
	pg.Stop(t)
	back.set(ebb)
	eventually(t, "what is under way is taken", both, func() bool { return allOf(back.arrived(), under) })
	for to, r := range n.sendAll(refused, both...) {
		if r.Code/100 != 4 {
			t.Errorf("without a database, %s: %s", to, r.Line())
		}
	}
	back.set(flood)
	pg.Start(t)
	again := refused
	eventually(t, "clients that try again are heard", both, func() bool {
		replies := n.sendAll(again, both...)
		again = slices.DeleteFunc(slices.Clone(again), func(to string) bool { return replies[to].Code == 250 })
		return len(again) == 0
	})
	away := time.Since(stopped)
	eventually(t, "all arrives after the database is back", both, func() bool { return allOf(back.arrived(), slices.Concat(kept, refused)) })
	eventually(t, "nothing waits after the database is back", both, func() bool { return len(n.queued(two)) == 0 })
	// What was under way had two thirds of its lease left at least, and is finished within two
	// seconds after the database is back. If that was too late, the other node may have it too.
	slow := away+2*time.Second > 5*time.Second
	t.Logf("the database was away for %v", away.Round(100*time.Millisecond))
	for to, times := range back.arrived() {
		switch {
		case times == 1, slices.Contains(inFlight, to):
		case times == 2 && slow && slices.Contains(under, to):
			t.Logf("%s arrived twice, since its lease was over", to)
		default:
			t.Errorf("%s arrived %d times", to, times)
		}
	}
}
