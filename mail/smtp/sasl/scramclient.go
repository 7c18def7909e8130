package sasl

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// scramclient.go: the client's end of SCRAM. It believes that it is logged in when the
// server has proved that it knows the user's keys, and not before.

type scramClient struct {
	password string
	header   string // gs2-header
	bound    []byte // header and channel binding
	bare     string // client-first-message-bare
	nonce    string
	step     func(challenge []byte) ([]byte, error)

	signature []byte // what the server must send
	verified  bool
}

func newSCRAMClient(l Account, plus bool) (*scramClient, error) {
	flag := "n"
	name, value, can := bestBinding(l.TLS)
	switch {
	case plus && !can:
		return nil, errors.New("sasl: the connection has no channel binding")
	case plus:
		flag = "p=" + name
	case can && l.Offered != nil && !slices.Contains(l.Offered, SCRAMSHA256Plus):
		flag = "y" // so that a server whose list was changed on its way finds out
	}
	authz := ""
	if l.Authz != "" {
		authz = "a=" + escapeName(l.Authz)
	}
	c := &scramClient{password: l.Password, header: flag + "," + authz + ",", nonce: newNonce()}
	c.bound = []byte(c.header)
	if plus {
		c.bound = append(c.bound, value...)
	}
	c.bare = "n=" + escapeName(l.User) + ",r="
	c.step = c.serverFirst
	return c, nil
}

func (c *scramClient) start() ([]byte, error) {
	c.bare += c.nonce
	return []byte(c.header + c.bare), nil
}

func (c *scramClient) next(challenge []byte) ([]byte, error) { return c.step(challenge) }

// serverFirst answers salt and nonce with the proof.
func (c *scramClient) serverFirst(challenge []byte) ([]byte, error) {
	nonces, rest, ok := cutField(string(challenge), 'r')
	salt64, rest, ok2 := cutField(rest, 's')
	count, _, ok3 := cutField(rest, 'i')
	salt, err := base64.StdEncoding.DecodeString(salt64)
	iterations, err2 := strconv.Atoi(count)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil {
		return nil, errors.New("sasl: SCRAM: malformed message of the server")
	}
	// RFC 5802, Section 5.1: a nonce that does not begin with ours is of another exchange.
	if !validNonce(nonces) || !strings.HasPrefix(nonces, c.nonce) || nonces == c.nonce {
		return nil, errors.New("sasl: SCRAM: server has a wrong nonce")
	}
	// Few iterations would make guessing cheap for a server that only pretends to be ours.
	if err := checkParameters(salt, iterations); err != nil {
		return nil, fmt.Errorf("sasl: SCRAM: refuse the server's parameters: %w", err)
	}
	salted, err := pbkdf2.Key(sha256.New, c.password, salt, iterations, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("sasl: SCRAM: derive keys: %w", err)
	}
	covered := "c=" + base64.StdEncoding.EncodeToString(c.bound) + ",r=" + nonces
	auth := c.bare + "," + string(challenge) + "," + covered
	clientKey := sign(salted, "Client Key")
	storedKey := sha256.Sum256(clientKey)
	proof := make([]byte, sha256.Size)
	subtle.XORBytes(proof, clientKey, sign(storedKey[:], auth))
	c.signature = sign(sign(salted, "Server Key"), auth)
	c.step = c.serverFinal
	return []byte(covered + ",p=" + base64.StdEncoding.EncodeToString(proof)), nil
}

// serverFinal checks that the server knows the keys.
func (c *scramClient) serverFinal(challenge []byte) ([]byte, error) {
	c.step = func([]byte) ([]byte, error) {
		return nil, errors.New("sasl: SCRAM: server goes on after the end")
	}
	value, _, ok := cutField(string(challenge), 'v')
	signature, err := base64.StdEncoding.DecodeString(value)
	if !ok || err != nil {
		return nil, errors.New("sasl: SCRAM: server sends no signature")
	}
	if !hmac.Equal(signature, c.signature) {
		return nil, errors.New("sasl: SCRAM: server does not know the user's keys")
	}
	c.verified = true
	return []byte{}, nil
}

func (c *scramClient) finish() error {
	if !c.verified {
		return errors.New("sasl: SCRAM: server agrees without having proved that it knows the user's keys")
	}
	return nil
}
