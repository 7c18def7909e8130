package certs

// movein.go takes what was obtained before there was a Storage into it.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// moveInWait bounds the copying of one folder.
const moveInWait = time.Minute

// moveIn copies certificates and accounts from the folder in dir to where they are kept from
// now on, so that they are not ordered anew. What is there already stays, and so does the
// folder. It is no reason not to start if that fails: then they are ordered.
func (s *Store) moveIn(dir string) {
	if dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), moveInWait)
	defer cancel()
	from := newFolder(dir)
	keys, err := from.List(ctx, "", true)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = s.copyMissing(ctx, from, keys)
	}
	if err != nil {
		s.log.Error("not all certificates of the folder could be taken over into the store", "folder", from.Path, "err", err)
	}
}

// copyMissing has the lock, as others may start now with folders of their own, and a key of
// one must not be joined with a certificate of another.
func (s *Store) copyMissing(ctx context.Context, from *folder, keys []string) (err error) {
	const lock = "take_over"
	if err := s.kept.Lock(ctx, lock); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.kept.Unlock(context.WithoutCancel(ctx), lock)) }()
	for _, key := range keys {
		var parts []string // the one that tells whether it is there comes last
		switch name, ok := strings.CutSuffix(key, ".crt"); {
		case ok && s.worthKeeping(ctx, from, name):
			parts = []string{name + ".key", name + ".json", key}
		case strings.HasPrefix(key, accounts+"/") && strings.HasSuffix(key, ".json"):
			parts = []string{key}
		default:
			continue
		}
		_, statErr := s.kept.Stat(ctx, key)
		switch {
		case errors.Is(statErr, fs.ErrNotExist):
			err = errors.Join(err, s.copyParts(ctx, from, parts))
		case statErr != nil:
			return errors.Join(err, statErr)
		}
	}
	return err
}

// worthKeeping tells whether a certificate fits its key and has time left.
func (s *Store) worthKeeping(ctx context.Context, from *folder, name string) bool {
	certPEM, certErr := from.Load(ctx, name+".crt")
	keyPEM, keyErr := from.Load(ctx, name+".key")
	if certErr != nil || keyErr != nil {
		return false
	}
	cert, err := parsePair(certPEM, keyPEM)
	return err == nil && s.now().Before(cert.Leaf.NotAfter)
}

func (s *Store) copyParts(ctx context.Context, from *folder, parts []string) error {
	for _, key := range parts {
		data, err := from.Load(ctx, key)
		if err == nil {
			err = s.kept.Store(ctx, key, data)
		}
		if err != nil {
			return fmt.Errorf("take %s over: %w", key, err)
		}
	}
	s.log.Info("taken over into the store", "file", from.Filename(parts[len(parts)-1]))
	return nil
}
