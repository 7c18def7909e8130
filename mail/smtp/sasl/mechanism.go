package sasl

import (
	"slices"
	"strings"
)

// mechanism.go: the names, and which of them may be used where.

// The mechanisms.
const (
	SCRAMSHA256Plus = "SCRAM-SHA-256-PLUS" // RFC 7677, bound to the TLS connection
	SCRAMSHA256     = "SCRAM-SHA-256"      // RFC 7677
	OAuthBearer     = "OAUTHBEARER"        // RFC 7628
	XOAuth2         = "XOAUTH2"            // what OAUTHBEARER was before it was a standard
	Plain           = "PLAIN"              // RFC 4616
	Login           = "LOGIN"              // PLAIN in two lines, for old clients
	CRAMMD5         = "CRAM-MD5"           // RFC 2195
	External        = "EXTERNAL"           // RFC 4422, Appendix A
)

// Mechanisms returns the names of all mechanisms, the strongest first.
func Mechanisms() []string {
	return []string{SCRAMSHA256Plus, SCRAMSHA256, OAuthBearer, XOAuth2, Plain, Login, CRAMMD5, External}
}

// Defaults returns the mechanisms that are offered where none is configured, the strongest
// first. CRAM-MD5 is left out, since it asks for passwords kept in clear; EXTERNAL too,
// since a certificate that lets a client in should not by itself make it a user.
func Defaults() []string {
	return []string{SCRAMSHA256Plus, SCRAMSHA256, OAuthBearer, XOAuth2, Plain, Login}
}

// Available returns those of the configured mechanisms that can succeed on conn with c, in
// the order configured, in capitals and each once. None configured means Defaults. A name
// that is no mechanism is left out. Without TLS there are none, unless conn.AllowClear.
func Available(configured []string, c Credentials, conn Conn) []string {
	if len(configured) == 0 {
		configured = Defaults()
	}
	var list []string
	for _, name := range configured {
		if name = strings.ToUpper(name); usable(name, c, conn) && !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}

// usable tells whether a mechanism can succeed.
func usable(name string, c Credentials, conn Conn) bool {
	if conn.TLS == nil && !conn.AllowClear {
		return false
	}
	switch name {
	case Plain, Login:
		return c.Password != nil
	case CRAMMD5:
		return c.Secret != nil
	case SCRAMSHA256:
		return c.SCRAM != nil
	case SCRAMSHA256Plus:
		return c.SCRAM != nil && canBind(conn.TLS)
	case OAuthBearer, XOAuth2:
		return c.Token != nil
	case External:
		// A certificate that was asked for but not verified proves nothing.
		return c.Certificate != nil && conn.TLS != nil && len(conn.TLS.VerifiedChains) > 0
	}
	return false
}
