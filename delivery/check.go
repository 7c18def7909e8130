package delivery

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/penstock/penstock/delivery/dane"
	"github.com/penstock/penstock/delivery/tlsrpt"
)

// check.go holds the certificates of a handshake against what is asked of a host. crypto/tls
// does not do it for us: it knows one name, where DANE may have four, and roots alone.

// CheckOptions are what certificates are held against.
type CheckOptions struct {
	// Authorities are those of DemandPKIX. Nil means those of the system.
	Authorities *x509.CertPool
	// Now is what dates are held against. The zero time is now.
	Now time.Time
}

// Proof is what a certificate was accepted for.
type Proof struct {
	// Shown is what it proves: DemandEncrypted if nothing, which may be enough.
	Shown Demand
	// Match is the TLSA record that it matches, of DemandDANE and DemandBoth.
	Match dane.Match
	// Doubt is why it is not valid, where a policy in testing asks for that.
	Doubt error
}

var errNoCertificate = errors.New("the host sent no certificate")

// Check tells whether certificates, the host's own first, are what the host must show. The
// error wraps a *dane.VerifyError or one of crypto/x509.
func (h *PlannedHost) Check(chain []*x509.Certificate, o CheckOptions) (Proof, error) {
	p := Proof{Shown: DemandEncrypted}
	if h.testing() {
		p.Doubt = h.checkPKIX(chain, o)
	}
	if h.Demand.byDANE() {
		m, err := dane.Verify(chain, h.DANE.Usable, dane.VerifyOptions{Names: h.Names, Now: o.Now})
		if err != nil {
			return Proof{}, err
		}
		p.Match = m
	}
	if h.Demand.byPKIX() {
		if err := h.checkPKIX(chain, o); err != nil {
			return Proof{}, err
		}
	}
	if h.Demand.Authenticated() {
		p.Shown = h.Demand
	}
	return p, nil
}

// testing tells whether a policy that is only tested would ask for a valid certificate.
func (h *PlannedHost) testing() bool { return h.STS != nil && !h.Enforced && !h.Demand.Authenticated() }

// checkPKIX tells whether an authority we trust vouches that the certificate is for the host:
// for its name in the MX record, by a DNS-ID (RFC 8461, Section 4.2).
func (h *PlannedHost) checkPKIX(chain []*x509.Certificate, o CheckOptions) error {
	if len(chain) == 0 || chain[0] == nil {
		return errNoCertificate
	}
	if h.Name == "" {
		return errors.New("an address has no name that a certificate could be for")
	}
	others := x509.NewCertPool()
	for _, cert := range chain[1:min(len(chain), maxChain)] {
		if cert != nil {
			others.AddCert(cert)
		}
	}
	_, err := chain[0].Verify(x509.VerifyOptions{DNSName: h.Name, Roots: o.Authorities, Intermediates: others, CurrentTime: o.Now})
	if err != nil {
		return fmt.Errorf("certificate: %w", err)
	}
	return nil
}

// maxChain is how many certificates of a chain are looked at.
const maxChain = 64

// resultOf is what a report says of a certificate (RFC 8460, Section 4.3.1).
func resultOf(err error) tlsrpt.ResultType {
	if e, ok := errors.AsType[*dane.VerifyError](err); ok {
		switch e.Reason {
		case dane.Expired:
			return tlsrpt.CertificateExpired
		case dane.WrongName:
			return tlsrpt.CertificateHostMismatch
		case dane.NotTrusted:
			return tlsrpt.CertificateNotTrusted
		}
		return tlsrpt.ValidationFailure
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return tlsrpt.CertificateHostMismatch
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return tlsrpt.CertificateNotTrusted
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired {
			return tlsrpt.CertificateExpired
		}
		return tlsrpt.CertificateNotTrusted
	}
	return tlsrpt.ValidationFailure
}

// TLSConfig returns how to speak TLS with the host. It refuses certificates that are not what
// the host must show, and says the name that it must be asked with. Each handshake needs its
// own, or a Clone.
func (h *PlannedHost) TLSConfig(o CheckOptions) *tls.Config {
	c := h.baseConfig()
	c.VerifyConnection = func(state tls.ConnectionState) error {
		_, err := h.Check(state.PeerCertificates, o)
		return err
	}
	return c
}

// baseConfig is TLSConfig without the check.
func (h *PlannedHost) baseConfig() *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: h.SNI, InsecureSkipVerify: true}
	if !h.Demand.Authenticated() {
		// Weak encryption is better than none, which is what the other choice is.
		c.CipherSuites = opportunisticSuites
	}
	return c
}

// opportunisticSuites are the cipher suites of TLS 1.2 for hosts that need not prove who they
// are: those without forward secrecy are among the last, and none with a broken cipher. They
// are named so that they stay the same with each version of Go.
var opportunisticSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA, tls.TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA,
	tls.TLS_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_RSA_WITH_AES_128_CBC_SHA, tls.TLS_RSA_WITH_AES_256_CBC_SHA,
}
