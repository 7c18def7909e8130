package sasl

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"

	gosasl "github.com/emersion/go-sasl"

	"github.com/penstock/penstock/mail/smtp"
)

// server.go: the exchange as the server leads it. A mechanism sees one response after the
// other; what holds for all of them is here: limits, order, identities and replies.

// MaxResponse is the longest response of a client, decoded, in octets. It has room for a
// token; what holds none is refused by the smaller limits of its parts. In base64 it is
// more than the 12288 octets that RFC 4954, Section 4 asks servers to take.
const MaxResponse = MaxToken + 2048

// Conn is what an exchange has to know of its connection.
type Conn struct {
	// TLS is the state as tls.Conn.ConnectionState returns it after the handshake. nil
	// means that the connection is in clear.
	TLS *tls.ConnectionState
	// AllowClear offers mechanisms without TLS as well. Even those that hide the password
	// are then open to guessing by whoever listens.
	AllowClear bool
	// Hostname is our name, for the challenge of CRAM-MD5. Empty: localhost.
	Hostname string
	// Offered are the mechanisms that the client was told of, as Available returned them.
	// No other is begun, and SCRAM knows by it whether somebody between us took the
	// stronger one out of the list. nil means Available for Defaults.
	Offered []string
}

// A Server is one exchange with a client. It is for one goroutine and one use.
type Server struct {
	// ctx is kept because Next has none: the exchange lives within one AUTH command.
	ctx   context.Context
	creds Credentials
	conn  Conn
	mech  mechanism

	begun, over bool
	user, authz string // as authenticated; shown once done
	done        bool
}

// mechanism is the part that differs. next gets nil in the first call if there was no
// initial response, and never after that; it is not called again after done or an error.
// Its errors are of type *smtp.Reply; all others count as a broken exchange.
type mechanism interface {
	next(response []byte) (challenge []byte, done bool, err error)
}

// New begins an exchange. The name of the mechanism may be in any case. A mechanism that is
// not offered or not usable is 504 5.5.4, as a *smtp.Reply. ctx bounds the callbacks of c.
func New(ctx context.Context, name string, c Credentials, conn Conn) (*Server, error) {
	name = strings.ToUpper(name)
	if conn.Offered == nil {
		conn.Offered = Available(nil, c, conn)
	}
	if !slices.Contains(conn.Offered, name) || !usable(name, c, conn) {
		return nil, smtp.Refuse(504, smtp.Enhanced{5, 5, 4}, "authentication mechanism not available")
	}
	s := &Server{ctx: ctx, creds: c, conn: conn}
	switch name {
	case Plain:
		s.mech = clientFirst(foreign(gosasl.NewPlainServer(s.checkPlain)))
	case Login:
		s.mech = &loginServer{server: s}
	case CRAMMD5:
		s.mech = newCRAMServer(s)
	case XOAuth2:
		s.mech = clientFirst(&xoauth2Server{server: s})
	case OAuthBearer:
		s.mech = clientFirst(newBearerServer(s))
	case External:
		s.mech = clientFirst(foreign(gosasl.NewExternalServer(s.checkCertificate)))
	case SCRAMSHA256, SCRAMSHA256Plus:
		s.mech = clientFirst(newSCRAMServer(s, name == SCRAMSHA256Plus))
	}
	return s, nil
}

// Next takes the client's response, decoded, and returns what to send as 334, or that the
// client is authenticated. The first call gets the initial response, or nil if the AUTH
// command had none; an empty one ("=") is not nil. Errors are of type *smtp.Reply, and the
// exchange is over with them:
//
//	535 5.7.8   the credentials are not valid
//	501 5.5.2   the exchange is broken
//	501 5.7.0   an initial response, where the server speaks first
//	500 5.5.6   a response longer than MaxResponse
//	454 4.7.0   the credentials could not be checked
//
// or what a callback of Credentials said. A client that cancels (RFC 4954, Section 4: "*")
// is the caller's to answer; the Server is then left alone.
func (s *Server) Next(response []byte) (challenge []byte, done bool, err error) {
	if s.over {
		return nil, false, malformed("the exchange is over")
	}
	if len(response) > MaxResponse {
		s.over = true
		return nil, false, smtp.Refuse(500, smtp.Enhanced{5, 5, 6}, "response too long")
	}
	if response == nil && s.begun {
		response = []byte{}
	}
	s.begun = true
	challenge, done, err = s.mech.next(response)
	if err != nil {
		s.over = true
		return nil, false, replyOf(err)
	}
	if done {
		s.over, s.done = true, true
		return nil, true, nil
	}
	if challenge == nil {
		challenge = []byte{}
	}
	return challenge, false, nil
}

// Identity returns the user that has proved who it is. It is empty before Next has
// returned done.
func (s *Server) Identity() string {
	if !s.done {
		return ""
	}
	return s.user
}

// Authorized returns the identity that the user acts as: its own, or another one that
// Credentials.Authorize let it have. It is empty before Next has returned done.
func (s *Server) Authorized() string {
	if !s.done {
		return ""
	}
	return s.authz
}

// identify notes who the client is, and refuses an identity that it must not have. user is
// prepared, authz is as the client sent it. It comes after the proof, so that a stranger
// learns nothing from it.
func (s *Server) identify(user, authz string) error {
	if authz == "" || authz == user {
		s.user, s.authz = user, user
		return nil
	}
	name, err := prepareName(authz)
	if err != nil {
		return err
	}
	if name != user {
		if s.creds.Authorize == nil {
			return denied("not allowed to act as another user")
		}
		if err := s.verdict(s.creds.Authorize(s.ctx, user, name)); err != nil {
			return err
		}
	}
	s.user, s.authz = user, name
	return nil
}

// verdict makes a reply of what a callback returned, and nil of nil.
func (s *Server) verdict(err error) error {
	if err == nil {
		return nil
	}
	// A reply that is no refusal would tell the client the opposite of what is meant.
	if r, ok := errors.AsType[*smtp.Reply](err); ok && (r.Temporary() || r.Permanent()) {
		return r
	}
	if errors.Is(err, ErrDenied) {
		return denied("authentication credentials invalid").Because(err)
	}
	return smtp.Refuse(454, smtp.Enhanced{4, 7, 0}, "cannot check credentials, try again later").Because(err)
}

// denied and malformed are the two ways in which a client fails. RFC 4954, Section 6.
func denied(text string) *smtp.Reply { return smtp.Refuse(535, smtp.Enhanced{5, 7, 8}, text) }

func malformed(text string) *smtp.Reply { return smtp.Refuse(501, smtp.Enhanced{5, 5, 2}, text) }

// replyOf makes a reply of a mechanism's error. What is none yet comes from a parser.
func replyOf(err error) *smtp.Reply {
	if r, ok := errors.AsType[*smtp.Reply](err); ok {
		return r
	}
	return malformed("malformed response").Because(err)
}

// prepareName is PrepareName for what a client sent.
func prepareName(raw string) (string, error) {
	name, err := PrepareName(raw)
	if err != nil {
		return "", malformed("malformed user name").Because(err)
	}
	return name, nil
}

// clientFirst asks for the response that such a mechanism begins with, if the AUTH command
// had none: with an empty challenge (RFC 4954, Section 4).
func clientFirst(m mechanism) mechanism { return &asking{m, false} }

type asking struct {
	mechanism
	asked bool
}

func (a *asking) next(response []byte) ([]byte, bool, error) {
	if response == nil && !a.asked {
		a.asked = true
		return []byte{}, false, nil
	}
	a.asked = true
	return a.mechanism.next(response)
}

// foreign makes a mechanism of one of go-sasl.
func foreign(server gosasl.Server) mechanism { return library{server} }

type library struct{ server gosasl.Server }

func (l library) next(response []byte) ([]byte, bool, error) {
	challenge, done, err := l.server.Next(response)
	if err != nil {
		return nil, false, replyOf(err) // ours come from the callbacks
	}
	return challenge, done, nil
}
