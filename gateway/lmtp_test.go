package gateway

import (
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/parity"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// lmtp_test.go: a listener that speaks LMTP, which answers for each recipient.

// byName answers for each recipient by its local part, "r552" with 552.
func byName(rcpts []string, _ []byte) ([]*smtp.Reply, error) {
	var replies []*smtp.Reply
	for _, r := range rcpts {
		code := 250
		fmt.Sscanf(r, "<r%d@", &code)
		replies = append(replies, smtp.Refuse(code, smtp.Enhanced{code / 100, 0, 0}, "for "+strings.Trim(r, "<>")))
	}
	return replies, nil
}

// TestLMTP: as many answers as recipients were accepted, each its own, whatever filters do.
func TestLMTP(t *testing.T) {
	parity.Row(t, "SS-32", "SS-64", "SS-65")
	rcpt, msg := policy.StageRcpt, policy.StageMessage
	drop := filter("judge", rcpt, func(e *policy.Event) policy.Verdict {
		rcpts := e.Edits.Recipients()
		if strings.HasPrefix(rcpts[len(rcpts)-1].Path.Local, "drop") {
			return policy.Verdict{Action: policy.Discard}
		}
		return policy.Verdict{}
	})
	verdict := func(a policy.Action) policy.Link {
		return filter("judge", msg, func(*policy.Event) policy.Verdict { return policy.Verdict{Action: a} })
	}
	take := func(i int) func(*policy.Edits) error {
		return func(e *policy.Edits) error { return e.DeleteRecipient(i) }
	}
	both := func(fs ...func(*policy.Edits) error) func(*policy.Edits) error {
		return func(e *policy.Edits) error {
			for _, f := range fs {
				if err := f(e); err != nil {
					return err
				}
			}
			return nil
		}
	}
	none := policy.Link{Filter: policy.Func("none", 0, nil)}
	ok := func(name string) string { return "250 2.0.0 for " + name + "@example.com" }
	const accepted = "250 2.6.0 message accepted"
	for _, c := range []struct {
		name   string
		link   policy.Link
		to     []string // local parts
		want   []string
		counts [3]int64 // relayed, refused, discarded
		data   func([]string, []byte) ([]*smtp.Reply, error)
	}{
		{"mixed", none, []string{"a", "r552", "b", "r450"}, []string{ok("a"), "552 5.0.0 for r552", ok("b"), "450 4.0.0 for r450"}, [3]int64{}, nil},
		{"all taken", none, []string{"a", "b"}, []string{ok("a"), ok("b")}, [3]int64{1}, nil},
		{"named twice", none, []string{"a", "r552", "a", "r552"}, []string{ok("a"), "552 5.0.0 for r552", ok("a"), "552 5.0.0 for r552"}, [3]int64{}, nil},
		{"codes that would end the connection", none, []string{"r421", "r521", "a"}, []string{"451 4.0.0 for r421", "550 5.0.0 for r521", ok("a")}, [3]int64{}, nil},
		{"all refused", none, []string{"r552", "r450"}, []string{"552", "450"}, [3]int64{0, 1}, nil},
		{"backend is lost", none, []string{"a", "b"}, []string{"451 4.4.2", "451 4.4.2"}, [3]int64{0, 1}, func([]string, []byte) ([]*smtp.Reply, error) { return nil, io.ErrUnexpectedEOF }},
		{"backend gives too few answers", none, []string{"a", "b", "c"}, []string{"451 4.3.0", "451 4.3.0", "451 4.3.0"}, [3]int64{0, 1},
			func(rcpts []string, b []byte) ([]*smtp.Reply, error) { return byName(rcpts[1:], b) }},

		{"recipients discarded", drop, []string{"drop1", "a", "drop1", "r552", "drop2"}, []string{accepted, ok("a"), accepted, "552", accepted}, [3]int64{}, nil},
		{"all discarded", drop, []string{"drop1", "drop2"}, []string{accepted, accepted}, [3]int64{0, 0, 1}, nil},
		{"message discarded", verdict(policy.Discard), []string{"a", "r552"}, []string{accepted, accepted}, [3]int64{0, 0, 1}, nil},
		{"message refused", verdict(policy.Reject), []string{"a", "b"}, []string{"550 5.7.1", "550 5.7.1"}, [3]int64{0, 1}, nil},
		{"message held", verdict(policy.Quarantine), []string{"a", "b"}, []string{"451 4.3.0", "451 4.3.0"}, [3]int64{0, 1}, nil},

		{"taken out", edit(msg, "", take(1)), []string{"a", "r552", "b"}, []string{ok("a"), accepted, ok("b")}, [3]int64{1}, nil},
		{"added", edit(msg, "", add("x@example.com")), []string{"a", "b"}, []string{ok("a"), ok("b")}, [3]int64{1}, nil},
		{"added at rcpt", edit(rcpt, "b@example.com", add("x@example.com")), []string{"a", "b", "r552"}, []string{ok("a"), ok("b"), "552"}, [3]int64{}, nil},
		{"added and refused: nobody hears of it", edit(msg, "", add("r552@example.com")), []string{"a", "b"}, []string{ok("a"), ok("b")}, [3]int64{}, nil},
		{"replaced by one that is refused", edit(msg, "", both(take(0), add("r552@example.com"))), []string{"a", "b"}, []string{"552", ok("b")}, [3]int64{}, nil},
		{"replaced by two that are refused", edit(msg, "", both(take(0), add("r552@example.com"), add("r450@example.com"))), []string{"a"}, []string{"450"}, [3]int64{0, 1}, nil},
		{"changed", edit(msg, "", set(1, "x@example.com")), []string{"a", "r552", "b"}, []string{ok("a"), ok("x"), ok("b")}, [3]int64{1}, nil},
		{"changed at rcpt, twice", edit(rcpt, "a@example.com", both(set(-1, "x@example.com"), set(-1, "r450@example.com"))), []string{"b", "a", "b", "a"}, []string{ok("b"), "450", ok("b"), "450"}, [3]int64{}, nil},
		{"two changed to one that is refused", edit(msg, "", both(set(0, "r552@example.com"), set(1, "r552@example.com"))), []string{"a", "b", "c"}, []string{"552", "552", ok("c")}, [3]int64{}, nil},
		{"changed to the name of another", edit(msg, "", set(0, "b@example.com")), []string{"a", "b"}, []string{ok("b"), ok("b")}, [3]int64{1}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{links: []policy.Link{c.link}, listener: Listener{Server: smtp.ServerOptions{LMTP: true, MaxErrors: 4}}}
			r.far.data = byName
			if c.data != nil {
				r.far.data = c.data
			}
			p := r.start(t).dial(t, "mx")
			p.talk(" => 220 mx.example.net LMTP", "EHLO client.test => 500", "LHLO client.test => 250", "MAIL FROM:<from@client.test> => 250")
			for _, to := range c.to {
				p.talk("RCPT TO:<" + to + "@example.com> => 250")
			}
			p.talk("RCPT TO:<a@elsewhere.test> => 550")
			got := []string{p.data(testMessage)}
			for len(got) < len(c.to) {
				got = append(got, p.reply())
			}
			for i := range got {
				if !strings.HasPrefix(got[i], c.want[i]) {
					t.Errorf("answers: got %q, want %q", got, c.want)
					break
				}
			}
			p.talk("NOOP => 250 2.0.0 OK") // and no answer more
			delivered := slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "250 2.0.0 for ") })
			if known := r.gw.record.known(netip.MustParseAddr("127.0.0.1")); known != delivered {
				t.Errorf("a good record: %v, want %v", known, delivered)
			}
			s := &r.gw.Stats
			if got := [3]int64{s.Relayed.Load(), s.Refused.Load(), s.Discarded.Load()}; got != c.counts {
				t.Errorf("relayed, refused, discarded: got %v, want %v", got, c.counts)
			}
		})
	}
}

// TestAttempts: the log says what became of a message as the backend answered, and for how many
// recipients it refused it.
func TestAttempts(t *testing.T) {
	lost := func([]string, []byte) ([]*smtp.Reply, error) { return nil, io.ErrUnexpectedEOF }
	for _, c := range []struct {
		name   string
		lmtp   bool
		to     []string
		data   func([]string, []byte) ([]*smtp.Reply, error)
		answer string // the first
		want   string // in the log
	}{
		{"all", true, []string{"a", "b"}, byName, "250", "msg=delivered"},
		{"some", true, []string{"a", "r552", "r450"}, byName, "250", `msg="partly delivered"`},
		{"none", true, []string{"r552", "r552"}, byName, "552", "msg=refused"},
		{"lost", true, []string{"a"}, lost, "451", `msg="not delivered"`},
		{"all, by one answer", false, []string{"a", "b"}, byName, "250", "msg=delivered"},
		{"some, by one answer", false, []string{"a", "r552"}, byName, "451", `msg="partly delivered"`},
		{"none, by one answer", false, []string{"r552", "r552"}, byName, "552", "msg=refused"},
		{"lost, by one answer", false, []string{"a"}, lost, "451", `msg="not delivered"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &rig{listener: Listener{Server: smtp.ServerOptions{LMTP: c.lmtp}}}
			r.far.data = c.data
			p := r.start(t).dial(t, "mx")
			p.talk(" => 220", map[bool]string{true: "LHLO c => 250", false: "EHLO c => 250"}[c.lmtp])
			for i := range c.to {
				c.to[i] += "@example.com"
			}
			p.begin(c.to...)
			if got := p.data(testMessage); !strings.HasPrefix(got, c.answer) {
				t.Errorf("answer: %q, want %q", got, c.answer)
			}
			r.stop(t)
			log := r.log.String()
			refused := 0
			for _, to := range c.to {
				if strings.HasPrefix(to, "r") {
					refused++
				}
			}
			want := regexp.MustCompile(regexp.QuoteMeta(c.want) + fmt.Sprintf(` .* rcpt=%d .* enh=\S+`, len(c.to)))
			if refused > 0 {
				want = regexp.MustCompile(want.String() + fmt.Sprintf(` refused=%d\b`, refused))
			}
			if !want.MatchString(log) {
				t.Errorf("log has no %s with %d refused:\n%s", c.want, refused, log)
			}
		})
	}
}

// TestLMTPChunks: the same with BDAT, where only the last chunk has the answers.
func TestLMTPChunks(t *testing.T) {
	r := &rig{listener: Listener{Server: smtp.ServerOptions{LMTP: true}}}
	r.far.data = byName
	p := r.start(t).dial(t, "mx")
	p.talk(" => 220", "LHLO client.test => 250", "MAIL FROM:<f@client.test> => 250", "RCPT TO:<a@example.com> => 250", "RCPT TO:<r552@example.com> => 250")
	p.send("BDAT 12\r\nSubject: x\r\n")
	p.talk(" => 250 2.0.0 chunk")
	p.send("BDAT 5 LAST\r\n\r\nx\r\n")
	p.talk(" => 250 2.0.0 for a", " => 552 5.0.0 for r552", "NOOP => 250")
}
