package store

import (
	"context"
	"time"
)

// store.go: all that is stored beside the queue, and the whole.

// Store is a driver.
type Store interface {
	Queue() Queue
	Modules() Modules
	KV() KV
	Files() Files
	Policies() Policies
	Cluster() Cluster
	// Health returns nil if the store can keep things, or why it cannot.
	Health(ctx context.Context) error
	// Close ends all that runs, and waits for it. What was promised is safe.
	Close() error
}

// Modules are the binaries of filters, by digest, and the versions that names stand for.
type Modules interface {
	// Put keeps a binary and returns its digest, "sha256:" and 64 hexadecimal digits.
	Put(ctx context.Context, binary []byte) (digest string, err error)
	// Get returns a binary, or ErrNotFound, or ErrCorrupt.
	Get(ctx context.Context, digest string) ([]byte, error)
	// Activate makes a name stand for a digest from now on; its version is one more than the
	// last. expect is the digest that the name must stand for at the moment; "" is none, "*"
	// any. It returns ErrConflict if it does not.
	Activate(ctx context.Context, name, digest, expect, by string) (Version, error)
	// Versions returns the versions of a name, the latest first. There may be none.
	Versions(ctx context.Context, name string) ([]Version, error)
	// Names calls yield with the version that each name stands for.
	Names(ctx context.Context, yield func(Version) bool) error
	// Remove forgets a name with its versions, and binaries that no version has any more.
	Remove(ctx context.Context, name string) error
	// Watch returns a channel that gets a value when a name changes, as Queue.Watch does.
	Watch(ctx context.Context) <-chan struct{}
}

// Version is what a name stood for.
type Version struct {
	Name   string
	Number int
	Digest string
	Since  time.Time
	By     string // who activated it
}

// KV is what filters keep, each in a space of its own.
type KV interface {
	// Get returns a value, or ErrNotFound.
	Get(ctx context.Context, space, key string) ([]byte, error)
	// Set keeps a value until expires; zero is for ever. It returns ErrFull if the space
	// would have more than quota octets of keys and values; 0 is no quota.
	Set(ctx context.Context, space, key string, value []byte, expires time.Time, quota int64) error
	// Delete forgets a value. It is no error if there is none.
	Delete(ctx context.Context, space, key string) error
	// Add adds to a number, which begins at 0, and returns the sum. Get returns it as decimal
	// digits. What is no number, or would be too large, is ErrConflict. The time until which
	// the number is kept is set where it begins.
	Add(ctx context.Context, space, key string, delta int64, expires time.Time, quota int64) (int64, error)
	// Swap is Set if the value is old at the moment, nil for none, and tells whether it was.
	Swap(ctx context.Context, space, key string, old, value []byte, expires time.Time, quota int64) (bool, error)
	// Each calls yield with all that is kept, until it returns false.
	Each(ctx context.Context, yield func(space, key string, value []byte, expires time.Time) bool) error
	// Drop forgets a space.
	Drop(ctx context.Context, space string) error
}

// Files are small files by name, with slashes as in paths: certificates, keys, and what else
// all nodes share. Names are at most 500 octets.
type Files interface {
	// Write keeps a file. It is safe when it returns.
	Write(ctx context.Context, name string, data []byte) error
	// Read returns a file, or ErrNotFound.
	Read(ctx context.Context, name string) ([]byte, error)
	// Delete forgets a file, or all below a name that stands for a folder. It is no error if
	// there is none. A folder is there while it has files.
	Delete(ctx context.Context, name string) error
	// Stat describes a file or a folder, or returns ErrNotFound.
	Stat(ctx context.Context, name string) (FileInfo, error)
	// List returns the full names of what is in a folder, files and folders, and of what is
	// in those too if recursive. The folder "" has everything. One that does not exist is
	// ErrNotFound, but for "".
	List(ctx context.Context, folder string, recursive bool) ([]string, error)
	// Lock waits for a lock that no other node or caller has. It renews itself until Unlock,
	// and runs out by itself soon after its holder is gone.
	Lock(ctx context.Context, name string) (Unlocker, error)
}

// Unlocker gives a lock back.
type Unlocker interface {
	// Unlock gives the lock back.
	Unlock(ctx context.Context) error
	// Lost is closed if the lock is lost: another may have it.
	Lost() <-chan struct{}
}

// FileInfo describes a file.
type FileInfo struct {
	Name     string
	Modified time.Time
	Size     int64
	Folder   bool
}

// Policies is a cache of what other domains say of themselves.
type Policies interface {
	// Get returns what is kept for a domain, or ErrNotFound. Who asks looks at Expires; a
	// driver may forget what ran out long ago.
	Get(ctx context.Context, kind, domain string) (Policy, error)
	// Put keeps it.
	Put(ctx context.Context, kind string, p Policy) error
	// Delete forgets it.
	Delete(ctx context.Context, kind, domain string) error
	// Each calls yield with those that are to be looked at again before a time.
	Each(ctx context.Context, kind string, before time.Time, yield func(Policy) bool) error
}

// Policy is what a domain said.
type Policy struct {
	Domain  string
	Data    []byte
	Fetched time.Time
	// Refresh is when to look again, Expires when it does not count any more.
	Refresh, Expires time.Time
}

// Cluster is what nodes know of each other.
type Cluster interface {
	// Beat tells that a node lives, and what it says of itself.
	Beat(ctx context.Context, node string, info []byte) error
	// Nodes returns those that were heard of since a time.
	Nodes(ctx context.Context, since time.Time) ([]Node, error)
	// Lead tells whether a node leads in some work for the next while: it does if nobody else
	// does. One that does not ask again in time leads no more.
	Lead(ctx context.Context, work, node string, lasts time.Duration) (bool, error)
	// Resign lets another lead.
	Resign(ctx context.Context, work, node string) error
}

// Node is a gateway that shares the store.
type Node struct {
	Name string
	Seen time.Time
	Info []byte
}
