package peers

// postgres.go starts a database of its own for a test: a cluster in a fresh directory, with
// fsync, as promises are tested on it.

import (
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// postgresUser is the owner of the cluster's databases.
const postgresUser = "postgres"

// PostgresServer is a running PostgreSQL. Its methods may be used from several goroutines, but
// Stop and Start from one at a time.
type PostgresServer struct {
	// Addr is where it listens: 127.0.0.1 and a port. It stays the same after Stop and
	// Start.
	Addr string

	// Startup is the time that it took to make the cluster and to start.
	Startup time.Duration

	dir, bin string
	owner    account
	daemon   *daemon
	names    atomic.Int64
}

// Postgres starts a PostgreSQL for the time of the test. Whoever connects over loopback is let
// in. As root, it runs under the account of Debian's package, since it refuses to run as root.
func Postgres(t testing.TB) *PostgresServer {
	t.Helper()
	began := time.Now()
	s := &PostgresServer{bin: postgresBin(t), dir: openDir(t, "postgres"), owner: account{os.Getuid(), os.Getgid()}}
	if os.Geteuid() == 0 {
		s.owner = lookupAccount(t, "postgres", "")
	}
	makeDir(t, s.data(), 0o700, s.owner)
	s.initialize(t)
	t.Cleanup(func() { s.end(t) }) // after openDir's, so it runs before that
	s.Addr = highPort(t)
	s.Start(t)
	s.Startup = time.Since(began)
	t.Logf("postgres listens on %s after %v", s.Addr, s.Startup.Round(time.Millisecond))
	return s
}

// postgresBin is the directory of the newest version's programs: Debian keeps them off PATH.
func postgresBin(t testing.TB) string {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // the pattern is good
	if len(found) == 0 {
		return filepath.Dir(program(t, "postgresql", "initdb"))
	}
	slices.SortFunc(found, func(a, b string) int {
		return len(a) - len(b) + strings.Compare(a, b) // 9 before 15; equally long ones as text
	})
	return filepath.Dir(found[len(found)-1])
}

func (s *PostgresServer) data() string { return filepath.Join(s.dir, "data") }

// initialize makes the cluster. What initdb writes need not be synced, since nobody cuts the
// power between that and the start.
func (s *PostgresServer) initialize(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "initdb"), "-D", s.data(), "-U", postgresUser,
		"-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions")
	cmd.Env, cmd.Dir = plainEnv(), s.dir
	cmd.SysProcAttr = s.owner.process()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("peers: initdb: %v\n%s", err, out)
	}
}

// Start starts the server again after Stop.
func (s *PostgresServer) Start(t testing.TB) {
	t.Helper()
	host, port, _ := net.SplitHostPort(s.Addr) // ours
	out := filepath.Join(s.dir, "output")
	d, err := startDaemonAs(s.owner, "postgres", out, filepath.Join(s.bin, "postgres"), "-D", s.data(),
		"-h", host, "-p", port, "-k", "", "-c", "max_connections=80", "-c", "shared_buffers=64MB",
		"-c", "fsync=on", "-c", "max_wal_size=512MB")
	if err != nil {
		t.Fatal(err)
	}
	s.daemon = d
	if err := d.await(s.answers); err != nil {
		t.Fatalf("%v; log:\n%s", err, tail(serverLog(s.dir)))
	}
}

// Stop stops the server at once, as if it had crashed: connections are cut, and the next start
// reads the log.
func (s *PostgresServer) Stop(t testing.TB) {
	t.Helper()
	if err := s.daemon.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatalf("peers: stop postgres: %v", err)
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-s.daemon.done:
	case <-limit.C:
		t.Fatal("peers: postgres does not stop")
	}
}

func (s *PostgresServer) answers(deadline time.Time) error {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	c, err := pgx.Connect(ctx, s.URL(postgresUser))
	if err != nil {
		return err
	}
	return c.Close(ctx)
}

// URL is how to connect to a database. Over a proxy, exchange the address in it.
func (s *PostgresServer) URL(database string) string {
	u := url.URL{Scheme: "postgres", User: url.User(postgresUser), Host: s.Addr, Path: "/" + database, RawQuery: "sslmode=disable"}
	return u.String()
}

// Database makes an empty database and returns its name.
func (s *PostgresServer) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("test%d", s.names.Add(1))
	s.Exec(t, postgresUser, "CREATE DATABASE "+name)
	return name
}

// Exec runs a statement in a database.
func (s *PostgresServer) Exec(t testing.TB, database, sql string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	c, err := pgx.Connect(ctx, s.URL(database))
	if err == nil {
		_, err = c.Exec(ctx, sql)
		c.Close(ctx)
	}
	if err != nil {
		t.Fatalf("peers: postgres: %s: %v", sql, err)
	}
}

// Pid is the number of the main process, whose children are the others.
func (s *PostgresServer) Pid() int { return s.daemon.cmd.Process.Pid }

// end is the clean-up.
func (s *PostgresServer) end(t testing.TB) {
	if s.daemon != nil {
		_ = s.daemon.cmd.Process.Signal(syscall.SIGINT) // TERM would wait for clients
		s.daemon.stop()
	}
	if t.Failed() {
		t.Logf("end of postgres' log:\n%s", tail(serverLog(s.dir)))
	}
}
