package embedded

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Options say how a store is kept.
type Options struct {
	// FS is the file system; nil is the machine's.
	FS vfs.FS
	// MinFree is how much room must be left on the disk, in octets, for new messages to be
	// taken. Default: 512 MiB, or 2 % of a disk of which that is less. Negative is no limit.
	MinFree int64
	// Cache is memory for what is read from tables, in octets. Default 32 MiB.
	Cache int64
	// Memtable is memory for what was written last, in octets; the log is about as long.
	// What comes and goes within it is never written a second time. Default 64 MiB.
	Memtable int64
	// SyncDelay is how long the end of a lease may wait for another's sync. Default 50 ms.
	SyncDelay time.Duration
	// Sweep is how often files without a message are looked for. Default an hour.
	Sweep time.Duration
	// Now is the time that leases run out by. Default time.Now; it may not go back.
	Now func() time.Time
	// retry is how long to wait between attempts to open a database again whose disk failed.
	// Default a second; tests have less patience.
	retry time.Duration
	// Log gets what an operator must know; nil discards.
	Log *slog.Logger
}

// Validate returns all that is wrong.
func (o Options) Validate() error {
	var errs []error
	for _, limit := range []struct {
		name  string
		value int64
	}{
		{"cache", o.Cache}, {"memtable", o.Memtable}, {"sync delay", int64(o.SyncDelay)}, {"sweep", int64(o.Sweep)},
	} {
		if limit.value < 0 {
			errs = append(errs, fmt.Errorf("embedded: %s is negative", limit.name))
		}
	}
	if o.Memtable != 0 && o.Memtable < minMemtable || o.Memtable > maxMemtable {
		errs = append(errs, fmt.Errorf("embedded: memtable is not between %d and %d octets", minMemtable, maxMemtable))
	}
	return errors.Join(errs...)
}

// A memtable must hold a few messages of the largest kind, and the database takes no more
// than 4 GiB.
const (
	minMemtable = 1 << 20
	maxMemtable = 2 << 30
)

// withDefaults fills in what is zero.
func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Cache == 0 {
		o.Cache = 32 << 20
	}
	if o.Memtable == 0 {
		o.Memtable = 64 << 20
	}
	if o.SyncDelay == 0 {
		o.SyncDelay = 50 * time.Millisecond
	}
	if o.Sweep == 0 {
		o.Sweep = time.Hour
	}
	if o.retry == 0 {
		o.retry = time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
