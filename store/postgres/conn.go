package postgres

// conn.go connects, says which errors pass by themselves, and runs single statements.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/penstock/penstock/store"
)

// Conditions that we know. PostgreSQL, Appendix A.
const (
	uniqueViolation  = "23505"
	readOnly         = "25006" // a primary became a replica
	undefinedTable   = "42P01"
	serialization    = "40001"
	deadlock         = "40P01"
	diskFull         = "53100"
	tooManyConns     = "53300"
	adminShutdown    = "57P01"
	crashShutdown    = "57P02"
	cannotConnectNow = "57P03"
	idleTimeout      = "57P05"
	queryCanceled    = "57014" // statement_timeout
	lockNotAvailable = "55P03"
)

// oldestServer is the first version that has all we use.
const oldestServer = 130000

func poolConfig(o Options) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		return nil, err
	}
	config.MaxConns = int32(o.Connections)
	config.MaxConnIdleTime = 5 * time.Minute
	config.AfterConnect = func(ctx context.Context, c *pgx.Conn) error { return settle(ctx, c, o) }
	cc := config.ConnConfig
	cc.ConnectTimeout = o.Timeout
	if cc.ValidateConnect == nil {
		// Of several hosts, the one that can be written to.
		cc.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if cc.RuntimeParams["application_name"] == "" {
		cc.RuntimeParams["application_name"] = "penstock"
	}
	return config, nil
}

// connect opens a connection outside of the pool.
func connect(ctx context.Context, config *pgx.ConnConfig, o Options) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	c, err := pgx.ConnectConfig(ctx, config.Copy())
	if err != nil {
		return nil, err
	}
	if err := settle(ctx, c, o); err != nil {
		closeConn(c)
		return nil, err
	}
	return c, nil
}

// settle sets what our statements rely on. A commit must be safe: a server whose
// synchronous_commit is off is told otherwise; one that waits for replicas goes on doing so.
// With keep-alives the server finds out within half a minute that a line is dead. Until then it
// would hold the locks of a batch that was half sent, and who sends it again would wait.
func settle(ctx context.Context, c *pgx.Conn, o Options) error {
	ms := strconv.FormatInt(o.Timeout.Milliseconds(), 10)
	_, err := c.Exec(ctx, `SELECT set_config('search_path', $1, false),
		set_config('statement_timeout', $2, false),
		set_config('lock_timeout', $2, false),
		set_config('idle_in_transaction_session_timeout', $2, false),
		set_config('tcp_keepalives_idle', '10', false),
		set_config('tcp_keepalives_interval', '5', false),
		set_config('tcp_keepalives_count', '3', false),
		set_config('jit', 'off', false),
		set_config('synchronous_commit',
			CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, false)`,
		quote(o.Schema), ms)
	if err != nil {
		return fmt.Errorf("set up a connection: %w", err)
	}
	return nil
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

// checkServer tells what is wrong with the database.
func checkServer(ctx context.Context, c *pgx.Conn, o Options) error {
	var version, encoding, fsync string
	err := c.QueryRow(ctx, "SELECT current_setting('server_version_num'), current_setting('server_encoding'), coalesce(current_setting('fsync', true), 'on')").
		Scan(&version, &encoding, &fsync)
	if err != nil {
		return fmt.Errorf("ask for the version: %w", err)
	}
	if err := acceptable(version, encoding); err != nil {
		return err
	}
	if fsync == "off" {
		o.Log.Error("the database runs with fsync=off: what it commits is lost when its machine fails")
	}
	return nil
}

// acceptable judges what a server says of itself.
func acceptable(version, encoding string) error {
	n, err := strconv.Atoi(version)
	if err != nil {
		return fmt.Errorf("the server's version is %q", version)
	}
	if n < oldestServer {
		return fmt.Errorf("the server is PostgreSQL %d, and %d is the oldest that will do", n/10000, oldestServer/10000)
	}
	if !strings.EqualFold(encoding, "UTF8") {
		return fmt.Errorf("the encoding of the database is %s, want UTF8: make it with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0", encoding)
	}
	return nil
}

// code returns the condition that the server told, or nothing.
func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// transient tells whether an error passes by itself: the connection is lost or could not be
// made, the server starts or stops, or another transaction was in the way.
func transient(err error) bool {
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return false
	}
	switch c := code(err); c {
	case "":
		// No word of the server's: what came between is the network or our own deadline.
		return errors.Is(err, context.DeadlineExceeded) || connectionLost(err)
	case serialization, deadlock, readOnly, tooManyConns, adminShutdown, crashShutdown, cannotConnectNow,
		idleTimeout, queryCanceled, lockNotAvailable:
		return true
	default:
		return strings.HasPrefix(c, "08")
	}
}

// connectionLost tells whether an error is of the connection and not of what was asked.
func connectionLost(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || pgconn.SafeToRetry(err) || pgconn.Timeout(err) ||
		errors.Is(err, pgconn.ErrConnClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed)
}

// A backoff is a growing pause with jitter.
type backoff struct{ next time.Duration }

func newBackoff() *backoff { return &backoff{10 * time.Millisecond} }

const longestPause = time.Second

// pause waits, and returns false if ctx ended or stop was closed before.
func (b *backoff) pause(ctx context.Context, stop <-chan struct{}) bool {
	d := b.next/2 + rand.N(b.next)
	b.next = min(2*b.next, longestPause)
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-stop:
	}
	return false
}

// A kind says whether something may be done twice.
type kind bool

const (
	once       kind = false
	idempotent kind = true
)

// tries is how often a single statement is tried.
const tries = 4

// run calls f with a connection, and returns its error with what was being done. What may be
// done twice is tried again when the connection is lost; anything is when the database has
// certainly done nothing.
func (s *Store) run(ctx context.Context, what string, k kind, f func(ctx context.Context, c *pgxpool.Conn) error) error {
	wait := newBackoff()
	for try := 1; ; try++ {
		if s.closed.Load() {
			return store.ErrClosed
		}
		err := s.attempt(ctx, f)
		if err == nil {
			return nil
		}
		again := transient(err) && (k == idempotent || undone(err))
		if !again || try == tries || !wait.pause(ctx, s.life.Done()) {
			return s.wrap(what, err)
		}
	}
}

// undone tells whether nothing of a transaction took effect.
func undone(err error) bool {
	switch code(err) {
	case serialization, deadlock, readOnly, tooManyConns, cannotConnectNow, lockNotAvailable, queryCanceled:
		return true
	}
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || pgconn.SafeToRetry(err)
}

func (s *Store) attempt(ctx context.Context, f func(ctx context.Context, c *pgxpool.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.opt.Timeout)
	defer cancel()
	c, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	err = f(ctx, c)
	if code(err) == readOnly {
		closeConn(c.Conn()) // the pool finds the new primary
	}
	return err
}

// tx is run with a transaction.
func (s *Store) tx(ctx context.Context, what string, k kind, f func(ctx context.Context, tx pgx.Tx) error) error {
	return s.run(ctx, what, k, func(ctx context.Context, c *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error { return f(ctx, tx) })
	})
}

// exec is run with one statement.
func (s *Store) exec(ctx context.Context, what string, k kind, sql string, args ...any) (rows int64, err error) {
	err = s.run(ctx, what, k, func(ctx context.Context, c *pgxpool.Conn) error {
		tag, err := c.Exec(ctx, sql, args...)
		rows = tag.RowsAffected()
		return err
	})
	return rows, err
}

// wrap turns an error of the database to one of package store where there is one.
func (s *Store) wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case s.closed.Load() && (connectionLost(err) || errors.Is(err, context.Canceled)):
		return store.ErrClosed
	case errors.Is(err, pgx.ErrNoRows):
		return store.ErrNotFound
	case ours(err):
		return err
	case code(err) == diskFull:
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return fmt.Errorf("postgres: %s: %w", what, err)
}

// ours tells whether an error was made by us: callers compare it.
func ours(err error) bool {
	for _, e := range []error{store.ErrNotFound, store.ErrConflict, store.ErrLeased, store.ErrFull, store.ErrCorrupt} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
