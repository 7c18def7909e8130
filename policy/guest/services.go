package guest

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// services.go: whom an Env asks for what is outside of the session. This package reaches
// for nothing itself. An implementation is one filter's: it knows its name and its grants,
// and is safe for concurrent use. All of its methods return soon after ctx is done.

// Services is what there is beyond the session. What is nil answers EUNAVAIL.
type Services struct {
	KV      KV
	DNS     DNS
	HTTP    HTTP
	DSN     DSN
	Secrets Secrets
}

// Errors that a service returns. Any other is EUNAVAIL to the guest, and that of a context
// that ended ETIME.
var (
	// ErrNotFound: there is no such value, record or recipient.
	ErrNotFound = errors.New("guest: not found")
	// ErrFull: the filter has used what it may.
	ErrFull = errors.New("guest: limit reached")
	// ErrRefused: the operator did not grant it.
	ErrRefused = errors.New("guest: refused")
	// ErrBad: the request makes no sense.
	ErrBad = errors.New("guest: bad request")
)

// KV keeps values beyond the session. A ttl of 0 keeps them for ever.
type KV interface {
	// Get returns a value, or ErrNotFound.
	Get(ctx context.Context, key string) ([]byte, error)
	// Set keeps a value, or returns ErrFull if that would be more than the quota.
	Set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	// Add adds to a number, which begins at 0, and returns the sum. The ttl counts where the
	// number begins. What is no number, or would be too large, is ErrBad.
	Add(ctx context.Context, key string, delta int64, ttl time.Duration) (int64, error)
	// Swap is Set if the value is old at that moment, nil for none, and tells whether it was.
	Swap(ctx context.Context, key string, old, value []byte, ttl time.Duration) (bool, error)
	// Delete forgets a value. It is no error if there is none.
	Delete(ctx context.Context, key string) error
}

// DNS looks names up.
type DNS interface {
	// LookUp returns the records of a type, by its number, or ErrNotFound. A name that can be
	// none is ErrBad.
	LookUp(ctx context.Context, typ uint16, name string) (DNSAnswer, error)
}

// DNSAnswer is the records of one type.
type DNSAnswer struct {
	// Secure tells that the answer was validated, by somebody whose word counts.
	Secure bool
	// TTL is how long it holds.
	TTL     time.Duration
	Records []DNSRecord
}

// DNSRecord is a record. What is set depends on its type.
type DNSRecord struct {
	Addr                   netip.Addr // A, AAAA
	Text                   string     // TXT
	Host                   string     // MX, PTR, CNAME, NS, SRV
	Priority, Weight, Port uint16     // MX has the first, SRV all
}

// HTTP fetches.
type HTTP interface {
	// Do makes one exchange. The request has been held against the grant, but for the
	// addresses that its host leads to. A response above the grant's limit is ErrFull.
	Do(ctx context.Context, r HTTPRequest) (HTTPResponse, error)
}

// HTTPRequest is a request whose parts are well-formed.
type HTTPRequest struct {
	Method string
	URL    string
	Header []HTTPField
	Body   []byte
}

// HTTPField is a header field.
type HTTPField struct{ Name, Value string }

// HTTPResponse is a response. The body is as it came, undecoded.
type HTTPResponse struct {
	Status int
	Header []HTTPField
	Body   []byte
}

// DSN sends notifications.
type DSN interface {
	// Send puts a notification into the queue. It returns ErrFull above the rate, ErrNotFound
	// if nobody is responsible for the recipient, and ErrBad for what is no address.
	Send(ctx context.Context, n Notification) error
}

// Notification is a message of a filter's to one recipient. Text is UTF-8 with lines that
// end in LF or CRLF; Subject is a line.
type Notification struct{ To, Subject, Text string }

// Secrets are values that the operator gives to filters.
type Secrets interface {
	// Secret returns the value of a name.
	Secret(name string) (value string, ok bool)
}
