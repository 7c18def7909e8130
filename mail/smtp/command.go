package smtp

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// command.go: the words of the dialogue. MAIL and RCPT with their parameters are
// parsed here for the server and written here for the client.

// Body is the value of the BODY parameter: what kind of octets the message holds.
type Body string

// The values of BODY. The empty Body means the client did not say; it is treated
// as BodySevenBit without being announced as such.
const (
	BodySevenBit Body = "7BIT"     // RFC 6152, Section 2
	BodyEightBit Body = "8BITMIME" // RFC 6152, Section 2
	// BodyBinary is any octets, which only BDAT can carry (RFC 3030, Section 3).
	BodyBinary Body = "BINARYMIME"
)

// Sender is what MAIL says: who sends, and what the message will need.
type Sender struct {
	// Path is the reverse-path; the null path for bounces.
	Path Path
	// Size is the announced size of the message in octets, 0 if not announced (RFC
	// 1870, Section 3).
	Size int64
	// Body is the announced kind of content.
	Body Body
	// UTF8 tells that the envelope or the header may hold UTF-8 (RFC 6531, Section
	// 3.4).
	UTF8 bool
	// RequireTLS tells that the message must not travel unprotected (RFC 8689, Section 2).
	RequireTLS bool
	// Return is how much of the message a report of failure brings back.
	Return Return
	// EnvID is the sender's own name for this sending, printable; empty if there is none
	// (RFC 3461, Section 4.4).
	EnvID string
	// Auth is who handed the message in first, as the client says: an address, "<>" for one
	// that is not known, empty if the client did not say (RFC 4954, Section 5). It is worth
	// as much as the client.
	Auth string
	// Priority orders messages that wait, larger first, from -9 to 9; 0 is normal, or not
	// said (RFC 6710).
	Priority int8
	// By is when the message is to be there.
	By DeliverBy
	// HoldFor and HoldUntil, of which one is set at most, keep the message from leaving
	// before its time (RFC 4865). HoldFor counts whole seconds from the moment that MAIL was
	// said; HoldUntil is in UTC, in whole seconds, so that == compares it. Who held the message
	// clears both before it is passed on.
	HoldFor   time.Duration
	HoldUntil time.Time
}

// Recipient is what RCPT says.
type Recipient struct {
	// Path is the forward-path.
	Path Path
	// Notify is when the sender wants a report.
	Notify Notify
	// Original is the address that the message was first sent to.
	Original OriginalRecipient
}

// command is one line of the client: verb in upper case, and the rest as it came.
type command struct {
	verb string
	args string
}

// verbs lets the server compare and log verbs without allocating; a verb that is
// not here is unknown.
var verbs = [...]string{"HELO", "EHLO", "LHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT", "VRFY", "HELP",
	"STARTTLS", "EXPN", "TURN", "ETRN", "BDAT", "AUTH", "XCLIENT", "XFORWARD"}

// parseCommand splits a line, without its CRLF, at the first space. The verb of an
// unknown command is empty.
func parseCommand(line []byte) command {
	end := 0
	for end < len(line) && line[end] != ' ' {
		end++
	}
	for _, v := range verbs {
		if len(v) == end && equalFoldASCII(line[:end], v) {
			rest := line[end:]
			for len(rest) > 0 && rest[0] == ' ' {
				rest = rest[1:]
			}
			for len(rest) > 0 && rest[len(rest)-1] == ' ' {
				rest = rest[:len(rest)-1]
			}
			return command{v, string(rest)}
		}
	}
	return command{}
}

func equalFoldASCII(b []byte, upper string) bool {
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != upper[i] {
			return false
		}
	}
	return true
}

// cutKeyword takes "FROM:" or "TO:" from the front of s. Space after the colon is
// not in the grammar, but so many clients send it that to refuse it would only
// lose mail (RFC 5321, Section 4.1.1.2 and 3.3).
func cutKeyword(s, keyword string) (string, bool) {
	if len(s) < len(keyword) || !strings.EqualFold(s[:len(keyword)], keyword) {
		return s, false
	}
	return strings.TrimLeft(s[len(keyword):], " "), true
}

// eachParam calls f with every "KEYWORD" or "KEYWORD=value" of s, keyword in upper
// case. RFC 5321, Section 4.1.2 (esmtp-param).
func eachParam(s string, f func(key, value string, hasValue bool) error) error {
	for param := range strings.SplitSeq(s, " ") {
		if param == "" {
			continue
		}
		key, value, hasValue := strings.Cut(param, "=")
		if !isKeyword(key) {
			return syntaxError("bad parameter: " + printable(param))
		}
		if hasValue && !isParamValue(value) {
			return syntaxError("bad value of parameter " + printable(key))
		}
		if err := f(strings.ToUpper(key), value, hasValue); err != nil {
			return err
		}
	}
	return nil
}

// maxParams is how many parameters one command can have: there are no more that we know.
const maxParams = 11

// eachOnce is eachParam for parameters of which each may be there once. One that f takes
// counts as known.
func eachOnce(s string, f func(key, value string, hasValue bool) error) error {
	var seen [maxParams]string
	n := 0
	return eachParam(s, func(key, value string, hasValue bool) error {
		if slices.Contains(seen[:n], key) {
			return syntaxError("parameter " + key + " is given twice")
		}
		if err := f(key, value, hasValue); err != nil {
			return err
		}
		seen[n] = key
		n++
		return nil
	})
}

func isKeyword(s string) bool {
	if s == "" || !isLetDig(s[0]) {
		return false
	}
	for i := range len(s) {
		if !isLetDig(s[i]) && s[i] != '-' {
			return false
		}
	}
	return true
}

// isParamValue: any character but "=", space and control characters; UTF-8 is let
// through for the parameters that may have it.
func isParamValue(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == '=' || s[i] == 0x7f {
			return false
		}
	}
	return s != ""
}

// extensions is what a server offers; it decides which parameters it knows.
type extensions struct {
	eightBit, utf8, size, dsn, chunking, binary, auth bool
	// requireTLS is REQUIRETLS; without secure it is known but refused.
	requireTLS, secure bool
	// priority, deliverBy and hold are those of timing.go. leastBy is what DELIVERBY needs,
	// longestHold, counted from now, what FUTURERELEASE takes; zero is no such bound.
	priority, deliverBy, hold bool
	leastBy, longestHold      time.Duration
	now                       time.Time
}

// parseMail reads what follows "MAIL ".
func parseMail(args string, ext extensions) (Sender, error) {
	var m Sender
	rest, ok := cutKeyword(args, "FROM:")
	if !ok {
		return m, syntaxError("syntax: MAIL FROM:<address>")
	}
	path, rest, err := cutPath(rest)
	if err == nil && rest != "" && rest[0] != ' ' {
		err = errPath
	}
	if err != nil {
		return m, Refuse(501, Enhanced{5, 1, 7}, "bad sender address syntax").Because(err)
	}
	m.Path = path
	held := false
	err = eachOnce(rest, func(key, value string, hasValue bool) error {
		if isHold(key) && ext.hold {
			if held {
				return syntaxError("there can be one of HOLDFOR and HOLDUNTIL")
			}
			held = true
		}
		return m.setParam(ext, key, value, hasValue)
	})
	if err != nil {
		return m, err
	}
	if !m.UTF8 && !isASCII(args) {
		return m, needsUTF8(553)
	}
	return m, nil
}

func (m *Sender) setParam(ext extensions, key, value string, hasValue bool) error {
	switch {
	case key == "SIZE" && ext.size:
		// RFC 1870, Section 6.1: up to 20 digits. What does not fit an int64 is larger
		// than any limit of ours.
		if !hasValue || len(value) > 20 || strings.Trim(value, "0123456789") != "" {
			return syntaxError("SIZE needs a number")
		}
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			n = 1<<63 - 1
		}
		m.Size = n
	case key == "BODY" && ext.eightBit:
		switch b := Body(strings.ToUpper(value)); {
		case b == BodySevenBit, b == BodyEightBit, b == BodyBinary && ext.binary:
			m.Body = b
		default:
			return syntaxError("BODY is 7BIT, 8BITMIME, or BINARYMIME where it is offered")
		}
	case key == "SMTPUTF8" && ext.utf8:
		if hasValue {
			return syntaxError("SMTPUTF8 has no value")
		}
		m.UTF8 = true
	case key == "REQUIRETLS" && ext.requireTLS:
		if hasValue {
			return syntaxError("REQUIRETLS has no value")
		}
		if !ext.secure {
			return Refuse(530, Enhanced{5, 7, 0}, "REQUIRETLS needs TLS, say STARTTLS first")
		}
		m.RequireTLS = true
	case (key == "RET" || key == "ENVID") && ext.dsn:
		return m.setReport(key, value)
	case key == "AUTH" && ext.auth:
		return m.setAuth(value)
	case key == "MT-PRIORITY" && ext.priority, key == "BY" && ext.deliverBy, isHold(key) && ext.hold:
		return m.setTiming(ext, key, value)
	default:
		return unknownParam(key)
	}
	return nil
}

func unknownParam(key string) error {
	return Refuse(555, Enhanced{5, 5, 4}, "parameter "+printable(key)+" is not known here")
}

// setReport reads the parameters of RFC 3461.
func (m *Sender) setReport(key, value string) error {
	if key == "RET" {
		switch r := Return(strings.ToUpper(value)); r {
		case ReturnFull, ReturnHeaders:
			m.Return = r
			return nil
		}
		return syntaxError("RET is FULL or HDRS")
	}
	id, err := decodeXtext(value)
	if err != nil || value == "" || len(value) > maxEnvID {
		return syntaxError("ENVID is up to 100 characters of xtext").Because(err)
	}
	m.EnvID = id
	return nil
}

// setAuth reads the parameter of RFC 4954, Section 5.
func (m *Sender) setAuth(value string) error {
	if value == "<>" {
		m.Auth = value
		return nil
	}
	address, err := decodeXtext(value)
	if err == nil {
		_, err = ParseAddress(address)
	}
	if err != nil || len(value) > maxORcpt {
		return syntaxError("AUTH is an address in xtext or <>").Because(err)
	}
	m.Auth = address
	return nil
}

// parseRcpt reads what follows "RCPT ". utf8 tells that MAIL said SMTPUTF8.
func parseRcpt(args string, utf8 bool, ext extensions) (Recipient, error) {
	var r Recipient
	rest, ok := cutKeyword(args, "TO:")
	if !ok {
		return r, syntaxError("syntax: RCPT TO:<address>")
	}
	path, rest, err := cutPath(rest)
	if err == nil && (rest != "" && rest[0] != ' ' || path.IsNull()) {
		err = errPath
	}
	if err != nil {
		return r, Refuse(501, Enhanced{5, 1, 3}, "bad recipient address syntax").Because(err)
	}
	if !utf8 && !isASCII(args) {
		return r, needsUTF8(553)
	}
	r.Path = path
	err = eachOnce(rest, func(key, value string, _ bool) (err error) {
		switch {
		case key == "NOTIFY" && ext.dsn:
			r.Notify, err = parseNotify(value)
		case key == "ORCPT" && ext.dsn:
			r.Original, err = parseOriginal(value)
		default:
			err = unknownParam(key)
		}
		return err
	})
	return r, err
}

// needsUTF8: RFC 6531, Section 3.5.
func needsUTF8(code int) *Reply {
	return Refuse(code, Enhanced{5, 6, 7}, "an address in UTF-8 needs the SMTPUTF8 parameter")
}

// printable returns what of a client's word may be repeated to it, on one line.
func printable(s string) string { return clip(strings.Map(visible, s), 40) }

// appendMail writes the MAIL command for a server that offers ext.
func appendMail(b []byte, m Sender, ext extensions) []byte {
	b = append(b, "MAIL FROM:"...)
	b = appendPath(b, m.Path)
	if m.Size > 0 && ext.size {
		b = append(b, " SIZE="...)
		b = strconv.AppendInt(b, m.Size, 10)
	}
	if ext.eightBit && (m.Body == BodySevenBit || m.Body == BodyEightBit) || ext.binary && m.Body == BodyBinary {
		b = append(b, " BODY="...)
		b = append(b, m.Body...)
	}
	if m.UTF8 && ext.utf8 {
		b = append(b, " SMTPUTF8"...)
	}
	if m.RequireTLS && ext.requireTLS {
		b = append(b, " REQUIRETLS"...)
	}
	if (m.Return == ReturnFull || m.Return == ReturnHeaders) && ext.dsn {
		b = append(append(b, " RET="...), m.Return...)
	}
	if m.EnvID != "" && ext.dsn {
		b = appendXtext(append(b, " ENVID="...), m.EnvID)
	}
	if m.Auth == "<>" && ext.auth {
		b = append(b, " AUTH=<>"...)
	} else if m.Auth != "" && ext.auth {
		b = appendXtext(append(b, " AUTH="...), m.Auth)
	}
	return append(appendTiming(b, m, ext), '\r', '\n')
}

// appendRcpt writes the RCPT command for a server that offers ext.
func appendRcpt(b []byte, r Recipient, ext extensions) []byte {
	b = append(b, "RCPT TO:"...)
	b = appendPath(b, r.Path)
	if r.Notify != 0 && ext.dsn {
		b = append(append(b, " NOTIFY="...), r.Notify.String()...)
	}
	if r.Original.sound() && ext.dsn {
		b = r.Original.append(append(b, " ORCPT="...))
	}
	return append(b, '\r', '\n')
}
