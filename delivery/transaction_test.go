package delivery

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// on answers lines that begin with prefix.
func on(prefix, reply string) func(string) string {
	return func(line string) string {
		if strings.HasPrefix(line, prefix) {
			return reply
		}
		return ""
	}
}

var pipelining = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "SIZE"}

// TestTransaction: what comes of a message, and whether the connection serves again.
// idle is the number of connections in the pool afterwards.
func TestTransaction(t *testing.T) {
	to2 := []string{"a@example.org", "b@example.org"}
	bad := func(rcpt string) string {
		if strings.Contains(rcpt, "<a@") {
			return "550 5.2.2 a is full"
		}
		return ""
	}
	for _, c := range []struct {
		name string
		fake *fake
		to   []string
		want string
		idle int
	}{
		{"taken", &fake{}, nil, "250 taken", 1},
		{"pipelined", &fake{ehlo: pipelining}, nil, "250 taken", 1},
		{"one reply of SMTP is for each", &fake{}, to2, "250 taken, 250 taken", 1},
		{"refused for each", &fake{end: func(string) string { return "554 5.6.0 no" }}, to2, "554 5.6.0 no, 554 5.6.0 no", 1},
		{"LMTP has one for each", &fake{lmtp: true, end: bad}, to2, "550 5.2.2 a is full, 250 taken", 1},
		{"LMTP, one refused at RCPT", &fake{lmtp: true, ehlo: pipelining, answer: on("RCPT TO:<a@", "550 5.1.1 no a")}, to2, "rcpt: 550 5.1.1 no a, 250 taken", 1},
		{"a refused MAIL answers each RCPT", &fake{answer: on("MAIL", "550 5.7.1 not you")}, to2, "rcpt: 550 5.7.1 not you, rcpt: 550 5.7.1 not you", 1},
		{"the same, pipelined", &fake{ehlo: pipelining, answer: func(l string) string {
			return on("MAIL", "550 5.7.1 not you")(l) + on("RCPT", "503 no MAIL")(l)
		}}, to2, "rcpt: 550 5.7.1 not you, rcpt: 550 5.7.1 not you", 1},
		{"all recipients refused", &fake{answer: on("RCPT", "450 4.2.1 busy")}, to2, "rcpt: 450 4.2.1 busy, rcpt: 450 4.2.1 busy", 1},
		{"DATA refused", &fake{answer: on("DATA", "554 5.5.1 none of them")}, nil, "data: 554 5.5.1 none of them", 1},
		{"DATA taken for another command", &fake{answer: on("DATA", "250 ok")}, nil, "data: error", 0}, // out of step
		{"closed instead of 354", &fake{answer: on("DATA", "drop")}, nil, "data: error", 0},
		{"closed in the midst of the data", &fake{inData: func() string { return "drop" }}, nil, "data: error", 0},
		{"closed instead of the reply to the data", &fake{end: func(string) string { return "drop" }}, nil, "data: error", 0},
		{"LMTP, closed instead of the first reply", &fake{lmtp: true, end: func(string) string { return "drop" }}, to2, "data: error", 0},
		{"garbage as the reply to the data", &fake{end: func(string) string { return "yes, thank you" }}, nil, "data: error", 0},
		{"354 as the reply to the data", &fake{end: func(string) string { return "354 more" }}, nil, "data: error", 0}, // not an acceptance
		{"421 as the reply to the data", &fake{end: func(string) string { return "421 4.3.2 stopping" }}, nil, "451 4.3.2 stopping", 0},
		{"421 to DATA", &fake{answer: on("DATA", "421 4.3.2 stopping")}, nil, "data: 451 4.3.2 stopping", 0},
		{"421 to RCPT", &fake{answer: on("RCPT", "421 4.3.2 stopping")}, nil, "rcpt: error", 0}, // the transaction is over
		{"closed after RCPT", &fake{answer: on("RCPT TO:<b", "drop")}, to2, "rcpt: error, data: error", 0},
		{"RSET refused", &fake{answer: func(l string) string { return on("RCPT", "550 no")(l) + on("RSET", "500 what")(l) }}, nil, "rcpt: 550 no", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			tr := open(t, one(c.fake.listen(t)))
			check(t, "outcome", send(t, tr, c.to...), c.want)
			s := stats(t, tr)
			check(t, "idle", s.Idle, c.idle)
			check(t, "busy", s.Busy, 0)
			// Whatever happened, the next message finds a backend in order.
			c.fake.mended.Store(true)
			check(t, "next", send(t, tr), "250 taken")
		})
	}
}

// What the backend lacks is refused without asking it.
func TestNeeds(t *testing.T) {
	plain := from(t)
	utf8 := smtp.Sender{Path: path(t, "für@example.org")}
	says := smtp.Sender{Path: plain.Path, UTF8: true}
	eight := smtp.Sender{Path: plain.Path, Body: smtp.BodyEightBit}
	seven := smtp.Sender{Path: plain.Path, Body: smtp.BodySevenBit}
	big := smtp.Sender{Path: plain.Path, Size: 1001}
	fits := smtp.Sender{Path: plain.Path, Size: 1000}
	binary := smtp.Sender{Path: plain.Path, Body: smtp.BodyBinary}
	private := smtp.Sender{Path: plain.Path, RequireTLS: true}
	report := smtp.Sender{Path: plain.Path, Return: smtp.ReturnHeaders, EnvID: "x"}
	const no8, noUTF8, noSize = "rcpt: 554 5.6.3", "rcpt: 550 5.6.7", "rcpt: 552 5.3.4"
	for _, c := range []struct {
		ehlo string
		from smtp.Sender
		to   string
		want string // a prefix
		mail string // what the backend heard
	}{
		{"", plain, "to@example.org", "250", "MAIL FROM:<from@example.org>"},
		{"", seven, "to@example.org", "250", "MAIL FROM:<from@example.org>"},
		{"", eight, "to@example.org", no8, ""},
		{"8BITMIME", eight, "to@example.org", "250", "MAIL FROM:<from@example.org> BODY=8BITMIME"},
		{"", binary, "to@example.org", no8, ""},
		{"CHUNKING", binary, "to@example.org", no8, ""},
		{"CHUNKING|BINARYMIME", binary, "to@example.org", "250", "MAIL FROM:<from@example.org> BODY=BINARYMIME"},
		{"", private, "to@example.org", "rcpt: 550 5.7.30", ""},
		{"REQUIRETLS", private, "to@example.org", "rcpt: 550 5.7.30", ""}, // without TLS
		{"", report, "to@example.org", "250", "MAIL FROM:<from@example.org>"},
		{"DSN", report, "to@example.org", "250", "MAIL FROM:<from@example.org> RET=HDRS ENVID=x"},
		{"", utf8, "to@example.org", noUTF8, ""},
		{"", says, "to@example.org", noUTF8, ""}, // the header may need it
		{"", plain, "für@example.org", noUTF8, ""},
		{"SMTPUTF8", utf8, "to@example.org", "250", "MAIL FROM:<für@example.org> SMTPUTF8"},
		{"SMTPUTF8", plain, "für@example.org", "250", "MAIL FROM:<from@example.org> SMTPUTF8"},
		{"SIZE 1000", big, "to@example.org", noSize, ""},
		{"SIZE 1000", fits, "to@example.org", "250", "MAIL FROM:<from@example.org>"}, // SIZE would announce too little
		{"SIZE 0", big, "to@example.org", "250", "MAIL FROM:<from@example.org>"},     // no limit, RFC 1870, Section 4
		{"SIZE", big, "to@example.org", "250", "MAIL FROM:<from@example.org>"},       // it does not say
		{"", big, "to@example.org", "250", "MAIL FROM:<from@example.org>"},
	} {
		f := &fake{}
		if c.ehlo != "" {
			f.ehlo = strings.Split(c.ehlo, "|")
		}
		tr := open(t, one(f.listen(t)))
		got := sendFrom(t, tr, c.from, c.to)
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("%q, %+v to %s: got %s, want %s", c.ehlo, c.from, c.to, got, c.want)
		}
		if n := f.heard("MAIL"); c.mail == "" && n > 0 || c.mail != "" && !strings.Contains(f.said(), c.mail+"|") {
			t.Errorf("%q, %+v to %s: backend heard %q, want %q", c.ehlo, c.from, c.to, f.said(), c.mail)
		}
	}
}

// MAIL and the first RCPT are one write, and the backend hears nothing before it.
func TestFirstRecipientGoesWithMail(t *testing.T) {
	f := &fake{ehlo: pipelining}
	tr := open(t, one(f.listen(t)))
	tx, err := tr.Begin(t.Context(), "b", from(t))
	if err != nil {
		t.Fatal(err)
	}
	check(t, "MAIL before the first recipient", f.heard("MAIL"), 0)
	tx.Rcpt(t.Context(), rcpt(t, "a@example.org"))
	tx.Abort()
	tx.Abort() // does nothing
	check(t, "said", f.said(), "EHLO gateway.test|MAIL FROM:<from@example.org>|RCPT TO:<a@example.org>|RSET")
	check(t, "pool", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 1 reused 0 lost 0")

	// A transaction without a word on the wire needs no RSET.
	if tx, err = tr.Begin(t.Context(), "b", from(t)); err != nil {
		t.Fatal(err)
	}
	tx.Abort()
	check(t, "RSET", f.heard("RSET"), 1)
	if err := tx.Rcpt(t.Context(), rcpt(t, "a@example.org")); err != errEnded {
		t.Errorf("RCPT after Abort: %v", err)
	}
	if _, err := tx.Data(t.Context(), letter); err != errEnded {
		t.Errorf("DATA after Abort: %v", err)
	}
}

// A transaction that nobody accepted sends no data.
func TestDataWithoutRecipients(t *testing.T) {
	f := &fake{answer: on("RCPT", "550 no")}
	tr := open(t, one(f.listen(t)))
	tx, err := tr.Begin(t.Context(), "b", from(t))
	if err != nil {
		t.Fatal(err)
	}
	tx.Rcpt(t.Context(), rcpt(t, "a@example.org"))
	if _, err := tx.Data(t.Context(), letter); err != errNoRecipients {
		t.Errorf("got %v, want %v", err, errNoRecipients)
	}
	check(t, "DATA", f.heard("DATA"), 0)
	check(t, "idle", stats(t, tr).Idle, 1)
}

// brokenContent fails after some octets.
type brokenContent struct{ err error }

func (b brokenContent) WriteTo(w io.Writer) (int64, error) {
	io.WriteString(w, string(letter))
	return int64(len(letter)), b.err
}
func (b brokenContent) Size() int64 { return 1000 }

// Content that cannot be read to its end must not look like a whole message.
func TestBrokenContent(t *testing.T) {
	f := &fake{end: func(string) string { t.Error("the backend got the end mark"); return "" }}
	tr := open(t, one(f.listen(t)))
	tx, err := tr.Begin(t.Context(), "b", from(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Rcpt(t.Context(), rcpt(t, "a@example.org")); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("disk is gone")
	if _, err := tx.Data(t.Context(), brokenContent{cause}); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
	check(t, "pool", figures(stats(t, tr)), "open 0 idle 0 busy 0 dialled 1 reused 0 lost 1")
}

// Each wait for a backend that says nothing ends by its timeout, and by the context.
func TestSilence(t *testing.T) {
	for _, where := range []string{"MAIL", "RCPT", "DATA", "end"} {
		for _, cancelled := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{answer: on(where, "hang")}
				if where == "end" {
					f.end = func(string) string { return "hang" }
				}
				o := one(Endpoint{Network: "tcp", Address: "a:25"})
				o.Timeouts = smtp.Timeouts{Command: 10 * time.Second, DataInit: 10 * time.Second, DataEnd: 10 * time.Second}
				tr := openWith(t, o, &network{hosts: map[string]*fake{"a:25": f}})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				want := 10 * time.Second
				if cancelled {
					want = 3 * time.Second
					time.AfterFunc(want, cancel)
				}
				start := time.Now()
				tx, err := tr.Begin(ctx, "b", from(t))
				if err != nil {
					t.Fatal(err)
				}
				if err = tx.Rcpt(ctx, rcpt(t, "a@example.org")); err == nil {
					_, err = tx.Data(ctx, letter)
				}
				if errors.Is(err, context.Canceled) != cancelled || err == nil {
					t.Errorf("%s, cancelled %v: %v", where, cancelled, err)
				}
				check(t, where+": waited", time.Since(start), want)
				check(t, where+": pool", figures(stats(t, tr)), "open 0 idle 0 busy 0 dialled 1 reused 0 lost 1")
				synctest.Wait()
				f.stop()
			})
		}
	}
}

// A context that has ended already costs the transaction, not the connection.
func TestEndedContext(t *testing.T) {
	f := &fake{}
	tr := open(t, one(f.listen(t)))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, withRcpt := range []bool{false, true} {
		tx, err := tr.Begin(t.Context(), "b", from(t))
		if err != nil {
			t.Fatal(err)
		}
		if withRcpt {
			if err := tx.Rcpt(t.Context(), rcpt(t, "a@example.org")); err != nil {
				t.Fatal(err)
			}
			_, err = tx.Data(ended, letter)
		} else {
			err = tx.Rcpt(ended, rcpt(t, "a@example.org"))
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	}
	check(t, "pool", figures(stats(t, tr)), "open 1 idle 1 busy 0 dialled 1 reused 1 lost 0")
}
