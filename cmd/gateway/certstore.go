package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/store"
)

// certstore.go: the store's files as the place for certificates.

// certFolder is the folder in the store with what ACME obtains. Locks have it before their
// names too: others have files and locks beside it.
const certFolder = "acme"

// unlockTime is how long giving a lock back may take. One that is not given back runs out.
const unlockTime = 2 * time.Second

// certStorage is a certs.Storage in the files of a store. Package certs does not know stores,
// and stores do not know certmagic, whose interface that is; so they meet here. What differs:
// which error says that there is nothing, what a name begins with, and that locks are given
// back by their names, where the store gives out something to give back.
type certStorage struct {
	files store.Files
	log   *slog.Logger

	mu   sync.Mutex
	held map[string]heldLock // guarded by mu
}

// heldLock is a lock that is held. back is closed when it is given back.
type heldLock struct {
	store.Unlocker
	back chan struct{}
}

func newCertStorage(files store.Files, log *slog.Logger) *certStorage {
	return &certStorage{files: files, log: log, held: make(map[string]heldLock)}
}

// inStore is the name in the store; the empty key is the folder itself.
func inStore(key string) string { return strings.TrimSuffix(certFolder+"/"+key, "/") }

// none makes an error of the store one that certmagic knows. A file that is corrupt is one
// that is not there, or a certificate could not be obtained anew for it.
func (s *certStorage) none(key string, err error) error {
	if errors.Is(err, store.ErrCorrupt) {
		s.log.Error("a file of certificates is corrupt in the store, and made anew", "file", inStore(key), "err", err)
	} else if !errors.Is(err, store.ErrNotFound) {
		return err
	}
	return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
}

// Store implements certs.Storage.
func (s *certStorage) Store(ctx context.Context, key string, value []byte) error {
	return s.files.Write(ctx, inStore(key), value)
}

// Load implements certs.Storage.
func (s *certStorage) Load(ctx context.Context, key string) ([]byte, error) {
	data, err := s.files.Read(ctx, inStore(key))
	if err != nil {
		return nil, s.none(key, err)
	}
	return data, nil
}

// Delete implements certs.Storage.
func (s *certStorage) Delete(ctx context.Context, key string) error {
	return s.files.Delete(ctx, inStore(key))
}

// Exists implements certs.Storage.
func (s *certStorage) Exists(ctx context.Context, key string) bool {
	_, err := s.files.Stat(ctx, inStore(key))
	return err == nil
}

// Stat implements certs.Storage.
func (s *certStorage) Stat(ctx context.Context, key string) (certs.KeyInfo, error) {
	info, err := s.files.Stat(ctx, inStore(key))
	if err != nil {
		return certs.KeyInfo{}, s.none(key, err)
	}
	return certs.KeyInfo{Key: key, Modified: info.Modified, Size: info.Size, IsTerminal: !info.Folder}, nil
}

// List implements certs.Storage.
func (s *certStorage) List(ctx context.Context, folder string, recursive bool) ([]string, error) {
	names, err := s.files.List(ctx, inStore(folder), recursive)
	if err != nil {
		return nil, s.none(folder, err)
	}
	for i := range names {
		names[i] = strings.TrimPrefix(names[i], certFolder+"/")
	}
	return names, nil
}

// Lock implements certs.Storage. It is held until Unlock: the store renews it.
func (s *certStorage) Lock(ctx context.Context, name string) error {
	u, err := s.files.Lock(ctx, inStore(name))
	if err != nil {
		return err
	}
	h := heldLock{u, make(chan struct{})}
	s.mu.Lock()
	s.held[name] = h
	s.mu.Unlock()
	if u.Lost() != nil {
		go s.watch(name, h)
	}
	return nil
}

// watch tells of a lock that is lost. There is no way to stop who holds it; then two nodes may
// order a certificate, and either is good.
func (s *certStorage) watch(name string, h heldLock) {
	select {
	case <-h.back:
	case <-h.Lost():
		select {
		case <-h.back:
			return // what is lost of it was given back before
		default:
		}
		s.log.Warn("a lock of certificates was lost; another node may do the same now", "lock", name)
	}
}

// Unlock implements certs.Storage. It gives a lock back also at the end, when ctx has ended.
func (s *certStorage) Unlock(ctx context.Context, name string) error {
	s.mu.Lock()
	h, ok := s.held[name]
	delete(s.held, name)
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("certificates: %q is not locked", name)
	}
	close(h.back)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unlockTime)
	defer cancel()
	return h.Unlock(ctx)
}
