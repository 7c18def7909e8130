package errand

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/quotedprintable"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/resolver"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// zone is a DNS server on the loopback that answers from records in zone-file form, and the
// resolver that asks it.
func zone(t *testing.T, records ...string) *resolver.Resolver {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan struct{})
	srv := &dns.Server{PacketConn: pc, NotifyStartedFunc: func() { close(started) }, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.AuthenticatedData = true
		exists := false
		for _, r := range records {
			rr, err := dns.NewRR(r)
			if err != nil {
				panic(err)
			}
			if !strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
				continue
			}
			exists = true
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})}
	ended := make(chan error, 1)
	go func() { ended <- srv.ActivateAndServe() }()
	<-started
	r, err := resolver.New(resolver.Options{Servers: []resolver.Server{{Address: pc.LocalAddr().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		if err := errors.Join(srv.Shutdown(), <-ended); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TestNames asks a real server for each type.
func TestNames(t *testing.T) {
	r := New(Options{Grants: guest.Grants{DNS: &guest.DNSGrant{}}, Names: zone(t,
		"a.test. 60 IN A 192.0.2.1", "a.test. 60 IN AAAA 2001:db8::1", `a.test. 60 IN TXT "v=" "1"`, "a.test. 60 IN MX 10 mx.a.test.",
		"a.test. 60 IN NS ns.a.test.", "c.test. 60 IN CNAME a.test.", "_x._tcp.a.test. 60 IN SRV 1 2 3 h.a.test.", "1.2.0.192.in-addr.arpa. 60 IN PTR a.test.")})
	defer r.Close()
	for q, want := range map[string]string{
		"1 a.test": "192.0.2.1", "28 a.test": "2001:db8::1", "16 A.test.": "v=1", "15 a.test": "mx.a.test 10", "2 a.test": "ns.a.test", "5 c.test": "a.test",
		"33 _x._tcp.a.test": "h.a.test 1 2 3", "12 1.2.0.192.in-addr.arpa": "a.test", "12 192.0.2.1": "a.test",
		"16 none.test": "not found", "16 a..test": "bad", "13 a.test": "bad",
	} {
		var typ uint16
		var name string
		if _, err := fmt.Sscan(q, &typ, &name); err != nil {
			t.Fatal(err)
		}
		a, err := r.Services().DNS.LookUp(t.Context(), typ, name)
		got := ""
		switch {
		case errors.Is(err, guest.ErrNotFound):
			got = "not found"
		case errors.Is(err, guest.ErrBad):
			got = "bad"
		case err != nil || !a.Secure || a.TTL <= 0 || a.TTL > time.Minute || len(a.Records) != 1:
			got = fmt.Sprint(a, err)
		default:
			rec := a.Records[0]
			got = rec.Text + rec.Host
			if rec.Addr.IsValid() {
				got = rec.Addr.String()
			}
			for _, n := range []uint16{rec.Priority, rec.Weight, rec.Port} {
				if n != 0 {
					got += fmt.Sprint(" ", n)
				}
			}
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", q, got, want)
		}
	}
}

// endless is a resolver that goes on asking for ever, and how many questions it asks.
type endless struct {
	resolver.DNS
	asks atomic.Int32
}

func (e *endless) wait(ctx context.Context) error {
	e.asks.Add(1)
	defer e.asks.Add(-1)
	<-ctx.Done()
	return ctx.Err()
}

func (e *endless) Lookup(ctx context.Context, _ string, _ resolver.Type) (resolver.Answer, error) {
	return resolver.Answer{}, e.wait(ctx)
}

func (e *endless) LookupAddrs(ctx context.Context, _ string, _ resolver.Families) (resolver.Addrs, error) {
	return resolver.Addrs{}, e.wait(ctx)
}

// TestSlowNames: a filter that does not wait for what it began does not take all there is of
// a resolver that others use too.
func TestSlowNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &endless{}
		r := New(Options{Grants: guest.Grants{DNS: &guest.DNSGrant{}, HTTP: &guest.HTTPGrant{}}, Names: dns})
		for i := range 2 * maxLookUps {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			name := fmt.Sprint(i, ".test")
			_, err := r.Services().DNS.LookUp(ctx, 16, name)
			if i%2 == 0 {
				_, err = r.Services().HTTP.Do(ctx, guest.HTTPRequest{Method: "GET", URL: "http://" + name})
			}
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("look-up %d: %v", i, err)
			}
			cancel()
		}
		if n := dns.asks.Load(); n != maxLookUps {
			t.Errorf("%d questions are under way, want %d", n, maxLookUps)
		}
		r.Close()
		if n := dns.asks.Load(); n != 0 {
			t.Errorf("%d questions are under way after Close", n)
		}
	})
}

// loopback is what a test grants, and no operator should.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}

// TestWeb talks to a real server.
func TestWeb(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, _ = z.Write(make([]byte, 1<<20))
	_ = z.Close()
	release := make(chan struct{})
	redirected := atomic.Bool{}
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Set-Cookie", "a=b")
		fmt.Fprintf(w, "%s %s ua=%q ae=%q x=%q cookie=%q %s", r.Method, r.Host, r.Header["User-Agent"], r.Header["Accept-Encoding"], r.Header["X"], r.Header["Cookie"], body)
	})
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/target", http.StatusFound) })
	mux.HandleFunc("/target", func(http.ResponseWriter, *http.Request) { redirected.Store(true) })
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1001")
		_, _ = w.Write(make([]byte, 1001))
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		for range 1000 {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/bomb", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(bomb.Bytes()[:900])
	})
	mux.HandleFunc("/fields", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X", strings.Repeat("y", maxResponseHeader+1))
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); <-release })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	defer close(release)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	u, _ := url.Parse(srv.URL)
	names := zone(t, "web.test. 60 IN A 127.0.0.1", "both.test. 60 IN A 127.0.0.9", "both.test. 60 IN A 127.0.0.1")
	r := New(Options{Grants: guest.Grants{HTTP: &guest.HTTPGrant{Private: loopback, MaxResponse: 1000}}, Names: names})
	defer r.Close()
	do := func(r *Runner, method, host, path, body string, fields ...guest.HTTPField) (guest.HTTPResponse, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if path == "/slow" {
			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
		}
		return r.Services().HTTP.Do(ctx, guest.HTTPRequest{Method: method, URL: "http://" + host + ":" + u.Port() + path, Body: []byte(body), Header: fields})
	}
	for range 2 { // a cookie of the first is not in the second
		got, err := do(r, "POST", "web.test", "/echo", "hello", guest.HTTPField{Name: "x", Value: "1"}, guest.HTTPField{Name: "X", Value: "2"})
		want := fmt.Sprintf(`POST web.test:%s ua=["Penstock"] ae=[] x=["1" "2"] cookie=[] hello`, u.Port())
		if err != nil || got.Status != 200 || string(got.Body) != want {
			t.Errorf("got %d %q, %v, want %q", got.Status, got.Body, err, want)
		}
	}
	if got, err := do(r, "GET", "web.test", "/redirect", ""); err != nil || got.Status != 302 || redirected.Load() {
		t.Errorf("redirect: got %d, %v, followed %v", got.Status, err, redirected.Load())
	}
	if got, err := do(r, "GET", "web.test", "/bomb", ""); err != nil || !bytes.Equal(got.Body, bomb.Bytes()[:900]) {
		t.Errorf("what is compressed stays so: got %d octets, %v", len(got.Body), err)
	}
	for path, want := range map[string]error{"/large": guest.ErrFull, "/endless": guest.ErrFull, "/slow": context.DeadlineExceeded} {
		if got, err := do(r, "GET", "web.test", path, ""); !errors.Is(err, want) {
			t.Errorf("%s: got %d octets, %v, want %v", path, len(got.Body), err, want)
		}
	}
	if _, err := do(r, "GET", "web.test", "/fields", ""); err == nil {
		t.Error("a header above its limit: got no error")
	}
	if got, err := do(r, "GET", "both.test", "/target", ""); err != nil || got.Status != 200 {
		t.Errorf("the second address of a host: got %d, %v", got.Status, err)
	}
	if _, err := do(r, "GET", "none.test", "/target", ""); !errors.Is(err, guest.ErrNotFound) {
		t.Errorf("no such host: got %v", err)
	}
	// Without the grant neither the address nor a name that leads there is connected to.
	strict := New(Options{Grants: guest.Grants{HTTP: &guest.HTTPGrant{}}, Names: names})
	defer strict.Close()
	for _, host := range []string{"web.test", "127.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0", "169.254.169.254", "[64:ff9b::7f00:1]"} {
		if _, err := do(strict, "GET", host, "/target", ""); !errors.Is(err, guest.ErrRefused) {
			t.Errorf("%s without a grant: got %v, want ErrRefused", host, err)
		}
	}
}

// raw is a server that reads a request's header, or what else there is up to an empty line,
// and answers. It tells whether the client hangs up within 10 s.
func raw(t *testing.T, answer string) (addr string, gone <-chan bool) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	ended := make(chan bool, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if answer != "" {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(c, answer)
		}
		_, err = io.Copy(io.Discard, c)
		ended <- !errors.Is(err, os.ErrDeadlineExceeded)
	}()
	return l.Addr().String(), ended
}

// A server that holds the line gains nothing by it: neither one that claims to speak
// another protocol, from which reading would go on for ever, nor one that does not shake
// hands, to which the transport connects beyond the request that wanted it.
func TestWebHeld(t *testing.T) {
	r := New(Options{Names: local{}, Grants: guest.Grants{HTTP: &guest.HTTPGrant{Private: loopback, Timeout: 100 * time.Millisecond}}})
	defer r.Close()
	for name, tt := range map[string]struct{ scheme, answer string }{
		"switches":     {"http://", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"},
		"says nothing": {"https://", ""},
	} {
		addr, gone := raw(t, tt.answer)
		_, port, _ := net.SplitHostPort(addr)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		done := make(chan error, 1)
		go func() {
			_, err := r.Services().HTTP.Do(ctx, guest.HTTPRequest{Method: "GET", URL: tt.scheme + "held.test:" + port})
			done <- err
		}()
		select {
		case err := <-done:
			if err == nil {
				t.Errorf("%s: got no error", name)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the request does not end", name)
		}
		if !<-gone {
			t.Errorf("%s: the connection stays", name)
		}
		cancel()
	}
}

// local is a name that leads to the loopback.
type local struct{ resolver.DNS }

func (local) LookupAddrs(context.Context, string, resolver.Families) (resolver.Addrs, error) {
	return resolver.Addrs{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, nil
}

// rebinding is a name that leads to another address each time it is asked for.
type rebinding struct {
	resolver.DNS
	asked atomic.Int32
}

func (r *rebinding) LookupAddrs(context.Context, string, resolver.Families) (resolver.Addrs, error) {
	if r.asked.Add(1) == 1 {
		return resolver.Addrs{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.2")}}, nil // granted
	}
	return resolver.Addrs{Addrs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, nil
}

// A name that led to a good address when it was first asked for gains nothing by it.
func TestRebinding(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the server was reached") }))
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	r := New(Options{Grants: guest.Grants{HTTP: &guest.HTTPGrant{Private: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}}}, Names: &rebinding{}})
	defer r.Close()
	for i := range 3 {
		_, err := r.Services().HTTP.Do(t.Context(), guest.HTTPRequest{Method: "GET", URL: "http://rebind.test:" + u.Port() + "/"})
		if err == nil || i > 0 && !errors.Is(err, guest.ErrRefused) {
			t.Errorf("request %d: got %v", i, err)
		}
	}
}

// TestValues: in memory and in a store, values are a filter's own, bounded whoever races, and
// numbers do not lose a count.
func TestValues(t *testing.T) {
	disk, err := embedded.Open(t.TempDir(), embedded.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for name, in := range map[string]Values{"memory": new(Memory), "store": disk.KV()} {
		const quota = 20_000
		kv := New(Options{Name: "a", Values: in, Grants: guest.Grants{KV: &guest.KVGrant{Quota: quota}}}).Services().KV
		other := New(Options{Name: "b", Values: in, Grants: guest.Grants{KV: &guest.KVGrant{}}}).Services().KV
		ctx := t.Context()
		if err := kv.Set(ctx, "k", []byte("v"), 0); err != nil {
			t.Fatal(name, err)
		}
		if _, err := other.Get(ctx, "k"); !errors.Is(err, guest.ErrNotFound) {
			t.Errorf("%s: another filter's value: %v", name, err)
		}
		if _, err := kv.Add(ctx, "k", 1, 0); !errors.Is(err, guest.ErrBad) {
			t.Errorf("%s: add to a text: %v", name, err)
		}
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for j := range 20 {
					_ = kv.Set(ctx, fmt.Sprint("v", i, " ", j), make([]byte, 500), 0)
					if _, err := other.Add(ctx, "n", 1, 0); err != nil {
						t.Error(name, err)
					}
				}
				if ok, err := other.Swap(ctx, "lock", nil, []byte("x"), 0); ok && err == nil {
					won.Add(1)
				}
			})
		}
		wg.Wait()
		used := 0
		for i := range 8 {
			for j := range 20 {
				key := fmt.Sprint("v", i, " ", j)
				if v, err := kv.Get(ctx, key); err == nil {
					used += len(key) + len(v)
				}
			}
		}
		if n, err := other.Get(ctx, "n"); string(n) != "160" || err != nil || won.Load() != 1 || used > quota || used < quota/2 {
			t.Errorf("%s: number %s, %v; lock had %d times; %d octets of %d", name, n, err, won.Load(), used, quota)
		}
		if err := kv.Set(ctx, "more", make([]byte, 5000), 0); !errors.Is(err, guest.ErrFull) {
			t.Errorf("%s: above the quota: %v", name, err)
		}
	}
}

// What ran out is gone, and makes room.
func TestMemoryExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kv := New(Options{Name: "a", Values: new(Memory), Grants: guest.Grants{KV: &guest.KVGrant{Quota: 1000}}}).Services().KV
		for range 3 {
			for i := range 4 {
				if err := kv.Set(t.Context(), fmt.Sprint(i, time.Now()), make([]byte, 50), time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			if n, err := kv.Add(t.Context(), "n", 1, time.Minute); n != 1 || err != nil {
				t.Errorf("a number that begins again: %d, %v", n, err)
			}
			<-time.After(time.Minute)
		}
		if _, err := kv.Get(t.Context(), "n"); !errors.Is(err, guest.ErrNotFound) {
			t.Errorf("after its time: %v", err)
		}
	})
}

// outbox is a Mailer that keeps what it gets.
type outbox struct{ sent []string }

func (o *outbox) Mail(_ context.Context, _ string, to smtp.Path, content []byte) error {
	if to.Domain.String() == "elsewhere.test" {
		return guest.ErrNotFound
	}
	o.sent = append(o.sent, to.String()+"\n"+string(content))
	return nil
}

// TestPost reads what was written as a recipient's program does.
func TestPost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		box := &outbox{}
		p := New(Options{Name: "guard", Hostname: "mx.test", Mail: box, Grants: guest.Grants{DSN: &guest.DSNGrant{Count: 2, Per: time.Minute}}}).Services().DSN
		text := "Grüße\n.\nFrom here\r\nlast"
		if err := p.Send(t.Context(), guest.Notification{To: "a@b.test", Subject: "Größe", Text: text}); err != nil {
			t.Fatal(err)
		}
		to, raw, _ := strings.Cut(box.sent[0], "\n")
		h, rest := message.Parse([]byte(raw))
		body, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(rest)))
		if err != nil || to != "a@b.test" || string(body) != "Grüße\r\n.\r\nFrom here\r\nlast\r\n" {
			t.Errorf("to %s: %q, %v", to, body, err)
		}
		for name, want := range map[string]string{"To": "<a@b.test>", "Auto-Submitted": "auto-generated", "Subject": "=?utf-8?q?Gr=C3=B6=C3=9Fe?=", "From": "Penstock filter guard <postmaster@mx.test>"} {
			if got := h.Get(name); got != want {
				t.Errorf("%s: got %q, want %q", name, got, want)
			}
		}
		for _, bad := range []guest.Notification{{To: "a"}, {To: ""}, {To: "a@b.test\r\nRCPT TO:<c@d.test>"}, {To: "ü@b.test"}, {To: "a@b.test", Subject: "a\r\nBcc: x@y.test"}} {
			if err := p.Send(t.Context(), bad); !errors.Is(err, guest.ErrBad) {
				t.Errorf("%+v: got %v", bad, err)
			}
		}
		// Two in a minute: the second is for somebody else, and counts.
		for i, want := range []error{guest.ErrNotFound, guest.ErrFull} {
			if err := p.Send(t.Context(), guest.Notification{To: "a@elsewhere.test"}); !errors.Is(err, want) {
				t.Errorf("%d: got %v, want %v", i, err, want)
			}
		}
		<-time.After(time.Minute)
		if err := p.Send(t.Context(), guest.Notification{To: "a@b.test"}); err != nil {
			t.Errorf("a minute later: %v", err)
		}
	})
}

var _ Values = store.KV(nil)
