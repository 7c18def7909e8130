package sasl

import "crypto/tls"

// binding.go: channel bindings, values that both ends of one TLS connection know and nobody
// in the middle of two can have in both. RFC 5929, RFC 9266.
//
// There is no tls-server-end-point (RFC 5929, Section 4): it needs the certificate that the
// server showed, which crypto/tls does not tell a server, and which a session that was resumed
// did not show.

// The types of channel binding.
const (
	bindExporter = "tls-exporter" // RFC 9266
	bindUnique   = "tls-unique"   // RFC 5929, Section 3
)

// channelBinding returns the value of a binding; false if the connection does not have it.
func channelBinding(name string, state *tls.ConnectionState) ([]byte, bool) {
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
	}
	return nil, false
}

// bestBinding returns the binding that a client should take: tls-exporter, which is the
// default from TLS 1.3 on (RFC 9266, Section 3), and tls-unique before (RFC 5802, Section 6).
func bestBinding(state *tls.ConnectionState) (name string, value []byte, ok bool) {
	name = bindExporter
	if state != nil && state.Version < tls.VersionTLS13 {
		name = bindUnique
	}
	value, ok = channelBinding(name, state)
	return name, value, ok
}

// canBind tells whether a connection has any binding.
func canBind(state *tls.ConnectionState) bool {
	for _, name := range []string{bindExporter, bindUnique} {
		if _, ok := channelBinding(name, state); ok {
			return true
		}
	}
	return false
}
