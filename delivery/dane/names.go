package dane

import (
	"crypto/x509"
	"slices"
	"strings"
)

// names.go: which names a certificate has, for records of usage DANE-TA.

// matchName returns the first of names that cert is for. RFC 7672, Section 3.2.2: its
// DNS-IDs, and its common name only if it has none. The rules of crypto/x509 do not serve
// here, as they know no common names.
func matchName(cert *x509.Certificate, names []string) (string, bool) {
	presented := cert.DNSNames
	if len(presented) == 0 {
		presented = []string{cert.Subject.CommonName}
	}
	for _, name := range names {
		for _, pattern := range presented {
			if covers(pattern, name) {
				return name, true
			}
		}
	}
	return "", false
}

// covers tells whether a presented name is that of a host, or has an asterisk for its first
// label. The asterisk stands for one label, and is a whole label (RFC 7672, Section 3.2.2).
func covers(pattern, host string) bool {
	pattern, host = strings.TrimSuffix(pattern, "."), strings.TrimSuffix(host, ".")
	if suffix, ok := strings.CutPrefix(pattern, "*."); ok {
		var label string
		if label, host, ok = strings.Cut(host, "."); !ok || label == "" {
			return false
		}
		pattern = suffix
	}
	// An asterisk elsewhere is a letter that no host name has.
	return pattern != "" && !strings.Contains(pattern, "*") && equalASCII(pattern, host)
}

// mayName tells whether authorities may vouch for a name that stands in the common name of a
// certificate. crypto/x509 holds the other names alone against what an authority may name (RFC
// 5280, Section 4.2.1.10), and one that may name nothing but its own could write this there.
func mayName(authorities []*x509.Certificate, name string) bool {
	in := func(zone string) bool { return within(name, zone) }
	for _, c := range authorities {
		if slices.ContainsFunc(c.ExcludedDNSDomains, in) || len(c.PermittedDNSDomains) > 0 && !slices.ContainsFunc(c.PermittedDNSDomains, in) {
			return false
		}
	}
	return true
}

// within tells whether a name is that of a zone or below it.
func within(name, zone string) bool {
	zone = strings.TrimPrefix(zone, ".")
	cut := len(name) - len(zone)
	return zone == "" || cut >= 0 && equalASCII(name[cut:], zone) && (cut == 0 || name[cut-1] == '.')
}

// equalASCII compares names without regard to the case of ASCII letters, and to no other
// (RFC 4343).
func equalASCII(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if lower(a[i]) != lower(b[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
