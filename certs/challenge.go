package certs

// challenge.go proves to a CA that a name is ours: two small listeners that answer challenges
// and nothing else, and the solvers that tell them what to answer.
//
// certmagic could listen by itself. It takes a port that somebody else has for one where the
// answer will be given all the same, and then the order fails at the CA, for a reason that is
// hard to see there. So we listen ourselves, say which port is taken, and offer the CA only the
// challenges that we can answer.
//
// Of gateways that share a Storage one orders, and the CA may come to any of them. So what
// there is to answer is in the Storage as well, for as long as the challenge is open; who is
// asked for something that it did not order looks there.

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"golang.org/x/net/netutil"
)

const (
	// challengeConns bounds the open connections of each listener. A CA opens a handful for
	// one name, one for each place that it looks from.
	challengeConns = 128

	// challengeWait bounds one connection from start to end. CAs wait some 10 s.
	challengeWait = 10 * time.Second

	// maxChallengeHeader bounds the head of a request in bytes.
	maxChallengeHeader = 8 << 10

	// shareWait bounds what the Storage is asked for a challenge. It keeps an end waiting.
	shareWait = 3 * time.Second

	// lookups is how many ask the Storage at one time: strangers make us do it.
	lookups = 4

	challengePath = "/.well-known/acme-challenge/" // RFC 8555, Section 8.3
)

// A responder answers challenges.
type responder struct {
	http01, tlsalpn01 string // addresses, or Off
	log               *slog.Logger
	wait              time.Duration // for one connection
	shared            Storage       // with the challenges of others; nil: there are none
	looking           chan struct{} // has room for those who may look there

	mu      sync.Mutex
	answers map[string]string           // key authorisation by token; guarded by mu
	proofs  map[string]*tls.Certificate // of acme-tls/1, by name; guarded by mu
	open    map[string]io.Closer        // listeners by type of challenge; guarded by mu
	told    string                      // what tell logged last; guarded by mu
	conns   map[net.Conn]struct{}       // of TLS-ALPN-01; nil after close; guarded by mu

	serving sync.WaitGroup
}

func newResponder(a ACME, log *slog.Logger) *responder {
	return &responder{
		http01: a.HTTP01, tlsalpn01: a.TLSALPN01, log: log, wait: challengeWait, looking: make(chan struct{}, lookups),
		answers: make(map[string]string), proofs: make(map[string]*tls.Certificate),
		open: make(map[string]io.Closer), conns: make(map[net.Conn]struct{}),
	}
}

// solvers returns what can be answered. A listener that could not be had before is tried
// again first. The error tells why there is none at all.
func (r *responder) solvers() (map[string]acmez.Solver, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make(map[string]acmez.Solver)
	var errs []error
	for _, c := range []struct {
		kind, addr string
		serve      func(net.Listener) io.Closer
		solver     acmez.Solver
	}{
		{acme.ChallengeTypeHTTP01, r.http01, r.serveHTTP, httpSolver{r}},
		{acme.ChallengeTypeTLSALPN01, r.tlsalpn01, r.serveTLS, tlsSolver{r}},
	} {
		if c.addr == Off {
			continue
		}
		if r.open[c.kind] == nil {
			l, err := net.Listen("tcp", c.addr)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", c.kind, err))
				continue
			}
			r.open[c.kind] = c.serve(netutil.LimitListener(l, challengeConns))
			r.log.Info("listening for challenges", "challenge", c.kind, "addr", l.Addr().String())
		}
		list[c.kind] = c.solver
	}
	r.tell(list, errors.Join(errs...))
	if len(list) == 0 {
		return nil, &noChallengeError{errors.Join(errs...)}
	}
	return list, nil
}

// A noChallengeError says that no challenge can be answered.
type noChallengeError struct{ err error }

func (e *noChallengeError) Error() string {
	return "no listener for challenges: " + strings.ReplaceAll(e.err.Error(), "\n", "; ")
}

func (e *noChallengeError) Unwrap() error { return e.err }

// tell logs that one of two listeners is missing, once for each reason. That both are is an
// error of whoever needs one. The caller holds mu.
func (r *responder) tell(have map[string]acmez.Solver, err error) {
	text := ""
	if err != nil && len(have) > 0 {
		text = err.Error()
	}
	if text != "" && r.told != text {
		r.log.Warn("one listener for challenges cannot be had; the other challenge is used", "err", err,
			"do", "free the port or let us have it, give another address that it is forwarded to, or turn this challenge off")
	}
	r.told = text
}

// close ends the listeners and all connections, and waits for them.
func (r *responder) close() {
	r.mu.Lock()
	for kind, c := range r.open {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			r.log.Warn("listener for challenges did not close well", "challenge", kind, "err", err)
		}
	}
	for c := range r.conns {
		c.Close()
	}
	r.conns = nil
	clear(r.open)
	r.mu.Unlock()
	r.serving.Wait()
}

// serveHTTP answers HTTP-01. Closing the server closes its connections.
func (r *responder) serveHTTP(l net.Listener) io.Closer {
	server := &http.Server{
		Handler:           http.HandlerFunc(r.answer),
		ReadHeaderTimeout: r.wait, ReadTimeout: r.wait, WriteTimeout: r.wait, IdleTimeout: r.wait,
		MaxHeaderBytes: maxChallengeHeader,
		ErrorLog:       slog.NewLogLogger(r.log.Handler(), slog.LevelDebug),
		ConnState:      r.count,
	}
	server.SetKeepAlivesEnabled(false) // or a client could stay as long as it likes
	r.serving.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			r.log.Error("listener for challenges ended", "challenge", acme.ChallengeTypeHTTP01, "err", err)
		}
	})
	return server
}

// count lets close wait for the connections of HTTP-01. The first state of each is told by
// Serve, which is counted itself.
func (r *responder) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		r.serving.Add(1)
	case http.StateClosed, http.StateHijacked:
		r.serving.Done()
	}
}

// answer gives the key authorisation of a token that a CA was told to ask for. The token is a
// secret between the two of us, so the name in the request need not be looked at.
func (r *responder) answer(w http.ResponseWriter, req *http.Request) {
	token, ok := strings.CutPrefix(req.URL.Path, challengePath)
	r.mu.Lock()
	answer := r.answers[token]
	r.mu.Unlock()
	if ok && answer == "" && req.Method == http.MethodGet {
		answer = r.find(req.Context(), acme.ChallengeTypeHTTP01, token).KeyAuthorization
	}
	if !ok || answer == "" || req.Method != http.MethodGet {
		http.NotFound(w, req)
		return
	}
	r.log.Debug("challenge answered", "challenge", acme.ChallengeTypeHTTP01, "remote", req.RemoteAddr)
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = io.WriteString(w, answer) // a peer that has gone cannot be helped
}

// serveTLS answers TLS-ALPN-01: a handshake, and nothing after it (RFC 8737, Section 3).
func (r *responder) serveTLS(l net.Listener) io.Closer {
	config := &tls.Config{
		MinVersion:             tls.VersionTLS12, // RFC 8737, Section 4
		NextProtos:             []string{acmez.ACMETLS1Protocol},
		GetCertificate:         r.proof,
		SessionTicketsDisabled: true,
	}
	r.serving.Go(func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				r.log.Warn("listener for challenges", "challenge", acme.ChallengeTypeTLSALPN01, "err", err)
				time.Sleep(acceptPause)
				continue
			}
			r.serving.Go(func() { r.handshake(conn, config) })
		}
	})
	return l
}

// acceptPause keeps a listener from spinning when there are no file descriptors left.
const acceptPause = 50 * time.Millisecond

func (r *responder) handshake(conn net.Conn, config *tls.Config) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(r.wait)) // fails on a closed connection, as the handshake will
	if !r.enter(conn) {
		return
	}
	defer r.leave(conn)
	err := tls.Server(conn, config).Handshake()
	r.log.Debug("handshake for a challenge", "challenge", acme.ChallengeTypeTLSALPN01, "remote", conn.RemoteAddr().String(), "err", err)
}

// enter lets close find a connection, and reports whether there is still time for it.
func (r *responder) enter(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conns == nil {
		return false
	}
	r.conns[conn] = struct{}{}
	return true
}

func (r *responder) leave(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
}

var errNoProof = errors.New("certs: no challenge is open for this name")

// proof returns the certificate that proves a name, to whoever speaks acme-tls/1 alone.
func (r *responder) proof(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if len(hello.SupportedProtos) != 1 || hello.SupportedProtos[0] != acmez.ACMETLS1Protocol {
		return nil, errNoProof
	}
	name := strings.ToLower(hello.ServerName)
	r.mu.Lock()
	cert := r.proofs[name]
	r.mu.Unlock()
	if cert != nil {
		return cert, nil
	}
	if c := r.find(hello.Context(), acme.ChallengeTypeTLSALPN01, name); c.KeyAuthorization != "" {
		return acmez.TLSALPN01ChallengeCert(c)
	}
	return nil, errNoProof
}

// sharedKey is where a challenge is in the Storage. What it is asked for by comes from
// strangers, and need not be fit for a name.
func sharedKey(kind, asked string) string {
	sum := sha256.Sum256([]byte(asked))
	return path.Join("challenges", kind, hex.EncodeToString(sum[:]))
}

// find returns the challenge that another gateway has open, zero if there is none.
func (r *responder) find(ctx context.Context, kind, asked string) (c acme.Challenge) {
	if r.shared == nil || asked == "" {
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, shareWait)
	defer cancel()
	select {
	case r.looking <- struct{}{}:
		defer func() { <-r.looking }()
	case <-ctx.Done():
		return c
	}
	data, err := r.shared.Load(ctx, sharedKey(kind, asked))
	if err == nil {
		err = json.Unmarshal(data, &c)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.log.Warn("challenges of other gateways cannot be read", "challenge", kind, "err", err)
	}
	return c
}

// share lets others answer a challenge. We can even if that fails, and the CA may come here.
func (r *responder) share(ctx context.Context, c acme.Challenge, asked string) {
	if r.shared == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, shareWait)
	defer cancel()
	data, err := json.Marshal(c)
	if err == nil {
		err = r.shared.Store(ctx, sharedKey(c.Type, asked), data)
	}
	if err != nil {
		r.log.Warn("other gateways cannot answer a challenge", "challenge", c.Type, "name", c.Identifier.Value, "err", err)
	}
}

// unshare ends that, also when everything ends. What a crash leaves behind does no harm: nobody
// asks for it again, and it proves a key to be ours that is.
func (r *responder) unshare(ctx context.Context, c acme.Challenge, asked string) {
	if r.shared == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shareWait)
	defer cancel()
	if err := r.shared.Delete(ctx, sharedKey(c.Type, asked)); err != nil {
		r.log.Warn("a challenge that is over stays in the store", "challenge", c.Type, "name", c.Identifier.Value, "err", err)
	}
}

type httpSolver struct{ *responder }

// Present implements acmez.Solver.
func (s httpSolver) Present(ctx context.Context, c acme.Challenge) error {
	s.mu.Lock()
	s.answers[c.Token] = c.KeyAuthorization
	s.mu.Unlock()
	s.share(ctx, c, c.Token)
	return nil
}

// CleanUp implements acmez.Solver.
func (s httpSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	s.mu.Lock()
	delete(s.answers, c.Token)
	s.mu.Unlock()
	s.unshare(ctx, c, c.Token)
	return nil
}

type tlsSolver struct{ *responder }

// Present implements acmez.Solver.
func (s tlsSolver) Present(ctx context.Context, c acme.Challenge) error {
	cert, err := acmez.TLSALPN01ChallengeCert(c)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.proofs[c.Identifier.Value] = cert
	s.mu.Unlock()
	s.share(ctx, c, c.Identifier.Value)
	return nil
}

// CleanUp implements acmez.Solver.
func (s tlsSolver) CleanUp(ctx context.Context, c acme.Challenge) error {
	s.mu.Lock()
	delete(s.proofs, c.Identifier.Value)
	s.mu.Unlock()
	s.unshare(ctx, c, c.Identifier.Value)
	return nil
}
