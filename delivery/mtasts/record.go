package mtasts

import (
	"errors"
	"strings"
)

// record.go reads the TXT record of RFC 8461, Section 3.1.

// ErrNoRecord is the error of ParseRecord, and behind that of a Result, if a domain has no
// record of MTA-STS. It stands beside a policy that is kept, which holds on.
var ErrNoRecord = errors.New("no record of MTA-STS")

var (
	errRecords     = errors.New("mtasts: several records of MTA-STS")
	errRecordField = errors.New("mtasts: the record has something that is not a name, = and a value")
	errNoID        = errors.New("mtasts: the record has no id")
	errID          = errors.New("mtasts: the id of the record is not 1 to 32 letters and digits")
)

// ParseRecord returns the id in the TXT records of _mta-sts.DOMAIN, the strings of each record
// joined. Records of other things are passed over. If none is left the error is ErrNoRecord;
// several are an error, as is one that is malformed: then the domain has no policy to be
// found, and one that is kept holds on.
func ParseRecord(texts []string) (id string, err error) {
	ours := recordsOf(texts, "v=STSv1;")
	if len(ours) == 0 {
		// The grammar has room before the first semicolon, and the text does not (erratum
		// 6285). Where no record begins as the text says, what the grammar allows will do.
		ours = recordsOf(texts, "v=STSv1 ", "v=STSv1\t")
	}
	switch len(ours) {
	case 0:
		return "", ErrNoRecord
	case 1:
		return parseRecord(ours[0])
	}
	return "", errRecords
}

// recordsOf returns those that begin with one of some prefixes.
func recordsOf(texts []string, prefixes ...string) (ours []string) {
	for _, t := range texts {
		for _, p := range prefixes {
			if strings.HasPrefix(t, p) {
				ours = append(ours, t)
			}
		}
	}
	return ours
}

func parseRecord(text string) (string, error) {
	version, rest, ok := strings.Cut(text, ";")
	if !ok || strings.TrimRight(version, " \t") != "v=STSv1" {
		return "", errRecordField
	}
	id, found := "", false
	fields := strings.Split(strings.TrimRight(rest, " \t"), ";")
	if last := len(fields) - 1; fields[last] == "" {
		fields = fields[:last] // a semicolon may stand at the end
	}
	for _, f := range fields {
		name, value, ok := strings.Cut(strings.Trim(f, " \t"), "=")
		switch {
		case !ok || !isFieldName(name) || !isRecordValue(value):
			return "", errRecordField
		case name != "id" || found:
			// Unknown, or there already: the first counts, as in policies.
		case !isID(value):
			return "", errID
		default:
			id, found = value, true
		}
	}
	if !found {
		return "", errNoID
	}
	return id, nil
}

func isID(s string) bool {
	return s != "" && len(s) <= 32 && strings.Trim(s, letters+digits) == ""
}

// isRecordValue tells whether a string is visible ASCII without = (and without ;, at which it
// was cut).
func isRecordValue(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '=' })
}
