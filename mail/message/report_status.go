package message

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/penstock/penstock/mail/smtp"
)

// report_status.go writes the part of a report that is for programs: fields about the
// message, and a block of fields about each recipient (RFC 3464, Section 2).

// statusPart returns the part. It is not encoded: RFC 3464, Section 2.1.
func (r Report) statusPart(global bool) part {
	var b []byte
	if r.EnvID != "" {
		b = appendText(b, "Original-Envelope-Id", r.EnvID, global)
	}
	b = appendText(b, "Reporting-MTA", "dns; "+r.Reporting.String(), global)
	if !r.Arrived.IsZero() {
		b = appendText(b, "Arrival-Date", r.Arrived.Format(dateFormat), global)
	}
	for _, rcpt := range r.Recipients {
		b = rcpt.append(append(b, "\r\n"...), global)
		if r.LogID != "" {
			b = appendText(b, "Final-Log-ID", r.LogID, global)
		}
	}
	p := part{typ: "message/delivery-status", about: "What programs read of this report", encoding: unencoded(b), body: b}
	if global {
		p.typ = "message/global-delivery-status"
	}
	return p
}

// append writes the block of a recipient.
func (rcpt ReportRecipient) append(b []byte, global bool) []byte {
	if !rcpt.Original.IsZero() {
		b = appendText(b, "Original-Recipient", originalField(rcpt.Original, global), global)
	}
	b = appendText(b, "Final-Recipient", finalField(rcpt.Final, global), global)
	b = appendText(b, "Action", rcpt.Action.String(), global)
	b = appendText(b, "Status", rcpt.status().String(), global)
	if rcpt.RemoteMTA != "" {
		b = appendText(b, "Remote-MTA", "dns; "+rcpt.RemoteMTA, global)
	}
	if rcpt.Diagnostic != nil {
		b = appendText(b, "Diagnostic-Code", "smtp; "+diagnostic(rcpt.Diagnostic), global)
	}
	if !rcpt.LastAttempt.IsZero() {
		b = appendText(b, "Last-Attempt-Date", rcpt.LastAttempt.Format(dateFormat), global)
	}
	if rcpt.Action == ActionDelayed && !rcpt.WillRetryUntil.IsZero() {
		b = appendText(b, "Will-Retry-Until", rcpt.WillRetryUntil.Format(dateFormat), global)
	}
	return b
}

// needsUTF8 tells whether one of the addresses is not ASCII, as it is meant.
func (rcpt ReportRecipient) needsUTF8() bool {
	return rcpt.Final.NeedsUTF8() || rcpt.Original.Type == utf8Type
}

// status returns the code, of a class that fits the action: what failed for good did so
// with 5, or with 4 where time ran out.
func (rcpt ReportRecipient) status() smtp.Enhanced {
	classes := []int{2}
	switch rcpt.Action {
	case ActionFailed:
		classes = []int{5, 4}
	case ActionDelayed:
		classes = []int{4}
	}
	tries := []smtp.Enhanced{rcpt.Status}
	if d := rcpt.Diagnostic; d != nil {
		tries = append(tries, d.Enh, smtp.Enhanced{d.Code / 100, 0, 0})
	}
	for _, s := range tries {
		for _, class := range classes {
			if s[0] == class && 0 <= s[1] && s[1] <= 999 && 0 <= s[2] && s[2] <= 999 {
				return s
			}
		}
	}
	return smtp.Enhanced{classes[0], 0, 0}
}

// diagnostic returns a reply on one line.
func diagnostic(d *smtp.Reply) string {
	s := strconv.Itoa(d.Code)
	if d.Enh != (smtp.Enhanced{}) {
		s += " " + d.Enh.String()
	}
	if d.Text != "" {
		s += " " + d.Text
	}
	return clip(clean(s), maxDiagnostic)
}

// maxDiagnostic is how much of a reply is repeated, in octets.
const maxDiagnostic = 2 << 10

// utf8Type is the kind of address of RFC 6533, Section 3.
const utf8Type = "utf-8"

// finalField returns the address that was tried, with its type.
func finalField(p smtp.Path, global bool) string {
	if !p.NeedsUTF8() {
		return "rfc822; " + p.String()
	}
	if global {
		return utf8Type + "; " + p.String()
	}
	return utf8Type + "; " + embedUnicode(p.String(), true)
}

// originalField returns the address that the sender wrote. One of type utf-8 is spelled as
// the client spelled it, as far as that goes.
func originalField(o smtp.OriginalRecipient, global bool) string {
	address := o.Address
	if !global {
		address = embedUnicode(address, false)
	}
	return o.Type + "; " + address
}

// embedUnicode spells s in printable ASCII: what is beyond it becomes \x{...}, and with
// whole so does what must not stand for itself in that spelling. RFC 6533, Section 3
// (utf-8-addr-xtext).
func embedUnicode(s string, whole bool) string {
	var b strings.Builder
	for _, r := range clean(s) {
		if r > '~' || whole && strings.ContainsRune(`\+= `, r) {
			fmt.Fprintf(&b, `\x{%02X}`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// unembed returns what embedUnicode spelled, for people.
func unembed(s string) string {
	var b strings.Builder
	for s != "" {
		text, rest, found := strings.Cut(s, `\x{`)
		b.WriteString(text)
		if !found {
			break
		}
		hex, after, closed := strings.Cut(rest, "}")
		n, err := strconv.ParseUint(hex, 16, 32)
		if !closed || err != nil || n > utf8.MaxRune {
			b.WriteString(`\x{`)
			s = rest
			continue
		}
		b.WriteRune(rune(n))
		s = after
	}
	return clean(b.String())
}

// appendText appends a field of a text that may be a stranger's. Whatever it holds, it
// makes one field of lines that are not too long: control characters become spaces, a word
// that fits no line is cut up, and what is beyond ASCII becomes encoded words unless the
// field may be in UTF-8.
func appendText(b []byte, name, text string, global bool) []byte {
	text = strings.Trim(clip(clean(text), maxValue/8), " ")
	if !isASCII(text) && !global {
		text = encodeWords(text, len(name)+len(": "))
	}
	field := append([]byte(name), ':')
	field, err := appendFolded(field, cutWords(text))
	if err != nil { // it cannot be: no word and no white space is that long
		field = append([]byte(name), ':')
	}
	return append(append(b, field...), '\r', '\n')
}

// Limits of what is not cut up, in octets.
const (
	maxWhole = 900
	maxSpace = 64
)

// cutWords breaks up words that are too long for a line, and shortens white space that is.
func cutWords(s string) string {
	var b strings.Builder
	word, space := 0, 0
	for _, r := range s {
		if r == ' ' {
			word = 0
			if space++; space > maxSpace {
				continue
			}
		} else {
			space = 0
			if word > maxWhole-utf8.UTFMax {
				b.WriteByte(' ')
				word = 0
			}
			word += utf8.RuneLen(r)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// clean returns s as one line of valid UTF-8: a space stands for each character that nobody
// sees or that acts on others.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || unseen(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

// unseen: controls, line ends of Unicode, marks and overrides of the direction.
func unseen(r rune) bool {
	switch {
	case 0x7f <= r && r < 0xa0, r == 0xad, r == 0x200b, r == 0x200e, r == 0x200f, r == 0xfeff,
		0x2028 <= r && r <= 0x202e, 0x2060 <= r && r <= 0x206f, 0xfff9 <= r && r <= 0xfffb,
		0xe0000 <= r && r <= 0xe007f:
		return true
	}
	return false
}

// clip shortens s to n octets, at a character.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + " ..."
}
