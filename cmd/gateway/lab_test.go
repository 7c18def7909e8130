package main

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/internal/peers"
)

// lab_test.go: the program sends to hosts that others wrote, with little more in its
// configuration than an operator writes: it finds the resolver by itself. Each rule about hosts has
// its test in package delivery.

const labConfig = `
hostname: mx.sender.test
listeners:
  - {name: mx, address: "127.0.0.1:0", accept: any, trusted_networks: [127.0.0.0/8], limits: {greet_delay: off}, reverse_dns: {enabled: false}}
store: {driver: embedded, path: $DIR/store}
certificates: {dir: $DIR/certificates}
filters: {cache: $CACHE}
delivery:
  resolver: {probe: test}
  authorities: AUTHORITIES
  block_local_addresses: false
  dkim:
    - {domain: sender.test, selector: lab, key: "file:KEY"}
  schedule: {first: 1s, max: 5s, expire: 1h}
`

// TestOthersReceive sends to Postfix and to Exim, which have TLSA records, and to a host that the
// policy of its domain does not name.
func TestOthersReceive(t *testing.T) {
	if !lab.Enter(t) {
		return
	}
	w := lab.New(t)
	w.Real(t)
	dir := t.TempDir()
	w.Zone("test", lab.Signed)
	key := filepath.Join(dir, "key.pem")
	w.Zone("sender.test", lab.Signed).Add(newLabKey(t, key))

	z := w.Zone("secure.test", lab.Signed)
	postfix, postfixCert := labServer(t, w, "postfix.secure.test")
	z.TLSA("postfix", "3 1 1", postfixCert)
	exim, eximCert := labServer(t, w, "exim.secure.test")
	z.TLSA("exim", "3 0 2", eximCert)
	w.Zone("plain.test", lab.Insecure).Add("@ MX 10 mx")
	unnamed := w.Host("mx.plain.test", lab.HostOptions{Certificate: w.Authority.Leaf(t, "mx.plain.test").Chain()})
	w.Policy("plain.test", lab.PolicyOptions{ID: "1", Body: "version: STSv1\nmode: enforce\nmax_age: 86400\nmx: other.plain.test\n"})
	w.Start()

	certFile, keyFile := postfixCert.Files(t)
	pf := peers.Postfix(t, peers.PostfixOptions{
		Addr: postfix, Domains: []string{"postfix.secure.test"}, Certificate: &peers.Certificate{CertFile: certFile, KeyFile: keyFile},
	})
	certFile, keyFile = eximCert.Files(t)
	ex := peers.Exim(t, peers.EximServerOptions{Addr: exim, CertFile: certFile, KeyFile: keyFile})

	authorities := filepath.Join(dir, "authorities.pem")
	if err := os.WriteFile(authorities, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.Authority.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	g := startGateway(t, strings.NewReplacer("AUTHORITIES", authorities, "KEY", key).Replace(labConfig))
	c := dialSMTP(t, g.addr["mx"])
	for _, tt := range []struct {
		domain, enh, verdict, tls string
	}{
		{"postfix.secure.test", "2.0.0", "dane", "TLS 1.3"},
		{"exim.secure.test", "", "dane", "TLS 1.3"}, // its 250 has no enhanced code
		{"plain.test", "4.7.5", "", ""},
	} {
		raw := fmt.Sprintf("From: Alice <alice@sender.test>\r\nSubject: to %s\r\n\r\nhello\r\n", tt.domain)
		if r := send(t, c, "bob@"+tt.domain, []byte(raw)); r.Code != 250 {
			t.Fatalf("%s: got %s", tt.domain, r.Line())
		}
		line := g.await("the first attempt for "+tt.domain, func(l map[string]any) bool {
			return l["msg"] == "delivery" && l["destination"] == "mx:"+tt.domain
		})
		verdict, _ := line["verdict"].(string)
		version, _ := line["tls"].(string)
		if enh, _ := line["enh"].(string); enh != tt.enh || verdict != tt.verdict || version != tt.tls {
			t.Errorf("%s: got %q %q %q, want %q %q %q: %v", tt.domain, enh, verdict, version, tt.enh, tt.verdict, tt.tls, line)
		}
	}
	if n := unnamed.Connections(); n > 0 {
		t.Errorf("got %d connections to a host that the policy does not name", n)
	}
	if raw := pf.Wait(t, 1)[0]; !bytes.Contains(raw, []byte("DKIM-Signature:")) || !bytes.Contains(raw, []byte("by mx.sender.test (Penstock)")) {
		t.Errorf("Postfix got\n%s", raw)
	}
	// Exim holds the signature against the record that dkim new printed.
	ex.Wait(t, 1)
	if log := ex.Log(); !strings.Contains(log, "[verification succeeded]") {
		t.Errorf("Exim does not like the signature:\n%s", log)
	}
}

// labServer adds a host that another program will be, and returns where it is to listen, and a
// certificate for it.
func labServer(t *testing.T, w *lab.World, name string) (addr string, c *lab.Cert) {
	t.Helper()
	h := w.Host(name, lab.HostOptions{Closed: true})
	return net.JoinHostPort(h.Addr.String(), "25"), w.Authority.Leaf(t, name)
}

// newLabKey makes a key for DKIM and returns its record.
func newLabKey(t *testing.T, file string) string {
	t.Helper()
	stdout, stderr, code := gatewayRun(t, t.TempDir(), nil, "dkim", "new", "sender.test", "--selector", "lab", "--out", file)
	if code != 0 {
		t.Fatalf("dkim new exits %d: %s", code, stderr)
	}
	_, rest, _ := strings.Cut(stdout, "\n\n")
	record, _, _ := strings.Cut(rest, "\n\n")
	return record
}
