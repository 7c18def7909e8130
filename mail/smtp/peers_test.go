package smtp_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
)

// peers_test.go: the client and the servers that are out there.

// letter is a message that a server can easily get wrong.
const letter = "From: <from@example.org>\r\nSubject: letter\r\n\r\n.\r\n..\r\nZ\xc3\xbcrich\r\n\r\n"

// became is a result in one line.
func became(r smtp.SendResult, err error) string {
	var list []string
	for _, p := range r.Accepted {
		list = append(list, p.Local)
	}
	for _, e := range r.Rejected {
		list = append(list, fmt.Sprintf("%s:%s:%s", e.Recipient.Local, e.Phase, e.Enhanced()))
	}
	if err != nil {
		list = append(list, "error")
	}
	return strings.Join(list, " ")
}

// sendAll sends messages on one connection: each leaves it in order for the next.
func sendAll(t *testing.T, address string, o smtp.DialOptions, messages []struct{ to, want string }) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o.LocalName = "client.test"
	c, err := smtp.Dial(ctx, address, o)
	if err != nil {
		t.Fatal(err)
	}
	from, _ := smtp.ParseAddress("from@example.org")
	for _, m := range messages {
		e := smtp.Envelope{From: smtp.Sender{Path: from}}
		for local := range strings.FieldsSeq(m.to) {
			to, err := smtp.ParseAddress(local + "@example.org")
			if err != nil {
				t.Fatal(err)
			}
			e.To = append(e.To, smtp.Recipient{Path: to})
		}
		r, err := c.Send(ctx, e, strings.NewReader(letter))
		if got := became(r, err); got != m.want {
			t.Errorf("%s, chunking %v, to %s: got %s, %v, want %s", address, !o.NoChunking, m.to, got, err, m.want)
		}
	}
	if err := c.Quit(ctx); err != nil {
		t.Error(err)
	}
}

func whole(t *testing.T, raw []byte) {
	t.Helper()
	if got := peers.AsSent(raw); !bytes.HasSuffix(bytes.ReplaceAll(got, []byte("\r\n"), []byte("\n")), []byte(strings.ReplaceAll(letter, "\r\n", "\n"))) {
		t.Errorf("arrived: got %q", got)
	}
}

// What is pipelined comes to the same with Postfix: recipients that are refused, all of them
// with DATA behind, and the next message.
func TestPostfix(t *testing.T) {
	ca := peers.NewCA(t)
	certificate := ca.Issue(t, "backend.test")
	s := peers.Postfix(t, peers.PostfixOptions{Certificate: &certificate, ImplicitTLS: true, Users: []string{"a@example.org", "b@example.org"}})
	config := &tls.Config{RootCAs: ca.Pool(), ServerName: "backend.test"}
	for _, noChunking := range []bool{true, false} {
		for mode, address := range map[smtp.TLSMode]string{smtp.TLSRequired: s.Addr, smtp.TLSImplicit: s.TLSAddr} {
			o := smtp.DialOptions{TLS: mode, TLSConfig: config, ClientOptions: smtp.ClientOptions{NoChunking: noChunking}}
			sendAll(t, address, o, []struct{ to, want string }{
				{"a nobody b", "a b nobody:RCPT:5.1.1"},
				{"nobody noone", "nobody:RCPT:5.1.1 noone:RCPT:5.1.1 error"},
				{"a", "a"},
			})
		}
	}
	for _, raw := range s.Wait(t, 12) {
		whole(t, raw)
	}
}

// LMTP, with an answer for each recipient, over TCP and a unix socket.
func TestDovecot(t *testing.T) {
	s := peers.Dovecot(t, peers.DovecotOptions{Users: []string{"user@example.org"}, OverQuota: []string{"full@example.org"}, Failing: []string{"broken@example.org"}})
	for _, noChunking := range []bool{true, false} {
		for _, address := range []string{s.Addr, "unix:" + s.Socket} {
			sendAll(t, address, smtp.DialOptions{ClientOptions: smtp.ClientOptions{LMTP: true, NoChunking: noChunking}}, []struct{ to, want string }{
				{"user nobody full broken", "user nobody:RCPT:5.1.1 full:end of data:5.2.2 broken:end of data:4.2.0"},
				{"nobody", "nobody:RCPT:5.1.1 error"},
				{"full", "full:end of data:5.2.2 error"},
				{"user", "user"},
			})
		}
	}
	for _, raw := range s.Wait(t, "user@example.org", 8) {
		whole(t, raw)
	}
}
