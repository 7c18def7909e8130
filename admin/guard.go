package admin

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// guard.go: what is asked of a request before its token is.

// ownHost tells whether the Host header of a request is one of ours. A page in somebody's
// browser can have its own name point at our address (DNS rebinding); the browser then
// sends that name, and the check sees it. A literal address is no name that somebody else
// can own, so the one that was connected to is ours, and any of the loopback is if that is; so
// is localhost there, which no resolver may lead elsewhere (RFC 6761, Section 6.3).
// The port is left alone: what stands in front of us may have another.
func ownHost(r *http.Request, hosts []string) bool {
	host := hostOf(r.Host)
	if host == "" {
		return false
	}
	if slices.ContainsFunc(hosts, func(h string) bool { return strings.EqualFold(h, host) }) {
		return true
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	tcp, ok := local.(*net.TCPAddr)
	if !ok { // a socket, which has no name that a client could know
		return strings.EqualFold(host, "localhost")
	}
	own := tcp.AddrPort().Addr().Unmap().WithZone("")
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return own.IsLoopback() && strings.EqualFold(host, "localhost")
	}
	return ip.Unmap() == own || ip.IsLoopback() && own.IsLoopback()
}

// hostOf returns the host of a Host header, without port and brackets; empty if the header
// has no form (RFC 3986, Section 3.2.2).
func hostOf(s string) string {
	host, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, ']') {
		host, port = s[:i], s[i+1:]
	}
	if strings.Trim(port, "0123456789") != "" {
		return ""
	}
	literal, open := strings.CutPrefix(host, "[")
	literal, closed := strings.CutSuffix(literal, "]")
	if open || closed {
		if a, err := netip.ParseAddr(literal); err != nil || !a.Is6() || !open || !closed {
			return ""
		}
		return literal
	}
	if strings.Contains(host, ":") {
		return ""
	}
	return host
}

// bearer returns the token of a request: RFC 6750, Section 2.1.
func bearer(r *http.Request) (string, bool) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return "", false
	}
	scheme, token, ok := strings.Cut(values[0], " ")
	token = strings.TrimLeft(token, " ")
	return token, ok && strings.EqualFold(scheme, "Bearer") && token != "" && len(token) <= maxSecret
}

// maxSecret is the longest token that is looked at; ours are shorter.
const maxSecret = 256

// failures counts the failed attempts of each address. It does not protect the tokens,
// which cannot be guessed; it keeps the log and the processor from whoever tries. So a good
// token is let in at any time: a neighbour on the same address cannot lock the operator out.
type failures struct {
	now func() time.Time

	mu sync.Mutex // guards what follows
	of map[string]*failed
}

type failed struct {
	left  float64 // attempts that may still fail
	since time.Time
	told  bool // that they are too many
}

const (
	failBurst   = 10              // attempts that may fail at once
	failRefill  = 6 * time.Second // and one more after each such time
	maxFailures = 4096            // addresses that are remembered
)

// note counts a failure of an address, and tells whether it was one too many, and whether
// it is the first that is.
func (f *failures) note(addr string) (tooMany, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	e := f.of[addr]
	if e == nil {
		if len(f.of) >= maxFailures {
			f.forget(now)
		}
		e = &failed{left: failBurst, since: now}
		f.of[addr] = e
	}
	e.left = min(failBurst, e.left+float64(now.Sub(e.since))/float64(failRefill))
	e.since = now
	if e.left >= 1 {
		e.left--
		e.told = false
		return false, false
	}
	first = !e.told
	e.told = true
	return true, first
}

// forget makes room: those whose failures are long over go, and if there are none, some go.
func (f *failures) forget(now time.Time) {
	for addr, e := range f.of {
		if now.Sub(e.since) > failBurst*failRefill {
			delete(f.of, addr)
		}
	}
	for addr := range f.of {
		if len(f.of) < maxFailures {
			return
		}
		delete(f.of, addr)
	}
}

// site is what an address is counted by: with IPv6 the network of 64 bits, which is the
// least that one site has (RFC 6177). Clients of a socket are one site.
func site(remote string) string {
	ap, err := netip.ParseAddrPort(remote)
	if err != nil {
		return "unix"
	}
	a := ap.Addr().Unmap().WithZone("")
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
