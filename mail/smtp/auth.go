package smtp

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"time"
)

// auth.go: the server's side of AUTH (RFC 4954): who may log in how and when, and the
// exchange of challenges and responses. What a mechanism does with them is no business of
// the dialogue.

// AuthOptions say when clients may log in, and what becomes of those who cannot. With what
// they log in is said by an AuthSession.
type AuthOptions struct {
	// Required refuses MAIL, RCPT, DATA, BDAT and VRFY with 530 before a login.
	// RequiredText is what the client is told. Default "log in first".
	Required     bool
	RequiredText string
	// Insecure allows logins in clear text. Without it AUTH is offered on TLS alone, and
	// answered with 538 in clear. It has no effect with ServerOptions.RequireTLS.
	Insecure bool
	// MaxFailures ends a connection after so many failed logins. Default 3.
	MaxFailures int
	// FailureDelay is how long the answer to a failed login waits; it doubles with each
	// that follows on a connection. Default 1 s; negative is off.
	FailureDelay time.Duration
}

func (o AuthOptions) withDefaults() AuthOptions {
	setDefault(&o.MaxFailures, 3)
	setDefault(&o.FailureDelay, time.Second)
	setDefault(&o.RequiredText, "log in first")
	return o
}

// maxResponse is the longest line of an exchange with its CRLF. RFC 4954, Section 4.
const maxResponse = 12288

// mechanisms returns what may be offered to a client that says EHLO.
func (c *conn) mechanisms() []string {
	sess, ok := c.sess.(AuthSession)
	if !ok || c.authed || c.srv.lacks["AUTH"] || !c.srv.opts.Auth.Insecure && !c.encrypted() {
		return nil
	}
	return sess.Mechanisms()
}

// auth answers AUTH.
func (c *conn) auth(args string) error {
	sess, ok := c.sess.(AuthSession)
	switch {
	case !ok:
		return c.offence(errUnimplemented)
	case c.helo == "":
		return c.offence(badSequence("say EHLO first"))
	case c.authed:
		return c.offence(badSequence("you are logged in already"))
	case c.inMail:
		return c.offence(badSequence("not within a transaction"))
	case !c.srv.opts.Auth.Insecure && !c.encrypted():
		// RFC 4954, Section 6; the enhanced code is the one that was registered for it.
		return c.refuse(Refuse(538, Enhanced{5, 7, 11}, "a login needs TLS, say STARTTLS first"))
	}
	name, initial, hasInitial := strings.Cut(args, " ")
	name = strings.ToUpper(name)
	if name == "" {
		return c.offence(syntaxError("syntax: AUTH mechanism"))
	}
	if !slices.Contains(c.offered, name) {
		return c.refuse(Refuse(504, Enhanced{5, 5, 4}, "this mechanism is not offered here"))
	}
	var response []byte
	if hasInitial {
		var err error
		if response, err = decodeResponse(strings.TrimLeft(initial, " ")); err != nil {
			return c.offence(err)
		}
	}
	m, err := sess.Auth(c.ctx, name)
	if err != nil {
		return c.loginFailed(err)
	}
	return c.exchange(m, response)
}

// exchange talks until the mechanism has made up its mind.
func (c *conn) exchange(m Mechanism, response []byte) error {
	for {
		challenge, done, err := m.Next(response)
		switch {
		case err != nil:
			return c.loginFailed(err)
		case done && len(challenge) == 0:
			return c.loggedIn()
		}
		// No mechanism of ours goes on for ever, but a response is as good as a command to
		// keep us busy.
		if c.count++; c.count > c.srv.opts.MaxCommands {
			return c.last(Refuse(421, Enhanced{4, 7, 0}, "too many commands without a message"))
		}
		var lost error
		response, lost, err = c.ask(challenge)
		switch {
		case lost != nil:
			return lost
		case err != nil:
			return c.offence(err)
		case done && len(response) > 0:
			return c.loginFailed(Refuse(501, Enhanced{5, 5, 2}, "the exchange was over"))
		case done:
			return c.loggedIn()
		}
	}
}

// ask sends a challenge and returns the response, never nil. lost is why the dialogue
// ends; err is an answer to the client, who gave the exchange up or broke it.
func (c *conn) ask(challenge []byte) (response []byte, lost, err error) {
	c.wire.out = append(c.wire.out, "334 "...)
	c.wire.out = base64.StdEncoding.AppendEncode(c.wire.out, challenge)
	c.wire.out = append(c.wire.out, crlf...)
	if c.debug {
		c.log.Debug("S", "conn", c.id, "line", "334 …")
	}
	if err := c.overflow(); err != nil {
		return nil, err, nil
	}
	line, err := c.readCommand(maxResponse)
	switch {
	case err == nil:
	case errors.Is(err, errLineTooLong):
		return nil, nil, Refuse(500, Enhanced{5, 5, 6}, "response too long")
	case errors.Is(err, errLineEnd):
		return nil, nil, Refuse(500, Enhanced{5, 5, 2}, "lines end with CRLF")
	default:
		return nil, c.lost(err), nil
	}
	if c.debug {
		c.log.Debug("C", "conn", c.id, "line", "…")
	}
	if string(line) == "*" {
		return nil, nil, Refuse(501, Enhanced{5, 7, 0}, "login given up")
	}
	response, err = base64.StdEncoding.Strict().AppendDecode([]byte{}, line)
	if err != nil {
		return nil, nil, errBase64
	}
	return response, nil, nil
}

var errBase64 = Refuse(501, Enhanced{5, 5, 2}, "this is not base64")

// decodeResponse reads an initial response. "=" is one that is there and empty. RFC 4954,
// Section 4.
func decodeResponse(s string) ([]byte, error) {
	if s == "=" {
		return []byte{}, nil
	}
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || s == "" {
		return nil, errBase64
	}
	return b, nil
}

func (c *conn) loggedIn() error {
	c.authed, c.offered = true, nil
	return c.say(235, Enhanced{2, 7, 0}, "logged in")
}

// loginFailed answers a failure, late, and ends the connection after too many. A fault of
// ours is temporary, and has its own code (RFC 4954, Section 6).
func (c *conn) loginFailed(err error) error {
	r, ok := errors.AsType[*Reply](err)
	if !ok {
		r = &Reply{Code: 454, Enh: Enhanced{4, 7, 0}, Text: "login is not possible now, try again later", Cause: err}
	}
	o := &c.srv.opts.Auth
	if !r.Permanent() {
		return c.refuse(r) // no fault of the client
	}
	c.failures++
	if o.FailureDelay > 0 {
		c.pause(min(o.FailureDelay<<min(c.failures-1, 8), maxPause))
	}
	if c.failures >= o.MaxFailures {
		return c.last(Refuse(421, Enhanced{4, 7, 0}, "too many failed logins").Because(r))
	}
	return c.refuse(r)
}

// errNeedsTLS is RFC 3207, Section 4.
var errNeedsTLS = Refuse(530, Enhanced{5, 7, 0}, "say STARTTLS first")

// notYet refuses what needs TLS or a login, where there was none.
func (c *conn) notYet() error {
	o := &c.srv.opts
	switch {
	case o.RequireTLS && !c.encrypted():
		return errNeedsTLS
	case o.Auth.Required && !c.authed:
		return Refuse(530, Enhanced{5, 7, 0}, o.Auth.RequiredText)
	}
	return nil
}
