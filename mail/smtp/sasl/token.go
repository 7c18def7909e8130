package sasl

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	gosasl "github.com/emersion/go-sasl"
)

// token.go: OAUTHBEARER (RFC 7628) and XOAUTH2, where the proof is a token that some other
// service gave out. A refusal takes one more turn here: the reason goes out as JSON in a
// challenge, the client answers with a line that means nothing, and then comes the reply.

// tokenResult is what became of a token.
type tokenResult struct {
	reply   error  // nil: the token is good
	explain []byte // sent before reply; nil: reply at once
}

// checkToken asks for a token. named is who the client says it is.
func (s *Server) checkToken(r TokenRequest, status string) tokenResult {
	if !validToken(r.Token) {
		return tokenResult{denied("malformed token"), (&TokenError{}).challenge(status)}
	}
	named := r.User
	if named != "" {
		name, err := prepareName(named)
		if err != nil {
			return tokenResult{err, (&TokenError{Status: "invalid_request"}).challenge(status)}
		}
		named = name
	}
	r.User = named
	user, err := s.creds.Token(s.ctx, r)
	if err == nil {
		err = s.acceptToken(user, named)
	}
	if err == nil {
		return tokenResult{}
	}
	reply := replyOf(s.verdict(err))
	if !reply.Permanent() {
		// Trouble of ours: the client's token may be as good as ever, and it should not ask
		// for a new one.
		return tokenResult{reply, nil}
	}
	refusal, ok := errors.AsType[*TokenError](err)
	if !ok {
		refusal = &TokenError{}
	}
	return tokenResult{reply, refusal.challenge(status)}
}

// acceptToken notes whose the token is. owner is what the callback said.
func (s *Server) acceptToken(owner, named string) error {
	if owner == "" {
		owner = named
	}
	user, err := PrepareName(owner)
	if err != nil {
		return denied("the token names no user").Because(err)
	}
	return s.identify(user, named)
}

// validToken tells whether a token may be one: visible ASCII (RFC 6750, Section 2.1, is
// stricter still).
func validToken(token string) bool {
	if token == "" || len(token) > MaxToken {
		return false
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return false
		}
	}
	return true
}

// xoauth2Server reads "user=NAME^Aauth=Bearer TOKEN^A^A".
type xoauth2Server struct {
	server *Server
	failed error // to be said after the client's next line
}

func (x *xoauth2Server) next(response []byte) ([]byte, bool, error) {
	if x.failed != nil {
		return nil, false, x.failed // whatever the line holds
	}
	fields, ok := bytes.CutSuffix(response, []byte("\x01\x01"))
	user, auth, ok2 := strings.Cut(string(fields), "\x01")
	user, ok3 := strings.CutPrefix(user, "user=")
	scheme, token, ok4 := strings.Cut(auth, " ")
	if !ok || !ok2 || !ok3 || !ok4 || user == "" || !strings.EqualFold(scheme, "auth=Bearer") {
		return nil, false, malformed("malformed response")
	}
	result := x.server.checkToken(TokenRequest{Mechanism: XOAuth2, User: user, Token: token}, "401")
	switch {
	case result.reply == nil:
		return nil, true, nil
	case result.explain == nil:
		return nil, false, result.reply
	}
	x.failed = result.reply
	return result.explain, false, nil
}

// bearerServer has go-sasl take the response apart, and leads the rest itself: the words of
// the refusal are the callback's.
type bearerServer struct {
	server  *Server
	library gosasl.Server
	result  *tokenResult // nil until the response was well-formed
	failed  error        // to be said after the client's next line
}

func newBearerServer(s *Server) *bearerServer {
	b := &bearerServer{server: s}
	b.library = gosasl.NewOAuthBearerServer(b.check)
	return b
}

// check is asked by go-sasl, once. Its answer only tells yes from no.
func (b *bearerServer) check(o gosasl.OAuthBearerOptions) *gosasl.OAuthBearerError {
	result := tokenResult{malformed("malformed user name"), (&TokenError{Status: "invalid_request"}).challenge("")}
	if user, ok := unescapeName(o.Username); ok {
		r := TokenRequest{OAuthBearer, user, o.Token, o.Host, o.Port}
		result = b.server.checkToken(r, "invalid_token")
	}
	b.result = &result
	if result.reply == nil {
		return nil
	}
	return &gosasl.OAuthBearerError{}
}

func (b *bearerServer) next(response []byte) ([]byte, bool, error) {
	if b.failed != nil {
		// RFC 7628, Section 3.2.3: the line is a single ^A. Whatever it is, the exchange fails.
		return nil, false, b.failed
	}
	challenge, done, err := b.library.Next(response)
	switch {
	case err != nil || done:
		return nil, done, err
	case b.result == nil: // go-sasl says in the challenge that the response is broken
		b.failed = malformed("malformed response")
		return challenge, false, nil
	case b.result.explain == nil:
		return nil, false, b.result.reply
	}
	b.failed = b.result.reply
	return b.result.explain, false, nil
}

// tokenClient sends the token at once. A challenge is a refusal that wants its answer.
type tokenClient struct {
	first  []byte
	answer []byte // to the challenge of a refusal
	reason string
	failed bool
}

// newXOAuth2Client and newBearerClient write the response; the latter has go-sasl do it.
func newXOAuth2Client(user, token string) *tokenClient {
	return &tokenClient{first: []byte("user=" + user + "\x01auth=Bearer " + token + "\x01\x01"), answer: []byte{}}
}

func newBearerClient(l Account) (*tokenClient, error) {
	_, first, err := gosasl.NewOAuthBearerClient(&gosasl.OAuthBearerOptions{
		Username: escapeName(l.identity()), Token: l.Token, Host: l.Host, Port: l.Port,
	}).Start()
	return &tokenClient{first: first, answer: []byte{1}}, err
}

func (t *tokenClient) start() ([]byte, error) { return t.first, nil }

func (t *tokenClient) next(challenge []byte) ([]byte, error) {
	if t.failed {
		return nil, errors.New("sasl: server sends a second refusal")
	}
	t.failed, t.reason = true, "the token was refused"
	var said struct {
		Status string `json:"status"`
	}
	if json.Unmarshal(challenge, &said) == nil && said.Status != "" {
		t.reason += ": " + said.Status
	}
	return t.answer, nil
}

func (t *tokenClient) finish() error {
	if t.failed {
		return errors.New("sasl: server refuses the token and agrees all the same")
	}
	return nil
}
