package gateway

import (
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// judged.go: what becomes of a message of which filters answered for single recipients, and
// what its client hears.
//
// With LMTP each recipient has its own answer (RFC 2033, Section 4.2). With SMTP there is one,
// and it must neither lie nor lose anything:
//
//   - If all are refused, the refusal is the answer.
//   - With a store, and a client that is no stranger, the answer is 250: the message goes on for
//     the others, and those who were refused for good become one report, as when a backend
//     refuses some. A stranger's sender may be forged, and gets none (backscatter).
//   - Else nobody gets it now. The answer is 451 4.5.3, and when the message is sent again RCPT
//     takes those who were refused apart from the others (452 4.5.3), so that each of the
//     messages has one answer. A refusal for now always goes this way: a queue would hand the
//     message on without asking the filter again. Who is refused for now, again and again, is
//     taken every other time, or those behind in the client's list would have no turn.
//
// What a filter discards is no obstacle to any answer. What it wants held for some recipients
// is kept for them; without a store that is a refusal for now.

// refused is a recipient that a filter refused while the message goes on for others.
type refused struct {
	policy.Recipient
	reply *smtp.Reply
}

// errApart asks for the message again: RFC 3463, Section 3.6, X.5.3 makes the sender split it.
var errApart = smtp.Refuse(451, smtp.Enhanced{4, 5, 3}, "the recipients cannot be answered for together, send the message again")

// judge sorts what filters said of single recipients. Its error is the answer to the message;
// without one, tx.Rcpts go on, and tx.refused are to be told.
func (tx *transaction) judge() error {
	if tx.s.l.gw.keeper == nil {
		tx.deferHeld()
	}
	for _, j := range tx.Judged {
		if j.Verdict.Action == policy.Discard {
			tx.discardOne(j.Recipient)
		} else {
			tx.refused = append(tx.refused, refused{j.Recipient, j.Verdict.Reply})
		}
	}
	if tx.s.l.Server.LMTP || len(tx.refused) == 0 {
		return nil
	}
	return tx.judgeTogether()
}

// deferHeld makes a refusal for now of what cannot be held.
func (tx *transaction) deferHeld() {
	if !slices.ContainsFunc(tx.Rcpts, isHeld) {
		return
	}
	var others []policy.Recipient
	for _, r := range tx.Rcpts {
		if isHeld(r) {
			tx.refused = append(tx.refused, refused{r, errHeld})
		} else {
			others = append(others, r)
		}
	}
	tx.Rcpts = others
}

func isHeld(r policy.Recipient) bool { return r.Held != "" }

// discardOne lets the client believe that r gets the message.
func (tx *transaction) discardOne(r policy.Recipient) {
	tx.discarded = true
	if r.AddedBy != "" {
		own, ok := tx.original(r)
		if !ok {
			return
		}
		r = own
	}
	for i := range tx.promised {
		if p := &tx.promised[i]; p.path == r.Path && !p.discarded {
			p.discarded = true
			return
		}
	}
}

// judgeTogether finds the one answer of SMTP.
func (tx *transaction) judgeTogether() error {
	permanent := true
	var all []error
	for _, r := range tx.refused {
		permanent = permanent && r.reply.Permanent()
		all = append(all, r.reply)
	}
	if len(tx.Rcpts) == 0 && agree(all) {
		return refusal(tx.refused[0].reply)
	}
	tx.refused = tx.clientsOwn(tx.refused)
	switch {
	case len(tx.refused) == 0:
		return nil
	case len(tx.Rcpts) > 0 && permanent && tx.s.l.gw.keeper != nil && (tx.s.trusted || tx.s.isUser()):
		return nil
	}
	causes := make([]error, len(tx.refused))
	for i, r := range tx.refused {
		tx.s.l.gw.apart.note(tx.from, r.Path, kindOf(r.reply))
		causes[i] = fmt.Errorf("<%s>: %w", r.Path, r.reply)
	}
	return errApart.Because(errors.Join(causes...))
}

// clientsOwn returns those of list that the client had named, as it had. What only filters have
// put there is not its business.
func (tx *transaction) clientsOwn(list []refused) []refused {
	var own []refused
	for _, r := range list {
		ok := true
		if r.AddedBy != "" {
			r.Recipient, ok = tx.original(r.Recipient)
		}
		if ok {
			own = append(own, r)
		}
	}
	return own
}

// withRefused adds those whom filters refused to the recipients whose answers are known.
func (tx *transaction) withRefused(rcpts []policy.Recipient, replies []*smtp.Reply) ([]policy.Recipient, []*smtp.Reply) {
	for _, r := range tx.refused {
		rcpts = append(rcpts[:len(rcpts):len(rcpts)], r.Recipient)
		replies = append(replies, r.reply)
	}
	return rcpts, replies
}

// maxJudgedLines bounds the lines of the log about single recipients in one answer of a filter.
const maxJudgedLines = 16

// logJudged logs what a filter said of single recipients.
func (s *session) logJudged(step policy.Step) {
	lines := 0
	for _, e := range step.Edits {
		if e.Kind != policy.EditRcptVerdict {
			continue
		}
		if lines++; lines > maxJudgedLines {
			continue
		}
		s.log.Info("verdict", "conn", s.facts.ID, "mail", s.tx.id, "stage", step.Stage.String(), "filter", step.Filter,
			"verdict", e.Name, "rcpt", e.Old, slog.String("text", e.Value))
	}
	if lines > maxJudgedLines {
		s.log.Info("verdicts about more recipients", "conn", s.facts.ID, "mail", s.tx.id, "filter", step.Filter, "more", lines-maxJudgedLines)
	}
}

// kind is a group of recipients that one answer can be given for.
type kind uint8

const (
	kindTaken     kind = iota // nothing is known against it
	kindPermanent             // refused for good
	kindTemporary             // refused for now
)

func kindOf(r *smtp.Reply) kind {
	if r.Permanent() {
		return kindPermanent
	}
	return kindTemporary
}

// apart remembers which recipients of a sender have to come in a message of their own. What it
// says wrongly, because the next message is another or the sender is somebody else, costs that
// message one more turn of its client. It is safe for concurrent use; the zero value is ready.
//
// Its memory is bounded: two maps, of which the older is thrown away when the newer is full or
// has served its time.
type apart struct {
	any atomic.Bool // something was noted, ever

	mu         sync.Mutex // guards what follows
	seed       maphash.Seed
	newer, old map[uint64]note
	began      time.Time // of newer
}

// note is what is remembered of a recipient.
type note struct {
	kind  kind
	rests bool // it had its turn, and lets others have theirs
}

const (
	// apartFor is how long a note lasts at least: a client tries again within hours.
	apartFor = 4 * time.Hour
	maxApart = 1 << 14
)

// note makes later messages from the sender take the recipient apart from those of other kinds.
func (a *apart) note(from, to smtp.Path, k kind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.any.Load() {
		a.seed = maphash.MakeSeed()
	}
	if now := time.Now(); a.newer == nil || len(a.newer) >= maxApart || now.Sub(a.began) > apartFor {
		a.newer, a.old, a.began = make(map[uint64]note), a.newer, now
	}
	a.newer[a.key(from, to)] = note{kind: k, rests: k == kindTemporary}
	a.any.Store(true)
}

// turn returns the kind of a recipient that the client names, and whether it may be taken now.
// first is the kind of those before it, if it follows any.
func (a *apart) turn(from, to smtp.Path, first kind, follows bool) (k kind, may bool) {
	if !a.any.Load() {
		return kindTaken, true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	n, in := a.find(a.key(from, to))
	switch {
	case follows && n.kind != first:
		return n.kind, false
	case n.kind == kindTemporary:
		n.rests = !n.rests
		in[a.key(from, to)] = n
		return n.kind, n.rests
	}
	return n.kind, true
}

// find returns a note and the map that it is in; nil if there is none. a.mu is held.
func (a *apart) find(key uint64) (note, map[uint64]note) {
	for _, m := range []map[uint64]note{a.newer, a.old} {
		if n, ok := m[key]; ok && time.Since(a.began) <= 2*apartFor {
			return n, m
		}
	}
	return note{}, nil
}

func (a *apart) key(from, to smtp.Path) uint64 {
	return maphash.Comparable(a.seed, [2]smtp.Path{from, to})
}

// together refuses a recipient that cannot be answered for together with those before it.
func (tx *transaction) together(to smtp.Path) error {
	if tx.s.l.Server.LMTP {
		return nil
	}
	k, may := tx.s.l.gw.apart.turn(tx.from, to, tx.kind, len(tx.Rcpts) > 0)
	if !may {
		return errOther
	}
	tx.kind = k
	return nil
}
