package certs

// acme.go: what a caller says about certificates that are obtained by ACME (RFC 8555), and
// what it can learn of them.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Directories of Let's Encrypt, to be given as ACME.Directory. What the second one issues is
// trusted by nobody, and its limits are wide: it is for trying things out.
const (
	LetsEncrypt        = "https://acme-v02.api.letsencrypt.org/directory"
	LetsEncryptStaging = "https://acme-staging-v02.api.letsencrypt.org/directory"
)

// Off, as an address of ACME, turns a challenge off.
const Off = "off"

// Where a CA looks for the answers to its challenges: RFC 8555, Section 8.3, and RFC 8737,
// Section 3.
const (
	defaultHTTP01    = ":80"
	defaultTLSALPN01 = ":443"
)

// ACME says which certificates are obtained, and from whom. The zero value obtains none.
type ACME struct {
	// Names are host names, as U-labels or A-labels. A certificate is obtained for each
	// of them. The other fields count only where there are names.
	Names []string

	// Directory is the URL of the CA's directory (RFC 8555, Section 7.1.1), with https.
	// Default LetsEncrypt.
	Directory string

	// Email is told to the CA, which may write to it. Required.
	Email string

	// Agreed says that the CA's terms of service were read and agreed to. Nobody is
	// asked; without it there are no certificates.
	Agreed bool

	// Roots are trusted when the CA's API is called. Nil: those of the system. Which
	// roots the issued certificates lead to has nothing to do with it.
	Roots *x509.CertPool

	// HTTP01 and TLSALPN01 are the addresses, host:port, of the listeners that answer
	// the challenges of these names (RFC 8555, Section 8.3, and RFC 8737). Defaults
	// ":80" and ":443", which is where a CA looks; another port needs somebody who
	// forwards to it. Off turns one off; one of them must be on.
	HTTP01    string
	TLSALPN01 string
}

// validate returns every problem.
func (a ACME) validate(kept bool) (errs []error) {
	if len(a.Names) == 0 {
		return nil
	}
	seen := make(map[string]bool)
	for i, raw := range a.Names {
		name, ok := normalise(raw)
		switch {
		case strings.HasPrefix(raw, "*"):
			errs = append(errs, fmt.Errorf("certs: name %d, %q, is a wildcard: neither HTTP-01 nor TLS-ALPN-01 can prove it", i+1, raw))
		case !ok:
			errs = append(errs, fmt.Errorf("certs: name %d, %q, is not a host name", i+1, raw))
		case seen[name]:
			errs = append(errs, fmt.Errorf("certs: name %d, %q, is there twice", i+1, raw))
		}
		seen[name] = true
	}
	a = a.withDefaults()
	if !kept {
		errs = append(errs, errors.New("certs: obtained certificates need a directory to be kept in"))
	}
	if !strings.Contains(a.Email, "@") {
		errs = append(errs, fmt.Errorf("certs: %q is not a mail address that the CA could write to", a.Email))
	}
	if !a.Agreed {
		errs = append(errs, errors.New("certs: the CA's terms of service are not agreed to"))
	}
	if u, err := url.Parse(a.Directory); err != nil || u.Scheme != "https" || u.Host == "" {
		errs = append(errs, fmt.Errorf("certs: directory %q is not an https URL", a.Directory))
	}
	if a.HTTP01 == Off && a.TLSALPN01 == Off {
		errs = append(errs, errors.New("certs: both challenges are off; one is needed to prove a name"))
	}
	for _, addr := range []string{a.HTTP01, a.TLSALPN01} {
		if !isAddress(addr) {
			errs = append(errs, fmt.Errorf("certs: %q is no address to listen on", addr))
		}
	}
	return errs
}

func isAddress(addr string) bool {
	if addr == Off {
		return true
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	_, err = strconv.ParseUint(port, 10, 16)
	return err == nil
}

// withDefaults fills in what is empty, and brings the names of a valid ACME into the form in
// which they are compared.
func (a ACME) withDefaults() ACME {
	if a.Directory == "" {
		a.Directory = LetsEncrypt
	}
	if a.HTTP01 == "" {
		a.HTTP01 = defaultHTTP01
	}
	if a.TLSALPN01 == "" {
		a.TLSALPN01 = defaultTLSALPN01
	}
	a.Names = slices.Clone(a.Names)
	for i, raw := range a.Names {
		if name, ok := normalise(raw); ok {
			a.Names[i] = name
		}
	}
	return a
}

// sameSettings reports whether a and b differ in their names at most.
func (a ACME) sameSettings(b ACME) bool {
	roots := a.Roots == b.Roots || a.Roots != nil && b.Roots != nil && a.Roots.Equal(b.Roots)
	return roots && a.Directory == b.Directory && a.Email == b.Email && a.Agreed == b.Agreed &&
		a.HTTP01 == b.HTTP01 && a.TLSALPN01 == b.TLSALPN01
}

// A ManagedName is what is known of one of the names that certificates are obtained for.
type ManagedName struct {
	Name      string    // as an A-label, lower case
	Issuer    string    // who signed the certificate that is served; empty as long as there is none
	NotAfter  time.Time // of that certificate; zero as long as there is none
	LastTry   time.Time // when it was looked at last; zero: not yet
	LastError string    // of that time, with what can be done about it; empty if all was well
	NextTry   time.Time // when it is looked at next; zero: now, or nobody has called Run
}

// Managed returns the names of Options.ACME, sorted, with the state of each.
func (s *Store) Managed() []ManagedName {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []ManagedName
	for _, name := range slices.Sorted(maps.Keys(s.managed)) {
		state := *s.managed[name]
		if c := s.obtained[name]; c != nil {
			state.Issuer, state.NotAfter = issuerName(c.Leaf), c.Leaf.NotAfter
		}
		list = append(list, state)
	}
	return list
}

func issuerName(leaf *x509.Certificate) string {
	if leaf.Issuer.CommonName != "" {
		return leaf.Issuer.CommonName
	}
	return leaf.Issuer.String()
}

// takeACME replaces what is obtained. Certificates of names that stay are kept, those of new
// ones are taken from what is kept if they are there. The caller holds mu and publishes.
func (s *Store) takeACME(a ACME) {
	s.acme = a.withDefaults()
	managed, obtained := make(map[string]*ManagedName), make(map[string]*tls.Certificate)
	disk := s.storage(s.acme)
	ctx, cancel := context.WithTimeout(context.Background(), storageWait)
	defer cancel()
	for _, name := range s.acme.Names {
		managed[name] = &ManagedName{Name: name}
		if old := s.managed[name]; old != nil {
			managed[name] = old
		}
		if c := disk.load(ctx, name); c != nil {
			obtained[name] = c
		} else if c := s.obtained[name]; c != nil {
			obtained[name] = c
		}
	}
	s.managed, s.obtained = managed, obtained
	select {
	case s.changed <- struct{}{}:
	default: // Run has yet to look at the change before
	}
}

// Run obtains certificates for the names of Options.ACME and keeps them renewed until ctx
// ends; it follows Update. It listens for challenges while there are names. When it returns,
// everything that it started has stopped. Without names it only waits. Only one Run at a time
// has an effect: another returns an error at once, and there is no other error.
//
// Nothing waits for Run: what was obtained before is served from New on, and names that have
// no certificate yet get the default.
func (s *Store) Run(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("certs: Run was called while it runs")
	}
	defer s.running.Store(false)
	for ctx.Err() == nil {
		if s.wanted().Names == nil {
			select {
			case <-ctx.Done():
			case <-s.changed:
			}
			continue
		}
		newManager(s, s.wanted()).run(ctx)
	}
	return nil
}

// wanted is what is to be obtained now.
func (s *Store) wanted() ACME {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.acme.Names) == 0 {
		return ACME{}
	}
	return s.acme
}

// record notes what became of looking at a name, and serves the certificate if it is another
// one. It reports whether it is. A nil certificate leaves the one there is.
func (s *Store) record(name string, cert *tls.Certificate, err error, now, next time.Time) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.managed[name]
	if state == nil {
		return false // it was taken from the list in the meantime
	}
	state.LastTry, state.NextTry, state.LastError = now, next, ""
	if err != nil {
		state.LastError = err.Error()
	}
	old := s.obtained[name]
	if cert == nil || old != nil && old.Leaf.Equal(cert.Leaf) {
		return false
	}
	s.obtained[name] = cert
	s.publish(now)
	return true
}

// served returns the obtained certificate of a name, nil if there is none.
func (s *Store) served(name string) *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.obtained[name]
}

// failed tells whether the last look at a name failed.
func (s *Store) failed(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.managed[name]
	return state != nil && state.LastError != ""
}
