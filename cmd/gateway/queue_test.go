package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/internal/memqueue"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// queue_test.go: messages that wait under the hands of the operator, with the program's own
// commands and the admin API between. The queue is in memory, and nothing is delivered.

// nobody shows nothing and changes nothing, but what waits.
type nobody struct{ admin.Filters }

func (nobody) Status() api.Status     { return api.Status{} }
func (nobody) Accounts() api.Accounts { return api.Accounts{} }
func (nobody) Ready() bool            { return true }

// queueRig is an admin API with a queue.
type queueRig struct {
	*memqueue.Queue
	t      *testing.T
	addr   string
	tokens map[api.Role]string
}

func newQueueRig(t *testing.T) *queueRig {
	t.Helper()
	r := &queueRig{Queue: &memqueue.Queue{}, t: t, tokens: map[api.Role]string{}}
	tr, err := delivery.New(delivery.Options{LocalName: "mx.example.org", Backends: map[string]delivery.BackendOptions{
		"mailstore": {Groups: [][]delivery.Endpoint{{{Network: "tcp", Address: "127.0.0.1:1"}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tr.Shutdown(t.Context()) })
	engine, err := delivery.NewEngine(delivery.EngineOptions{Queue: r.Queue, Transport: tr, Hostname: "mx.example.org",
		Route: func(smtp.Path) store.Destination { return delivery.BackendDestination("mailstore") }})
	if err != nil {
		t.Fatal(err)
	}
	r.serve(waiting{func() (store.Queue, *delivery.Engine) { return r.Queue, engine }})
	return r
}

// serve serves the admin API.
func (r *queueRig) serve(q admin.Queue) {
	r.t.Helper()
	var file strings.Builder
	for _, role := range api.Roles() {
		secret, token, err := admin.NewToken("the-"+string(role), role)
		if err != nil {
			r.t.Fatal(err)
		}
		r.tokens[role] = secret
		fmt.Fprintln(&file, token)
	}
	tokens := filepath.Join(r.t.TempDir(), "tokens.txt")
	if err := os.WriteFile(tokens, []byte(file.String()), 0o600); err != nil {
		r.t.Fatal(err)
	}
	srv, err := admin.New(admin.Options{Network: "tcp", Address: "127.0.0.1:0", Tokens: tokens, Gateway: nobody{}, Filters: nobody{}, Queue: q})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := srv.Listen(); err != nil {
		r.t.Fatal(err)
	}
	r.addr = srv.Addr().String()
	served := make(chan error, 1)
	go func() { served <- srv.Serve() }()
	r.t.Cleanup(func() {
		_ = srv.Shutdown(r.t.Context()) // cut off or not, Serve returns
		<-served
	})
}

// run runs gateway queue.
func (r *queueRig) run(role api.Role, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	args = append([]string{"queue"}, append(args, "--admin", r.addr)...)
	return gatewayRun(r.t, r.t.TempDir(), []string{tokenVariable + "=" + r.tokens[role], "TZ=UTC"}, args...)
}

// expect runs gateway queue and looks for words in what it prints.
func (r *queueRig) expect(role api.Role, code int, want string, args ...string) (stdout string) {
	r.t.Helper()
	out, errs, got := r.run(role, args...)
	if got != code || !strings.Contains(out+errs, want) {
		r.t.Errorf("gateway queue %s: exit code %d, want %d with %q\n%s%s", strings.Join(args, " "), got, code, want, out, errs)
	}
	return out
}

// add adds a message to some recipients of example.org, and the last of example.com.
func (r *queueRig) add(from string, to ...string) string {
	m := store.Message{Arrived: time.Now().Add(-3 * time.Hour), Expires: time.Now().Add(100 * time.Hour),
		Origin: store.Origin{Session: "c42", Client: smtp.Forwarded{Name: "client.example.net"}}}
	if from != "" {
		m.Sender.Path = path(r.t, from)
	}
	for _, a := range to {
		m.Recipients = append(m.Recipients, memqueue.Recipient(a, "backend:mailstore", time.Now().Add(30*time.Minute+5*time.Second)))
	}
	return string(r.Add(m, "Subject: secret\r\n\r\nsecret\r\n"))
}

// left is how many messages there are.
func (r *queueRig) left() int64 {
	c, err := r.Count(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return c.Messages
}

// TestQueueLooks: list, show, why and counts, as tables and as JSON.
func TestQueueLooks(t *testing.T) {
	r := newQueueRig(t)
	r.expect(api.RoleRead, 0, "no message waits", "list")
	m := store.Message{Arrived: time.Now().Add(-50 * time.Hour), Sender: smtp.Sender{Path: path(t, "alice@example.net")}, Origin: store.Origin{Reason: "looks\x1b[31m odd"}}
	m.Recipients = []store.Recipient{memqueue.Recipient("bob@example.org", "backend:mailstore", time.Now().Add(30*time.Minute+5*time.Second)),
		memqueue.Recipient("carol@example.com", "backend:gone", time.Time{})}
	m.Recipients[0].Tries, m.Recipients[0].Last = 3, smtp.Refuse(451, smtp.Enhanced{4, 2, 1}, "mailbox busy\x1b[2J")
	m.Recipients[1].State = store.Held
	m.Attempts = []store.Attempt{
		{Time: time.Now().Add(-time.Hour), Destination: "mx:example.org", Host: "mx.example.org", Addr: netip.MustParseAddr("192.0.2.25"), TLS: "TLS 1.3", Verdict: "dane", Recipients: []int{0}, Reply: m.Recipients[0].Last},
		{Time: time.Now().Add(-time.Minute), Destination: "backend:mailstore", Host: "mailstore", Recipients: []int{0}, Reply: m.Recipients[0].Last, Took: 1500 * time.Millisecond}}
	old := string(r.Add(m, "Subject: secret\r\n\r\nsecret\r\n"))
	fresh := r.add("", "dave@example.org")

	for _, tt := range []struct {
		args []string
		has  []string
	}{
		{[]string{"list"}, []string{old, "2d2h", "1 held, 1 waiting", "in 30m", "alice@example.net", "bob@example.org and 1 more", fresh, "3h0m", "<>"}},
		{[]string{"show", old}, []string{"from", "alice@example.net", "held for", "looks?[31m odd", "bob@example.org", "451 4.2.1 mailbox busy [2J", "1.5s", "mx.example.org [192.0.2.25] TLS 1.3, dane"}},
		{[]string{"why", old}, []string{old + " from alice@example.net arrived 2d2h ago.", "bob@example.org waits until ", "(in 30 min): mailstore said 451 4.2.1 mailbox busy", "at the third try",
			"carol@example.com is held until somebody releases it", "0 of 50", "not known"}},
		{[]string{"counts"}, []string{"2, 54 octets", "recipients held", "2d2h"}},
	} {
		out, errs, code := r.run(api.RoleRead, tt.args...)
		if code != 0 || errs != "" || strings.ContainsRune(out, 0x1b) || strings.Contains(out, "secret") {
			t.Errorf("%v: exit code %d\n%q%s", tt.args, code, out, errs)
		}
		for _, want := range tt.has {
			if !strings.Contains(out, want) {
				t.Errorf("%v: no %q in\n%s", tt.args, want, out)
			}
		}
		if out, _, _ := r.run(api.RoleRead, append(tt.args, "--json")...); !json.Valid([]byte(out)) || strings.Contains(out, "secret") {
			t.Errorf("%v: is no JSON:\n%s", tt.args, out)
		}
	}
	for _, tt := range []struct {
		args []string
		want string // IDs
	}{
		{[]string{"--state", "held"}, old},
		{[]string{"--state", "held,waiting", "--older", "1d"}, old},
		{[]string{"--newer", "1d"}, fresh},
		{[]string{"--sender", "<>"}, fresh},
		{[]string{"--sender", "alice@EXAMPLE.net"}, old},
		{[]string{"--sender-domain", "example.net"}, old},
		{[]string{"--domain", "Example.ORG"}, old + " " + fresh},
		{[]string{"--destination", "backend:gone"}, old},
		{[]string{"--limit", "1"}, old},
		{[]string{"--after", old}, fresh},
	} {
		var p api.QueuePage
		out, errs, _ := r.run(api.RoleRead, append([]string{"list", "--json"}, tt.args...)...)
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			t.Fatalf("%v: %v\n%s%s", tt.args, err, out, errs)
		}
		var ids []string
		for _, m := range p.Messages {
			ids = append(ids, m.ID)
		}
		if got := strings.Join(ids, " "); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.args, got, tt.want)
		}
	}
	r.expect(api.RoleRead, 0, "there are more: --after "+old, "list", "--limit", "1")
}

// TestQueueMistakes: what is refused, and how the command ends.
func TestQueueMistakes(t *testing.T) {
	r := newQueueRig(t)
	id := r.add("alice@example.net", "bob@example.org")
	for _, tt := range []struct {
		role api.Role
		code int
		want string
		args string
	}{
		{api.RoleRead, exitUsage, "there are [waiting", "list --state hold"},
		{api.RoleRead, exitUsage, "is not a duration", "list --older 5"},
		{api.RoleRead, exitUsage, "at least 1", "list --limit 0"},
		{api.RoleRead, exitProblem, "is no domain", "list --domain a..b"},
		{api.RoleRead, exitProblem, "is no address", "list --sender <a@b>"},
		{api.RoleRead, exitProblem, "no ID of a message", "list --after x"},
		{api.RoleRead, exitProblem, "no message none waits", "show none"},
		{api.RoleRead, exitProblem, "no message none waits", "why none"},
		{api.RoleRead, exitAdmin, "lacks the role operate", "hold " + id},
		{api.RoleUpload, exitAdmin, "lacks the role operate", "drop " + id},
		{api.RoleOperate, exitUsage, "name messages", "drop"},
		{api.RoleOperate, exitUsage, "stands alone", "drop --all " + id},
		{api.RoleOperate, exitUsage, "stands alone", "drop --all --state held"},
		{api.RoleOperate, exitUsage, "they choose recipients", "drop --sender <> " + id},
		{api.RoleOperate, exitUsage, "--limit", "drop --limit 1 " + id},
		{api.RoleOperate, exitUsage, "--text", "bounce " + id},
		{api.RoleOperate, exitUsage, "unknown flag", "drop --text x " + id},
		{api.RoleOperate, exitProblem, "more than 400", "bounce --text " + strings.Repeat("x", 401) + " " + id},
		{api.RoleOperate, exitProblem, "none: no message none waits", "hold none"},
	} {
		r.expect(tt.role, tt.code, tt.want, strings.Fields(tt.args)...)
	}
	r.Borrow(store.ID(id), 0)
	r.expect(api.RoleOperate, exitProblem, id+": it is being delivered at the moment; try again", "drop", id)
	if r.left() != 1 {
		t.Error("a message is gone")
	}
	r.serve(nil)
	r.expect(api.RoleRead, exitProblem, "no store is configured", "list")
	r.addr = "127.0.0.1:1"
	r.expect(api.RoleRead, exitAdmin, "does not answer", "list")
}

// TestQueueActs: one message is changed at once, several after a yes.
func TestQueueActs(t *testing.T) {
	r := newQueueRig(t)
	a := r.add("alice@example.net", "bob@example.org", "carol@example.com")
	b := r.add("alice@example.net", "bob@example.org")
	r.add("eve@example.net", "bob@example.org")

	r.expect(api.RoleOperate, 0, "2 recipients of 1 message held", "hold", a)
	r.expect(api.RoleOperate, 0, "0 recipients of 0 messages held", "hold", a)
	if out := r.expect(api.RoleRead, 0, "is held until", "why", a) + r.expect(api.RoleRead, 0, "held", "show", a); strings.Contains(out, "given up") {
		t.Errorf("a message that is held is said to be given up\n%s", out)
	}
	r.expect(api.RoleOperate, 0, "1 recipient of 1 message released", "release", a, "--domain", "example.com")
	r.expect(api.RoleRead, 0, "It is given up ", "why", a)
	r.expect(api.RoleRead, 0, "given up", "show", a)
	r.expect(api.RoleAdmin, 0, "1 recipient of 1 message released", "release", "--state", "held") // one: no yes is needed
	r.expect(api.RoleOperate, 0, "2 recipients of 2 messages made due", "retry", "--all", "--yes")
	r.expect(api.RoleOperate, 0, "0 recipients of 0 messages made due", "retry", "--all")

	out := r.expect(api.RoleOperate, exitProblem, "nothing was done; with --yes 2 recipients of 2 messages would be bounced, 2 reports",
		"bounce", "--sender", "alice@example.net", "--domain", "example.org", "--text", "moved")
	if !strings.Contains(out, a) || !strings.Contains(out, b) || r.left() != 3 {
		t.Errorf("%d messages are left; what would be done is\n%s", r.left(), out)
	}
	var would api.QueueDone
	out, _, code := r.run(api.RoleOperate, "bounce", "--all", "--text", "moved", "--json")
	if err := json.Unmarshal([]byte(out), &would); err != nil || code != exitProblem || !would.Dry || len(would.Messages) != 3 || would.Recipients != 4 {
		t.Errorf("%d %s %v", code, out, err)
	}
	r.expect(api.RoleOperate, 0, "1 recipient of 1 message bounced, 1 report; there are more",
		"bounce", "--sender", "alice@example.net", "--domain", "example.org", "--text", "moved", "--yes", "--limit", "1")
	r.expect(api.RoleOperate, 0, "1 recipient of 1 message bounced, 1 report", "bounce", b, "--text", "moved")
	if r.left() != 4 { // carol's, eve's and two reports
		t.Errorf("%d messages are left", r.left())
	}
	r.expect(api.RoleOperate, 0, "4 recipients of 4 messages dropped", "drop", "--all", "--yes")
	if r.left() != 0 {
		t.Errorf("%d messages are left", r.left())
	}

	for i := range api.QueueActionMax + 50 {
		r.add(fmt.Sprintf("a%d@example.net", i), "bob@example.org")
	}
	r.expect(api.RoleOperate, exitProblem, "1050 recipients of 1050 messages would be held", "hold", "--all")
	r.expect(api.RoleOperate, exitProblem, "and 1010 more", "hold", "--all", "--limit", "1020")
	r.expect(api.RoleOperate, 0, "1050 recipients of 1050 messages held", "hold", "--all", "--yes")
	var p api.QueuePage
	out, _, _ = r.run(api.RoleRead, "list", "--state", "held", "--limit", "2000", "--json")
	if err := json.Unmarshal([]byte(out), &p); err != nil || len(p.Messages) != 1050 || p.Next != "" {
		t.Errorf("%d are held, %v", len(p.Messages), err)
	}
}

// TestQueueOfGateway: a message waits in a running gateway because its backend is down, and the
// operator finds out why.
func TestQueueOfGateway(t *testing.T) {
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	files := t.TempDir()
	token, errs, code := gatewayRun(t, files, nil, "token", "new", "--role", "operate", "ops")
	if code != 0 {
		t.Fatal(errs)
	}
	g := startGatewayIn(t, fmt.Sprintf(`
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0"}
routes:
  - {domains: [example.org], backend: mailstore}
backends:
  mailstore: {addresses: ["smtp://%s"], mode: queue, recipients: accept}
store: {path: $DIR/store}
filters: {cache: $CACHE}
certificates: {dir: $DIR/certificates}
admin: {tokens: "file:$DIR/tokens.txt", address: "127.0.0.1:0"}
`, dead.Addr()), func(dir string) {
		if err := os.Rename(filepath.Join(files, "tokens.txt"), filepath.Join(dir, "tokens.txt")); err != nil {
			t.Fatal(err)
		}
	})
	r := &queueRig{t: t, addr: g.addr[adminName], tokens: map[api.Role]string{api.RoleOperate: strings.TrimSpace(token)}}

	c := dialSMTP(t, g.addr["mx"])
	if _, err := c.Envelope(t.Context(), smtp.Sender{Path: path(t, "alice@example.net")}, []smtp.Recipient{{Path: path(t, "bob@example.org")}}); err != nil {
		t.Fatal(err)
	}
	replies, err := c.Data(t.Context(), interrupted{func() {}})
	if err != nil || len(replies) != 1 || replies[0].Code != 250 {
		t.Fatalf("%v %v", replies, err)
	}
	_, id, _ := strings.Cut(replies[0].Text, "message kept as ")
	g.await("deferred", func(l map[string]any) bool { return l["msg"] == "delivery" && l["mail"] == id })

	r.expect(api.RoleOperate, 0, "waiting  in ", "list", "--sender", "alice@example.net")
	out := r.expect(api.RoleOperate, 0, "backend:mailstore is down", "why", id)
	for _, want := range []string{"bob@example.org waits until ", "at the first try", "refused"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	r.expect(api.RoleOperate, 0, "1 message held", "hold", id)
	r.expect(api.RoleOperate, 0, "1 message released", "release", "--state", "held")
	g.awaitNth("deferred again", 2, func(l map[string]any) bool { return l["msg"] == "delivery" && l["mail"] == id })
	r.expect(api.RoleOperate, 0, "1 message bounced, 1 report", "bounce", id, "--text", "moved")
	r.expect(api.RoleOperate, exitProblem, "no message "+id+" waits", "show", id)
	r.expect(api.RoleOperate, 0, "<>", "list")
}
