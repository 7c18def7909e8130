package guest

import (
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// grants.go: what the operator lets a filter do. A filter may import anything; what was not
// granted answers EPERM, so that one binary can do with less.

// Grants are what a filter may do beside answering, writing header fields and logging. The
// zero Grants are nothing. They are not changed once an Env has them.
type Grants struct {
	// BodyRead lets it read the body, its parts, and search and hash them.
	BodyRead bool
	// BodyEdit lets it change the body.
	BodyEdit bool
	// Envelope lets it change sender and recipients; nil does not.
	Envelope *EnvelopeGrant
	// Discard lets it drop mail that the client is told was taken.
	Discard bool
	// AcceptFinal lets it end the asking at a stage, so that the filters behind are not
	// heard.
	AcceptFinal bool
	// AuthData shows it passwords and tokens of logins that are left to filters, and lets it
	// say that they are right.
	AuthData bool
	// KV lets it keep values beyond the session; nil does not.
	KV *KVGrant
	// DNS lets it look names up; nil does not.
	DNS *DNSGrant
	// HTTP lets it fetch from web servers; nil does not.
	HTTP *HTTPGrant
	// DSN lets it send notifications; nil does not.
	DSN *DSNGrant
	// Secrets are the names of those that it may read.
	Secrets []string
	// Route lets it choose the way of outgoing mail; nil does not.
	Route *RouteGrant
}

// RouteGrant lets a filter choose the way of outgoing mail.
type RouteGrant struct {
	// WeakerTLS lets it have less encryption than the other side asks for.
	WeakerTLS bool
}

// EnvelopeGrant lets a filter change the envelope.
type EnvelopeGrant struct {
	// Relay takes recipients that the filter names for which the client may not relay. Without
	// it they pass the listener's rule like the client's own.
	Relay bool
}

// KVGrant lets a filter keep values.
type KVGrant struct {
	// Quota is the most octets of all its keys and values. 0 means DefaultQuota.
	Quota int64
	// MaxPerHook is how many calls it may make at one hook. 0 means abi.MaxKV.
	MaxPerHook int
}

// DNSGrant lets a filter look names up.
type DNSGrant struct {
	// Types are the names of the record types, as in "TXT". Empty means all of abi.DNSTypes.
	Types []string
	// MaxPerHook is how many look-ups it may make at one hook. 0 means abi.MaxDNS.
	MaxPerHook int
}

// HTTPGrant lets a filter fetch.
type HTTPGrant struct {
	// Hosts are those that it may speak to.
	Hosts []HostPattern
	// Private are networks of addresses that are not public and that a host's name may lead
	// to all the same.
	Private []netip.Prefix
	// Methods are those that it may use. Empty means GET, HEAD and POST.
	Methods []string
	// MaxResponse is the most octets of a response's body. 0 means 1 MiB.
	MaxResponse int64
	// MaxPerHook is how many it may make at one hook. 0 means abi.MaxHTTP.
	MaxPerHook int
	// Timeout is how long one exchange may take. 0 means 2 s.
	Timeout time.Duration
}

// DSNGrant lets a filter send notifications.
type DSNGrant struct {
	// Count is how many it may send in the time Per, from all its sessions together.
	Count int
	Per   time.Duration
}

// Defaults of grants.
const (
	DefaultQuota       = 16 << 20
	DefaultMaxResponse = 1 << 20
	DefaultHTTPTimeout = 2 * time.Second
)

// Everything grants all that can be granted without naming hosts, secrets or private
// networks. It is for trying filters out.
func Everything() Grants {
	return Grants{
		BodyRead: true, BodyEdit: true, Envelope: &EnvelopeGrant{}, Discard: true, AcceptFinal: true, AuthData: true,
		KV: &KVGrant{}, DNS: &DNSGrant{}, DSN: &DSNGrant{Count: 100, Per: time.Hour}, Route: &RouteGrant{},
		HTTP: &HTTPGrant{Hosts: []HostPattern{{Scheme: "https", Host: "*"}, {Scheme: "http", Host: "*"}}},
	}
}

// Has tells whether something of a capability is granted. Names are those of
// abi.Capabilities.
func (g Grants) Has(capability string) bool {
	switch capability {
	case abi.CapBodyRead:
		return g.BodyRead
	case abi.CapBodyEdit:
		return g.BodyEdit
	case abi.CapEnvelope:
		return g.Envelope != nil
	case abi.CapDiscard:
		return g.Discard
	case abi.CapAcceptFinal:
		return g.AcceptFinal
	case abi.CapAuthData:
		return g.AuthData
	case abi.CapKV:
		return g.KV != nil
	case abi.CapDNS:
		return g.DNS != nil
	case abi.CapHTTP:
		return g.HTTP != nil
	case abi.CapDSN:
		return g.DSN != nil
	case abi.CapSecret:
		return len(g.Secrets) > 0
	case abi.CapRoute:
		return g.Route != nil
	}
	return false
}

// Deny takes a capability away. It is false if there is none of that name.
func (g *Grants) Deny(capability string) bool {
	switch capability {
	case abi.CapBodyRead:
		g.BodyRead = false
	case abi.CapBodyEdit:
		g.BodyEdit = false
	case abi.CapEnvelope:
		g.Envelope = nil
	case abi.CapDiscard:
		g.Discard = false
	case abi.CapAcceptFinal:
		g.AcceptFinal = false
	case abi.CapAuthData:
		g.AuthData = false
	case abi.CapKV:
		g.KV = nil
	case abi.CapDNS:
		g.DNS = nil
	case abi.CapHTTP:
		g.HTTP = nil
	case abi.CapDSN:
		g.DSN = nil
	case abi.CapSecret:
		g.Secrets = nil
	case abi.CapRoute:
		g.Route = nil
	default:
		return false
	}
	return true
}

// HostPattern is a host that a filter may speak to.
type HostPattern struct {
	Scheme string // https or http
	// Host is a name in lower case or an address; *.example.org stands for all names below
	// example.org, and * for every name, but for no address.
	Host string
	Port uint16 // 0 means the scheme's own
}

// port is that of a URL of the scheme without one.
func (p HostPattern) port() uint16 {
	switch {
	case p.Port != 0:
		return p.Port
	case p.Scheme == "http":
		return 80
	}
	return 443
}

// Matches tells whether a host is meant. It is a name in lower case, or an address without
// brackets.
func (p HostPattern) Matches(scheme, host string, port uint16) bool {
	if p.Scheme != scheme || p.port() != port {
		return false
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		want, err := netip.ParseAddr(p.Host)
		return err == nil && want == addr
	}
	if parent, ok := strings.CutPrefix(p.Host, "*."); ok {
		return strings.HasSuffix(host, "."+parent)
	}
	return p.Host == "*" || p.Host == host
}

// Told is what was said once about a filter. The zero Told has said nothing. Safe for
// concurrent use.
type Told struct{ bits atomic.Uint64 }

// first tells whether a capability was not spoken of yet.
func (t *Told) first(capability string) bool {
	bit := uint64(1) << slices.Index(abi.Capabilities(), capability)
	return t.bits.Or(bit)&bit == 0
}

// may tells whether a capability is granted, and logs the first time that it is not.
func (g *Env) may(capability string) bool {
	if g.opts.Grants.Has(capability) {
		return true
	}
	g.refuse(capability)
	return false
}

// refuse logs that a filter wanted what it may not, once for all its sessions.
func (g *Env) refuse(capability string) {
	if g.opts.Told.first(capability) {
		g.opts.Log.Warn("filter wants what is not granted to it; grant it, or live without",
			"filter", g.opts.Name, "grant", capability)
	}
}
