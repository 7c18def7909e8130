package smtp

import (
	"context"
	"errors"
	"os"
	"strings"
)

// client_error.go says of a failure where in the dialogue it came, what it was, and whether a
// later try may do better.

// Phase is the part of a dialogue in which something failed. What is no phase of its own has
// the verb of its command.
type Phase string

// The phases, in the order in which a message goes through them.
const (
	PhaseResolve  Phase = "resolve"     // looking the host up
	PhaseConnect  Phase = "connect"     // TCP, and TLS where it comes with the first octet
	PhaseGreeting Phase = "greeting"    // waiting for 220
	PhaseHello    Phase = "EHLO"        // EHLO, HELO or LHLO
	PhaseStartTLS Phase = "STARTTLS"    // the command and the handshake
	PhaseAuth     Phase = "AUTH"        // the login
	PhaseMail     Phase = "MAIL"        // the sender, and what the message needs of the server
	PhaseRcpt     Phase = "RCPT"        // a recipient
	PhaseData     Phase = "DATA"        // until the server is ready for content
	PhaseContent  Phase = "content"     // while content is sent
	PhaseEnd      Phase = "end of data" // all was sent and the answer is to come
)

// Kind is what failed.
type Kind string

// The kinds of failure.
const (
	// KindRefused is a refusal of the server: Reply is what it said.
	KindRefused Kind = "refused"
	// KindUnfit is a refusal of ours, before the server was asked: it does not take what this
	// message needs, or no server could be told. Reply says why.
	KindUnfit Kind = "unfit"
	// KindTimeout is a wait that took too long: a limit of Timeouts, or a deadline.
	KindTimeout Kind = "timeout"
	// KindCanceled is a context that was cancelled.
	KindCanceled Kind = "canceled"
	// KindDNS is a host whose addresses could not be learned.
	KindDNS Kind = "dns"
	// KindConnection is a connection that could not be made, or broke.
	KindConnection Kind = "connection"
	// KindTLS is a handshake that failed, as with a certificate that does not verify.
	KindTLS Kind = "tls"
	// KindProtocol is something that no server says.
	KindProtocol Kind = "protocol"
	// KindAuth is a login that failed on our side: no mechanism suits, or the server did not
	// prove who it is.
	KindAuth Kind = "auth"
	// KindContent is content that could not be read to its end.
	KindContent Kind = "content"
)

// ClientError is a failure of [Dial] or [Client.Send], and of every other call of a Client that
// was not refused by the server, which gives a *Reply. Where there is a Reply [ReplyOf] finds
// it, too.
type ClientError struct {
	Phase Phase
	Kind  Kind
	// Reply is what the server said, or with KindUnfit what we say in its place; nil if there
	// is none.
	Reply *Reply
	// Recipient is the address that it is about; the null path if it is about the whole.
	Recipient Path
	// Err is the cause; nil if Reply says all.
	Err error
}

// Error says where and why, on one line as long as the cause does.
func (e *ClientError) Error() string {
	s := "smtp: " + string(e.Phase)
	if !e.Recipient.IsNull() {
		s += " <" + e.Recipient.String() + ">"
	}
	if e.Reply != nil && e.Err == nil {
		return s + ": " + e.Reply.Error()
	}
	if e.Err != nil {
		s += ": " + strings.TrimPrefix(e.Err.Error(), "smtp: ")
	}
	return s
}

// Unwrap returns the reply and the cause, as far as there are any.
func (e *ClientError) Unwrap() []error {
	var list []error
	if e.Reply != nil {
		list = append(list, e.Reply)
	}
	if e.Err != nil {
		list = append(list, e.Err)
	}
	return list
}

// Temporary tells whether a later try may succeed. All is temporary but a reply of 5xx: a
// connection that broke says nothing about the message.
func (e *ClientError) Temporary() bool { return e.Reply == nil || !e.Reply.Permanent() }

// Timeout tells whether it was a wait that took too long, as net.Error has it.
func (e *ClientError) Timeout() bool { return e.Kind == KindTimeout }

// Code is the reply code, 0 where there was no reply.
func (e *ClientError) Code() int {
	if e.Reply == nil {
		return 0
	}
	return e.Reply.Code
}

// Enhanced is an enhanced status code for a report: that of the reply, or what its code stands
// for if it has none, or one of RFC 3463 that tells what kind of failure it was.
func (e *ClientError) Enhanced() Enhanced {
	if e.Reply != nil && (e.Reply.Temporary() || e.Reply.Permanent()) {
		_, enh := e.Reply.normal()
		return enh
	}
	switch e.Kind {
	case KindTimeout, KindConnection:
		if e.Phase == PhaseConnect {
			return Enhanced{4, 4, 1} // no answer from host
		}
		return Enhanced{4, 4, 2} // bad connection
	case KindDNS:
		return Enhanced{4, 4, 3}
	case KindTLS:
		return Enhanced{4, 7, 5}
	case KindAuth:
		return Enhanced{4, 7, 0}
	case KindProtocol:
		return Enhanced{4, 5, 0}
	}
	return Enhanced{4, 3, 0}
}

// MayBeDelivered tells whether the server may have the message all the same: it got the end
// of it, and its answer did not come. To send again may send twice (RFC 5321, Section 4.5.4.1
// and RFC 1047).
func (e *ClientError) MayBeDelivered() bool { return e.Phase == PhaseEnd && e.Reply == nil }

// fail marks the connection as broken and returns why: err if it is a *Reply, else a
// *ClientError.
func (c *Client) fail(err error) error {
	if _, refused := err.(*Reply); refused {
		return c.breakWith(err)
	}
	return c.failAs(c.kindOf(err), err)
}

// failAs is fail where the kind is known.
func (c *Client) failAs(kind Kind, err error) error {
	if _, typed := errors.AsType[*ClientError](err); !typed {
		err = &ClientError{Phase: c.phase, Kind: kind, Err: err}
	}
	return c.breakWith(err)
}

func (c *Client) breakWith(err error) error {
	if c.broken == nil {
		c.broken = err
	}
	return err
}

// kindOf tells what kind of failure err of a read or a write is.
func (c *Client) kindOf(err error) Kind {
	if ctx := c.wire.ctx; ctx != nil && errors.Is(ctx.Err(), context.Canceled) {
		return KindCanceled
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), c.wire.ended() != nil:
		return KindTimeout
	case errors.Is(err, errLineTooLong), errors.Is(err, errLineEnd), errors.Is(err, errEndless):
		return KindProtocol
	}
	return KindConnection
}

// refusal returns r as an error. One that is positive, but not what the protocol asks for
// here, breaks the connection: the two sides do not agree any more on where they are.
func (c *Client) refusal(r *Reply) error {
	if r.Positive() {
		return c.failAs(KindProtocol, errors.New("smtp: unexpected reply: "+r.Line()))
	}
	return r
}

// typed makes a *ClientError of whatever a call returned.
func (c *Client) typed(err error) *ClientError {
	if errors.Is(err, errBroken) {
		return &ClientError{Phase: c.phase, Kind: KindConnection, Err: err} // of an earlier call
	}
	if e, ok := errors.AsType[*ClientError](err); ok {
		return e
	}
	if r, ok := err.(*Reply); ok {
		return &ClientError{Phase: c.phase, Kind: KindRefused, Reply: r}
	}
	e := &ClientError{Phase: c.phase, Kind: c.kindOf(err), Err: err}
	if r, ok := errors.AsType[*Reply](err); ok {
		e.Kind, e.Reply = KindRefused, r
	}
	return e
}

// unfit is a refusal of ours.
func unfit(phase Phase, r *Reply) *ClientError {
	return &ClientError{Phase: phase, Kind: KindUnfit, Reply: r}
}
