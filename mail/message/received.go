package message

import (
	"crypto/tls"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// Received is the trace field that a relay puts on top of every message (RFC 5321,
// Section 4.4). Values of the peer are cleaned when the field is made; they cannot
// break out of it or change what it says.
type Received struct {
	// Helo is what the client called itself, "unknown" if empty.
	Helo string
	// RDNS is the verified name of the client's address, empty if there is none.
	RDNS string
	// Remote is the client's address; the zero Addr stands for a local socket, or with
	// Unknown for a client of which somebody in front of us did not tell it.
	Remote  netip.Addr
	Unknown bool
	// By is our name.
	By string
	// With is the protocol: ESMTP, ESMTPS ... (RFC 3848); SMTP if empty.
	With string
	// ID names the message in our log.
	ID string
	// For is the one recipient, without brackets; empty if there are several, whose
	// addresses are nobody else's business (RFC 5321, Section 7.6). What is not an
	// address is left out.
	For string
	// TLSVersion and TLSCipher are the numbers of crypto/tls; TLSVersion 0 is a clear
	// connection, TLSCipher 0 a cipher that is not known.
	TLSVersion, TLSCipher uint16
	// Time is when the message came.
	Time time.Time
}

// Field returns the field, folded. No line exceeds 998 octets.
func (r Received) Field() Field {
	b := make([]byte, 0, 384)
	b = append(b, "Received: from "...)
	b = appendName(b, r.Helo, "unknown")
	b = r.appendClient(b)
	if r.TLSVersion != 0 {
		b = append(b, "\r\n\t(using "...)
		b = append(b, tlsVersion(r.TLSVersion)...)
		if r.TLSCipher != 0 {
			b = append(b, " with cipher "...)
			b = append(b, cipherName(r.TLSCipher)...)
		}
		b = append(b, ')')
	}
	b = append(b, "\r\n\tby "...)
	b = appendName(b, r.By, "unknown")
	b = append(b, " (Penstock) with "...)
	b = appendName(b, r.With, "SMTP")
	b = append(b, " id "...)
	b = appendName(b, r.ID, "unknown")
	if p, ok := r.recipient(); ok {
		b = append(p.AppendTo(append(b, "\r\n\tfor <"...)), '>')
	}
	b = append(b, ";\r\n\t"...)
	b = r.Time.AppendFormat(b, "Mon, 02 Jan 2006 15:04:05 -0700")
	return Field{raw: append(b, '\r', '\n'), name: len("Received")}
}

// recipient returns For, if it is an address.
func (r Received) recipient() (smtp.Path, bool) {
	p, err := smtp.ParseAddress(r.For)
	if err != nil { // <postmaster> is none without its brackets
		p, err = smtp.ParsePath("<" + r.For + ">")
	}
	return p, err == nil && !p.IsNull()
}

// appendClient appends the TCP-info, which is what we know ourselves of the client. RFC
// 5321, Section 4.4 wants an address literal; a local socket has none, so that it gets a
// comment.
func (r Received) appendClient(b []byte) []byte {
	switch {
	case r.Remote.IsValid():
	case r.Unknown:
		return append(b, " (unknown)"...)
	default:
		return append(b, " (local socket)"...)
	}
	b = append(b, " ("...)
	if r.RDNS != "" {
		b = append(appendName(b, r.RDNS, ""), ' ')
	}
	b = append(b, '[')
	if addr := r.Remote.Unmap(); addr.Is4() {
		b = addr.AppendTo(b)
	} else {
		b = addr.WithZone("").AppendTo(append(b, "IPv6:"...))
	}
	return append(b, "])"...)
}

// tlsVersion is tls.VersionName in one word.
func tlsVersion(v uint16) string {
	switch v {
	case tls.VersionTLS12:
		return "TLSv1.2"
	case tls.VersionTLS13:
		return "TLSv1.3"
	}
	return strings.ReplaceAll(tls.VersionName(v), " ", "v")
}

// cipherNames spares every message the list that tls.CipherSuiteName makes.
var cipherNames = sync.OnceValue(func() map[uint16]string {
	names := make(map[uint16]string)
	for _, c := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		names[c.ID] = c.Name
	}
	return names
})

// cipherName is tls.CipherSuiteName.
func cipherName(id uint16) string {
	if name, ok := cipherNames()[id]; ok {
		return name
	}
	return tls.CipherSuiteName(id)
}

// maxWord is the longest name that is written; a domain name has 253 octets.
const maxWord = 255

// appendName appends s, or def if it is empty. Only an address literal and the
// characters of names pass; others become "?", so that a client called "x (bank.example
// [192.0.2.1])" does not appear to be one.
func appendName(b []byte, s, def string) []byte {
	if s == "" {
		s = def
	}
	if s[0] == '[' {
		if d, err := smtp.ParseDomain(s); err == nil {
			return append(b, d.String()...)
		}
	}
	n := len(b)
	for _, r := range s {
		if len(b)-n == maxWord {
			break
		}
		if !isNameRune(r) {
			r = '?'
		}
		b = append(b, byte(r))
	}
	return b
}

func isNameRune(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || r == '-' || r == '.' || r == '_'
}
