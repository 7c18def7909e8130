package policy

import (
	"context"
	"time"
)

// auth.go: asking filters about a login. It is the one stage at which a filter may say
// more than no: where the operator leaves logins to filters, Accept lets the client in.
// Nothing else does. A filter that fails is one that did not say it, whatever its OnError.

// Auth is a login that a client attempts (RFC 4954).
type Auth struct {
	// Mechanism is the name of the SASL mechanism, as in "PLAIN".
	Mechanism string
	// User is who the client claims to be: the authentication identity.
	User string
	// Authz is who the client wants to act as, empty if it does not say or if the mechanism
	// has no such thing.
	Authz string
	// Password is what the client gave with PLAIN and LOGIN, Token what it gave with
	// XOAUTH2 and OAUTHBEARER. An empty one is none.
	Password, Token string
	// Reveal is the operator's word that filters decide about logins. Without it they do
	// not see Password and Token, and may refuse but not accept.
	Reveal bool
}

// String names the mechanism alone, for whoever prints a login. The names are left out like
// the secrets: a password is easily typed in the place of a name.
func (a Auth) String() string { return "login by " + a.Mechanism }

// MarshalText implements encoding.TextMarshaler with String: slog and encoding/json would
// write the fields otherwise.
func (a Auth) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// DecideAuth asks the filters about a login, at StageAuth. The Decision's action is Accept,
// with the name of the first filter that said so, if the credentials are right; Continue if
// no filter has an opinion, which lets nobody in where filters decide; or a refusal. Accept
// needs a.Reveal and not the link's permission, and it does not end the asking: a filter
// behind may still refuse, which is stronger.
func (r *Run) DecideAuth(ctx context.Context, a *Auth) Decision {
	if !r.stages.Has(StageAuth) {
		return Decision{}
	}
	shown := *a
	if !a.Reveal {
		shown.Password, shown.Token = "", ""
	}
	return r.decide(ctx, &Event{Stage: StageAuth, Session: r.session, Time: time.Now(), Auth: &shown, Edits: &r.edits})
}

// mayAccept tells whether a filter's Accept counts in the event.
func (l *link) mayAccept(e *Event) bool {
	if e.Stage == StageAuth {
		return e.Auth != nil && e.Auth.Reveal
	}
	return l.MayAccept
}
