package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// e2e_judged_test.go: a filter that answers for single recipients, with real clients in front of
// us and a real backend behind.

const judgedConfig = `
listeners:
  - {name: mx, address: "127.0.0.1:0", chain: in, limits: {greet_delay: off}}
  - {name: own, address: "127.0.0.1:0", chain: in, trusted_networks: [127.0.0.1/32], limits: {greet_delay: off}}
  - {name: lmtp, address: "127.0.0.1:0", chain: in, protocol: lmtp, limits: {greet_delay: off}}
routes:
  - {domains: [example.org], backend: store}
backends:
  store: {addresses: ["lmtp://BACKEND"]}
filters:
  cache: $CACHE
  dir: FOLDER
  chains: {in: [{module: judge, grant: {body_read: true, discard: true}}]}
`

// TestRecipientVerdicts: with LMTP each recipient hears its answer. With SMTP Postfix is asked to
// split the message, and does: those who are not refused get it once. With a store a client of
// our own need not, and its sender gets a report. A worm is refused in the middle.
func TestRecipientVerdicts(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "judge.wasm"), guests.Build(t, filepath.Join("testdata", "judge")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "mail.eml"), []byte("Subject: x\n\nHello\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := gatewayRun(t, folder, nil, "filter", "test", "judge.wasm", "mail.eml", "--rcpt", "bob@example.org", "--rcpt", "no@example.org", "--rcpt", "hold@example.org")
	if shown := regexp.MustCompile(`(?s)chunk +judge +continue.*message +judge +continue.*recipient <no@example.org>: reject 551 5.7.1 not for no.*recipient <hold@example.org>: quarantine odd`); code != 0 || !shown.MatchString(out) {
		t.Errorf("filter test: exit code %d\n%s%s", code, out, errs)
	}
	var users, all []string
	for _, u := range []string{"bob", "no", "later", "drop", "hold", "carol"} {
		all = append(all, u+"@example.org")
		users = append(users, u+"@example.org")
	}
	dc := peers.Dovecot(t, peers.DovecotOptions{Users: users})
	yaml := strings.NewReplacer("BACKEND", dc.Addr, "FOLDER", folder).Replace(judgedConfig)
	plain := startEdge(t, peers.NewCA(t), yaml)
	storing := startEdge(t, peers.NewCA(t), yaml+"store: {driver: embedded, path: $DIR/data}\n")

	for _, c := range []struct {
		g    *gatewayProcess
		want string
	}{
		{plain, "250 2.0.0, 551 5.7.1, 451 4.7.1, 250 2.6.0, 451 4.3.0, 250 2.0.0"},
		{storing, "250 2.0.0, 551 5.7.1, 451 4.7.1, 250 2.6.0, 250 2.6.0, 250 2.0.0"},
	} {
		if got := answersOf(t, c.g.addr["lmtp"], "LMTP", "alice@example.net", all...); got != c.want {
			t.Errorf("LMTP: got %s, want %s", got, c.want)
		}
	}
	for _, c := range []struct {
		g              *gatewayProcess
		listener, from string
		to             []string
		want           string
	}{
		{plain, "own", "carol@example.org", []string{"bob", "no"}, "451 4.5.3"},
		{storing, "mx", "stranger@example.net", []string{"bob", "no"}, "451 4.5.3"},
		{storing, "own", "carol@example.org", []string{"bob", "later"}, "451 4.5.3"},
		{storing, "own", "carol@example.org", []string{"bob", "no", "drop", "hold"}, "250 2.6.0"},
		{storing, "own", "carol@example.org", []string{"no"}, "551 5.7.1"},
	} {
		var to []string
		for _, u := range c.to {
			to = append(to, u+"@example.org")
		}
		if got := answersOf(t, c.g.addr[c.listener], "ESMTP", c.from, to...); got != c.want {
			t.Errorf("%s to %q: got %s, want %s", c.listener, c.to, got, c.want)
		}
	}
	report := dc.WaitFor(t, "carol@example.org", func(m []byte) bool { return bytes.Contains(m, []byte("\nAction: failed\n")) })
	for _, want := range []string{"\nFinal-Recipient: rfc822; no@example.org\n", "\nStatus: 5.7.1\n", "551 5.7.1 not for no"} {
		if !bytes.Contains(report, []byte(want)) {
			t.Errorf("the report has no %q:\n%s", want, report)
		}
	}
	if n := bytes.Count(report, []byte("\nAction: ")); n != 1 {
		t.Errorf("the report speaks of %d recipients:\n%s", n, report)
	}
	held := storing.await("what is held", func(l map[string]any) bool { return l["msg"] == "kept" && l["held"] == "odd" && l["rcpt"] == 2.0 })
	if held["from"] != "carol@example.org" {
		t.Errorf("kept: %v", held)
	}

	split(t, plain.addr["mx"])
	want := map[string]int{"bob@example.org": 4, "carol@example.org": 4} // LMTP twice, Postfix, and to bob from our own; to carol the report
	for user, n := range want {
		dc.Wait(t, user, n)
	}
	for _, user := range []string{"no@example.org", "drop@example.org", "later@example.org", "hold@example.org"} {
		if strings.Contains(dc.Log(), "lmtp("+user+")") {
			t.Errorf("Dovecot has something for %s:\n%s", user, dc.Log())
		}
	}
	worm(t, plain)
}

// answersOf sends a message with swaks and returns what it hears behind the data, as codes.
func answersOf(t *testing.T, addr, protocol, from string, to ...string) string {
	t.Helper()
	out, _ := peers.Swaks(t, "--server", addr, "--protocol", protocol, "--from", from, "--helo", "client.example.net", "--to", strings.Join(to, ","))
	_, after, _ := strings.Cut(out, "\n -> .\n")
	var answers []string
	for line := range strings.Lines(after) {
		if strings.HasPrefix(line, "<") && len(line) > 13 {
			answers = append(answers, strings.TrimSpace(line[3:13]))
		}
	}
	return strings.Join(slices.DeleteFunc(answers, func(a string) bool { return strings.HasPrefix(a, "221") }), ", ")
}

// split has Postfix send to recipients of each kind: it hears that they cannot be answered for
// together, and comes again until each has its answer.
func split(t *testing.T, addr string) {
	t.Helper()
	sender := peers.NewPostfixSender(t, peers.PostfixSenderOptions{NextHop: addr,
		Main: []string{"minimal_backoff_time = 1s", "maximal_backoff_time = 1s", "queue_run_delay = 1s"}})
	to := []string{"bob@example.org", "no@example.org", "later@example.org", "drop@example.org", "carol@example.org"}
	for _, d := range sender.Send(t, peers.PostfixMail{To: to, Raw: []byte("Subject: split\r\n\r\nHello\r\n")}) {
		if d.Status != "deferred" || d.DSN != "4.5.3" {
			t.Errorf("at first: %+v", d)
		}
	}
	for user, want := range map[string]string{
		"bob": "dsn=2.0.0, status=sent", "carol": "dsn=2.0.0, status=sent", "drop": "dsn=2.0.0, status=sent",
		"no": "dsn=5.7.1, status=bounced", "later": "dsn=4.7.1, status=deferred",
	} {
		line := regexp.MustCompile("to=<" + user + "@example.org>.*" + want)
		skipped := 0
		sender.WaitLogFor(t, fmt.Sprintf("%s to be %s", user, want), func(log string) bool {
			if n := strings.Count(log, "skipped, still being delivered"); n > skipped {
				skipped = n
				sender.Retry(t)
			}
			return line.MatchString(log)
		})
	}
}

// worm sends large bodies that are refused at their front or at their end, in one go and in
// chunks, and one that is not.
func worm(t *testing.T, g *gatewayProcess) {
	t.Helper()
	body := strings.Repeat(strings.Repeat("x", 76)+"\r\n", 4<<20/78)
	for _, whole := range []bool{true, false} {
		c := dialWith(t, g.addr["mx"], smtp.ClientOptions{NoChunking: whole})
		for _, m := range []struct{ text, want string }{
			{"Subject: front\r\n\r\nX-WORM\r\n" + body, "554 5.7.0 a worm at front"},
			{"Subject: end\r\n\r\n" + body + "X-WORM\r\n", "554 5.7.0 a worm at end"},
			{"Subject: none\r\n\r\n" + body, "250 2.0.0"},
		} {
			if _, err := c.Envelope(t.Context(), smtp.Sender{Path: path(t, "alice@example.net")}, []smtp.Recipient{{Path: path(t, "bob@example.org")}}); err != nil {
				t.Fatal(err)
			}
			replies, err := c.Data(t.Context(), strings.NewReader(m.text))
			if err != nil { // a chunk was refused
				replies = []*smtp.Reply{smtp.ReplyOf(err)}
				if err := c.Reset(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			if !strings.HasPrefix(replies[0].Line(), m.want) {
				t.Errorf("DATA %v: got %s, want %s", whole, replies[0].Line(), m.want)
			}
		}
	}
}
