package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/penstock/penstock/internal/peers"
)

// storage_test.go: gateways that share what they obtain.

// Of two gateways one orders; the CA, which comes to the other for its challenges, gets them
// answered there, and the other finds the certificate.
func TestSharedStorage(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{acme.ChallengeTypeHTTP01, acme.ChallengeTypeTLSALPN01} {
		t.Run(kind, func(t *testing.T) {
			p := peers.Pebble(t, peers.PebbleOptions{})
			shared := newFolder(t.TempDir())
			asked, j := options(t, p, "mx1.example.test")
			orders, k := options(t, p, "mx1.example.test")
			if kind == acme.ChallengeTypeHTTP01 {
				asked.ACME.TLSALPN01, orders.ACME.TLSALPN01, orders.ACME.HTTP01 = Off, Off, "127.0.0.1:0"
			} else {
				asked.ACME.HTTP01, orders.ACME.HTTP01, orders.ACME.TLSALPN01 = Off, Off, "127.0.0.1:0"
			}
			asked.Storage, orders.Storage = shared, shared

			first := open(t, asked)
			// It answers and does not order until somebody else did.
			m := newManager(first, first.wanted())
			if _, err := m.responder.solvers(); err != nil {
				t.Fatal(err)
			}
			second := open(t, orders)
			stop := start(t, second)
			k.await(t, 1, `msg="certificate obtained"`)
			stop()
			m.responder.close()
			if left, _ := shared.List(t.Context(), "challenges/"+kind, true); len(left) != 0 {
				t.Errorf("challenges that are over are still shared: %q", left)
			}

			defer start(t, first)()
			j.await(t, 1, `msg="certificate obtained"`)
			a, _ := first.getCertificate(hello("mx1.example.test"))
			b, _ := second.getCertificate(hello("mx1.example.test"))
			if !a.Leaf.Equal(b.Leaf) {
				t.Errorf("two certificates, %v and %v; want one that both serve", a.Leaf.SerialNumber, b.Leaf.SerialNumber)
			}
			if strings.Contains(j.text(), "registered with the CA") {
				t.Error("the other gateway registered too")
			}
			for _, dir := range []string{asked.Dir, orders.Dir} {
				if _, err := os.Stat(filepath.Join(dir, acmeDir)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("something is in a folder of its own: %v", err)
				}
			}
		})
	}
}

// What was obtained into a folder is taken over once there is a storage, if it is worth it
// and not there already.
func TestMoveIn(t *testing.T) {
	dir := t.TempDir()
	a := ACME{Names: []string{"good.test", "expired.test", "mixed.test", "there.test"}, Directory: "https://ca.test/dir", Email: "a@b.test", Agreed: true}
	old := newFolder(dir)
	shared := newFolder(t.TempDir())
	id := issuerKey(a.Directory)
	put := func(to *folder, s spec, key []byte) {
		t.Helper()
		cert, own := issue(s)
		if key == nil {
			key = own
		}
		name := s.names[0]
		err := errors.Join(to.Store(t.Context(), certmagic.StorageKeys.SiteCert(id, name), cert),
			to.Store(t.Context(), certmagic.StorageKeys.SitePrivateKey(id, name), key),
			to.Store(t.Context(), certmagic.StorageKeys.SiteMeta(id, name), []byte("{}")))
		if err != nil {
			t.Fatal(err)
		}
	}
	_, strange := issue(spec{label: "strange", key: edKey()})
	put(old, spec{label: "good", names: []string{"good.test"}}, nil)
	put(old, spec{label: "expired", names: []string{"expired.test"}, notBefore: day(-9), notAfter: day(-1)}, nil)
	put(old, spec{label: "mixed", names: []string{"mixed.test"}}, strange)
	put(old, spec{label: "older", names: []string{"there.test"}}, nil)
	put(shared, spec{label: "there", names: []string{"there.test"}}, nil)
	account := "acme/" + id + "/a@b.test.json"
	if err := old.Store(t.Context(), account, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	j := newJournal()
	s := open(t, Options{Hostname: "mx1.example.test", Dir: dir, Storage: shared, ACME: a, Log: j.logger(slog.LevelInfo)})
	for name, want := range map[string]string{"good.test": "good", "expired.test": "self", "mixed.test": "self", "there.test": "there"} {
		if got := chosen(t, s, hello(name)); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	if !shared.Exists(t.Context(), account) || !shared.Exists(t.Context(), certmagic.StorageKeys.SiteMeta(id, "good.test")) {
		t.Error("account or metadata were left behind")
	}
	if n := strings.Count(j.text(), "taken over into the store"); n != 2 || strings.Contains(j.text(), "level=ERROR") {
		t.Errorf("%d taken over, want 2:\n%s", n, j.text())
	}
	if !old.Exists(t.Context(), certmagic.StorageKeys.SiteCert(id, "good.test")) {
		t.Error("the folder was emptied")
	}
	open(t, Options{Hostname: "mx1.example.test", Dir: dir, Storage: shared, ACME: a, Log: j.logger(slog.LevelInfo)})
	if n := strings.Count(j.text(), "taken over into the store"); n != 2 {
		t.Errorf("the second start took something over again:\n%s", j.text())
	}
	open(t, Options{Hostname: "mx1.example.test", Storage: shared, ACME: a}) // a folder is not needed
}

// deaf is a Storage that does not answer, or fails.
type deaf struct {
	Storage
	err error
}

func (d deaf) Load(context.Context, string) ([]byte, error)         { return nil, d.err }
func (d deaf) Store(context.Context, string, []byte) error          { return d.err }
func (d deaf) Delete(context.Context, string) error                 { return d.err }
func (d deaf) Lock(context.Context, string) error                   { return d.err }
func (d deaf) Stat(context.Context, string) (KeyInfo, error)        { return KeyInfo{}, d.err }
func (d deaf) Exists(context.Context, string) bool                  { return false }
func (d deaf) Unlock(context.Context, string) error                 { return d.err }
func (d deaf) List(context.Context, string, bool) ([]string, error) { return nil, d.err }

// A storage that is away leaves what is served as it is, says so, and our own challenges are
// answered.
func TestStorageAway(t *testing.T) {
	dir := t.TempDir()
	a := ACME{Names: []string{"a.test"}, Directory: "https://ca.test/dir", Email: "a@b.test", Agreed: true}
	id := issuerKey(a.Directory)
	shared := newFolder(dir)
	cert, key := issue(spec{label: "a", names: []string{"a.test"}})
	if err := errors.Join(shared.Store(t.Context(), certmagic.StorageKeys.SiteCert(id, "a.test"), cert),
		shared.Store(t.Context(), certmagic.StorageKeys.SitePrivateKey(id, "a.test"), key)); err != nil {
		t.Fatal(err)
	}
	j := newJournal()
	s := open(t, Options{Hostname: "mx1.example.test", Dir: dir, Storage: shared, ACME: a, Log: j.logger(slog.LevelInfo)})
	s.kept = deaf{err: errors.New("the database is away")}
	if err := s.Update(nil, a); err != nil {
		t.Fatal(err)
	}
	if got := chosen(t, s, hello("a.test")); got != "a" || !strings.Contains(j.text(), "the database is away") {
		t.Errorf("serves %s, want a; log:\n%s", got, j.text())
	}
	away := open(t, Options{Hostname: "mx1.example.test", Dir: dir, Storage: s.kept, ACME: a, Log: j.logger(slog.LevelInfo)})
	if got := chosen(t, away, hello("a.test")); got != "self" || !strings.Contains(j.text(), "could be taken over") {
		t.Errorf("serves %s, want self; log:\n%s", got, j.text())
	}

	r, addr := openResponder(t, "127.0.0.1:0", Off, acme.ChallengeTypeHTTP01)
	r.shared = s.kept
	c := acme.Challenge{Type: acme.ChallengeTypeHTTP01, Token: "mine", KeyAuthorization: "mine.thumb"}
	httpSolver{r}.Present(t.Context(), c)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	for token, want := range map[string]int{"mine": 200, "other": 404} {
		resp, err := client.Get("http://" + addr + challengePath + token)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", token, resp.StatusCode, want)
		}
	}
	httpSolver{r}.CleanUp(t.Context(), c)
}

// One responder answers what another was told to, until it is over.
func TestSharedChallenges(t *testing.T) {
	shared := newFolder(t.TempDir())
	r, addr := openResponder(t, Off, "127.0.0.1:0", acme.ChallengeTypeTLSALPN01)
	r.shared = shared
	other := newResponder(ACME{HTTP01: Off, TLSALPN01: Off}, slog.New(slog.DiscardHandler))
	other.shared = shared
	c := acme.Challenge{Type: acme.ChallengeTypeTLSALPN01, Token: "t", KeyAuthorization: "t.thumb", Identifier: acme.Identifier{Type: "dns", Value: "a.test"}}
	var leaf *x509.Certificate
	shakes := func(name string) error {
		conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, &tls.Config{ServerName: name, NextProtos: []string{acmez.ACMETLS1Protocol}, InsecureSkipVerify: true})
		if err == nil {
			leaf = conn.ConnectionState().PeerCertificates[0]
			conn.Close()
		}
		return err
	}
	if err := (tlsSolver{other}).Present(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if err := shakes("A.test"); err != nil || leaf.DNSNames[0] != "a.test" {
		t.Errorf("challenge of another: %v, %v", err, leaf)
	}
	if err := shakes("b.test"); err == nil {
		t.Error("a name without a challenge: a handshake")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // as at the end
	(tlsSolver{other}).CleanUp(ctx, c)
	if err := shakes("a.test"); err == nil {
		t.Error("after the challenge: a handshake")
	}
}
