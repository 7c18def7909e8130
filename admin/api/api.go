// Package api holds the words of the admin API, which its server (package admin) and its
// client (package admin/client) share: what is asked, what is answered, and the error that
// either can hold.
//
// All of it travels as JSON. Who reads it must expect fields that are not here yet; none
// that is here is renamed or taken away within /v1.
//
//	GET  /livez                        200 while the process lives; no token
//	GET  /readyz                       200 while mail is taken, else 503; no token
//	GET  /metrics                      Prometheus' text form; role read
//	GET  /v1/status                    Status; role read
//	GET  /v1/accounts                  Accounts; role read
//	GET  /v1/filters                   Filters; role read
//	POST /v1/filters/{name}            the body is the module; Change; role upload
//	POST /v1/filters/{name}/rollback   the body is empty or a Rollback; Change; role upload
//	GET  /v1/queue                     QueuePage; parameters as in QueueFilter, after, limit; role read
//	GET  /v1/queue/counts              QueueCounts; role read
//	GET  /v1/queue/{id}                QueueMessage; role read
//	GET  /v1/queue/{id}/why            QueueExplanation; role read
//	POST /v1/queue/actions             the body is a QueueAction; QueueDone; role operate
//
// A gateway without a store answers all of /v1/queue with CodeConflict.
//
// A change may be made to depend on what is there: If-Match with a digest in quotes asks
// that it be the module's now, If-None-Match: * that there be none.
package api

import "time"

// Role is what a token may do.
type Role string

// The roles. RoleOperate and RoleUpload may do what RoleRead may, RoleAdmin all.
const (
	RoleRead    Role = "read"    // look
	RoleOperate Role = "operate" // act on what runs
	RoleUpload  Role = "upload"  // change filters
	RoleAdmin   Role = "admin"   // everything
)

// Roles returns all roles.
func Roles() []Role { return []Role{RoleRead, RoleOperate, RoleUpload, RoleAdmin} }

// Covers tells whether who has r may do what want asks for.
func (r Role) Covers(want Role) bool {
	switch r {
	case RoleAdmin:
		return true
	case RoleOperate, RoleUpload:
		return want == r || want == RoleRead
	}
	return r == RoleRead && want == RoleRead
}

// MaxUpload is the largest body that is taken, in octets.
const MaxUpload = 64 << 20

// Code says what went wrong, for programs. The zero Code is no code.
type Code string

// The codes, with the status they are answered with.
const (
	CodeBadRequest    Code = "bad_request"    // 400: the request makes no sense
	CodeNoToken       Code = "no_token"       // 401: no token, or none that is known
	CodeForbidden     Code = "forbidden"      // 403: the token lacks the role
	CodeNotFound      Code = "not_found"      // 404: there is nothing of that name
	CodeMethod        Code = "method"         // 405: not in this way
	CodeConflict      Code = "conflict"       // 409: it cannot be done as things are
	CodeChanged       Code = "changed"        // 412: somebody else changed it first
	CodeTooLarge      Code = "too_large"      // 413: the body is larger than MaxUpload
	CodeWrongHost     Code = "wrong_host"     // 421: the Host header is none of ours
	CodeInvalidModule Code = "invalid_module" // 422: the module cannot be the filter it is to be
	CodeTooMany       Code = "too_many"       // 429: too many failed attempts
	CodeInternal      Code = "internal"       // 500: our fault; the log has more
	CodeUnavailable   Code = "unavailable"    // 503: not now: it is busy, or ends
)

// Error is what went wrong, as it is answered within {"error": ...}. It is an error, and
// what a client returns for an answer that is not 2xx.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Next is what to do about it; empty if nobody knows.
	Next string `json:"next,omitempty"`
	// Status is the status of the answer. It is not in the body.
	Status int `json:"-"`
}

// Error implements error: the message, and what to do about it.
func (e *Error) Error() string {
	if e.Next == "" {
		return e.Message
	}
	return e.Message + "; " + e.Next
}

// Failure is the body of an answer that is not 2xx.
type Failure struct {
	Error *Error `json:"error"`
}

// Status is what runs.
type Status struct {
	Version  string    `json:"version"`
	Hostname string    `json:"hostname"`
	Started  time.Time `json:"started"`
	// Ready is true while mail is taken on every listener.
	Ready bool `json:"ready"`
	// Load is normal, stressed or full.
	Load         string        `json:"load"`
	Listeners    []Listener    `json:"listeners"`
	Counts       Counts        `json:"counts"`
	Backends     []Backend     `json:"backends"`
	Chains       []Chain       `json:"chains"`
	Certificates []Certificate `json:"certificates"`
	// Managed are the names that certificates are obtained for.
	Managed []Managed `json:"managed"`
	// Nodes are those that share the store and were heard of lately, this one with them. There
	// are none without a store.
	Nodes []Node `json:"nodes"`
}

// Node is a gateway that shares the store.
type Node struct {
	// Name is that of its machine and something that each start makes anew.
	Name string `json:"name"`
	// Self is true for the one that answers.
	Self    bool      `json:"self"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Seen is when it was heard of, by the clock of the store.
	Seen time.Time `json:"seen"`
}

// Listener is one listener.
type Listener struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	TLS       string   `json:"tls"` // off, starttls, starttls_required or implicit
	// Open is true while it takes connections.
	Open bool `json:"open"`
	// Connections are open now. TurnedAway are those that found all connections taken, since the
	// start.
	Connections int   `json:"connections"`
	TurnedAway  int64 `json:"turned_away"`
}

// Counts are sums since the start.
type Counts struct {
	Logins       int64 `json:"logins"`
	LoginsFailed int64 `json:"logins_failed"`
	EarlyTalkers int64 `json:"early_talkers"`
	// BadProxy are connections whose PROXY header was missing or broken.
	BadProxy   int64 `json:"bad_proxy"`
	Limited    int64 `json:"limited"`
	Sessions   int64 `json:"sessions"`
	Relayed    int64 `json:"relayed"`
	Refused    int64 `json:"refused"`
	Discarded  int64 `json:"discarded"`
	Duplicates int64 `json:"duplicates"`
}

// Backend is one backend.
type Backend struct {
	Name string `json:"name"`
	// Up is true if one of its endpoints is.
	Up           bool       `json:"up"`
	Idle         int        `json:"idle"`    // connections
	Busy         int        `json:"busy"`    // connections
	Waiting      int        `json:"waiting"` // transactions without a connection
	Transactions uint64     `json:"transactions"`
	Endpoints    []Endpoint `json:"endpoints"`
}

// Endpoint is one address of a backend.
type Endpoint struct {
	Address string `json:"address"`
	Up      bool   `json:"up"`
	// Error is why it is not up, Retry when it is tried next.
	Error string     `json:"error,omitempty"`
	Retry *time.Time `json:"retry,omitempty"`
}

// Chain is a filter chain.
type Chain struct {
	Name    string `json:"name"`
	Filters []Link `json:"filters"`
}

// Link is a filter's place in a chain.
type Link struct {
	Name    string `json:"name"`
	Module  string `json:"module"`
	Digest  string `json:"digest"` // of the module that runs
	OnError string `json:"on_error"`
	// Broken are the hooks at which it is not asked now, for it failed too often.
	Broken []string `json:"broken,omitempty"`
	// Grants are the capabilities that the operator granted to it.
	Grants []string `json:"grants,omitempty"`
}

// Certificate is a certificate that is shown to clients.
type Certificate struct {
	Names   []string  `json:"names"`
	Expires time.Time `json:"expires"`
}

// Managed is a name that a certificate is obtained for.
type Managed struct {
	Name string `json:"name"`
	// LastError is why the last try failed, empty if it did not; NextTry when the next is.
	LastError string     `json:"last_error,omitempty"`
	NextTry   *time.Time `json:"next_try,omitempty"`
}

// Filters is all modules there are.
type Filters struct {
	Filters []Filter `json:"filters"`
}

// Filter is a module: one of filters.dir, or another that a chain names.
type Filter struct {
	Name string `json:"name"`
	// Source is "dir" for one that can be pushed, "file" and "builtin" for others.
	Source string `json:"source"`
	// Digest is of what is there now, "sha256:" and 64 hexadecimal digits. Empty if it is
	// gone or cannot be read.
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	// Chains name it. Running is the digest that they run, which is another one if the
	// file was changed beside the API.
	Chains  []string `json:"chains"`
	Running string   `json:"running,omitempty"`
	// Asks are the capabilities that its manifest asks for.
	Asks []string `json:"asks,omitempty"`
	// Versions are kept for a rollback, the newest first.
	Versions []Version `json:"versions"`
}

// Version is a module that was replaced.
type Version struct {
	Digest   string    `json:"digest"`
	Size     int64     `json:"size"`
	Replaced time.Time `json:"replaced"`
	// Withdrawn is true for one that a rollback replaced, which a rollback does not come
	// back to unless it is named.
	Withdrawn bool `json:"withdrawn,omitempty"`
}

// Rollback is the body of a rollback.
type Rollback struct {
	// To is the digest of the version wanted; empty for the newest one that was not
	// withdrawn.
	To string `json:"to,omitempty"`
}

// Change is what a push or a rollback did.
type Change struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	// OldDigest is what was there; empty for nothing.
	OldDigest string `json:"old_digest,omitempty"`
	Size      int64  `json:"size"`
	// Chains are those that were rebuilt with it: their next session runs it.
	Chains []string `json:"chains"`
}

// Condition is what a change depends on. The zero Condition is none.
type Condition struct {
	// Digest is what must be there now.
	Digest string
	// Absent asks that nothing be there.
	Absent bool
}
