package sasl

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
)

// credentials.go: what all mechanisms ask of those who know the users.

// ErrDenied is what a callback of Credentials returns, wrapped or not, for a user that does
// not exist and for a proof that is wrong. The client is told 535 5.7.8 and not which of the
// two it was.
var ErrDenied = errors.New("sasl: user or credentials not valid")

// Credentials are the ways to check a proof. Each field may be nil; the mechanisms that
// need it are not available then.
//
// What a callback returns: nil for a valid proof; ErrDenied in the chain for one that is
// not; a *smtp.Reply in the chain, of 4xx or 5xx, to answer in words of its own; anything
// else is trouble of ours and 454 4.7.0. User names arrive as PrepareName returns them, so
// they are never empty and hold no control characters. Callbacks may wait, within ctx; they
// must be safe for concurrent use if exchanges share them.
type Credentials struct {
	// Password checks a password, which arrives as the client sent it: 1 to 1024 octets
	// without NUL. A check of an unknown user should take as long as that of a wrong
	// password. For PLAIN and LOGIN.
	Password func(ctx context.Context, user, password string) error
	// Secret returns the password itself, for CRAM-MD5.
	Secret func(ctx context.Context, user string) (string, error)
	// SCRAM returns a user's keys, for SCRAM-SHA-256 and SCRAM-SHA-256-PLUS.
	SCRAM func(ctx context.Context, user string) (SCRAMKeys, error)
	// Token checks a token and returns whose it is; the empty string stands for the user
	// that the client named. A *TokenError tells the client more. For OAUTHBEARER and
	// XOAUTH2.
	Token func(ctx context.Context, r TokenRequest) (user string, err error)
	// Certificate returns the user that a verified client certificate stands for. authz is
	// the identity that the client asks for, or empty: a certificate with several names
	// may choose by it. For EXTERNAL.
	Certificate func(ctx context.Context, state *tls.ConnectionState, authz string) (user string, err error)

	// Authorize decides whether user, who has proved to be that, may act as authz, which
	// is another. nil allows nobody to.
	Authorize func(ctx context.Context, user, authz string) error

	// Decoy is a secret of at least 16 octets that lasts. From it come the salts that SCRAM
	// shows for users that do not exist: a salt that changed from one try to the next would
	// tell that there is no such user. Empty means a new one for each exchange.
	Decoy []byte
	// DecoyIterations is the number of iterations shown with it. Zero means
	// DefaultIterations; it should be what most users have.
	DecoyIterations int
}

// A TokenRequest is what a client of OAUTHBEARER or XOAUTH2 says.
type TokenRequest struct {
	Mechanism string
	User      string // who the client wants to be; may be empty with OAUTHBEARER
	Token     string // 1 to 16384 octets, visible ASCII
	Host      string // what the client connected to by its own account; OAUTHBEARER, may be empty
	Port      int    // zero if the client did not say
}

// A TokenError refuses a token and tells the client why, in the words of RFC 6750, Section
// 3.1 and RFC 7628, Section 3.2.2. The client is told 535 5.7.8 in the end.
type TokenError struct {
	Status  string // "invalid_token" if empty; with XOAUTH2 "401"
	Schemes string // "bearer" if empty
	Scope   string // the scope that a token must have; left out if empty
	// OpenIDConfiguration is the address of a document on how to get a token; left out if
	// empty.
	OpenIDConfiguration string
	// JSON, if not empty, is sent in place of all that: a JSON object of at most 4096 octets.
	JSON []byte
	// Err is for our log.
	Err error
}

// Error returns the status and the cause.
func (e *TokenError) Error() string {
	text := "sasl: token refused"
	if e.Status != "" {
		text += ": " + e.Status
	}
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns ErrDenied and the cause.
func (e *TokenError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrDenied}
	}
	return []error{ErrDenied, e.Err}
}

// maxTokenError bounds what we send of a callback's JSON, in octets.
const maxTokenError = 4096

// challenge returns the JSON that the client gets.
func (e *TokenError) challenge(status string) []byte {
	if len(e.JSON) > 0 && len(e.JSON) <= maxTokenError && json.Valid(e.JSON) {
		return e.JSON
	}
	fields := struct {
		Status  string `json:"status"`
		Schemes string `json:"schemes"`
		Scope   string `json:"scope,omitempty"`
		OpenID  string `json:"openid-configuration,omitempty"`
	}{status, "bearer", e.Scope, e.OpenIDConfiguration}
	if e.Status != "" {
		fields.Status = e.Status
	}
	if e.Schemes != "" {
		fields.Schemes = e.Schemes
	}
	text, err := json.Marshal(fields)
	if err != nil || len(text) > maxTokenError {
		return []byte(`{"status":"` + status + `","schemes":"bearer"}`)
	}
	return text
}
