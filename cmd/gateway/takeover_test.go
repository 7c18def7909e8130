package main

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/penstock/penstock/internal/peers"
)

// takeover_test.go: a change counts whole or not at all, and needs no more than what is new in
// it.

const takeOverConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0", chain: inbound}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["smtp://BACKEND"], recipients: "file:LIST"}
filters:
  cache: $CACHE
  dir: $DIR/filters
  chains: {inbound: [{module: "builtin:helocheck"}]}
certificates: {dir: $DIR/certificates, files: [{cert: CERT, key: KEY}]}
log: {format: json}
`

// TestReloadWhole: rules that cannot be had leave the old certificate in place; a list of
// recipients that is broken meanwhile does not stand in the way of another change.
func TestReloadWhole(t *testing.T) {
	dir := t.TempDir()
	list := filepath.Join(dir, "recipients.txt")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ann@example.org\n")
	cas := []*peers.CA{peers.NewCA(t), peers.NewCA(t)}
	certs := []peers.Certificate{cas[0].Issue(t, "mx.example.org"), cas[1].Issue(t, "mx.example.org")}
	yaml := func(list string, cert peers.Certificate) string {
		return strings.NewReplacer("BACKEND", sinkServer(t), "LIST", list, "CERT", cert.CertFile, "KEY", cert.KeyFile).Replace(takeOverConfig)
	}
	g := startGateway(t, yaml(list, certs[0]))
	serves := func(ca *peers.CA, what string) {
		t.Helper()
		c := dialSMTP(t, g.addr["mx"])
		if err := c.StartTLS(t.Context(), &tls.Config{RootCAs: ca.Pool(), ServerName: "mx.example.org"}); err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		raw := []byte("Subject: x\r\n\r\nx\r\n")
		if r := send(t, c, "ann@example.org", raw); r.Code != 250 {
			t.Errorf("%s: ann: %s", what, r.Line())
		}
		if r := send(t, c, "eve@example.org", raw); r.Code != 550 {
			t.Errorf("%s: eve: %s", what, r.Line())
		}
	}
	serves(cas[0], "at first")
	g.write(yaml(filepath.Join(dir, "none.txt"), certs[1]))
	g.signal(syscall.SIGHUP)
	g.await("refusal", func(l map[string]any) bool { return strings.Contains(fmt.Sprint(l["problem"]), "none.txt") })
	serves(cas[0], "after rules that cannot be had")
	write("no address\n")
	g.write(yaml(list, certs[1]))
	g.signal(syscall.SIGHUP)
	g.await("reloaded", func(l map[string]any) bool { return strings.HasPrefix(fmt.Sprint(l["msg"]), "reloaded") })
	serves(cas[1], "with a broken list")
}
