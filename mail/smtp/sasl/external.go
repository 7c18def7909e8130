package sasl

import (
	"crypto/x509"
)

// external.go: EXTERNAL (RFC 4422, Appendix A), where the proof is the certificate that the
// client showed in the TLS handshake.

// checkCertificate is what go-sasl's EXTERNAL asks.
func (s *Server) checkCertificate(authz string) error {
	if authz != "" {
		name, err := prepareName(authz)
		if err != nil {
			return err
		}
		authz = name
	}
	raw, err := s.creds.Certificate(s.ctx, s.conn.TLS, authz)
	if err := s.verdict(err); err != nil {
		return err
	}
	user, err := PrepareName(raw)
	if err != nil {
		return denied("the certificate names no user").Because(err)
	}
	return s.identify(user, authz)
}

// CertificateNames returns the names by which a certificate may stand for a user, prepared:
// its mail addresses; if it has none, its DNS names; if it has none of these either, the
// common name of its subject. The caller must have verified the certificate.
func CertificateNames(cert *x509.Certificate) []string {
	for _, list := range [][]string{cert.EmailAddresses, cert.DNSNames, {cert.Subject.CommonName}} {
		var names []string
		for _, raw := range list {
			if name, err := PrepareName(raw); err == nil {
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			return names
		}
	}
	return nil
}
