package postgres

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// keySize is the length of a key for AES-256.
const keySize = 32

// Options say how to use the database.
type Options struct {
	// URL is where the database is: postgres://user:password@host/database, or the form
	// "host=... dbname=...". Several hosts may be named; the one that can be written to is
	// used. Required.
	URL string
	// Keys encrypt files, each of 32 octets. The first encrypts; all of them decrypt, so that
	// a key is replaced by putting a new one in front. At least one is required.
	Keys [][]byte
	// Schema is the schema of our tables, which is made if it is not there. Default
	// "penstock".
	Schema string
	// Connections limits those to the database. Two more are used to commit and to be woken
	// up. Default 16.
	Connections int
	// Timeout is how long an answer of the database may take before the connection counts as
	// lost. Default 15 s.
	Timeout time.Duration
	// Poll is how often to look for what other nodes have done while the database does not
	// tell by itself. Default 1 s; ten times as rarely when it does.
	Poll time.Duration
	// Log is told of lost connections and of what is corrupt. Nil discards.
	Log *slog.Logger
}

// Validate returns every problem of o, joined, or nil.
func (o Options) Validate() error {
	var problems []error
	if o.URL == "" {
		problems = append(problems, errors.New("the URL of the database is missing"))
	} else if _, err := pgxpool.ParseConfig(o.URL); err != nil {
		problems = append(problems, fmt.Errorf("the URL of the database: %w", err))
	}
	if len(o.Keys) == 0 {
		problems = append(problems, errors.New("a key is needed, since certificates' keys are kept in the database"))
	}
	for i, k := range o.Keys {
		if len(k) != keySize {
			problems = append(problems, fmt.Errorf("key %d has %d octets, want %d", i+1, len(k), keySize))
		}
	}
	if len(o.Schema) > 40 {
		problems = append(problems, errors.New("the name of the schema has more than 40 octets"))
	}
	if o.Connections < 0 || o.Timeout < 0 || o.Poll < 0 {
		problems = append(problems, errors.New("connections, timeout and poll must not be negative"))
	}
	return errors.Join(problems...)
}

// withDefaults returns o with its zero values replaced.
func (o Options) withDefaults() Options {
	if o.Schema == "" {
		o.Schema = "penstock"
	}
	if o.Connections == 0 {
		o.Connections = 16
	}
	if o.Timeout == 0 {
		o.Timeout = 15 * time.Second
	}
	if o.Poll == 0 {
		o.Poll = time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
