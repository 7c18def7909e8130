// Package certs holds the certificates that the gateway shows to its clients, and
// decides which one a client gets.
//
// There are three sources. Certificates from files are the operator's: a certificate
// (with its chain) and a key in PEM, read at start and again on each Reload. Others are
// obtained from a CA by ACME (RFC 8555) for names that are listed, and renewed in time; what
// was obtained is kept, on disk or in a Storage, and served from the next start on. Beside
// them there is always a certificate of our own, self-signed for our host name, made
// at the first start and kept. It is there because most senders of mail do not verify
// whom they talk to: for them any certificate makes the difference between an encrypted
// and a clear connection (RFC 7435, Section 3). It also is a sound thing to publish:
// with a TLSA record of usage DANE-EE neither its name nor its dates are looked at, only
// its key (RFC 7671, Section 5.1). That is why a renewal keeps the key.
//
// One tls.Config serves STARTTLS (RFC 3207) and implicit TLS (RFC 8314, Section 3.3)
// alike. For each handshake it chooses in this order:
//
//  1. a certificate that holds the name the client asked for (SNI, RFC 6066, Section 3);
//  2. one with a wildcard for the first label of that name (RFC 9525, Section 6.3);
//  3. the default: what a client that asks for our host name would get, and behind it
//     the self-signed certificate.
//
// Within a step ECDSA goes before Ed25519 and RSA, and a certificate whose key the
// client cannot use is passed over. Of two certificates with one name and one kind of
// key, the one that expires later counts, be it from a file or obtained; the first in the
// list of files if they are equal, and files before what was obtained.
//
// A name that we do not know, or that is no host name at all (an underscore, an address,
// bytes that mean nothing), leads to the default and never to a failed handshake: a
// sender that fails here falls back to clear text, or does not deliver. Two things are
// out of our hands, since crypto/tls refuses them before it asks us: an empty name and
// a name with a trailing dot, both of which RFC 6066, Section 3 forbids.
//
// No application protocol is set. A client that offers ALPN "smtp" is then served
// without one, where a list of ours that lacked its protocol would end the handshake
// (RFC 7301, Section 3.2). The protocol of a CA's challenge, acme-tls/1, means nothing here:
// a CA asks on port 443, where a listener that does nothing else answers it.
//
// No handshake waits for a CA, or for anything at all: each looks at a set that is built
// beside it and put in place at once.
//
// Nothing here runs by itself. Files are looked at, and the self-signed certificate is
// renewed, when the owner of the Store calls Reload, or Update for another list of files.
// Certificates are obtained while Run runs.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A File names a certificate on disk and its key. Both are PEM files, and they may be
// the same one.
type File struct {
	Cert string // path; the certificate first, then the chain that leads to its root
	Key  string // path; PKCS #8, PKCS #1 or SEC 1, not encrypted
}

// Options says what a Store serves. The zero value lacks the Hostname.
type Options struct {
	// Hostname is our name, as a U-label or an A-label. The default certificate is
	// the one that a client asking for this name would get. Required.
	Hostname string

	// Dir is the directory that keeps the self-signed certificate and its key, in
	// one file default.pem that only we may read. It is made if it is missing.
	// Gateways with different host names need a directory each. Empty keeps them in
	// memory alone: each start then has another key.
	Dir string

	// Files are certificates to serve. Without them, and without any that was obtained,
	// the self-signed one is served only.
	Files []File

	// ACME says which certificates are obtained by Run. They are kept in Storage, or else
	// in the folder acme below Dir; one of the two must then be given. Zero: none.
	ACME ACME

	// Storage keeps certificates, keys and accounts with CAs that gateways share. The
	// answers to challenges are in it too while they are open, so that each of the gateways
	// can give them, whichever the CA comes to. New copies into it what the folder acme
	// below Dir has and it has not. It is in use until Run has returned. Nil: files in Dir.
	Storage Storage

	// MinVersion is the lowest version of TLS that is spoken, as crypto/tls counts
	// them. 0 is TLS 1.2 (RFC 8996 retires what is older).
	MinVersion uint16

	// Log gets what an operator should know and no caller is told: files that expired,
	// keys that others can read, a default certificate that had to be remade. Nil
	// discards.
	Log *slog.Logger

	// Now is the clock. Nil is time.Now.
	Now func() time.Time
}

// Validate returns every problem of the options, joined, or nil. Those of Files are of
// type *FileError. It does not look at the disk.
func (o Options) Validate() error {
	var errs []error
	if o.Hostname == "" {
		errs = append(errs, errors.New("certs: hostname is required"))
	} else if _, ok := normalise(o.Hostname); !ok {
		errs = append(errs, fmt.Errorf("certs: hostname %q is not a host name", o.Hostname))
	}
	errs = append(errs, checkFiles(o.Files)...)
	errs = append(errs, o.ACME.validate(o.Dir != "" || o.Storage != nil)...)
	if o.MinVersion != 0 && (o.MinVersion < tls.VersionTLS10 || o.MinVersion > tls.VersionTLS13) {
		errs = append(errs, fmt.Errorf("certs: minimum version %#04x is not one of TLS 1.0 to 1.3", o.MinVersion))
	}
	return errors.Join(errs...)
}

// A Store holds certificates and serves them. Its methods are safe for concurrent use.
type Store struct {
	hostname string
	log      *slog.Logger
	now      func() time.Time
	keeper   *keeper
	config   *tls.Config
	kept     Storage       // what was obtained
	shared   bool          // others may have kept too
	every    time.Duration // visitEvery, but for tests

	set     atomic.Pointer[set] // what handshakes look at; never nil after New
	running atomic.Bool         // Run runs
	changed chan struct{}       // has room for one: acme is another

	mu       sync.Mutex                  // one load at a time
	files    []File                      // guarded by mu
	entries  []*entry                    // one for each of files; guarded by mu
	own      *tls.Certificate            // self-signed; guarded by mu
	acme     ACME                        // with defaults; guarded by mu
	managed  map[string]*ManagedName     // one for each name of acme; guarded by mu
	obtained map[string]*tls.Certificate // by the name they are for; guarded by mu
}

// New loads every file and makes or reads the self-signed certificate. Its error joins
// all problems, those of the options alone if there are any; each names the file and
// the reason. FileErrors takes it apart.
func New(o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MinVersion == 0 {
		o.MinVersion = tls.VersionTLS12
	}
	hostname, _ := normalise(o.Hostname)
	s := &Store{
		hostname: hostname,
		files:    slices.Clone(o.Files),
		log:      o.Log,
		now:      o.Now,
		keeper:   &keeper{dir: o.Dir, hostname: hostname, log: o.Log, now: o.Now, write: writeFile},
		entries:  make([]*entry, len(o.Files)),
		kept:     newFolder(o.Dir),
		every:    visitEvery,
		changed:  make(chan struct{}, 1),
	}
	if o.Storage != nil {
		s.kept, s.shared = o.Storage, true
		s.moveIn(o.Dir)
	}
	s.takeACME(o.ACME)
	s.config = &tls.Config{MinVersion: o.MinVersion, GetCertificate: s.getCertificate}
	if err := s.Reload(); err != nil {
		return nil, err
	}
	return s, nil
}

// ServerConfig returns the configuration for tls.Server, the same one on each call, so
// that session tickets work across all listeners. It follows Reload by itself. Callers
// must not change it; a Clone has session tickets of its own.
func (s *Store) ServerConfig() *tls.Config { return s.config }

// getCertificate is the one place where a name leads to a certificate. It waits for
// nothing, and it never fails: see the package comment for why.
func (s *Store) getCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.set.Load().choose(hello), nil
}

// Reload reads all files again and renews the self-signed certificate if that is due.
// Call it when files may have changed, and once a day in any case. The new set takes the
// place of the old one at once; handshakes under way go on with what they have.
//
// The error joins all problems; FileErrors takes it apart. A file that has one keeps the
// certificate that was read from it last, so that a half-written pair does no harm: the
// next Reload finds it whole.
func (s *Store) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	var errs []error
	for i, f := range s.files {
		e, err := loadFile(i, f, s.entries[i], now)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.warnNew(e, s.entries[i])
		s.entries[i] = e
	}
	own, err := s.keeper.certificate(s.own)
	if err != nil {
		errs = append(errs, err)
	} else {
		s.own = own
	}
	if s.own != nil { // nil only in New, which fails then
		s.publish(now)
	}
	return errors.Join(errs...)
}

// Update takes files, and what is to be obtained, over in place of what the Store has, all or
// nothing. The files are read, also those that were in the list before, and the self-signed
// certificate is renewed if that is due, as Reload does. Without a problem the new set takes
// the place of the old one at once; with no files and no names it is the self-signed
// certificate alone.
//
// Names that are new are obtained by Run, those that are gone are no longer served or renewed;
// what is kept of them stays there.
//
// The error joins all problems; FileErrors takes it apart. With any of them everything
// stays as it is.
func (s *Store) Update(files []File, acme ACME) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if err := errors.Join(append(checkFiles(files), acme.validate(s.keeper.dir != "" || s.shared)...)...); err != nil {
		return err
	}
	var errs []error
	entries, known := make([]*entry, len(files)), make([]*entry, len(files))
	for i, f := range files {
		if j := slices.Index(s.files, f); j >= 0 {
			known[i] = s.entries[j]
		}
		var err error
		if entries[i], err = loadFile(i, f, known[i], now); err != nil {
			errs = append(errs, err)
		}
	}
	own, err := s.keeper.certificate(s.own)
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	for i, e := range entries {
		s.warnNew(e, known[i])
	}
	s.files, s.entries, s.own = slices.Clone(files), entries, own
	s.takeACME(acme)
	s.publish(now)
	return nil
}

// warnNew logs the warnings of e that old did not have. old may be nil.
func (s *Store) warnNew(e, old *entry) {
	known := func(w string) bool { return old != nil && slices.Contains(old.warnings, w) }
	warn(s.log, slices.DeleteFunc(slices.Clone(e.warnings), known))
}

// publish shows what was loaded to the handshakes. The caller holds mu.
func (s *Store) publish(now time.Time) {
	var list []*tls.Certificate
	for _, e := range s.entries {
		if e != nil { // nil only in New, which fails then
			list = append(list, e.cert)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.obtained)) {
		list = append(list, s.obtained[name])
	}
	s.set.Store(newSet(s.hostname, s.own, list, now))
}

// Names returns the names that are served with a certificate of their own, sorted, as
// A-labels in lower case; wildcards in the form "*.example.net". Our host name is always
// one of them.
func (s *Store) Names() []string {
	set := s.set.Load()
	names := slices.Collect(maps.Keys(set.exact))
	for parent := range set.wild {
		names = append(names, "*."+parent)
	}
	names = append(names, s.hostname)
	slices.Sort(names)
	return slices.Compact(names)
}

// DefaultPool returns a new pool with what a client may get that asks for our host name
// or for none: the default certificates themselves, not their issuers. It is for clients
// in our own process. Reload and Update do not change pools that were handed out.
func (s *Store) DefaultPool() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range s.set.Load().fallback {
		pool.AddCert(c.Leaf)
	}
	return pool
}
