package message

import (
	"crypto/tls"
	"net/netip"
	"strings"
	"time"
)

// Received is the trace field that a relay puts on top of every message (RFC 5321,
// Section 4.4). Values of the peer are cleaned when the field is made; they cannot
// break out of it.
type Received struct {
	// Helo is what the client called itself.
	Helo string
	// RDNS is the verified name of the client's address, empty if there is none.
	RDNS string
	// Remote is the client's address; the zero Addr stands for a local socket.
	Remote netip.Addr
	// By is our name.
	By string
	// With is the protocol: ESMTP, ESMTPS ... (RFC 3848).
	With string
	// ID names the message in our log.
	ID string
	// For is the one recipient; empty if there are several, whose addresses are nobody
	// else's business (RFC 5321, Section 7.6).
	For string
	// TLSVersion and TLSCipher are the numbers of crypto/tls; TLSVersion 0 is a clear
	// connection.
	TLSVersion, TLSCipher uint16
	// Time is when the message came.
	Time time.Time
}

// Field returns the field, folded.
func (r Received) Field() Field {
	b := make([]byte, 0, 384)
	b = append(b, "Received: from "...)
	b = append(b, clean(r.Helo)...)
	b = append(b, " ("...)
	if r.RDNS != "" {
		b = append(append(b, clean(r.RDNS)...), ' ')
	}
	b = append(b, '[')
	b = append(b, r.address()...)
	b = append(b, "])"...)
	if r.TLSVersion != 0 {
		b = append(b, "\r\n\t(using "...)
		b = append(b, strings.ReplaceAll(tls.VersionName(r.TLSVersion), " ", "v")...)
		b = append(b, " with cipher "...)
		b = append(b, tls.CipherSuiteName(r.TLSCipher)...)
		b = append(b, ')')
	}
	b = append(b, "\r\n\tby "...)
	b = append(b, clean(r.By)...)
	b = append(b, " (Penstock) with "...)
	b = append(b, r.With...)
	b = append(b, " id "...)
	b = append(b, clean(r.ID)...)
	if r.For != "" {
		b = append(b, "\r\n\tfor <"...)
		b = append(b, r.For...)
		b = append(b, '>')
	}
	b = append(b, ";\r\n\t"...)
	b = r.Time.AppendFormat(b, "Mon, 02 Jan 2006 15:04:05 -0700")
	return Field{raw: append(b, '\r', '\n'), name: len("Received")}
}

// address is the content of a TCP-info: RFC 5321, Section 4.4 wants a literal.
func (r Received) address() string {
	switch {
	case !r.Remote.IsValid():
		return "local"
	case r.Remote.Is4() || r.Remote.Is4In6():
		return r.Remote.Unmap().String()
	default:
		return "IPv6:" + r.Remote.WithZone("").String()
	}
}

// clean makes a peer's word harmless: what is not of a name or a literal becomes "?".
func clean(s string) string {
	if s == "" {
		return "unknown"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		case strings.ContainsRune("-._:[]+=", r):
			return r
		}
		return '?'
	}, s)
}
