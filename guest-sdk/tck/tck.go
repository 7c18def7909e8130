package tck

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// tck.go: the runner.

// Subject is what is held to the contract: a guest in a host.
type Subject struct {
	// Load makes a filter of the guest with a configuration and grants. Lines that the guest
	// logs go to log, as its attribute "line", whatever their level. Outside it finds no
	// values of kv; a record TXT of tck.test, "text", that holds for 60 seconds; at
	// https://tck.test/ the answer 200 "hello" without fields; and a secret tck, "hush". Its
	// notifications may go anywhere. That is what World returns.
	Load func(config []byte, grants guest.Grants, log *slog.Logger) (policy.Filter, error)
	// Minor is the minor version that the guest was made for; what came later is not asked
	// of it.
	Minor int
	// Partial allows the guest to answer that it cannot express a step, or not to answer, as
	// an SDK may that does not let an author make a certain mistake. Its answers that there
	// are count.
	Partial bool
	// Missing are imports of which it need not answer a single step.
	Missing []string
}

// World is the outside that a Subject finds.
func World() guest.Services {
	w := filtertest.World{
		DNS:     map[string][]guest.DNSRecord{"TXT tck.test": {{Text: "text"}}},
		Secrets: map[string]string{"tck": "hush"},
		HTTP: func(context.Context, guest.HTTPRequest) (guest.HTTPResponse, error) {
			return guest.HTTPResponse{Status: 200, Body: []byte("hello")}, nil
		},
	}
	return w.Services()
}

// Run holds a subject to the contract. It runs the scenarios of the table, and asks for
// each import at each hook at which it may not be called.
func Run(t *testing.T, s Subject) {
	asked := make(map[string]bool)
	for _, sc := range slices.Concat(scenarios(), phases(), ungranted()) {
		t.Run(sc.name, func(t *testing.T) { s.run(t, sc, asked) })
	}
	for _, imp := range abi.Imports() {
		if imp.Since <= s.Minor && !asked[imp.Name] && !slices.Contains(s.Missing, imp.Name) {
			t.Errorf("no scenario of the tck calls %s, or the guest answered none", imp.Name)
		}
	}
}

// call is a step and what must come of it.
type call struct {
	Step
	want int64
	// buf is what the buffer begins with; behind it nothing may have been written.
	buf string
	// check, if not nil, is asked instead: what is wrong with the answer, or "".
	check func(a Answer) string
}

// scenario is one session.
type scenario struct {
	name  string
	calls []call
	// since is the minor version that it is about.
	since int
	// ungranted is a scenario in which the operator granted nothing. Default: everything.
	ungranted bool
	// message is what the client sends. Default: messageText.
	message string
	// after says what is wrong with what came out; nil if nothing special has to.
	after func(o outcome) string
}

// outcome is what became of a session.
type outcome struct {
	steps   map[policy.Stage]policy.Step // the filter's answers
	edits   map[policy.Stage][]string
	tx      *policy.Transaction
	out     *policy.Transaction // on its way out
	message string
	session *policy.Session
}

func (s Subject) run(t *testing.T, sc scenario, asked map[string]bool) {
	t.Helper()
	imports := make(map[string]abi.Import)
	for _, imp := range abi.Imports() {
		imports[imp.Name] = imp
	}
	sc.calls = slices.DeleteFunc(slices.Clone(sc.calls), func(c call) bool { return imports[c.Import].Since > s.Minor })
	if sc.since > s.Minor || len(sc.calls) == 0 {
		return
	}
	var steps []Step
	for _, c := range sc.calls {
		steps = append(steps, c.Step)
	}
	log := &answers{}
	grants := guest.Everything()
	grants.Secrets = []string{"tck"}
	if sc.ungranted {
		grants = guest.Grants{}
	}
	f, err := s.Load(scriptConfig(steps), grants, slog.New(log))
	if err != nil {
		t.Fatalf("it was not loaded: %v", err)
	}
	for i := range sc.calls { // an older guest does not ask for hooks that came later
		if c := &sc.calls[i]; c.At != 0 && s.Minor < abi.Minor && !f.Stages().Has(policy.Stage(c.At)) {
			c.Import = ""
		}
	}
	o := converse(t, f, cmp.Or(sc.message, messageText))
	complete := true
	for i, c := range sc.calls {
		if c.Import == "" {
			continue
		}
		a, ok := log.of(i)
		if c.Import == StepVerdict {
			complete = complete && !a.Unknown
			continue
		}
		if s.Partial && (!ok || a.Unknown) {
			complete = false
			continue
		}
		if !ok {
			t.Errorf("%s: no answer", c)
			continue
		}
		asked[c.Import] = asked[c.Import] || imports[c.Import].When&(1<<c.At) != 0
		if wrong := c.judge(a); wrong != "" {
			t.Errorf("%s: %s", c, wrong)
		}
	}
	if sc.after != nil && complete {
		if wrong := sc.after(o); wrong != "" {
			t.Error(wrong)
		}
	}
}

// judge says what is wrong with an answer.
func (c call) judge(a Answer) string {
	room := 0
	for _, arg := range c.Args {
		if r, ok := arg.(Room); ok {
			room = int(r)
		}
	}
	buf := c.buf[:min(len(c.buf), room)]
	untouched := strings.Repeat("\xee", room-len(buf))
	switch {
	case a.Unknown:
		return "it does not know the import"
	case len(a.Buffer) != room:
		return fmt.Sprintf("it answers with %d octets of a buffer of %d", len(a.Buffer), room)
	case c.check != nil:
		return c.check(a)
	case a.Result != c.want:
		return fmt.Sprintf("got %s, want %s", result(a.Result), result(c.want))
	case a.Buffer != buf+untouched:
		return fmt.Sprintf("got buffer %q, want %q and nothing more", written(a.Buffer), buf)
	}
	return ""
}

// written is what was written to the front of a buffer.
func written(b string) string {
	for len(b) > 0 && b[len(b)-1] == filler {
		b = b[:len(b)-1]
	}
	return b
}

// result writes a number with its meaning.
func result(v int64) string {
	if v < 0 {
		return fmt.Sprintf("%d (%v)", v, abi.Errno(v))
	}
	return fmt.Sprint(v)
}

// String writes the call as in "rcpt: hdr_get(0, Room(10))".
func (c call) String() string {
	var args []string
	for _, a := range c.Args {
		args = append(args, fmt.Sprintf("%#v", a))
	}
	at := "init"
	for _, h := range abi.HookTable() {
		if h.Hook == c.At {
			at = h.Name
		}
	}
	return fmt.Sprintf("%s: %s(%s)", at, c.Import, strings.ReplaceAll(strings.Join(args, ", "), "tck.", ""))
}

// converse walks a message through all stages of a session, and of one that is on its way out.
// The latter are asked in the same session, which a gateway does not do.
func converse(t *testing.T, f policy.Filter, text string) outcome {
	t.Helper()
	o := outcome{steps: map[policy.Stage]policy.Step{}, edits: map[policy.Stage][]string{}, session: session()}
	run := policy.NewChain(policy.Link{Filter: f, MayAccept: true}).Open(o.session, func(s policy.Step) {
		for _, e := range s.Edits {
			o.edits[s.Stage] = append(o.edits[s.Stage], e.String())
		}
		s.Edits = nil
		o.steps[s.Stage] = s
		if s.Err != nil {
			t.Errorf("it failed at %s: %v", s.Stage, s.Err)
		}
	})
	defer run.Close(context.WithoutCancel(t.Context()))
	for _, stage := range []policy.Stage{policy.StageConnect, policy.StageSecure, policy.StageHelo} {
		run.Decide(t.Context(), stage, nil)
	}
	run.DecideAuth(t.Context(), &policy.Auth{Mechanism: "PLAIN", User: "u"})
	o.tx = &policy.Transaction{Seq: 3, Sender: smtp.Sender{Path: path("a@example.net"), Size: 100, Body: "8BITMIME"}}
	run.Decide(t.Context(), policy.StageMail, o.tx)
	o.tx.Rcpts = append(o.tx.Rcpts, policy.Recipient{Recipient: smtp.Recipient{Path: path("b@example.com")}})
	run.Decide(t.Context(), policy.StageRcpt, o.tx)
	run.Decide(t.Context(), policy.StageData, o.tx)
	whole := policy.NewMessage([]byte(text))
	o.tx.Message = &policy.Message{Header: whole.Header}
	run.Decide(t.Context(), policy.StageHeaders, o.tx)
	run.DecideChunk(t.Context(), o.tx, 0, []byte(bodyText))
	o.tx.Message = &policy.Message{Header: o.tx.Message.Header, Body: whole.Body}
	run.Decide(t.Context(), policy.StageMessage, o.tx)
	var b bytes.Buffer
	if _, err := o.tx.Message.WriteTo(&b); err != nil {
		t.Error(err)
	}
	o.message = b.String()
	run.Decide(t.Context(), policy.StageReset, o.tx)
	run.EndTransaction()
	o.out = &policy.Transaction{Seq: 4, Sender: o.tx.Sender, Rcpts: o.tx.Rcpts, Outbound: outbound()}
	for _, stage := range []policy.Stage{policy.StageRoute, policy.StageDeliver, policy.StageDeferred, policy.StageBounced, policy.StageDelivered} {
		run.Decide(t.Context(), stage, o.out)
	}
	run.EndTransaction()
	return o
}

// outbound is an attempt of which every fact is known.
func outbound() *policy.Outbound {
	at, addr := time.Unix(1_700_000_000, 0), netip.MustParseAddr("192.0.2.25")
	return &policy.Outbound{
		Target: "example.com", Try: 2, Arrived: at, Expires: at.Add(time.Hour),
		Hops: []policy.Hop{{Host: "mx1.example.com", Preference: 10, Addrs: []netip.Addr{addr, netip.MustParseAddr("2001:db8::25")}, Demand: "dane"},
			{Host: "mx2.example.com", Preference: 20, Refused: "no address"}},
		Fates: []policy.Fate{{Reply: smtp.Refuse(451, smtp.Enhanced{4, 2, 0}, "later"), Host: "mx1.example.com", Addr: addr, Due: at}},
	}
}

// messageText is the message of all scenarios.
const messageText = headerText + "\r\n" + bodyText

const (
	headerText = "Received: from client.example.net\r\nFrom: A <a@example.net>\r\nSubject: one\r\n two\r\nX-A: 1\r\nx-a: 2\r\n"
	bodyText   = "hello\r\nworld\r\n"
)

// session is one in which every fact is known.
func session() *policy.Session {
	return &policy.Session{
		ID: "c1", Number: 7, Listener: "mx", RDNS: "client.example.net", Helo: "helo.example.net", User: "u",
		Remote: netip.MustParseAddrPort("192.0.2.1:2525"), Local: netip.MustParseAddrPort("198.51.100.2:25"),
		TLS: &policy.TLS{Version: 0x304, Cipher: 0x1301, ServerName: "mx.example.com", ALPN: "smtp"},
	}
}

func path(s string) smtp.Path {
	p, err := smtp.ParseAddress(s)
	if err != nil {
		panic(err)
	}
	return p
}

// answers is a slog.Handler that keeps the guest's answers.
type answers struct {
	mu   sync.Mutex
	list []Answer
}

func (l *answers) Enabled(context.Context, slog.Level) bool { return true }
func (l *answers) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *answers) WithGroup(string) slog.Handler            { return l }

func (l *answers) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if ans, ok := parseAnswer(a.Value.String()); ok && a.Key == "line" {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.list = append(l.list, ans)
		}
		return true
	})
	return nil
}

// of returns the last answer to a step: a host may start a guest more than once.
func (l *answers) of(step int) (Answer, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range slices.Backward(l.list) {
		if a.Step == step {
			return a, true
		}
	}
	return Answer{}, false
}
