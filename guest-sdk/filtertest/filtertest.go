// Package filtertest tests filters in plain go test: it compiles them natively and walks
// them through SMTP sessions. The gateway's own chain and its own side of the ABI are
// between test and filter, so that defaults, limits, errors and edits are those of the
// gateway.
//
//	func TestBlocked(t *testing.T) {
//		o := filtertest.Options{Filter: newFilter(), Config: `{"blocked": ["bad.example"]}`}
//		d := filtertest.Deliver(t, o, filtertest.Envelope{
//			From: "a@example.com",
//			To:   []string{"x@bad.example", "y@good.example"},
//		}, "Subject: hi\n\nhello\n")
//		if len(d.To) != 1 || d.To[0] != "y@good.example" {
//			t.Errorf("recipients: got %q, want the good one", d.To)
//		}
//	}
//
// [Deliver] walks a whole message through all stages. [New] begins a session in which the
// test takes each step itself. Both take a filter of another kind, such as the module that
// the same source was built to, in Options.Policy: one table can test both.
package filtertest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// Options say what is tested. One of Filter and Policy is required.
type Options struct {
	// Filter is a filter, compiled natively.
	Filter *filter.Filter
	// Policy is a filter that is loaded already; Config, Now and Rand are not used then.
	Policy policy.Filter
	// Config is the configuration: JSON in a string or []byte, or something that
	// json.Marshal takes. Default "{}".
	Config any
	// OnError answers for the filter when it fails. Default: tempfail.
	OnError policy.OnError
	// MayAccept lets the filter say Accept.
	MayAccept bool
	// Grants are what the filter may do. Nil is guest.Everything, so that a test need not
	// speak of it; to see what the filter does without a grant, take it away:
	//
	//	g := guest.Everything()
	//	g.Deny("body_read")
	//	o.Grants = &g
	Grants *guest.Grants
	// World is what the filter finds outside: values, names, web servers and secrets. Nil is
	// that the gateway can reach nothing now.
	World *World
	// Client is who connects.
	Client Client
	// Now is the filter's clock. Default time.Now.
	Now func() time.Time
	// Rand gives the filter random octets. Default crypto/rand.
	Rand io.Reader
}

// Client is who connects. The zero value of a field means its default; for those without
// one it means that there is no such thing.
type Client struct {
	// IP is the client's address. Default 192.0.2.10.
	IP string
	// Helo is what it calls itself. Default client.example.
	Helo string
	// RDNS is the verified name of the address.
	RDNS string
	// User is the authenticated user.
	User string
	// Listener is the name of the listener. Default "test".
	Listener string
	// TLS is nil for a connection in clear.
	TLS *policy.TLS
}

// Envelope is who writes to whom. The empty From is the null sender.
type Envelope struct {
	From string
	To   []string
}

// Result is what came of one stage.
type Result struct {
	Stage policy.Stage
	// Asked tells whether the filter was asked.
	Asked bool
	// Verdict is the filter's, or if it failed that of OnError, with the gateway's
	// defaults filled in.
	Verdict policy.Verdict
	// Reply is the line that the client would see, as in "550 5.7.1 no"; empty if the
	// filter does not refuse.
	Reply string
	// Edits are the changes in words, tags and scores left out.
	Edits []string
	// Tags are what the filter noted, as "key=value".
	Tags []string
	// Scores are what it added to scores, as "key=+1.5".
	Scores []string
	// Log are the filter's lines, as "INFO text". A filter of Options.Policy logs
	// elsewhere.
	Log []string
	// Err is why the filter failed; nil if it did not.
	Err error
}

// Session is one connection, step by step. It is for the goroutine of the test.
type Session struct {
	t    testing.TB
	run  *policy.Run
	info policy.Session
	tx   *policy.Transaction
	seq  uint64
	last Result
	log  *lines
}

// New begins a session. It fails the test if the filter does not take its
// configuration. The session is closed when the test ends, if it was not before.
func New(t testing.TB, o Options) *Session {
	t.Helper()
	s := &Session{t: t, log: &lines{}}
	ip, err := netip.ParseAddr(or(o.Client.IP, "192.0.2.10"))
	if err != nil {
		t.Fatalf("filtertest: client address: %v", err)
	}
	s.info = policy.Session{
		ID: "test-1", Number: 1, Listener: or(o.Client.Listener, "test"),
		Remote: netip.AddrPortFrom(ip, 40000), Local: netip.MustParseAddrPort("192.0.2.1:25"),
		RDNS: o.Client.RDNS, User: o.Client.User, TLS: o.Client.TLS,
	}
	chain := policy.NewChain(policy.Link{Filter: load(t, o, s.log), OnError: o.OnError, MayAccept: o.MayAccept})
	s.run = chain.Open(&s.info, s.note)
	t.Cleanup(func() { s.Close() })
	return s
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func load(t testing.TB, o Options, log slog.Handler) policy.Filter {
	t.Helper()
	if o.Policy != nil {
		return o.Policy
	}
	if o.Filter == nil {
		t.Fatal("filtertest: Options have neither Filter nor Policy")
	}
	grants := o.World.grants()
	if o.Grants != nil {
		grants = *o.Grants
	}
	f, err := Load(o.Filter, guest.Options{Config: configText(t, o.Config), Log: slog.New(log), Now: o.Now, Rand: o.Rand, Grants: grants, Services: o.World.Services()})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func configText(t testing.TB, config any) []byte {
	t.Helper()
	switch c := config.(type) {
	case nil:
		return nil
	case string:
		return []byte(c)
	case []byte:
		return c
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatalf("filtertest: configuration: %v", err)
	}
	return text
}

// note keeps what the chain says about the filter's answer.
func (s *Session) note(step policy.Step) {
	r := &s.last
	r.Asked, r.Verdict, r.Err = true, step.Verdict, step.Err
	if step.Verdict.Reply != nil {
		r.Reply = step.Verdict.Reply.Line()
	}
	if step.Err != nil {
		return
	}
	for _, e := range step.Edits {
		switch e.Kind {
		case policy.EditTag:
			r.Tags = append(r.Tags, e.Name+"="+e.Value)
		case policy.EditScore:
			r.Scores = append(r.Scores, policy.Score{Key: e.Name, Milli: e.Milli}.String())
		default:
			r.Edits = append(r.Edits, e.String())
		}
	}
}

func (s *Session) decide(stage policy.Stage) Result {
	s.last = Result{Stage: stage}
	s.log.list = nil
	s.run.Decide(context.Background(), stage, s.tx)
	s.last.Log = s.log.list
	return s.last
}

// Info returns the facts of the session, which a test may change between steps.
func (s *Session) Info() *policy.Session { return &s.info }

// Transaction returns the transaction as the filter left it; nil outside of one.
func (s *Session) Transaction() *policy.Transaction { return s.tx }

// Connect asks about the connection.
func (s *Session) Connect() Result { return s.decide(policy.StageConnect) }

// Secure asks about a TLS handshake. It is a TLS 1.3 one if the client has none.
func (s *Session) Secure() Result {
	if s.info.TLS == nil {
		s.info.TLS = &policy.TLS{Version: 0x0304, Cipher: 0x1301}
	}
	return s.decide(policy.StageSecure)
}

// Helo asks about EHLO.
func (s *Session) Helo(name string) Result {
	s.info.Helo = name
	return s.decide(policy.StageHelo)
}

// Auth asks about a login. The default mechanism is PLAIN. With a.Reveal it is as where the
// operator leaves logins to filters: the filter sees the secrets, and if it accepts, User is
// the session's user from then on.
func (s *Session) Auth(a policy.Auth) Result {
	a.Mechanism = or(a.Mechanism, "PLAIN")
	s.last = Result{Stage: policy.StageAuth}
	s.log.list = nil
	d := s.run.DecideAuth(context.Background(), &a)
	s.last.Log = s.log.list
	if d.Action == policy.Accept {
		s.info.User = a.User
	}
	return s.last
}

// MailFrom begins a transaction and asks about MAIL FROM. The empty address is the null
// sender. If the filter refuses, there is no transaction.
func (s *Session) MailFrom(addr string) Result {
	s.t.Helper()
	s.seq++
	s.tx = &policy.Transaction{Seq: s.seq, Sender: smtp.Sender{Path: s.path(addr)}}
	r := s.decide(policy.StageMail)
	if refused(r.Verdict) {
		s.end()
	}
	return r
}

// RcptTo asks about RCPT TO. A recipient that the filter refuses or discards is not part
// of the transaction.
func (s *Session) RcptTo(addr string) Result {
	s.t.Helper()
	s.need()
	p := s.path(addr)
	s.tx.Rcpts = append(s.tx.Rcpts, policy.Recipient{Recipient: smtp.Recipient{Path: p}})
	r := s.decide(policy.StageRcpt)
	if refused(r.Verdict) || r.Verdict.Action == policy.Discard {
		s.tx.Rcpts = s.tx.Rcpts[:len(s.tx.Rcpts)-1]
	}
	return r
}

// Data asks about the command DATA.
func (s *Session) Data() Result {
	s.t.Helper()
	s.need()
	return s.decide(policy.StageData)
}

// Headers asks about the header section of a message. Line ends are as in Message.
func (s *Session) Headers(eml string) Result {
	s.t.Helper()
	s.need()
	h, _ := message.Parse(crlf(eml))
	s.tx.Message = &policy.Message{Header: h}
	return s.decide(policy.StageHeaders)
}

// Chunks asks about the body of a message piece by piece, after Headers, as long as the
// filter wants more of it, and returns the last answer. Without a piece that it was asked
// about, Asked is false. Line ends are as in Message.
func (s *Session) Chunks(eml string) Result {
	s.t.Helper()
	s.need()
	_, body := message.Parse(crlf(eml))
	last := Result{Stage: policy.StageChunk}
	for off := 0; off < len(body) && s.run.WantsChunks(); off += policy.MaxChunk {
		s.last = Result{Stage: policy.StageChunk}
		s.log.list = nil
		s.run.DecideChunk(context.Background(), s.tx, int64(off), body[off:min(off+policy.MaxChunk, len(body))])
		s.last.Log = append(last.Log, s.log.list...)
		if last = s.last; refused(last.Verdict) {
			break
		}
	}
	return last
}

// Message asks about a whole message, after Headers if the test called that. A text
// without any CRLF gets them for its line ends, so that tests can be written in
// backquotes. The transaction goes on until Reset or the next MailFrom, so that the
// test can look at it.
func (s *Session) Message(eml string) Result {
	s.t.Helper()
	s.need()
	m := policy.NewMessage(crlf(eml))
	if s.tx.Message != nil {
		m.Header = s.tx.Message.Header // with the edits made at the headers
	}
	s.tx.Message = m
	return s.decide(policy.StageMessage)
}

// Reset gives up the transaction.
func (s *Session) Reset() Result {
	r := s.decide(policy.StageReset)
	s.end()
	return r
}

// Close ends the session. Further calls do nothing.
func (s *Session) Close() Result {
	if s.run == nil {
		return Result{Stage: policy.StageClose}
	}
	s.end()
	s.last = Result{Stage: policy.StageClose}
	s.log.list = nil
	s.run.Close(context.Background())
	s.run = nil
	s.last.Log = s.log.list
	return s.last
}

func (s *Session) end() {
	s.run.EndTransaction()
	s.tx = nil
}

func (s *Session) need() {
	s.t.Helper()
	if s.tx == nil {
		s.t.Fatal("filtertest: no transaction: call MailFrom first")
	}
}

func (s *Session) path(addr string) smtp.Path {
	s.t.Helper()
	p, err := smtp.ParsePath("<" + addr + ">")
	if err != nil {
		s.t.Fatalf("filtertest: address %q: %v", addr, err)
	}
	return p
}

// refused tells whether the client hears a refusal.
func refused(v policy.Verdict) bool {
	return v.Action == policy.Reject || v.Action == policy.Tempfail || v.Action == policy.Disconnect
}

func crlf(eml string) []byte {
	if strings.Contains(eml, "\r\n") {
		return []byte(eml)
	}
	return []byte(strings.ReplaceAll(eml, "\n", "\r\n"))
}

// messageText writes out the message of a transaction.
func messageText(m *policy.Message) string {
	var b bytes.Buffer
	if _, err := m.WriteTo(&b); err != nil {
		return "filtertest: " + err.Error() // memory does not fail
	}
	return b.String()
}

// lines is a slog.Handler that keeps what the filter says.
type lines struct{ list []string }

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }
func (l *lines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lines) WithGroup(string) slog.Handler            { return l }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "line" {
			text = a.Value.String()
		}
		return true
	})
	l.list = append(l.list, r.Level.String()+" "+text)
	return nil
}
