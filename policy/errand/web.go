package errand

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/penstock/penstock/internal/netguard"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/resolver"
)

// web.go: requests to web servers. A request goes where the filter says and nowhere else: no
// redirect is followed, no proxy is asked, nothing is remembered of one exchange for the next
// but the connection.

// Bounds of what one filter does at one time, whatever it was granted.
const (
	maxExchanges      = 64
	maxPerHost        = 16
	maxIdle           = 16
	maxResponseHeader = 64 << 10
	maxAddresses      = 8 // of a host that are tried
)

// web is a guest.HTTP.
type web struct {
	max       int64
	timeout   time.Duration // of connecting
	names     resolver.DNS
	share     *share // of names
	dialer    net.Dialer
	transport *http.Transport
	places    chan struct{} // of exchanges under way
}

func newWeb(g guest.HTTPGrant, names resolver.DNS, share *share, roots *x509.CertPool) *web {
	w := &web{max: g.MaxResponse, names: names, share: share, places: make(chan struct{}, maxExchanges)}
	if w.max <= 0 {
		w.max = guest.DefaultMaxResponse
	}
	if w.timeout = g.Timeout; w.timeout <= 0 {
		w.timeout = guest.DefaultHTTPTimeout
	}
	w.dialer.Control = netguard.Guard{Allow: g.Private}.Control
	w.transport = &http.Transport{
		DialContext:     w.dial,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
		// Octets on the wire are bounded by what is read; what they unpack to is not.
		DisableCompression:     true,
		TLSHandshakeTimeout:    w.timeout,
		MaxConnsPerHost:        maxPerHost,
		MaxIdleConns:           maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: maxResponseHeader,
	}
	return w
}

// Do implements guest.HTTP.
func (w *web) Do(ctx context.Context, r guest.HTTPRequest) (guest.HTTPResponse, error) {
	select {
	case w.places <- struct{}{}:
		defer func() { <-w.places }()
	case <-ctx.Done():
		return guest.HTTPResponse{}, ctx.Err()
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body))
	if err != nil {
		return guest.HTTPResponse{}, guest.ErrBad
	}
	req.Header.Set("User-Agent", "Penstock")
	seen := make(map[string]bool)
	for _, f := range r.Header {
		name := http.CanonicalHeaderKey(f.Name)
		if !seen[name] {
			req.Header.Del(name)
			seen[name] = true
		}
		req.Header.Add(name, f.Value)
	}
	resp, err := w.transport.RoundTrip(req) // not a Client: that follows, and remembers
	if err != nil {
		if errors.Is(err, netguard.ErrRefused) {
			err = fmt.Errorf("%w: %w", guest.ErrRefused, err)
		}
		return guest.HTTPResponse{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return guest.HTTPResponse{}, errSwitched
	}
	return w.read(resp)
}

// read reads a response within its limit.
func (w *web) read(resp *http.Response) (guest.HTTPResponse, error) {
	if resp.ContentLength > w.max && resp.Request.Method != http.MethodHead {
		return guest.HTTPResponse{}, guest.ErrFull
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, w.max+1))
	if err != nil {
		return guest.HTTPResponse{}, err
	}
	if int64(len(body)) > w.max {
		return guest.HTTPResponse{}, guest.ErrFull
	}
	out := guest.HTTPResponse{Status: resp.StatusCode, Body: body}
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		for _, v := range resp.Header[name] {
			out.Header = append(out.Header, guest.HTTPField{Name: name, Value: v})
		}
	}
	return out, nil
}

var (
	errNoNames = errors.New("errand: nobody looks names up")
	// errSwitched: the connection is no longer HTTP's, and reading from it does not end with
	// the request's context.
	errSwitched = errors.New("errand: the server speaks another protocol now, which nobody asked for")
)

// dial connects to an address of a host. The guard looks at each address as it is connected
// to, so that it does not matter who said it or when. The transport goes on connecting when
// the request that wanted it has ended: ctx has no deadline but the one given here.
func (w *web) dial(ctx context.Context, _, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := w.addresses(ctx, host)
	if err != nil {
		return nil, err
	}
	for i, a := range addrs {
		var c net.Conn
		if c, err = w.try(ctx, a, port, len(addrs)-i); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// try connects, for a fair part of the time that is left to so many addresses.
func (w *web) try(ctx context.Context, a netip.Addr, port string, left int) (net.Conn, error) {
	if end, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
		defer cancel()
	}
	return w.dialer.DialContext(ctx, "tcp", net.JoinHostPort(a.String(), port))
}

func (w *web) addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	if w.names == nil {
		return nil, errNoNames
	}
	found, err := lookUp(ctx, w.share, func(ctx context.Context) (resolver.Addrs, error) {
		return w.names.LookupAddrs(ctx, host, resolver.Both)
	})
	if err != nil {
		return nil, dnsError(err)
	}
	if len(found.Addrs) == 0 {
		return nil, guest.ErrNotFound
	}
	return found.Addrs[:min(len(found.Addrs), maxAddresses)], nil
}
