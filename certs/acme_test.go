package certs

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"go.uber.org/zap"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// acme_test.go: certificates from a CA of its own process, seen by clients of a mail server.

// A journal is a log that can be waited for.
type journal struct {
	mu    sync.Mutex
	lines []string
	news  chan struct{} // closed and made anew with each line
}

func newJournal() *journal { return &journal{news: make(chan struct{})} }

func (j *journal) logger(level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(j, &slog.HandlerOptions{Level: level}))
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, string(p))
	close(j.news)
	j.news = make(chan struct{})
	return len(p), nil
}

func (j *journal) text() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.lines, "")
}

// await waits for the n-th line that has all the words.
func (j *journal) await(t *testing.T, n int, words ...string) {
	t.Helper()
	late := time.After(patience)
	for {
		j.mu.Lock()
		found, news := 0, j.news
		for _, line := range j.lines {
			missing := func(w string) bool { return !strings.Contains(line, w) }
			if !slices.ContainsFunc(words, missing) {
				found++
			}
		}
		j.mu.Unlock()
		if found >= n {
			return
		}
		select {
		case <-news:
		case <-late:
			t.Fatalf("waited %v for line %d with %q in the log:\n%s", patience, n, words, j.text())
		}
	}
}

// obtain opens a Store and runs it until the test ends.
func obtain(t *testing.T, o Options, every time.Duration) *Store {
	t.Helper()
	s := open(t, o)
	if every != 0 {
		s.every = every
	}
	start(t, s)
	return s
}

// start runs a Store, and returns what ends it and waits.
func start(t *testing.T, s *Store) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Errorf("Run does not end %v after its context", patience)
		}
	})
	t.Cleanup(stop)
	return stop
}

// options are those of a Store that obtains certificates from p.
func options(t *testing.T, p *peers.PebbleServer, names ...string) (Options, *journal) {
	j := newJournal()
	return Options{
		Hostname: "mx1.example.test", Dir: t.TempDir(), Log: j.logger(slog.LevelDebug),
		ACME: ACME{Names: names, Directory: p.Directory, Email: "postmaster@example.test", Agreed: true,
			Roots: p.CA.Pool(), HTTP01: p.HTTP01, TLSALPN01: p.TLSALPN01},
	}, j
}

// ports is a mail server with STARTTLS and one with implicit TLS.
type ports struct{ starttls, implicit string }

func mailPorts(t *testing.T, s *Store) ports {
	t.Helper()
	serve := func(implicit bool) string {
		handler := smtp.HandlerFunc(func(context.Context, *smtp.Conn) (smtp.Session, error) { return smtp.Accept{}, nil })
		server, err := smtp.NewServer(handler, smtp.ServerOptions{Hostname: "mx1.example.test", TLS: s.ServerConfig(), Implicit: implicit})
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() { defer close(done); server.Serve(l) }()
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			server.Shutdown(ctx)
			<-done
		})
		return l.Addr().String()
	}
	return ports{serve(false), serve(true)}
}

// leaves returns the certificates that the two ports show to a client, and what its
// verification says.
func (p ports) leaves(t *testing.T, name string, roots *x509.CertPool, protos ...string) (list []*x509.Certificate, verified bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	verified = true
	config := &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: protos}
	config.VerifyConnection = func(c tls.ConnectionState) error {
		leaf := c.PeerCertificates[0]
		list = append(list, leaf)
		chain := x509.NewCertPool()
		for _, other := range c.PeerCertificates[1:] {
			chain.AddCert(other)
		}
		_, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: chain})
		verified = verified && err == nil
		return nil
	}
	for _, implicit := range []bool{false, true} {
		addr := p.starttls
		if implicit {
			addr = p.implicit
		}
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if implicit {
			nc = tls.Client(nc, config)
		}
		c, err := smtp.NewClient(ctx, nc, smtp.ClientOptions{LocalName: "client.test"})
		if err == nil && !implicit {
			err = c.StartTLS(ctx, config)
		}
		if err != nil {
			t.Fatalf("SNI %q, implicit=%v: %v", name, implicit, err)
		}
		c.Quit(ctx)
	}
	return list, verified
}

// The certificate of a CA is shown on both kinds of ports as soon as it is there, is renewed
// with the same key while the server runs, and is there at the next start without the CA.
func TestObtainRenewAndRestart(t *testing.T) {
	t.Parallel()
	p := peers.Pebble(t, peers.PebbleOptions{})
	o, j := options(t, p, "MX1.example.test", "münchen.test")
	s := open(t, o)
	s.every = 300 * time.Millisecond
	wire := mailPorts(t, s)
	if list, _ := wire.leaves(t, "mx1.example.test", nil); labelOf(list[0]) != "self" || labelOf(list[1]) != "self" {
		t.Errorf("before there is a certificate: got %v, want the self-signed one", list)
	}
	stop := start(t, s)
	j.await(t, 1, `msg="certificate obtained" name=mx1.example.test`)
	j.await(t, 1, `msg="certificate obtained" name=xn--mnchen-3ya.test`)
	roots := p.Roots(t)
	first, ok := wire.leaves(t, "mx1.example.test", roots)
	if !ok || !first[0].Equal(first[1]) {
		t.Errorf("obtained: verified %v, %v and %v; want one certificate of the CA on both ports", ok, first[0].Subject, first[1].Subject)
	}
	if _, ok := wire.leaves(t, "xn--mnchen-3ya.test", roots); !ok {
		t.Error("the second name does not verify")
	}
	for _, name := range []string{"_25._tcp.mx1.example.test", "unknown.test", "192.0.2.1", ""} {
		list, _ := wire.leaves(t, name, roots, "acme-tls/1")
		if !slices.Contains(list[0].DNSNames, "mx1.example.test") || !slices.Contains(list[1].DNSNames, "mx1.example.test") {
			t.Errorf("SNI %q: got %v and %v, want the certificate of our host name", name, list[0].DNSNames, list[1].DNSNames)
		}
	}

	p.AskRenewal(t, first[0])
	forgetRenewalInfo(t, s, "mx1.example.test")
	j.await(t, 2, `msg="certificate obtained" name=mx1.example.test`)
	second, ok := wire.leaves(t, "mx1.example.test", roots)
	if !ok || second[0].SerialNumber.Cmp(first[0].SerialNumber) == 0 {
		t.Errorf("renewed: verified %v, serial %v, before %v; want another certificate", ok, second[0].SerialNumber, first[0].SerialNumber)
	}
	if !bytes.Equal(second[0].RawSubjectPublicKeyInfo, first[0].RawSubjectPublicKeyInfo) {
		t.Error("renewed: the key is another one, which a TLSA record of before does not match")
	}
	for _, m := range s.Managed() {
		if m.LastError != "" || m.NotAfter.IsZero() || !strings.HasPrefix(m.Issuer, "Pebble") || m.NextTry.IsZero() {
			t.Errorf("Managed: %+v", m)
		}
	}
	stop()
	checkSecrets(t, o.Dir, j.text())

	o.Log = nil
	last := s.Managed()[0]
	again := open(t, o) // not run: the CA is not asked
	if m := again.Managed(); len(m) != 2 || !m[0].NotAfter.Equal(last.NotAfter) {
		t.Errorf("after a restart: %+v, want what %+v says", m, last)
	}
	if c, _ := again.getCertificate(hello("mx1.example.test")); !c.Leaf.NotAfter.Equal(last.NotAfter) {
		t.Errorf("after a restart: shows the certificate until %v, want the obtained one", c.Leaf.NotAfter)
	}
}

// forgetRenewalInfo lets the hours pass that the CA wants to be left alone for before it is
// asked again when to renew.
func forgetRenewalInfo(t *testing.T, s *Store, name string) {
	t.Helper()
	d := s.storage(s.wanted())
	key := certmagic.StorageKeys.SiteMeta(d.issuer, name)
	text, err := d.Load(t.Context(), key)
	var meta struct {
		IssuerData map[string]any `json:"issuer_data"`
		SANs       []string       `json:"sans"`
	}
	if err == nil {
		err = json.Unmarshal(text, &meta)
	}
	info, _ := meta.IssuerData["renewal_info"].(map[string]any)
	if err != nil || info["_retryAfter"] == nil {
		t.Fatalf("renewal info of %s: %v in\n%s", name, err, text)
	}
	info["_retryAfter"] = time.Now().Add(-time.Minute)
	if text, err = json.Marshal(meta); err == nil {
		err = d.Store(t.Context(), key, text)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// checkSecrets looks at what is on disk and in the log: keys for us alone, and no key in a log,
// be its level debug.
func checkSecrets(t *testing.T, dir, log string) {
	t.Helper()
	keys := 0
	err := filepath.WalkDir(filepath.Join(dir, acmeDir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode().Perm(), want)
		}
		if !strings.HasSuffix(path, ".key") {
			return nil
		}
		keys++
		text, err := os.ReadFile(path)
		for line := range strings.Lines(string(text)) {
			if !strings.HasPrefix(line, "-----") && strings.Contains(log, strings.TrimSpace(line)) {
				t.Errorf("the log holds a line of the key %s", path)
			}
		}
		return err
	})
	if err != nil || keys != 2 {
		t.Errorf("%d keys of certificates in %s, %v; want 2", keys, dir, err)
	}
	if strings.Contains(log, "PRIVATE KEY") || !strings.Contains(log, "certmagic: ") {
		t.Error("the log holds a private key, or lacks what certmagic tells")
	}
}

// Each challenge is enough, one is used when the port of the other is taken, and when both are
// the log says what to do; then a port becomes free.
func TestChallenges(t *testing.T) {
	t.Parallel()
	p := peers.Pebble(t, peers.PebbleOptions{})
	take := func(addr string) net.Listener {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, tc := range []struct {
		name  string
		taken []string
		off   string
		log   string
	}{
		{"HTTP-01 alone", nil, p.TLSALPN01, ""},
		{"TLS-ALPN-01 alone", nil, p.HTTP01, ""},
		{"port of HTTP-01 taken", []string{p.HTTP01}, "", "the other challenge is used"},
		{"port of TLS-ALPN-01 taken", []string{p.TLSALPN01}, "", "the other challenge is used"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, addr := range tc.taken {
				defer take(addr).Close()
			}
			o, j := options(t, p, "mx1.example.test")
			switch tc.off {
			case o.ACME.HTTP01:
				o.ACME.HTTP01 = Off
			case o.ACME.TLSALPN01:
				o.ACME.TLSALPN01 = Off
			}
			s := open(t, o)
			defer start(t, s)()
			j.await(t, 1, `msg="certificate obtained"`)
			if !strings.Contains(j.text(), tc.log) {
				t.Errorf("log without %q:\n%s", tc.log, j.text())
			}
		})
	}
	t.Run("both taken, then free", func(t *testing.T) {
		one, other := take(p.HTTP01), take(p.TLSALPN01)
		defer other.Close()
		o, j := options(t, p, "mx1.example.test")
		s := open(t, o)
		stop := start(t, s)
		j.await(t, 1, "level=ERROR", "no challenge of the CA can be answered", "free one of the ports")
		j.await(t, 1, "level=ERROR", "certificate not obtained", "mx1.example.test", "address already in use", "free one of the ports", "retry=1m0s")
		m := s.Managed()[0]
		if !strings.Contains(m.LastError, "free one of the ports") || m.NextTry.Sub(m.LastTry) != time.Minute || !m.NotAfter.IsZero() {
			t.Errorf("Managed: %+v", m)
		}
		stop()
		one.Close()
		start(t, s)
		j.await(t, 1, `msg="certificate obtained"`)
		if m := s.Managed()[0]; m.LastError != "" {
			t.Errorf("Managed after success: %+v", m)
		}
	})
}

// A CA that hangs, or is not there, keeps neither a handshake nor the end waiting.
func TestCAOutOfReach(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, directory := range []string{"https://127.0.0.1:1/dir", "https://" + silent.Addr().String() + "/dir"} {
		j := newJournal()
		o := Options{Hostname: "mx1.example.test", Dir: t.TempDir(), Log: j.logger(slog.LevelDebug),
			ACME: ACME{Names: []string{"mx1.example.test"}, Directory: directory, Email: "a@b.test", Agreed: true, HTTP01: "127.0.0.1:0", TLSALPN01: Off}}
		s := open(t, o)
		wire := mailPorts(t, s)
		stop := start(t, s)
		j.await(t, 1, "obtaining certificate") // the CA is being asked
		if list, _ := wire.leaves(t, "mx1.example.test", nil); labelOf(list[0]) != "self" {
			t.Errorf("%s: shows %v, want the default", directory, list[0].Subject)
		}
		stop()
	}
}

// An account that the CA does not know, and one that cannot be read, are replaced.
func TestLostAccount(t *testing.T) {
	t.Parallel()
	p := peers.Pebble(t, peers.PebbleOptions{})
	key := string(must(certmagic.PEMEncodePrivateKey(ecdsaKey())))
	location := strings.TrimSuffix(p.Directory, "/dir") + "/my-account/4711"
	unknown := must(json.Marshal(stored{acme.Account{Status: acme.StatusValid, Location: location}, key}))
	for _, tc := range []struct {
		account string
		log     string
	}{
		{string(unknown), "the CA does not know our account"},
		{"{half an acc", "is broken and was set aside"},
	} {
		o, j := options(t, p, "mx1.example.test")
		s := open(t, o)
		m := newManager(s, s.wanted())
		if err := m.disk.Store(t.Context(), m.issuer.accountKey(), []byte(tc.account)); err != nil {
			t.Fatal(err)
		}
		stop := start(t, s)
		j.await(t, 1, `msg="certificate obtained"`)
		stop()
		if !strings.Contains(j.text(), tc.log) {
			t.Errorf("log lacks %q:\n%s", tc.log, j.text())
		}
	}
}

// Update takes names on and drops them while Run runs, and other settings as well.
func TestUpdateNames(t *testing.T) {
	t.Parallel()
	p := peers.Pebble(t, peers.PebbleOptions{})
	o, j := options(t, p)
	a := o.ACME
	s := obtain(t, o, 0)
	want := func(step, names string) {
		t.Helper()
		checkNames(t, s, step, names)
		var managed []string
		for _, m := range s.Managed() {
			managed = append(managed, m.Name)
		}
		if got := strings.Join(managed, " "); got != strings.Join(slices.Sorted(slices.Values(a.Names)), " ") {
			t.Errorf("%s: manages %q, want %q", step, got, a.Names)
		}
	}
	update := func(names ...string) {
		t.Helper()
		a.Names = names
		if err := s.Update(nil, a); err != nil {
			t.Fatal(err)
		}
	}
	want("none", "mx1.example.test")
	update("one.test")
	j.await(t, 1, `msg="certificate obtained"`, "name=one.test")
	if err := s.Run(t.Context()); err == nil {
		t.Error("a second Run: no error")
	}
	want("one", "mx1.example.test one.test")
	update("one.test", "two.test")
	j.await(t, 1, `msg="certificate obtained"`, "name=two.test")
	want("two", "mx1.example.test one.test two.test")
	update("two.test")
	want("the first dropped", "mx1.example.test two.test")
	if err := s.Update(nil, ACME{Names: []string{"*.three.test"}}); err == nil {
		t.Error("Update with settings that cannot be: no error")
	}
	want("after a refusal", "mx1.example.test two.test")
	a.HTTP01 = Off // other settings: everything starts over
	update("one.test", "two.test", "four.test")
	want("the first is still on disk", "mx1.example.test one.test two.test")
	j.await(t, 1, `msg="certificate obtained"`, "name=four.test")
	update()
	want("none again", "mx1.example.test")
	if strings.Contains(j.text(), "level=WARN") || strings.Contains(j.text(), "level=ERROR") {
		t.Errorf("something went wrong on the way:\n%s", j.text())
	}
}

// After a failure a name waits longer and longer, after a success ten minutes; each name for
// itself.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, Options{Hostname: "mx1.example.test"})
		for _, name := range []string{"bad.test", "good.test"} {
			s.managed[name] = &ManagedName{Name: name}
		}
		cert, _ := s.getCertificate(hello(""))
		m := &manager{store: s, log: s.log, slots: make(chan struct{}, slots)}
		began := time.Now()
		var mu sync.Mutex
		visits := make(map[string][]string)
		m.visit = func(_ context.Context, name string) (*tls.Certificate, error) {
			mu.Lock()
			defer mu.Unlock()
			visits[name] = append(visits[name], time.Since(began).String())
			if name == "bad.test" && len(visits[name]) == 1 {
				panic("a library of others") // is a failure like any other
			}
			if name == "bad.test" && len(visits[name]) != 4 {
				return nil, acme.Problem{Type: acme.ProblemTypeNamespace + "dns", Detail: "NXDOMAIN"}
			}
			return cert, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 61*time.Minute)
		defer cancel()
		var all sync.WaitGroup
		for name := range s.managed {
			all.Go(func() { m.keep(ctx, name) })
		}
		all.Wait()
		for name, want := range map[string]string{
			"bad.test":  "0s 1m0s 11m0s 41m0s 51m0s 52m0s", // fails thrice, is well once, fails again
			"good.test": "0s 10m0s 20m0s 30m0s 40m0s 50m0s 1h0m0s",
		} {
			if got := strings.Join(visits[name], " "); got != want {
				t.Errorf("%s is visited at %s, want %s", name, got, want)
			}
		}
		bad := s.Managed()[0]
		if !strings.Contains(bad.LastError, "NXDOMAIN") || !strings.Contains(bad.LastError, "A or AAAA record") || bad.NextTry.Sub(bad.LastTry) != 10*time.Minute {
			t.Errorf("Managed: %+v", bad)
		}
		if c, _ := s.getCertificate(hello("good.test")); c != cert {
			t.Error("the certificate of a visit is not served")
		}
	})
}

// The listener of HTTP-01 answers a token that is open, once it is open, and nothing else.
func TestHTTPChallenge(t *testing.T) {
	r, addr := openResponder(t, "127.0.0.1:0", Off, acme.ChallengeTypeHTTP01)
	c := acme.Challenge{Type: acme.ChallengeTypeHTTP01, Token: "to-ken_1", KeyAuthorization: "to-ken_1.thumb", Identifier: acme.Identifier{Type: "dns", Value: "a.test"}}
	httpSolver{r}.Present(t.Context(), c)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for _, tc := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/.well-known/acme-challenge/to-ken_1", 200},
		{"GET", "/.well-known/acme-challenge/to-ken_1?x=y", 200},
		{"POST", "/.well-known/acme-challenge/to-ken_1", 404},
		{"HEAD", "/.well-known/acme-challenge/to-ken_1", 404},
		{"GET", "/.well-known/acme-challenge/", 404},
		{"GET", "/.well-known/acme-challenge/other", 404},
		{"GET", "/.well-known/acme-challenge/../acme-challenge/to-ken_1", 404},
		{"GET", "/to-ken_1", 404},
		{"GET", "/", 404},
	} {
		req, _ := http.NewRequest(tc.method, "http://"+addr+tc.path, nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		resp.Body.Close()
		if resp.StatusCode != tc.code || tc.code == 200 && string(body) != c.KeyAuthorization || strings.Contains(string(body), "thumb") != (tc.code == 200) {
			t.Errorf("%s %s: %d %q, want %d", tc.method, tc.path, resp.StatusCode, body, tc.code)
		}
	}
	httpSolver{r}.CleanUp(t.Context(), c)
	if resp, err := client.Get("http://" + addr + c.HTTP01ResourcePath()); err != nil || resp.StatusCode != 404 {
		t.Errorf("after the challenge: %v, %v; want 404", resp, err)
	} else {
		resp.Body.Close()
	}
	ends(t, addr, "GET /"+strings.Repeat("a", 64<<10)+" HTTP/1.1\r\n\r\n") // a head that is too large
	ends(t, addr, "GET / HTT")                                             // a client that stops in the middle
	ends(t, addr, "")
}

// FuzzHTTPChallengeKeepsItsAnswer: of all requests, those for the one path alone get the answer.
func FuzzHTTPChallengeKeepsItsAnswer(f *testing.F) {
	for _, path := range []string{"/.well-known/acme-challenge/token", "/.well-known/acme-challenge/", "//.well-known/acme-challenge/token", "/.well-known/acme-challenge/%74oken", "*"} {
		f.Add("GET " + path + " HTTP/1.1\r\nHost: a.test\r\n\r\n")
	}
	r := newResponder(ACME{HTTP01: Off, TLSALPN01: Off}, slog.New(slog.DiscardHandler))
	r.answers["token"] = "the answer"
	f.Fuzz(func(t *testing.T, request string) {
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader(request)))
		if err != nil {
			return
		}
		w := httptest.NewRecorder()
		r.answer(w, req)
		want := req.Method == http.MethodGet && req.URL.Path == "/.well-known/acme-challenge/token"
		if got := strings.Contains(w.Body.String(), "the answer"); got != want || got != (w.Code == http.StatusOK) {
			t.Errorf("%q: %d %q, want the answer: %v", request, w.Code, w.Body, want)
		}
	})
}

// The listener of TLS-ALPN-01 shows the proof to who speaks acme-tls/1 and asks for a name that
// is being proved, and has a handshake with nobody else.
func TestTLSChallenge(t *testing.T) {
	r, addr := openResponder(t, Off, "127.0.0.1:0", acme.ChallengeTypeTLSALPN01)
	c := acme.Challenge{Type: acme.ChallengeTypeTLSALPN01, Token: "t", KeyAuthorization: "t.thumb", Identifier: acme.Identifier{Type: "dns", Value: "a.test"}}
	if err := (tlsSolver{r}).Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	dial := func(name string, protos ...string) error {
		dialer := &net.Dialer{Timeout: patience}
		conn, err := tls.DialWithDialer(dialer, "tcp", addr, &tls.Config{ServerName: name, NextProtos: protos, InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		defer conn.Close()
		if leaf := conn.ConnectionState().PeerCertificates[0]; !slices.Equal(leaf.DNSNames, []string{"a.test"}) {
			t.Errorf("SNI %q: shows %v", name, leaf.DNSNames)
		}
		_, err = conn.Read(make([]byte, 1))
		if !errors.Is(err, io.EOF) {
			t.Errorf("SNI %q: after the handshake: %v, want the end", name, err)
		}
		return nil
	}
	for _, tc := range []struct {
		name   string
		protos []string
		ok     bool
	}{
		{"a.test", []string{acmez.ACMETLS1Protocol}, true},
		{"A.TEST", []string{acmez.ACMETLS1Protocol}, true},
		{"b.test", []string{acmez.ACMETLS1Protocol}, false},
		{"", []string{acmez.ACMETLS1Protocol}, false},
		{"a.test", nil, false},
		{"a.test", []string{"h2", "http/1.1"}, false},
		{"a.test", []string{acmez.ACMETLS1Protocol, "h2"}, false}, // RFC 8737, Section 3: the one and only
	} {
		if err := dial(tc.name, tc.protos...); (err == nil) != tc.ok {
			t.Errorf("SNI %q, ALPN %q: %v, want a handshake: %v", tc.name, tc.protos, err, tc.ok)
		}
	}
	tlsSolver{r}.CleanUp(t.Context(), c)
	if err := dial("a.test", acmez.ACMETLS1Protocol); err == nil {
		t.Error("after the challenge: a handshake")
	}
	ends(t, addr, "GET / HTTP/1.1\r\n\r\n")
	ends(t, addr, "\x16\x03\x01\x02\x00") // a client that stops in the middle
	ends(t, addr, "")
}

// openResponder listens on one of two addresses, with a short time for each connection.
func openResponder(t *testing.T, http01, tlsalpn01, kind string) (*responder, string) {
	t.Helper()
	j := newJournal()
	r := newResponder(ACME{HTTP01: http01, TLSALPN01: tlsalpn01}, j.logger(slog.LevelInfo))
	r.wait = 300 * time.Millisecond
	t.Cleanup(r.close)
	if list, err := r.solvers(); err != nil || len(list) != 1 || list[kind] == nil {
		t.Fatalf("solvers: %v, %v; want %s alone", list, err, kind)
	}
	_, addr, _ := strings.Cut(j.text(), "addr=")
	return r, strings.TrimSpace(addr)
}

// ends says something, and wants the connection to end soon.
func ends(t *testing.T, addr, say string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, say)
	if _, err := io.Copy(io.Discard, io.LimitReader(bufio.NewReader(conn), 1<<20)); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after %.40q the connection stays open", say)
	}
}

// Listeners end with connections open on them.
func TestResponderCloses(t *testing.T) {
	j := newJournal()
	r := newResponder(ACME{HTTP01: "127.0.0.1:0", TLSALPN01: "127.0.0.1:0"}, j.logger(slog.LevelInfo))
	if _, err := r.solvers(); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for line := range strings.Lines(j.text()) {
		_, addr, _ := strings.Cut(line, "addr=")
		conn, err := net.Dial("tcp", strings.TrimSpace(addr))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	r.close()
	for _, conn := range conns {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after close: %v, want the connection closed", err)
		}
	}
	if len(conns) != 2 {
		t.Errorf("%d listeners, want 2", len(conns))
	}
}

func TestACMEValidate(t *testing.T) {
	good := func(change func(*ACME)) Options {
		a := ACME{Names: []string{"mx1.example.test"}, Email: "a@example.test", Agreed: true}
		change(&a)
		return Options{Hostname: "mx1.example.test", Dir: "certificates", ACME: a}
	}
	for _, tc := range []struct {
		o    Options
		want []string
	}{
		{good(func(*ACME) {}), nil},
		{good(func(a *ACME) { a.Names = nil; a.Agreed = false; a.Directory = "nonsense" }), nil}, // nothing is obtained
		{good(func(a *ACME) { a.HTTP01, a.TLSALPN01 = "127.0.0.1:5002", Off }), nil},
		{good(func(a *ACME) { a.HTTP01, a.TLSALPN01 = Off, Off }), []string{"both challenges are off"}},
		{good(func(a *ACME) { a.HTTP01, a.TLSALPN01 = "80", ":https" }), []string{`"80" is no address`, `":https" is no address`}},
		{good(func(a *ACME) { a.Agreed, a.Email = false, "" }), []string{"not agreed to", `"" is not a mail address`}},
		{good(func(a *ACME) { a.Directory = "http://ca.test/dir" }), []string{"not an https URL"}},
		{good(func(a *ACME) { a.Names = []string{"*.a.test", "a_b.test", "a.test", "A.test.", "192.0.2.1"} }),
			[]string{`name 1, "*.a.test", is a wildcard`, `name 2, "a_b.test", is not a host name`, `name 4, "A.test.", is there twice`, `name 5, "192.0.2.1", is not`}},
		{Options{Hostname: "mx1.example.test", ACME: good(func(*ACME) {}).ACME}, []string{"need a directory"}},
	} {
		checkError(t, fmt.Sprintf("%+v", tc.o.ACME), tc.o.Validate(), tc.want)
	}
}

// Files that would stop a name for good are set aside, and the others left alone.
func TestMend(t *testing.T) {
	var book logbook
	s := open(t, Options{Hostname: "mx1.example.test", Dir: t.TempDir(), Log: book.logger()})
	d := s.storage(ACME{Directory: "https://ca.test/acme/dir"})
	cert, key := issue(spec{label: "whole", names: []string{"a.test"}})
	other, _ := issue(spec{label: "other", names: []string{"a.test"}, key: edKey()})
	for _, tc := range []struct {
		name      string
		cert, key []byte
		broken    string
	}{
		{"whole", cert, key, ""},
		{"key without certificate", nil, key, ""},
		{"nothing", nil, nil, ""},
		{"certificate without key", cert, nil, ""}, // certmagic does not look at it
		{"empty key", cert, nil, ""},
		{"no key", cert, []byte("no key"), ".key .crt"},
		{"no certificate", []byte("no certificate"), key, ".crt"},
		{"other key", other, key, ".crt"},
	} {
		paths := map[string]string{".crt": certmagic.StorageKeys.SiteCert(d.issuer, "a.test"), ".key": certmagic.StorageKeys.SitePrivateKey(d.issuer, "a.test")}
		os.RemoveAll(d.Storage.(*folder).Path)
		for ending, data := range map[string][]byte{".crt": tc.cert, ".key": tc.key} {
			if data != nil {
				if err := d.Store(t.Context(), paths[ending], data); err != nil {
					t.Fatal(err)
				}
			}
		}
		d.mend(t.Context(), "a.test")
		for ending, had := range map[string]bool{".crt": tc.cert != nil, ".key": tc.key != nil} {
			aside := strings.Contains(tc.broken, ending)
			if got := d.Exists(t.Context(), paths[ending]); got != (had && !aside) {
				t.Errorf("%s: %s is there: %v", tc.name, ending, got)
			}
			if got := d.Exists(t.Context(), paths[ending]+".broken"); got != aside {
				t.Errorf("%s: %s is set aside: %v, want %v", tc.name, ending, got, aside)
			}
		}
		if c := d.load(t.Context(), "a.test"); (c != nil) != (tc.name == "whole") {
			t.Errorf("%s: load gives %v", tc.name, c)
		}
	}
	if d.issuer != "ca.test-acme-dir" {
		t.Errorf("folder of the CA: %s", d.issuer)
	}
}

func TestLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newFolder("")
		if err := d.Lock(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if ok, err := d.TryLock(t.Context(), "a"); ok || err != nil {
			t.Errorf("TryLock of what is locked: %v, %v", ok, err)
		}
		if ok, err := d.TryLock(t.Context(), "b"); !ok || err != nil {
			t.Errorf("TryLock of another: %v, %v", ok, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.Lock(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Lock of what is locked: %v, want to wait for the end", err)
		}
		var held, most int
		var mu sync.Mutex
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			held += n
			most = max(most, held)
		}
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if err := d.Lock(t.Context(), "a"); err != nil {
					t.Error(err)
				}
				count(1)
				time.Sleep(time.Second)
				count(-1)
				if err := d.Unlock(t.Context(), "a"); err != nil {
					t.Error(err)
				}
			})
		}
		d.Unlock(t.Context(), "a")
		all.Wait()
		if most != 1 || held != 0 {
			t.Errorf("%d at one time, %d left; want 1 and 0", most, held)
		}
		if err := d.Unlock(t.Context(), "a"); err == nil {
			t.Error("Unlock of what is free: no error")
		}
	})
}

func TestZapGoesToSlog(t *testing.T) {
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo} {
		j := newJournal()
		z := zap.New(zapCore{log: j.logger(level)}).Named("obtain").With(zap.String("name", "a.test"))
		z.Error("no luck", zap.Error(errors.New("refused")), zap.Int("attempt", 2))
		z.Info("going on")
		got := j.text()
		want := `level=DEBUG msg="certmagic: no luck" zap="error obtain" attempt=2 error=refused name=a.test`
		if level == slog.LevelInfo && got != "" || level == slog.LevelDebug && (!strings.Contains(got, want) || !strings.Contains(got, "going on")) {
			t.Errorf("at %v: %s\nwant %s", level, got, want)
		}
	}
}

// Whatever goes wrong, the operator is told something to do.
func TestAdvice(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("order: %w", acme.Problem{Type: acme.ProblemTypeNamespace + "connection"}), "let the CA reach this machine"},
		{acme.Problem{Type: acme.ProblemTypeNamespace + "caa"}, "CAA records"},
		{acme.Problem{Type: acme.ProblemTypeNamespace + "rateLimited"}, "wait"},
		{acme.Problem{Type: "about:blank"}, "see what the CA says"},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, "can be reached"},
		{&noChallengeError{errors.New("taken")}, "free one of the ports"},
		{&noChallengeError{errors.Join(errors.New("taken"), os.ErrPermission)}, "ports below 1024"},
		{errors.New("anything"), "next try"},
	} {
		if got := advice(tc.err); !strings.Contains(got, tc.want) {
			t.Errorf("advice(%v) = %q, want %q", tc.err, got, tc.want)
		}
	}
}
