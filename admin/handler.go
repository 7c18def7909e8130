package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/penstock/penstock/admin/api"
)

// handler.go: what is asked of each request, and the table of what there is.

// route is a row of the table.
type route struct {
	method, path string
	role         api.Role
	upload       bool // the body may be large, and the answer late
	serve        func(http.ResponseWriter, *http.Request) error
}

func (s *Server) routes() []route {
	routes := []route{
		{http.MethodGet, "/v1/status", api.RoleRead, false, s.status},
		{http.MethodGet, "/v1/accounts", api.RoleRead, false, s.accounts},
		{http.MethodGet, "/v1/filters", api.RoleRead, false, s.filters},
		{http.MethodPost, "/v1/filters/{name}", api.RoleUpload, true, s.push},
		{http.MethodPost, "/v1/filters/{name}/rollback", api.RoleUpload, true, s.rollback},
		{http.MethodGet, "/v1/queue", api.RoleRead, false, s.queued(s.queueList)},
		{http.MethodGet, "/v1/queue/counts", api.RoleRead, false, s.queued(s.queueCounts)},
		{http.MethodGet, "/v1/queue/{id}", api.RoleRead, false, s.queued(s.queueShow)},
		{http.MethodGet, "/v1/queue/{id}/why", api.RoleRead, false, s.queued(s.queueWhy)},
		{http.MethodPost, "/v1/queue/actions", api.RoleOperate, false, s.queued(s.queueAct)},
		{http.MethodGet, "/v1/tlsrpt", api.RoleRead, false, s.reported(s.reportList)},
		{http.MethodGet, "/v1/tlsrpt/{id}", api.RoleRead, false, s.reported(s.reportShow)},
	}
	if s.opts.Metrics != nil {
		routes = append(routes, route{http.MethodGet, "/metrics", api.RoleRead, false, s.metrics})
	}
	return routes
}

// handler returns the whole of the API. A path has one method, so far; another is 405.
func (s *Server) handler() http.Handler {
	inside := http.NewServeMux()
	for _, rt := range s.routes() {
		inside.Handle(rt.path, s.protected(rt))
	}
	inside.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.refuse(w, r, fail(api.CodeNotFound, "", "there is no such thing here"))
	})
	bare := http.NewServeMux()
	bare.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { say(w, true) })
	bare.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { say(w, s.opts.Gateway.Ready()) })
	bare.Handle("/", s.authenticated(inside))
	return s.outermost(bare)
}

// say is the bare status: a word, of which who has no token learns nothing else.
func say(w http.ResponseWriter, ok bool) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	word, code := "ok\n", http.StatusOK
	if !ok {
		word, code = "no\n", http.StatusServiceUnavailable
	}
	w.WriteHeader(code)
	_, _ = io.WriteString(w, word) // whoever is gone does not miss it
}

// outermost sets what every answer has, catches panics and asks for the Host.
func (s *Server) outermost(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				s.opts.Log.Error("admin: a request panicked", "path", r.URL.Path, "err", fmt.Sprint(p), "stack", string(debug.Stack()))
				panic(http.ErrAbortHandler) // what was answered so far is not to be trusted
			}
		}()
		if !ownHost(r, s.opts.Hosts) {
			s.refuse(w, r, fail(api.CodeWrongHost, "ask by an address of the gateway, or add the name to admin.hosts",
				"the Host header names none of this gateway's hosts"))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// tokenKey is where the context of a request has its Token.
type tokenKey struct{}

func tokenOf(ctx context.Context) Token {
	t, _ := ctx.Value(tokenKey{}).(Token)
	return t
}

// authenticated asks for the token. It comes before the question what there is: the names
// of things are answers too.
func (s *Server) authenticated(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secret, given := bearer(r)
		if given {
			if t, ok := s.keys.find(secret); ok {
				next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), tokenKey{}, t)))
				return
			}
		}
		s.stranger(w, r, given)
	})
}

// stranger answers who has no token. The log never has what was given for one: it may be a
// good token with a letter missing.
func (s *Server) stranger(w http.ResponseWriter, r *http.Request, given bool) {
	from := site(r.RemoteAddr)
	tooMany, first := s.fails.note(from)
	switch {
	case tooMany && first:
		s.opts.Log.Warn("admin: too many failed attempts; further ones are not logged", "ip", from)
	case !tooMany:
		s.opts.Log.Warn("admin: not let in", "ip", from, "path", cut(r.URL.Path, 200), "token", map[bool]string{true: "unknown", false: "none"}[given])
	}
	if tooMany {
		w.Header().Set("Retry-After", fmt.Sprint(int(failRefill/time.Second)))
		s.refuse(w, r, fail(api.CodeTooMany, "wait a while, and check the token", "too many failed attempts"))
		return
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="penstock"`) // RFC 6750, Section 3
	message := "a token is needed"
	if given {
		message = "the token is not known"
	}
	s.refuse(w, r, fail(api.CodeNoToken, "send Authorization: Bearer with a token that gateway token new made", "%s", message))
}

// protected asks for method and role, sets the deadlines and the limit of the body, and
// turns the handler's error into an answer.
func (s *Server) protected(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != rt.method && !(r.Method == http.MethodHead && rt.method == http.MethodGet) {
			w.Header().Set("Allow", rt.method)
			s.refuse(w, r, fail(api.CodeMethod, "", "%s takes %s", cut(r.URL.Path, 200), rt.method))
			return
		}
		t := tokenOf(r.Context())
		if !t.may(rt.role) {
			s.opts.Log.Warn("admin: role is lacking", "token", t.Name, "role", string(rt.role), "path", cut(r.URL.Path, 200))
			s.refuse(w, r, fail(api.CodeForbidden, "use a token with this role", "the token %s lacks the role %s", t.Name, rt.role))
			return
		}
		limit := int64(maxSmallBody)
		if rt.upload {
			limit = api.MaxUpload
			extend(w, uploadTimeout, uploadTimeout+queueTimeout+changeTimeout)
		}
		r.Body = http.MaxBytesReader(w, r.Body, limit)
		err := rt.serve(w, r)
		if err == nil {
			return
		}
		if e, ok := errors.AsType[*api.Error](err); ok && rt.method != http.MethodGet {
			s.opts.Log.Info("admin: change refused", "token", t.Name, "path", cut(r.URL.Path, 200), "code", string(e.Code), "err", e.Message)
		}
		s.refuse(w, r, err)
	})
}

// extend gives a request more time than others. A writer that has no deadlines is a test's.
func extend(w http.ResponseWriter, read, write time.Duration) {
	c, now := http.NewResponseController(w), time.Now()
	_ = c.SetReadDeadline(now.Add(read))
	_ = c.SetWriteDeadline(now.Add(write))
}

// refuse answers an error. What is not meant for the client goes to the log alone.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		s.opts.Log.Error("admin: request failed", "path", cut(r.URL.Path, 200), "err", err)
		e = fail(api.CodeInternal, "the log of the gateway has more", "the gateway could not do it")
	}
	if r.ContentLength != 0 {
		// The answer does not wait for what is left of the body.
		w.Header().Set("Connection", "close")
	}
	answer(w, statusOf(e.Code), api.Failure{Error: e})
}

// answer writes JSON. That the client is gone is none of our errors.
func answer(w http.ResponseWriter, status int, body any) {
	text, err := json.Marshal(body)
	if err != nil { // our types have nothing that JSON lacks
		panic(fmt.Sprintf("admin: %T as JSON: %v", body, err))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n'))
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request) error {
	s.opts.Metrics.ServeHTTP(w, r)
	return nil
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) error {
	answer(w, http.StatusOK, s.opts.Gateway.Status())
	return nil
}

func (s *Server) accounts(w http.ResponseWriter, _ *http.Request) error {
	answer(w, http.StatusOK, s.opts.Gateway.Accounts())
	return nil
}

func (s *Server) filters(w http.ResponseWriter, r *http.Request) error {
	list, err := s.opts.Filters.List(r.Context())
	if err != nil {
		return err
	}
	answer(w, http.StatusOK, api.Filters{Filters: append([]api.Filter{}, list...)})
	return nil
}

func (s *Server) push(w http.ResponseWriter, r *http.Request) error {
	name, cond, err := target(r)
	if err != nil {
		return err
	}
	release, err := s.queue(r.Context())
	if err != nil {
		return err
	}
	defer release()
	if r.ContentLength == 0 {
		return fail(api.CodeBadRequest, "send the module as the body", "the body is empty")
	}
	module, err := readBody(r)
	if err != nil {
		return err
	}
	change, err := s.opts.Filters.Push(r.Context(), name, module, cond)
	if err != nil {
		return err
	}
	s.opts.Log.Info("admin: filter pushed", "token", tokenOf(r.Context()).Name, "filter", name, "digest", change.Digest, "old", change.OldDigest, "chains", change.Chains)
	answer(w, http.StatusOK, change)
	return nil
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) error {
	name, cond, err := target(r)
	if err != nil {
		return err
	}
	release, err := s.queue(r.Context())
	if err != nil {
		return err
	}
	defer release()
	r.Body = http.MaxBytesReader(w, r.Body, maxSmallBody)
	body, err := readBody(r)
	if err != nil {
		return err
	}
	var rb api.Rollback
	if len(body) > 0 {
		if err := json.Unmarshal(body, &rb); err != nil {
			return fail(api.CodeBadRequest, `send nothing, or {"to": "sha256:..."}`, "the body is not a rollback in JSON")
		}
	}
	change, err := s.opts.Filters.Rollback(r.Context(), name, rb.To, cond)
	if err != nil {
		return err
	}
	s.opts.Log.Info("admin: filter rolled back", "token", tokenOf(r.Context()).Name, "filter", name, "digest", change.Digest, "old", change.OldDigest, "chains", change.Chains)
	answer(w, http.StatusOK, change)
	return nil
}

// queue waits for the change before this one: a module has up to 64 MiB, and many at once
// would be the memory of the gateway.
func (s *Server) queue(ctx context.Context) (release func(), err error) {
	timer := time.NewTimer(queueTimeout)
	defer timer.Stop()
	select {
	case s.uploads <- struct{}{}:
		return func() { <-s.uploads }, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil, fail(api.CodeUnavailable, "try again later", "another change is under way")
}

// target returns what a change is about and what it depends on.
func target(r *http.Request) (string, api.Condition, error) {
	name := r.PathValue("name")
	if !validName(name) {
		return "", api.Condition{}, fail(api.CodeBadRequest, "use up to 64 letters, digits, dots, hyphens and underscores", "that is no name of a filter")
	}
	var c api.Condition
	if match := r.Header.Get("If-Match"); match != "" {
		digest, ok := unquote(match)
		if !ok {
			return "", c, fail(api.CodeBadRequest, `write If-Match: "sha256:..."`, "If-Match has no digest")
		}
		c.Digest = digest
	}
	switch none := r.Header.Get("If-None-Match"); none {
	case "":
	case "*":
		c.Absent = true
	default:
		return "", c, fail(api.CodeBadRequest, "write If-None-Match: *", "If-None-Match is not *")
	}
	return name, c, nil
}

// unquote takes a digest out of an entity tag (RFC 9110, Section 8.8.3).
func unquote(tag string) (string, bool) {
	digest, ok := strings.CutPrefix(tag, `"`)
	digest, ok2 := strings.CutSuffix(digest, `"`)
	hexits, ok3 := strings.CutPrefix(digest, "sha256:")
	return digest, ok && ok2 && ok3 && len(hexits) == 64 && strings.Trim(hexits, "0123456789abcdef") == ""
}

// readBody reads what protected limits.
func readBody(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, fail(api.CodeTooLarge, "", "the body has more than %d octets", tooLarge.Limit)
	}
	if err != nil {
		return nil, fail(api.CodeBadRequest, "send it again", "the body did not arrive whole")
	}
	return body, nil
}
