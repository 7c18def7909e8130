package smtp

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// forwarded.go: what a proxy tells the server behind it about the client in front of it,
// in the words of Postfix: XCLIENT makes the server take the proxy's connection for the
// client's, XFORWARD tells of the client for the log. Both are a list of NAME=value in
// xtext (RFC 3461, Section 4). EHLO names the attributes that the server knows.

// Forwarded is what is known of a client that speaks to us through somebody, or for whom
// we speak. The zero value of a field means that it is not known.
type Forwarded struct {
	// Name is the client's verified host name.
	Name string
	// Addr and Port are where the client connected from.
	Addr netip.Addr
	Port uint16
	// Proto is the protocol that the client spoke, "SMTP" or "ESMTP"; XFORWARD may tell of
	// others.
	Proto string
	// Helo is what the client called itself.
	Helo string
	// Ident is the name that the host which tells this gave the message. XFORWARD alone.
	Ident string
	// Source is "LOCAL" for mail that came from within, "REMOTE" for mail from elsewhere.
	// XFORWARD alone.
	Source string
	// Login is the name under which the client logged in. XCLIENT alone.
	Login string
	// DestAddr and DestPort are where the client connected to. XCLIENT alone.
	DestAddr netip.Addr
	DestPort uint16
}

// forwardedSet is a set of attributes.
type forwardedSet uint16

// The attributes.
const (
	forwardedName forwardedSet = 1 << iota
	forwardedAddr
	forwardedPort
	forwardedProto
	forwardedHelo
	forwardedIdent
	forwardedSource
	forwardedLogin
	forwardedDestAddr
	forwardedDestPort
)

// What the two commands know.
const (
	xclientSet = forwardedName | forwardedAddr | forwardedPort | forwardedProto | forwardedHelo |
		forwardedLogin | forwardedDestAddr | forwardedDestPort
	xforwardSet = forwardedName | forwardedAddr | forwardedPort | forwardedProto | forwardedHelo |
		forwardedIdent | forwardedSource
)

// forwardedWords are the names of the attributes, in the order of the bits.
var forwardedWords = [...]string{"NAME", "ADDR", "PORT", "PROTO", "HELO", "IDENT", "SOURCE", "LOGIN", "DESTADDR", "DESTPORT"}

// String returns the names of the attributes as EHLO has them.
func (s forwardedSet) String() string {
	var words []string
	for i, word := range forwardedWords {
		if s.has(1 << i) {
			words = append(words, word)
		}
	}
	return strings.Join(words, " ")
}

func (s forwardedSet) has(one forwardedSet) bool { return s&one != 0 }

// forwardedWord returns the attribute of that name, 0 if there is none.
func forwardedWord(name string) forwardedSet {
	i := slices.IndexFunc(forwardedWords[:], func(word string) bool { return strings.EqualFold(word, name) })
	if i < 0 {
		return 0
	}
	return 1 << i
}

// offeredSet reads the parameters of the EHLO keyword. A name that we do not know is
// nothing that we could send.
func offeredSet(params string) forwardedSet {
	var s forwardedSet
	for name := range strings.FieldsSeq(params) {
		s |= forwardedWord(name)
	}
	return s
}

// The words for a value that is not known: for good, or at the moment.
const (
	unavailable     = "[UNAVAILABLE]"
	tempUnavailable = "[TEMPUNAVAIL]"
)

// maxForwarded is the longest value in octets, before it is spelled as xtext.
const maxForwarded = 255

// parseForwarded reads what follows "XCLIENT " or "XFORWARD ". allowed are the attributes
// that the command knows, set those that are there, known or not. Every error is a 501.
func parseForwarded(args string, allowed forwardedSet) (f Forwarded, set forwardedSet, err error) {
	for param := range strings.FieldsSeq(args) {
		name, value, ok := strings.Cut(param, "=")
		attr := forwardedWord(name) & allowed
		switch {
		case !ok:
			return Forwarded{}, 0, syntaxError("an attribute is a name, an equals sign and a value: " + printable(param))
		case attr == 0:
			return Forwarded{}, 0, syntaxError("attribute " + printable(name) + " is not known here")
		case set.has(attr):
			return Forwarded{}, 0, syntaxError("attribute " + printable(name) + " is given twice")
		}
		set |= attr
		if err := f.setAttr(attr, value, allowed); err != nil {
			return Forwarded{}, 0, syntaxError("bad value of attribute " + printable(name)).Because(err)
		}
	}
	if set == 0 {
		return Forwarded{}, 0, syntaxError("at least one attribute is needed")
	}
	return f, set, nil
}

// setAttr reads one value. allowed tells which command it is.
func (f *Forwarded) setAttr(attr forwardedSet, spelled string, allowed forwardedSet) error {
	value, err := unquoteXtext(spelled)
	if err != nil {
		return err
	}
	if strings.EqualFold(value, unavailable) || strings.EqualFold(value, tempUnavailable) {
		return nil
	}
	if err := checkForwarded(value); err != nil {
		// An empty login takes a login back.
		if attr == forwardedLogin && value == "" {
			return nil
		}
		return err
	}
	switch attr {
	case forwardedAddr:
		f.Addr, err = parseForwardedAddr(value)
	case forwardedDestAddr:
		f.DestAddr, err = parseForwardedAddr(value)
	case forwardedPort:
		f.Port, err = parseForwardedPort(value)
	case forwardedDestPort:
		f.DestPort, err = parseForwardedPort(value)
	case forwardedName:
		f.Name = value
		if !isForwardedName(value) {
			err = errDomain
		}
	case forwardedHelo:
		// A word that HELO would not take here is no reason to lose the mail.
		if isHeloName(value) {
			f.Helo = value
		}
	case forwardedProto:
		if f.Proto = strings.ToUpper(value); !isProto(f.Proto, allowed) {
			err = errForwarded
		}
	case forwardedSource:
		if f.Source = strings.ToUpper(value); f.Source != "LOCAL" && f.Source != "REMOTE" {
			err = errForwarded
		}
	case forwardedIdent:
		f.Ident = value
	case forwardedLogin:
		f.Login = value
	}
	return err
}

var errForwarded = errors.New("smtp: not a value of this attribute")

// checkForwarded tells what is wrong with a value: it may get into logs and header fields,
// so that there is nothing in it which is not seen.
func checkForwarded(s string) error {
	if s == "" || len(s) > maxForwarded || !utf8.ValidString(s) {
		return errForwarded
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || isInvisible(r) {
			return fmt.Errorf("%w: character U+%04X", errForwarded, r)
		}
	}
	return nil
}

// isForwardedName is lenient with underscores, which the DNS has in names of hosts, too.
func isForwardedName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	return validLabels(strings.ReplaceAll(s, "_", "x"))
}

// isProto tells whether s names a protocol. XCLIENT knows two, since it decides what is
// spoken; XFORWARD tells of any.
func isProto(s string, allowed forwardedSet) bool {
	if s == "SMTP" || s == "ESMTP" {
		return true
	}
	return allowed&xclientSet != allowed && isKeyword(s) && len(s) <= 64
}

// parseForwardedAddr reads an IPv4 address, or an IPv6 address with its tag. Some proxies
// leave the tag out, and it is clear without.
func parseForwardedAddr(s string) (netip.Addr, error) {
	tag := "IPV6:"
	tagged := len(s) > len(tag) && strings.EqualFold(s[:len(tag)], tag)
	if tagged {
		s = s[len(tag):]
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" || tagged && !addr.Is6() {
		return netip.Addr{}, errForwarded
	}
	return addr.Unmap(), nil
}

func parseForwardedPort(s string) (uint16, error) {
	if strings.Trim(s, "0123456789") != "" {
		return 0, errForwarded
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err
}

// maxForwardedLine keeps to the length of a command line. RFC 5321, Section 4.5.3.1.4.
const maxForwardedLine = 512 - len("\r\n")

// appendForwarded writes what of f the server has asked for as commands of the given verb,
// more than one if a line would be too long. What is not known is said to be so: on a
// connection that told of another client before, silence would mean that one. It returns
// the number of commands, which is 0 if the server asked for nothing.
func appendForwarded(b []byte, verb string, f Forwarded, offered forwardedSet) (out []byte, commands int) {
	room := 0
	var buf [64]byte
	for i, word := range forwardedWords {
		attr := forwardedSet(1 << i)
		if !offered.has(attr) {
			continue
		}
		value, ok := f.attr(attr, verb)
		if !ok {
			continue
		}
		spelled := appendXtext(buf[:0], value)
		need := len(" =") + len(word) + len(spelled)
		if need > room {
			if commands > 0 {
				b = append(b, '\r', '\n')
			}
			b = append(b, verb...)
			room = maxForwardedLine - len(verb)
			commands++
		}
		room -= need
		b = append(append(append(append(b, ' '), word...), '='), spelled...)
	}
	if commands > 0 {
		b = append(b, '\r', '\n')
	}
	return b, commands
}

// attr returns the value of one attribute as it is sent; ok is false if it must not be
// sent at all.
func (f Forwarded) attr(attr forwardedSet, verb string) (value string, ok bool) {
	switch attr {
	case forwardedName:
		if isForwardedName(f.Name) {
			value = f.Name
		}
	case forwardedAddr:
		value = forwardedAddrText(f.Addr)
	case forwardedDestAddr:
		value = forwardedAddrText(f.DestAddr)
	case forwardedPort:
		value = forwardedPortText(f.Port)
	case forwardedDestPort:
		value = forwardedPortText(f.DestPort)
	case forwardedProto:
		allowed := xforwardSet
		if verb == "XCLIENT" {
			allowed = xclientSet
		}
		if isProto(f.Proto, allowed) {
			value = f.Proto
		} else if verb == "XCLIENT" {
			return "", false // which has no word for a protocol that is not known
		}
	case forwardedHelo:
		if isHeloName(f.Helo) {
			value = f.Helo
		}
	case forwardedIdent:
		value = f.Ident
	case forwardedSource:
		if f.Source == "LOCAL" || f.Source == "REMOTE" {
			value = f.Source
		}
	case forwardedLogin:
		value = f.Login
	}
	// In xtext an octet may take three, and still it has to fit the line.
	if checkForwarded(value) != nil || len(value) > maxForwardedLine/3-16 && !isPlain(value) {
		value = unavailable
	}
	return value, true
}

// isPlain tells whether xtext spells s as it is.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' || s[i] == '+' || s[i] == '=' {
			return false
		}
	}
	return true
}

func forwardedAddrText(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	switch {
	case !a.IsValid():
		return ""
	case a.Is4():
		return a.String()
	}
	return "IPV6:" + a.String()
}

func forwardedPortText(n uint16) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(int(n))
}

// with returns f, which may be nil, with the attributes of set from g.
func (f *Forwarded) with(g Forwarded, set forwardedSet) *Forwarded {
	if f == nil {
		f = new(Forwarded)
	}
	f.take(g, set)
	return f
}

// value returns what f points to; ok is false for nil.
func (f *Forwarded) value() (_ Forwarded, ok bool) {
	if f == nil {
		return Forwarded{}, false
	}
	return *f, true
}

// take overwrites the attributes of set with those of g: what a later command says adds to
// what an earlier one said.
func (f *Forwarded) take(g Forwarded, set forwardedSet) {
	if set.has(forwardedName) {
		f.Name = g.Name
	}
	if set.has(forwardedAddr) {
		f.Addr = g.Addr
	}
	if set.has(forwardedPort) {
		f.Port = g.Port
	}
	if set.has(forwardedProto) {
		f.Proto = g.Proto
	}
	if set.has(forwardedHelo) {
		f.Helo = g.Helo
	}
	if set.has(forwardedIdent) {
		f.Ident = g.Ident
	}
	if set.has(forwardedSource) {
		f.Source = g.Source
	}
	if set.has(forwardedLogin) {
		f.Login = g.Login
	}
	if set.has(forwardedDestAddr) {
		f.DestAddr = g.DestAddr
	}
	if set.has(forwardedDestPort) {
		f.DestPort = g.DestPort
	}
}
