package resolver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/miekg/dns"
)

// doh.go asks over HTTPS (RFC 8484), always with POST: a query has a body of its own then,
// and no cache on the way has a say. The server's address is given, as with the other
// networks, so that nobody has to be asked where the one is who is to be asked.

const (
	mediaType = "application/dns-message" // RFC 8484, Section 6
	// maxWeb is how many connections a server gets. One of HTTP/2 carries all queries.
	maxWeb = 16
	// pingAfter is how long an HTTP/2 connection with queries under way may be silent
	// until it is asked whether it still lives.
	pingAfter, pingTime = 2 * time.Second, time.Second
)

// newWeb returns the client for an https server.
func newWeb(s Server) *http.Client {
	var d net.Dialer
	return &http.Client{
		Transport: &http.Transport{
			// No proxy: who reads the environment's would let it choose our server.
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "tcp", s.Address)
			},
			TLSClientConfig:        s.tlsConfig(),
			ForceAttemptHTTP2:      true,
			HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTime},
			MaxIdleConnsPerHost:    maxIdle,
			MaxConnsPerHost:        maxWeb,
			IdleConnTimeout:        idleTime,
			DisableCompression:     true,
			MaxResponseHeaderBytes: 16 << 10,
		},
		// A redirect would lead to a server that nobody has named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// webURL is where the queries go. The host in it is for the server to read; the connection
// goes to the address.
func (s Server) webURL() string {
	host, port, _ := net.SplitHostPort(s.Address)
	if s.ServerName != "" {
		host = s.ServerName
	}
	host = net.JoinHostPort(host, port)
	if port == "443" {
		host = host[:len(host)-len(":443")]
	}
	path := s.Path
	if path == "" {
		path = "/dns-query"
	}
	u := url.URL{Scheme: "https", Host: host, Path: path}
	return u.String()
}

// overHTTPS is one query and one reply. The number of the query is 0, as RFC 8484, Section
// 4.1 has it: the connection itself says which reply is whose.
func (h *host) overHTTPS(ctx context.Context, query *dns.Msg, wire []byte) (*dns.Msg, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.webURL(), bytes.NewReader(wire))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", mediaType)
	req.Header.Set("Accept", mediaType)
	req.Header.Set("User-Agent", "") // who we are is no business of the server
	resp, err := h.web.Do(req)
	if err != nil {
		return nil, inTime(ctx, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, dns.MaxMsgSize+1))
	switch kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); {
	case err != nil:
		return nil, inTime(ctx, err)
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the server answers with HTTP status %d", resp.StatusCode)
	case kind != mediaType:
		return nil, fmt.Errorf("the reply is of type %q", kind)
	case len(body) > dns.MaxMsgSize:
		return nil, errLarge
	}
	m, err := parseReply(query, body)
	if err == nil {
		grow(m, resp.Header.Get("Age"))
	}
	return m, err
}

// grow makes the records as much older as the reply is: RFC 8484, Section 5.1.
func grow(m *dns.Msg, age string) {
	n, err := strconv.ParseUint(age, 10, 31)
	if err != nil || n == 0 {
		return
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			h := rr.Header()
			h.Ttl -= min(h.Ttl, uint32(n))
		}
	}
}
