package smtp

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// reply.go: what one side answers the other, and how errors become answers.

// Enhanced is an enhanced status code: class, subject, detail (RFC 3463). The zero
// value means that none was chosen; the code's own default is sent then.
type Enhanced [3]int

// String returns "5.1.1", or the empty string for the zero value.
func (e Enhanced) String() string {
	if e == (Enhanced{}) {
		return ""
	}
	return string(e.append(nil))
}

func (e Enhanced) append(b []byte) []byte {
	b = strconv.AppendInt(b, int64(e[0]), 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(e[1]), 10)
	b = append(b, '.')
	return strconv.AppendInt(b, int64(e[2]), 10)
}

// Reply is what we tell the peer, or what it told us. As an error it also carries
// the cause, which goes to our log and never to the peer. A Reply is not changed
// once it is in use and then safe for concurrent use.
type Reply struct {
	// Code is the reply code (RFC 5321, Section 4.2). Outside 200 to 599 it is sent
	// as 451, since an answer without a meaning must not cost mail.
	Code int
	// Enh is the enhanced code; zero, or one whose class contradicts Code, is
	// replaced by the default of Code when it is sent (RFC 2034, Section 4).
	Enh Enhanced
	// Text is for people. "\n" separates the lines of a multi-line reply; other
	// control characters are sent as spaces, so that no text of a stranger can make
	// a reply of its own.
	Text string
	// Hangup makes the server close the connection behind the reply. A 421 does so
	// anyway.
	Hangup bool
	// Cause is for our log.
	Cause error
}

// Refuse returns a reply that is used as an error.
func Refuse(code int, enh Enhanced, text string) *Reply {
	return &Reply{Code: code, Enh: enh, Text: text}
}

// Because returns a copy of r whose cause is err.
func (r *Reply) Because(err error) *Reply {
	c := *r
	c.Cause = err
	return &c
}

// Error returns the reply on one line, with its cause.
func (r *Reply) Error() string {
	s := r.Line()
	if r.Cause != nil {
		s += " (" + r.Cause.Error() + ")"
	}
	return s
}

// Line returns code, enhanced code and text on one line without control characters,
// as for a log or a table.
func (r *Reply) Line() string {
	s := strconv.Itoa(r.Code)
	if r.Enh != (Enhanced{}) {
		s += " " + r.Enh.String()
	}
	if r.Text != "" {
		s += " " + strings.Map(visible, strings.ReplaceAll(r.Text, "\n", " / "))
	}
	return s
}

// visible makes a space of a control character.
func visible(r rune) rune {
	if r < ' ' || 0x7f <= r && r < 0xa0 {
		return ' '
	}
	return r
}

// Unwrap returns the cause.
func (r *Reply) Unwrap() error { return r.Cause }

// Positive tells whether the peer accepted: 2xx or 3xx.
func (r *Reply) Positive() bool { return r.Code >= 200 && r.Code < 400 }

// Temporary tells whether a later try may succeed: 4xx (RFC 5321, Section 4.2.1).
func (r *Reply) Temporary() bool { return r.Code >= 400 && r.Code < 500 }

// Permanent tells whether the same request will fail again: 5xx.
func (r *Reply) Permanent() bool { return r.Code >= 500 && r.Code < 600 }

// ReplyOf returns what to tell the peer about err. A *Reply in err's chain speaks
// for itself. Everything else, deadlines included, is 451 4.3.0 with err as the
// cause: a wrong 4xx costs an hour, a wrong 5xx costs a message. It returns nil for
// nil.
func ReplyOf(err error) *Reply {
	if err == nil {
		return nil
	}
	if r, ok := errors.AsType[*Reply](err); ok {
		return r
	}
	text := "internal error, try again later"
	if errors.Is(err, context.DeadlineExceeded) {
		text = "that took too long, try again later"
	}
	return &Reply{Code: 451, Enh: Enhanced{4, 3, 0}, Text: text, Cause: err}
}

// Limits of what one reply may be on the wire. RFC 5321, Section 4.5.3.1.5: 512
// octets a line with code and CRLF; the text keeps some room for them.
const (
	maxReplyText  = 480
	maxReplyLines = 64
)

// normal returns code and enhanced code as they may be sent.
func (r *Reply) normal() (int, Enhanced) {
	code, enh := r.Code, r.Enh
	if code < 200 || code > 599 {
		return 451, Enhanced{4, 3, 0}
	}
	if code < 400 && code >= 300 {
		return code, Enhanced{} // RFC 2034, Section 4: on 2xx, 4xx and 5xx
	}
	if class := code / 100; enh[0] != class || enh[1] < 0 || enh[1] > 999 || enh[2] < 0 || enh[2] > 999 {
		enh = defaultEnhanced(code)
	}
	return code, enh
}

// appendReply writes r in wire form: each line has the code, and the enhanced code
// if enhanced is set. Without utf8ok characters beyond ASCII are sent as "?": only
// a client that said SMTPUTF8 can read them (RFC 6531, Section 3.7.4.1).
func appendReply(b []byte, r *Reply, enhanced, utf8ok bool) []byte {
	code, enh := r.normal()
	rest := r.Text
	for n := 1; ; n++ {
		var line string
		line, rest = cutReplyLine(rest)
		if n == maxReplyLines {
			rest = ""
		}
		b = strconv.AppendInt(b, int64(code), 10)
		if rest != "" {
			b = append(b, '-')
		} else {
			b = append(b, ' ')
		}
		// RFC 2034, Section 4: the greeting and the answer to EHLO go without it; their
		// callers write them.
		if enhanced && enh != (Enhanced{}) {
			b = append(enh.append(b), ' ')
		}
		b = appendReplyText(b, line, utf8ok)
		b = append(b, '\r', '\n')
		if rest == "" {
			return b
		}
	}
}

// cutReplyLine takes the first line of s, at most maxReplyText octets; longer text
// goes on in the next line, broken at a space where there is one.
func cutReplyLine(s string) (line, rest string) {
	line, rest, more := strings.Cut(s, "\n")
	if len(line) > maxReplyText {
		at := maxReplyText
		if sp := strings.LastIndexByte(line[:maxReplyText], ' '); sp > maxReplyText/2 {
			at = sp + 1
		} else {
			for at > maxReplyText-utf8.UTFMax && !utf8.RuneStart(line[at]) {
				at--
			}
		}
		return line[:at], s[at:]
	}
	if more && rest == "" {
		return line, "" // a trailing newline makes no line
	}
	return line, rest
}

func appendReplyText(b []byte, s string, utf8ok bool) []byte {
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c >= ' ' && c < 0x7f:
			b = append(b, c)
		case c < 0x80:
			b = append(b, ' ')
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			if utf8ok && r != utf8.RuneError && r >= 0xa0 {
				b = append(b, s[i:i+n]...)
			} else {
				b = append(b, '?')
			}
			i += n
			continue
		}
		i++
	}
	return b
}

// defaultEnhanced is the enhanced code of a reply for which none was chosen. It
// says no more than the code does.
func defaultEnhanced(code int) Enhanced {
	switch code {
	case 235:
		return Enhanced{2, 7, 0}
	case 251, 252:
		return Enhanced{2, 1, 5}
	case 421:
		return Enhanced{4, 3, 2}
	case 450:
		return Enhanced{4, 2, 1}
	case 452:
		return Enhanced{4, 5, 3}
	case 454:
		return Enhanced{4, 7, 0}
	case 500:
		return Enhanced{5, 5, 2}
	case 501, 504, 555:
		return Enhanced{5, 5, 4}
	case 502, 503:
		return Enhanced{5, 5, 1}
	case 521, 556:
		return Enhanced{5, 3, 2}
	case 530, 538:
		return Enhanced{5, 7, 0}
	case 535:
		return Enhanced{5, 7, 8}
	case 550:
		return Enhanced{5, 1, 1}
	case 551:
		return Enhanced{5, 1, 6}
	case 552:
		return Enhanced{5, 3, 4}
	case 553:
		return Enhanced{5, 1, 3}
	}
	return Enhanced{code / 100, 0, 0}
}

// parseEnhanced takes the enhanced code from the front of a reply's text, if there
// is one that fits the code.
func parseEnhanced(code int, text string) (Enhanced, string) {
	word, rest, _ := strings.Cut(text, " ")
	class, tail, _ := strings.Cut(word, ".")
	subject, detail, _ := strings.Cut(tail, ".")
	s, ok1 := smallNumber(subject) // not of an empty one, so both dots were there
	d, ok2 := smallNumber(detail)
	if !ok1 || !ok2 || len(class) != 1 || int(class[0]-'0') != code/100 {
		return Enhanced{}, text
	}
	return Enhanced{code / 100, s, d}, rest
}

// smallNumber reads one to three digits.
func smallNumber(s string) (int, bool) {
	if len(s) == 0 || len(s) > 3 {
		return 0, false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, true
}

// Replies that several places give.
func syntaxError(text string) *Reply { return Refuse(501, Enhanced{5, 5, 4}, text) }

// asError returns r as it may refuse something: a code that is no error would tell
// the peer the opposite of what we mean.
func (r *Reply) asError() *Reply {
	if r.Temporary() || r.Permanent() {
		return r
	}
	return &Reply{Code: 451, Enh: Enhanced{4, 3, 0}, Text: r.Text, Cause: r.Cause}
}

func badSequence(text string) *Reply { return Refuse(503, Enhanced{5, 5, 1}, text) }

// Replyf is Refuse with a format.
func Replyf(code int, enh Enhanced, format string, args ...any) *Reply {
	return Refuse(code, enh, fmt.Sprintf(format, args...))
}
