package smtp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// client_auth.go logs in at a server (RFC 4954).

// AuthClient is the client's side of a SASL mechanism (RFC 4422) for one login. Its methods
// are those of emersion/go-sasl's Client. If it has a method Finish() error, too, that is
// called when the server has said 235: its error means that the server did not prove who it
// is (RFC 5802, Section 5), and breaks the connection.
type AuthClient interface {
	// Start begins: the name of the mechanism, in upper case, and the initial response. A
	// nil one means that the server speaks first, an empty one is sent as such.
	Start() (mechanism string, initial []byte, err error)
	// Next answers a challenge of the server. An error cancels the login.
	Next(challenge []byte) (response []byte, err error)
}

var (
	// ErrNoMechanism means that the server does not offer the mechanism.
	ErrNoMechanism = errors.New("smtp: the server does not offer this mechanism of authentication")
	// ErrClearAuth means that a login was asked for without TLS and without
	// ClientOptions.ClearAuth.
	ErrClearAuth = errors.New("smtp: no authentication without TLS")
)

// Limits of a login.
const (
	maxAuthLine   = 512 - len("\r\n")   // of the command. RFC 5321, Section 4.5.3.1.4.
	maxAuthAnswer = 12288 - len("\r\n") // of what follows. RFC 4954, Section 4.
	maxChallenges = 32
)

// Mechanisms returns the names of the SASL mechanisms that the server offers, in its order
// and in upper case.
func (c *Client) Mechanisms() []string { return strings.Fields(strings.ToUpper(c.ext["AUTH"])) }

// Auth logs in. It must come before Mail, and StartTLS before it. What is said is not
// logged.
//
// A server that refuses gives a *Reply: 535 for wrong credentials. ErrNoMechanism and
// ErrClearAuth come before anything was said; an error of the mechanism comes wrapped, and
// behind one of its Next the login was cancelled. After all of these the dialogue can go on.
func (c *Client) Auth(ctx context.Context, m AuthClient) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	if !c.MaySecrets() {
		return ErrClearAuth
	}
	name, initial, err := m.Start()
	if err != nil {
		return fmt.Errorf("smtp: authentication: %w", err)
	}
	if !c.offersMechanism(name) {
		return fmt.Errorf("%w: %q", ErrNoMechanism, clip(name, 40))
	}
	if c.debug {
		c.opts.Log.Debug("C", "line", "AUTH "+name)
	}
	c.phase, c.secret = PhaseAuth, true
	defer func() { c.secret = false }()
	err = c.login(m, name, initial)
	c.loggedIn = c.loggedIn || err == nil
	return err
}

// MaySecrets tells whether Auth may send secrets over this connection: within TLS, or in clear
// where ClientOptions.ClearAuth allows it.
func (c *Client) MaySecrets() bool { return c.tls != nil || c.opts.ClearAuth }

func (c *Client) offersMechanism(name string) bool {
	for _, offered := range c.Mechanisms() {
		if offered == name {
			return true
		}
	}
	return false
}

// login is the exchange.
func (c *Client) login(m AuthClient, name string, initial []byte) error {
	line := "AUTH " + name
	if initial != nil {
		// RFC 4954, Section 4: what does not fit the command is sent when the server asks.
		if full := line + " " + encodeInitial(initial); len(full) <= maxAuthLine {
			line, initial = full, nil
		}
	}
	r, err := c.command(line)
	for n := 0; err == nil && r.Code == 334; n++ {
		var answer []byte
		if initial != nil {
			answer, initial = initial, nil
		} else if answer, err = nextAnswer(m, r.Text, n); err != nil {
			return c.cancelAuth(err)
		}
		text := base64.StdEncoding.EncodeToString(answer)
		if len(text) > maxAuthAnswer {
			return c.cancelAuth(errors.New("response too long"))
		}
		r, err = c.command(text)
	}
	switch {
	case err != nil:
		return err
	case r.Code != 235:
		return c.refusal(r)
	}
	if f, ok := m.(interface{ Finish() error }); ok {
		if err := f.Finish(); err != nil {
			return c.failAs(KindAuth, fmt.Errorf("smtp: authentication: %w", err))
		}
	}
	return nil
}

// encodeInitial writes an initial response; an equals sign stands for an empty one.
func encodeInitial(b []byte) string {
	if len(b) == 0 {
		return "="
	}
	return base64.StdEncoding.EncodeToString(b)
}

// nextAnswer asks the mechanism for the answer to the n-th challenge.
func nextAnswer(m AuthClient, challenge string, n int) ([]byte, error) {
	if n == maxChallenges {
		return nil, errors.New("too many challenges")
	}
	b, err := base64.StdEncoding.Strict().DecodeString(challenge)
	if err != nil {
		return nil, errors.New("challenge is not in base64")
	}
	return m.Next(b)
}

// cancelAuth ends the exchange because of err. RFC 4954, Section 4: the server answers 501.
func (c *Client) cancelAuth(err error) error {
	err = fmt.Errorf("smtp: authentication: %w", err)
	r, lost := c.command("*")
	switch {
	case lost != nil:
		return errors.Join(err, lost)
	case !r.Permanent():
		// It may think that we are somebody now, or still wait for an answer.
		return c.failAs(KindAuth, fmt.Errorf("%w; to the cancelling the server says %s", err, r.Line()))
	}
	return err
}
