package sasl

import (
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"

	gosasl "github.com/emersion/go-sasl"
)

// client.go: the exchange as the client leads it.

// maxChallenge bounds what a server may ask, in octets.
const maxChallenge = 16384

// Account is what a client has to prove who it is.
type Account struct {
	User     string
	Password string // for PLAIN, LOGIN, CRAM-MD5 and SCRAM
	Token    string // for OAUTHBEARER and XOAUTH2
	// Authz is the user to act as; empty means User. LOGIN, CRAM-MD5 and XOAUTH2 cannot say it.
	Authz string
	// Certificate says that the client certificate of the TLS connection is the proof, for
	// EXTERNAL.
	Certificate bool
	// TLS is the state as tls.Conn.ConnectionState returns it. nil means in clear.
	TLS *tls.ConnectionState
	// AllowClear lets passwords and tokens out without TLS.
	AllowClear bool
	// Host and Port are what the client connected to; OAUTHBEARER tells the server. Both may
	// be zero.
	Host string
	Port int
	// Offered are the mechanisms that the server offers, in capitals. SCRAM tells the server
	// by it whether channel binding was offered; nil leaves that unsaid.
	Offered []string
}

// identity is the name that OAUTHBEARER says: there the token tells the user.
func (a Account) identity() string {
	if a.Authz != "" {
		return a.Authz
	}
	return a.User
}

// Choose returns the strongest of the offered mechanisms that a has what it takes for; the
// empty string if there is none. A token is used before a password, and a certificate only
// if there is neither. In clear, mechanisms that show the password or the token count only
// with AllowClear, and then after those that do not.
func Choose(offered []string, a Account) string {
	for _, name := range preference(a) {
		if slices.ContainsFunc(offered, func(o string) bool { return strings.EqualFold(o, name) }) && a.can(name) == nil {
			return name
		}
	}
	return ""
}

// preference is the order in which a client tries. Within TLS, PLAIN comes before CRAM-MD5,
// which servers offer even where few of their users can use it.
func preference(a Account) []string {
	if a.TLS == nil {
		return []string{SCRAMSHA256, CRAMMD5, OAuthBearer, XOAuth2, Plain, Login}
	}
	list := []string{OAuthBearer, XOAuth2, SCRAMSHA256Plus, SCRAMSHA256, Plain, Login, CRAMMD5}
	if a.Password == "" && a.Token == "" {
		list = append(list, External)
	}
	return list
}

// can tells why a mechanism cannot be used; nil if it can.
func (a Account) can(name string) error {
	revealing, noAuthz := false, false
	need := a.Password
	switch name {
	case Plain:
		revealing = true
	case Login:
		revealing, noAuthz = true, true
	case CRAMMD5:
		noAuthz = true
	case SCRAMSHA256:
	case SCRAMSHA256Plus:
		if _, _, ok := bestBinding(a.TLS); !ok {
			return errors.New("the connection has no channel binding")
		}
	case OAuthBearer:
		revealing, need = true, a.Token
	case XOAuth2:
		revealing, noAuthz, need = true, true, a.Token
	case External:
		if !a.Certificate || a.TLS == nil {
			return errors.New("there is no client certificate")
		}
		return nil
	default:
		return errors.New("not known")
	}
	switch {
	case need == "":
		return errors.New("there is no password or token for it")
	case a.User == "" && name != OAuthBearer:
		return errors.New("there is no user name")
	case revealing && a.TLS == nil && !a.AllowClear:
		return errors.New("not without TLS")
	case noAuthz && a.Authz != "" && a.Authz != a.User:
		return errors.New("it has no authorization identity")
	}
	return nil
}

// A Client is one exchange with a server. It is for one goroutine and one use.
type Client struct {
	name          string
	mech          clientMechanism
	started, over bool
}

// clientMechanism is the part that differs. finish is asked when the server has agreed.
type clientMechanism interface {
	start() (initial []byte, err error)
	next(challenge []byte) (response []byte, err error)
	finish() error
}

// NewClient begins an exchange as a client. The name of the mechanism may be in any case.
// It refuses what the account lacks something for, what must not go out in clear, and names
// and passwords that no server could read.
func NewClient(name string, a Account) (*Client, error) {
	name = strings.ToUpper(name)
	if err := a.can(name); err != nil {
		return nil, fmt.Errorf("sasl: %q: %w", name, err)
	}
	a, err := a.prepared(name)
	if err != nil {
		return nil, fmt.Errorf("sasl: %s: %w", name, err)
	}
	c := &Client{name: name}
	switch name {
	case Plain:
		c.mech = foreignClient(gosasl.NewPlainClient(a.Authz, a.User, a.Password))
	case Login:
		c.mech = &loginClient{user: a.User, password: a.Password}
	case CRAMMD5:
		c.mech = &cramClient{user: a.User, password: a.Password}
	case XOAuth2:
		c.mech = newXOAuth2Client(a.User, a.Token)
	case OAuthBearer:
		c.mech, err = newBearerClient(a)
	case External:
		c.mech = foreignClient(gosasl.NewExternalClient(a.Authz))
	default:
		c.mech, err = newSCRAMClient(a, name == SCRAMSHA256Plus)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// prepared returns a with its names, and for SCRAM its password, in the form in which they
// are compared. The other mechanisms leave the password to the server: RFC 4616, Section 2
// has that prepare it, and one that does not wants it as it was typed.
func (a Account) prepared(name string) (Account, error) {
	var errs [4]error
	if a.User != "" {
		a.User, errs[0] = PrepareName(a.User)
	}
	if a.Authz != "" {
		a.Authz, errs[1] = PrepareName(a.Authz)
	}
	if name == SCRAMSHA256 || name == SCRAMSHA256Plus {
		a.Password, errs[2] = PreparePassword(a.Password)
	} else if len(a.Password) > MaxPassword || strings.ContainsRune(a.Password, 0) {
		errs[2] = errors.New("malformed password")
	}
	if a.Token != "" && !validToken(a.Token) {
		errs[3] = errors.New("malformed token")
	}
	return a, errors.Join(errs[:]...)
}

// Start returns the name for the AUTH command and the initial response. A nil one means that
// the server speaks first; an empty one is sent as "=" (RFC 4954, Section 4). One that would
// not fit into the command line may be sent after an empty challenge.
func (c *Client) Start() (mech string, ir []byte, err error) {
	if c.started {
		return "", nil, errors.New("sasl: exchange begun twice")
	}
	c.started = true
	ir, err = c.mech.start()
	return c.name, ir, err
}

// Next takes a challenge of the server, decoded, and returns the response. After an error
// the caller cancels the exchange with "*". A server that refuses a token says why in a
// challenge; Next then returns the response that the mechanism has for it, the refusal
// itself follows as the reply, and Reason knows the words.
func (c *Client) Next(challenge []byte) (response []byte, err error) {
	if !c.started || c.over {
		return nil, errors.New("sasl: challenge outside of an exchange")
	}
	if len(challenge) > maxChallenge {
		c.over = true
		return nil, errors.New("sasl: challenge too long")
	}
	response, err = c.mech.next(challenge)
	c.over = err != nil
	return response, err
}

// Finish is to be called when the server has said 235. It returns an error if the server had
// to prove something first and has not, as SCRAM wants it: it may be a stranger then, and
// must get no mail.
func (c *Client) Finish() error {
	if !c.started || c.over {
		return errors.New("sasl: server agrees outside of an exchange")
	}
	c.over = true
	return c.mech.finish()
}

// Reason returns what the server said about a token that it refused, for a log; else it is
// empty. The words are the server's and may hold any character.
func (c *Client) Reason() string {
	if t, ok := c.mech.(*tokenClient); ok {
		return t.reason
	}
	return ""
}

// foreignClient makes a mechanism of one of go-sasl that says all in its first response.
func foreignClient(client gosasl.Client) clientMechanism { return libraryClient{client} }

type libraryClient struct{ client gosasl.Client }

func (l libraryClient) start() ([]byte, error) {
	_, initial, err := l.client.Start()
	return initial, err
}

func (l libraryClient) next(challenge []byte) ([]byte, error) { return l.client.Next(challenge) }

func (l libraryClient) finish() error { return nil }
