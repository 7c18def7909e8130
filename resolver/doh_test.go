package resolver

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// doh_test.go: servers over HTTPS, and servers known by their key.

// web answers like a DoH server: with what the zone of the fake says.
type web struct {
	*fake
	status int                       // 200 if zero
	kind   string                    // that of DNS messages if empty
	header map[string]string         // further fields
	body   func(b []byte) []byte     // changes the body, nil does not
	before func(http.ResponseWriter) // nil does nothing
	seen   atomic.Pointer[http.Request]
}

func (w *web) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	w.seen.Store(req)
	b, err := io.ReadAll(req.Body)
	q := new(dns.Msg)
	if err != nil || q.Unpack(b) != nil || req.Method != http.MethodPost || req.Header.Get("Content-Type") != mediaType {
		rw.WriteHeader(http.StatusBadRequest)
		return
	}
	if w.before != nil {
		w.before(rw)
	}
	b, err = w.answer(q).Pack()
	if err != nil {
		rw.WriteHeader(http.StatusInternalServerError)
		return
	}
	if w.body != nil {
		b = w.body(b)
	}
	kind := mediaType
	if w.kind != "" {
		kind = w.kind
	}
	rw.Header().Set("Content-Type", kind)
	for k, v := range w.header {
		rw.Header().Set(k, v)
	}
	if w.status != 0 {
		rw.WriteHeader(w.status)
	}
	rw.Write(b)
}

// serveWeb starts the server and returns how it is asked.
func serveWeb(t *testing.T, w *web, http2 bool) Server {
	t.Helper()
	cert, pool := certificate(t, "dns.example")
	s := httptest.NewUnstartedServer(w)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.EnableHTTP2 = http2
	s.Config.ErrorLog = discardLog()
	s.StartTLS()
	t.Cleanup(s.Close)
	return Server{
		Network: "https", Address: s.Listener.Addr().String(), ServerName: "dns.example",
		CAs: pool, Trust: TrustYes, Path: "/q",
	}
}

func TestHTTPS(t *testing.T) {
	for _, two := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", two), func(t *testing.T) {
			w := &web{fake: &fake{zone: parseZone(t, "x.example. A 192.0.2.1")}}
			w.ad.Store(true)
			s := serveWeb(t, w, two)
			r := start(t, Options{Servers: []Server{s}})
			got, err := r.LookupAddrs(t.Context(), "x.example", IPv4)
			if err != nil || len(got.Addrs) != 1 || !got.Authentic {
				t.Fatalf("got %+v, %v", got, err)
			}
			req := w.seen.Load()
			if want := 1 + btoi(two); req.ProtoMajor != want || req.URL.Path != "/q" || !strings.HasPrefix(req.Host, "dns.example:") || req.Header.Get("User-Agent") != "" {
				t.Errorf("got %s %s at %s by %q", req.Proto, req.URL, req.Host, req.Header.Get("User-Agent"))
			}
			var all sync.WaitGroup
			for i := range 50 {
				all.Go(func() {
					if _, err := r.LookupMX(t.Context(), fmt.Sprintf("x%d.example", i)); !errors.Is(err, ErrNoName) {
						t.Errorf("got %v, want no such name", err)
					}
				})
			}
			all.Wait()
			r.Close()
			if _, err := r.LookupMX(t.Context(), "x.example"); !errors.Is(err, errClosed) {
				t.Errorf("after Close: got %v", err)
			}
		})
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestHTTPSFaults: whatever else the server sends is a failure, and soon.
func TestHTTPSFaults(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	for _, tt := range []struct {
		why  string
		web  *web
		want string // empty: it is taken
	}{
		{"a type with a parameter", &web{kind: mediaType + "; x=y"}, ""},
		{"not a status for an answer", &web{status: 404}, "status 404"},
		{"a redirect", &web{status: 302, header: map[string]string{"Location": "/elsewhere"}}, "status 302"},
		{"a page", &web{kind: "text/html"}, `type "text/html"`},
		{"no type", &web{kind: " "}, `type ""`},
		{"an endless body", &web{body: func([]byte) []byte { return make([]byte, 1<<20) }}, "too many"},
		{"nothing", &web{body: func([]byte) []byte { return nil }}, "not the reply"},
		{"another number", &web{body: func(b []byte) []byte { b[0] = 1; return b }}, "not the reply"},
		{"garbage", &web{body: func(b []byte) []byte { return append(b[:12], 0xff) }}, "unreadable"},
		{"slow", &web{before: func(http.ResponseWriter) {
			select {
			case <-release:
			case <-time.After(time.Minute):
			}
		}}, "in time"},
		{"gone", &web{before: func(http.ResponseWriter) { panic(http.ErrAbortHandler) }}, "EOF"},
	} {
		w := tt.web
		w.fake = &fake{zone: parseZone(t, "x.example. A 192.0.2.1")}
		s := serveWeb(t, w, false)
		r := start(t, Options{Servers: []Server{s}, Tries: 1, Timeout: 500 * time.Millisecond})
		_, err := r.LookupAddrs(t.Context(), "x.example", IPv4)
		switch {
		case tt.want == "" && err != nil:
			t.Errorf("%s: got %v", tt.why, err)
		case tt.want != "" && (!errors.Is(err, ErrTemporary) || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want ErrTemporary with %q", tt.why, err, tt.want)
		}
		r.Close()
	}
}

// TestHTTPSAge: what was in a cache on the way holds the shorter (RFC 8484, Section 5.1).
func TestHTTPSAge(t *testing.T) {
	for age, want := range map[string]time.Duration{"": 300, "100": 200, "1000": 0, "-1": 300, "99999999999999999999": 300, "soon": 300} {
		m := &dns.Msg{Answer: parseZone(t, "x.example. A 192.0.2.1")}
		grow(m, age)
		a, err := readAnswer(m, "x.example", TypeA)
		if err != nil || a.ttl != want*time.Second {
			t.Errorf("age %q: got %+v, %v; want %d s", age, a, err, want)
		}
	}
}

// TestPins: a key that is pinned is enough without a name, needed with one, and one that
// is not pinned is refused, over TLS as over HTTPS.
func TestPins(t *testing.T) {
	cert, pool := certificate(t, "dns.example")
	other, _ := certificate(t, "dns.example")
	ours, theirs := PinOf(leaf(t, cert)), PinOf(leaf(t, other))
	for _, tt := range []struct {
		why    string
		server Server
		want   string
	}{
		{"the key alone", Server{Pins: []Pin{ours}}, ""},
		{"the second key", Server{Pins: []Pin{theirs, ours}}, ""},
		{"another key", Server{Pins: []Pin{theirs}}, errPin.Error()},
		{"name and key", Server{Pins: []Pin{ours}, ServerName: "dns.example", CAs: pool}, ""},
		{"name, and another key", Server{Pins: []Pin{theirs}, ServerName: "dns.example", CAs: pool}, errPin.Error()},
		{"key, and another name", Server{Pins: []Pin{ours}, ServerName: "other.example", CAs: pool}, "other.example"},
		{"key, and nobody knows the authority", Server{Pins: []Pin{ours}, ServerName: "dns.example"}, "authority"},
	} {
		for _, network := range []string{"tls", "https"} {
			w := &web{fake: &fake{zone: parseZone(t, "x.example. A 192.0.2.1")}}
			w.ad.Store(true)
			srv := tt.server
			srv.Network, srv.Trust = network, TrustYes
			conf := &tls.Config{Certificates: []tls.Certificate{cert}}
			if network == "tls" {
				l := listenStream(t, network)
				srv.Address = l.Addr().String()
				serve(t, w.fake, tls.NewListener(l, conf))
			} else {
				s := httptest.NewUnstartedServer(w)
				s.TLS = conf
				s.Config.ErrorLog = discardLog()
				s.StartTLS()
				t.Cleanup(s.Close)
				srv.Address = s.Listener.Addr().String()
			}
			r := start(t, Options{Servers: []Server{srv}, Tries: 1})
			got, err := r.LookupAddrs(t.Context(), "x.example", IPv4)
			switch {
			case tt.want == "" && (err != nil || !got.Authentic):
				t.Errorf("%s over %s: got %+v, %v", tt.why, network, got, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%s over %s: got %v, want %q", tt.why, network, err, tt.want)
			}
			r.Close()
		}
	}
	if p, err := ParsePin(ours.String()); err != nil || p != ours {
		t.Errorf("a pin was written as %s and read as %v, %v", ours, p, err)
	}
}

func leaf(t *testing.T, cert tls.Certificate) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func discardLog() *log.Logger { return log.New(io.Discard, "", 0) }
