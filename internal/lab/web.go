package lab

// web.go is the web server that has the MTA-STS policies (RFC 8461, Section 3.3). One
// listener serves all domains and tells them apart by the name that the client asks for, in
// TLS and in HTTP.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// PolicyOptions says what a policy host does. Body and ID make a good one.
type PolicyOptions struct {
	// ID is the id in the TXT record. Empty: there is no record; the test may add another.
	ID string
	// Body is the policy, with LF or CRLF.
	Body string
	// Certificate is what the host shows; nil is a good one.
	Certificate *tls.Certificate
	// Handler answers instead of Body.
	Handler http.Handler
}

// Policy is the policy host of a domain.
type Policy struct {
	Domain string

	mu   sync.Mutex
	opt  PolicyOptions // guarded by mu
	asks int           // requests; guarded by mu
}

// Policy adds a host with the MTA-STS policy of a domain: its address, the TXT record, and
// what it says. The domain is in a zone of the world.
func (w *World) Policy(domain string, opt PolicyOptions) *Policy {
	w.t.Helper()
	name := "mta-sts." + strings.TrimSuffix(domain, ".")
	if opt.Certificate == nil {
		opt.Certificate = w.Authority.Leaf(w.t, name).Chain()
	}
	p := &Policy{Domain: domain, opt: opt}
	zone := w.zoneOf(dns.Fqdn(domain), false)
	zone.Add(name + ". A " + webAddr)
	if opt.ID != "" {
		zone.Add(fmt.Sprintf("_mta-sts.%s TXT \"v=STSv1; id=%s;\"", dns.Fqdn(domain), opt.ID))
	}
	w.web.policies[name] = p
	return p
}

// Change makes the host do otherwise from now on. What is said in the DNS stays.
func (p *Policy) Change(opt PolicyOptions) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if opt.Certificate == nil {
		opt.Certificate = p.opt.Certificate
	}
	p.opt = opt
}

// Requests tells how often the policy was asked for.
func (p *Policy) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asks
}

func (p *Policy) options() PolicyOptions {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opt
}

// ServeHTTP answers one request.
func (p *Policy) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asks++
	opt := p.opt
	p.mu.Unlock()
	switch {
	case opt.Handler != nil:
		opt.Handler.ServeHTTP(rw, r)
	case r.URL.Path != "/.well-known/mta-sts.txt":
		http.NotFound(rw, r)
	default:
		rw.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(rw, opt.Body)
	}
}

// web is the listener.
type web struct {
	w        *World
	policies map[string]*Policy // by the name of the host
}

func newWeb(w *World) *web { return &web{w: w, policies: make(map[string]*Policy)} }

// start serves until the test ends.
func (s *web) start() {
	t := s.w.t
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(webAddr, s.w.Port("443")))
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	server := &http.Server{
		Handler:   s,
		TLSConfig: &tls.Config{GetCertificate: s.certificate},
		ErrorLog:  log.New(io.Discard, "", 0), // clients that do not like a certificate
	}
	done := make(chan struct{})
	go func() { // ends with Close
		defer close(done)
		_ = server.ServeTLS(l, "", "")
	}()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
		defer cancel()
		if server.Shutdown(ctx) != nil {
			server.Close()
		}
		<-done
	})
}

func (s *web) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if p := s.policies[hello.ServerName]; p != nil {
		return p.options().Certificate, nil
	}
	return nil, errors.New("lab: no such policy host: " + hello.ServerName)
}

// ServeHTTP hands the request to the host that it is for.
func (s *web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	host, _, _ := strings.Cut(r.Host, ":")
	if p := s.policies[host]; p != nil {
		p.ServeHTTP(rw, r)
		return
	}
	http.NotFound(rw, r)
}
