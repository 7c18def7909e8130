package mx

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
)

// error.go: what went wrong on the way to the next hop.

// Category says at which step of the way something went wrong.
type Category string

// The categories.
const (
	DNS     Category = "dns"     // where mail goes is not known, or is nowhere
	Network Category = "network" // no connection
	Policy  Category = "policy"  // our rules or those of the domain (MTA-STS) forbid it
	DANE    Category = "dane"    // TLSA records that are not known or do not match
	TLS     Category = "tls"     // no TLS where it is asked for
	SMTP    Category = "smtp"    // the host's own word
)

// Error says why mail cannot go to a target, a host or an address. It is not changed once it
// is in use, and then safe for concurrent use.
type Error struct {
	Category Category
	// Reply is what a sender is told: code, enhanced code and words. If it is nil, a reply among
	// the causes is, or else 451.
	Reply *smtp.Reply
	// Target is what the mail is for. The zero Target means that it is not known here.
	Target Target
	// Host is the host that was tried, empty if it is not about one.
	Host string
	// Addr is the address that was tried; the zero Addr if it is not about one.
	Addr netip.Addr
	// Err is the cause, for our log. Nil if the Reply says all.
	Err error
}

// Error returns one line for a log.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("delivery")
	if e.Category != "" {
		b.WriteString(" (" + string(e.Category) + ")")
	}
	if t := e.Target.String(); t != "" {
		b.WriteString(": " + t)
	}
	if e.Host != "" {
		b.WriteString(": host " + e.Host)
	}
	if e.Addr.IsValid() {
		b.WriteString(": " + e.Addr.String())
	}
	if e.Reply != nil {
		b.WriteString(": " + e.Reply.Line())
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Temporary tells whether trying again later may help. When in doubt it may.
func (e *Error) Temporary() bool { return Temporary(e) }

// Timeout tells whether it took too long.
func (e *Error) Timeout() bool {
	if errors.Is(e.Err, context.DeadlineExceeded) {
		return true
	}
	t, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](e.Err)
	return ok && t.Timeout()
}

// Unwrap returns the Reply and the cause, so that smtp.ReplyOf finds the former.
func (e *Error) Unwrap() []error {
	list := make([]error, 0, 2)
	if e.Reply != nil {
		list = append(list, e.Reply)
	}
	if e.Err != nil {
		list = append(list, e.Err)
	}
	return list
}

// Temporary tells whether err may be over later: whether the sender is told a reply of 4xx. What
// has no reply is temporary, since a message that is kept too long costs less than one that
// is lost. It is false for nil.
func Temporary(err error) bool { return err != nil && !smtp.ReplyOf(err).Permanent() }
