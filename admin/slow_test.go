package admin

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/admin/api"
)

// slow_test.go: clients that take their time. The clock is the test's.

// pipes is a listener in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

// nothing is a gateway without anything.
type nothing struct{}

func (nothing) Status() api.Status                         { return api.Status{} }
func (nothing) Accounts() api.Accounts                     { return api.Accounts{} }
func (nothing) Ready() bool                                { return true }
func (nothing) List(context.Context) ([]api.Filter, error) { return nil, nil }
func (nothing) Push(context.Context, string, []byte, api.Condition) (api.Change, error) {
	return api.Change{}, nil
}
func (nothing) Rollback(context.Context, string, string, api.Condition) (api.Change, error) {
	return api.Change{}, nil
}

// TestSlowClients: who does not go on with what it began is answered or cut off in time.
func TestSlowClients(t *testing.T) {
	secret, token, err := NewToken("a", api.RoleUpload)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "tokens.txt")
	if err := os.WriteFile(file, []byte(token.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	push := "POST /v1/filters/a HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + secret + "\r\nContent-Length: 100\r\n\r\nhalf"
	for _, tt := range []struct {
		name, send, answer string
		after              time.Duration
	}{
		{"nothing", "", "", headerTimeout},
		{"half a header", "GET /livez HTTP/1.1\r\nHost: local", "", headerTimeout},
		{"idle after a request", "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", "HTTP/1.1 200 OK", idleTimeout},
		{"half an upload", push, "HTTP/1.1 400 Bad Request", uploadTimeout},
		{"half a body without a token", strings.Replace(push, secret, "wrong", 1), "HTTP/1.1 401 Unauthorized", quickTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, err := New(Options{Network: "unix", Address: "pipe", Tokens: file, Gateway: nothing{}, Filters: nothing{}})
				if err != nil {
					t.Fatal(err)
				}
				l := &pipes{make(chan net.Conn), make(chan struct{})}
				s.net = l
				served := make(chan error, 1)
				go func() { served <- s.Serve() }()
				c, begun := l.dial(), time.Now()
				if _, err := io.WriteString(c, tt.send); err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(c)
				if took := time.Since(begun); err != nil || took > tt.after || took < tt.after-time.Second {
					t.Errorf("closed after %v (%v), want %v", took, err, tt.after)
				}
				if !strings.HasPrefix(string(text), tt.answer) || tt.answer == "" && len(text) > 0 && !strings.Contains(string(text), "408") {
					t.Errorf("answered %q, want %q", text, tt.answer)
				}
				c.Close()
				if err := errors.Join(s.Shutdown(t.Context()), <-served); err != nil && !errors.Is(err, http.ErrServerClosed) {
					t.Error(err)
				}
			})
		})
	}
}
