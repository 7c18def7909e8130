package smtp

import (
	"errors"
	"fmt"
	"strings"
)

// dsn.go: what a client may ask for about reports (RFC 3461, and RFC 6533 for addresses
// in UTF-8), and xtext, the spelling that lets any text stand in a parameter.

// Return says how much of a message a report of failure brings back: the parameter RET of
// MAIL (RFC 3461, Section 4.3). The empty Return means that the client did not say.
type Return string

// The values of RET.
const (
	ReturnFull    Return = "FULL"
	ReturnHeaders Return = "HDRS"
)

// Notify is the set of events of which the sender wants a report: the parameter NOTIFY of
// RCPT (RFC 3461, Section 4.1). Zero means that the client did not say, which is not the
// same as NotifyNever.
type Notify uint8

// The events. NotifyNever stands alone.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// notifyWords are the words of NOTIFY, in the order of the bits.
var notifyWords = [...]string{"NEVER", "SUCCESS", "FAILURE", "DELAY"}

// String returns the set as NOTIFY has it, empty for zero.
func (n Notify) String() string {
	var b []byte
	for i, word := range notifyWords {
		if n&(1<<i) == 0 {
			continue
		}
		if len(b) > 0 {
			b = append(b, ',')
		}
		b = append(b, word...)
	}
	return string(b)
}

// Has tells whether event is in the set.
func (n Notify) Has(event Notify) bool { return n&event != 0 }

// parseNotify reads the value of NOTIFY.
func parseNotify(s string) (Notify, error) {
	var n Notify
	for word := range strings.SplitSeq(s, ",") {
		bit := Notify(0)
		for i, known := range notifyWords {
			if strings.EqualFold(word, known) {
				bit = 1 << i
			}
		}
		if bit == 0 || n&bit != 0 {
			return 0, syntaxError("NOTIFY is NEVER, or some of SUCCESS, FAILURE and DELAY")
		}
		n |= bit
	}
	if n.Has(NotifyNever) && n != NotifyNever {
		return 0, syntaxError("NOTIFY=NEVER stands alone")
	}
	return n, nil
}

// OriginalRecipient is the parameter ORCPT of RCPT: the address that the message was first
// sent to, for the reader of a report (RFC 3461, Section 4.2). The zero value means that
// there is none.
type OriginalRecipient struct {
	// Type is the kind of address in lower case, "rfc822" or "utf-8" as a rule.
	Type string
	// Address is the address as it is meant, without the spelling of xtext; printable. For
	// the type "utf-8" it is kept as the client spelled it (RFC 6533, Section 3).
	Address string
}

// IsZero tells whether there is no original recipient.
func (o OriginalRecipient) IsZero() bool { return o == OriginalRecipient{} }

// String returns "rfc822;a@example.com", as a report shows it; empty for zero.
func (o OriginalRecipient) String() string {
	if o.IsZero() {
		return ""
	}
	return o.Type + ";" + o.Address
}

// sound tells whether o can be sent: one that was put together by hand may hold anything.
func (o OriginalRecipient) sound() bool {
	if !isKeyword(o.Type) || o.Address == "" {
		return false
	}
	return o.Type != typeUTF8 || isParamValue(o.Address) && isEncodedUTF8(o.Address)
}

// append writes the value of ORCPT.
func (o OriginalRecipient) append(b []byte) []byte {
	b = append(append(b, o.Type...), ';')
	if o.Type == typeUTF8 {
		return append(b, o.Address...)
	}
	return appendXtext(b, o.Address)
}

// Limits of the parameters, in octets as they are spelled. RFC 3461, Section 4.2 and 4.4.
const (
	maxEnvID = 100
	maxORcpt = 500
)

// typeUTF8 is the kind of address whose spelling is not xtext. RFC 6533, Section 3.
const typeUTF8 = "utf-8"

// parseOriginal reads the value of ORCPT.
func parseOriginal(s string) (OriginalRecipient, error) {
	typ, address, ok := strings.Cut(s, ";")
	if !ok || len(s) > maxORcpt || !isKeyword(typ) || address == "" {
		return OriginalRecipient{}, syntaxError("ORCPT is an address type, a semicolon and an address")
	}
	o := OriginalRecipient{Type: strings.ToLower(typ), Address: address}
	if o.Type == typeUTF8 {
		if !isEncodedUTF8(address) || checkUTF8(address) != nil {
			return OriginalRecipient{}, syntaxError("ORCPT has a bad address")
		}
		return o, nil
	}
	var err error
	if o.Address, err = decodeXtext(address); err != nil {
		return OriginalRecipient{}, syntaxError("ORCPT is not in xtext").Because(err)
	}
	return o, nil
}

// isEncodedUTF8: no "+" and "=", and a backslash only as in \x{2B}. RFC 6533, Section 3.
func isEncodedUTF8(s string) bool {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '+', '=':
			return false
		case '\\':
			rest, ok := strings.CutPrefix(s[i:], `\x{`)
			hex, _, closed := strings.Cut(rest, "}")
			if !ok || !closed || len(hex) < 2 || len(hex) > 6 || strings.Trim(hex, "0123456789ABCDEF") != "" {
				return false
			}
		}
	}
	return true
}

// decodeXtext returns what an xtext means. RFC 3461, Section 4: "+" and two upper-case
// hexadecimal digits stand for an octet. What it means is printable ASCII here: nothing
// that a client says there may put a line of its own into a report or a log.
func decodeXtext(s string) (string, error) {
	text, err := unquoteXtext(s)
	if err == nil {
		err = checkPrintable(text)
	}
	if err != nil {
		return "", err
	}
	return text, nil
}

// unquoteXtext returns the octets that an xtext stands for, whatever they are.
func unquoteXtext(s string) (string, error) {
	if strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", errXtext
		}
		high, ok1 := hexDigit(s[i+1])
		low, ok2 := hexDigit(s[i+2])
		if !ok1 || !ok2 {
			return "", errXtext
		}
		b = append(b, high<<4|low)
		i += 2
	}
	return string(b), nil
}

var errXtext = errors.New("smtp: bad xtext")

func checkPrintable(s string) error {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return fmt.Errorf("%w: character %#02x", errXtext, s[i])
		}
	}
	return nil
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// appendXtext spells s as xtext.
func appendXtext(b []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; c > ' ' && c <= '~' && c != '+' && c != '=' {
			b = append(b, c)
		} else {
			b = append(b, '+', digits[c>>4], digits[c&15])
		}
	}
	return b
}
