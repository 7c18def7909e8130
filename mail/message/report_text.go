package message

import (
	"mime"
	"strings"

	"github.com/penstock/penstock/mail/smtp"
)

// report_text.go writes the part of a report that is for people: what happened, to which
// addresses, why, and what the sender can do.

// textPart returns the part.
func (r Report) textPart(orig original, returned part, global bool) part {
	text := []byte(r.text(orig, returned))
	p := part{typ: "text/plain; charset=utf-8", about: "What happened", encoding: unencoded(text), body: text}
	if p.encoding == "8bit" && !global {
		p.encoding, p.body = "quoted-printable", quoted(text)
	}
	return p
}

// subject returns what the report is about, by the worst that it tells.
func (r Report) subject() string {
	switch {
	case r.has(ActionFailed):
		return "Your message could not be delivered"
	case r.has(ActionDelayed):
		return "Your message is delayed"
	case r.has(ActionRelayed), r.has(ActionExpanded):
		return "Your message was passed on"
	}
	return "Your message was delivered"
}

// sections are what there is to tell of each action, the worst first.
var sections = [...]struct {
	action    Action
	one, many string
}{
	{ActionFailed, "It could NOT be delivered to this address, and will not be tried again:",
		"It could NOT be delivered to these addresses, and will not be tried again:"},
	{ActionDelayed, "It is not delivered yet to this address. We go on trying; you need not send it again:",
		"It is not delivered yet to these addresses. We go on trying; you need not send it again:"},
	{ActionRelayed, "It was passed on for this address, to a system that sends no confirmations. You will hear of it again only if it fails:",
		"It was passed on for these addresses, to a system that sends no confirmations. You will hear of it again only if it fails:"},
	{ActionExpanded, "It was passed on to all members of this list. There will be no confirmation from each of them:",
		"It was passed on to all members of these lists. There will be no confirmation from each of them:"},
	{ActionDelivered, "It was delivered to this address:", "It was delivered to these addresses:"},
}

func (r Report) text(orig original, returned part) string {
	var p prose
	p.para(0, "This is the mail system at "+r.Reporting.Unicode()+".")
	about := "This is about a message that you sent"
	if subject := readable(orig.subj); subject != "" {
		about += `, with the subject "` + subject + `"`
	}
	if !r.Arrived.IsZero() {
		about += ". It came here on " + r.Arrived.Format(dateFormat)
	}
	p.para(0, about+".")
	for _, s := range sections {
		var told []ReportRecipient
		for _, rcpt := range r.Recipients {
			if rcpt.Action == s.action {
				told = append(told, rcpt)
			}
		}
		if len(told) > 1 {
			p.para(0, s.many)
		} else if len(told) == 1 {
			p.para(0, s.one)
		}
		for _, rcpt := range told {
			p.recipient(rcpt)
		}
	}
	p.para(0, r.closing(returned))
	return p.String()
}

// closing tells where to turn to, and what follows.
func (r Report) closing(returned part) string {
	s := "If you need help, write to " + readablePath(r.From)
	if r.LogID != "" {
		s += " and mention " + r.LogID
	}
	s += "."
	if r.Original != nil {
		s += " " + returned.about + " is attached."
	}
	return s
}

// prose is text that is wrapped.
type prose struct{ strings.Builder }

// Measures of the text, in octets and lines.
const (
	proseWidth   = 72
	proseIndent  = 4
	maxSaidLines = 20
)

// recipient tells about one.
func (p *prose) recipient(rcpt ReportRecipient) {
	name := readablePath(rcpt.Final)
	p.line(proseIndent, name)
	if o := unembed(rcpt.Original.Address); o != "" && !strings.EqualFold(o, rcpt.Final.String()) && o != name {
		p.line(2*proseIndent, "You wrote to "+clip(o, maxSubject)+".")
	}
	if rcpt.Action == ActionFailed || rcpt.Action == ActionDelayed {
		a := adviceFor(rcpt.status())
		p.line(2*proseIndent, a.why)
		if rcpt.Action == ActionFailed && (a.what != whatBelow || rcpt.Diagnostic != nil) {
			p.line(2*proseIndent, a.what)
		}
		p.said(rcpt)
	}
	if rcpt.Action == ActionDelayed && !rcpt.WillRetryUntil.IsZero() {
		p.line(2*proseIndent, "We give up on "+rcpt.WillRetryUntil.Format(dateFormat)+", and would tell you.")
	}
	p.WriteString("\r\n")
}

// said repeats what the next hop said, line by line.
func (p *prose) said(rcpt ReportRecipient) {
	d := rcpt.Diagnostic
	if d == nil {
		return
	}
	who := "In the words of this system:"
	if host := clean(rcpt.RemoteMTA); host != "" {
		who = "In the words of " + clip(host, maxSubject) + ":"
	}
	p.line(2*proseIndent, who)
	first := smtp.Reply{Code: d.Code, Enh: d.Enh}
	prefix := first.Line() + " "
	n := 0
	for line := range strings.SplitSeq(clip(d.Text, maxDiagnostic), "\n") {
		if n++; n > maxSaidLines {
			break
		}
		p.line(3*proseIndent, prefix+line)
		prefix = ""
	}
}

// para writes a paragraph and an empty line.
func (p *prose) para(indent int, s string) {
	p.line(indent, s)
	p.WriteString("\r\n")
}

// line writes s, cleaned and wrapped at its spaces. A word that is longer, such as an
// address of the web, stays in one piece as long as a line may be.
func (p *prose) line(indent int, s string) {
	at := 0
	for word := range strings.SplitSeq(cutWords(clean(s)), " ") {
		switch {
		case word == "":
			continue
		case at > 0 && at+1+len(word) > proseWidth:
			p.WriteString("\r\n")
			at = 0
			fallthrough
		case at == 0:
			p.WriteString(strings.Repeat(" ", indent))
			at = indent
		default:
			p.WriteByte(' ')
			at++
		}
		p.WriteString(word)
		at += len(word)
	}
	if at > 0 {
		p.WriteString("\r\n")
	}
}

// maxSubject is how much of a subject is repeated.
const maxSubject = 200

// readable returns a text of a header for people. What cannot be decoded stays as it is.
func readable(s string) string {
	if len(s) > 8*maxSubject {
		s = s[:8*maxSubject]
	}
	if text, err := new(mime.WordDecoder).DecodeHeader(s); err == nil {
		s = text
	}
	return clip(clean(s), maxSubject)
}

// readablePath returns an address with the characters that its domain is meant to have.
func readablePath(p smtp.Path) string {
	return strings.TrimSuffix(p.String(), p.Domain.String()) + p.Domain.Unicode()
}

// advice is what an enhanced code means to a sender.
type advice struct {
	subject, detail int // -1 is any
	why, what       string
}

const (
	whatSpelling = "Please check how the address is spelled, or ask the recipient for the right one."
	whatLater    = "Please try again later, or reach the recipient in another way."
	whatBelow    = "What was said below may tell more."
	whatAdmin    = "Please show this report to whoever looks after your mail."
)

// advices go from the particular to the general; the last fits all. RFC 3463, and the
// registry that RFC 5248 began.
var advices = [...]advice{
	{1, 1, "There is no such mailbox.", whatSpelling},
	{1, 2, "The domain of the address does not exist, or has no mail system.", whatSpelling},
	{1, 3, "The address is not one that can get mail.", whatSpelling},
	{1, 6, "The mailbox has moved.", "Please ask the recipient for the new address."},
	{1, 7, "The address of the sender was not accepted.", whatAdmin},
	{1, 8, "The domain of the sender was not accepted.", whatAdmin},
	{1, 10, "The domain of the address takes no mail.", whatSpelling},
	{1, -1, "The address was not accepted.", whatSpelling},
	{2, 1, "The mailbox is closed.", "Please reach the recipient in another way."},
	{2, 2, "The mailbox is full.", "Please send the message again when the recipient has made room."},
	{2, 3, "The message is too large for the mailbox.", "Please send it in smaller parts, or send a link to it."},
	{2, -1, "The mailbox does not take the message at present.", whatLater},
	{3, 4, "The message is too large for the recipient's mail system.", "Please send it in smaller parts, or send a link to it."},
	{3, -1, "The recipient's mail system has trouble.", whatLater},
	{4, 7, "The recipient's mail system did not take the message in time.", whatLater},
	{4, -1, "The recipient's mail system could not be reached.", whatLater},
	{5, 3, "The message has more recipients than are taken at once.", "Please send it to fewer recipients at a time."},
	{5, -1, "The mail systems did not understand each other.", whatAdmin},
	{6, 7, "The recipient's mail system cannot handle addresses with such characters.", "Please ask the recipient for an address of plain letters."},
	{6, -1, "The recipient's mail system cannot handle the form of the message.", "Please send it in a plainer form."},
	{7, 10, "The message must travel encrypted, and could not.", whatAdmin},
	{7, 30, "The message must travel encrypted, and could not.", "Please send it without asking for that, if you can, or reach the recipient in another way."},
	{7, 20, notAuthentic, whatAdmin},
	{7, 21, notAuthentic, whatAdmin},
	{7, 22, notAuthentic, whatAdmin},
	{7, 23, notAuthentic, whatAdmin},
	{7, 24, notAuthentic, whatAdmin},
	{7, 25, notAuthentic, whatAdmin},
	{7, 26, notAuthentic, whatAdmin},
	{7, -1, "The recipient's mail system refused the message by its rules.", "If you think that it is wrong, please reach the recipient in another way."},
	{-1, -1, "The message was not taken.", whatBelow},
}

const notAuthentic = "It could not be proved that the message comes from you."

// adviceFor returns what there is to say about a code.
func adviceFor(s smtp.Enhanced) advice {
	for _, a := range advices {
		if (a.subject == s[1] || a.subject < 0) && (a.detail == s[2] || a.detail < 0) {
			return a
		}
	}
	return advice{}
}
