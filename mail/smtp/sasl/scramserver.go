package sasl

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// scramserver.go: the server's end of SCRAM. RFC 5802, Section 3 draws the exchange:
//
//	C: n,,n=user,r=NONCE
//	S: r=NONCEMORE,s=SALT,i=4096
//	C: c=biws,r=NONCEMORE,p=PROOF
//	S: v=SIGNATURE
//	C: (empty: RFC 4954 has no room for the signature in 235)

type scramServer struct {
	server *Server
	plus   bool   // the mechanism is SCRAM-SHA-256-PLUS
	nonce  string // our part
	step   func(response []byte) ([]byte, bool, error)

	user, authz string
	known       bool // whether keys are a user's and not a decoy's
	keys        SCRAMKeys
	bound       []byte // what the client must send in c=
	first       string // client-first-message-bare
	second      string // server-first-message
	nonces      string // of both ends
}

func newSCRAMServer(s *Server, plus bool) *scramServer {
	m := &scramServer{server: s, plus: plus, nonce: newNonce()}
	m.step = m.clientFirst
	return m
}

func (m *scramServer) next(response []byte) ([]byte, bool, error) { return m.step(response) }

// clientFirst reads who the client is and how it is bound, and sends salt and nonce.
func (m *scramServer) clientFirst(response []byte) ([]byte, bool, error) {
	flag, rest, ok := strings.Cut(string(response), ",")
	authz, bare, ok2 := strings.Cut(rest, ",")
	if !ok || !ok2 {
		return nil, false, malformed("malformed message")
	}
	header := flag + "," + authz + "," // gs2-header
	if err := m.readFlag(flag, header); err != nil {
		return nil, false, err
	}
	if err := m.readNames(authz, bare); err != nil {
		return nil, false, err
	}
	if err := m.lookUp(); err != nil {
		return nil, false, err
	}
	m.first = bare
	m.second = fmt.Sprintf("r=%s,s=%s,i=%d", m.nonces, base64.StdEncoding.EncodeToString(m.keys.Salt), m.keys.Iterations)
	m.step = m.clientFinal
	return []byte(m.second), false, nil
}

// readFlag reads the gs2-cbind-flag. RFC 5802, Section 6.
func (m *scramServer) readFlag(flag, header string) error {
	m.bound = []byte(header)
	name, binds := strings.CutPrefix(flag, "p=")
	switch {
	case binds != m.plus || !binds && flag != "n" && flag != "y":
		return malformed("channel binding and mechanism do not fit")
	case binds:
		value, ok := channelBinding(name, m.server.conn.TLS)
		if !ok {
			return denied("channel binding not supported")
		}
		m.bound = append(m.bound, value...)
	case flag == "y" && slices.Contains(m.server.conn.Offered, SCRAMSHA256Plus):
		// The client could bind and believes that we cannot, but we said that we can: somebody
		// between us changed the list.
		return denied("channel binding was offered")
	}
	return nil
}

// readNames reads the gs2-authzid and the client-first-message-bare. An extension that must
// be understood comes in front as "m=" and is refused with what is no name; other ones
// follow the nonce and are passed over (RFC 5802, Section 5.1).
func (m *scramServer) readNames(authz, bare string) error {
	user, rest, ok := cutField(bare, 'n')
	nonce, _, ok2 := cutField(rest, 'r')
	if !ok || !ok2 || !validNonce(nonce) || len(nonce)+len(m.nonce) > maxNonce {
		return malformed("malformed message")
	}
	m.nonces = nonce + m.nonce
	if authz != "" {
		if authz, ok = strings.CutPrefix(authz, "a="); !ok || authz == "" {
			return malformed("malformed message")
		}
	}
	user, ok = unescapeName(user)
	m.authz, ok2 = unescapeName(authz)
	if !ok || !ok2 {
		return malformed("malformed user name")
	}
	var err error
	m.user, err = prepareName(user)
	return err
}

// lookUp gets the user's keys, or a decoy's.
func (m *scramServer) lookUp() error {
	c := m.server.creds
	keys, err := c.SCRAM(m.server.ctx, m.user)
	if err == nil {
		err = keys.Validate()
		m.keys, m.known = keys, true
	}
	if err == nil || !errors.Is(err, ErrDenied) {
		return m.server.verdict(err)
	}
	secret := c.Decoy
	if len(secret) == 0 {
		secret = make([]byte, sha256.Size)
		rand.Read(secret)
	}
	m.keys = decoyKeys(secret, c.DecoyIterations, m.user)
	return nil
}

// clientFinal checks the proof and sends ours.
func (m *scramServer) clientFinal(response []byte) ([]byte, bool, error) {
	// The proof is the last field, and covers all before it.
	message := string(response)
	at := strings.LastIndex(message, ",p=")
	if at < 0 {
		return nil, false, malformed("malformed message")
	}
	covered := message[:at]
	bound64, rest, ok := cutField(covered, 'c')
	nonces, _, ok2 := cutField(rest, 'r')
	bound, err := base64.StdEncoding.DecodeString(bound64)
	proof, err2 := base64.StdEncoding.DecodeString(message[at+len(",p="):])
	if !ok || !ok2 || err != nil || err2 != nil || len(proof) != sha256.Size {
		return nil, false, malformed("malformed message")
	}
	auth := m.first + "," + m.second + "," + covered
	right := m.proved(proof, auth)
	right = hmac.Equal(bound, m.bound) && right
	right = hmac.Equal([]byte(nonces), []byte(m.nonces)) && right
	if !right || !m.known {
		return nil, false, m.server.verdict(ErrDenied)
	}
	if err := m.server.identify(m.user, m.authz); err != nil {
		return nil, false, err
	}
	m.step = m.agreed
	return []byte("v=" + base64.StdEncoding.EncodeToString(sign(m.keys.ServerKey, auth))), false, nil
}

// proved checks ClientProof. RFC 5802, Section 3.
func (m *scramServer) proved(proof []byte, auth string) bool {
	clientKey := make([]byte, sha256.Size)
	subtle.XORBytes(clientKey, proof, sign(m.keys.StoredKey, auth))
	stored := sha256.Sum256(clientKey)
	return hmac.Equal(stored[:], m.keys.StoredKey)
}

// agreed takes the client's word that our signature is right.
func (m *scramServer) agreed(response []byte) ([]byte, bool, error) {
	if len(response) > 0 {
		return nil, false, malformed("an empty response ends this mechanism")
	}
	return nil, true, nil
}
