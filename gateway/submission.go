package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"mime"
	"net/mail"
	"strings"
	"time"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// submission.go: mail of those who may relay. It leaves under our name, so that it is held to
// who sends it, and what others ask of a message is added where its author's program left it
// out (RFC 6409). Mail of strangers is never touched.
//
//	MAIL ── may this user send from here? ── header ── and call itself that? ── filters ──
//	── Date, Message-ID ── signature ── Received ──▶ kept, or handed on

// SenderRule says which addresses a user may send from.
type SenderRule uint8

// The rules. Each is for who has logged in; Trusted networks may use any address. The null
// reverse-path is anybody's, since answers of programs have it (RFC 5321, Section 4.5.5).
const (
	// SendersAny takes all.
	SendersAny SenderRule = iota
	// SendersOwn takes the user's name, if it is an address; if it is none, it takes it at any
	// domain that a route has by name, and at our own. Behind a "+" the local part may go on.
	SendersOwn
	// SendersListed takes what Submission.MaySend does.
	SendersListed
)

// Submission is what is done with the mail of clients that may relay. The zero Submission
// takes it as it is.
type Submission struct {
	// Senders says which addresses users may send from, in MAIL and in the fields From and Sender.
	Senders SenderRule
	// MaySend answers for SendersListed, required then. It is called by all sessions.
	MaySend func(user string, from smtp.Path) bool
	// Complete adds the fields Date and Message-ID where they are missing (RFC 6409, Sections
	// 8.2 and 8.3).
	Complete bool
	// Sign, if not nil, returns fields that go on top of a message: its signatures, none if
	// there is no key for the domain, which is that of the field From. The content is as it
	// will leave but for trace fields, and valid during the call. It is called by all sessions.
	Sign func(ctx context.Context, domain smtp.Domain, content smtp.Content) ([]message.Field, error)
}

func (s Submission) validate() error {
	if s.Senders == SendersListed && s.MaySend == nil {
		return errors.New("senders: there is no list of them")
	}
	return nil
}

var (
	errSender = smtp.Refuse(550, smtp.Enhanced{5, 7, 1}, "this user may not send from this address")
	errSign   = smtp.Refuse(451, smtp.Enhanced{4, 3, 0}, "message cannot be signed now, try again later")
)

// errAuthor is for an address that is another's, and errField for what would get past the rule
// otherwise.
func errAuthor(field string) *smtp.Reply {
	return smtp.Replyf(550, smtp.Enhanced{5, 7, 1}, "this user may not send with this address in the field %s", field)
}

func errField(field string) *smtp.Reply {
	return smtp.Replyf(550, smtp.Enhanced{5, 6, 0}, "the field %s is missing, stands there twice, or cannot be read", field)
}

// ruled tells whether the client is a user who may not send from everywhere.
func (s *session) ruled() bool {
	return s.l.Submission.Senders != SendersAny && s.isUser() && s.l.Relay
}

// maySend answers for a sender.
func (s *session) maySend(from smtp.Path) error {
	if !s.ruled() || from.IsNull() || s.owns(from) {
		return nil
	}
	return errSender
}

// maySign answers for the authors that a header names: MAIL is not what people see. Some mail
// readers show the Sender first, as who wrote on behalf of the others.
func (s *session) maySign(h message.Header) error {
	if !s.ruled() {
		return nil
	}
	for _, field := range []string{"From", "Sender"} {
		if field == "Sender" && h.Count(field) == 0 {
			continue
		}
		shown, err := addressesOf(h, field)
		if err != nil {
			return err
		}
		for _, a := range shown {
			if !s.owns(a) {
				return errAuthor(field)
			}
		}
	}
	return nil
}

// owns tells whether the user may use an address.
func (s *session) owns(p smtp.Path) bool {
	o := &s.l.Submission
	if o.Senders == SendersListed {
		return o.MaySend(s.facts.User, p)
	}
	local, domain, isAddress := cutLast(s.facts.User, "@")
	base, _, _ := strings.Cut(p.Local, "+")
	if !strings.EqualFold(local, base) && !strings.EqualFold(local, p.Local) {
		return false
	}
	if isAddress {
		d, err := smtp.ParseDomain(domain)
		return err == nil && d == p.Domain
	}
	return p.Domain == s.l.gw.own || s.rules.isNamed(p)
}

// isNamed tells whether the domain of an address is one that a route has by name.
func (rs *ruleSet) isNamed(p smtp.Path) bool {
	i, ok := rs.route(p, smtp.Domain{}, false)
	return ok && !rs.Routes[i].out
}

// cutLast cuts s at the last sep. Without one it is all before.
func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// addressesOf reads the addresses of a field that a message has once, such as From (RFC 5322,
// Section 3.6): at least one, though a group may have none.
func addressesOf(h message.Header, field string) ([]smtp.Path, error) {
	if h.Count(field) != 1 {
		return nil, errField(field)
	}
	// A name in a character set that is not known here is a name all the same.
	parser := mail.AddressParser{WordDecoder: &mime.WordDecoder{CharsetReader: func(_ string, in io.Reader) (io.Reader, error) { return in, nil }}}
	list, err := parser.ParseList(h.Get(field))
	if err != nil {
		return nil, errField(field).Because(err)
	}
	if len(list) == 0 {
		return nil, errField(field)
	}
	paths := make([]smtp.Path, 0, len(list))
	for _, a := range list {
		p, err := authorOf(a)
		if err != nil {
			return nil, errField(field).Because(err)
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// authorOf makes a path of an address, if all readers would show the same one. Some decode
// words in the address itself, where there are none (RFC 2047, Section 5), end what they show
// at a NUL or a line end that a decoded word has, or find an address within a quoted local part.
func authorOf(a *mail.Address) (smtp.Path, error) {
	p, err := pathOf(a.Address)
	if err != nil {
		return smtp.Path{}, err
	}
	if _, rest, ok := strings.Cut(p.Local, "=?"); ok && strings.Contains(rest, "?=") {
		return smtp.Path{}, errors.New("an encoded word stands in the address")
	}
	if strings.ContainsAny(p.Local, "<>@") {
		return smtp.Path{}, errors.New("an address stands in the address")
	}
	if strings.ContainsAny(a.Name, "\x00\r\n") {
		return smtp.Path{}, errors.New("the name has a NUL or a line end")
	}
	return p, nil
}

// pathOf makes a path of an address as package mail writes it, where the local part is not
// quoted.
func pathOf(address string) (smtp.Path, error) {
	local, domain, _ := cutLast(address, "@")
	d, err := smtp.ParseDomain(domain)
	if err != nil {
		return smtp.Path{}, err
	}
	return smtp.Path{Local: local, Domain: d}, nil
}

// submit adds what the message lacks, and its signatures.
func (tx *transaction) submit(ctx context.Context) error {
	s := tx.s
	if !s.relays() || tx.dropped {
		return nil
	}
	if s.l.Submission.Complete {
		if err := tx.complete(); err != nil {
			return err
		}
	}
	if s.l.Submission.Sign == nil {
		return nil
	}
	if h := tx.Message.Header; h.Len() > 0 {
		// A header that does not end gets its end now (any edit gives it one), as Received would
		// after the signature was made.
		tx.Message = &policy.Message{Header: h.Replace(0, h.Field(0)), Body: tx.Message.Body}
	}
	// A filter may have changed the field since it was looked at, and it is the operator's
	// to say so; what is not readable has no domain to be signed for.
	authors, err := addressesOf(tx.Message.Header, "From")
	if err != nil {
		return nil
	}
	fields, err := s.l.Submission.Sign(ctx, authors[0].Domain, tx.Message)
	if err != nil {
		return errSign.Because(err)
	}
	tx.addFields(0, fields...)
	return nil
}

// complete adds the fields that every message has.
func (tx *transaction) complete() error {
	for _, add := range []struct {
		name  string
		value func() string
	}{
		{"Date", func() string { return tx.start.Format(time.RFC1123Z) }},
		{"Message-ID", func() string { return "<" + rand.Text() + "@" + tx.s.l.gw.own.String() + ">" }},
	} {
		if tx.Message.Header.Find(add.name, 0) >= 0 {
			continue
		}
		f, err := message.NewField(add.name, add.value())
		if err != nil {
			return err
		}
		tx.addFields(tx.Message.Header.Len(), f)
	}
	return nil
}

// addFields puts fields into the header, in their order from index at on.
func (tx *transaction) addFields(at int, fields ...message.Field) {
	if len(fields) == 0 {
		return
	}
	m := policy.Message{Header: tx.Message.Header, Body: tx.Message.Body}
	for i, f := range fields {
		m.Header = m.Header.Insert(at+i, f)
	}
	tx.Message = &m
}
