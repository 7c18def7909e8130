package certs

// selfsigned.go makes and keeps the certificate that is always there.
//
// Key and certificate stand in one file. It is replaced as a whole, so there is no
// moment, neither in a crash nor with two processes on one directory, in which the key
// of one pair stands beside the certificate of another.

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

const (
	defaultFile = "default.pem"

	// lifetime stays under 398 days, the least that any widespread verifier allows
	// for a server certificate, be it trusted by hand; some refuse a longer one whatever
	// its issuer. A much shorter one would run out in gateways that nobody restarts
	// or reloads, and win nothing: the key stays the same.
	lifetime = 397 * 24 * time.Hour

	// renewBefore is early because a renewal costs nothing and needs somebody to
	// call Reload.
	renewBefore = lifetime / 3

	// backdate lets peers with a slow clock take a new certificate.
	backdate = 24 * time.Hour

	// maxCommonName is ub-common-name of RFC 5280, Appendix A.1. Names may be longer.
	maxCommonName = 64
)

// A keeper makes the self-signed certificate and renews it.
type keeper struct {
	dir      string // empty: memory only
	hostname string
	log      *slog.Logger
	now      func() time.Time
	write    func(dir, name string, data []byte) error // writeFile, but for tests
}

// certificate returns the certificate to serve: the kept one, or a new one if it is
// missing, broken, for another host name or near its end. The key goes on if there is one
// that works, on disk or in old: peers may have pinned it, or know it from a TLSA record.
// old may be nil.
func (k *keeper) certificate(old *tls.Certificate) (*tls.Certificate, error) {
	kept := old
	if k.dir != "" {
		var err error
		if kept, err = k.load(old == nil); err != nil {
			return nil, fmt.Errorf("certs: read default certificate: %w", err)
		}
	}
	if kept != nil && k.fresh(kept.Leaf) {
		return kept, nil
	}
	key, err := keyOf(kept, old)
	if err != nil {
		return nil, fmt.Errorf("certs: make key of default certificate: %w", err)
	}
	data, err := k.sign(key)
	if err != nil {
		return nil, fmt.Errorf("certs: make default certificate: %w", err)
	}
	if k.dir != "" {
		if err := k.write(k.dir, defaultFile, data); err != nil {
			err = fmt.Errorf("certs: keep default certificate in %s: %w", k.dir, err)
			if kept == nil {
				return nil, err
			}
			// The key is safe, only the new dates are not. That is no reason not to start.
			k.log.Error("default certificate renewed in memory only", "err", err)
		}
	}
	return parsePair(data, data)
}

// load returns the kept pair, or nil if there is none or it was broken and is moved aside.
// At the first time it also looks at who can read the key.
func (k *keeper) load(first bool) (*tls.Certificate, error) {
	path := filepath.Join(k.dir, defaultFile)
	data, mode, err := readFile(path)
	var system *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.As(err, &system):
		// The pair may be whole and we lack a permission, or the disk fails. To make
		// another key would be rash.
		return nil, err
	case err != nil:
		return nil, k.setAside(path, err)
	}
	cert, err := parsePair(data, data)
	if err != nil {
		return nil, k.setAside(path, err)
	}
	if first {
		warn(k.log, keyWarnings(path, mode))
	}
	return cert, nil
}

// setAside renames a broken file. It is not removed, since its key may be all that
// matches a published TLSA record.
func (k *keeper) setAside(path string, reason error) error {
	aside := path + ".broken-" + k.now().UTC().Format("20060102T150405.000000000Z")
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	k.log.Error("default certificate is broken, making another",
		"err", fmt.Errorf("certs: load %s, now %s: %w", path, aside, reason))
	return syncDir(k.dir)
}

// fresh reports whether a certificate is for our name and has enough of its life left.
func (k *keeper) fresh(leaf *x509.Certificate) bool {
	now := k.now()
	return slices.Equal(leaf.DNSNames, []string{k.hostname}) &&
		!now.Before(leaf.NotBefore) &&
		now.Before(leaf.NotAfter.Add(-renewBefore))
}

// keyOf returns the key of the first certificate that is not nil, or else a new one.
// P-256 is what every peer with ECDSA knows.
func keyOf(certs ...*tls.Certificate) (crypto.Signer, error) {
	for _, c := range certs {
		if c == nil {
			continue
		}
		if key, ok := c.PrivateKey.(crypto.Signer); ok {
			return key, nil
		}
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// sign makes a certificate for key and returns both in PEM.
func (k *keeper) sign(key crypto.Signer) ([]byte, error) {
	start := k.now().Add(-backdate)
	template := &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"Penstock self-signed"}},
		DNSNames:    []string{k.hostname},
		NotBefore:   start,
		NotAfter:    start.Add(lifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		// Not a CA: who trusts this certificate shall trust nothing else by it.
		BasicConstraintsValid: true,
	}
	if len(k.hostname) <= maxCommonName {
		template.Subject.CommonName = k.hostname
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: cert}) // a Buffer does not fail
	pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return b.Bytes(), nil
}

// writeFile replaces a file so that after a crash either the old or the new content is
// there, and after its return the new one. Only we can read it.
func writeFile(dir, name string, data []byte) error {
	if err := makeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, name+".tmp-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

// makeDir makes a directory that only we can enter, if there is none.
func makeDir(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// syncDir makes renames in a directory last.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be synced there
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
