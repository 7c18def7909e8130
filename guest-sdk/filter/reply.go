package filter

import "github.com/penstock/penstock/guest-sdk/abi"

// reply.go: the verdict of a handler.

// Reply takes the verdict of a handler. A handler that calls none of its methods has no
// objection. Of several calls the last counts, so that a handler may begin with a
// verdict and take it back with Continue.
//
// In Reject, Tempfail and Disconnect a code of 0, an empty enhanced code (RFC 3463) and an
// empty text stand for the gateway's own. An enhanced code that is not of the form
// "5.7.1" is a fault of the program: the method panics, so the call fails. A code that
// does not fit the action makes the gateway treat the call as failed as well. The text
// may have several lines, separated by "\n".
type Reply struct{ call *call }

// verdict is the last that a handler said.
type verdict struct {
	action   abi.Action
	code     int
	enhanced [3]int
	text     string // of the reply, or the reason of a quarantine
}

func (w Reply) say(v verdict) { w.call.reply = v }

// Continue has no objection: the next filter is asked.
func (w Reply) Continue() { w.say(verdict{}) }

// Reject refuses for good, with 550 5.7.1 by default, and a login with 535 5.7.8.
func (w Reply) Reject(code int, enhanced, text string) {
	w.say(verdict{abi.ActReject, code, parseEnhanced(enhanced), text})
}

// Tempfail refuses for now, with 451 4.7.1 by default, and a login with 454 4.7.0: the client
// will try again.
func (w Reply) Tempfail(code int, enhanced, text string) {
	w.say(verdict{abi.ActTempfail, code, parseEnhanced(enhanced), text})
}

// Disconnect ends the connection, with 421 4.7.0 by default.
func (w Reply) Disconnect(code int, enhanced, text string) {
	w.say(verdict{abi.ActDisconnect, code, parseEnhanced(enhanced), text})
}

// Discard lets the client believe that the mail was taken, and drops it; at RCPT TO for
// this recipient alone. There is mail from MAIL FROM on.
func (w Reply) Discard() { w.say(verdict{action: abi.ActDiscard}) }

// Quarantine takes the mail and holds it for a person, who is shown the reason. A filter
// behind may still refuse. There is mail from MAIL FROM on. A gateway without a store has
// nowhere to hold it: the client hears 451 4.3.0 then and keeps it.
func (w Reply) Quarantine(reason string) { w.say(verdict{action: abi.ActQuarantine, text: reason}) }

// Accept ends the asking at this hook: filters behind are not asked. The operator has to
// grant it. In a handler of OnAuth it says instead that the credentials are right, where the
// operator leaves that to filters, and filters behind may still refuse.
func (w Reply) Accept() { w.say(verdict{action: abi.ActAccept}) }

// Skip has no objection and wants no more calls until the transaction ends; said outside
// of one, until the session ends.
func (w Reply) Skip() { w.say(verdict{action: abi.ActSkip}) }

// maxReason is what fits a tag with its key.
const maxReason = 1000

// finish gives the text to the host and packs the verdict. A text that the host does not
// take (it may hold something of the client's) must not lose the verdict: the reply then
// has the default text.
func (c *call) finish() abi.Verdict {
	v := c.reply
	hasText := false
	switch {
	case v.text == "":
	case v.action == abi.ActQuarantine:
		reason := v.text[:min(len(v.text), maxReason)]
		if err := check("tag", c.host.Tag([]byte("reason"), []byte(reason))); err != nil {
			logLine(c.host, LevelWarn, "the reason was not taken: "+err.Error(), nil)
		}
	default:
		err := check("reply", c.host.Reply([]byte(v.text)))
		if hasText = err == nil; !hasText {
			logLine(c.host, LevelWarn, "the reply's text was not taken: "+err.Error(), nil)
		}
	}
	return abi.NewVerdict(v.action, v.code, v.enhanced[0], v.enhanced[1], v.enhanced[2], hasText)
}

// parseEnhanced reads "5.7.1"; the empty string is no enhanced code.
func parseEnhanced(s string) (e [3]int) {
	if s == "" {
		return e
	}
	rest := s
	for i := range e {
		part, after := cut(rest, '.')
		n, ok := decimal(part, 999)
		if !ok || (i == 2) != (len(part) == len(rest)) || i == 0 && n > 5 {
			panic("filter: bad enhanced code " + s)
		}
		e[i], rest = n, after
	}
	return e
}
