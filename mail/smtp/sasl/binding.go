package sasl

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
)

// binding.go: channel bindings, values that both ends of one TLS connection know and nobody
// in the middle of two can have in both. RFC 5929, RFC 9266.

// The types of channel binding.
const (
	bindExporter = "tls-exporter"         // RFC 9266
	bindUnique   = "tls-unique"           // RFC 5929, Section 3
	bindEndPoint = "tls-server-end-point" // RFC 5929, Section 4
)

// channelBinding returns the value of a binding; false if the connection does not have it.
// cert is the server's certificate, or nil.
func channelBinding(name string, state *tls.ConnectionState, cert *x509.Certificate) ([]byte, bool) {
	if state == nil || !state.HandshakeComplete {
		return nil, false
	}
	switch name {
	case bindExporter:
		// RFC 9266, Section 2: the context is present and empty, 32 octets. Before TLS 1.3
		// crypto/tls refuses it to connections without extended master secret, which RFC 9266,
		// Section 4.2 asks for.
		value, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", []byte{}, 32)
		return value, err == nil
	case bindUnique:
		// Not there in TLS 1.3, nor where resumption made it worthless (RFC 7627).
		return state.TLSUnique, len(state.TLSUnique) > 0
	case bindEndPoint:
		return endPoint(cert)
	}
	return nil, false
}

// endPoint hashes a certificate as its signature does, with SHA-256 in place of what is
// weaker. Signatures without a hash of their own have no such binding.
func endPoint(cert *x509.Certificate) ([]byte, bool) {
	if cert == nil {
		return nil, false
	}
	var hash crypto.Hash
	switch cert.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.ECDSAWithSHA256, x509.SHA256WithRSAPSS:
		hash = crypto.SHA256
	case x509.SHA384WithRSA, x509.ECDSAWithSHA384, x509.SHA384WithRSAPSS:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.ECDSAWithSHA512, x509.SHA512WithRSAPSS:
		hash = crypto.SHA512
	default:
		return nil, false
	}
	if !hash.Available() {
		return nil, false
	}
	h := hash.New()
	h.Write(cert.Raw)
	return h.Sum(nil), true
}

// bestBinding returns the binding that a client should take: tls-exporter, which is the
// default from TLS 1.3 on (RFC 9266, Section 3), and tls-unique before (RFC 5802, Section 6).
func bestBinding(state *tls.ConnectionState) (name string, value []byte, ok bool) {
	name = bindExporter
	if state != nil && state.Version < tls.VersionTLS13 {
		name = bindUnique
	}
	value, ok = channelBinding(name, state, nil)
	return name, value, ok
}

// canBind tells whether a connection has any binding.
func canBind(state *tls.ConnectionState, cert *x509.Certificate) bool {
	for _, name := range []string{bindExporter, bindUnique, bindEndPoint} {
		if _, ok := channelBinding(name, state, cert); ok {
			return true
		}
	}
	return false
}
