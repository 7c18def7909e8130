package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/auth"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
)

// submission.go: what listeners do with mail of those who may relay.

// submission is a listener's; without accept: any it concerns nobody.
func (d *doorman) submission(c config.Submission) (gateway.Submission, error) {
	s := gateway.Submission{Complete: c.Complete != config.False}
	if c.Sign != config.False {
		s.Sign = d.sign
	}
	switch {
	case c.Senders.Own:
		s.Senders = gateway.SendersOwn
	case c.Senders.File != "":
		f, err := d.senderFile(c.Senders.File)
		if err != nil {
			return gateway.Submission{}, err
		}
		s.Senders, s.MaySend = gateway.SendersListed, f.maySend
	}
	return s, nil
}

// sign returns the signatures of a message, none without a key for the domain. One that cannot be
// signed could not be later, either: it goes without.
func (d *doorman) sign(ctx context.Context, domain smtp.Domain, content smtp.Content) ([]message.Field, error) {
	if d.signer == nil {
		return nil, nil
	}
	fields, err := d.signer(ctx, domain, content)
	if errors.Is(err, auth.ErrUnsignable) {
		d.log.Info("a message goes out without a signature", "domain", domain.String(), "err", err)
		return nil, nil
	}
	return fields, err
}

// senderFile is a list of senders that follows its file.
type senderFile struct {
	path string
	seen fs.FileInfo // of the file that was read or refused last
	list atomic.Pointer[gateway.SenderList]
}

const (
	// maxSenderFile is the largest list in octets.
	maxSenderFile = 64 << 20
	// senderFileSettles is how long a list must not have changed to be read again.
	senderFileSettles = 2 * time.Second
)

// senderFile opens a list, once.
func (d *doorman) senderFile(path string) (*senderFile, error) {
	if f, ok := d.senders[path]; ok {
		return f, nil
	}
	f := &senderFile{path: path}
	if _, err := f.reload(); err != nil {
		return nil, err
	}
	d.senders[path] = f
	return f, nil
}

func (f *senderFile) maySend(user string, from smtp.Path) bool {
	return f.list.Load().MaySend(user, from)
}

// reload reads the file if it has changed since, and tells whether it had. With an error the
// list stays.
func (f *senderFile) reload() (changed bool, err error) {
	info, err := os.Stat(f.path)
	if err != nil {
		if f.seen == nil && f.list.Load() != nil {
			return false, nil // said once
		}
		f.seen = nil
		return false, err
	}
	if f.seen != nil && os.SameFile(f.seen, info) && info.ModTime().Equal(f.seen.ModTime()) && info.Size() == f.seen.Size() {
		return false, nil
	}
	if f.list.Load() != nil && time.Since(info.ModTime()) < senderFileSettles {
		return false, nil // somebody may still be writing, and half a list turns users away
	}
	f.seen = info
	text, err := readRegular(f.path, maxSenderFile)
	if err != nil {
		return false, err
	}
	list, err := gateway.ParseSenders(bytes.NewReader(text))
	if err != nil {
		return false, fmt.Errorf("%s: %w", f.path, err)
	}
	f.list.Store(list)
	return true, nil
}

// reloadSenders reads the lists again that have changed.
func (d *doorman) reloadSenders() {
	for path, f := range d.senders {
		changed, err := f.reload()
		switch {
		case err != nil:
			d.log.Error("senders: the old ones are kept", "file", path, "err", err)
		case changed:
			d.log.Info("senders: read again", "file", path, "users", f.list.Load().Users())
		}
	}
}
