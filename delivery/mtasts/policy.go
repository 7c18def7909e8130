package mtasts

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// policy.go reads policies (RFC 8461, Section 3.2) and matches hosts with them. The reader is
// strict in what the standard says about form, since two senders that read one text in two
// ways protect its domain in two ways; what it does not know it passes over.

// Mode says what a policy asks of senders.
type Mode string

// The modes of RFC 8461, Section 5.
const (
	// Enforce: mail goes to no host that the policy does not name, or that does not show a
	// valid certificate.
	Enforce Mode = "enforce"
	// Testing: mail goes as if there were no policy; failures are reported.
	Testing Mode = "testing"
	// None: as if there were no policy. It is a policy all the same, which takes the place of
	// the one before and is kept for as long as it says.
	None Mode = "none"
)

// Limits of what is read.
const (
	// MaxBody is how long a policy may be, in octets (RFC 8461, Section 3.3).
	MaxBody = 64 << 10
	// MaxMaxAge is the longest time that a policy may be kept (RFC 8461, Section 3.2).
	MaxMaxAge = 31557600 * time.Second
)

// Policy is what a domain asks of those who send to it. Policies are shared by callers, who
// must not change them.
type Policy struct {
	// ID is the id of the TXT record with which the policy was found.
	ID   string
	Mode Mode
	// MX are the patterns of hosts that may take mail, in lower case, in their order: names,
	// or *. and a name for any name with one label more.
	MX []string
	// MaxAge is how long the policy holds after it was fetched.
	MaxAge time.Duration
	// Text are its lines, as reports about it have them (RFC 8460, Section 4.4).
	Text []string
	// Fetched is when it was fetched, Expires when it does not hold any more. ParsePolicy
	// leaves both zero.
	Fetched, Expires time.Time
}

// Match tells whether a policy names a host, which is the name in an MX record and not what a
// CNAME there leads to (RFC 8461, Section 4.1). Names are compared as A-labels; case and a dot
// at the end make no difference.
func (p *Policy) Match(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	label, parent, _ := strings.Cut(host, ".")
	if label == "" {
		return false
	}
	for _, pattern := range p.MX {
		// A wildcard stands for the whole leftmost label, and for one label alone.
		if suffix, wild := strings.CutPrefix(pattern, "*."); wild && suffix == parent || pattern == host {
			return true
		}
	}
	return false
}

// ParsePolicy reads the text of a policy. Its error says what is wrong with it.
func ParsePolicy(body []byte) (Policy, error) {
	if len(body) > MaxBody {
		return Policy{}, fmt.Errorf("mtasts: the policy has more than %d octets", MaxBody)
	}
	r := policyReader{seen: make(map[string]bool)}
	// Lines end with LF or CRLF, the last one perhaps with nothing (erratum 6253).
	for i, line := range strings.Split(string(body), "\n") {
		line = strings.TrimRight(strings.TrimSuffix(line, "\r"), " \t")
		if line == "" {
			continue
		}
		if err := r.line(line); err != nil {
			return Policy{}, fmt.Errorf("mtasts: line %d of the policy: %w", i+1, err)
		}
	}
	if err := r.whole(); err != nil {
		return Policy{}, fmt.Errorf("mtasts: the policy %w", err)
	}
	return r.policy, nil
}

// policyReader is a policy that is being read.
type policyReader struct {
	policy Policy
	seen   map[string]bool // keys of those that are read once
}

var (
	errNoField   = errors.New("not a name, a colon and a value")
	errNotFirst  = errors.New("the first field is not version")
	errVersion   = errors.New("the version is not STSv1")
	errMode      = errors.New("the mode is none of enforce, testing, none")
	errMaxAge    = fmt.Errorf("max_age is not a number of seconds up to %d", MaxMaxAge/time.Second)
	errMX        = errors.New("mx is not a host name, or *. and one")
	errNoVersion = errors.New("has no version")
	errNoMode    = errors.New("has no mode")
	errNoMaxAge  = errors.New("has no max_age")
	errNoMX      = errors.New("has no mx")
)

// line reads a line that is not empty.
func (r *policyReader) line(line string) error {
	key, value, ok := strings.Cut(line, ":")
	value = strings.TrimLeft(value, " \t")
	if !ok || !isFieldName(key) || !isText(value) {
		return errNoField
	}
	if len(r.policy.Text) == 0 && key != "version" {
		return errNotFirst
	}
	r.policy.Text = append(r.policy.Text, line)
	// RFC 8461, Section 3.2: of a field that is not to be repeated, the first counts. Whoever
	// takes the last reads another policy.
	if key != "mx" {
		if r.seen[key] {
			return nil
		}
		r.seen[key] = true
	}
	return r.field(key, value)
}

func (r *policyReader) field(key, value string) error {
	switch key {
	case "version":
		if value != "STSv1" {
			return errVersion
		}
	case "mode":
		switch r.policy.Mode = Mode(value); r.policy.Mode {
		case Enforce, Testing, None:
		default:
			return errMode
		}
	case "max_age":
		n, err := strconv.ParseUint(value, 10, 64)
		if len(value) > 10 || strings.Trim(value, digits) != "" || err != nil || n > uint64(MaxMaxAge/time.Second) {
			return errMaxAge
		}
		r.policy.MaxAge = time.Duration(n) * time.Second
	case "mx":
		host := value
		if parent, wild := strings.CutPrefix(value, "*."); wild {
			host = "x." + parent
		}
		if !isHostName(host) {
			return errMX
		}
		r.policy.MX = append(r.policy.MX, strings.ToLower(value))
	}
	return nil
}

// whole looks for what is missing.
func (r *policyReader) whole() error {
	switch {
	case !r.seen["version"]:
		return errNoVersion
	case !r.seen["mode"]:
		return errNoMode
	case !r.seen["max_age"]:
		return errNoMaxAge
	case len(r.policy.MX) == 0 && r.policy.Mode != None:
		return errNoMX
	}
	return nil
}

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// isFieldName tells whether a string can be the name of a field, in records and policies: 32
// letters, digits and some marks at most, the first no mark.
func isFieldName(s string) bool {
	return s != "" && len(s) <= 32 && strings.Trim(s, letters+digits+"_-.") == "" && strings.Trim(s[:1], letters+digits) == ""
}

// isText tells whether a string can be the value of a field: UTF-8 without control characters.
// RFC 8461 asks for one character at least.
func isText(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// isHostName tells whether a string is a domain as RFC 5321, Section 4.1.2 has it, of a length
// that the DNS can take.
func isHostName(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, letters+digits+"-") != "" {
			return false
		}
	}
	return true
}
