package smtp

import (
	"strconv"
	"strings"
	"time"
)

// timing.go: what a client may ask for about the time of delivery: priorities
// (MT-PRIORITY, RFC 6710), a time by which a message must be there (DELIVERBY, RFC 2852),
// and one before which it must not leave (FUTURERELEASE, RFC 4865). Whoever offers one of
// them needs a queue.

// maxPriority bounds a priority on either side. RFC 6710, Section 4.1.
const maxPriority = 9

// ByMode is what is to happen when the time of a DeliverBy has passed. RFC 2852, Section 4.
// The empty ByMode means that the client did not ask.
type ByMode string

// The modes: the message is returned, or its sender is told that it is late.
const (
	ByReturn ByMode = "R"
	ByNotify ByMode = "N"
)

// DeliverBy is the parameter BY of MAIL (RFC 2852, Section 4). The zero DeliverBy means that
// the client did not say.
type DeliverBy struct {
	// Seconds is how much time is left when the command is said: who keeps the message
	// deducts that time before it is passed on. With ByNotify it may be zero or negative:
	// the time is over, and the sender was told.
	Seconds int32
	// Mode is empty for the zero value alone.
	Mode ByMode
	// Trace asks for a report from each system that passes the message on.
	Trace bool
}

// IsZero tells whether nothing was asked for.
func (d DeliverBy) IsZero() bool { return d == DeliverBy{} }

// String returns the value of BY, such as "120;RT"; empty for zero.
func (d DeliverBy) String() string {
	if d.IsZero() {
		return ""
	}
	s := strconv.Itoa(int(d.Seconds)) + ";" + string(d.Mode)
	if d.Trace {
		s += "T"
	}
	return s
}

// maxBy is the longest time that fits the grammar, nine digits.
const maxBy = 999_999_999

// sound tells whether d can be sent: one that was put together by hand may hold anything.
func (d DeliverBy) sound() bool {
	return (d.Mode == ByNotify || d.Mode == ByReturn && d.Seconds > 0) && -maxBy <= d.Seconds && d.Seconds <= maxBy
}

// parseBy reads the value of BY. min is the least time in which this server can promise to
// return a message.
func parseBy(s string, min time.Duration) (DeliverBy, error) {
	number, mode, ok := strings.Cut(s, ";")
	n, digits := signed(number)
	mode, trace := strings.CutSuffix(strings.ToUpper(mode), "T")
	d := DeliverBy{Seconds: n, Mode: ByMode(mode), Trace: trace}
	switch {
	case !ok || !digits || d.Mode != ByReturn && d.Mode != ByNotify:
		return DeliverBy{}, syntaxError("BY is seconds, a semicolon, and R or N")
	case d.Mode == ByReturn && n <= 0:
		return DeliverBy{}, syntaxError("BY with R needs time that is left")
	case d.Mode == ByReturn && time.Duration(n)*time.Second < min:
		return DeliverBy{}, Refuse(550, Enhanced{5, 4, 7}, "too little time to deliver")
	}
	return d, nil
}

// signed reads up to nine digits behind an optional sign.
func signed(s string) (int32, bool) {
	digits := s
	if s != "" && (s[0] == '-' || s[0] == '+') {
		digits = s[1:]
	}
	n, ok := nineDigits(digits)
	if ok && s[0] == '-' {
		n = -n
	}
	return n, ok
}

// nineDigits reads one to nine digits.
func nineDigits(s string) (int32, bool) {
	if s == "" || len(s) > 9 || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 32)
	return int32(n), err == nil
}

// parsePriority reads the value of MT-PRIORITY: a digit, with a minus sign unless it is 0.
func parsePriority(s string) (int8, error) {
	digit, negative := strings.CutPrefix(s, "-")
	if len(digit) != 1 || digit[0] < '0' || digit[0] > '9' || negative && digit == "0" {
		return 0, syntaxError("MT-PRIORITY is a number from -9 to 9")
	}
	n := int8(digit[0] - '0')
	if negative {
		n = -n
	}
	return n, nil
}

// setTiming reads the parameters of this file.
func (m *Sender) setTiming(ext extensions, key, value string) (err error) {
	switch key {
	case "MT-PRIORITY":
		m.Priority, err = parsePriority(value)
		return err
	case "BY":
		m.By, err = parseBy(value, ext.leastBy)
		return err
	}
	return m.setHold(ext, key, value)
}

// setHold reads HOLDFOR and HOLDUNTIL. RFC 4865, Section 4.
func (m *Sender) setHold(ext extensions, key, value string) error {
	if key == "HOLDFOR" {
		n, ok := nineDigits(value)
		if !ok {
			return syntaxError("HOLDFOR is a number of seconds")
		}
		m.HoldFor = time.Duration(n) * time.Second
		if ext.longestHold > 0 && m.HoldFor > ext.longestHold {
			return tooLongHold()
		}
		return nil
	}
	t, err := time.Parse(time.RFC3339, strings.ToUpper(value))
	m.HoldUntil = wholeSecond(t)
	if year := m.HoldUntil.Year(); err != nil || year < 1970 || year > 9999 {
		return syntaxError("HOLDUNTIL is a time such as 2030-01-31T08:00:00Z").Because(err)
	}
	if ext.longestHold > 0 && m.HoldUntil.After(ext.now.Add(ext.longestHold+time.Second)) {
		return tooLongHold()
	}
	return nil
}

// isHold tells whether key is one of the two that exclude each other. RFC 4865, Section 4.
func isHold(key string) bool { return key == "HOLDFOR" || key == "HOLDUNTIL" }

func tooLongHold() *Reply { return syntaxError("this server does not hold messages that long") }

// wholeSecond returns t in UTC, and in a form that == compares; a fraction of a second makes
// it later, never too early.
func wholeSecond(t time.Time) time.Time {
	sec := t.Unix()
	if t.Nanosecond() > 0 {
		sec++
	}
	return time.Unix(sec, 0).UTC()
}

// appendTiming writes the parameters of this file that a server with ext knows. What is out
// of bounds is left out.
func appendTiming(b []byte, m Sender, ext extensions) []byte {
	if m.Priority != 0 && -maxPriority <= m.Priority && m.Priority <= maxPriority && ext.priority {
		b = strconv.AppendInt(append(b, " MT-PRIORITY="...), int64(m.Priority), 10)
	}
	if m.By.sound() && ext.deliverBy {
		b = append(append(b, " BY="...), m.By.String()...)
	}
	if !ext.hold {
		return b
	}
	if !m.HoldUntil.IsZero() {
		return wholeSecond(m.HoldUntil).AppendFormat(append(b, " HOLDUNTIL="...), time.RFC3339)
	}
	if n := int64((m.HoldFor + time.Second - 1) / time.Second); 0 < n && n <= maxBy {
		b = strconv.AppendInt(append(b, " HOLDFOR="...), n, 10)
	}
	return b
}

// refuseBy tells why a message that must be returned in time cannot go to a server with ext,
// or returns nil. RFC 2852, Section 4.1: not to one that does not know the wish, or needs
// more time.
func refuseBy(d DeliverBy, ext extensions) error {
	switch {
	case d.Mode != ByReturn:
		return nil
	case d.Seconds <= 0 || ext.deliverBy && time.Duration(d.Seconds)*time.Second < ext.leastBy:
		return Refuse(550, Enhanced{5, 4, 7}, "too little time is left to deliver")
	case !ext.deliverBy:
		return Refuse(550, Enhanced{5, 3, 3}, "the next hop does not promise to deliver in time")
	}
	return nil
}

// learnTiming reads what a server says about this file's extensions.
func (e *extensions) learnTiming(said map[string]string) {
	_, e.priority = said["MT-PRIORITY"]
	_, e.hold = said["FUTURERELEASE"]
	var least string
	if least, e.deliverBy = said["DELIVERBY"]; e.deliverBy {
		if n, ok := nineDigits(least); ok {
			e.leastBy = time.Duration(n) * time.Second
		}
	}
}

// offerTiming sets what a server offers of this file.
func (e *extensions) offerTiming(offer Extensions, lacks map[string]bool) {
	e.priority = offer.Priority && !lacks["MT-PRIORITY"]
	e.deliverBy = offer.DeliverBy > 0 && !lacks["DELIVERBY"]
	e.hold = offer.FutureRelease >= time.Second && !lacks["FUTURERELEASE"]
	if e.deliverBy {
		e.leastBy = offer.DeliverBy
	}
	if e.hold {
		e.longestHold, e.now = min(offer.FutureRelease, maxBy*time.Second), time.Now()
	}
}

// deliverByParam is the parameter of DELIVERBY in the answer to EHLO.
func (e *extensions) deliverByParam() string {
	return strconv.FormatInt(min(int64((e.leastBy+time.Second-1)/time.Second), maxBy), 10)
}

// holdParams are the parameters of FUTURERELEASE: the longest time, and when it would end.
func (e *extensions) holdParams() []string {
	return []string{
		strconv.FormatInt(int64(e.longestHold/time.Second), 10),
		e.now.Add(e.longestHold).UTC().Truncate(time.Second).Format(time.RFC3339),
	}
}
