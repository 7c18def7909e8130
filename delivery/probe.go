package delivery

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// probe.go: what a backend offers, and how it does.

// Capabilities are what the endpoints of a backend said.
type Capabilities struct {
	// Endpoints in the order of the settings, those that could not be reached too.
	Endpoints []EndpointCapabilities
}

// EndpointCapabilities are what one endpoint said to EHLO, behind TLS if there was any.
type EndpointCapabilities struct {
	Endpoint Endpoint
	// Err is why there is nothing to tell; nil if the endpoint was reached.
	Err error
	// Greeting is the text of its 220.
	Greeting string
	// Extensions are the EHLO keywords of note with their parameters.
	Extensions map[string]string
	// TLS is the protocol version, as in tls.VersionTLS13; 0 in clear text.
	TLS uint16
	// Took is the time from the first packet to the answer to EHLO.
	Took time.Duration
}

// keywords are the extensions that matter to a next hop.
var keywords = []string{"8BITMIME", "AUTH", "BINARYMIME", "BURL", "CHUNKING", "DELIVERBY", "DSN", "ENHANCEDSTATUSCODES",
	"FUTURERELEASE", "LIMITS", "MT-PRIORITY", "PIPELINING", "REQUIRETLS", "RRVS", "SIZE", "SMTPUTF8", "STARTTLS",
	"XCLIENT", "XFORWARD"}

// Has tells whether every endpoint that was reached offers an extension, whichever of
// them the mail will go to. The keyword is in upper case. It is false if none was
// reached.
func (c Capabilities) Has(keyword string) bool {
	reached := false
	for _, e := range c.Endpoints {
		if e.Err != nil {
			continue
		}
		if _, ok := e.Extensions[keyword]; !ok {
			return false
		}
		reached = true
	}
	return reached
}

// MaxSize returns the smallest limit of the endpoints that announce one, in octets, 0
// if none does (RFC 1870, Section 4).
func (c Capabilities) MaxSize() int64 {
	var smallest int64
	for _, e := range c.Endpoints {
		n, err := strconv.ParseInt(e.Extensions["SIZE"], 10, 64)
		if err == nil && n > 0 && (smallest == 0 || n < smallest) {
			smallest = n
		}
	}
	return smallest
}

// Probe connects to every endpoint of a backend at once, down or not, asks what it
// offers and says QUIT. These connections are beside the cap, and what they find does
// not count for what is up or down. The error is nil if at least one endpoint was
// reached; it joins those of all endpoints otherwise.
func (t *Transport) Probe(ctx context.Context, backend string) (Capabilities, error) {
	b, err := t.enter(backend)
	if err != nil {
		return Capabilities{}, err
	}
	defer t.leave()
	var c Capabilities
	for ep := range b.endpoints() {
		c.Endpoints = append(c.Endpoints, EndpointCapabilities{Endpoint: ep.Endpoint})
	}
	var probes sync.WaitGroup
	i := 0
	for ep := range b.endpoints() {
		found := &c.Endpoints[i]
		probes.Go(func() { b.probe(ctx, ep, found) })
		i++
	}
	probes.Wait()
	var errs []error
	for _, e := range c.Endpoints {
		if e.Err == nil {
			return c, nil
		}
		errs = append(errs, e.Err)
	}
	return c, fmt.Errorf("delivery: probing backend %s: %w", b.name, errors.Join(errs...))
}

func (b *backend) probe(ctx context.Context, ep *endpoint, found *EndpointCapabilities) {
	start := time.Now()
	c, err := b.connect(ctx, ep)
	found.Took = time.Since(start)
	if err != nil {
		found.Err = err
		return
	}
	defer c.quit(ctx)
	found.Greeting = c.client.Greeting.Text
	found.Extensions = make(map[string]string)
	for _, k := range keywords {
		if params, ok := c.client.Extension(k); ok {
			found.Extensions[k] = params
		}
	}
	if state, ok := c.client.TLS(); ok {
		found.TLS = state.Version
	}
}

// BackendStats are the figures of one backend. Those that only grow begin at 0 when the
// backend was last changed.
type BackendStats struct {
	Name string
	// Open is Idle + Busy; Busy counts connections that are being made too. Waiting
	// transactions have none.
	Open, Idle, Busy, Waiting int
	// Transactions begun; Reused of them found an idle connection, Waited waited for
	// one, Refused waited in vain.
	Transactions, Reused, Waited, Refused uint64
	// Dialled counts attempts to connect, Failures those that failed.
	Dialled, Failures uint64
	// Lost counts connections that broke within a transaction.
	Lost      uint64
	Endpoints []EndpointStats
}

// EndpointStats are the figures of one endpoint.
type EndpointStats struct {
	Endpoint Endpoint
	// Up is false from a failed attempt to connect until one that succeeds.
	Up         bool
	Idle, Busy int
	// Retry is when an endpoint that is down is tried next, and Err what was wrong;
	// zero if it is up.
	Retry time.Time
	Err   error
}

// Stats returns the figures of all backends, by name.
func (t *Transport) Stats() []BackendStats {
	var all []BackendStats
	for _, b := range t.all() {
		all = append(all, b.stats())
	}
	return all
}

func (b *backend) stats() BackendStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := BackendStats{
		Name: b.name, Idle: b.idle, Waiting: b.waiters.Len(),
		Transactions: b.counts.transactions, Reused: b.counts.reused,
		Waited: b.counts.waited, Refused: b.counts.refused,
		Dialled: b.counts.dialled, Failures: b.counts.failures, Lost: b.counts.lost,
	}
	for ep := range b.endpoints() {
		e := EndpointStats{Endpoint: ep.Endpoint, Up: !ep.down, Idle: len(ep.idle), Busy: ep.busy, Err: ep.lastErr}
		if ep.down {
			e.Retry = ep.retry
		}
		s.Busy += ep.busy
		s.Endpoints = append(s.Endpoints, e)
	}
	s.Open = s.Idle + s.Busy
	return s
}
