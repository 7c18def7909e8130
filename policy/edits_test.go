package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
)

// Which edit belongs to which stage: one line per edit, one mark per stage, with and
// without a transaction.
func TestEditAtStage(t *testing.T) {
	to := path(t, "new@example.com")
	edits := []struct {
		name   string
		stages string // connect secure helo auth mail rcpt data headers chunk message reset close route deliver deferred bounced delivered
		edit   func(e *Edits) error
	}{
		{"AddHeader", ".......H.M.......", func(e *Edits) error { return e.AddHeader(0, "X", "y") }},
		{"SetHeader", ".......H.M.......", func(e *Edits) error { return e.SetHeader(1, "y") }},
		{"DeleteHeader", ".......H.M.......", func(e *Edits) error { return e.DeleteHeader(1) }},
		{"SpliceBody", ".........M.......", func(e *Edits) error { return e.SpliceBody(0, 1, []byte("x")) }},
		{"SetSender", "....MRDH.M.......", func(e *Edits) error { return e.SetSender(to) }},
		{"AddRecipient", ".....RDH.M.......", func(e *Edits) error { return e.AddRecipient(to) }},
		{"SetRecipient", ".....RDH.M.......", func(e *Edits) error { return e.SetRecipient(0, to) }},
		{"DeleteRecipient", ".....RDH.M.......", func(e *Edits) error { return e.DeleteRecipient(0) }},
		{"Judge", ".......H.M.......", func(e *Edits) error { return e.Judge(0, Verdict{Action: Discard}) }},
		{"Tag", "CSHAMRDHKM..RD...", func(e *Edits) error { return e.Tag("k", "v") }},
		{"AddScore", "CSHAMRDHKM..RD...", func(e *Edits) error { return e.AddScore("k", 1500) }},
		{"SetRelay", "............R....", func(e *Edits) error { return e.SetRelay("relay.example") }},
		{"SetSource", "............R....", func(e *Edits) error { return e.SetSource("pool") }},
		{"SetEncryption", "............R....", func(e *Edits) error { return e.SetEncryption(Verified) }},
		{"Connect", ".............D...", func(e *Edits) error { return e.Connect(netip.MustParseAddrPort("192.0.2.1:25")) }},
	}
	for _, tt := range edits {
		for i, stage := range allStages {
			for _, inTx := range []bool{true, false} {
				want := tt.stages[i] != '.' && (inTx || tt.name == "Tag" || tt.name == "AddScore")
				var tx *Transaction
				if inTx {
					tx = newTx(t)
				}
				before := tx.text()
				_, log := runOne(stage, tx, func(e *Edits) {
					err := tt.edit(e)
					if (err == nil) != want || err != nil && !errors.Is(err, ErrPhase) {
						t.Errorf("%s at %s, in a transaction: %t: %v, want success: %t", tt.name, stage, inTx, err, want)
					}
				})
				if changed := tx.text() != before; changed != (want && inTx) {
					t.Errorf("%s at %s, in a transaction: %t: changed: %t", tt.name, stage, inTx, changed)
				}
				if (len(log) == 1) != want {
					t.Errorf("%s at %s: log %v", tt.name, stage, log)
				}
			}
		}
		var zero Edits
		if err := tt.edit(&zero); !errors.Is(err, ErrPhase) {
			t.Errorf("%s of zero Edits: %v", tt.name, err)
		}
	}
	// Before StageHeaders there is no message; an edit must not invent one.
	tx := newTx(t)
	tx.Message = nil
	for _, stage := range allStages {
		runOne(stage, tx, func(e *Edits) {
			for _, tt := range edits[:4] {
				if err := tt.edit(e); !errors.Is(err, ErrPhase) {
					t.Errorf("%s without a message at %s: %v", tt.name, stage, err)
				}
			}
		})
	}
}

// One line per edit: what it does, and what it says in the log.
func TestEdits(t *testing.T) {
	for _, tt := range []struct {
		edit     func(e *Edits) error
		old, new string // in the text of the transaction
		log      string
		err      error
		why      string
	}{
		{func(e *Edits) error { return e.AddHeader(0, "X", "y") }, `"Received`, `"X: y\r\nReceived`, "added X: y", nil, "top"},
		{func(e *Edits) error { return e.AddHeader(2, "X", "y") }, `Subject`, `X: y\r\nSubject`, "added X: y", nil, "middle"},
		{func(e *Edits) error { return e.AddHeader(99, "X", "y") }, `one\r\n`, `one\r\nX: y\r\n`, "added X: y", nil, "bottom"},
		{func(e *Edits) error { return e.AddHeader(-1, "X", "y") }, `one\r\n`, `one\r\nX: y\r\n`, "added X: y", nil, "-1 is the bottom"},
		{func(e *Edits) error { return e.AddHeader(0, "X", "ü") }, `"Received`, `"X: =?utf-8?q?=C3=BC?=\r\nReceived`, "added X: ü", nil, "encoded"},
		{func(e *Edits) error { return e.AddHeader(0, "X", "y\r\nZ: 1") }, "", "", "", message.ErrFieldValue, "a second field"},
		{func(e *Edits) error { return e.AddHeader(0, "X:", "y") }, "", "", "", message.ErrFieldName, "not a name"},
		{func(e *Edits) error { return e.AddHeader(0, "reCeived", "y") }, "", "", "", ErrProtected, "trace"},
		{func(e *Edits) error { return e.AddHeader(0, "Received ", "y") }, "", "", "", ErrProtected, "trace in disguise"},
		{func(e *Edits) error { return e.AddHeader(0, "Authentication-Results", "other.test; none") }, `"Received`, `"Authentication-Results: other.test; none\r\nReceived`, "added Authentication-Results: other.test; none", nil, "somebody else's results"},
		{func(e *Edits) error { return e.AddHeader(0, "authentication-results", "MX.test; spf=pass") }, "", "", "", ErrProtected, "results in our name"},
		{func(e *Edits) error {
			return e.AddHeader(0, "Authentication-Results", "(a \\) (b)) \"mx.\\test\" 1; spf=pass")
		}, "", "", "", ErrProtected, "results in our name, dressed up"},
		{func(e *Edits) error { return e.AddHeader(0, "Authentication-Results ", " \tmx.test.(x); spf=pass") }, "", "", "", ErrProtected, "results in our name, with a dot"},
		{func(e *Edits) error { return e.SetHeader(2, "two") }, "one", "two", "set Subject: two", nil, "set"},
		{func(e *Edits) error { return e.SetHeader(0, "two") }, "", "", "", ErrProtected, "trace"},
		{func(e *Edits) error { return e.SetHeader(2, "two\r\n") }, "", "", "", message.ErrFieldValue, "a line end"},
		{func(e *Edits) error { return e.SetHeader(3, "two") }, "", "", "", ErrRange, "no such field"},
		{func(e *Edits) error { return e.SetHeader(-1, "two") }, "", "", "", ErrRange, "no such field"},
		{func(e *Edits) error { return e.DeleteHeader(2) }, `Subject: one\r\n`, "", "deleted Subject", nil, "delete"},
		{func(e *Edits) error { return e.DeleteHeader(0) }, "", "", "", ErrProtected, "trace"},
		{func(e *Edits) error { return e.DeleteHeader(3) }, "", "", "", ErrRange, "no such field"},
		{func(e *Edits) error { return e.DeleteHeader(-1) }, "", "", "", ErrRange, "no such field"},
		{func(e *Edits) error { return e.SpliceBody(5, 0, []byte("!")) }, `hello\r\n`, `hello!\r\n`, "body at 5: 0 octets replaced by 1", nil, "insert"},
		{func(e *Edits) error { return e.SpliceBody(0, 7, []byte("new")) }, `hello\r\n`, `new`, "body at 0: 7 octets replaced by 3", nil, "replace all"},
		{func(e *Edits) error { return e.SpliceBody(7, 0, []byte("x")) }, `hello\r\n`, `hello\r\nx`, "body at 7: 0 octets replaced by 1", nil, "append"},
		{func(e *Edits) error { return e.SpliceBody(0, 8, nil) }, "", "", "", ErrRange, "more than there is"},
		{func(e *Edits) error { return e.SpliceBody(8, 0, nil) }, "", "", "", ErrRange, "behind the end"},
		{func(e *Edits) error { return e.SpliceBody(-1, 1, nil) }, "", "", "", ErrRange, "before the beginning"},
		{func(e *Edits) error { return e.SpliceBody(1, -1, nil) }, "", "", "", ErrRange, "less than nothing"},
		{func(e *Edits) error { return e.SpliceBody(1, 1<<63-1, nil) }, "", "", "", ErrRange, "no overflow"},
		{func(e *Edits) error { return e.SetSender(smtp.Path{}) }, `"s@example.com"`, `""`, "sender <s@example.com> became <>", nil, "the null path"},
		{func(e *Edits) error { return e.SetSender(path(t, "ü@example.com")) }, `"s@example.com" false`, `"ü@example.com" true`, "sender <s@example.com> became <ü@example.com>", nil, "needs SMTPUTF8"},
		{func(e *Edits) error { return e.SetSender(smtp.Path{Local: "a>\r\nRCPT TO:<b"}) }, "", "", "", ErrRange, "a second command"},
		{func(e *Edits) error { return e.SetSender(smtp.Path{Local: "a"}) }, "", "", "", ErrRange, "no domain"},
		{func(e *Edits) error { return e.AddRecipient(path(t, "n@example.net")) }, ` tags`, ` rcpt n@example.net by "one"; tags`, "added recipient <n@example.net>", nil, "add"},
		{func(e *Edits) error { return e.AddRecipient(path(t, "ü@example.net")) }, ` false; rcpt a@example.net by ""; rcpt b@example.net by ""; rcpt c@example.net by "";`, ` true; rcpt a@example.net by ""; rcpt b@example.net by ""; rcpt c@example.net by ""; rcpt ü@example.net by "one";`, "added recipient <ü@example.net>", nil, "needs SMTPUTF8"},
		{func(e *Edits) error { return e.AddRecipient(smtp.Path{}) }, "", "", "", ErrRange, "the null path"},
		{func(e *Edits) error { return e.AddRecipient(smtp.Path{Local: "a\nb", Domain: path(t, "a@b.c").Domain}) }, "", "", "", ErrRange, "a line end"},
		{func(e *Edits) error { return e.SetRecipient(1, path(t, "n@example.net")) }, `b@example.net by ""`, `n@example.net by "one"`, "recipient <b@example.net> became <n@example.net>", nil, "change"},
		{func(e *Edits) error { return e.SetRecipient(3, path(t, "n@example.net")) }, "", "", "", ErrRange, "no such recipient"},
		{func(e *Edits) error { return e.SetRecipient(-1, path(t, "n@example.net")) }, "", "", "", ErrRange, "no such recipient"},
		{func(e *Edits) error { return e.SetRecipient(0, smtp.Path{}) }, "", "", "", ErrRange, "the null path"},
		{func(e *Edits) error { return e.DeleteRecipient(1) }, ` rcpt b@example.net by "";`, "", "dropped recipient <b@example.net>", nil, "drop"},
		{func(e *Edits) error { return e.DeleteRecipient(3) }, "", "", "", ErrRange, "no such recipient"},
		{func(e *Edits) error { return e.DeleteRecipient(-1) }, "", "", "", ErrRange, "no such recipient"},
		{func(e *Edits) error { return e.Tag("k", "v\r\nw") }, "[]", "[{one k v\r\nw}]", "tag k=v  w", nil, "a tag may hold anything, its line in the log not"},
		{func(e *Edits) error { return e.AddScore("k", -1500) }, "; message", " scores [k=-1.5]; message", "score k=-1.5", nil, "a score"},
		{func(e *Edits) error { return e.AddScore("k", maxMilli+1) }, "", "", "", ErrRange, "a score that could overflow"},
		{func(e *Edits) error { return e.Tag("", "v") }, "", "", "", ErrRange, "no key"},
		{func(e *Edits) error { return e.Tag("k", strings.Repeat("v", 1024)) }, "", "", "", ErrRange, "a long tag"},
	} {
		tx := newTx(t)
		want := tx.text()
		if tt.old != "" {
			want = strings.Replace(want, tt.old, tt.new, 1)
		}
		before := tx.text()
		_, log := runOne(StageMessage, tx, func(e *Edits) {
			err := tt.edit(e)
			if !errors.Is(err, tt.err) {
				t.Errorf("%s: %v, want %v", tt.why, err, tt.err)
			}
			if tx.text() != before {
				t.Errorf("%s: the transaction changed before the call was over:\n%s", tt.why, tx.text())
			}
		})
		if got := tx.text(); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.why, got, want)
		}
		var logged []string
		for _, l := range log {
			logged = append(logged, l.String())
		}
		if strings.Join(logged, "|") != tt.log {
			t.Errorf("%s: log %q, want %q", tt.why, logged, tt.log)
		}
	}
}

// The filter sees its own edits at once, and indices count with them.
func TestDraftView(t *testing.T) {
	tx := newTx(t)
	_, log := runOne(StageMessage, tx, func(e *Edits) {
		for _, err := range []error{
			e.AddHeader(0, "X", "1"), e.AddHeader(-1, "Y", "2"), e.SetHeader(3, "two"), e.DeleteHeader(2),
			e.SpliceBody(0, 5, []byte("bye")), e.SpliceBody(3, 0, []byte("!")),
			e.SetSender(path(t, "q@example.com")), e.SetSender(path(t, "r@example.com")),
			e.DeleteRecipient(0), e.AddRecipient(path(t, "n@example.net")), e.SetRecipient(2, path(t, "m@example.net")),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		equal(t, "draft", string(e.Message().bytes()), "X: 1\r\nReceived: by x\r\nSubject: two\r\nY: 2\r\n\r\nbye!\r\n")
		equal(t, "sender", e.Sender().Path.String(), "r@example.com")
		equal(t, "recipients", fmt.Sprint(len(e.Recipients()), e.Recipients()[2].Path), "3 m@example.net")
		equal(t, "base", string(tx.Message.bytes()), sample)
		equal(t, "log", len(e.Log()), 11)
	})
	equal(t, "applied", tx.text(), `sender "r@example.com" false; rcpt b@example.net by ""; rcpt c@example.net by ""; `+
		`rcpt m@example.net by "one"; tags []; message "X: 1\r\nReceived: by x\r\nSubject: two\r\nY: 2\r\n\r\nbye!\r\n"`)
	equal(t, "indices", []int{log[0].Index, log[1].Index, log[9].Index}, []int{0, 4, 2})
	equal(t, "announced size", tx.Sender.Size, int64(7))
}

// At StageRcpt the last recipient is the one that is asked about, and stays it.
func TestCandidateStaysLast(t *testing.T) {
	tx := newTx(t)
	runOne(StageRcpt, tx, func(e *Edits) {
		if err := e.AddRecipient(path(t, "n@example.net")); err != nil {
			t.Error(err)
		}
		if err := e.DeleteRecipient(3); !errors.Is(err, ErrRange) {
			t.Errorf("the candidate was taken out: %v", err)
		}
		if err := e.SetRecipient(3, path(t, "d@example.net")); err != nil {
			t.Error(err)
		}
		if err := e.DeleteRecipient(0); err != nil {
			t.Error(err)
		}
	})
	var got []string
	for _, r := range tx.Rcpts {
		got = append(got, r.Path.String())
	}
	equal(t, "recipients", got, []string{"b@example.net", "n@example.net", "d@example.net"})
}

// What one holds on to must not change under one's feet.
func TestEditsShareNoMemory(t *testing.T) {
	tx := newTx(t)
	tx.Rcpts = append(make([]Recipient, 0, 64), tx.Rcpts...) // with room behind
	tx.Tags = append(make([]Tag, 0, 64), Tag{"f", "k", "v"})
	shadow := *tx // as who asks a second chain does
	began, rcpts := tx.Rcpts, slices.Clone(tx.Rcpts)
	data := []byte("mine")
	edit := func(tx *Transaction, mark string) {
		runOne(StageMessage, tx, func(e *Edits) {
			for _, err := range []error{e.DeleteRecipient(0), e.AddRecipient(path(t, mark+"@example.net")),
				e.SetRecipient(0, path(t, mark+mark+"@example.net")), e.Tag("k", mark), e.SpliceBody(0, 0, data), e.AddHeader(0, "X", mark)} {
				if err != nil {
					t.Error(err)
				}
			}
			_ = append(e.Recipients(), Recipient{AddedBy: "nobody"})
			_ = append(e.Log(), Edit{Name: "nothing"})
		})
	}
	edit(tx, "one")
	want := tx.text()
	copy(data, "YOUR")
	edit(&shadow, "two")
	_ = append(tx.Rcpts, Recipient{AddedBy: "nobody"})
	equal(t, "the first after the second was edited", tx.text(), want)
	if got := shadow.text(); !strings.Contains(got, "twotwo@") || strings.Contains(got, "one@") {
		t.Errorf("the second: %s", got)
	}
	equal(t, "the slice they began with", began, rcpts)
}

func TestLimits(t *testing.T) {
	// until edits until it fails, and returns how often it did.
	until := func(tx *Transaction, edit func(e *Edits) error) (n int) {
		runOne(StageMessage, tx, func(e *Edits) {
			for n = 0; n < 1e6; n++ {
				if err := edit(e); err != nil {
					if !errors.Is(err, ErrTooMuch) {
						t.Error(err)
					}
					equal(t, "log", len(e.Log()), n)
					return
				}
			}
		})
		return n
	}
	long := strings.Repeat("x ", 16<<10)
	for _, tt := range []struct {
		name string
		want int
		edit func(e *Edits) error
	}{
		{"small fields", 256, func(e *Edits) error { return e.AddHeader(0, "X", "y") }},
		{"fields that are set", 256, func(e *Edits) error { return e.SetHeader(2, "y") }},
		{"large fields", 3, func(e *Edits) error { return e.AddHeader(0, "X", long) }},
		{"fields that grow by encoding", 1, func(e *Edits) error { return e.AddHeader(0, "X", strings.Repeat("ü", 12<<10)) }},
		{"splices", 1024, func(e *Edits) error { return e.SpliceBody(0, 1, []byte("x")) }},
		{"growth", 16, func(e *Edits) error { return e.SpliceBody(0, 0, make([]byte, 64<<10)) }},
		{"the same place again and again", 16, func(e *Edits) error { return e.SpliceBody(0, e.Message().Body.Size(), make([]byte, 64<<10)) }},
		{"recipients", 100, func(e *Edits) error { return e.AddRecipient(path(t, "n@example.net")) }},
		{"changes of one recipient", 4096, func(e *Edits) error { return e.SetRecipient(0, path(t, "n@example.net")) }},
		{"changes of the sender", 4096, func(e *Edits) error { return e.SetSender(path(t, "n@example.net")) }},
		{"tags", 64, func(e *Edits) error { return e.Tag("k", "v") }},
	} {
		if got := until(newTx(t), tt.edit); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}

	// An edit that was too much leaves room for one that is not.
	runOne(StageMessage, newTx(t), func(e *Edits) {
		if err := e.SpliceBody(0, 0, make([]byte, 4<<20)); !errors.Is(err, ErrTooMuch) {
			t.Errorf("4 MiB: %v", err)
		}
		if err := e.SpliceBody(0, 0, []byte("x")); err != nil {
			t.Errorf("one octet after 4 MiB that were refused: %v", err)
		}
	})

	// A chain of filters must not double the body with each of them.
	tx := newTx(t)
	for range 8 {
		runOne(StageMessage, tx, func(e *Edits) { _ = e.SpliceBody(0, 0, make([]byte, 400<<10)) })
	}
	if got := tx.Message.Body.Size(); got > 2*7+1<<20 {
		t.Errorf("8 filters made 7 octets %d", got)
	}

	// Nor may a client that says EHLO without end fill a session with tags.
	s := new(Session)
	r := NewChain(Link{Filter: Func("f", AllStages, tagging)}).Open(s, nil)
	for range 1000 {
		r.Decide(t.Context(), StageHelo, nil)
	}
	equal(t, "tags of a session", len(s.Tags), 64)
}

// An operator may allow a filter more, or less; a body may grow by what the one filter may, not
// by what another before it may.
func TestLimitsOfLink(t *testing.T) {
	tx := newTx(t)
	came := tx.Message.Body.Size()
	for _, tt := range []struct {
		limits               EditLimits
		fields, rcpts, bytes int
	}{
		{EditLimits{HeaderEdits: 2, Recipients: 3, BodyGrowth: 5}, 2, 3, int(came) + 5},
		{EditLimits{HeaderSize: 15, BodyGrowth: 9}, 1, 100, 4}, // "X: 1234567\r\n" has 12
	} {
		count := func(edit func() error) (n int) {
			for n < 1000 && edit() == nil {
				n++
			}
			return n
		}
		f := Func("f", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
			equal(t, "fields", count(func() error { return e.Edits.AddHeader(0, "X", "1234567") }), tt.fields)
			equal(t, "recipients", count(func() error { return e.Edits.AddRecipient(path(t, "n@example.net")) }), tt.rcpts)
			equal(t, "octets", count(func() error { return e.Edits.SpliceBody(0, 0, []byte("x")) }), tt.bytes)
			equal(t, "the most", e.Edits.Message().Body.Size(), e.Edits.MaxBody())
			return Verdict{}, nil
		})
		NewChain(Link{Filter: f, Limits: tt.limits}).Open(new(Session), nil).Decide(t.Context(), StageMessage, tx)
	}
}

// A footer on 25 MB copies the footer: neither the splice nor what sends it on copies the body.
func TestFooterCopiesLittle(t *testing.T) {
	tx := newTx(t)
	tx.Message = &Message{Header: tx.Message.Header, Body: spool(t, make([]byte, 25_000_000))}
	footer := []byte("-- \r\nchecked\r\n")
	r := NewChain(Link{Filter: Func("f", AllStages, func(_ context.Context, e *Event) (Verdict, error) {
		return Verdict{}, e.Edits.SpliceBody(e.Edits.Message().Body.Size(), 0, footer)
	})}).Open(new(Session), nil)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	v := r.Decide(t.Context(), StageMessage, tx)
	runtime.ReadMemStats(&after)
	if v.Action != Continue || tx.Message.Body.Size() != 25_000_000+int64(len(footer)) {
		t.Fatalf("%v, a body of %d octets", v, tx.Message.Body.Size())
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 4<<10 {
		t.Errorf("%d octets were allocated for a footer of %d", n, len(footer))
	}
}

// Random edits of all kinds, against a plain model.
func TestHeaderEditsAgreeWithLines(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 9))
		tx := newTx(t)
		model := []string{"Received: by x\r\n", "From: a@example.com\r\n", "Subject: one\r\n"}
		for range 4 { // filters
			runOne(StageHeaders, tx, func(e *Edits) {
				for range r.IntN(12) {
					i, value := r.IntN(len(model)+1), fmt.Sprint(r.IntN(1000))
					var err error
					switch r.IntN(3) {
					case 0:
						err = e.AddHeader(i, "X", value)
						model = slices.Insert(model, i, "X: "+value+"\r\n")
					case 1:
						if err = e.SetHeader(i, value); err == nil {
							name, _, _ := strings.Cut(model[i], ":")
							model[i] = name + ": " + value + "\r\n"
						}
					case 2:
						if err = e.DeleteHeader(i); err == nil {
							model = slices.Delete(model, i, i+1)
						}
					}
					if err != nil && !errors.Is(err, ErrProtected) && !errors.Is(err, ErrRange) {
						t.Fatal(err)
					}
				}
			})
		}
		want := strings.Join(model, "") + "\r\nhello\r\n"
		if got := tx.Message.bytes(); !bytes.Equal(got, []byte(want)) {
			t.Fatalf("seed %d:\n%q\nwant\n%q", seed, got, want)
		}
	}
}
