package config

import (
	"fmt"
	"net/url"
	"strings"
)

// acme.go holds the values of certificates.acme and certificates.names.

// A CertificateName is a host name that a certificate can be obtained for, in the form it has
// in DNS.
type CertificateName string

// UnmarshalText reads a domain name.
func (n *CertificateName) UnmarshalText(text []byte) error {
	if strings.HasPrefix(string(text), "*") {
		return fmt.Errorf("%s is a wildcard: its proof is DNS-01, which is not there yet; name the hosts", quote(string(text)))
	}
	name, err := parseDomain(string(text))
	*n = CertificateName(name)
	return err
}

func (CertificateName) describe() string { return "domain name" }

// A MailAddress is a mailbox, such as postmaster@example.com.
type MailAddress string

// UnmarshalText reads local@domain. Quoted local parts, which no CA writes to, are refused.
func (m *MailAddress) UnmarshalText(text []byte) error {
	t := string(text)
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`"(),:;<>@[\]`, r) }
	at := strings.LastIndexByte(t, '@')
	if at < 1 || at > 64 || strings.ContainsFunc(t[:max(at, 0)], odd) { // RFC 5321, Section 4.5.3.1.1
		return fmt.Errorf("%s is not a mail address", quote(t))
	}
	domain, err := parseDomain(t[at+1:])
	if err != nil {
		return fmt.Errorf("%s is not a mail address: %w", quote(t), err)
	}
	*m = MailAddress(t[:at+1] + domain)
	return nil
}

func (MailAddress) describe() string { return "mail address" }

// An ACMEDirectory is the URL of a CA's directory, or a word for a well-known one.
type ACMEDirectory string

// The well-known directories, both of Let's Encrypt.
const (
	LetsEncrypt        ACMEDirectory = "letsencrypt"
	LetsEncryptStaging ACMEDirectory = "letsencrypt-staging"
)

// UnmarshalText reads one of the words or an https URL.
func (d *ACMEDirectory) UnmarshalText(text []byte) error {
	t := ACMEDirectory(text)
	if t != LetsEncrypt && t != LetsEncryptStaging {
		u, err := url.Parse(string(t))
		if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			return fmt.Errorf("%s is none of letsencrypt, letsencrypt-staging and an https URL", quote(string(t)))
		}
	}
	*d = t
	return nil
}

func (ACMEDirectory) describe() string { return "letsencrypt, letsencrypt-staging or URL" }

// A ChallengeAddress is what a listener for challenges listens on.
type ChallengeAddress struct {
	Off     bool
	Address string // host:port; empty if Off
}

// UnmarshalText reads host:port, :port or off.
func (c *ChallengeAddress) UnmarshalText(text []byte) error {
	if string(text) == "off" {
		*c = ChallengeAddress{Off: true}
		return nil
	}
	var l ListenAddress
	if err := l.UnmarshalText(text); err != nil || l.Network != "tcp" {
		return fmt.Errorf("%s is not an address for challenges: write host:port, :port or off", quote(string(text)))
	}
	*c = ChallengeAddress{Address: l.Address}
	return nil
}

// String returns the address as it is written in the file.
func (c ChallengeAddress) String() string {
	if c.Off {
		return "off"
	}
	return c.Address
}

func (ChallengeAddress) describe() string { return "host:port or off" }

func (c ChallengeAddress) listen() ListenAddress {
	return ListenAddress{Network: "tcp", Address: c.Address}
}
