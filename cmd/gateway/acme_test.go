package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// acme_test.go: the program gets its certificates from a CA.

const acmeConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0"}
  - {name: smtps, address: "127.0.0.1:0", tls: implicit}
routes: [{domains: [example.org], backend: store}]
backends: {store: {addresses: ["smtp://127.0.0.1:1"]}}
certificates:
  dir: $DIR/certificates
  names: [NAMES]
  acme:
    email: postmaster@example.org
    directory: DIRECTORY
    agreed: true
    ca_roots: ROOTS
    http01: "HTTP01"
    tlsalpn01: "TLSALPN01"
`

// TestCertificatesFromCA: what the README shows works against a real CA, on both kinds of
// ports; HUP adds a name; a restart serves what there is without the CA.
func TestCertificatesFromCA(t *testing.T) {
	p := peers.Pebble(t, peers.PebbleOptions{})
	config := func(names string) string {
		return strings.NewReplacer("NAMES", names, "DIRECTORY", p.Directory, "ROOTS", p.CA.File,
			"HTTP01", p.HTTP01, "TLSALPN01", p.TLSALPN01).Replace(acmeConfig)
	}
	g := startGateway(t, config("mx.example.org"))
	obtained := func(name string) {
		t.Helper()
		g.await("certificate of "+name, func(l map[string]any) bool {
			return l["msg"] == "certificate obtained" && l["name"] == name
		})
	}
	obtained("mx.example.org")
	roots := p.Roots(t)
	verify(t, g, "mx.example.org", roots)

	g.write(config("mx.example.org, mail.example.org"))
	g.signal(syscall.SIGHUP)
	obtained("mail.example.org")
	verify(t, g, "mail.example.org", roots)
	g.write(strings.Replace(config("other.example.org"), "agreed: true", "agreed: false", 1))
	g.signal(syscall.SIGHUP)
	g.await("refusal", func(l map[string]any) bool {
		return strings.Contains(fmt.Sprint(l["problem"]), "certificates.acme.agreed")
	})
	verify(t, g, "mail.example.org", roots)
	g.stop()
	if g.err != nil {
		t.Errorf("the process ended with %v", g.err)
	}

	again := startGateway(t, strings.ReplaceAll(config("mx.example.org"), "$DIR", g.dir))
	verify(t, again, "mx.example.org", roots)
	again.stop()
	if strings.Contains(again.log(), "certificate obtained") {
		t.Error("the certificate was obtained again after a restart")
	}
}

// verify shakes hands on both ports, and verifies.
func verify(t *testing.T, g *gatewayProcess, name string, roots *x509.CertPool) {
	t.Helper()
	config := &tls.Config{ServerName: name, RootCAs: roots}
	if err := dialSMTP(t, g.addr["mx"]).StartTLS(t.Context(), config); err != nil {
		t.Errorf("STARTTLS for %s: %v", name, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	nc, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", g.addr["smtps"])
	if err != nil {
		t.Errorf("implicit TLS for %s: %v", name, err)
		return
	}
	c, err := smtp.NewClient(ctx, nc, smtp.ClientOptions{LocalName: "client.example.net"})
	if err != nil {
		t.Errorf("implicit TLS for %s: %v", name, err)
		return
	}
	c.Quit(ctx)
}

// check reads the file of roots, and asks nobody.
func TestCheckACME(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "penstock.yaml")
	began := time.Now()
	for _, tc := range []struct{ roots, want string }{
		{"no-roots.pem", "certificates.acme.ca_roots: stat " + dir + "/no-roots.pem: no such file"},
		{"penstock.yaml", "certificates.acme.ca_roots: " + file + " holds no certificate in PEM form"},
		{"", ": fine"},
	} {
		yaml := strings.NewReplacer("NAMES", "mx.example.org", "DIRECTORY", "https://192.0.2.1/dir", "ROOTS", tc.roots,
			"HTTP01", "off", "TLSALPN01", ":443", "$DIR", dir).Replace(acmeConfig)
		if err := os.WriteFile(file, []byte(yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		check(t.Context(), configFlags{file: file}, &out, &out)
		if !strings.Contains(out.String(), tc.want) {
			t.Errorf("ca_roots %q: %s\nwant %q", tc.roots, out.String(), tc.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "certificates")); !os.IsNotExist(err) {
		t.Errorf("check left a folder: %v", err)
	}
	if time.Since(began) > patience {
		t.Error("check waited for the CA")
	}
}
