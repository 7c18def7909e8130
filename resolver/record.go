package resolver

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"
	"unsafe"
)

// record.go: what comes out of a look-up.

// Type is the type of a record, as the DNS counts them.
type Type uint16

// The types that can be looked up.
const (
	TypeA     Type = 1
	TypeNS    Type = 2
	TypeCNAME Type = 5
	TypePTR   Type = 12
	TypeMX    Type = 15
	TypeTXT   Type = 16
	TypeAAAA  Type = 28
	TypeSRV   Type = 33
	TypeTLSA  Type = 52
)

var typeNames = map[Type]string{
	TypeA: "A", TypeNS: "NS", TypeCNAME: "CNAME", TypePTR: "PTR",
	TypeMX: "MX", TypeTXT: "TXT", TypeAAAA: "AAAA", TypeSRV: "SRV", TypeTLSA: "TLSA",
}

// String returns the name of the type, or TYPE and its number (RFC 3597, Section 5).
func (t Type) String() string {
	if s, ok := typeNames[t]; ok {
		return s
	}
	return "TYPE" + strconv.Itoa(int(t))
}

// Meta is what every answer says, one that has no records included.
type Meta struct {
	// Canonical is the name at the end of the chain of CNAMEs, the one that has the
	// records or has none. It is the name asked for if there is no chain.
	Canonical string
	// Authentic tells that a server whose word counts has validated the whole answer,
	// each CNAME on the way included. See the package comment.
	Authentic bool
	// Expires is when the answer is to be thought of as gone, an hour ahead at most. An
	// answer is not used longer than that, not even if its servers fail.
	Expires time.Time
	// EDE is what the server said about the answer beside its code. Nil if nothing.
	EDE *ExtendedError
}

// ExtendedError is an extended DNS error (RFC 8914). It may stand beside a good answer.
type ExtendedError struct {
	Code uint16
	// Text is what the server added, 256 octets at most. It may hold anything.
	Text string
}

// String returns the name of the code as the registry of RFC 8914 has it, and the text.
func (e *ExtendedError) String() string {
	name, ok := extendedName(e.Code)
	if !ok {
		name = "extended error " + strconv.Itoa(int(e.Code))
	}
	if e.Text == "" {
		return name
	}
	return fmt.Sprintf("%s: %q", name, e.Text)
}

// Record is one record of any type that can be looked up. Which fields are set depends on
// the Type.
type Record struct {
	Name string // the owner: the canonical name, in lower case
	Type Type
	TTL  uint32 // in seconds, as the server said it when it was asked

	Addr       netip.Addr // A and AAAA. An AAAA is always 16 octets long, mapped ones too
	Host       string     // CNAME, MX, NS, PTR, SRV: the name pointed to, in lower case
	Preference uint16     // MX; of SRV the priority (RFC 2782)
	Weight     uint16     // SRV
	Port       uint16     // SRV
	Text       string     // TXT: the octets of all its strings, joined
	TLSA       TLSA       // TLSA
}

// size is about what the record takes in memory, in bytes.
func (r *Record) size() int {
	return int(unsafe.Sizeof(*r)) + len(r.Name) + len(r.Host) + len(r.Text) + len(r.TLSA.Data)
}

// Answer is what Lookup returns: the records of one type, in the order in which the server
// sent them. An answer without an error has one record at least.
type Answer struct {
	Meta
	Records []Record
}

// Result is what the look-ups of one type return: an Answer with the values alone.
type Result[T any] struct {
	Meta
	Records []T
}

// Addrs is what LookupAddrs returns.
type Addrs struct {
	// Meta is about both families. It is authentic only if the answers for all families
	// asked for are, but for one that Failed, and expires with the first of them.
	Meta
	Addrs []netip.Addr // IPv4 first
	// Failed is why one family is not known, while the other has addresses. Nil if all
	// that was asked for is known.
	Failed error
}

// MX is a mail exchanger.
type MX struct {
	Preference uint16
	Host       string // "." means no mail here (RFC 7505, Section 3)
}

// TLSA says which certificate or key a server has (RFC 6698, Section 2.1). Nothing is
// checked: whether the fields make sense is for DANE to say.
type TLSA struct {
	Usage, Selector, MatchingType uint8
	Data                          string // the octets of the certificate association data
}
