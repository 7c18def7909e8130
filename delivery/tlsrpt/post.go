package tlsrpt

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/penstock/penstock/resolver"
)

// post.go sends a report to a web server. RFC 8460, Section 5.4. Whoever publishes a record
// chooses the URL, so it must lead nowhere but to the public Internet, and a server that takes
// no end must not hold us up.

const (
	postTime     = time.Minute
	postDialTime = 15 * time.Second
	maxWebAddrs  = 4       // of a server, that are tried
	maxAnswer    = 1 << 14 // octets that are read before the connection is closed
)

// poster is the web client.
type poster struct {
	client    *http.Client
	transport *http.Transport
}

func newPoster(o Options) *poster {
	t := &http.Transport{
		DialContext:            webDial(o),
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.RootCAs},
		ForceAttemptHTTP2:      true,
		DisableKeepAlives:      true, // one report a day
		MaxResponseHeaderBytes: 1 << 16,
		Proxy:                  nil, // a proxy would connect to where we do not
	}
	return &poster{transport: t, client: &http.Client{
		Transport: t, Timeout: postTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// webDial looks the server up with the resolver that all else uses, and tries its addresses.
func webDial(o Options) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, postDialTime)
		defer cancel()
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		addrs := make([]netip.Addr, 1)
		if addrs[0], err = netip.ParseAddr(host); err != nil {
			found, err := o.DNS.LookupAddrs(ctx, host, resolver.Both)
			if err != nil {
				return nil, err
			}
			addrs = found.Addrs
		}
		var errs []error
		for _, a := range addrs[:min(len(addrs), maxWebAddrs)] {
			if err := o.Check(a); err != nil { // whatever the name was said to lead to before
				errs = append(errs, err)
				continue
			}
			c, err := o.Dial(ctx, "tcp", net.JoinHostPort(a.String(), port))
			if err == nil {
				return c, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}
}

// post sends a compressed report.
func (p *poster) post(ctx context.Context, url string, compressed []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(compressed))
	if err != nil {
		return fmt.Errorf("tlsrpt: post: %w", err)
	}
	req.Header.Set("Content-Type", "application/tlsrpt+gzip")
	req.Header.Set("User-Agent", "penstock")
	resp, err := p.client.Do(req)
	if err != nil {
		return fmt.Errorf("tlsrpt: post: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxAnswer)
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("tlsrpt: post: the server answers %d", resp.StatusCode)
	}
	return nil
}

func (p *poster) close() { p.transport.CloseIdleConnections() }
