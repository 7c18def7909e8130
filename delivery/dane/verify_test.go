package dane_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	lot "math/rand/v2"
	"testing"
	"time"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/internal/parity"
)

const host = "mx.example.net"

// TestVerify: each way in which certificates match records, and in which they do not.
func TestVerify(t *testing.T) {
	parity.Row(t, "MX-59")
	root := issue(t, nil, spec{name: "root", ca: true})
	inter := issue(t, root, spec{name: "intermediate", ca: true})
	leaf := issue(t, inter, spec{name: "leaf", dns: []string{host}})
	direct := issue(t, root, spec{name: "direct", dns: []string{host}})
	self := issue(t, nil, spec{name: host, dns: []string{host}, ca: true})
	stranger := issue(t, nil, spec{name: "stranger", ca: true})
	impostor := issue(t, nil, spec{name: "root", ca: true}) // the name of the root, and another key
	oldRoot := issue(t, nil, spec{name: "old root", ca: true, expired: true})
	byOld := issue(t, oldRoot, spec{name: "leaf", dns: []string{host}})
	noCA := issue(t, root, spec{name: "no authority"})
	byNoCA := issue(t, noCA, spec{name: "leaf", dns: []string{host}})
	named := func(cn string, dns ...string) *node { return issue(t, root, spec{name: cn, dns: dns}) }
	with := func(alter func(*x509.Certificate)) *node {
		return issue(t, root, spec{name: "leaf", dns: []string{host}, alter: alter})
	}
	expired := issue(t, root, spec{name: "leaf", dns: []string{host}, expired: true})
	notYet := issue(t, root, spec{name: "leaf", dns: []string{host}, notYet: true})
	narrow := issue(t, root, spec{name: "narrow", ca: true, alter: func(c *x509.Certificate) {
		c.PermittedDNSDomains, c.PermittedDNSDomainsCritical = []string{"example.org"}, true
	}})
	outside := issue(t, narrow, spec{name: "leaf", dns: []string{host}})
	outsideCN := issue(t, narrow, spec{name: host}) // crypto/x509 does not look at it
	barred := issue(t, root, spec{name: "barred", ca: true, alter: func(c *x509.Certificate) {
		c.ExcludedDNSDomains, c.PermittedDNSDomainsCritical = []string{"net"}, true
	}})
	barredCN := issue(t, barred, spec{name: "*.Example.net"})
	fits := issue(t, root, spec{name: "fits", ca: true, alter: func(c *x509.Certificate) {
		c.PermittedDNSDomains, c.ExcludedDNSDomains, c.PermittedDNSDomainsCritical = []string{"example.net"}, []string{"x.example.net"}, true
	}})
	fitsCN := issue(t, fits, spec{name: host})
	short := issue(t, root, spec{name: "short", ca: true, alter: func(c *x509.Certificate) { c.MaxPathLen, c.MaxPathLenZero = 0, true }})
	below := issue(t, short, spec{name: "below", ca: true})
	tooDeep := issue(t, below, spec{name: "leaf", dns: []string{host}})

	const ok = dane.Reason("")
	for _, c := range []struct {
		what    string
		chain   []*x509.Certificate
		records []dane.Record
		want    dane.Reason
	}{
		{"3 1 1", chain(leaf), []dane.Record{tlsa(leaf, 3, 1, 1)}, ok},
		{"3 1 2", chain(leaf), []dane.Record{tlsa(leaf, 3, 1, 2)}, ok},
		{"3 1 0", chain(leaf), []dane.Record{tlsa(leaf, 3, 1, 0)}, ok},
		{"3 0 1", chain(leaf), []dane.Record{tlsa(leaf, 3, 0, 1)}, ok},
		{"3 0 2", chain(leaf), []dane.Record{tlsa(leaf, 3, 0, 2)}, ok},
		{"3 0 0", chain(leaf), []dane.Record{tlsa(leaf, 3, 0, 0)}, ok},
		{"3 1 1, another name", chain(named("x", "other.example")), []dane.Record{}, dane.NoneUsable},
		{"3 1 1 of another", chain(leaf), []dane.Record{tlsa(root, 3, 1, 1)}, dane.NoMatch},
		{"3 1 1 of the issuer", chain(leaf, inter), []dane.Record{tlsa(inter, 3, 1, 1)}, dane.NoMatch}, // the server's own alone
		{"3 1 1, self-signed", chain(self), []dane.Record{tlsa(self, 3, 1, 1)}, ok},
		{"3 1 1, expired", chain(expired), []dane.Record{tlsa(expired, 3, 1, 1)}, ok}, // RFC 7672, Section 3.1.1: dates do not count
		{"3 1 1, not yet", chain(notYet), []dane.Record{tlsa(notYet, 3, 1, 1)}, ok},
		{"rollover", chain(leaf), []dane.Record{tlsa(root, 3, 1, 1), tlsa(leaf, 3, 1, 1)}, ok},
		{"one usable, wrong, one not usable", chain(leaf), []dane.Record{tlsa(leaf, 1, 1, 1), tlsa(root, 3, 1, 1)}, dane.NoMatch},
		{"stronger digest wrong, weaker right", chain(leaf), []dane.Record{tlsa(root, 3, 1, 2), tlsa(leaf, 3, 1, 1)}, dane.NoMatch}, // RFC 7671, Section 9
		{"stronger digest right, weaker wrong", chain(leaf), []dane.Record{tlsa(leaf, 3, 1, 2), tlsa(root, 3, 1, 1)}, ok},
		{"full data right, digest wrong", chain(leaf), []dane.Record{tlsa(leaf, 3, 1, 0), tlsa(root, 3, 1, 2)}, ok},
		{"stronger digest of another selector wrong", chain(leaf), []dane.Record{tlsa(root, 3, 0, 2), tlsa(leaf, 3, 1, 1)}, ok},
		{"stronger digest of the wrong length", chain(leaf), []dane.Record{{Usage: 3, Selector: 1, MatchingType: 2, Data: "short"}, tlsa(leaf, 3, 1, 1)}, ok},

		{"2 0 1", chain(direct, root), []dane.Record{tlsa(root, 2, 0, 1)}, ok},
		{"2 1 1 of the intermediate", chain(leaf, inter), []dane.Record{tlsa(inter, 2, 1, 1)}, ok},
		{"2 1 1 of the root over an intermediate", chain(leaf, inter, root), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"in another order", chain(leaf, root, stranger, inter), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"the intermediate is missing", chain(leaf, root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.NotTrusted},
		{"the root is missing", chain(leaf, inter), []dane.Record{tlsa(root, 2, 0, 1)}, dane.NoMatch},
		{"2 0 0, the root in the DNS", chain(direct), []dane.Record{tlsa(root, 2, 0, 0)}, ok},
		{"2 0 0, over an intermediate", chain(leaf, inter), []dane.Record{tlsa(root, 2, 0, 0)}, ok},
		{"2 0 0 of another", chain(direct, root), []dane.Record{tlsa(stranger, 2, 0, 0)}, dane.NotTrusted},
		{"2 1 0, the key in the DNS", chain(direct), []dane.Record{tlsa(root, 2, 1, 0)}, ok},
		{"2 1 0, over an intermediate", chain(leaf, inter), []dane.Record{tlsa(root, 2, 1, 0)}, ok},
		{"2 1 0, and the root is sent too", chain(leaf, inter, root), []dane.Record{tlsa(root, 2, 1, 0)}, ok},
		{"2 1 0 of another", chain(direct, root), []dane.Record{tlsa(stranger, 2, 1, 0)}, dane.NoMatch},
		{"2 1 0, expired", chain(expired), []dane.Record{tlsa(root, 2, 1, 0)}, dane.Expired},
		{"2 1 0, another name", chain(named("x", "other.example")), []dane.Record{tlsa(root, 2, 1, 0)}, dane.WrongName},
		{"a chain that ends at a namesake", chain(direct, impostor), []dane.Record{tlsa(impostor, 2, 1, 1)}, dane.NotTrusted},
		{"beside a namesake", chain(direct, impostor, root), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"a trust anchor that has nothing to do with it", chain(direct, stranger), []dane.Record{tlsa(stranger, 2, 1, 1)}, dane.NotTrusted},
		{"issued by what is no authority", chain(byNoCA, noCA, root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.NotTrusted},
		{"2 1 1 of what is no authority", chain(byNoCA, noCA), []dane.Record{tlsa(noCA, 2, 1, 1)}, dane.NotTrusted},
		{"outside of what the issuer may name", chain(outside, narrow, root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.NotTrusted},
		{"a common name outside of it", chain(outsideCN, narrow, root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.NotTrusted},
		{"a common name outside of what the anchor may name", chain(outsideCN, narrow), []dane.Record{tlsa(narrow, 2, 1, 1)}, dane.NotTrusted},
		{"a common name that the issuer must not name", chain(barredCN, barred, root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.NotTrusted},
		{"a common name that it may", chain(fitsCN, fits, root), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"deeper than the issuer may go", chain(tooDeep, below, short, root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.NotTrusted},

		{"2 1 1 of the server's own", chain(direct), []dane.Record{tlsa(direct, 2, 1, 1)}, dane.NoMatch},
		{"2 0 1 of the server's own, sent twice", chain(self, self), []dane.Record{tlsa(self, 2, 0, 1)}, dane.NoMatch},
		{"2 1 1 of the server's own, self-signed", chain(self), []dane.Record{tlsa(self, 2, 1, 1)}, dane.NoMatch},
		{"2 0 0 of the server's own, self-signed", chain(self), []dane.Record{tlsa(self, 2, 0, 0)}, dane.NoMatch},
		{"2 1 0 of the server's own, self-signed", chain(self), []dane.Record{tlsa(self, 2, 1, 0)}, dane.NoMatch},

		{"expired", chain(expired, root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.Expired},
		{"not yet valid", chain(notYet, root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.Expired},
		{"the issuer expired", chain(byOld, oldRoot), []dane.Record{tlsa(oldRoot, 2, 1, 1)}, dane.Expired},
		{"not for servers", chain(with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageEmailProtection} }), root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.NotTrusted},
		{"a critical extension that nobody knows", chain(with(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 4, 1, 99999, 1}, Critical: true, Value: []byte{5, 0}}}
		}), root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.NotTrusted},
		{"expired, but 3 1 1 says it is the one", chain(expired, root), []dane.Record{tlsa(root, 2, 1, 1), tlsa(expired, 3, 1, 1)}, ok},

		{"the name of the domain", chain(named("x", "example.com"), root), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"another name", chain(named("x", "other.example"), root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.WrongName},
		{"another name among others", chain(named("x", "other.example", "MX.Example.NET"), root), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"the common name, without others", chain(named(host), root), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"the common name beside others", chain(named(host, "other.example"), root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.WrongName},
		{"a wildcard", chain(named("x", "*.example.net"), root), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"a wildcard in the common name", chain(named("*.example.net"), root), []dane.Record{tlsa(root, 2, 1, 1)}, ok},
		{"a wildcard for two labels", chain(named("x", "*.net"), root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.WrongName},
		{"a wildcard for none", chain(named("x", "*.mx.example.net"), root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.WrongName},
		{"part of a label", chain(named("x", "m*.example.net"), root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.WrongName},
		{"an asterisk in the middle", chain(named("x", "mx.*.net"), root), []dane.Record{tlsa(root, 2, 1, 1)}, dane.WrongName},

		{"no certificate", nil, []dane.Record{tlsa(leaf, 3, 1, 1)}, dane.NoCertificate},
		{"one that could not be read", chain(nil, root), []dane.Record{tlsa(leaf, 3, 1, 1)}, dane.NoCertificate},
		{"one that was never encoded", []*x509.Certificate{{}}, []dane.Record{tlsa(leaf, 3, 1, 1)}, dane.NoCertificate},
		{"others that could not be read", chain(leaf, nil, inter, nil), []dane.Record{tlsa(inter, 2, 1, 1)}, ok},
		{"no records", chain(leaf), nil, dane.NoneUsable},
		{"1 1 1", chain(leaf), []dane.Record{tlsa(leaf, 1, 1, 1)}, dane.NoneUsable},
		{"0 1 1", chain(direct, root), []dane.Record{tlsa(root, 0, 1, 1)}, dane.NoneUsable},
		{"3 1 9", chain(leaf), []dane.Record{{Usage: 3, Selector: 1, MatchingType: 9, Data: string(leaf.RawSubjectPublicKeyInfo)}}, dane.NoneUsable},
	} {
		m, err := dane.Verify(c.chain, c.records, dane.VerifyOptions{Names: []string{host, "example.com"}, Now: now})
		var got dane.Reason
		if e, ok := errors.AsType[*dane.VerifyError](err); ok {
			got = e.Reason
		}
		if got != c.want {
			t.Errorf("%s: got %q (%v), want %q", c.what, got, err, c.want)
		}
		if (err == nil) != (m != dane.Match{}) {
			t.Errorf("%s: match %v with error %v", c.what, m, err)
		}
	}
}

// TestMatch: what a match tells.
func TestMatch(t *testing.T) {
	parity.Row(t, "MX-54")
	root := issue(t, nil, spec{name: "root", ca: true})
	inter := issue(t, root, spec{name: "intermediate", ca: true})
	leaf := issue(t, inter, spec{name: "leaf", dns: []string{"*.example.com", host}})
	for _, c := range []struct {
		record dane.Record
		depth  int
		name   string
	}{
		{tlsa(leaf, 3, 1, 1), 0, ""},
		{tlsa(inter, 2, 1, 1), 1, host},
		{tlsa(root, 2, 0, 1), 2, host},
		{tlsa(root, 2, 0, 0), 2, host}, // it is sent, too
	} {
		m, err := dane.Verify(chain(leaf, inter, root), []dane.Record{c.record}, dane.VerifyOptions{Names: []string{host, "a.example.com"}, Now: now})
		if err != nil || m.Record != c.record || m.Depth != c.depth || m.Name != c.name {
			t.Errorf("%s: got depth %d, name %q, %v", dane.Describe(c.record), m.Depth, m.Name, err)
		}
	}
	m, err := dane.Verify(chain(leaf, inter), []dane.Record{tlsa(root, 2, 0, 0)}, dane.VerifyOptions{Names: []string{host}, Now: now})
	if err != nil || m.Depth != -1 {
		t.Errorf("the root in the DNS alone: got depth %d, %v", m.Depth, err)
	}
	if _, err := dane.Verify(chain(leaf, inter), []dane.Record{tlsa(inter, 2, 1, 1)}, dane.VerifyOptions{Now: now}); err == nil {
		t.Error("a trust anchor without a name to hold the certificate against was accepted")
	}
}

// TestSHA1: a signature that others can make leads nowhere. The server's own certificate needs
// none, if it is in the DNS itself.
func TestSHA1(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	signed := func(parent *x509.Certificate, alter func(*x509.Certificate)) *x509.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: now.Add(-time.Hour),
			NotAfter: now.Add(time.Hour), BasicConstraintsValid: true, IsCA: true, SignatureAlgorithm: x509.SHA256WithRSA}
		if alter != nil {
			alter(c)
		}
		if parent == nil {
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	root := signed(nil, nil)
	leaf := signed(root, func(c *x509.Certificate) { c.DNSNames, c.IsCA, c.Subject.CommonName = []string{host}, false, "leaf" })

	// sha256WithRSAEncryption and sha1WithRSAEncryption differ in one octet.
	oid := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11}
	weak := append(bytes.Clone(oid[:8]), 5)
	cert, err := x509.ParseCertificate(bytes.ReplaceAll(leaf.Raw, oid, weak))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha1.Sum(cert.RawTBSCertificate)
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA1, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	forged := append(bytes.Clone(cert.Raw[:len(cert.Raw)-len(signature)]), signature...)
	if cert, err = x509.ParseCertificate(forged); err != nil || cert.SignatureAlgorithm != x509.SHA1WithRSA {
		t.Fatal(cert.SignatureAlgorithm, err)
	}
	for _, c := range []struct {
		leaf   *x509.Certificate
		record dane.Record
		want   bool
	}{
		{leaf, tlsa(&node{root, nil}, 2, 1, 1), true},
		{cert, tlsa(&node{root, nil}, 2, 1, 1), false},
		{cert, tlsa(&node{root, nil}, 2, 1, 0), false},
		{cert, tlsa(&node{cert, nil}, 3, 0, 1), true},
	} {
		_, err := dane.Verify([]*x509.Certificate{c.leaf, root}, []dane.Record{c.record}, dane.VerifyOptions{Names: []string{host}, Now: now})
		if got := err == nil; got != c.want {
			t.Errorf("%v, %s: got %v (%v), want %v", c.leaf.SignatureAlgorithm, dane.Describe(c.record), got, err, c.want)
		}
	}
}

// TestHostileChains: what a server may send costs a bounded time, and is not accepted.
func TestHostileChains(t *testing.T) {
	root := issue(t, nil, spec{name: "root", ca: true})
	leaf := issue(t, root, spec{name: "leaf", dns: []string{host}})

	// Two authorities that certify each other, and the leaf below one of them.
	a := issue(t, nil, spec{name: "a", ca: true})
	b := issue(t, a, spec{name: "b", ca: true})
	a2 := issue(t, b, spec{name: "a", ca: true, key: a.key})
	looped := issue(t, a, spec{name: "leaf", dns: []string{host}})

	// Many authorities of one name and of different keys: all are candidates.
	many := chain(issue(t, root, spec{name: "leaf", dns: []string{host}}))
	for range 30 {
		many = append(many, issue(t, nil, spec{name: "root", ca: true}).Certificate)
	}
	for len(many) < 10_000 {
		many = append(many, many[1:min(len(many), 31)]...)
	}
	var all []dane.Record
	for _, c := range many[1:31] {
		r, err := dane.Of(c, dane.UsageDANETA, dane.SelectorSPKI, dane.MatchFull)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	deep := []*node{issue(t, nil, spec{name: "0", ca: true})}
	for i := range 40 {
		deep = append([]*node{issue(t, deep[0], spec{name: fmt.Sprint(i + 1), ca: true})}, deep...)
	}
	deepest := append([]*node{issue(t, deep[0], spec{name: "leaf", dns: []string{host}})}, deep...)

	// A key that fills a record, and signatures as long.
	long, longRoot := longKey(t)
	longRecord := dane.Record{Usage: dane.UsageDANETA, Selector: dane.SelectorSPKI, Data: string(long)}
	signed := *leaf.Certificate
	signed.SignatureAlgorithm, signed.Signature, signed.RawIssuer = x509.SHA256WithRSA, make([]byte, longBits/8), longRoot.RawSubject
	signed.Signature[1] = 1

	for _, c := range []struct {
		what    string
		chain   []*x509.Certificate
		records []dane.Record
	}{
		{"a key too long in the DNS", repeat(&signed, 4), []dane.Record{longRecord}},
		{"a certificate in the DNS with a key too long", repeat(&signed, 4), []dane.Record{tlsa(longRoot, 2, 0, 0)}},
		{"a certificate that was sent with a key too long", []*x509.Certificate{&signed, longRoot.Certificate}, []dane.Record{tlsa(longRoot, 2, 1, 1)}},
		{"an authority between with a key too long", []*x509.Certificate{&signed, longRoot.Certificate, root.Certificate}, []dane.Record{tlsa(root, 2, 1, 1)}},
		{"a cycle", chain(looped, a2, b, a2, b), []dane.Record{tlsa(root, 2, 1, 1)}},
		{"a cycle, and an anchor beside it", chain(looped, a2, b, root), []dane.Record{tlsa(root, 2, 1, 1)}},
		{"namesakes", many, []dane.Record{tlsa(root, 2, 0, 0)}},
		{"namesakes, each of them an anchor", many[:9000], all},
		{"all the same", append(chain(leaf), repeat(leaf.Certificate, 10_000)...), []dane.Record{tlsa(leaf, 2, 1, 1)}},
		{"the anchor behind ten thousand", append(append(chain(leaf), repeat(a.Certificate, 10_000)...), root.Certificate), []dane.Record{tlsa(root, 2, 1, 1)}},
	} {
		begun := time.Now()
		_, err := dane.Verify(c.chain, c.records, dane.VerifyOptions{Names: []string{host}, Now: now})
		if c.what != "namesakes" && err == nil {
			t.Errorf("%s: accepted", c.what)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: took %v", c.what, took)
		}
	}
	if _, err := dane.Verify(chain(deepest...), []dane.Record{tlsa(deep[len(deep)-1], 2, 1, 1)}, dane.VerifyOptions{Names: []string{host}, Now: now}); err != nil {
		t.Errorf("a long chain: %v", err)
	}
}

const longBits = 300_000

// longKey returns a key of RSA that takes seconds for each signature, and a certificate with it.
func longKey(t *testing.T) (spki []byte, cert *node) {
	n := new(big.Int).SetBit(big.NewInt(1), longBits-1, 1)
	for i := range longBits / 3 {
		n.SetBit(n, 3*i, 1)
	}
	key := &rsa.PublicKey{N: n, E: 1<<31 - 1}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	by := issue(t, nil, spec{name: "long", ca: true})
	der, err := x509.CreateCertificate(rand.Reader, by.Certificate, by.Certificate, key, by.key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return spki, &node{Certificate: c}
}

func repeat(c *x509.Certificate, n int) []*x509.Certificate {
	list := make([]*x509.Certificate, n)
	for i := range list {
		list[i] = c
	}
	return list
}

// TestPathDifferential holds Verify against the definition: there is a path of signatures from
// the first certificate to another one of the chain that a record names. The graphs are drawn
// by lot, with issuers of the same name, cross-signed keys and certificates that are missing.
func TestPathDifferential(t *testing.T) {
	r := lot.New(lot.NewPCG(1, 2))
	keys := make([]*node, 4)
	for i := range keys {
		keys[i] = issue(t, nil, spec{name: fmt.Sprint("ca", i/2), ca: true}) // two keys for each name
	}
	var pool []*node
	for range 14 {
		subject, by := keys[r.IntN(len(keys))], keys[r.IntN(len(keys))]
		pool = append(pool, issue(t, by, spec{name: subject.Subject.CommonName, ca: r.IntN(8) > 0, key: subject.key}))
	}
	accepted := 0
	for range 300 {
		leaf := issue(t, keys[r.IntN(len(keys))], spec{name: "leaf", dns: []string{host}})
		sent := []*node{leaf}
		for range 1 + r.IntN(8) {
			sent = append(sent, pool[r.IntN(len(pool))])
		}
		anchor := sent[1+r.IntN(len(sent)-1)]
		record := tlsa(anchor, 2, 0, 1)
		_, err := dane.Verify(chain(sent...), []dane.Record{record}, dane.VerifyOptions{Names: []string{host}, Now: now})
		want := leads(leaf.Certificate, anchor.Certificate, chain(sent...), nil)
		if got := err == nil; got != want {
			t.Errorf("accepted %v, want %v: %v", got, want, err)
		}
		if want {
			accepted++
		}
	}
	if accepted < 20 {
		t.Errorf("%d of the chains are good: too few to tell anything", accepted)
	}
}

// leads is the definition, without any thought of cost.
func leads(from, to *x509.Certificate, sent, visited []*x509.Certificate) bool {
	for _, c := range sent {
		if !c.IsCA || seen(visited, c) || from.CheckSignatureFrom(c) != nil || string(from.RawIssuer) != string(c.RawSubject) {
			continue
		}
		if c.Equal(to) || leads(c, to, sent, append(visited[:len(visited):len(visited)], c)) {
			return true
		}
	}
	return false
}

func seen(list []*x509.Certificate, c *x509.Certificate) bool {
	for _, v := range list {
		// crypto/x509 takes no two certificates of one subject and key into a path.
		if string(v.RawSubject) == string(c.RawSubject) && string(v.RawSubjectPublicKeyInfo) == string(c.RawSubjectPublicKeyInfo) {
			return true
		}
	}
	return false
}

// FuzzVerify: whatever the certificates and records are, nothing panics, and no certificate is
// accepted without a usable record that names one of those that were sent, or stands for itself.
func FuzzVerify(f *testing.F) {
	root := issue(f, nil, spec{name: "root", ca: true})
	leaf := issue(f, root, spec{name: "leaf", dns: []string{host}})
	f.Add(leaf.Raw, root.Raw, uint8(3), uint8(1), uint8(1), tlsa(leaf, 3, 1, 1).Data)
	f.Add(leaf.Raw, root.Raw, uint8(2), uint8(0), uint8(0), tlsa(root, 2, 0, 0).Data)
	f.Add(leaf.Raw, root.Raw, uint8(2), uint8(1), uint8(0), tlsa(root, 2, 1, 0).Data)
	f.Add(leaf.Raw, leaf.Raw, uint8(2), uint8(0), uint8(1), tlsa(leaf, 2, 0, 1).Data)
	f.Add([]byte{0x30}, []byte(nil), uint8(2), uint8(1), uint8(0), "\x30\x00")
	f.Fuzz(func(t *testing.T, first, second []byte, usage, selector, mtype uint8, data string) {
		a, _ := x509.ParseCertificate(first)
		b, _ := x509.ParseCertificate(second)
		record := dane.Record{Usage: usage, Selector: selector, MatchingType: mtype, Data: data}
		m, err := dane.Verify([]*x509.Certificate{a, b}, []dane.Record{record}, dane.VerifyOptions{Names: []string{host}, Now: now})
		if err != nil {
			return
		}
		if dane.Why(record) != "" {
			t.Fatalf("accepted by a record that is not usable: %s", dane.Format(record))
		}
		if m.Depth >= 0 {
			named, _ := dane.Of([]*x509.Certificate{a, b}[m.Depth], usage, selector, mtype)
			if named != record {
				t.Fatalf("accepted by %s, which is not %s", dane.Format(record), dane.Format(named))
			}
		}
	})
}
