package policy

import (
	"cmp"
	"fmt"
	"slices"
)

// judge.go: verdicts about single recipients of a message that goes on for the others.

// Judged is a recipient that a filter refused or discarded by a verdict of its own.
type Judged struct {
	Recipient
	// Filter is the one whose verdict it is.
	Filter string
	// Verdict is Reject or Tempfail, with its reply, or Discard.
	Verdict Verdict
}

// Judge gives recipient i a verdict of its own, at StageHeaders and StageMessage: Reject,
// Tempfail, Discard or Quarantine, while the message goes on for the others. Continue takes
// back what the filter said before. Like all edits it counts if the filter returns in good
// order: the filters behind do not see the recipient any more, or see that it is held. A
// verdict about the message as a whole stands above it.
//
// An error that is none of this package's others wraps ErrVerdict.
func (e *Edits) Judge(i int, v Verdict) error {
	if e.message == nil || e.stage != StageHeaders && e.stage != StageMessage {
		return ErrPhase
	}
	switch v.Action {
	case Continue, Reject, Tempfail, Discard, Quarantine:
	default:
		return fmt.Errorf("%w: %s about one recipient", ErrVerdict, v.Action)
	}
	v, err := v.check(e.stage, false)
	if err != nil {
		return err
	}
	if err := e.rcptEdit(); err != nil {
		return err
	}
	if i < 0 || i >= len(e.rcpts) {
		return ErrRange
	}
	e.rcpts[i].verdict = &v
	e.judged = true
	done := Edit{Kind: EditRcptVerdict, Index: i, Name: v.Action.String(), Value: v.Reason, Old: e.rcpts[i].Path.String()}
	if v.Reply != nil {
		done.Value = v.Reply.Line()
	}
	e.log = append(e.log, done)
	return nil
}

// judge makes the verdicts about single recipients count.
func (e *Edits) judge() {
	if !e.judged {
		return
	}
	judged := slices.Clip(e.tx.Judged)
	e.rcpts = slices.DeleteFunc(e.rcpts, func(r Recipient) bool {
		v := r.verdict
		r.verdict = nil
		if v == nil || v.Action == Continue || v.Action == Quarantine {
			return false
		}
		judged = append(judged, Judged{r, e.filter, *v})
		return true
	})
	for i := range e.rcpts {
		r := &e.rcpts[i]
		if v := r.verdict; v != nil && v.Action == Quarantine && r.Held == "" {
			r.Held = cmp.Or(v.Reason, "held by "+e.filter)
		}
		r.verdict = nil
	}
	e.tx.Judged = judged
}
