package dane

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/penstock/penstock/resolver"
)

// lookup.go: from a host to its TLSA records (RFC 7672, Section 2.2).
//
// The records stand below a name of the host: its own, or the one that its CNAMEs lead to.
// Which of both says whether the look-up of the addresses was authenticated, and that is
// why the addresses come first:
//
//	authenticated, no CNAME    the name
//	authenticated, CNAME       where it leads, or else the name
//	not, no CNAME              none: who can forge an address need not mind the records
//	not, CNAME                 the name, if the CNAME itself is authentic; where it leads
//	                           cannot be known
//
// An error at any step leaves it unknown whether the host is protected, and whoever caused
// the error may be the one whom it is protected from. So there is no further step then.

// Query is what Lookup asks about.
type Query struct {
	// DNS is who is asked.
	DNS resolver.DNS
	// Host is the name as the MX record has it, in A-labels. Empty, as for an address
	// literal, has no records.
	Host string
	// Canonical is the end of the chain of CNAMEs that the look-up of its addresses went
	// along. Empty is Host: there is none.
	Canonical string
	// Authentic tells that the answers with the addresses were authenticated, each CNAME on
	// the way included.
	Authentic bool
	// Port is that of the server. 0 is 25.
	Port uint16
}

// Set is what Lookup found.
type Set struct {
	// Base is the TLSA base domain, below which the records stand. It is the name to say in
	// the handshake (SNI), and one that a certificate from a trust anchor may have (RFC 7672,
	// Sections 3.2.2 and 8.1). Empty without records.
	Base string
	// Records are all records of it, authenticated. None means that DANE does not apply.
	Records []Record
	// Usable are those of Records that decide. None, where there are Records, means that TLS
	// is required and that any certificate will do (RFC 7672, Section 2.2).
	Usable []Record
	// Expires is when the outcome is to be thought of as gone; with outcomes that say nothing
	// about it the zero time, and then it holds as long as the addresses do.
	Expires time.Time
	// Asked are the questions that led here, in order.
	Asked []Asked
	// Why tells in words why there are no records. Empty if there are.
	Why string
}

// Asked is one question and what came of it.
type Asked struct {
	Name      string
	Type      resolver.Type
	Records   int  // how many came
	Authentic bool // whether the answer, be it that there are none, was authenticated
	// EDE is what the resolver added (RFC 8914). Nil if nothing.
	EDE *resolver.ExtendedError
	// Err is why there is no answer. Nil if there is one.
	Err error
}

// Applies tells whether the host has authenticated records: whether TLS is required.
func (s *Set) Applies() bool { return len(s.Records) > 0 }

// Lookup finds the TLSA records of a host. An error means that it is not known whether the
// host has any: it must not be used now, neither without TLS nor with some other check of
// its certificate. The error wraps a *resolver.Error, which may have an EDE and tells with
// resolver.ErrBogus a failed validation from other failures; all of them are temporary. The
// context bounds the look-ups, which are three at most. The Set is filled with an error, too:
// as far as it had come.
func Lookup(ctx context.Context, q Query) (Set, error) {
	l := &lookup{Query: q}
	if l.Port == 0 {
		l.Port = 25
	}
	err := l.run(ctx)
	if err != nil {
		return Set{Asked: l.set.Asked}, err
	}
	if l.set.Applies() {
		l.set.Why = ""
	}
	return l.set, nil
}

// lookup is one Lookup under way.
type lookup struct {
	Query
	set Set
}

func (l *lookup) run(ctx context.Context) error {
	alias := l.Canonical != "" && l.Canonical != l.Host
	switch {
	case l.Host == "":
		l.set.Why = "the host has no name"
	case !l.Authentic && !alias:
		l.set.Why = "its addresses are not authenticated"
	case !l.Authentic:
		return l.insecureAlias(ctx)
	case alias:
		// RFC 7672, Section 2.2.2: the name that the CNAMEs lead to has precedence.
		if err := l.at(ctx, l.Canonical); err != nil || l.set.Applies() {
			return err
		}
		return l.at(ctx, l.Host)
	default:
		return l.at(ctx, l.Host)
	}
	return nil
}

// insecureAlias is for a name with CNAMEs, of which one at least is not authenticated. The
// first may be, and then the name is in a signed zone and may have records there (RFC 7672,
// Section 2.2.2).
func (l *lookup) insecureAlias(ctx context.Context) error {
	res, err := l.DNS.LookupCNAME(ctx, l.Host)
	authentic, err := l.note(l.Host, resolver.TypeCNAME, res.Meta, len(res.Records), err)
	if err != nil {
		return fmt.Errorf("dane: CNAME of %s: %w", l.Host, err)
	}
	if !authentic {
		l.set.Why = "it is an alias, and neither the alias nor its addresses are authenticated"
		return nil
	}
	return l.at(ctx, l.Host)
}

// at asks for the records below base.
func (l *lookup) at(ctx context.Context, base string) error {
	name := Name(base, l.Port)
	res, err := l.DNS.LookupTLSA(ctx, name)
	authentic, err := l.note(name, resolver.TypeTLSA, res.Meta, len(res.Records), err)
	switch {
	case err != nil:
		return fmt.Errorf("dane: TLSA records of %s: %w", base, err)
	case len(res.Records) == 0:
		l.set.Why = "it has no TLSA records"
	case !authentic:
		l.set.Why = "its TLSA records are not authenticated"
	default:
		l.set.Base, l.set.Records, l.set.Usable = base, res.Records, Usable(res.Records)
	}
	return nil
}

// Name returns the name of the TLSA records of a TCP port of a host (RFC 6698, Section 3).
func Name(base string, port uint16) string {
	return "_" + strconv.Itoa(int(port)) + "._tcp." + base
}

// note keeps what came of a question, and returns an error only if it is not known whether
// there are records.
func (l *lookup) note(name string, typ resolver.Type, meta resolver.Meta, records int, err error) (authentic bool, _ error) {
	if failed, ok := errors.AsType[*resolver.Error](err); ok {
		meta = failed.Meta
	}
	a := Asked{Name: name, Type: typ, Records: records, Authentic: meta.Authentic, EDE: meta.EDE}
	switch {
	case err == nil, errors.Is(err, resolver.ErrNotFound):
	case errors.Is(err, resolver.ErrBadName):
		// The name of the host leaves no room for the labels before it. What cannot be in
		// the DNS is not there.
		a.Authentic = false
	default:
		a.Err = err
	}
	l.set.Asked = append(l.set.Asked, a)
	if a.Err != nil {
		return false, a.Err
	}
	if !meta.Expires.IsZero() && (l.set.Expires.IsZero() || meta.Expires.Before(l.set.Expires)) {
		l.set.Expires = meta.Expires
	}
	return a.Authentic, nil
}
