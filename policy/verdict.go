package policy

import (
	"errors"
	"fmt"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
)

// verdict.go: what a filter may answer, and what of it makes sense.

// Action is the core of a verdict. The numbers are those of the filter ABI.
type Action uint8

// The actions.
const (
	Continue   Action = 0 // no objection; the next filter is asked
	Accept     Action = 1 // the rest of the chain is not asked at this stage; needs the link's permission. At StageAuth: the credentials are right
	Reject     Action = 2 // 5xx
	Tempfail   Action = 3 // 4xx
	Discard    Action = 4 // the client hears 250, the mail is dropped; at StageRcpt for this recipient alone
	Quarantine Action = 5 // the mail is held for a person; without a store to hold it in, as today, the client hears 451 4.3.0
	Disconnect Action = 6 // the reply, and the end of the connection
	Skip       Action = 7 // no objection, and no more questions until the transaction (or session) ends; at StageChunk no more chunks of the message
)

var actionNames = [...]string{"continue", "accept", "reject", "tempfail", "discard", "quarantine", "disconnect", "skip"}

// String returns the action's name.
func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// Verdict is a filter's answer. The zero Verdict has no objection.
type Verdict struct {
	Action Action
	// Reply is what the client is told, for Reject, Tempfail and Disconnect; nil means
	// the action's default.
	Reply *smtp.Reply
	// Reason is for the log and for whoever looks at held mail, not for the client.
	Reason string
}

// Final tells whether the verdict ends the asking at its stage. Accept does so at all
// stages but StageAuth.
func (v Verdict) Final() bool {
	switch v.Action {
	case Continue, Skip, Quarantine:
		return false
	}
	return true
}

// ErrVerdict is behind every verdict that makes no sense.
var ErrVerdict = errors.New("policy: verdict makes no sense")

// check completes v with the default reply and returns an error wrapping ErrVerdict if
// its parts contradict each other or the stage.
func (v Verdict) check(stage Stage, mayAccept bool) (Verdict, error) {
	if v.Action == Continue && v.Reply == nil { // nearly all are that
		return v, nil
	}
	if !stage.Decides() && v.Action != Continue && v.Action != Skip {
		return v, fmt.Errorf("%w: %s at stage %s, where a filter only observes", ErrVerdict, v.Action, stage)
	}
	if v.Reply != nil && v.Action != Reject && v.Action != Tempfail && v.Action != Disconnect {
		return v, fmt.Errorf("%w: %s with a reply, which nobody would see", ErrVerdict, v.Action)
	}
	switch v.Action {
	case Continue, Skip:
		return v, nil
	case Accept:
		if !mayAccept {
			return v, fmt.Errorf("%w: accept is not granted", ErrVerdict)
		}
		return v, nil
	case Discard, Quarantine:
		if !stage.inMessage() {
			return v, fmt.Errorf("%w: %s at stage %s, where there is no mail", ErrVerdict, v.Action, stage)
		}
		return v, nil
	case Reject:
		if stage == StageAuth {
			return v.withReply(5, authInvalid())
		}
		return v.withReply(5, smtp.Reply{Code: 550, Enh: smtp.Enhanced{5, 7, 1}, Text: "refused by policy"})
	case Tempfail:
		if stage == StageAuth {
			return v.withReply(4, authUnavailable())
		}
		return v.withReply(4, smtp.Reply{Code: 451, Enh: smtp.Enhanced{4, 7, 1}, Text: "deferred by policy, try again later"})
	case Disconnect:
		if stage.outward() {
			return v, fmt.Errorf("%w: %s at stage %s, where there is no connection", ErrVerdict, v.Action, stage)
		}
		if v.Reply != nil && v.Reply.Code/100 == 5 {
			return v.withReply(5, smtp.Reply{Enh: smtp.Enhanced{5, 7, 0}, Text: "closing connection"})
		}
		return v.withReply(4, smtp.Reply{Code: 421, Enh: smtp.Enhanced{4, 7, 0}, Text: "closing connection"})
	}
	return v, fmt.Errorf("%w: unknown %s", ErrVerdict, v.Action)
}

// authInvalid and authUnavailable are the refusals of a login. RFC 4954, Section 6.
func authInvalid() smtp.Reply {
	return smtp.Reply{Code: 535, Enh: smtp.Enhanced{5, 7, 8}, Text: "authentication credentials invalid"}
}

func authUnavailable() smtp.Reply {
	return smtp.Reply{Code: 454, Enh: smtp.Enhanced{4, 7, 0}, Text: "temporary authentication failure"}
}

// withReply fills in what is missing of the reply and checks its class. 421 belongs to
// Disconnect: it would end the connection from within another action.
func (v Verdict) withReply(class int, def smtp.Reply) (Verdict, error) {
	if v.Reply == nil {
		v.Reply = &def
		return v, nil
	}
	r := *v.Reply
	if r.Code == 0 {
		r.Code = def.Code
	}
	if r.Enh == (smtp.Enhanced{}) {
		r.Enh = def.Enh
	}
	if r.Text == "" {
		r.Text = def.Text
	}
	if r.Code/100 != class || r.Enh[0] != class && r.Enh != (smtp.Enhanced{}) {
		return v, fmt.Errorf("%w: %s with reply %d %s", ErrVerdict, v.Action, r.Code, r.Enh)
	}
	if r.Code == 421 && v.Action != Disconnect {
		return v, fmt.Errorf("%w: %s with reply 421, which belongs to disconnect", ErrVerdict, v.Action)
	}
	v.Reply = &r
	return v, nil
}

// OnError is what a filter's failure means for the mail at hand.
type OnError uint8

// The choices. The zero value is the safe one: the sender tries again.
const (
	OnErrorTempfail   OnError = iota // 451 4.3.0; 454 4.7.0 to a login
	OnErrorAccept                    // as if the filter had no objection; it logs nobody in
	OnErrorReject                    // 554 5.3.0; 535 5.7.8 to a login
	OnErrorQuarantine                // held for a person
)

var onErrorNames = [...]string{"tempfail", "accept", "reject", "quarantine"}

// String returns the word of the configuration.
func (o OnError) String() string {
	if int(o) < len(onErrorNames) {
		return onErrorNames[o]
	}
	return fmt.Sprintf("OnError(%d)", uint8(o))
}

// ParseOnError reads a word of the configuration; the empty word is OnErrorTempfail.
func ParseOnError(s string) (OnError, error) {
	for i, name := range onErrorNames {
		if s == name || s == "" {
			return OnError(i), nil
		}
	}
	return 0, fmt.Errorf("policy: on_error %q: want tempfail, accept, reject or quarantine", s)
}

// verdict is what o makes of a failure at stage.
func (o OnError) verdict(stage Stage, err error) Verdict {
	switch {
	case !stage.Decides() || o == OnErrorAccept:
		return Verdict{}
	case o == OnErrorReject:
		r := *smtp.Refuse(554, smtp.Enhanced{5, 3, 0}, "message cannot be checked here")
		if stage == StageAuth {
			r = authInvalid()
		}
		return Verdict{Action: Reject, Reply: r.Because(err), Reason: "filter failed"}
	case o == OnErrorQuarantine && stage.inMessage():
		cause, _, _ := strings.Cut(err.Error(), "\n") // without the stack of a panic
		return Verdict{Action: Quarantine, Reason: "filter failed: " + cause}
	default:
		r := *smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "message cannot be checked now, try again later")
		if stage == StageAuth {
			r = authUnavailable()
		}
		return Verdict{Action: Tempfail, Reply: r.Because(err), Reason: "filter failed"}
	}
}
