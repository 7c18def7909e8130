package mtasts

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/penstock/penstock/resolver"
)

// fetch.go gets a policy from its host (RFC 8461, Section 3.3). It is a single request on a
// connection of its own, spoken here rather than by an http.Client: that one follows
// redirects, unpacks bodies, remembers connections and asks proxies, and each of these is
// what the standard forbids or what a hostile host could use.

const (
	// maxWire is how much is read of a policy host: the body, its framing and the header.
	maxWire = 512 << 10
	// maxAddresses are tried of a policy host.
	maxAddresses = 4
	// maxInterim is how many replies 1xx may precede the one that counts.
	maxInterim = 5
	// connectTimeout is for one address.
	connectTimeout = 15 * time.Second
)

const wellKnown = "/.well-known/mta-sts.txt"

var (
	errNoAddress = errors.New("the policy host has no address")
	errInterim   = errors.New("the policy host sends nothing but interim replies")
	errCoding    = errors.New("the policy is sent in a coding")
	errTooLong   = fmt.Errorf("the policy has more than %d octets", MaxBody)
)

// fault is an error with the kind it has in reports.
type fault struct {
	kind Kind
	err  error
}

func (f *fault) Error() string { return f.err.Error() }
func (f *fault) Unwrap() error { return f.err }

// kindOf returns the kind of an error; it is FetchError if it does not say.
func kindOf(err error) Kind {
	var f *fault
	if errors.As(err, &f) {
		return f.kind
	}
	return FetchError
}

// fetch gets the policy of a domain. It ends with ctx, which has a deadline.
func (c *Cache) fetch(ctx context.Context, domain string) (Policy, error) {
	host := "mta-sts." + domain
	conn, err := c.connect(ctx, host)
	if err != nil {
		return Policy{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	secure, err := c.handshake(ctx, conn, host)
	if err != nil {
		return Policy{}, err
	}
	body, err := request(ctx, secure, host)
	if err != nil {
		return Policy{}, err
	}
	p, err := ParsePolicy(body)
	if err != nil {
		return Policy{}, &fault{Invalid, err}
	}
	return p, nil
}

// connect connects to the first address of a host that answers.
func (c *Cache) connect(ctx context.Context, host string) (net.Conn, error) {
	found, err := c.opt.DNS.LookupAddrs(ctx, host, c.opt.Families)
	if err != nil {
		return nil, err
	}
	err = errNoAddress
	addrs := alternate(found.Addrs)
	addrs = addrs[:min(len(addrs), maxAddresses)]
	for i, a := range addrs {
		var conn net.Conn
		if err = c.opt.Check(a); err != nil {
			continue
		}
		if conn, err = c.dial(ctx, a, len(addrs)-i); err == nil {
			return conn, nil
		}
	}
	return nil, err
}

// alternate puts addresses of both families by turns, so that a family that does not work
// here does not use up all tries.
func alternate(addrs []netip.Addr) []netip.Addr {
	var four, six, mixed []netip.Addr
	for _, a := range addrs {
		if a.Unmap().Is4() {
			four = append(four, a)
		} else {
			six = append(six, a)
		}
	}
	for i := range max(len(four), len(six)) {
		if i < len(four) {
			mixed = append(mixed, four[i])
		}
		if i < len(six) {
			mixed = append(mixed, six[i])
		}
	}
	return mixed
}

// dial connects to an address, for a fair part of the time that is left to so many.
func (c *Cache) dial(ctx context.Context, a netip.Addr, left int) (net.Conn, error) {
	limit := connectTimeout
	if end, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(end)/time.Duration(left))
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return c.opt.Dial(ctx, "tcp", netip.AddrPortFrom(a, 443).String())
}

// handshake asks the host for a certificate for its name. The library compares names with
// those of the extension alone, never with the common name, as the standard wants it.
func (c *Cache) handshake(ctx context.Context, conn net.Conn, host string) (*tls.Conn, error) {
	secure := tls.Client(conn, &tls.Config{
		ServerName: host,
		RootCAs:    c.opt.RootCAs,
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"http/1.1"},
		Time:       c.opt.Now,
	})
	err := secure.HandshakeContext(ctx)
	var refused *tls.CertificateVerificationError
	switch {
	case err == nil:
		return secure, nil
	case errors.As(err, &refused):
		return nil, &fault{WebPKI, err}
	}
	return nil, fmt.Errorf("tls handshake with %s: %w", host, err)
}

// request asks for the policy and returns its text.
func request(ctx context.Context, conn net.Conn, host string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+wellKnown, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "Penstock")
	req.Header.Set("Accept", "text/plain")
	req.Close = true
	if err := req.Write(conn); err != nil {
		return nil, fmt.Errorf("ask %s: %w", host, err)
	}
	resp, err := response(bufio.NewReader(io.LimitReader(conn, maxWire)), req)
	if err != nil {
		return nil, fmt.Errorf("answer of %s: %w", host, err)
	}
	return read(resp) // the body is not closed, which would read it to its end: the connection is
}

// response reads the header of the final response.
func response(r *bufio.Reader, req *http.Request) (*http.Response, error) {
	for range maxInterim {
		resp, err := http.ReadResponse(r, req)
		if err != nil || resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, err
		}
	}
	return nil, errInterim
}

// read reads the body of a response that has a policy.
func read(resp *http.Response) ([]byte, error) {
	if resp.StatusCode != http.StatusOK {
		// Redirects included: where they lead, nobody has vouched for.
		return nil, fmt.Errorf("the policy host answers with status %d", resp.StatusCode)
	}
	// What a host serves as something else may be what its users put there.
	if media, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || media != "text/plain" {
		return nil, &fault{Invalid, fmt.Errorf("the policy is sent as %.100q and not as text/plain", resp.Header.Get("Content-Type"))}
	}
	if coding := resp.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, &fault{Invalid, errCoding}
	}
	if resp.ContentLength > MaxBody {
		return nil, &fault{Invalid, errTooLong}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	switch {
	case len(body) > MaxBody:
		return nil, &fault{Invalid, errTooLong}
	case err != nil:
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	return body, nil
}

// record looks the record of a domain up. The answer holds until a time, within bounds that
// keep names whose records do not hold at all from being asked for with each message.
func (l *look) record(ctx context.Context) (id string, until time.Time, err error) {
	dns := l.c.opt.DNS
	if l.how != usual {
		dns = l.c.opt.Fresh
	}
	found, err := dns.LookupTXT(ctx, "_mta-sts."+l.domain)
	now := l.c.opt.Now()
	var none *resolver.Error
	switch {
	case err == nil:
		id, err = ParseRecord(found.Records)
		if err != nil && !errors.Is(err, ErrNoRecord) {
			err = &fault{Invalid, err}
		}
		return id, within(now, found.Expires), err
	case errors.Is(err, resolver.ErrNotFound) && errors.As(err, &none):
		return "", within(now, none.Expires), ErrNoRecord
	}
	return "", now.Add(shortest), err
}

// Bounds of how long a record counts without being looked up again.
const (
	shortest = time.Minute
	longest  = time.Hour
)

func within(now, t time.Time) time.Time {
	switch least, most := now.Add(shortest), now.Add(longest); {
	case t.Before(least):
		return least
	case t.After(most):
		return most
	}
	return t
}
