package message

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/penstock/penstock/mail/smtp"
)

// report.go makes delivery status notifications: the message that tells a sender what
// became of another message. It has three parts (RFC 6522): a text for people
// (report_text.go), fields for programs (RFC 3464, report_status.go), and what is returned
// of the original.
//
// Nearly all that a report tells was written by strangers: addresses, replies of servers,
// the original. So each part is made of cleaned text, and the boundary between the parts
// depends on a digest of them, which nobody can write into one of them.

// Action is what became of a recipient. RFC 3464, Section 2.3.3.
type Action uint8

// The actions. Delivered is final: into the mailbox. Relayed went on to a system that does
// not report, Expanded to the members of a list.
const (
	ActionFailed Action = iota
	ActionDelayed
	ActionDelivered
	ActionRelayed
	ActionExpanded
)

var actionWords = [...]string{"failed", "delayed", "delivered", "relayed", "expanded"}

// String returns the word of RFC 3464.
func (a Action) String() string {
	if int(a) < len(actionWords) {
		return actionWords[a]
	}
	return "unknown"
}

// Wants tells whether the sender of a message wants a report of event, one of
// NotifySuccess, NotifyFailure and NotifyDelay, about a recipient with the wish n. A sender
// who did not say wants to know of failure and delay (RFC 3461, Section 4.1). Nobody is
// told about a message with the null reverse-path, which is a report itself (RFC 5321,
// Section 4.5.5).
func Wants(from smtp.Path, n, event smtp.Notify) bool {
	if from.IsNull() {
		return false
	}
	if n == 0 {
		n = smtp.NotifyFailure | smtp.NotifyDelay
	}
	return !n.Has(smtp.NotifyNever) && n.Has(event)
}

// Defaults and limits of a report, in octets.
const (
	defaultReturned   = 100 << 10
	maxReturnedHeader = 64 << 10
)

// Report is a delivery status notification before it is written. It is a value; nothing of
// it is changed.
type Report struct {
	// Reporting is our name. Required.
	Reporting smtp.Domain
	// From is who reports; zero is postmaster at Reporting. Name is shown beside it, default
	// "Mail Delivery System".
	From smtp.Path
	Name string
	// To is the sender of the message, who gets the report. It must not be null.
	To smtp.Path
	// UTF8 tells that the message came with SMTPUTF8, so that its sender can read a report
	// with addresses in UTF-8. Without it they are spelled in ASCII (RFC 6533, Section 3),
	// unless that of To itself is one.
	UTF8 bool
	// RequireTLS tells that the message came with REQUIRETLS: its content is not returned,
	// whatever Return says, and the report asks for the same (RFC 8689, Section 5).
	RequireTLS bool
	// EnvID is what MAIL said, empty if nothing.
	EnvID string
	// LogID is our name for the message, by which its traces are found in our log. Empty is
	// none.
	LogID string
	// Arrived is when the message came, Now is when the report is made. A zero Arrived is not
	// told; Now is required.
	Arrived, Now time.Time
	// MessageID is the report's own, without brackets; empty makes one up.
	MessageID string
	// Return is what MAIL said. The content is returned for ReturnFull alone, if a recipient
	// failed, if it is text of lines (no BINARYMIME), and if it is not longer than
	// MaxReturned, default 100 KiB. All other reports have the header of the message. RFC
	// 3461, Section 4.3 and 5.2.
	Return      smtp.Return
	MaxReturned int64
	// Original is the message; nil returns nothing of it.
	Original smtp.Content
	// Recipients are those that the report is about, at least one.
	Recipients []ReportRecipient
}

// ReportRecipient is what a report tells about one recipient.
type ReportRecipient struct {
	// Original is what RCPT said, zero if nothing.
	Original smtp.OriginalRecipient
	// Final is the address that we tried.
	Final smtp.Path
	// Action is what became of it.
	Action Action
	// Status is the enhanced code. If it is zero, or its class is impossible for Action, that
	// of Diagnostic or the least specific one stands for it.
	Status smtp.Enhanced
	// Diagnostic is what the next hop said, or what went wrong in the words of a reply; nil is
	// not known.
	Diagnostic *smtp.Reply
	// RemoteMTA is the name of the host that said it; empty if nobody was reached.
	RemoteMTA string
	// LastAttempt is when it was tried last; zero if never.
	LastAttempt time.Time
	// WillRetryUntil is when a delayed recipient is given up; zero if not known.
	WillRetryUntil time.Time
}

// ErrReport is behind the error of a Report that lacks what is required.
var ErrReport = errors.New("message: not a report")

// Message returns the report: what MAIL is to say, and the content, in lines of at most 998
// octets that end with CRLF. The Sender has the null reverse-path; its Body, UTF8 and
// RequireTLS are what the content needs of the next hop. Without UTF8, and with a Return
// other than ReturnFull, it needs nothing, unless To is in UTF-8. The recipient is to be
// sent with NotifyNever (RFC 3461, Section 6.1).
//
// The error is ErrReport if something required is missing, or that of Original; the same
// report without Original can be made then.
func (r Report) Message() (smtp.Sender, []byte, error) {
	if err := r.check(); err != nil {
		return smtp.Sender{}, nil, err
	}
	r = r.withDefaults()
	orig, err := r.read()
	if err != nil {
		return smtp.Sender{}, nil, fmt.Errorf("message: read what the report is about: %w", err)
	}
	global := r.global(orig)
	returned := orig.part(global)
	parts := []part{r.textPart(orig, returned, global), r.statusPart(global)}
	if r.Original != nil {
		parts = append(parts, returned)
	}
	content := r.assemble(parts, orig, global)
	from := smtp.Sender{Size: int64(len(content)), Body: smtp.BodySevenBit, UTF8: global, RequireTLS: r.RequireTLS}
	if !isASCII(string(content)) {
		from.Body = smtp.BodyEightBit
	}
	return from, content, nil
}

func (r Report) check() error {
	var missing []string
	if r.Reporting.IsZero() {
		missing = append(missing, "our name")
	}
	if r.To.IsNull() {
		missing = append(missing, "the sender of the message")
	}
	if r.Now.IsZero() {
		missing = append(missing, "the time")
	}
	if len(r.Recipients) == 0 {
		missing = append(missing, "a recipient")
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: it lacks %s", ErrReport, strings.Join(missing, ", "))
	}
	return nil
}

func (r Report) withDefaults() Report {
	if r.From.IsNull() {
		r.From = smtp.Path{Local: "postmaster", Domain: r.Reporting}
	}
	if r.Name == "" {
		r.Name = "Mail Delivery System"
	}
	if r.MessageID == "" {
		r.MessageID = rand.Text() + "@" + r.Reporting.String()
	}
	if r.MaxReturned == 0 {
		r.MaxReturned = defaultReturned
	}
	return r
}

// global tells whether the report is in UTF-8 where it must be ASCII otherwise. RFC 6533,
// Section 4: that is for readers who can take it, or for whom there is no other way.
func (r Report) global(orig original) bool {
	if r.To.NeedsUTF8() || r.From.NeedsUTF8() {
		return true
	}
	return r.UTF8 && (!isASCII(string(orig.header)) || slices.ContainsFunc(r.Recipients, ReportRecipient.needsUTF8))
}

// has tells whether the report is about a recipient with that action.
func (r Report) has(a Action) bool {
	return slices.ContainsFunc(r.Recipients, func(rcpt ReportRecipient) bool { return rcpt.Action == a })
}

// original is what is known of the message that a report is about.
type original struct {
	header []byte // in lines that end with CRLF
	subj   string
	id     string
	whole  []byte // nil if the header alone is returned
}

// read reads as much of the message as the report needs.
func (r Report) read() (original, error) {
	if r.Original == nil {
		return original{}, nil
	}
	full := r.Return == smtp.ReturnFull && !r.RequireTLS && r.has(ActionFailed) && r.Original.Size() <= r.MaxReturned
	limit := int64(maxReturnedHeader)
	if full {
		limit = max(limit, r.MaxReturned)
	}
	buf := cappedBuffer{left: limit}
	if _, err := r.Original.WriteTo(&buf); err != nil && !errors.Is(err, errCapped) {
		return original{}, err
	}
	n, _ := End(buf.b)
	h, _ := Parse(buf.b[:n])
	orig := original{header: headerLines(h), subj: h.Get("Subject"), id: messageID(h.Get("Message-ID"))}
	if full && !buf.cut && isText(buf.b) {
		orig.whole = buf.b
	}
	return orig, nil
}

// errCapped ends the writing of a message of which there is enough.
var errCapped = errors.New("message: enough")

// cappedBuffer keeps the first octets that are written to it.
type cappedBuffer struct {
	b    []byte
	left int64
	cut  bool
}

// Write keeps what there is room for.
func (c *cappedBuffer) Write(p []byte) (int, error) {
	n := int(min(int64(len(p)), c.left))
	c.b = append(c.b, p[:n]...)
	c.left -= int64(n)
	if n < len(p) {
		c.cut = true
		return n, errCapped
	}
	return n, nil
}

var _ io.Writer = (*cappedBuffer)(nil)

// headerLines returns the fields of h in lines that end with CRLF, those left out that are
// too large to return.
func headerLines(h Header) []byte {
	var b []byte
	for i := range h.Len() {
		f := h.Field(i)
		if len(b)+len(f.Raw()) > maxReturnedHeader {
			continue
		}
		for line := range bytes.Lines(f.Raw()) {
			line = bytes.TrimRight(line, "\r\n")
			b = append(b, bytes.ReplaceAll(line, []byte("\r"), []byte(" "))...)
			b = append(b, '\r', '\n')
		}
	}
	return b
}

// messageID returns s if it can stand in a References field: one name in brackets.
func messageID(s string) string {
	inner, ok1 := strings.CutPrefix(s, "<")
	inner, ok2 := strings.CutSuffix(inner, ">")
	if !ok1 || !ok2 || len(s) > 900 || !strings.Contains(inner, "@") || strings.ContainsAny(inner, "<>()\"\\,;: ") {
		return ""
	}
	for i := range len(inner) {
		if inner[i] <= ' ' || inner[i] >= 0x7f {
			return ""
		}
	}
	return s
}

// isText tells whether b can be sent with DATA as it is: lines of at most 998 octets that
// end with CRLF, without NUL (RFC 2045, Section 2.8).
func isText(b []byte) bool {
	for line := range bytes.Lines(b) {
		text, ok := bytes.CutSuffix(line, []byte("\r\n"))
		if !ok && bytes.HasSuffix(line, []byte("\n")) || len(text) > maxLine || bytes.ContainsAny(text, "\r\x00") {
			return false
		}
	}
	return true
}

// part returns what is sent back. A message in a message may not be encoded (RFC 2046,
// Section 5.2.1), so what does not fit the report unencoded is left out; a header alone may
// (RFC 6522, Section 4). A header in UTF-8 goes by the names of RFC 6533, Section 6, where
// the reader knows them.
func (o original) part(global bool) part {
	ascii := isASCII(string(o.header))
	plain := ascii || global && utf8.Valid(o.header)
	switch {
	case o.whole != nil && plain:
		typ := "message/rfc822"
		if !ascii {
			typ = "message/global"
		}
		return part{typ: typ, about: wholeOf, encoding: unencoded(o.whole), body: o.whole}
	case plain && isText(o.header):
		if !ascii {
			return part{typ: "message/global-headers", about: headersOf, encoding: "8bit", body: o.header}
		}
		return part{typ: "text/rfc822-headers", about: headersOf, encoding: "7bit", body: o.header}
	}
	typ := "text/rfc822-headers"
	if utf8.Valid(o.header) {
		typ += "; charset=utf-8"
	}
	return part{typ: typ, about: headersOf, encoding: "quoted-printable", body: quoted(o.header)}
}

// What is returned.
const (
	wholeOf   = "Your message"
	headersOf = "The header of your message"
)

// unencoded returns the encoding of b as it is.
func unencoded(b []byte) string {
	if isASCII(string(b)) {
		return "7bit"
	}
	return "8bit"
}

// quoted returns text of lines as quoted-printable (RFC 2045, Section 6.7).
func quoted(b []byte) []byte {
	var out bytes.Buffer
	w := quotedprintable.NewWriter(&out)
	w.Write(b) // a bytes.Buffer takes everything
	w.Close()
	return out.Bytes()
}

// part is a part of the report.
type part struct {
	typ, about, encoding string
	body                 []byte
}

// assemble writes the header of the report and its parts.
func (r Report) assemble(parts []part, orig original, global bool) []byte {
	size := 4 << 10
	for _, p := range parts {
		size += len(p.body)
	}
	boundary := boundaryOf(parts)
	b := r.appendHeader(make([]byte, 0, size), orig.id, global)
	b = append(b, "MIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\""...)
	b = append(append(b, boundary...), "\"\r\n"...)
	b = appendEncoding(b, encodingOf(parts))
	b = append(b, "\r\nThis is a report about a message, in parts of MIME.\r\n"...)
	for _, p := range parts {
		b = append(append(append(b, "\r\n--"...), boundary...), "\r\nContent-Type: "...)
		b = append(append(b, p.typ...), "\r\nContent-Description: "...)
		b = append(append(b, p.about...), "\r\n"...)
		b = appendEncoding(b, p.encoding)
		b = append(append(b, "\r\n"...), p.body...)
	}
	return append(append(append(b, "\r\n--"...), boundary...), "--\r\n"...)
}

// appendEncoding names an encoding that is not the default.
func appendEncoding(b []byte, encoding string) []byte {
	if encoding == "7bit" {
		return b
	}
	return append(append(append(b, "Content-Transfer-Encoding: "...), encoding...), "\r\n"...)
}

// encodingOf returns the encoding of the whole: no part may have more than it says (RFC
// 2045, Section 6.4).
func encodingOf(parts []part) string {
	for _, p := range parts {
		if p.encoding == "8bit" {
			return "8bit"
		}
	}
	return "7bit"
}

// boundaryOf returns a boundary that is in none of the parts. The digest makes it
// impossible in practice, the look makes it certain.
func boundaryOf(parts []part) string {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p.body)
	}
	for {
		sum := h.Sum(nil)
		boundary := "=_" + hex.EncodeToString(sum[:16])
		if !slices.ContainsFunc(parts, func(p part) bool { return bytes.Contains(p.body, []byte(boundary)) }) {
			return boundary
		}
		h.Write(sum)
	}
}

// appendHeader writes the fields of RFC 5322. RFC 3834, Section 5: what is said by itself
// says so, and nobody answers it by itself. about is the message's identifier, if it has
// one that is whole: mail programs show the report beside it.
func (r Report) appendHeader(b []byte, about string, global bool) []byte {
	b = appendText(b, "From", phrase(r.Name, global)+" <"+r.From.String()+">", global)
	b = appendText(b, "To", "<"+r.To.String()+">", global)
	b = appendText(b, "Subject", r.subject(), global)
	b = appendText(b, "Date", r.Now.Format(dateFormat), global)
	b = appendText(b, "Message-ID", "<"+r.MessageID+">", global)
	if about != "" {
		b = appendText(b, "References", about, global)
	}
	return append(b, "Auto-Submitted: auto-replied\r\n"...)
}

// dateFormat is that of RFC 5322, Section 3.3.
const dateFormat = "Mon, 02 Jan 2006 15:04:05 -0700"

// phrase spells a name that stands before an address.
func phrase(name string, global bool) string {
	name = clean(name)
	if !isASCII(name) && !global {
		return string(appendEncoded(nil, name, len("From: ")))
	}
	for i := range len(name) {
		if !isPlain(rune(name[i])) && name[i] != ' ' {
			return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `"`
		}
	}
	return name
}
