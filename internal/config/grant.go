package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// grant.go holds what a filter is allowed. A mapping that was written grants, with or without
// parameters in it: kv: {} lets a filter keep values, within the default quota.

// A Grant says what one filter of a chain may do. The zero Grant is nothing.
type Grant struct {
	BodyRead    Bool          `key:"body_read" default:"false" doc:"true lets it read the body and its parts, search and hash them."`
	BodyEdit    Bool          `key:"body_edit" default:"false" doc:"true lets it change the body."`
	Envelope    EnvelopeGrant `key:"envelope" doc:"Written, if only as {}, it lets the filter change sender and recipients."`
	Discard     Bool          `key:"discard" default:"false" doc:"true lets it drop mail that the client is told was taken."`
	AcceptFinal Bool          `key:"accept_final" default:"false" doc:"true lets it accept at a stage without the filters behind being asked."`
	AuthData    Bool          `key:"auth_data" default:"false" doc:"true shows it the passwords and tokens of logins, where auth: users: filter leaves them to filters, and lets it say that they are right."`
	KV          KVGrant       `key:"kv" doc:"Written, it lets the filter keep values beyond the session, under its name: filters of one name share them. Without a store they are lost at a restart."`
	DNS         DNSGrant      `key:"dns" doc:"Written, it lets the filter look names up."`
	HTTP        HTTPGrant     `key:"http" doc:"Written, it lets the filter fetch from web servers."`
	DSN         DSNGrant      `key:"dsn" doc:"Written, it lets the filter send notifications, with the null sender and through the store's queue, to recipients that have a route."`
	Secret      []string      `key:"secret" doc:"Names in filters.secrets that it may read."`
	Route       RouteGrant    `key:"route" doc:"Written, it lets the filter choose the way of mail to others: smart host, source, encryption, address. It is for the chain that delivery.chain names."`
}

// RouteGrant lets a filter choose the way of mail to others.
type RouteGrant struct {
	Given     bool
	WeakerTLS Bool `key:"weaker_tls" default:"false" doc:"true lets it have mail go with less encryption than the other side's policy asks for, or in clear."`
}

func (g *RouteGrant) give() { g.Given = true }

// EnvelopeGrant lets a filter change the envelope.
type EnvelopeGrant struct {
	Given bool // the key is there
	Relay Bool `key:"relay" default:"false" doc:"true takes recipients that the filter names where the client may not relay, too. Otherwise they pass the listener's accept like the client's own."`
}

func (g *EnvelopeGrant) give() { g.Given = true }

// KVGrant lets a filter keep values.
type KVGrant struct {
	Given bool
	Quota Size `key:"quota" default:"16MiB" doc:"Octets of all its keys and values."`

	MaxPerHook int `key:"max_per_hook" default:"128" doc:"Calls at one stage, at most 1024."`
}

func (g *KVGrant) give() { g.Given = true }

// DNSGrant lets a filter look names up.
type DNSGrant struct {
	Given      bool
	Types      []DNSType `key:"types" doc:"Types of records: A, AAAA, TXT, MX, PTR, CNAME, NS and SRV. Empty is all of them."`
	MaxPerHook int       `key:"max_per_hook" default:"32" doc:"Look-ups at one stage, at most 32."`
}

func (g *DNSGrant) give() { g.Given = true }

// HTTPGrant lets a filter fetch from web servers.
type HTTPGrant struct {
	Given       bool
	Hosts       []WebHost     `key:"hosts" doc:"Whom it may ask: [https://]host[:port], where *.example.com stands for every name below example.com and * for every name; http:// in front for those that it may ask without TLS. Required."`
	Private     Networks      `key:"private" doc:"Networks that are not of the public Internet, this machine included, and that hosts may have addresses in all the same."`
	Methods     []HTTPMethod  `key:"methods" doc:"Methods that it may use. Empty is GET, HEAD and POST."`
	MaxResponse Size          `key:"max_response" default:"1MiB" doc:"The largest body of an answer, at most 16MiB."`
	Timeout     time.Duration `key:"timeout" default:"2s" doc:"How long one exchange may take, at most 1m."`
	MaxPerHook  int           `key:"max_per_hook" default:"8" doc:"Requests at one stage, at most 32."`
}

func (g *HTTPGrant) give() { g.Given = true }

// DSNGrant lets a filter send notifications.
type DSNGrant struct {
	Given bool
	Rate  Rate `key:"rate" default:"10/1h" doc:"How many in a time, from all its sessions together."`
}

func (g *DSNGrant) give() { g.Given = true }

// DNSType is the type of a record.
type DNSType string

func (DNSType) words() []string {
	return []string{"A", "AAAA", "TXT", "MX", "PTR", "CNAME", "NS", "SRV"}
}

// HTTPMethod is a method of a request.
type HTTPMethod string

func (HTTPMethod) words() []string { return []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} }

// A WebHost is whom a filter may ask.
type WebHost struct {
	Scheme string
	Host   string // a name, *.name, *, or an address
	Port   uint16 // 0 is the scheme's own
}

// UnmarshalText reads [https://]host[:port].
func (h *WebHost) UnmarshalText(text []byte) error {
	scheme, rest, ok := strings.Cut(string(text), "://")
	if !ok {
		scheme, rest = "https", string(text)
	}
	bad := fmt.Errorf("%s is not a host to ask: write [https://]host[:port] or http://host[:port], with *.example.com for every name below, or *", quote(string(text)))
	if scheme != "https" && scheme != "http" {
		return bad
	}
	*h = WebHost{Scheme: scheme, Host: rest}
	if host, port, err := net.SplitHostPort(rest); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return bad
		}
		h.Host, h.Port = host, uint16(n)
	}
	h.Host = strings.TrimSuffix(strings.TrimPrefix(h.Host, "["), "]")
	if addr, err := netip.ParseAddr(h.Host); err == nil {
		h.Host = addr.Unmap().String()
		return nil
	}
	if h.Host == "*" {
		return nil
	}
	prefix := ""
	if parent, ok := strings.CutPrefix(h.Host, "*."); ok {
		prefix, h.Host = "*.", parent
	}
	if strings.HasPrefix(h.Host, ".") {
		return bad
	}
	host, err := parseHost(h.Host)
	if err != nil {
		return bad
	}
	h.Host = prefix + host
	return nil
}

func (WebHost) describe() string { return "host to ask" }

// A SecretSource says where a secret is.
type SecretSource struct {
	File Path
	Env  string
}

// UnmarshalText reads file:PATH or env:NAME.
func (s *SecretSource) UnmarshalText(text []byte) error {
	if path, ok := strings.CutPrefix(string(text), "file:"); ok && path != "" {
		*s = SecretSource{File: Path(path)}
		return nil
	}
	if name, ok := strings.CutPrefix(string(text), "env:"); ok && name != "" && !strings.ContainsAny(name, "=\x00") {
		*s = SecretSource{Env: name}
		return nil
	}
	// The text is not repeated: it may be the secret itself.
	return fmt.Errorf("is not a place: write file:PATH or env:NAME, not the secret")
}

func (SecretSource) describe() string { return "file:PATH or env:NAME" }

func (s *SecretSource) rebase(dir string) { s.File.rebase(dir) }

// Bounds of grants.
const (
	maxLookUps             = 32
	maxRequests            = 32
	maxValues              = 1024
	maxWebResponse    Size = 16 << 20
	maxWebTimeout          = time.Minute
	maxNotifications       = 1000
	maxNotificationsT      = 24 * time.Hour
)

// grant checks what a filter is allowed.
func (k *checker) grant(at string, g Grant) {
	for _, n := range []struct {
		key         string
		value, most int
	}{{"dns", g.DNS.MaxPerHook, maxLookUps}, {"http", g.HTTP.MaxPerHook, maxRequests}, {"kv", g.KV.MaxPerHook, maxValues}} {
		if n.value < 0 || n.value > n.most {
			k.errorf(child(at, n.key+".max_per_hook"), "%d is not between 1 and %d", n.value, n.most)
		}
	}
	h := g.HTTP
	if h.Given && len(h.Hosts) == 0 && !k.broken(child(at, "http.hosts")) {
		k.errorf(child(at, "http.hosts"), "is required: name the hosts that it may ask")
	}
	for i, n := range h.Private {
		if n.Unix {
			k.errorf(item(child(at, "http.private"), i), "is no network of addresses")
		}
	}
	if h.MaxResponse > maxWebResponse {
		k.errorf(child(at, "http.max_response"), "%s is more than %s", h.MaxResponse, maxWebResponse)
	}
	if h.Timeout < 0 || h.Timeout > maxWebTimeout {
		k.errorf(child(at, "http.timeout"), "%v is not between 0 and %v", h.Timeout, maxWebTimeout)
	}
	if r := g.DSN.Rate; g.DSN.Given && (r.Off() || r.Count > maxNotifications || r.Per > maxNotificationsT) {
		k.errorf(child(at, "dsn.rate"), "must be 1 to %d in at most %v", maxNotifications, maxNotificationsT)
	}
	if g.KV.Given && k.c.Store.Driver == StoreNone {
		k.warnf(child(at, "kv"), "there is no store: what the filter keeps is lost at a restart")
	}
	for i, name := range g.Secret {
		if _, ok := k.c.Filters.Secrets[name]; !ok {
			k.refer(item(child(at, "secret"), i), "filters.secrets", "secret", name, k.secrets())
		}
	}
}

// secrets are the names of secrets, sorted.
func (k *checker) secrets() []string {
	var names []string
	for name := range k.c.Filters.Secrets {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
