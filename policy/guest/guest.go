// Package guest shows a policy event to a filter by the rules of the ABI mg1, and
// turns what the filter does into edits and a verdict. It is the host's side of the
// contract without WebAssembly: wasmhost runs a module on top of it, filtertest a filter
// that was compiled natively, and both therefore see the same mail, the same limits and
// the same errors.
//
// [Host] is the one seam: everything that a guest learns and does passes it, the clock,
// random octets and what it writes to its standard error included. Whoever wants to
// record a filter's run, or to replay it, wraps a Host. At a login that is left to filters
// the password passes there too: a recorder must leave abi.FieldAuthPassword and
// abi.FieldAuthToken out.
//
//	policy.Event ──▶ Env ── frame ──▶ guest
//	                  ▲               │ get, hdr_add, body_read, log, now …
//	                  └──── Host ◀────┘
package guest

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// Host is all that a guest has of the world: the imports, the frame of each event, and
// where its prints go. One call at a time.
type Host interface {
	// Host has the imports.
	abi.Host

	// Frame writes the event's frame to the front of the guest's mailbox, which has room
	// for abi.MinMailbox octets at least, and returns how long it is.
	Frame(mailbox []byte) int
	// Stderr takes what the guest printed; the first and the last of it go to the log
	// when the guest fails.
	Stderr(p []byte)
}

// Options are the settings of an Env. The zero value of each field means its default.
type Options struct {
	// Name is the filter's, for its log lines.
	Name string
	// Config is the filter's configuration, a JSON text. Default "{}".
	Config []byte
	// Grants are what the filter may do. Default nothing.
	Grants Grants
	// Services are whom the guest's calls that leave the session reach. Default nobody.
	Services Services
	// Told keeps what was said once about the filter, for all its Envs. Default a new one.
	Told *Told
	// Log takes the guest's own lines, and what there is to say of it. Nil discards.
	Log *slog.Logger
	// LogLevel is the least level of the guest's own lines that are logged, whatever Log's
	// level is; NoLines logs none. Nil leaves it to Log.
	LogLevel slog.Leveler
	// LogLines is how many of them there may be at one hook. Default abi.MaxLogLines.
	LogLines int
	// SessionValues is the most octets of all that it keeps with sess_set. Default
	// abi.MaxSession.
	SessionValues int
	// Now is the clock. Default time.Now.
	Now func() time.Time
	// Rand gives random octets. Default crypto/rand.
	Rand io.Reader
	// Setup is what the guest chose in an mg1_init that another Env has seen, of which this
	// one's guest is a copy, or which its guest is about to do again: its sets of patterns are
	// not made anew then. Nil: it has chosen nothing yet.
	Setup *Setup
	// Metrics counts for the guest. Nil discards.
	Metrics Metrics
	// Charge is told of the work that calls of the guest cause in the host, in octets that
	// are looked at or copied: before the work, and in long work at least every 64 KiB. It
	// is called on the goroutine of the guest's call. False ends the work with abi.ETIME.
	// Nil charges nothing.
	Charge func(octets int64) bool
	// Outside runs f, in which a call of the guest waits for something outside. f must
	// return when its context is done; then the time of the guest is used up, or the session
	// ends. It is called on the goroutine of the guest's call, and may panic when f has
	// returned. Nil calls f with a context that does not end.
	Outside func(f func(ctx context.Context))
	// Start is where Mono begins: when the guest started, if another Env has seen that.
	// Default now.
	Start time.Time
}

// NoLines is a level that no line of a guest has.
const NoLines = slog.Level(math.MaxInt32)

// Env is a filter's side of one session. It implements Host for the event that is
// between Begin and End, and for mg1_init before the first Begin. One call at a time.
type Env struct {
	opts  Options
	start time.Time

	ctx   context.Context // of the hook; nil outside of one
	hook  abi.Hook        // 0 during mg1_init
	event *policy.Event
	setup Setup
	sets  int           // how many sets of patterns were asked for
	cpu   time.Duration // that the guest has at this hook

	reply    string
	hasReply bool
	lines    int // log lines at this hook
	away     away
	newBody  newBody
	writing  bool // between body_new and body_commit
	scratch  []byte
	raw      rawHeader
	mime     structure

	session     map[string]string
	sessionSize int
	complaint   []byte // what was logged in mg1_init as a warning or worse
	stderr      tail
}

// NewEnv returns an Env that is ready for mg1_init.
func NewEnv(o Options) *Env {
	if len(o.Config) == 0 {
		o.Config = []byte("{}")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Reader
	}
	if o.Told == nil {
		o.Told = new(Told)
	}
	if o.Start.IsZero() {
		o.Start = o.Now()
	}
	o.LogLines = cmp.Or(o.LogLines, abi.MaxLogLines)
	o.SessionValues = cmp.Or(o.SessionValues, abi.MaxSession)
	g := &Env{opts: o, start: o.Start}
	if o.Setup != nil {
		g.setup = o.Setup.clone()
		g.setup.mask = 0 // hooks are subscribed to in each start
	}
	return g
}

// Begin makes e the event that the Host speaks of. hook is one of abi.HookTable. What the
// guest waits for ends with ctx.
func (g *Env) Begin(ctx context.Context, hook abi.Hook, e *policy.Event) {
	g.ctx, g.hook, g.event = ctx, hook, e
	g.reply, g.hasReply = "", false
	g.lines, g.writing, g.cpu = 0, false, 0
}

// SetBudget says how much CPU time the guest has at this hook, for its frame. Call it after
// Begin.
func (g *Env) SetBudget(cpu time.Duration) { g.cpu = cpu }

// End ends the event. What the guest keeps of the Host is of no use until the next
// Begin.
func (g *Env) End() {
	if g.lines > g.opts.LogLines {
		g.opts.Log.Warn("filter log lines dropped", "filter", g.opts.Name, "dropped", g.lines-g.opts.LogLines)
	}
	if g.hook == abi.HookAuth {
		clear(g.scratch[:cap(g.scratch)]) // a password may have passed through it
	}
	g.endAway()
	g.ctx, g.hook, g.event = nil, 0, nil
	g.raw.of = nil
	if g.mime.known { // it is large
		g.mime = structure{}
	}
	g.newBody = newBody{}
	empty(&g.scratch)
	empty(&g.raw.b)
}

// empty empties b for the next use, and lets it go if it grew large: a session that once
// had a large message should not keep its room until the client goes away.
func empty(b *[]byte) {
	*b = (*b)[:0]
	if cap(*b) > 4<<10 {
		*b = nil
	}
}

// Complaint returns the warnings and errors that the guest logged in mg1_init, a line
// each: why it refuses to start, if it does. They are kept whatever the log's level.
func (g *Env) Complaint() string { return strings.TrimSuffix(string(g.complaint), "\n") }

// StderrTail returns the first and the last of what the guest printed since it was last
// asked, 4 KiB at most.
func (g *Env) StderrTail() string { return g.stderr.take() }

// Verdict unpacks what mg1_hook returned, with the text that the guest gave. An error
// means that the guest failed or that the verdict makes no sense.
func (g *Env) Verdict(v abi.Verdict) (policy.Verdict, error) {
	if v == abi.Verdict(abi.ActContinue) { // nearly all are that
		return policy.Verdict{}, nil
	}
	if v&abi.ErrorBit != 0 {
		return policy.Verdict{}, fmt.Errorf("guest: it says that it failed, code %d", uint32(v))
	}
	if v.Unknown() != 0 {
		return policy.Verdict{}, fmt.Errorf("guest: its verdict %#x has unknown bits", uint64(v))
	}
	if v.HasText() && !g.hasReply {
		return policy.Verdict{}, errors.New("guest: its verdict speaks of a text that was not given")
	}
	if need := g.needs(v.Action()); need != "" && !g.may(need) {
		return policy.Verdict{}, fmt.Errorf("guest: its verdict needs the grant %s, which it does not have", need)
	}
	out := g.unpack(v)
	if out.Action == policy.Quarantine {
		out.Reason = g.reason()
	}
	return out, nil
}

// unpack makes action and reply of a verdict without unknown bits.
func (g *Env) unpack(v abi.Verdict) policy.Verdict {
	out := policy.Verdict{Action: policy.Action(v.Action())}
	if v>>8 != 0 { // more than the action
		class, subject, detail := v.Enhanced()
		out.Reply = &smtp.Reply{Code: v.Code(), Enh: smtp.Enhanced{class, subject, detail}}
		if v.HasText() {
			out.Reply.Text = g.reply
		}
	}
	return out
}

// needs is the capability that an action takes; empty if it takes none.
func (g *Env) needs(a abi.Action) string {
	switch {
	case a == abi.ActDiscard:
		return abi.CapDiscard
	case a == abi.ActAccept && g.hook == abi.HookAuth:
		return abi.CapAuthData
	case a == abi.ActAccept:
		return abi.CapAcceptFinal
	}
	return ""
}

// reason is the value of the last tag called "reason".
func (g *Env) reason() string {
	reason := ""
	for _, e := range g.event.Edits.Log() {
		if e.Kind == policy.EditTag && e.Name == "reason" {
			reason = e.Value
		}
	}
	return reason
}

// at tells whether the current hook is one of set.
func (g *Env) at(set abi.Hooks) bool { return set&(1<<g.hook) != 0 }

// fill is the rule of all reads: it returns the full length and copies what fits.
func fill[T string | []byte](buf []byte, s T) int32 {
	copy(buf, s)
	return int32(min(len(s), 1<<31-1))
}

// errnoOf is what an error of package policy is to a guest.
func errnoOf(err error) int32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, policy.ErrPhase):
		return int32(abi.EPHASE)
	case errors.Is(err, policy.ErrRange):
		return int32(abi.ENOENT)
	case errors.Is(err, policy.ErrProtected):
		return int32(abi.EPERM)
	case errors.Is(err, policy.ErrTooMuch):
		return int32(abi.ELIMIT)
	}
	return int32(abi.EINVAL)
}

// Subscribe implements Host.
func (g *Env) Subscribe(mask uint64) int32 {
	if !g.at(abi.DuringInit) {
		return int32(abi.EPHASE)
	}
	if mask&^uint64(abi.InSession) != 0 {
		return int32(abi.EINVAL)
	}
	g.setup.mask |= mask
	return 0
}

// Features implements Host.
func (g *Env) Features() int32 { return abi.Minor }

// Config implements Host.
func (g *Env) Config(off int32, buf []byte) int32 {
	if off < 0 || int(off) > len(g.opts.Config) {
		return int32(abi.EINVAL)
	}
	return fill(buf, g.opts.Config[off:])
}

// Reply implements Host.
func (g *Env) Reply(text []byte) int32 {
	if !g.at(abi.Deciding) {
		return int32(abi.EPHASE)
	}
	if len(text) > abi.MaxReply {
		return int32(abi.ELIMIT)
	}
	if bytes.Count(text, []byte("\n")) >= abi.MaxReplyLines {
		return int32(abi.ELIMIT)
	}
	// CR and NUL have no place in a reply: they would end its line for some readers.
	if !plain(text, "\n\t") {
		return int32(abi.EINVAL)
	}
	g.reply, g.hasReply = string(text), true
	return 0
}

// maxTag is the most octets of a tag, as package policy has it. Like the other sizes that
// are looked at here, it is checked before a guest's octets are copied: a guest must not
// make the host allocate what it then refuses.
const maxTag = 1024

// Tag implements Host.
func (g *Env) Tag(key, value []byte) int32 {
	switch {
	case !g.at(abi.Deciding):
		return int32(abi.EPHASE)
	case len(key)+len(value) > maxTag:
		return int32(abi.ELIMIT)
	// A tag is read by others as FILTER.KEY=VALUE on a line.
	case len(key) == 0 || bytes.IndexByte(key, '=') >= 0 || !plain(key, "") || !plain(value, "\t"):
		return int32(abi.EINVAL)
	}
	return errnoOf(g.event.Edits.Tag(string(key), string(value)))
}

// plain tells whether b is UTF-8 without control characters but those in may.
func plain(b []byte, may string) bool {
	for _, c := range b {
		if (c < ' ' || c == 0x7f) && strings.IndexByte(may, c) < 0 {
			return false
		}
	}
	return utf8.Valid(b)
}

func slogLevel(level int32) slog.Level {
	switch abi.Level(level) {
	case abi.LevelDebug:
		return slog.LevelDebug
	case abi.LevelWarn:
		return slog.LevelWarn
	case abi.LevelError:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Log implements Host.
func (g *Env) Log(level int32, line []byte) int32 {
	if level < int32(abi.LevelDebug) || level > int32(abi.LevelError) {
		return int32(abi.EINVAL)
	}
	if g.complains(level) && len(g.complaint) < abi.MaxReply {
		g.complaint = append(g.complaint, strings.ToValidUTF8(string(line[:min(len(line), abi.MaxLogLine)]), "\uFFFD")+"\n"...)
	}
	if !g.logs(level) {
		return 0
	}
	if g.lines++; g.lines > g.opts.LogLines {
		return int32(abi.ELIMIT)
	}
	if len(line) > abi.MaxLogLine {
		line = line[:abi.MaxLogLine]
	}
	// Straight to the handler: the log's own level may be another than the guest's.
	r := slog.NewRecord(time.Now(), slogLevel(level), "filter says", 0)
	r.Add("filter", g.opts.Name, "line", strings.ToValidUTF8(string(line), "\uFFFD"))
	if g.event != nil {
		r.Add("stage", g.event.Stage.String(), "conn", g.event.Session.ID)
	}
	_ = g.opts.Log.Handler().Handle(context.Background(), r) // as slog does: there is nobody to tell
	return 0
}

// logs tells whether a line of that level is logged.
func (g *Env) logs(level int32) bool {
	if g.opts.LogLevel != nil {
		return slogLevel(level) >= g.opts.LogLevel.Level()
	}
	return g.opts.Log.Enabled(context.Background(), slogLevel(level))
}

// LogEnabled implements Host.
func (g *Env) LogEnabled(level int32) int32 {
	if level < int32(abi.LevelDebug) || level > int32(abi.LevelError) {
		return int32(abi.EINVAL)
	}
	if g.complains(level) || g.logs(level) {
		return 1
	}
	return 0
}

// complains tells whether a line of that level belongs to Complaint.
func (g *Env) complains(level int32) bool {
	return g.at(abi.DuringInit) && level >= int32(abi.LevelWarn)
}

// Now implements Host.
func (g *Env) Now() int64 { return g.opts.Now().UnixNano() }

// Mono implements Host.
func (g *Env) Mono() int64 { return int64(g.opts.Now().Sub(g.start)) + 1 }

// Random implements Host.
func (g *Env) Random(buf []byte) int32 {
	if len(buf) > abi.MaxRandom {
		return int32(abi.ELIMIT)
	}
	if _, err := io.ReadFull(g.opts.Rand, buf); err != nil {
		return int32(abi.EUNAVAIL)
	}
	return int32(len(buf))
}

// SessGet implements Host.
func (g *Env) SessGet(key, buf []byte) int32 {
	if !g.at(abi.InSession) {
		return int32(abi.EPHASE)
	}
	v, ok := g.session[string(key)]
	if !ok {
		return int32(abi.ENOENT)
	}
	return fill(buf, v)
}

// SessSet implements Host.
func (g *Env) SessSet(key, value []byte) int32 {
	if !g.at(abi.InSession) {
		return int32(abi.EPHASE)
	}
	if len(key) == 0 {
		return int32(abi.EINVAL)
	}
	old, had := g.session[string(key)]
	size := g.sessionSize
	if had {
		size -= len(key) + len(old)
	}
	if len(value) == 0 {
		delete(g.session, string(key))
		g.sessionSize = size
		return 0
	}
	if size += len(key) + len(value); size > g.opts.SessionValues {
		return int32(abi.ELIMIT)
	}
	if g.session == nil {
		g.session = make(map[string]string)
	}
	g.session[string(key)] = string(value)
	g.sessionSize = size
	return 0
}

// Stderr implements Host.
func (g *Env) Stderr(p []byte) { g.stderr.write(p) }

// tail keeps the first and the last octets that were written to it: language runtimes
// say at the front why they give up, and what follows may be long.
type tail struct {
	head, b []byte
	lost    bool // there was something between them
}

const (
	headSize = 1 << 10
	tailSize = 3 << 10
)

func (t *tail) write(p []byte) {
	n := min(headSize-len(t.head), len(p))
	t.head = append(t.head, p[:n]...)
	p = p[n:]
	if len(p) > tailSize {
		p, t.lost = p[len(p)-tailSize:], true
	}
	t.b = append(t.b, p...)
	if len(t.b) > tailSize {
		t.b, t.lost = append(t.b[:0], t.b[len(t.b)-tailSize:]...), true
	}
}

// take returns what was kept, as text, and forgets it.
func (t *tail) take() string {
	s := string(t.head)
	if t.lost {
		s += "\n…\n"
	}
	s += string(t.b)
	*t = tail{}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// appendList appends an element of a list field.
func appendList[T string | []byte](b []byte, s T) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}
