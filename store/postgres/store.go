package postgres

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/penstock/penstock/store"
)

// Store is a [store.Store] in a database. It is safe for concurrent use.
type Store struct {
	opt  Options
	pool *pgxpool.Pool
	seal *sealer

	ids     store.IDs
	commits *committer
	wake    *waker
	queue   *queue
	kept    *cache
	open    openBlobs

	mu     sync.Mutex      // orders spawn and Close
	closed atomic.Bool     // set under mu
	life   context.Context // ends with Close
	end    context.CancelFunc
	tasks  sync.WaitGroup // what runs until life ends

	stats counters
}

var _ store.Store = (*Store)(nil)

// Open connects to the database, brings its tables to the newest form, and returns the store.
// It waits until the database answers or ctx ends. An error tells what is wrong with the
// options, or why the database will not do: it is older than PostgreSQL 13, its encoding is
// not UTF-8, it cannot be written to, or its tables are of a newer version of this program.
func Open(ctx context.Context, o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	o = o.withDefaults()
	seal, err := newSealer(o.Keys)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	config, err := poolConfig(o)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	if err := prepareDatabase(ctx, config.ConnConfig, o); err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("postgres: %w", err)
	}
	s := &Store{opt: o, pool: pool, seal: seal}
	s.life, s.end = context.WithCancel(context.Background())
	s.kept = newCache()
	s.wake = newWaker(s)
	s.commits = newCommitter(s)
	s.queue = &queue{s: s}
	s.tasks.Go(s.commits.run)
	s.tasks.Go(s.wake.listen)
	s.tasks.Go(s.wake.tell)
	s.tasks.Go(s.upkeep)
	return s, nil
}

// prepareDatabase looks at the database and migrates it, until it answers or ctx ends.
func prepareDatabase(ctx context.Context, config *pgx.ConnConfig, o Options) error {
	wait := newBackoff()
	for {
		err := migrateOnce(ctx, config, o)
		if err == nil || !transient(err) {
			return err
		}
		o.Log.Warn("the database does not answer", "err", err)
		if !wait.pause(ctx, nil) {
			return err
		}
	}
}

func migrateOnce(ctx context.Context, config *pgx.ConnConfig, o Options) error {
	conn, err := connect(ctx, config, o)
	if err != nil {
		return err
	}
	defer closeConn(conn)
	if err := checkServer(ctx, conn, o); err != nil {
		return err
	}
	return migrate(ctx, conn, o.Schema, latest())
}

// Queue returns the queue.
func (s *Store) Queue() store.Queue { return s.queue }

// Modules returns the modules.
func (s *Store) Modules() store.Modules { return modules{s} }

// KV returns what filters keep.
func (s *Store) KV() store.KV { return kv{s} }

// Files returns the files.
func (s *Store) Files() store.Files { return files{s} }

// Policies returns the policies.
func (s *Store) Policies() store.Policies { return policies{s} }

// Cluster returns what nodes know of each other.
func (s *Store) Cluster() store.Cluster { return cluster{s} }

// Health returns nil if the database answers and can be written to.
func (s *Store) Health(ctx context.Context) error {
	return s.run(ctx, "health", idempotent, func(ctx context.Context, c *pgxpool.Conn) error {
		var readOnly bool
		if err := c.QueryRow(ctx, "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean").Scan(&readOnly); err != nil {
			return err
		}
		if readOnly {
			return fmt.Errorf("the database cannot be written to")
		}
		return nil
	})
}

// Close ends all that runs, and waits for it: a batch that is under way gets an answer within
// Options.Timeout, and what waits behind it is told store.ErrClosed. It may be called again.
func (s *Store) Close() error {
	s.mu.Lock()
	before := s.closed.Swap(true)
	s.mu.Unlock()
	if before {
		s.tasks.Wait()
		return nil
	}
	s.commits.stop()
	s.end()
	s.tasks.Wait()
	s.pool.Close()
	return nil
}

// spawn runs f in a goroutine that Close waits for, and tells whether the store is open.
func (s *Store) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return false
	}
	s.tasks.Go(f)
	return true
}

// Stats are counts since Open.
type Stats struct {
	// Batches are transactions that the committer made, Changes what was in them: messages
	// committed and leases finished.
	Batches, Changes uint64
	// Repeated are batches that were sent again because a connection was lost or
	// transactions were in each other's way; Resolved are those among them that turned out
	// to have been committed the first time.
	Repeated, Resolved uint64
	// Listening tells whether the database wakes this node up.
	Listening bool
	// Connections are open ones of the pool, Busy those in use.
	Connections, Busy int
}

type counters struct {
	batches, changes, repeated, resolved atomic.Uint64
	listening                            atomic.Bool
}

// Stats returns them.
func (s *Store) Stats() Stats {
	p := s.pool.Stat()
	return Stats{
		Batches: s.stats.batches.Load(), Changes: s.stats.changes.Load(),
		Repeated: s.stats.repeated.Load(), Resolved: s.stats.resolved.Load(),
		Listening:   s.stats.listening.Load(),
		Connections: int(p.TotalConns()), Busy: int(p.AcquiredConns()),
	}
}

// closePatience is how long to say good-bye to the database.
const closePatience = time.Second

func closeConn(c *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	_ = c.Close(ctx) // it is gone either way
}
