package dane

import (
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// verify.go holds the certificates of a handshake against TLSA records.
//
// For DANE-EE that is a comparison. For DANE-TA it takes a path of signatures from the
// server's certificate to one that a record names, or to a key that stands in a record.
// Such a certificate is found here, at depth one or more, and becomes the only root that
// crypto/x509 may end at; so dates, constraints and key usages are held as everywhere
// else, and the work is bounded as there. Two things are kept from it. The server's own
// certificate is never a root, or a self-signed one would be its own authority. And it is
// not given the name, since it knows one name and no common names.
//
// What a peer may send is not bounded by good sense: thousands of certificates, cycles,
// several that did not parse. We look at maxChain of them and try maxKeys signatures. A key that
// stands in a record may be as long as the record: one of half a million bits takes a processor
// a quarter of a minute for each signature. Those of more than maxRSA bits are no anchors.

const (
	// maxChain is how many certificates of a chain are looked at. Real ones have up to six.
	maxChain = 64
	// maxKeys is how many signatures are tried with keys that stand in records.
	maxKeys = 64
	// maxRSA is how many bits an RSA key may have. crypto/tls takes no more of the server.
	maxRSA = 8192
)

// VerifyOptions are the settings of Verify.
type VerifyOptions struct {
	// Names are those that a certificate issued by a DANE-TA trust anchor may have: the TLSA
	// base domain first, and where it is known securely the domain of the mail (RFC 7672,
	// Section 3.2.2). In A-labels. Without names no record of that usage matches.
	Names []string
	// Now is what the dates of certificates are held against. The zero time is now.
	Now time.Time
}

// Match tells what authenticated a certificate.
type Match struct {
	Record Record
	// Depth is where in the chain the record matched, 0 being the server's own certificate
	// and the only one for DANE-EE. -1 means that the trust anchor is in the record alone.
	Depth int
	// Name is which of the names the certificate has. Empty for DANE-EE.
	Name string
}

// Reason says why certificates do not match.
type Reason string

// The values of Reason.
const (
	NoCertificate Reason = "no certificate"                 // the server sent none, or its own is not readable
	NoneUsable    Reason = "no usable record"               // no record could have matched anything
	NoMatch       Reason = "no record matches"              // and no trust anchor was found
	NotTrusted    Reason = "not issued by the trust anchor" // one was found, without a valid path to it
	Expired       Reason = "certificate out of date"        // a certificate on the path is expired, or not valid yet
	WrongName     Reason = "certificate for another name"
)

// VerifyError is the error of Verify.
type VerifyError struct {
	Reason Reason
	Err    error // more about it, of crypto/x509. Nil if there is no more
}

// Error returns one line for a log.
func (e *VerifyError) Error() string {
	if e.Err == nil {
		return "dane: " + string(e.Reason)
	}
	return fmt.Sprintf("dane: %s: %v", e.Reason, e.Err)
}

// Unwrap returns the cause.
func (e *VerifyError) Unwrap() error { return e.Err }

// Verify tells whether one of the records matches the certificates that a server sent, its
// own first. Nil, and one without its encoding, stands for one that could not be parsed. The records are taken through
// [Usable]; without usable records Verify fails, and whether TLS without authentication will
// do is for the caller to say (see [Set]). The error is a *VerifyError.
func Verify(chain []*x509.Certificate, records []Record, o VerifyOptions) (Match, error) {
	if len(chain) == 0 || unreadable(chain[0]) {
		return Match{}, &VerifyError{Reason: NoCertificate}
	}
	usable := Usable(records)
	if len(usable) == 0 {
		return Match{}, &VerifyError{Reason: NoneUsable}
	}
	v := &verifier{names: o.Names, now: o.Now}
	if v.now.IsZero() {
		v.now = time.Now()
	}
	v.chain = make([]*element, 0, min(len(chain), maxChain))
	for i, cert := range chain[:min(len(chain), maxChain)] {
		if !unreadable(cert) {
			v.chain = append(v.chain, &element{cert: cert, depth: i})
		}
	}
	for _, r := range usable {
		if r.Usage == UsageDANEEE && v.chain[0].is(r) {
			return Match{Record: r}, nil
		}
	}
	return v.anchored(usable)
}

func unreadable(c *x509.Certificate) bool { return c == nil || len(c.Raw) == 0 }

// heavy tells whether to verify a signature with a key is too much work.
func heavy(key any) bool {
	k, ok := key.(*rsa.PublicKey)
	return ok && k.N.BitLen() > maxRSA
}

// element is a certificate of the chain.
type element struct {
	cert  *x509.Certificate
	depth int
	forms [len(selectorNames)][len(matchNames)]string // computed when first asked for
}

// is tells whether a usable record names the certificate.
func (e *element) is(r Record) bool {
	form := &e.forms[r.Selector][r.MatchingType]
	if *form == "" {
		*form = association(e.cert, r.Selector, r.MatchingType)
	}
	return *form == r.Data
}

// verifier is one Verify under way.
type verifier struct {
	chain   []*element
	names   []string
	now     time.Time
	anchors []anchor
	tried   int // signatures tried with keys of records
}

// anchor is a certificate that a path may end at.
type anchor struct {
	cert *x509.Certificate
	Match
}

// anchored looks for a path to a trust anchor.
func (v *verifier) anchored(usable []Record) (Match, error) {
	for _, r := range usable {
		if r.Usage == UsageDANETA {
			v.collect(r)
		}
	}
	if len(v.anchors) == 0 {
		return Match{}, &VerifyError{Reason: NoMatch}
	}
	paths, err := v.paths()
	if err != nil {
		return Match{}, &VerifyError{Reason: reasonOf(err), Err: err}
	}
	leaf := v.chain[0].cert
	name, ok := matchName(leaf, v.names)
	if !ok {
		err := fmt.Errorf("it is for %s, not for %s", presented(leaf), strings.Join(v.names, ", "))
		return Match{}, &VerifyError{Reason: WrongName, Err: err}
	}
	for _, path := range paths {
		if len(leaf.DNSNames) == 0 && !mayName(path[1:], name) {
			continue
		}
		for _, a := range v.anchors {
			if a.cert.Equal(path[len(path)-1]) {
				a.Name = name
				return a.Match, nil
			}
		}
	}
	return Match{}, &VerifyError{Reason: NotTrusted, Err: fmt.Errorf("an authority on the way must not vouch for %s", name)}
}

// collect finds the trust anchors that one record names: among what the server sent, or in
// the record itself.
func (v *verifier) collect(r Record) {
	for _, e := range v.chain[1:] {
		if e.is(r) && !e.cert.Equal(v.chain[0].cert) && !heavy(e.cert.PublicKey) {
			v.anchors = append(v.anchors, anchor{e.cert, Match{Record: r, Depth: e.depth}})
		}
	}
	if r.MatchingType != MatchFull {
		return
	}
	// RFC 7672, Section 3.1.2: a server should send its trust anchor even where it is in the
	// DNS. It need not be refused for leaving it out: we have it.
	if r.Selector == SelectorSPKI {
		v.collectSigned(r)
		return
	}
	cert, err := x509.ParseCertificate([]byte(r.Data))
	if err == nil && !cert.Equal(v.chain[0].cert) && !heavy(cert.PublicKey) {
		v.anchors = append(v.anchors, anchor{cert, Match{Record: r, Depth: -1}})
	}
}

// collectSigned finds the certificates that were signed with the key in a record. They are
// as good as the key; the server's own may be one of them, unless the key is its own, which
// is no authority for itself.
func (v *verifier) collectSigned(r Record) {
	key, err := x509.ParsePKIXPublicKey([]byte(r.Data))
	if err != nil || heavy(key) || r.Data == string(v.chain[0].cert.RawSubjectPublicKeyInfo) {
		return
	}
	signer := &x509.Certificate{PublicKey: key}
	for _, e := range v.chain {
		if v.tried++; v.tried > maxKeys {
			return
		}
		c := e.cert
		if signer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil {
			v.anchors = append(v.anchors, anchor{c, Match{Record: r, Depth: -1}})
		}
	}
}

// paths looks for signatures that lead from the server's certificate to an anchor.
func (v *verifier) paths() ([][]*x509.Certificate, error) {
	roots, others := x509.NewCertPool(), x509.NewCertPool()
	for _, a := range v.anchors {
		roots.AddCert(a.cert)
	}
	for _, e := range v.chain[1:] {
		if !heavy(e.cert.PublicKey) {
			others.AddCert(e.cert)
		}
	}
	return v.chain[0].cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: others, CurrentTime: v.now})
}

// reasonOf tells old certificates from untrusted ones.
func reasonOf(err error) Reason {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return Expired
	}
	return NotTrusted
}

// presented lists the names of a certificate, not all if they are many.
func presented(cert *x509.Certificate) string {
	names := cert.DNSNames
	if len(names) == 0 {
		names = []string{cert.Subject.CommonName}
	}
	const enough = 8
	list := fmt.Sprintf("%q", names[:min(len(names), enough)])
	if len(names) > enough {
		list += fmt.Sprintf(" and %d more", len(names)-enough)
	}
	return list
}
