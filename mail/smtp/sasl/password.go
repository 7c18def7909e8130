package sasl

import (
	"errors"
	"strings"
)

// password.go: PLAIN (RFC 4616) and LOGIN, which send the password itself.

// checkPlain is what go-sasl's PLAIN asks.
func (s *Server) checkPlain(authz, user, password string) error {
	return s.checkPassword(authz, user, password)
}

// checkPassword ends PLAIN and LOGIN.
func (s *Server) checkPassword(authz, raw, password string) error {
	user, err := prepareName(raw)
	if err != nil {
		return err
	}
	if password == "" || len(password) > MaxPassword || strings.ContainsRune(password, 0) {
		return malformed("malformed password")
	}
	if err := s.verdict(s.creds.Password(s.ctx, user, password)); err != nil {
		return err
	}
	return s.identify(user, authz)
}

// loginServer asks for the name and then for the password. LOGIN was never a standard; the
// words of the two challenges are those that all clients know. An initial response is the
// name.
type loginServer struct {
	server    *Server
	user      string
	asked, on bool // asked: the name was asked for; on: the name is known
}

func (l *loginServer) next(response []byte) ([]byte, bool, error) {
	switch {
	case response == nil && !l.asked:
		l.asked = true
		return []byte("Username:"), false, nil
	case !l.on:
		// Refused before a password is asked for: it could not be right.
		user, err := prepareName(string(response))
		if err != nil {
			return nil, false, err
		}
		l.user, l.on = user, true
		return []byte("Password:"), false, nil
	}
	if err := l.server.checkPassword("", l.user, string(response)); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// loginClient does not look at what the challenges say: servers ask in many words, some in
// the language of their country, but all in this order.
type loginClient struct {
	user, password string
	asked          int
}

func (l *loginClient) start() ([]byte, error) { return nil, nil }

func (l *loginClient) next([]byte) ([]byte, error) {
	l.asked++
	switch l.asked {
	case 1:
		return []byte(l.user), nil
	case 2:
		return []byte(l.password), nil
	}
	return nil, errors.New("sasl: LOGIN: server asks for more than name and password")
}

func (l *loginClient) finish() error { return nil }
