package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/internal/lab"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/auth"
)

// e2e_outbound_test.go: users send mail to the small Internet of package lab.

// exampleSubmission is examples/submission, as it stands but for what a test cannot have.
func exampleSubmission(t *testing.T, pairs ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "examples", "submission", "penstock.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	yaml := string(text)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(yaml, pairs[i]) {
			t.Fatalf("the example has no %q", pairs[i])
		}
		yaml = strings.ReplaceAll(yaml, pairs[i], pairs[i+1])
	}
	return yaml
}

// TestSubmission runs examples/submission: what a user sends is completed, signed, and delivered as the records and the
// policy of its domain demand; what cannot be is returned, or waits and says why.
func TestSubmission(t *testing.T) {
	if !lab.Enter(t) {
		return
	}
	w := lab.New(t)
	w.Zone("test", lab.Signed)
	ours, secure, plain := w.Zone("ours.test", lab.Signed), w.Zone("secure.test", lab.Signed), w.Zone("plain.test", lab.Insecure)
	leaf := w.Authority.Leaf(t, "mx.secure.test")
	good := w.Host("mx.secure.test", lab.HostOptions{Certificate: leaf.Chain()})
	secure.Add("@ MX 10 mx")
	secure.TLSA("mx", "3 1 1", leaf)
	wrong := w.Host("mx.wrong.secure.test", lab.HostOptions{Certificate: w.Authority.Leaf(t, "mx.wrong.secure.test").Chain()})
	secure.Add("wrong MX 10 mx.wrong")
	secure.TLSA("mx.wrong", "3 1 1", leaf)
	sts := w.Host("mx.plain.test", lab.HostOptions{Certificate: w.Authority.Leaf(t, "mx.plain.test").Chain()})
	plain.Add("@ MX 10 mx")
	w.Policy("plain.test", lab.PolicyOptions{ID: "1", Body: "version: STSv1\nmode: enforce\nmx: mx.plain.test\nmax_age: 86400\n"})
	inbox := w.Host("store.ours.test", lab.HostOptions{})

	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	made, stderr, code := gatewayRun(t, dir, nil, "dkim", "new", "ours.test", "--selector", "mail2026", "--out", "dkim.pem", "--json")
	var key keyRecord
	if err := json.Unmarshal([]byte(made), &key); err != nil || code != 0 {
		t.Fatalf("dkim new: %d, %s, %v", code, stderr, err)
	}
	ours.Add(auth.ZoneLine(key.Name, key.Text))
	w.Start()
	w.Real(t)
	if _, _, err := userCommand(t, "secret\n", "add", "--stdin", "alice@ours.test", "--file", file("users")); err != nil {
		t.Fatal(err)
	}
	roots, _ := w.Authority.Files(t)
	g := startWithToken(t, exampleSubmission(t, `":25"`, `"127.0.0.1:0"`, `":587"`, `"127.0.0.1:0"`, `":465"`, `"127.0.0.1:0"`, "127.0.0.1:8025", "127.0.0.1:0",
		"127.0.0.1:10025", inbox.Addr.String()+":25", "file:users.txt", "file:"+file("users"), "file:example.com.mail2026.pem", "file:"+file("dkim.pem"),
		"./data/certificates", "$DIR/certificates", "./data/compiled", "$CACHE", "./data/store", "$DIR/store", "file:tokens.txt", "file:$DIR/tokens.txt",
		"example.com", "ours.test", "  dkim:", fmt.Sprintf("  resolver: {address: %q, probe: test}\n  authorities: %q\n  block_local_addresses: false\n  dkim:", w.Resolver, roots)))

	send := func(from string, to []string, data string) (string, int) {
		return peers.Swaks(t, "--server", g.addr["submission"], "--tls", "--auth", "PLAIN", "--auth-user", "alice@ours.test", "--auth-password", "secret",
			"--from", from, "--to", strings.Join(to, ","), "--data", data)
	}
	if out, code := send("bob@ours.test", []string{"a@secure.test"}, "From: bob@ours.test\n\nx\n"); code == 0 || !strings.Contains(out, "550 5.7.1 this user may not send from this address") {
		t.Errorf("in another's name: %d\n%s", code, out)
	}
	const text = "From: Alice <alice@ours.test>\nSubject: hello\n\nHello.\n.\nThe end\n"
	if out, code := send("alice@ours.test", []string{"a@secure.test", "b@plain.test", "c@wrong.secure.test", "d@nowhere.test"}, text); code != 0 {
		t.Fatalf("swaks: %d\n%s", code, out)
	}

	for _, h := range []*lab.Host{good, sts} {
		m := h.Wait(t, 1)[0]
		if m.TLS == nil {
			t.Errorf("%s got it in clear text", h.Name)
		}
		checks, err := dkim.VerifyWithOptions(bytes.NewReader(m.Content), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
			r, err := w.DNS.LookupTXT(t.Context(), name)
			return r.Records, err
		}})
		if err != nil || len(checks) != 1 || checks[0].Err != nil || checks[0].Domain != "ours.test" {
			t.Errorf("%s: signatures %+v, %v in\n%s", h.Name, checks, err, m.Content)
		}
		read, err := mail.ReadMessage(bytes.NewReader(m.Content))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := read.Header.Date(); err != nil || !strings.HasSuffix(read.Header.Get("Message-Id"), "@mx1.example.net>") {
			t.Errorf("%s: header %v", h.Name, read.Header)
		}
	}
	bounce := inbox.Wait(t, 1)[0]
	if !bounce.From.Path.IsNull() || bounce.To[0].Path.String() != "alice@ours.test" || !bytes.Contains(bounce.Content, []byte("Status: 5.1.2")) {
		t.Errorf("bounce from <%s> to %v:\n%s", bounce.From.Path, bounce.To, bounce.Content)
	}
	g.await("what waits", func(l map[string]any) bool {
		return l["msg"] == "delivery" && l["destination"] == "mx:wrong.secure.test" && l["deferred"] == 1.0
	})
	if n := len(wrong.Messages()); n > 0 {
		t.Errorf("a host whose certificate its TLSA record does not know got %d messages", n)
	}
	if why := g.queue(t, "why", g.waiting(t, "wrong.secure.test")); !strings.Contains(why, "4.7.5") || !strings.Contains(why, "DANE") || !strings.Contains(why, "mx.wrong.secure.test") {
		t.Errorf("why:\n%s", why)
	}
}

// startWithToken starts a gateway with an admin API, and puts a token for it into the environment.
func startWithToken(t *testing.T, yaml string) *gatewayProcess {
	t.Helper()
	return startGatewayIn(t, yaml, func(dir string) {
		token, stderr, code := gatewayRun(t, dir, nil, "token", "new", "test", "--role", "admin")
		if code != 0 {
			t.Fatalf("token new: %s", stderr)
		}
		t.Setenv(tokenVariable, strings.TrimSpace(token))
	})
}

// queue runs gateway queue.
func (g *gatewayProcess) queue(t *testing.T, args ...string) string {
	t.Helper()
	out, stderr, code := gatewayRun(t, g.dir, nil, append([]string{"queue"}, append(args, "--admin", g.addr[adminName])...)...)
	if code != 0 {
		t.Fatalf("queue %v: %d, %s", args, code, stderr)
	}
	return out
}

// waiting is the name of the one message that waits for a domain.
func (g *gatewayProcess) waiting(t *testing.T, domain string) string {
	t.Helper()
	var list api.QueuePage
	text := g.queue(t, "list", "--domain", domain, "--json")
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Messages) != 1 {
		t.Fatalf("queue list: %v\n%s", err, text)
	}
	return list.Messages[0].ID
}
