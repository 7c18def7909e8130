package delivery

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/smtp"
)

// sendFor does a transaction for a client.
func sendFor(t *testing.T, tr *Transport, client smtp.Forwarded, to ...string) string {
	t.Helper()
	tx, err := tr.BeginFor(t.Context(), "b", from(t), client)
	if err != nil {
		return "begin: " + outcome(err)
	}
	defer tx.Abort()
	var said []string
	for _, r := range to {
		if err := tx.Rcpt(t.Context(), rcpt(t, r)); err != nil {
			said = append(said, "rcpt: "+outcome(err))
		}
	}
	if len(said) == len(to) {
		return strings.Join(said, ", ")
	}
	replies, err := tx.Data(t.Context(), letter)
	if err != nil {
		return strings.Join(append(said, "data: "+outcome(err)), ", ")
	}
	for _, r := range replies {
		said = append(said, r.Line())
	}
	return strings.Join(said, ", ")
}

var (
	alice  = smtp.Forwarded{Addr: netip.MustParseAddr("192.0.2.1"), Helo: "alice.test", Ident: "1"}
	bob    = smtp.Forwarded{Addr: netip.MustParseAddr("192.0.2.2"), Helo: "bob.test"}
	nobody = smtp.Forwarded{}
)

// The backend takes each transaction for that of its client, and no other for it.
func TestXClient(t *testing.T) {
	f := &fake{ehlo: []string{"XCLIENT ADDR HELO"}}
	o := one(f.listen(t))
	o.XClient = true
	tr := open(t, o)
	for _, who := range []smtp.Forwarded{nobody, alice, alice, bob, nobody, bob} {
		check(t, "outcome", sendFor(t, tr, who, "to@example.org"), "250 taken")
	}
	const (
		us   = "EHLO gateway.test"
		data = "MAIL FROM:<from@example.org>|RCPT TO:<to@example.org>|DATA"
		a    = "XCLIENT ADDR=192.0.2.1 HELO=alice.test|EHLO alice.test"
		b    = "XCLIENT ADDR=192.0.2.2 HELO=bob.test|EHLO bob.test"
	)
	want := strings.Join([]string{us, data, a, data, data, b, data, "QUIT", us, data, b, data}, "|")
	check(t, "the backend heard", f.said(), want)
	check(t, "stats", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 2 reused 5 lost 0")
}

func TestXClientIsRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		answer  func(string) string
		want    string
		dialled uint64
	}{
		{"by us", on("XCLIENT", "550 5.7.0 not you"), errNoXClient.Line(), 1},
		{"for the client", on("EHLO alice", "554 5.7.1 not her"), "554 5.7.1 not her", 1}, // no HELO either
		{"closed", on("XCLIENT", "drop"), "error", 1},
		{"closing", on("XCLIENT", "421 4.3.2 bye"), "error", 1},
	} {
		answer := func(line string) string { return or(c.answer(line), on("HELO alice", "554 5.7.1 not her")(line)) }
		f := &fake{ehlo: []string{"XCLIENT ADDR HELO"}, answer: answer}
		o := one(f.listen(t))
		o.XClient = true
		tr := open(t, o)
		want := "rcpt: " + c.want + ", rcpt: " + c.want
		check(t, c.name, sendFor(t, tr, alice, "a@example.org", "b@example.org"), want)
		s := stats(t, tr)
		check(t, c.name+": dialled", s.Dialled, c.dialled)
		check(t, c.name+": open", s.Open, 0)
		check(t, c.name+": mail", f.heard("MAIL"), 0) // which would have been ours
		f.mended.Store(true)
		check(t, c.name+": next", sendFor(t, tr, alice, "a@example.org"), "250 taken")
	}
}

// A pooled connection that is dead is replaced, and the new one is told as well.
func TestXClientOnDeadConnection(t *testing.T) {
	f := &fake{ehlo: []string{"XCLIENT ADDR HELO"}}
	o := one(f.listen(t))
	o.XClient = true
	tr := open(t, o)
	for range 2 {
		check(t, "outcome", sendFor(t, tr, alice, "to@example.org"), "250 taken")
		f.hangUp()
	}
	check(t, "XCLIENT", f.heard("XCLIENT"), 2)
}

// XFORWARD goes with each message, is taken back where there is nobody to name, and stops
// no mail.
func TestXForward(t *testing.T) {
	f := &fake{ehlo: []string{"XFORWARD ADDR IDENT"}}
	o := one(f.listen(t))
	o.XForward = true
	tr := open(t, o)
	for _, who := range []smtp.Forwarded{nobody, alice, nobody, nobody, bob} {
		check(t, "outcome", sendFor(t, tr, who, "to@example.org"), "250 taken")
	}
	const (
		data = "MAIL FROM:<from@example.org>|RCPT TO:<to@example.org>|DATA"
		x    = "XFORWARD ADDR="
	)
	want := strings.Join([]string{"EHLO gateway.test", data, x + "192.0.2.1 IDENT=1", data,
		x + "[UNAVAILABLE] IDENT=[UNAVAILABLE]", data, data, x + "192.0.2.2 IDENT=[UNAVAILABLE]", data}, "|")
	check(t, "the backend heard", f.said(), want)

	f = &fake{ehlo: []string{"XFORWARD ADDR"}, answer: on("XFORWARD", "501 5.5.4 what")}
	o.Groups = one(f.listen(t)).Groups
	check(t, "refused", sendFor(t, open(t, o), alice, "to@example.org"), "250 taken")
}

// BDAT or DATA, as the backend offers and the options say; a chunk that is refused leaves
// the connection in order.
func TestChunking(t *testing.T) {
	f := &fake{ehlo: []string{"CHUNKING"}}
	e := f.listen(t)
	for _, off := range []bool{false, true} {
		o := one(e)
		o.NoChunking = off
		tr := open(t, o)
		check(t, "outcome", send(t, tr), "250 taken")
	}
	check(t, "BDAT", f.heard(fmt.Sprintf("BDAT %d LAST", letter.Size())), 1)
	check(t, "DATA", f.heard("DATA"), 1)

	f = &fake{ehlo: []string{"CHUNKING"}, answer: on("BDAT", "552 5.3.4 too large")}
	tr := open(t, one(f.listen(t)))
	check(t, "refused", send(t, tr), "552 5.3.4 too large")
	f.mended.Store(true)
	check(t, "next", send(t, tr), "250 taken")
	check(t, "RSET", f.heard("RSET"), 1)
	check(t, "stats", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 1 reused 1 lost 0")
}
