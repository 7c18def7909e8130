package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/admin/client"
	"github.com/penstock/penstock/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		address string
		ok      bool
	}{
		{"127.0.0.1:8025", true},
		{":8025", true},
		{"[::1]:8025", true},
		{"mx1.example.net:8025", true},
		{"http://127.0.0.1:8025", true},
		{"https://admin.example.net/penstock/", true},
		{"unix:/run/penstock.sock", true},
		{"", false},
		{"unix:", false},
		{"127.0.0.1", false},
		{"127.0.0.1:", false},
		{"ftp://127.0.0.1", false},
		{"http://", false},
		{"http://user:pass@127.0.0.1", false}, // a secret on a command line
		{"http://127.0.0.1/?token=x", false},
	} {
		c, err := client.New(tt.address, "t", client.Options{})
		if (err == nil) != tt.ok {
			t.Errorf("%q: %v", tt.address, err)
		}
		if c != nil {
			c.Close()
		}
	}
	if _, err := client.New(":1", "a\r\nb", client.Options{}); err == nil || strings.Contains(err.Error(), "a\r") {
		t.Errorf("a token of two lines: %v", err)
	}
}

// TestStrangeAnswers: not all that listens at an address is a gateway.
func TestStrangeAnswers(t *testing.T) {
	elsewhere := 0
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
	defer other.Close()
	for _, tt := range []struct {
		name   string
		answer func(http.ResponseWriter)
		want   string
		code   api.Code
		status int
	}{
		{"a web page", func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") }, "not what the API says", "", 0},
		{"a web page in place of an error", func(w http.ResponseWriter) { w.WriteHeader(502); fmt.Fprint(w, "<html>") }, "502 Bad Gateway", "", 502},
		{"an error without a code", func(w http.ResponseWriter) { w.WriteHeader(500); fmt.Fprint(w, `{"error": {}}`) }, "500 Internal Server Error", "", 500},
		{"an error", func(w http.ResponseWriter) {
			w.WriteHeader(409)
			fmt.Fprint(w, `{"error": {"code": "conflict", "message": "m", "next": "n"}, "more": 1}`)
		}, "m; n", api.CodeConflict, 409},
		{"another place", func(w http.ResponseWriter) { w.Header().Set("Location", other.URL); w.WriteHeader(307) }, "307 Temporary Redirect", "", 307},
		{"too much", func(w http.ResponseWriter) {
			for range 17 << 10 {
				if _, err := w.Write(make([]byte, 1<<10)); err != nil {
					return
				}
			}
		}, "more than", "", 0},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { tt.answer(w) }))
		c, err := client.New(srv.URL, "t", client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Status(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, client.ErrUnreachable) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
		if e, ok := errors.AsType[*api.Error](err); ok != (tt.status != 0) || ok && (e.Code != tt.code || e.Status != tt.status) {
			t.Errorf("%s: %#v", tt.name, err)
		}
		c.Close()
		srv.Close()
	}
	if elsewhere > 0 {
		t.Error("the token was taken elsewhere")
	}
}

// TestUnreachable: nobody listens, or who listens does not answer.
func TestUnreachable(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, address := range []string{"unix:" + filepath.Join(t.TempDir(), "none.sock"), silent.Addr().String()} {
		c, err := client.New(address, "t", client.Options{Timeout: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Status(context.Background()); !errors.Is(err, client.ErrUnreachable) {
			t.Errorf("%s: %v", address, err)
		}
		c.Close()
	}
}
