package users

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/penstock/penstock/mail/smtp/sasl"
)

// maxFile bounds a file in octets: some 100,000 users.
const maxFile = 16 << 20

// A File is a file of users that can be asked and read again. It is safe for concurrent use.
type File struct {
	path  string
	table atomic.Pointer[table]
	// turns bounds the hashes that are computed at once.
	turns chan struct{}

	mu      sync.Mutex  // guards what follows
	seen    fs.FileInfo // when it was last read, with or without success; nil: could not be read
	trouble string      // why it could not be read last time
}

// Open reads a file. The error lists every problem: values of *Problem, joined, for what is
// in the file, an *fs.PathError if it cannot be read.
func Open(path string) (*File, error) {
	f := &File{path: path, turns: make(chan struct{}, runtime.GOMAXPROCS(0))}
	if _, err := f.Reload(); err != nil {
		return nil, err
	}
	return f, nil
}

// Reload reads the file again if it has changed since it was last read, and tells whether
// there is a new table. With an error the old table stays in use; the same error is returned
// once, and not again until the file changes. It costs one stat if nothing has changed.
func (f *File) Reload() (changed bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err == nil && f.seen != nil && same(info, f.seen) {
		return false, nil
	}
	var t *table
	if err == nil {
		t, err = load(f.path)
	}
	// Remembered from before it was read: what is written meanwhile is seen next time. What
	// could not be read at all is tried again, since rights change without a trace.
	if f.seen = info; err != nil {
		if _, ok := errors.AsType[*Problem](err); !ok {
			f.seen = nil
		}
		err = fmt.Errorf("users: %w", err)
		if f.seen == nil && err.Error() == f.trouble {
			return false, nil
		}
		f.trouble = err.Error()
		return false, err
	}
	f.trouble = ""
	f.table.Store(t)
	return true, nil
}

// same tells whether a file is as it was. A file that was put in place of another is a new
// one even if it has the size and the time of the old.
func same(a, b fs.FileInfo) bool {
	return a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size() && os.SameFile(a, b)
}

func load(path string) (*table, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	return parse(path, data)
}

// readFile reads a regular file of up to maxFile octets. Opening a FIFO would wait for its
// writer, so we look first.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s has more than %d octets", path, maxFile)
	}
	return data, err
}

// Warnings returns what is amiss with a file that is used all the same: that others on this
// machine can read it. The group may, which is how a service is given its secrets.
func (f *File) Warnings() []string {
	info, err := os.Stat(f.path)
	const others = 0o007
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&others == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%s is open to all users of this machine (mode %#o)", f.path, info.Mode().Perm())}
}

// Without returns the names that cannot use a mechanism for want of a line that serves it.
// While there are any, Credentials offers no SCRAM and no CRAM-MD5: clients take the
// strongest mechanism that they see, and would fail with it.
func (f *File) Without(mechanism string) []string { return f.table.Load().without(mechanism) }

// A User is a name and how its password is kept.
type User struct {
	Name    string
	Schemes []Scheme // in the order of Schemes
}

// Users returns all users, sorted by name.
func (f *File) Users() []User {
	t := f.table.Load()
	var list []User
	for _, name := range slices.Sorted(maps.Keys(t.accounts)) {
		u := User{Name: name}
		for _, s := range Schemes() {
			if t.accounts[name].hashes[s] != nil {
				u.Schemes = append(u.Schemes, s)
			}
		}
		list = append(list, u)
	}
	return list
}

// Credentials returns the checks for one session, on the file as it is now: what was offered
// at its beginning stays right until its end. Tokens are never among them.
func (f *File) Credentials() sasl.Credentials {
	v := view{f.table.Load(), f.turns}
	c := sasl.Credentials{
		Password:        v.password,
		Certificate:     v.certificate,
		Decoy:           v.table.secret,
		DecoyIterations: v.table.rounds,
	}
	if len(v.table.without(sasl.SCRAMSHA256)) == 0 {
		c.SCRAM = v.scram
	}
	if len(v.table.without(sasl.CRAMMD5)) == 0 {
		c.Secret = v.secret
	}
	return c
}

// view is a table and the right to compute.
type view struct {
	table *table
	turns chan struct{}
}

// turn waits until a hash may be computed.
func (v view) turn(ctx context.Context) error {
	select {
	case v.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("users: wait for a turn to check a password: %w", context.Cause(ctx))
	}
}

func (v view) password(ctx context.Context, user, password string) error {
	h := v.table.decoy
	a := v.table.accounts[user]
	if a != nil {
		h = a.password()
	}
	if h == nil {
		return sasl.ErrDenied // there are no users, and so nothing to hide
	}
	if err := v.turn(ctx); err != nil {
		return err
	}
	defer func() { <-v.turns }()
	if !checkPassword(h, password) || a == nil {
		return sasl.ErrDenied
	}
	return nil
}

// checkPassword takes a password as it was sent. What we hashed was prepared; a hash that
// another program made may be of the password as it was typed.
func checkPassword(h hash, password string) bool {
	prepared, err := sasl.PreparePassword(password)
	right := err == nil && h.check(prepared)
	if prepared != password {
		right = h.check(password) || right
	}
	return right
}

func (v view) scram(ctx context.Context, user string) (sasl.SCRAMKeys, error) {
	a := v.table.accounts[user]
	if a == nil {
		return sasl.SCRAMKeys{}, sasl.ErrDenied
	}
	if k, ok := a.hashes[SCRAM].(scramHash); ok {
		return sasl.SCRAMKeys(k), nil
	}
	if a.derived == nil {
		return sasl.SCRAMKeys{}, sasl.ErrDenied
	}
	if err := v.turn(ctx); err != nil {
		return sasl.SCRAMKeys{}, err
	}
	defer func() { <-v.turns }()
	return a.derived()
}

func (v view) secret(_ context.Context, user string) (string, error) {
	if a := v.table.accounts[user]; a != nil {
		if plain, ok := a.hashes[Clear].(clearHash); ok {
			return string(plain), nil
		}
	}
	return "", sasl.ErrDenied
}

// certificate lets a certificate stand for a name of the file that it holds: the one asked
// for, else its first.
func (v view) certificate(_ context.Context, state *tls.ConnectionState, authz string) (string, error) {
	if state == nil || len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return "", sasl.ErrDenied
	}
	names := sasl.CertificateNames(state.VerifiedChains[0][0])
	known := slices.DeleteFunc(names, func(name string) bool { return v.table.accounts[name] == nil })
	switch {
	case len(known) == 0:
		return "", sasl.ErrDenied
	case slices.Contains(known, authz):
		return authz, nil
	}
	return known[0], nil
}
