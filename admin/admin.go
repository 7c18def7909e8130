// Package admin is the HTTP server through which a running gateway is looked at and
// changed: by the commands of the program, by Prometheus, by whatever else has a token.
// Package [github.com/penstock/penstock/admin/api] has the words of it.
//
// # The ideas
//
// A request passes four questions, each with an answer of its own:
//
//	Host is one of ours?     421   a page in a browser may have its name point here
//	a token that is known?   401   at /livez and /readyz nobody is asked
//	is there such a thing?   404, 405
//	with the role for it?    403
//
// The token comes in the Authorization header alone. There are no cookies, so a page that
// makes a browser send something here sends no rights with it.
//
// What is shown and changed is behind [Gateway], [Filters], [Queue] and [Reports], interfaces in words of
// package api. This package knows no mail and no WebAssembly; handlers read, ask and write.
//
// # Goroutines and locks
//
// Each connection has one goroutine. Uploads run one at a time. The locks of the
// tokens and of the failed attempts are held for no longer than it takes to look.
package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/netutil"

	"github.com/penstock/penstock/admin/api"
)

// Gateway is what there is to look at.
type Gateway interface {
	// Status returns what runs. It is called by several goroutines at once, and does not
	// wait for anything.
	Status() api.Status
	// Accounts returns what filters do. Like Status.
	Accounts() api.Accounts
	// Ready tells whether mail is taken: every listener is open, and no shutdown has
	// begun. Like Status.
	Ready() bool
}

// Filters is what there is to change. Errors that are an *api.Error are answered as they
// are; any other becomes CodeInternal, and only the log has its text. The name has been
// checked: it can be that of a file. Safe for concurrent use.
type Filters interface {
	// List returns all modules, by name.
	List(ctx context.Context) ([]api.Filter, error)
	// Push takes the module, of at most api.MaxUpload octets, over in place of what has
	// the name, or changes nothing. When it returns, the next session runs it.
	Push(ctx context.Context, name string, module []byte, c api.Condition) (api.Change, error)
	// Rollback takes over a version that was kept: the one whose digest is to, or the
	// newest if to is empty.
	Rollback(ctx context.Context, name, to string, c api.Condition) (api.Change, error)
}

// Queue is the messages that wait. Errors are as those of Filters. IDs, filters and texts come
// as the client wrote them. Safe for concurrent use.
type Queue interface {
	// List calls yield with messages that match, in order of ID from behind after on, until
	// it returns false. They need not have their attempts.
	List(ctx context.Context, f api.QueueFilter, after string, yield func(api.QueueMessage) bool) error
	// Counts counts what waits.
	Counts(ctx context.Context) (api.QueueCounts, error)
	// Show returns a message.
	Show(ctx context.Context, id string) (api.QueueMessage, error)
	// Why says why a message waits.
	Why(ctx context.Context, id string) (api.QueueExplanation, error)
	// Act does what a says, to at most a.Limit messages; that is not zero. Verb and number of
	// IDs have been checked, and that there is an ID or a filter.
	Act(ctx context.Context, a api.QueueAction) (api.QueueDone, error)
}

// Options are the settings of a Server. The zero value of each field means its default.
type Options struct {
	// Network is "tcp" or "unix", Address "host:port" or a path. Required.
	Network, Address string
	// Hosts are the names that a Host header may have, besides the address that is
	// listened on, and localhost for who comes over the loopback or a socket. Default
	// localhost.
	Hosts []string
	// Tokens is the path of the token file. Required. It need not be there yet.
	Tokens string
	// Gateway and Filters are what is shown and changed. Required.
	Gateway Gateway
	Filters Filters
	// Queue is what waits. Nil is no store: requests are told so.
	Queue Queue
	// Reports are those about TLS. Nil is no store: requests are told so.
	Reports Reports
	// Metrics answers GET /metrics. Nil answers 404.
	Metrics http.Handler
	// Log. Nil discards.
	Log *slog.Logger
}

// Validate returns every problem, joined.
func (o Options) Validate() error {
	var errs []error
	if o.Network != "tcp" && o.Network != "unix" {
		errs = append(errs, fmt.Errorf("network %q is neither tcp nor unix", o.Network))
	}
	if o.Address == "" {
		errs = append(errs, errors.New("no address"))
	}
	if o.Tokens == "" {
		errs = append(errs, errors.New("no token file"))
	}
	if o.Gateway == nil || o.Filters == nil {
		errs = append(errs, errors.New("nothing to show"))
	}
	for _, h := range o.Hosts {
		if _, err := netip.ParseAddr(h); err != nil && (h == "" || hostOf(h) != h) {
			errs = append(errs, fmt.Errorf("host %q: want a name or an address, without a port", h))
		}
	}
	return errors.Join(errs...)
}

// The limits. There is no option for them: whoever needs more needs another door.
const (
	maxConns      = 64
	maxHeader     = 16 << 10
	maxSmallBody  = 64 << 10
	headerTimeout = 10 * time.Second
	idleTimeout   = time.Minute
	quickTimeout  = 30 * time.Second // for a request without an upload and its answer
	uploadTimeout = 2 * time.Minute  // for the body of an upload
	changeTimeout = 5 * time.Minute  // for compiling it, and its answer
	queueTimeout  = 30 * time.Second // for the upload before it
	listTimeout   = 2 * time.Minute  // for a list of messages, or an action on them
)

// Server is the admin API's server. It is safe for concurrent use.
type Server struct {
	opts    Options
	keys    *keyring
	fails   *failures
	http    *http.Server
	net     net.Listener
	stop    context.CancelFunc // ends the requests that run
	uploads chan struct{}      // has room for one
}

// New returns a Server. It reads the tokens, and does not listen yet.
func New(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("admin: %w", err)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Hosts) == 0 {
		o.Hosts = []string{"localhost"}
	}
	s := &Server{
		opts:    o,
		keys:    &keyring{path: o.Tokens, log: o.Log, now: time.Now},
		fails:   &failures{now: time.Now, of: make(map[string]*failed)},
		uploads: make(chan struct{}, 1),
	}
	if err := s.keys.load(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.http = &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: headerTimeout, ReadTimeout: quickTimeout, WriteTimeout: quickTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
		BaseContext:    func(net.Listener) context.Context { return ctx },
	}
	return s, nil
}

// Listen opens the listener. It is called once, before Serve and Shutdown.
func (s *Server) Listen() error {
	if s.opts.Network == "unix" {
		removeStale(s.opts.Address)
	}
	l, err := net.Listen(s.opts.Network, s.opts.Address)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	if s.opts.Network == "unix" && s.opts.Address[0] != '@' {
		// Tokens decide who may do something; the socket need not be open to all for that.
		if err := os.Chmod(s.opts.Address, 0o660); err != nil {
			return errors.Join(fmt.Errorf("admin: %w", err), l.Close())
		}
	}
	s.net = l
	return nil
}

// removeStale removes a socket that nobody listens to any more.
func removeStale(path string) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		c.Close()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		os.Remove(path)
	}
}

// Addr returns the address that is listened on, nil before Listen.
func (s *Server) Addr() net.Addr {
	if s.net == nil {
		return nil
	}
	return s.net.Addr()
}

// Serve answers until Shutdown, and returns nil then. Listen must have been called.
func (s *Server) Serve() error {
	if s.net == nil {
		return errors.New("admin: does not listen")
	}
	s.opts.Log.Info("listening", "listener", "admin API", "addr", s.net.Addr().String())
	if err := s.http.Serve(netutil.LimitListener(s.net, maxConns)); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin: %w", err)
	}
	return nil
}

// Shutdown stops listening, ends the contexts of the requests that run, waits for their
// answers, and cuts off what is left when ctx ends, whose error it returns then. It may be
// called again, and ends a Server that never served.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop()
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	if s.net != nil {
		if closeErr := s.net.Close(); closeErr != nil && !errors.Is(closeErr, net.ErrClosed) {
			err = errors.Join(err, closeErr)
		}
	}
	return err
}

// Reload reads the tokens anew. With an error the old ones are kept. A file that changes
// is read again without it.
func (s *Server) Reload() error { return s.keys.load() }

// fail makes an error of the API.
func fail(code api.Code, next, format string, args ...any) *api.Error {
	return &api.Error{Code: code, Message: fmt.Sprintf(format, args...), Next: next}
}

// statusOf returns the status that goes with a code.
func statusOf(c api.Code) int {
	switch c {
	case api.CodeBadRequest:
		return http.StatusBadRequest
	case api.CodeNoToken:
		return http.StatusUnauthorized
	case api.CodeForbidden:
		return http.StatusForbidden
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeMethod:
		return http.StatusMethodNotAllowed
	case api.CodeConflict:
		return http.StatusConflict
	case api.CodeChanged:
		return http.StatusPreconditionFailed
	case api.CodeTooLarge:
		return http.StatusRequestEntityTooLarge
	case api.CodeWrongHost:
		return http.StatusMisdirectedRequest
	case api.CodeInvalidModule:
		return http.StatusUnprocessableEntity
	case api.CodeTooMany:
		return http.StatusTooManyRequests
	case api.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
