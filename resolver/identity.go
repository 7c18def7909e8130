package resolver

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// identity.go finds the name of a client. The names of an address are what the owner of
// the address claims; a name counts if the owner of the name agrees, which is when the
// address is among those of the name (RFC 8601, Section 3, policy "iprev").

// maxNames is how many names of an address are looked at. More are the mark of an address
// that many hosts share, and each costs a look-up.
const maxNames = 10

// Status says how much is known about the name of an address.
type Status int

// The values of Status.
const (
	// None: the address has no names, or none that a host can have.
	None Status = iota
	// Confirmed: Name is the address's name.
	Confirmed
	// Unconfirmed: the address has names, and none of them has the address.
	Unconfirmed
	// Unknown: a look-up failed or took too long, and no name was confirmed without it.
	Unknown
)

// String returns the status in a word, as logs have it.
func (s Status) String() string {
	switch s {
	case None:
		return "none"
	case Confirmed:
		return "confirmed"
	case Unconfirmed:
		return "unconfirmed"
	case Unknown:
		return "temporary failure"
	}
	return strconv.Itoa(int(s))
}

// Identity is the name of a client. Its names are host names in lower case, made of
// letters, digits, hyphens, underscores and dots.
type Identity struct {
	Status Status
	// Name is the first name that was confirmed. Empty unless the Status is Confirmed.
	Name string
	// Unconfirmed is the first name that the address has but that was not confirmed.
	// Empty if there is none. Nobody but the owner of the address vouches for it.
	Unconfirmed string
	// Err tells what failed, of the Status Unknown.
	Err error
}

// Name finds the name of an address, in the time that the context leaves. Ten names of the
// address are looked at, in order of the reply; the first one that has the address counts.
func (r *Resolver) Name(ctx context.Context, addr netip.Addr) Identity {
	addr = addr.Unmap().WithZone("")
	ptr, err := r.LookupPTR(ctx, addr)
	switch {
	case errors.Is(err, ErrTemporary):
		return Identity{Status: Unknown, Err: err}
	case err != nil:
		return Identity{}
	}
	var id Identity
	for _, name := range ptr.Records[:min(len(ptr.Records), maxNames)] {
		if !hostName(name) {
			continue
		}
		ok, err := r.confirms(ctx, name, addr)
		switch {
		case ok:
			id.Status, id.Name, id.Err = Confirmed, name, nil
			return id
		case err != nil && id.Err == nil:
			id.Err = err
		}
		if id.Unconfirmed == "" {
			id.Unconfirmed = name
		}
	}
	switch {
	case id.Err != nil:
		id.Status = Unknown
	case id.Unconfirmed != "":
		id.Status = Unconfirmed
	}
	return id
}

// confirms tells whether the name has the address. The error is one that is temporary.
func (r *Resolver) confirms(ctx context.Context, name string, addr netip.Addr) (bool, error) {
	family := IPv6
	if addr.Is4() {
		family = IPv4
	}
	found, err := r.LookupAddrs(ctx, name, family)
	if errors.Is(err, ErrTemporary) {
		return false, err
	}
	return slices.Contains(found.Addrs, addr), nil
}

// reverseName is the name under which the names of an address are found (RFC 1035,
// Section 3.5; RFC 3596, Section 2.5). It is empty for no address.
func reverseName(addr netip.Addr) string {
	addr = addr.Unmap()
	var b []byte
	octets := addr.AsSlice()
	slices.Reverse(octets)
	if addr.Is4() {
		for _, o := range octets {
			b = append(strconv.AppendUint(b, uint64(o), 10), '.')
		}
		return string(append(b, "in-addr.arpa"...))
	}
	const hex = "0123456789abcdef"
	for _, o := range octets {
		b = append(b, hex[o&15], '.', hex[o>>4], '.')
	}
	if len(b) == 0 {
		return ""
	}
	return string(append(b, "ip6.arpa"...))
}

// hostName tells whether a host can have the name. It goes into header fields and logs,
// so that only letters, digits, hyphens, underscores and dots will do. One whose last label
// is a number would look like an address (RFC 1123, Section 2.1).
func hostName(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if len(name) > maxName || digits(last) {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}
