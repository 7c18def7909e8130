package dane

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/penstock/penstock/resolver"
)

// record.go: what a TLSA record says, as octets and as text, and which records count.

// Record is a TLSA record (RFC 6698, Section 2.1), as the resolver returns it.
type Record = resolver.TLSA

// The certificate usages (RFC 6698, Section 2.1.1; names of RFC 7218).
const (
	UsagePKIXTA uint8 = 0 // not usable for mail
	UsagePKIXEE uint8 = 1 // not usable for mail
	UsageDANETA uint8 = 2 // who issued the certificate
	UsageDANEEE uint8 = 3 // the certificate itself
)

// The selectors (RFC 6698, Section 2.1.2): which part of a certificate is meant.
const (
	SelectorCert uint8 = 0 // all of it
	SelectorSPKI uint8 = 1 // the key, with its algorithm: SubjectPublicKeyInfo
)

// The matching types (RFC 6698, Section 2.1.3): in which form it is in the record.
const (
	MatchFull   uint8 = 0 // as it is
	MatchSHA256 uint8 = 1
	MatchSHA512 uint8 = 2
)

// The names of RFC 7218, by value.
var (
	usageNames    = [...]string{"PKIX-TA", "PKIX-EE", "DANE-TA", "DANE-EE"}
	selectorNames = [...]string{"Cert", "SPKI"}
	matchNames    = [...]string{"Full", "SHA2-256", "SHA2-512"}
)

// Of returns the record that a host publishes for a certificate. An error means that a
// parameter has a value without a meaning.
func Of(cert *x509.Certificate, usage, selector, matchingType uint8) (Record, error) {
	r := Record{Usage: usage, Selector: selector, MatchingType: matchingType}
	if int(usage) >= len(usageNames) || int(selector) >= len(selectorNames) || int(matchingType) >= len(matchNames) {
		return Record{}, fmt.Errorf("dane: no such parameters: %d %d %d", usage, selector, matchingType)
	}
	r.Data = association(cert, selector, matchingType)
	return r, nil
}

// association is the part of cert that is selected, in the form that is asked for. Both
// values must be known ones.
func association(cert *x509.Certificate, selector, matchingType uint8) string {
	part := cert.Raw
	if selector == SelectorSPKI {
		part = cert.RawSubjectPublicKeyInfo
	}
	switch matchingType {
	case MatchSHA256:
		sum := sha256.Sum256(part)
		return string(sum[:])
	case MatchSHA512:
		sum := sha512.Sum512(part)
		return string(sum[:])
	}
	return string(part)
}

// Format returns the record as a zone file has it: "3 1 1 8f0d...".
func Format(r Record) string {
	b := make([]byte, 0, 12+2*len(r.Data))
	for _, n := range []uint8{r.Usage, r.Selector, r.MatchingType} {
		b = strconv.AppendUint(b, uint64(n), 10)
		b = append(b, ' ')
	}
	return string(hex.AppendEncode(b, []byte(r.Data)))
}

// Describe returns the parameters in the words of RFC 7218, "DANE-EE(3) SPKI(1)
// SHA2-256(1)", as people who look for a fault read them.
func Describe(r Record) string {
	return named(r.Usage, usageNames[:]) + " " + named(r.Selector, selectorNames[:]) + " " + named(r.MatchingType, matchNames[:])
}

func named(n uint8, names []string) string {
	if int(n) < len(names) {
		return names[n] + "(" + strconv.Itoa(int(n)) + ")"
	}
	return "unknown(" + strconv.Itoa(int(n)) + ")"
}

// maxData is how much a record can hold (RFC 1035, Section 3.2.1), less three octets.
const maxData = 65535 - 3

// ParseRecord reads a record as a zone file has it: three numbers, or the names of RFC
// 7218, and the data in hexadecimal, which spaces and parentheses may break up. Parameters
// without a meaning are not an error, since a zone may have them too; see [Usable].
func ParseRecord(s string) (Record, error) {
	var r Record
	fields := strings.FieldsFunc(s, func(c rune) bool { return strings.ContainsRune(" \t\r\n()", c) })
	if len(fields) < 4 {
		return r, fmt.Errorf("dane: %q is not a TLSA record: it has three parameters and data", clip(s))
	}
	for i, p := range []struct {
		value *uint8
		names []string
	}{{&r.Usage, usageNames[:]}, {&r.Selector, selectorNames[:]}, {&r.MatchingType, matchNames[:]}} {
		n, err := parameter(fields[i], p.names)
		if err != nil {
			return Record{}, err
		}
		*p.value = n
	}
	digits := strings.Join(fields[3:], "")
	if len(digits) > 2*maxData {
		return Record{}, errors.New("dane: a TLSA record does not hold so much data")
	}
	data, err := hex.DecodeString(digits)
	if err != nil {
		return Record{}, fmt.Errorf("dane: %q is not a TLSA record: its data is not hexadecimal", clip(s))
	}
	r.Data = string(data)
	return r, nil
}

// parameter reads a number of one octet, or one of names.
func parameter(s string, names []string) (uint8, error) {
	for i, name := range names {
		if strings.EqualFold(s, name) {
			return uint8(i), nil
		}
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("dane: %q is no parameter of a TLSA record", clip(s))
	}
	return uint8(n), nil
}

// clip shortens what goes into an error.
func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}

// Why returns why a record is not usable, in words. Empty if it is.
func Why(r Record) string {
	switch {
	case r.Usage == UsagePKIXTA || r.Usage == UsagePKIXEE:
		// RFC 7672, Section 3.1.3: what a client does with these is not defined, and it
		// may take them for unusable.
		return "usage " + named(r.Usage, usageNames[:]) + " is not for mail"
	case int(r.Usage) >= len(usageNames):
		return "unknown usage"
	case int(r.Selector) >= len(selectorNames):
		return "unknown selector"
	case int(r.MatchingType) >= len(matchNames):
		return "unknown matching type"
	case r.MatchingType == MatchSHA256 && len(r.Data) != sha256.Size,
		r.MatchingType == MatchSHA512 && len(r.Data) != sha512.Size:
		return "a digest of the wrong length"
	case r.MatchingType == MatchFull && r.Selector == SelectorCert && !isCertificate(r.Data):
		return "the data is not a certificate"
	case r.MatchingType == MatchFull && r.Selector == SelectorSPKI && !isKey(r.Data):
		return "the data is not a public key"
	}
	return ""
}

// isCertificate tells whether data has the outer form of a certificate. More is not asked:
// a record with a certificate that we cannot read is not unusable, it is one that does not
// match, since its owner meant to be authenticated.
func isCertificate(data string) bool {
	var c struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	rest, err := asn1.Unmarshal([]byte(data), &c)
	return err == nil && len(rest) == 0
}

// isKey tells whether data has the outer form of a SubjectPublicKeyInfo.
func isKey(data string) bool {
	var k struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	rest, err := asn1.Unmarshal([]byte(data), &k)
	return err == nil && len(rest) == 0
}

// Usable returns the records that decide, in their order. Those are left out that [Why]
// names a reason for, and of digests of the same usage and selector all but the strongest:
// whoever publishes two expects the better one to count, and an attacker who can forge the
// weaker gains nothing (RFC 7671, Section 9). Full data has no digest to be forged and
// stays.
func Usable(records []Record) []Record {
	var strongest [len(usageNames)][len(selectorNames)]uint8
	usable := make([]Record, 0, len(records))
	for _, r := range records {
		if Why(r) != "" {
			continue
		}
		usable = append(usable, r)
		s := &strongest[r.Usage][r.Selector]
		*s = max(*s, r.MatchingType) // SHA-512 has the larger number, too
	}
	kept := usable[:0]
	for _, r := range usable {
		if r.MatchingType == MatchFull || r.MatchingType == strongest[r.Usage][r.Selector] {
			kept = append(kept, r)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}
