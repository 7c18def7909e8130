package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// follow_test.go: files that change under the running gateway.

// TestFollower: a change is told once, when it has lain still for one look.
func TestFollower(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	paths := []string{file, link}
	did := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string, age time.Duration) {
		t.Helper()
		did(os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		at := time.Unix(1e9, 0).Add(age)
		did(os.Chtimes(filepath.Join(dir, name), at, at))
	}
	write("file", "one", 0)
	write("other", "one", 0)
	var f follower
	f.begin(paths)
	for i, step := range []struct {
		what string
		do   func()
		want []bool // of the looks that follow
	}{
		{"nothing", func() {}, []bool{false, false}},
		{"another time", func() { write("file", "two", 1) }, []bool{false, true, false}},
		{"another size", func() { write("file", "three", 1) }, []bool{false, true, false}},
		{"still writing", func() { write("file", "three and", 2) }, []bool{false}},
		{"and written", func() { write("file", "three and more", 2) }, []bool{false, true, false}},
		{"a link", func() { did(os.Symlink("file", link)) }, []bool{false, true}},
		{"that leads elsewhere", func() { write("other", "three and more", 2); did(os.Remove(link)); did(os.Symlink("other", link)) }, []bool{false, true}},
		{"gone", func() { did(os.Remove(file)) }, []bool{false, true, false}},
		{"there and gone again between two looks", func() { write("file", "x", 3); did(os.Remove(file)) }, []bool{false, false}},
		{"another list", func() { paths = paths[:1] }, []bool{false, true, false}},
	} {
		step.do()
		for n, want := range step.want {
			if got := f.look(paths); got != want {
				t.Errorf("step %d, %s: look %d says %v, want %v", i, step.what, n+1, got, want)
			}
		}
	}
}

// replaceFile puts a file in the place of another at once, as careful programs do.
func replaceFile(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := writeFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestModulesAreFollowed: a module that is put into filters.dir runs in the next session; a bad
// one is said once, and leaves the old one.
func TestModulesAreFollowed(t *testing.T) {
	a := startAdministered(t)
	gate := filepath.Join(a.dir, "filters", "gate.wasm")
	old := a.fresh()
	a.expect("at first", old, 550)
	replaceFile(t, gate, rejects(551))
	a.await("the new module", func(l map[string]any) bool { return l["msg"] == "filter: read again" })
	a.expect("in a new session", a.fresh(), 551)
	a.expect("in the old one", old, 550)

	kept := func(l map[string]any) bool { return l["msg"] == "filter: the old one is kept" }
	replaceFile(t, gate, wasmtest.Guest{Init: wasmtest.Trap()}.Bytes())
	a.await("the bad module", kept)
	a.expect("after a bad one", a.fresh(), 551)
	replaceFile(t, gate, rejects(552))
	a.await("the good one", func(l map[string]any) bool {
		return l["msg"] == "filter: read again" && l["digest"] == digestOf(rejects(552))
	})
	a.expect("after a good one", a.fresh(), 552)
	a.module("gate.wasm", rejects(553))
	a.must("upload", "filter", "push", "gate.wasm")
	a.expect("after a push", a.fresh(), 553)
	if n := strings.Count(a.log(), "filter: the old one is kept"); n != 1 {
		t.Errorf("the bad module is in the log %d times\n%s", n, a.log())
	}
	if n := strings.Count(a.log(), "filter: read again"); n != 2 {
		t.Errorf("%d modules were read again, want 2\n%s", n, a.log())
	}
}

// TestCertificatesAreFollowed: a certificate that was renewed on disk is shown without a signal.
func TestCertificatesAreFollowed(t *testing.T) {
	ca := peers.NewCA(t)
	pair := func(dir string, names ...string) {
		c := ca.Issue(t, names...)
		for from, to := range map[string]string{c.CertFile: "cert.pem", c.KeyFile: "key.pem"} {
			data, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			replaceFile(t, filepath.Join(dir, to), data)
		}
	}
	g := startGatewayIn(t, `
hostname: mx.example.org
listeners: [{name: smtps, address: "127.0.0.1:0", tls: implicit}]
routes: [{domains: [example.org], backend: store}]
backends: {store: {addresses: ["smtp://127.0.0.1:1"]}}
filters: {cache: $CACHE}
certificates: {dir: $DIR/certificates, files: [{cert: cert.pem, key: key.pem}]}
`, func(dir string) { pair(dir, "mx.example.org") })
	shown := func() string {
		t.Helper()
		nc, err := tls.Dial("tcp", g.addr["smtps"], &tls.Config{ServerName: "mx.example.org", RootCAs: ca.Pool()})
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		return names(nc.ConnectionState().PeerCertificates[0])
	}
	if got := shown(); got != "[mx.example.org]" {
		t.Errorf("at first: %s", got)
	}
	replaceFile(t, filepath.Join(g.dir, "key.pem"), []byte("no key"))
	g.await("the refusal", func(l map[string]any) bool {
		return strings.HasPrefix(fmt.Sprint(l["msg"]), "certificates: the old ones are kept")
	})
	if got := shown(); got != "[mx.example.org]" {
		t.Errorf("with a broken key: %s", got)
	}
	pair(g.dir, "mx.example.org", "new.example.org")
	g.await("the new pair", func(l map[string]any) bool { return l["msg"] == "certificates: read again" })
	if got := shown(); got != "[mx.example.org new.example.org]" {
		t.Errorf("after a renewal: %s", got)
	}
	if n := strings.Count(g.log(), "certificates: the old ones are kept"); n != 1 {
		t.Errorf("the broken key is in the log %d times", n)
	}
}

func names(c *x509.Certificate) string { return fmt.Sprint(c.DNSNames) }
