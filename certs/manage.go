package certs

// manage.go is who looks after the names: one goroutine for each, which visits its name every
// ten minutes and, after a failure, at growing intervals.
//
// A visit leaves the work to certmagic: to load what is kept, to ask the CA when it wants
// the certificate renewed, to order if it is time. It does that with a cache of
// certmagic's that lives for the visit alone. A cache for good would come with a goroutine that
// renews by a schedule of its own in a pool of workers that is global, which nobody can wait
// for, and whose failures show in the log alone. Handshakes look at neither: they get what
// record has put into the Store.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"
)

const (
	// visitEvery is how often a name is looked at. It must be a small part of the shortest
	// lifetime of a certificate, a few days.
	visitEvery = 10 * time.Minute

	// visitLimit bounds one visit. It is less than visitEvery, so that the cache of a visit
	// never comes to do anything by itself.
	visitLimit = 8 * time.Minute

	// slots is how many names are visited at one time, out of regard for the CA.
	slots = 4
)

// retryAfter is how long to wait after a number of failures in a row, the last entry for all
// that follow. A CA takes few failures of one name per hour, Let's Encrypt five; the first
// retry comes soon because somebody may sit there and wait for it.
func retryAfter(failures int) time.Duration {
	steps := [...]time.Duration{time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour}
	return steps[min(failures, len(steps))-1]
}

// A manager looks after the names of one ACME as long as only names change.
type manager struct {
	store     *Store
	acme      ACME
	disk      *disk
	responder *responder
	issuer    *issuer
	log       *slog.Logger
	zap       *zap.Logger
	slots     chan struct{}

	visit func(ctx context.Context, name string) (*tls.Certificate, error) // visitCA, but for tests
}

func newManager(s *Store, a ACME) *manager {
	m := &manager{store: s, acme: a, disk: s.storage(a), responder: newResponder(a, s.log), log: s.log,
		zap: zap.New(zapCore{log: s.log}), slots: make(chan struct{}, slots)}
	if s.shared {
		m.responder.shared = s.kept
	}
	m.issuer = newIssuer(a, m.disk, m.responder, s.log)
	m.visit = m.visitCA
	return m
}

// run looks after the names until ctx ends or something else than the names changes, and
// waits for all that it started.
func (m *manager) run(ctx context.Context) {
	var visits sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		visits.Wait()
		m.issuer.close()
		m.responder.close()
	}()
	// A port that is taken shows at the start, and not when a certificate is due.
	if _, err := m.responder.solvers(); err != nil {
		m.log.Error("no challenge of the CA can be answered", "err", err, "do", advice(err))
	}
	keeping := make(map[string]context.CancelFunc)
	for ctx.Err() == nil {
		now := m.store.wanted()
		if now.Names == nil || !now.sameSettings(m.acme) {
			return
		}
		wanted := make(map[string]bool)
		for _, name := range now.Names {
			wanted[name] = true
			if keeping[name] == nil {
				nameCtx, stop := context.WithCancel(ctx)
				keeping[name] = stop
				visits.Go(func() { m.keep(nameCtx, name) })
			}
		}
		for name, stop := range keeping {
			if !wanted[name] {
				stop()
				delete(keeping, name)
			}
		}
		select {
		case <-ctx.Done():
		case <-m.store.changed:
		}
	}
}

// keep visits one name again and again until ctx ends.
func (m *manager) keep(ctx context.Context, name string) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for failures := 0; ; {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		select {
		case m.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		cert, err := m.visitSafely(ctx, name)
		<-m.slots
		if ctx.Err() != nil {
			return
		}
		wait := m.store.every
		failures++
		if err != nil {
			wait = retryAfter(failures)
			err = &visitError{err}
		} else {
			failures = 0
		}
		m.report(name, cert, err, wait)
		timer.Reset(wait)
	}
}

// report puts the outcome of a visit where it is seen.
func (m *manager) report(name string, cert *tls.Certificate, err error, wait time.Duration) {
	now := m.store.now()
	changed := m.store.record(name, cert, err, now, now.Add(wait))
	served := m.store.served(name)
	switch {
	case err != nil && served != nil && now.Before(served.Leaf.NotAfter):
		m.log.Warn("certificate not renewed", "name", name, "expires", served.Leaf.NotAfter.UTC(),
			"err", errors.Unwrap(err), "do", advice(err), "retry", wait)
	case err != nil:
		m.log.Error("certificate not obtained", "name", name, "err", errors.Unwrap(err), "do", advice(err), "retry", wait)
	case changed:
		m.log.Info("certificate obtained", "name", name, "issuer", issuerName(cert.Leaf), "expires", cert.Leaf.NotAfter.UTC())
	}
}

// visitSafely keeps a panic to one name: what is asked of a CA and made of its answers is the
// work of libraries, and the gateway must not end with it.
func (m *manager) visitSafely(ctx context.Context, name string) (cert *tls.Certificate, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
			m.log.Error("panic while obtaining a certificate", "name", name, "err", err, "stack", string(debug.Stack()))
		}
	}()
	return m.visit(ctx, name)
}

// visitCA does what is due for one name, and returns the certificate that is good then.
func (m *manager) visitCA(ctx context.Context, name string) (*tls.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, visitLimit)
	defer cancel()
	m.disk.mend(ctx, name)
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert:   func(certmagic.Certificate) (*certmagic.Config, error) { return nil, errNoUpkeep },
		RenewCheckInterval: m.store.every, // also part of how certmagic decides what is due
		Logger:             m.zap,
	})
	defer cache.Stop()
	o := &order{issuer: m.issuer}
	// A CA may refuse an order because of what it replaces, for one if another account
	// ordered that. So the order that follows a failure says nothing of it.
	if kept := m.disk.load(ctx, name); kept != nil && !m.store.failed(name) {
		o.replaces = kept.Leaf
	}
	config := certmagic.New(cache, certmagic.Config{
		Issuers: []certmagic.Issuer{o},
		Storage: m.disk.Storage,
		// A key that stays lets the operator publish it (RFC 7671, Section 5.1): with a new
		// one at each renewal, senders that check TLSA records would refuse us.
		ReusePrivateKeys: true,
		KeySource:        certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		// certmagic asks OCSP responders without a deadline, and few CAs still have one.
		// That a certificate is revoked shows in the CA's renewal information.
		OCSP:    certmagic.OCSPConfig{DisableStapling: true},
		OnEvent: func(context.Context, string, map[string]any) error { return nil },
		Logger:  m.zap,
	})
	if err := config.ManageSync(ctx, []string{name}); err != nil {
		return nil, err
	}
	return best(cache.AllMatchingCertificates(name))
}

var errNoUpkeep = errors.New("the visit does it")

// best returns the certificate that expires last.
func best(list []certmagic.Certificate) (*tls.Certificate, error) {
	var found *tls.Certificate
	for _, c := range list {
		if c.Leaf != nil && (found == nil || c.Leaf.NotAfter.After(found.Leaf.NotAfter)) {
			found = &c.Certificate
		}
	}
	if found == nil {
		return nil, errors.New("no certificate although nothing failed")
	}
	return found, checkKey(found)
}

// A visitError is a failed visit, with what to do about it.
type visitError struct{ err error }

func (e *visitError) Error() string { return oneLine(e.err) + " (" + advice(e.err) + ")" }

func (e *visitError) Unwrap() error { return e.err }

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// advice tells what an operator can do about an error. The types of problems are those of
// RFC 8555, Section 6.7.
func advice(err error) string {
	var problem acme.Problem
	var none *noChallengeError
	var request *url.Error
	var network net.Error
	switch {
	case errors.As(err, &none) && errors.Is(err, fs.ErrPermission):
		return "let the gateway open ports below 1024 (CAP_NET_BIND_SERVICE), or give other addresses that the ports 80 or 443 are forwarded to"
	case errors.As(err, &none):
		return "free one of the ports, or give other addresses that the ports 80 or 443 are forwarded to"
	case errors.As(err, &problem):
		return problemAdvice(strings.TrimPrefix(problem.Type, acme.ProblemTypeNamespace))
	case errors.As(err, &request), errors.As(err, &network), errors.Is(err, context.DeadlineExceeded):
		return "see that the CA's directory can be reached from here, and that its certificate is trusted"
	}
	return "nothing, if it goes away with the next try; else the log at level debug tells more"
}

func problemAdvice(kind string) string {
	switch kind {
	case "dns":
		return "give the name an A or AAAA record that leads here"
	case "connection", "tls":
		return "let the CA reach this machine under the name, on port 80 or 443, by every address that the name has"
	case "unauthorized", "incorrectResponse":
		return "see who answers for the name on ports 80 and 443: it is not us"
	case "caa":
		return "let the CAA records of the domain allow this CA (RFC 8659)"
	case "rateLimited":
		return "wait: the CA has had too many orders; mend what made them fail in the meantime"
	case "rejectedIdentifier", "unsupportedIdentifier":
		return "take the name from the list: this CA does not issue for it"
	case "externalAccountRequired":
		return "take another CA: this one wants an account that was made elsewhere"
	case "invalidContact", "unsupportedContact":
		return "give a mail address that the CA takes"
	case "userActionRequired":
		return "read the CA's new terms of service"
	case "serverInternal":
		return "wait: the CA has a problem of its own"
	}
	return "see what the CA says"
}
