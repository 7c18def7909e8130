package certs

// disk.go keeps what is obtained: certificates, their keys and the accounts with CAs, as
// certmagic lays them out, in files or where the caller has them.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
)

// acmeDir is the folder in Options.Dir. certmagic makes it for us alone: 0700, files 0600.
const acmeDir = "acme"

// Storage keeps what is obtained, by names with slashes. It is certmagic's interface, which
// says what is asked of it. Where several gateways share one, Lock must be a lock for all of
// them: one renews a certificate then, and the others find it.
type Storage = certmagic.Storage

// KeyInfo is what Storage.Stat returns.
type KeyInfo = certmagic.KeyInfo

// storageWait bounds what is asked of a Storage outside of a visit. One that is elsewhere may
// not answer, and who reloads, or waits for the end, must not wait for it.
const storageWait = 10 * time.Second

// A disk keeps the certificates of one CA.
type disk struct {
	Storage
	issuer string // the CA's folder: certmagic calls it the issuer key
	log    *slog.Logger
}

// A folder is a Storage in files.
//
// The locks are our own. Those of FileStorage are files that a goroutine touches every few
// seconds, which outlives the lock; after a crash they keep the next start waiting. They are
// for processes that share a folder, and a folder of certificates is one gateway's: should two
// have it all the same, both may order a certificate, and either is good.
type folder struct {
	*certmagic.FileStorage
	locks *keyLocks
}

func newFolder(dir string) *folder {
	return &folder{
		FileStorage: &certmagic.FileStorage{Path: filepath.Join(dir, acmeDir)},
		locks:       &keyLocks{held: make(map[string]chan struct{})},
	}
}

// A keyLocks holds the names that are locked, each with a channel that is closed when it is
// free again.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (s *Store) storage(a ACME) *disk {
	return &disk{Storage: s.kept, issuer: issuerKey(a.Directory), log: s.log}
}

// issuerKey makes one file name of a directory's URL.
func issuerKey(directory string) string {
	u, err := url.Parse(directory)
	if err != nil {
		return certmagic.StorageKeys.Safe(directory)
	}
	path := strings.Trim(strings.ReplaceAll(u.Path, "/", "-"), "-")
	return certmagic.StorageKeys.Safe(strings.Trim(u.Host+"-"+path, "-"))
}

// Lock waits until the name is free, or for the end of ctx.
func (d *folder) Lock(ctx context.Context, name string) error {
	for {
		free, ok := d.locks.try(name)
		if ok {
			return nil
		}
		select {
		case <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TryLock is Lock without waiting.
func (d *folder) TryLock(_ context.Context, name string) (bool, error) {
	_, ok := d.locks.try(name)
	return ok, nil
}

// Unlock frees a name.
func (d *folder) Unlock(_ context.Context, name string) error {
	l := d.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	free, ok := l.held[name]
	if !ok {
		return fmt.Errorf("certs: %q is not locked", name)
	}
	close(free)
	delete(l.held, name)
	return nil
}

// try locks a name, or returns what is closed when it is free.
func (l *keyLocks) try(name string) (free <-chan struct{}, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if held, taken := l.held[name]; taken {
		return held, false
	}
	l.held[name] = make(chan struct{})
	return nil, true
}

// load returns the certificate of a name with its key, nil if there is none that works.
func (d *disk) load(ctx context.Context, name string) *tls.Certificate {
	certPEM, err := d.read(ctx, certmagic.StorageKeys.SiteCert(d.issuer, name))
	if err != nil {
		return nil
	}
	keyPEM, err := d.read(ctx, certmagic.StorageKeys.SitePrivateKey(d.issuer, name))
	if err != nil {
		return nil
	}
	cert, err := parsePair(certPEM, keyPEM)
	if err != nil {
		return nil
	}
	return cert
}

// read is Load, and logs what is wrong but that there is none.
func (d *disk) read(ctx context.Context, key string) ([]byte, error) {
	data, err := d.Load(ctx, key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, context.Canceled) {
		d.log.Warn("a file of an obtained certificate cannot be read", "file", d.place(key), "err", err)
	}
	return data, err
}

// place is where a person finds what is kept under a key.
func (d *disk) place(key string) string {
	if f, ok := d.Storage.(*folder); ok {
		return f.Filename(key)
	}
	return key
}

// mend sets files aside that would keep a certificate from ever being obtained again: a key
// that is none, and a certificate that does not go with its key.
func (d *disk) mend(ctx context.Context, name string) {
	key := certmagic.StorageKeys.SitePrivateKey(d.issuer, name)
	keyPEM, err := d.Load(ctx, key)
	if err != nil {
		return // there is none, or certmagic will say what is wrong
	}
	if _, err := certmagic.PEMDecodePrivateKey(keyPEM); err != nil {
		d.setAside(ctx, key, keyPEM)
	}
	cert := certmagic.StorageKeys.SiteCert(d.issuer, name)
	certPEM, err := d.Load(ctx, cert)
	if err != nil {
		return
	}
	if _, err := parsePair(certPEM, keyPEM); err != nil {
		d.setAside(ctx, cert, certPEM)
	}
}

func (d *disk) setAside(ctx context.Context, key string, data []byte) {
	err := d.Store(ctx, key+".broken", data)
	if err == nil {
		err = d.Delete(ctx, key)
	}
	d.log.Error("a file of an obtained certificate is broken and was set aside", "file", d.place(key)+".broken", "err", err)
}
