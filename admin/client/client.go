// Package client speaks to the admin API of a running gateway. The commands of the program
// use it; so may any other program.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/penstock/penstock/admin/api"
)

// DefaultAddress is where a gateway listens that was told nothing else.
const DefaultAddress = "127.0.0.1:8025"

// ErrUnreachable is behind the error of a request that got no answer.
var ErrUnreachable = errors.New("the gateway's admin API does not answer")

// Options are the settings of a Client. The zero value of each field means its default.
type Options struct {
	// Timeout is for one request that only asks. Default 30 s. One that changes a filter
	// has ten minutes, in which the gateway may have to compile it.
	Timeout time.Duration
	// Transport carries the requests. Default: a connection to the address, through no
	// proxy, since a token must not pass one.
	Transport http.RoundTripper
}

const (
	defaultTimeout = 30 * time.Second
	changeTimeout  = 10 * time.Minute
	maxAnswer      = 16 << 20
	maxMetrics     = 64 << 20
	maxUnasked     = 32 << 10
)

// Client speaks to one gateway. It is safe for concurrent use.
type Client struct {
	base  *url.URL
	token string
	opts  Options
	http  *http.Client
}

// New returns a Client for the gateway at address: host:port, unix:/path, or a URL of http
// or https. Nothing is connected to yet. Close frees its idle connections.
func New(address, token string, o Options) (*Client, error) {
	base, dial, err := parseAddress(address)
	if err != nil {
		return nil, err
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, errors.New("client: the token has characters that no token has")
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{DialContext: dial, MaxResponseHeaderBytes: 64 << 10, IdleConnTimeout: time.Minute,
			TLSHandshakeTimeout: 10 * time.Second, ExpectContinueTimeout: time.Second}
	}
	c := &Client{base: base, token: token, opts: o}
	c.http = &http.Client{Transport: o.Transport,
		// The API redirects nowhere, and the token is for nobody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return c, nil
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// parseAddress returns the URL of an address, and how to connect to it.
func parseAddress(address string) (*url.URL, dialFunc, error) {
	d := &net.Dialer{Timeout: 10 * time.Second}
	if path, ok := strings.CutPrefix(address, "unix:"); ok && path != "" {
		return &url.URL{Scheme: "http", Host: "localhost"}, func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		}, nil
	}
	bad := fmt.Errorf("client: %q is not host:port, unix:/path, or a URL of http or https", address)
	if !strings.Contains(address, "://") {
		host, port, err := net.SplitHostPort(address)
		if err != nil || port == "" {
			return nil, nil, bad
		}
		if host == "" { // as in an address to listen on
			host = "127.0.0.1"
		}
		return &url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}, d.DialContext, nil
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, nil, bad
	}
	return u, d.DialContext, nil
}

// Close frees the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status returns what runs. Errors of this and of the other methods are an *api.Error for an
// answer that is one, and wrap ErrUnreachable if there was none.
func (c *Client) Status(ctx context.Context) (api.Status, error) {
	var s api.Status
	err := c.ask(ctx, "/v1/status", &s)
	return s, err
}

// Accounts returns what filters do and what it costs.
func (c *Client) Accounts(ctx context.Context) (api.Accounts, error) {
	var a api.Accounts
	err := c.ask(ctx, "/v1/accounts", &a)
	return a, err
}

// Filters returns all modules.
func (c *Client) Filters(ctx context.Context) ([]api.Filter, error) {
	var f api.Filters
	err := c.ask(ctx, "/v1/filters", &f)
	return f.Filters, err
}

// Metrics returns the figures in Prometheus' text form.
func (c *Client) Metrics(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	return c.do(ctx, http.MethodGet, "/metrics", nil, nil, maxMetrics)
}

// Push makes the module the filter of that name.
func (c *Client) Push(ctx context.Context, name string, module []byte, cond api.Condition) (api.Change, error) {
	return c.change(ctx, "/v1/filters/"+url.PathEscape(name), "application/wasm", module, cond)
}

// Rollback brings a version back that was kept: the one whose digest is to, or the newest
// if to is empty.
func (c *Client) Rollback(ctx context.Context, name, to string, cond api.Condition) (api.Change, error) {
	body, err := json.Marshal(api.Rollback{To: to})
	if err != nil {
		return api.Change{}, fmt.Errorf("client: %w", err)
	}
	return c.change(ctx, "/v1/filters/"+url.PathEscape(name)+"/rollback", "application/json", body, cond)
}

// ask gets JSON.
func (c *Client) ask(ctx context.Context, path string, into any) error {
	return c.askQuery(ctx, path, nil, into)
}

// askQuery is ask with parameters.
func (c *Client) askQuery(ctx context.Context, path string, query url.Values, into any) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	body, err := c.send(ctx, http.MethodGet, u, nil, nil, maxAnswer)
	if err != nil {
		return err
	}
	return read(body, into)
}

// change posts.
func (c *Client) change(ctx context.Context, path, contentType string, body []byte, cond api.Condition) (api.Change, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	h := http.Header{"Content-Type": {contentType}}
	if len(body) > maxUnasked {
		// Who is refused should hear why before all of it is sent (RFC 9110, Section 10.1.1).
		h.Set("Expect", "100-continue")
	}
	if cond.Digest != "" {
		h.Set("If-Match", `"`+cond.Digest+`"`)
	}
	if cond.Absent {
		h.Set("If-None-Match", "*")
	}
	var change api.Change
	text, err := c.do(ctx, http.MethodPost, path, h, body, maxAnswer)
	if err != nil {
		return change, err
	}
	err = read(text, &change)
	return change, err
}

func read(body []byte, into any) error {
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("client: the answer is not what the API says: %w", err)
	}
	return nil
}

// do is send for a path without parameters.
func (c *Client) do(ctx context.Context, method, path string, h http.Header, body []byte, limit int64) ([]byte, error) {
	return c.send(ctx, method, c.base.JoinPath(path), h, body, limit)
}

// send sends a request and returns the body of an answer that is 2xx.
func (c *Client) send(ctx context.Context, method string, u *url.URL, h http.Header, body []byte, limit int64) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if h != nil {
		req.Header = h
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	case int64(len(text)) > limit:
		return nil, fmt.Errorf("client: the answer has more than %d octets", limit)
	case resp.StatusCode/100 != 2:
		return nil, failure(resp.StatusCode, text)
	}
	return text, nil
}

// failure makes an error of an answer. Not all that answers at an address is a gateway.
func failure(status int, body []byte) error {
	var f api.Failure
	if json.Unmarshal(body, &f) == nil && f.Error != nil && f.Error.Code != "" {
		f.Error.Status = status
		return f.Error
	}
	return &api.Error{Status: status, Message: fmt.Sprintf("the answer is %d %s, and not one of a gateway", status, http.StatusText(status)),
		Next: "check the address"}
}
