package certs

// file.go reads certificates and keys from disk and judges them: what could never be
// served is an error, what will be served but should not stay so is a warning.

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"time"
)

// maxFile bounds a PEM file in bytes. A chain of ten certificates is some 20 KiB.
const maxFile = 1 << 20

// minRSA is the shortest RSA key in bits that crypto/rsa signs with.
const minRSA = 1024

// An entry is what was read from one File.
type entry struct {
	sum      [sha256.Size]byte // of both files; unchanged files are not parsed again
	cert     *tls.Certificate
	warnings []string // kept, so that each is logged once and not on each Reload
}

// A FileError is a problem of one File. New, Reload, Update and Options.Validate join as
// many as there are; FileErrors finds them.
type FileError struct {
	Index int   // of the File: in the list given to Update; else in the list of the Store, first Options.Files
	Key   bool  // the key is at fault; false: the certificate. Of a pair that does not match it is the key
	Err   error // names the paths and the reason; never nil
}

// Error returns the text of Err.
func (e *FileError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *FileError) Unwrap() error { return e.Err }

// FileErrors takes an error of this package apart: the problems of files, in their order,
// and all that has to do with no file, joined. Either is nil if there is none. The text
// that somebody wrapped around a FileError is left out.
func FileErrors(err error) (files []*FileError, rest error) {
	if _, ok := errors.AsType[*FileError](err); !ok {
		return nil, err
	}
	switch e := err.(type) {
	case *FileError:
		return []*FileError{e}, nil
	case interface{ Unwrap() error }:
		return FileErrors(e.Unwrap())
	case interface{ Unwrap() []error }:
		var others []error
		for _, part := range e.Unwrap() {
			found, other := FileErrors(part)
			files, others = append(files, found...), append(others, other)
		}
		return files, errors.Join(others...)
	}
	return nil, err // it is one by its As method alone
}

// checkFiles tells what is wrong with a list before anything is read.
func checkFiles(files []File) (errs []error) {
	for i, f := range files {
		if f.Cert == "" {
			errs = append(errs, &FileError{i, false, fmt.Errorf("certs: file %d has no certificate", i+1)})
		}
		if f.Key == "" {
			errs = append(errs, &FileError{i, true, fmt.Errorf("certs: file %d has no key", i+1)})
		}
		if j := slices.Index(files[:i], f); j >= 0 {
			errs = append(errs, &FileError{i, false, fmt.Errorf("certs: file %d names the same files as file %d", i+1, j+1)})
		}
	}
	return errs
}

// loadFile reads the i-th pair. If the files hold what old was made of, its certificate is
// kept. The error joins values of *FileError.
func loadFile(i int, f File, old *entry, now time.Time) (*entry, error) {
	certPEM, _, certErr := readFile(f.Cert)
	keyPEM, mode, keyErr := readFile(f.Key)
	var errs []error
	if certErr != nil {
		errs = append(errs, &FileError{i, false, fmt.Errorf("certs: read certificate: %w", certErr)})
	}
	if keyErr != nil {
		errs = append(errs, &FileError{i, true, fmt.Errorf("certs: read key: %w", keyErr)})
	}
	if errs != nil {
		return nil, errors.Join(errs...)
	}
	e := &entry{sum: sumOf(certPEM, keyPEM)}
	if old != nil && old.sum == e.sum {
		e.cert = old.cert
	} else {
		cert, err := parsePair(certPEM, keyPEM)
		if err != nil {
			return nil, &FileError{i, soundCertificate(certPEM), fmt.Errorf("certs: load certificate %s with key %s: %w", f.Cert, f.Key, err)}
		}
		e.cert = cert
	}
	e.warnings = append(leafWarnings(f.Cert, e.cert.Leaf, now), keyWarnings(f.Key, mode)...)
	return e, nil
}

// soundCertificate tells whether a certificate is one that TLS could serve, so that a pair
// which fails all the same does so for its key.
func soundCertificate(certPEM []byte) bool {
	for block, rest := pem.Decode(certPEM); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		leaf, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return false
		}
		switch pub := leaf.PublicKey.(type) {
		case *rsa.PublicKey:
			return pub.N.BitLen() >= minRSA
		case *ecdsa.PublicKey:
			return pub.Curve != elliptic.P224()
		case ed25519.PublicKey:
			return true
		}
		return false
	}
	return false
}

// sumOf hashes each part by itself first, so that no bytes can move from one to the other.
func sumOf(certPEM, keyPEM []byte) [sha256.Size]byte {
	c, k := sha256.Sum256(certPEM), sha256.Sum256(keyPEM)
	return sha256.Sum256(append(c[:], k[:]...))
}

// parsePair makes a certificate with its Leaf, ready to be served.
func parsePair(certPEM, keyPEM []byte) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, err
	}
	if cert.Leaf == nil { // GODEBUG=x509keypairleaf=0
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, err
		}
	}
	return &cert, checkKey(&cert)
}

// checkKey refuses keys that match their certificate and yet fail in each handshake:
// curves that TLS does not have, and RSA keys that crypto/rsa does not sign with.
func checkKey(cert *tls.Certificate) error {
	if pub, ok := cert.Leaf.PublicKey.(*rsa.PublicKey); ok && pub.N.BitLen() < minRSA {
		return fmt.Errorf("RSA key of %d bits is too short for TLS", pub.N.BitLen())
	}
	able := tls.ClientHelloInfo{
		SupportedVersions: []uint16{tls.VersionTLS13},
		SignatureSchemes: []tls.SignatureScheme{
			tls.ECDSAWithP256AndSHA256, tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512,
			tls.Ed25519, tls.PSSWithSHA256, tls.PSSWithSHA384, tls.PSSWithSHA512,
		},
	}
	return able.SupportsCertificate(cert)
}

// leafWarnings tells what is amiss with a certificate that is served all the same: most
// senders look neither at dates nor at names, and mail must go on.
func leafWarnings(path string, leaf *x509.Certificate, now time.Time) []string {
	var list []string
	if now.After(leaf.NotAfter) {
		list = append(list, fmt.Sprintf("%s: expired on %s", path, leaf.NotAfter.Format(time.RFC3339)))
	}
	if now.Before(leaf.NotBefore) {
		list = append(list, fmt.Sprintf("%s: not valid before %s", path, leaf.NotBefore.Format(time.RFC3339)))
	}
	names, useless := namesOf(leaf)
	if len(useless) > 0 {
		list = append(list, fmt.Sprintf("%s: no client can ask for %q", path, useless))
	}
	if len(names) == 0 {
		list = append(list, path+": holds no host name, so it is never chosen")
	}
	return list
}

// keyWarnings looks at the bits for others. Those for the group are left alone: a group
// for keys is how many systems share them with their servers.
func keyWarnings(path string, mode fs.FileMode) []string {
	const others = 0o007
	if runtime.GOOS == "windows" || mode.Perm()&others == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s: key is open to all users of this machine (mode %#o)", path, mode.Perm())}
}

func warn(log *slog.Logger, warnings []string) {
	for _, w := range warnings {
		log.Warn("certificate file needs attention", "err", w)
	}
}

// readFile reads a regular file of up to maxFile bytes. What the operating system
// reports is an *fs.PathError in the chain; other errors are about the file itself.
func readFile(path string) ([]byte, fs.FileMode, error) {
	// Opening a FIFO would wait for its writer, so we look first.
	info, err := os.Stat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, 0, err
	}
	if len(data) > maxFile {
		return nil, 0, fmt.Errorf("%s: larger than %d bytes", path, maxFile)
	}
	return data, info.Mode(), nil
}
