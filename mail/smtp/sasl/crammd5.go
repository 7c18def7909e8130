package sasl

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// crammd5.go: CRAM-MD5 (RFC 2195). The password stays secret on the wire, but the server
// must keep it in clear, and does not prove that it knows it.

// cramServer sends a challenge and checks the digest over it.
type cramServer struct {
	server    *Server
	challenge []byte
	sent      bool
}

// newCRAMServer makes a challenge of the form of RFC 2195, Section 2: a message identifier
// that nobody has seen before.
func newCRAMServer(s *Server) *cramServer {
	host := s.conn.Hostname
	if host == "" {
		host = "localhost"
	}
	var random [16]byte
	rand.Read(random[:]) // never fails; the program ends if it cannot
	return &cramServer{server: s, challenge: fmt.Appendf(nil, "<%x.%d@%s>", random, time.Now().Unix(), host)}
}

func (c *cramServer) next(response []byte) ([]byte, bool, error) {
	if !c.sent {
		if response != nil {
			// RFC 4954, Section 4: the server begins, and there is nothing to respond to yet.
			return nil, false, smtp.Refuse(501, smtp.Enhanced{5, 7, 0}, "this mechanism has no initial response")
		}
		c.sent = true
		return c.challenge, false, nil
	}
	// The digest has no space; the name may.
	at := bytes.LastIndexByte(response, ' ')
	if at < 0 {
		return nil, false, malformed("malformed response")
	}
	user, err := prepareName(string(response[:at]))
	if err != nil {
		return nil, false, err
	}
	digest, err := hex.DecodeString(string(response[at+1:]))
	if err != nil || len(digest) != md5.Size {
		return nil, false, malformed("malformed digest")
	}
	if err := c.check(user, digest); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

func (c *cramServer) check(user string, digest []byte) error {
	secret, err := c.server.creds.Secret(c.server.ctx, user)
	if err == nil && secret == "" {
		err = ErrDenied // an empty secret is none
	}
	if err != nil && !errors.Is(err, ErrDenied) {
		return c.server.verdict(err)
	}
	// An unknown user costs the same digest.
	right := hmac.Equal(cramDigest(secret, c.challenge), digest)
	if err == nil && !right {
		err = ErrDenied
	}
	if err != nil {
		return c.server.verdict(err)
	}
	return c.server.identify(user, "")
}

func cramDigest(secret string, challenge []byte) []byte {
	mac := hmac.New(md5.New, []byte(secret))
	mac.Write(challenge)
	return mac.Sum(nil)
}

type cramClient struct {
	user, password string
	answered       bool
}

func (c *cramClient) start() ([]byte, error) { return nil, nil }

func (c *cramClient) next(challenge []byte) ([]byte, error) {
	if c.answered {
		return nil, errors.New("sasl: CRAM-MD5: server sends a second challenge")
	}
	c.answered = true
	return fmt.Appendf(nil, "%s %x", c.user, cramDigest(c.password, challenge)), nil
}

func (c *cramClient) finish() error {
	if !c.answered {
		return errors.New("sasl: CRAM-MD5: server agrees before it has asked")
	}
	return nil
}
