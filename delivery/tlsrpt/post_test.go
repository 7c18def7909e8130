package tlsrpt

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/penstock/penstock/resolver"
)

// TestPost: a web server gets the report as it is, and nothing that goes wrong counts as sent.
func TestPost(t *testing.T) {
	const d, domain = "2016-04-01", "company-y.example"
	compressed, err := companyX.report(d, domain, example()[domain]).compress()
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	mux := http.NewServeMux()
	mux.HandleFunc("POST /ok", func(w http.ResponseWriter, r *http.Request) {
		got, _ = io.ReadAll(r.Body)
		if r.Header.Get("Content-Type") != "application/tlsrpt+gzip" {
			t.Errorf("type %q", r.Header.Get("Content-Type"))
		}
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.Copy(w, strings.NewReader(strings.Repeat("thanks ", 1<<16)))
	})
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/ok", http.StatusTemporaryRedirect) })
	mux.HandleFunc("/busy", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	loopback := resolver.Addrs{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	dns := zone{addrs: map[string]resolver.Addrs{"example.com": loopback, "other.example": loopback}} // the server's certificate is for example.com
	allow := func(netip.Addr) error { return nil }

	for _, c := range []struct {
		what, url string
		o         Options
		want      string // part of the error
	}{
		{"ok", "https://example.com:" + u.Port() + "/ok", Options{RootCAs: roots, Check: allow}, ""},
		{"by address", srv.URL + "/ok", Options{RootCAs: roots, Check: allow}, ""},
		{"redirect", srv.URL + "/away", Options{RootCAs: roots, Check: allow}, "307"},
		{"busy", srv.URL + "/busy", Options{RootCAs: roots, Check: allow}, "503"},
		{"unknown authority", srv.URL + "/ok", Options{Check: allow}, "unknown authority"},
		{"wrong name", "https://other.example:" + u.Port() + "/ok", Options{RootCAs: roots, Check: allow}, "not other.example"},
		{"no such host", "https://none.example/", Options{RootCAs: roots, Check: allow}, "no such name"},
		{"not public", srv.URL + "/ok", Options{RootCAs: roots}, "not on the public Internet"},
		{"name of what is not public", "https://example.com:" + u.Port() + "/ok", Options{RootCAs: roots}, "not on the public Internet"},
	} {
		got = nil
		c.o.DNS = dns
		p := newPoster(c.o.withDefaults())
		err := p.post(t.Context(), c.url, compressed)
		p.close()
		switch {
		case c.want == "" && (err != nil || !bytes.Equal(got, compressed)):
			t.Errorf("%s: %v, got %d octets", c.what, err, len(got))
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}

	// A server that says nothing ends with the context.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithCancel(t.Context())
	p := newPoster(Options{Check: allow, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		defer cancel()
		return new(net.Dialer).DialContext(ctx, network, address)
	}}.withDefaults())
	if err := p.post(ctx, "https://"+ln.Addr().String()+"/", compressed); err == nil {
		t.Error("sent to a server that says nothing")
	}
	p.close()
}
