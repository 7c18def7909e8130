package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/penstock/penstock/admin/client"
)

// seen_test.go: what an operator sees of who was turned away, of recipients, and of
// certificates that are not obtained.

const seenConfig = `
hostname: mx.example.org
listeners:
  - {name: mx, address: "127.0.0.1:0", limits: {connections: 1}}
  - {name: front, address: "127.0.0.1:0", proxy_protocol: {trusted: [127.0.0.0/8]}}
routes:
  - {domains: [example.org], backend: listed}
  - {domains: [example.net], backend: asked}
backends:
  listed: {addresses: ["smtp://BACKEND"], recipients: "file:$DIR/recipients.txt"}
  asked: {addresses: ["smtp://BACKEND"], recipients: callout}
filters: {cache: $CACHE}
certificates:
  dir: $DIR/certificates
  names: [mx.example.org]
  acme: {email: postmaster@example.org, directory: "https://127.0.0.1:1/directory", agreed: true, http01: "127.0.0.1:0", tlsalpn01: off}
admin: {tokens: "file:$DIR/tokens.txt", address: "127.0.0.1:0"}
`

func TestSeen(t *testing.T) {
	files := t.TempDir()
	token, errs, code := gatewayRun(t, files, nil, "token", "new", "--role", "read", "r")
	if code != 0 {
		t.Fatal(errs)
	}
	token = strings.TrimSpace(token)
	seed := func(dir string) {
		text, err := os.ReadFile(filepath.Join(files, "tokens.txt"))
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"tokens.txt": string(text), "recipients.txt": "ann@example.org\nbob@example.org\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	g := startGatewayIn(t, strings.ReplaceAll(seenConfig, "BACKEND", sinkServer(t)), seed)
	g.await("no certificate", func(l map[string]any) bool { return l["msg"] == "certificate not obtained" })

	c := dialSMTP(t, g.addr["mx"])
	if r := send(t, c, "x@example.net", []byte("Subject: x\r\n\r\nx\r\n")); r.Code != 250 {
		t.Error(r.Line())
	}
	for _, d := range []struct{ listener, say, want string }{{"mx", "", "421"}, {"front", "EHLO client.test\r\n", ""}} {
		nc, err := net.Dial("tcp", g.addr[d.listener])
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		nc.SetDeadline(time.Now().Add(patience))
		nc.Write([]byte(d.say))
		answer := make([]byte, 100)
		n, _ := nc.Read(answer)
		if got := string(answer[:n]); !strings.HasPrefix(got, d.want) || d.want == "" && got != "" {
			t.Errorf("%s: got %q, want %q", d.listener, got, d.want)
		}
	}

	g.await("no header", func(l map[string]any) bool { return l["msg"] == "connection without a good PROXY header" })

	cl, err := client.New(g.addr[adminName], token, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	s, err := cl.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Managed) != 1 || s.Managed[0].Name != "mx.example.org" || !strings.Contains(s.Managed[0].LastError, "directory") || s.Managed[0].NextTry == nil {
		t.Errorf("managed: %+v", s.Managed)
	}
	if s.Counts.BadProxy != 1 || s.Listeners[0].TurnedAway != 1 {
		t.Errorf("got %+v, %+v", s.Counts, s.Listeners)
	}
	out, _, _ := gatewayRun(t, files, []string{tokenVariable + "=" + token}, "status", "--admin", g.addr[adminName])
	for _, want := range []string{"TURNED AWAY", "BAD PROXY", "OBTAINED NAME"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}

	text, err := cl.Metrics(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, labels string
		want         float64
	}{
		{"penstock_certs_names", "", 1},
		{"penstock_certs_failing", "", 1},
		{"penstock_gateway_bad_proxy_total", "", 1},
		{"penstock_gateway_turned_away_total", "listener=mx", 1},
		{"penstock_gateway_turned_away_total", "listener=front", 0},
		{"penstock_gateway_listed_recipients", "backend=listed", 2},
		{"penstock_gateway_callouts_total", "backend=asked event=asked", 1},
		{"penstock_gateway_callouts_total", "backend=asked event=failed", 0},
	} {
		if got, ok := value(families[tt.name], tt.labels); !ok || got != tt.want {
			t.Errorf("%s{%s} = %v %v, want %v", tt.name, tt.labels, got, ok, tt.want)
		}
	}
}
