package mtasts

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/netguard"
	"github.com/penstock/penstock/resolver"
)

const goodPolicy = "version: STSv1\nmode: enforce\nmx: mx.example.com\nmax_age: 604800\n"

func head(status, fields string) string { return "HTTP/1.1 " + status + "\r\n" + fields + "\r\n" }

func zipped(t *testing.T, text string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write([]byte(text))
	check(t, errors.Join(err, z.Close()))
	return b.String()
}

// drip sends octets one by one, with time between them.
func drip(text string, every time.Duration) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) {
		for i := range len(text) {
			if _, err := conn.Write([]byte{text[i]}); err != nil {
				return
			}
			time.Sleep(every) // in a bubble
		}
	}
}

// TestFetch has a policy host for each thing that may be wrong with one. None has a policy
// that is taken but the first ones, and none takes more than the minute.
func TestFetch(t *testing.T) {
	plain := "Content-Type: text/plain\r\n"
	for _, tt := range []struct {
		name  string
		host  func(t *testing.T, ca *authority) policyHost
		kind  Kind
		wants string // in the error
	}{
		{"as it should be", serves(answer(goodPolicy)), "", ""},
		{"until the connection ends", serves(say(head("200 OK", plain) + goodPolicy)), "", ""},
		{"in chunks", serves(say(head("200 OK", plain+"Transfer-Encoding: chunked\r\n") + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(goodPolicy), goodPolicy))), "", ""},
		{"early hints", serves(say(head("103 Early Hints", "Link: x\r\n") + head("200 OK", plain) + goodPolicy)), "", ""},
		{"wildcard", certified(nil, "*.example.com"), "", ""},
		{"a slow body", serves(drip(head("200 OK", plain)+goodPolicy, 200*time.Millisecond)), "", ""},

		{"redirect", serves(say(head("301 Moved", "Location: https://mta-sts.example.com/x\r\n"+plain) + goodPolicy)), FetchError, "301"},
		{"not found", serves(say(head("404 Not Found", plain) + goodPolicy)), FetchError, "404"},
		{"no content", serves(say(head("204 No Content", plain))), FetchError, "204"},
		{"partial content", serves(say(head("206 Partial Content", plain) + goodPolicy)), FetchError, "206"},
		{"another protocol", serves(say(head("101 Switching Protocols", "Upgrade: x\r\nConnection: upgrade\r\n"))), FetchError, "101"},
		{"nothing but hints", serves(say(strings.Repeat(head("103 Early Hints", "Link: x\r\n"), 100))), FetchError, "interim"},
		{"html", serves(say(head("200 OK", "Content-Type: text/html\r\n") + goodPolicy)), Invalid, "text/html"},
		{"no type", serves(say(head("200 OK", "") + goodPolicy)), Invalid, "text/plain"},
		{"not a policy", serves(answer("hello\n")), Invalid, "line 1"},
		{"gzip", serves(say(head("200 OK", plain+"Content-Encoding: gzip\r\n") + zipped(t, goodPolicy))), Invalid, "coding"},
		{"long, and says so", serves(say(head("200 OK", plain+"Content-Length: 65537\r\n"))), Invalid, "65536"},
		{"long", serves(endless(head("200 OK", plain), "key: value\n")), Invalid, "65536"},
		{"long chunks", serves(endless(head("200 OK", plain+"Transfer-Encoding: chunked\r\n"), "1\r\na\r\n")), Invalid, "65536"},
		{"long framing", serves(endless(head("200 OK", plain+"Transfer-Encoding: chunked\r\n"), "1;"+strings.Repeat("x", 1000)+"\r\na\r\n")), FetchError, ""},
		{"long header", serves(endless("HTTP/1.1 200 OK\r\n", "X: y\r\n")), FetchError, ""},
		{"cut short", serves(say(head("200 OK", plain+"Content-Length: 500\r\n") + goodPolicy)), FetchError, "EOF"},
		{"not HTTP", serves(say("220 smtp.example.com ESMTP\r\n")), FetchError, ""},
		{"silence", serves(func(conn net.Conn, _ *http.Request) { conn.Read(make([]byte, 1)) }), FetchError, ""},
		{"a body that never ends", serves(drip(head("200 OK", plain)+strings.Repeat(" ", 1000), time.Second)), FetchError, "timeout"},

		{"no TLS", withoutTLS(say("220 hello\r\n")), FetchError, "handshake"},
		{"silence before TLS", withoutTLS(func(conn net.Conn, _ *http.Request) {
			for {
				if _, err := conn.Read(make([]byte, 1)); err != nil {
					return
				}
			}
		}), FetchError, "handshake"},
		{"refused", func(*testing.T, *authority) policyHost { return policyHost{refuse: errRefused} }, FetchError, "refused"},
		{"name of another", certified(nil, "www.example.com"), WebPKI, "www.example.com"},
		{"wildcard of the wrong level", certified(nil, "*.com", "*.mta-sts.example.com"), WebPKI, ""},
		{"common name alone", certified(func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "mta-sts.example.com"} }), WebPKI, ""},
		{"expired", certified(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "mta-sts.example.com"), WebPKI, "expired"},
		{"not yet", certified(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, "mta-sts.example.com"), WebPKI, ""},
		{"unknown authority", func(t *testing.T, _ *authority) policyHost {
			return policyHost{cert: newAuthority(t).issue(t, nil, "mta-sts.example.com"), serve: answer(goodPolicy)}
		}, WebPKI, "unknown authority"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, nil, func(t *testing.T, r *rig) {
				h := tt.host(t, r.ca)
				r.record("1")
				r.host(&h)
				start := time.Now()
				got := r.lookup()
				if took := time.Since(start); took > time.Minute {
					t.Errorf("it took %v", took)
				}
				var e *Error
				switch {
				case tt.kind == "" && (got.Err != nil || got.Mode() != Enforce || got.ID != "1"):
					t.Errorf("got %+v", got)
				case tt.kind != "" && (got.Policy != nil || !errors.As(got.Err, &e) || e.Kind != tt.kind || !strings.Contains(e.Error(), tt.wants)):
					t.Errorf("got %+v, want %s with %q", got, tt.kind, tt.wants)
				}
			})
		})
	}
}

// serves is a host with a good certificate.
func serves(serve func(net.Conn, *http.Request)) func(*testing.T, *authority) policyHost {
	return func(t *testing.T, ca *authority) policyHost {
		return policyHost{cert: ca.issue(t, nil, "mta-sts.example.com"), serve: serve}
	}
}

func withoutTLS(serve func(net.Conn, *http.Request)) func(*testing.T, *authority) policyHost {
	return func(*testing.T, *authority) policyHost { return policyHost{serve: serve} }
}

// certified is a host with a good answer and another certificate.
func certified(change func(*x509.Certificate), names ...string) func(*testing.T, *authority) policyHost {
	return func(t *testing.T, ca *authority) policyHost {
		return policyHost{cert: ca.issue(t, change, names...), serve: answer(goodPolicy)}
	}
}

// endless sends something until nobody listens.
func endless(first, then string) func(net.Conn, *http.Request) {
	return func(conn net.Conn, _ *http.Request) {
		_, err := conn.Write([]byte(first))
		for block := []byte(strings.Repeat(then, 1+4096/len(then))); err == nil; {
			_, err = conn.Write(block)
		}
	}
}

// TestRequest: what the host is asked, and by which name.
func TestRequest(t *testing.T) {
	in(t, nil, func(t *testing.T, r *rig) {
		var got http.Request
		r.record("1")
		r.host(&policyHost{cert: r.ca.issue(t, nil, "mta-sts.example.com"), serve: func(conn net.Conn, req *http.Request) {
			got = *req
			answer(goodPolicy)(conn, req)
		}})
		r.cache.Lookup(context.Background(), "Example.COM.")
		r.conns.Wait()
		if got.Method != "GET" || got.Host != "mta-sts.example.com" || got.URL.String() != "/.well-known/mta-sts.txt" ||
			got.Header.Get("Accept-Encoding") != "" || got.Header.Get("Cookie") != "" || !got.Close {
			t.Errorf("request: got %+v", got)
		}
	})
}

// TestAddresses: a policy host is where its domain says, so its addresses are judged before
// they are connected to.
func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		zone     string
		families resolver.Families
		check    func(netip.Addr) error
		asked    string // in this order
		err      error
	}{
		{name: "loopback", zone: "mta-sts.example.com A 127.0.0.1\n", err: netguard.ErrRefused},
		{name: "embedded", zone: "mta-sts.example.com AAAA ::ffff:10.0.0.1\n", err: netguard.ErrRefused},
		{name: "metadata", zone: "mta-sts.example.com A 169.254.169.254\nmta-sts.example.com A " + hostAddr, asked: hostAddr},
		{name: "allowed", zone: "mta-sts.example.com A 10.0.0.1\n", check: func(netip.Addr) error { return nil }, asked: "10.0.0.1", err: errRefused},
		{name: "by turns", zone: "mta-sts.example.com A 8.8.8.1\nmta-sts.example.com A 8.8.8.2\nmta-sts.example.com A 8.8.8.3\n" +
			"mta-sts.example.com AAAA 2606:4700::1\nmta-sts.example.com AAAA 2606:4700::2", asked: "8.8.8.1 2606:4700::1 8.8.8.2 2606:4700::2", err: errRefused},
		{name: "one family", zone: "mta-sts.example.com A 8.8.8.1\nmta-sts.example.com AAAA 2606:4700::1", families: resolver.IPv6, asked: "2606:4700::1", err: errRefused},
		{name: "no address", zone: "mta-sts.example.com TXT x", err: resolver.ErrNotFound},
		{name: "no name", zone: "", err: resolver.ErrNotFound},
		{name: "unknown", zone: "mta-sts.example.com FAIL", err: resolver.ErrTemporary},
		{name: "alias", zone: "mta-sts.example.com CNAME sts.provider.example\nsts.provider.example A " + hostAddr, asked: hostAddr},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in(t, func(o *Options) { o.Families, o.Check = tt.families, tt.check }, func(t *testing.T, r *rig) {
				r.policy(Enforce, time.Hour)
				r.dns.Set(tt.zone + "\n_mta-sts.example.com TXT v=STSv1; id=1")
				got := r.lookup()
				if asked := strings.Join(r.connects(), " "); asked != tt.asked {
					t.Errorf("asked: got %q, want %q", asked, tt.asked)
				}
				if (got.Err == nil) != (tt.err == nil) || !errors.Is(got.Err, tt.err) {
					t.Errorf("got %v, want %v", got.Err, tt.err)
				}
			})
		})
	}
}
