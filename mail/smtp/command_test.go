package smtp

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestParseCommand(t *testing.T) {
	for _, tt := range []struct{ line, verb, args string }{
		{"QUIT", "QUIT", ""},
		{"quit", "QUIT", ""}, // verbs have no case
		{"EHLO  client.test ", "EHLO", "client.test"},
		{"MAIL FROM:<> SIZE=1", "MAIL", "FROM:<> SIZE=1"},
		{"", "", ""},
		{" QUIT", "", ""},             // a verb begins the line
		{"QUITE", "", ""},             //
		{"QUI", "", ""},               //
		{"MAIL\tFROM:<>", "", ""},     // only a space ends it
		{"QUIT\x00", "", ""},          //
		{"NOOP \x00", "NOOP", "\x00"}, //
	} {
		got := parseCommand([]byte(tt.line))
		if got.verb != tt.verb || got.args != tt.args {
			t.Errorf("parseCommand(%q): got %q, %q, want %q, %q", tt.line, got.verb, got.args, tt.verb, tt.args)
		}
	}
}

// offered is all that a server can offer.
var offered = extensions{eightBit: true, utf8: true, size: true, dsn: true, chunking: true, binary: true, auth: true,
	requireTLS: true, secure: true, priority: true, deliverBy: true, hold: true}

func TestParseMail(t *testing.T) {
	a := mustPath(t, "<a@x.test>")
	hold := time.Date(2030, 1, 31, 8, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		args string
		want Sender
		code int // of the refusal
	}{
		{"FROM:<a@x.test>", Sender{Path: a}, 0},
		{"from:<a@x.test>", Sender{Path: a}, 0},
		{"FROM: <a@x.test>", Sender{Path: a}, 0}, // not in the grammar, but in the world
		{"FROM:<>", Sender{}, 0},
		{"FROM:<a@x.test> SIZE=4096  BODY=8bitmime SMTPUTF8", Sender{Path: a, Size: 4096, Body: BodyEightBit, UTF8: true}, 0},
		{"FROM:<a@x.test> body=7BIT", Sender{Path: a, Body: BodySevenBit}, 0},
		{"FROM:<a@x.test> SIZE=0", Sender{Path: a}, 0},
		{"FROM:<a@x.test> SIZE=99999999999999999999", Sender{Path: a, Size: math.MaxInt64}, 0}, // RFC 1870, Section 6.1
		{"FROM:<jörg@x.test> SMTPUTF8", Sender{Path: Path{"jörg", a.Domain}, UTF8: true}, 0},
		{"FROM:<jörg@x.test>", Sender{}, 553},                         // RFC 6531, Section 3.5
		{"FROM:<a@ü.test>", Sender{}, 553},                            // a U-label as well
		{"", Sender{}, 501},                                           //
		{"<a@x.test>", Sender{}, 501},                                 //
		{"TO:<a@x.test>", Sender{}, 501},                              //
		{"FROM :<a@x.test>", Sender{}, 501},                           //
		{"FROM:a@x.test", Sender{}, 501},                              //
		{"FROM:<a@x.test>SIZE=1", Sender{}, 501},                      //
		{"FROM:<a@x.test>\tSIZE=1", Sender{}, 501},                    // a tab separates nothing
		{"FROM:<a@x.test> SIZE=1\tBODY=7BIT", Sender{}, 501},          //
		{"FROM:<a@x.test> SIZE", Sender{}, 501},                       //
		{"FROM:<a@x.test> SIZE=", Sender{}, 501},                      //
		{"FROM:<a@x.test> SIZE=-1", Sender{}, 501},                    //
		{"FROM:<a@x.test> SIZE=+1", Sender{}, 501},                    //
		{"FROM:<a@x.test> SIZE=1x", Sender{}, 501},                    //
		{"FROM:<a@x.test> SIZE=999999999999999999999", Sender{}, 501}, // 21 digits
		{"FROM:<a@x.test> SIZE=1 size=2", Sender{}, 501},              // twice
		{"FROM:<a@x.test> BODY", Sender{}, 501},                       //
		{"FROM:<a@x.test> BODY=binarymime", Sender{Path: a, Body: BodyBinary}, 0},
		{"FROM:<a@x.test> BODY=9BIT", Sender{}, 501},
		{"FROM:<a@x.test> RET=full ENVID=a+2Bb+20c", Sender{Path: a, Return: ReturnFull, EnvID: "a+b c"}, 0},
		{"FROM:<a@x.test> RET=HDRS REQUIRETLS", Sender{Path: a, Return: ReturnHeaders, RequireTLS: true}, 0},
		{"FROM:<a@x.test> AUTH=<>", Sender{Path: a, Auth: "<>"}, 0},
		{"FROM:<a@x.test> AUTH=b+2Bc@y.test", Sender{Path: a, Auth: "b+c@y.test"}, 0},
		{"FROM:<a@x.test> AUTH=b", Sender{}, 501},                            // no address
		{"FROM:<a@x.test> AUTH=b@y.test+0A", Sender{}, 501},                  //
		{"FROM:<a@x.test> RET", Sender{}, 501},                               //
		{"FROM:<a@x.test> RET=BODY", Sender{}, 501},                          //
		{"FROM:<a@x.test> ENVID", Sender{}, 501},                             //
		{"FROM:<a@x.test> ENVID=a+0D+0Ab", Sender{}, 501},                    // RFC 3461, Section 4.4: printable
		{"FROM:<a@x.test> ENVID=a+2b", Sender{}, 501},                        // lower case
		{"FROM:<a@x.test> ENVID=a+2", Sender{}, 501},                         //
		{"FROM:<a@x.test> ENVID=" + strings.Repeat("a", 101), Sender{}, 501}, //
		{"FROM:<a@x.test> RET=FULL ENVID=1 RET=HDRS", Sender{}, 501},         //
		{"FROM:<a@x.test> REQUIRETLS=1", Sender{}, 501},                      //
		{"FROM:<a@x.test> NOTIFY=NEVER", Sender{}, 555},                      // belongs to RCPT
		{"FROM:<a@x.test> mt-priority=9", Sender{Path: a, Priority: 9}, 0},
		{"FROM:<a@x.test> MT-PRIORITY=-9", Sender{Path: a, Priority: -9}, 0},
		{"FROM:<a@x.test> MT-PRIORITY=0", Sender{Path: a}, 0},
		{"FROM:<a@x.test> MT-PRIORITY=-0", Sender{}, 501}, // RFC 6710, Section 6
		{"FROM:<a@x.test> MT-PRIORITY=10", Sender{}, 501}, //
		{"FROM:<a@x.test> MT-PRIORITY=+1", Sender{}, 501}, //
		{"FROM:<a@x.test> MT-PRIORITY", Sender{}, 501},    //
		{"FROM:<a@x.test> BY=120;R", Sender{Path: a, By: DeliverBy{120, ByReturn, false}}, 0},
		{"FROM:<a@x.test> BY=+000000120;rt", Sender{Path: a, By: DeliverBy{120, ByReturn, true}}, 0},
		{"FROM:<a@x.test> BY=0;N", Sender{Path: a, By: DeliverBy{0, ByNotify, false}}, 0},
		{"FROM:<a@x.test> BY=-999999999;NT", Sender{Path: a, By: DeliverBy{-999999999, ByNotify, true}}, 0},
		{"FROM:<a@x.test> BY=0;R", Sender{}, 501},          // RFC 2852, Section 4
		{"FROM:<a@x.test> BY=-1;R", Sender{}, 501},         //
		{"FROM:<a@x.test> BY=1000000000;N", Sender{}, 501}, // ten digits
		{"FROM:<a@x.test> BY=120", Sender{}, 501},          //
		{"FROM:<a@x.test> BY=120;", Sender{}, 501},         //
		{"FROM:<a@x.test> BY=120;T", Sender{}, 501},        //
		{"FROM:<a@x.test> BY=120;RTT", Sender{}, 501},      //
		{"FROM:<a@x.test> BY=;R", Sender{}, 501},           //
		{"FROM:<a@x.test> BY=-;N", Sender{}, 501},          //
		{"FROM:<a@x.test> BY=--1;N", Sender{}, 501},        //
		{"FROM:<a@x.test> HOLDFOR=60", Sender{Path: a, HoldFor: time.Minute}, 0},
		{"FROM:<a@x.test> HOLDFOR=0", Sender{Path: a}, 0},
		{"FROM:<a@x.test> HOLDUNTIL=2030-01-31T08:00:00Z", Sender{Path: a, HoldUntil: hold}, 0},
		{"FROM:<a@x.test> HOLDUNTIL=2030-01-31t09:59:59.5+02:00", Sender{Path: a, HoldUntil: hold}, 0}, // never too early
		{"FROM:<a@x.test> HOLDFOR=0 HOLDUNTIL=2030-01-31T08:00:00Z", Sender{}, 501},                    // RFC 4865, Section 4: one of them
		{"FROM:<a@x.test> HOLDUNTIL=2030-01-31T08:00:00Z HOLDFOR=1", Sender{}, 501},                    //
		{"FROM:<a@x.test> HOLDFOR=-1", Sender{}, 501},                                                  //
		{"FROM:<a@x.test> HOLDFOR=1234567890", Sender{}, 501},                                          //
		{"FROM:<a@x.test> HOLDUNTIL=2030-01-31", Sender{}, 501},                                        //
		{"FROM:<a@x.test> HOLDUNTIL=2030-02-30T08:00:00Z", Sender{}, 501},                              //
		{"FROM:<a@x.test> HOLDUNTIL=0000-01-01T00:00:00Z", Sender{}, 501},                              //
		{"FROM:<a@x.test> SIZE=1 BODY=7BIT SMTPUTF8 REQUIRETLS RET=HDRS ENVID=1 AUTH=<> MT-PRIORITY=1 BY=1;N HOLDFOR=1 HOLDUNTIL=2030-01-31T08:00:00Z X=1", Sender{}, 501},
		{"FROM:<a@x.test> SMTPUTF8=yes", Sender{}, 501}, //
		{"FROM:<a@x.test> =1", Sender{}, 501},           //
		{"FROM:<a@x.test> -A=1", Sender{}, 501},         //
		{"FROM:<a@x.test> SIZE=1=2", Sender{}, 501},     //
		{"FROM:<a@x.test> SIZE=\x01", Sender{}, 501},    //
		{"FROM:<a@x.test> X", Sender{}, 555},            // RFC 5321, Section 4.1.1.11
	} {
		got, err := parseMail(tt.args, offered)
		if code := codeOf(err); code != tt.code || code == 0 && got != tt.want {
			t.Errorf("parseMail(%q): got %+v, %v, want %+v, code %d", tt.args, got, err, tt.want, tt.code)
		}
	}
	// What is not offered is not known.
	if _, err := parseMail("FROM:<a@x.test> SIZE=1", extensions{}); codeOf(err) != 555 {
		t.Errorf("parseMail with a parameter that was not offered: got %v, want 555", err)
	}
	for _, p := range []string{"RET=FULL", "ENVID=1", "REQUIRETLS", "AUTH=<>", "MT-PRIORITY=1", "BY=1;N", "HOLDFOR=1", "HOLDUNTIL=2030-01-31T08:00:00Z"} {
		if _, err := parseMail("FROM:<a@x.test> "+p, extensions{}); codeOf(err) != 555 {
			t.Errorf("parseMail with %s, which was not offered: got %v, want 555", p, err)
		}
	}
	// RFC 8689, Section 4.1: it is only offered on TLS.
	if _, err := parseMail("FROM:<a@x.test> REQUIRETLS", extensions{requireTLS: true}); codeOf(err) != 530 {
		t.Errorf("parseMail with REQUIRETLS in clear: got %v, want 530", err)
	}
}

func TestParseRcpt(t *testing.T) {
	for _, tt := range []struct {
		args string
		utf8 bool
		want string
		code int
	}{
		{"TO:<a@x.test>", false, "a@x.test", 0},
		{"to: <a@x.test> ", false, "a@x.test", 0},
		{"TO:<Postmaster>", false, "postmaster", 0},
		{"TO:<@hop.test:a@x.test>", false, "a@x.test", 0},
		{"TO:<jörg@x.test>", true, "jörg@x.test", 0},
		{"TO:<jörg@x.test>", false, "", 553},
		{"TO:<>", false, "", 501}, // nobody
		{"TO:<a>", false, "", 501},
		{"TO:a@x.test", false, "", 501},
		{"TO:<a@x.test>,<b@x.test>", false, "", 501},
		{"FROM:<a@x.test>", false, "", 501},
		{"TO:<a@x.test> SMTPUTF8", true, "", 555}, // it belongs to MAIL
	} {
		got, err := parseRcpt(tt.args, tt.utf8, offered)
		if code := codeOf(err); code != tt.code || code == 0 && got.Path.String() != tt.want {
			t.Errorf("parseRcpt(%q, %v): got %+v, %v, want %q, code %d", tt.args, tt.utf8, got, err, tt.want, tt.code)
		}
	}
}

// RFC 3461: what a report is asked for, and for whom.
func TestParseRcptReports(t *testing.T) {
	for _, tt := range []struct {
		params   string
		notify   Notify
		original string
		code     int
	}{
		{"NOTIFY=NEVER", NotifyNever, "", 0},
		{"NOTIFY=success,DELAY", NotifySuccess | NotifyDelay, "", 0},
		{"NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=RFC822;b+2Bc@y.test", NotifySuccess | NotifyFailure | NotifyDelay, "rfc822;b+c@y.test", 0},
		{`ORCPT=utf-8;j\x{F6}rg@y.test`, 0, `utf-8;j\x{F6}rg@y.test`, 0}, // RFC 6533, Section 3
		{"ORCPT=utf-8;jörg@y.test", 0, "utf-8;jörg@y.test", 0},
		{"NOTIFY", 0, "", 501},
		{"NOTIFY=", 0, "", 501},
		{"NOTIFY=NEVER,FAILURE", 0, "", 501}, // RFC 3461, Section 4.1: it stands alone
		{"NOTIFY=FAILURE,FAILURE", 0, "", 501},
		{"NOTIFY=FAILURE,", 0, "", 501},
		{"NOTIFY=ALWAYS", 0, "", 501},
		{"NOTIFY=NEVER NOTIFY=NEVER", 0, "", 501},
		{"ORCPT=b@y.test", 0, "", 501},
		{"ORCPT=rfc822;", 0, "", 501},
		{"ORCPT=;b@y.test", 0, "", 501},
		{"ORCPT=rfc822;b+0A", 0, "", 501},
		{`ORCPT=utf-8;j\x{f6}rg`, 0, "", 501},
		{`ORCPT=utf-8;j\rg`, 0, "", 501},
		{"ORCPT=utf-8;j+2B", 0, "", 501},
		{"ORCPT=rfc822;" + strings.Repeat("a", 500), 0, "", 501},
		{"RET=FULL", 0, "", 555},
	} {
		got, err := parseRcpt("TO:<a@x.test> "+tt.params, true, offered)
		if code := codeOf(err); code != tt.code || code == 0 && (got.Notify != tt.notify || got.Original.String() != tt.original) {
			t.Errorf("parseRcpt with %s: got %v %q, %v, want %v %q, code %d",
				tt.params, got.Notify, got.Original, err, tt.notify, tt.original, tt.code)
		}
		if tt.code != 0 {
			continue
		}
		if _, err := parseRcpt("TO:<a@x.test> "+tt.params, true, extensions{}); codeOf(err) != 555 {
			t.Errorf("parseRcpt with %s, which was not offered: got %v, want 555", tt.params, err)
		}
	}
	hand := Recipient{Path: mustPath(t, "<a@x.test>"), Original: OriginalRecipient{"utf-8", "b\r\nDATA"}}
	if got := string(appendRcpt(nil, hand, offered)); got != "RCPT TO:<a@x.test>\r\n" {
		t.Errorf("an address put together by hand: got %q", got)
	}
}

func codeOf(err error) int {
	if err == nil {
		return 0
	}
	return ReplyOf(err).Code
}

// The client writes what the server reads, and leaves out what it must.
func TestAppendMail(t *testing.T) {
	full := Sender{Path: mustPath(t, `<"a b"@x.test>`), Size: 42, Body: BodyEightBit, UTF8: true}
	for _, tt := range []struct {
		from Sender
		ext  extensions
		want string
	}{
		{full, offered, `MAIL FROM:<"a b"@x.test> SIZE=42 BODY=8BITMIME SMTPUTF8`},
		{full, extensions{}, `MAIL FROM:<"a b"@x.test>`},
		{Sender{}, offered, "MAIL FROM:<>"},
		{Sender{Body: "7BIT\r\nDATA"}, offered, "MAIL FROM:<>"}, // only what is known is sent
		{Sender{Return: "FULL\r\nDATA", EnvID: "\r\nDATA"}, offered, "MAIL FROM:<> ENVID=+0D+0ADATA"},
		{Sender{Body: BodyBinary, RequireTLS: true, Return: ReturnHeaders, EnvID: "a=b", Auth: "c d"}, offered,
			"MAIL FROM:<> BODY=BINARYMIME REQUIRETLS RET=HDRS ENVID=a+3Db AUTH=c+20d"},
		{Sender{Priority: -4, By: DeliverBy{7, ByNotify, true}, HoldFor: time.Second / 2}, offered, "MAIL FROM:<> MT-PRIORITY=-4 BY=7;NT HOLDFOR=1"},
		{Sender{Priority: 10, By: DeliverBy{7, "N\r\nDATA", true}, HoldFor: -time.Second}, offered, "MAIL FROM:<>"},
		{Sender{By: DeliverBy{0, ByReturn, false}, HoldUntil: time.Unix(0, 1)}, offered, "MAIL FROM:<> HOLDUNTIL=1970-01-01T00:00:01Z"},
	} {
		got := string(appendMail(nil, tt.from, tt.ext))
		if got != tt.want+"\r\n" {
			t.Errorf("appendMail(%+v, %+v): got %q, want %q", tt.from, tt.ext, got, tt.want)
		}
	}
}

// Whatever a line holds: it is understood in one way, what was accepted is written
// and read again as the same, and a refusal is one line that tells nothing but ASCII.
func FuzzCommand(f *testing.F) {
	for _, s := range []string{"MAIL FROM:<a@x.test> SIZE=1 BODY=8BITMIME SMTPUTF8", "MAIL FROM:<>", "RCPT TO:<a@x.test>",
		"rcpt to: <@h.test:\"a b\"@[IPv6:::1]>", "EHLO a", "MAIL FROM:<\xff@x>", "MAIL FROM:<a@x.test> RET=FULL ENVID=a+20b REQUIRETLS AUTH=<>",
		"MAIL FROM:<> \n0", "MAIL FROM:<> MT-PRIORITY=-3 BY=+60;RT HOLDFOR=9", "MAIL FROM:<> HOLDUNTIL=2030-01-31T08:00:00.5+01:00",
		"RCPT TO:<a@x.test> NOTIFY=DELAY,FAILURE ORCPT=utf-8;a\\x{2B}b", "RCPT TO:<a@x.test> ORCPT=rfc822;a+2Bb", "MAIL FROM:<jörg@ü.test> SMTPUTF8"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		cmd := parseCommand(line)
		var err error
		switch cmd.verb {
		case "MAIL":
			var m Sender
			if m, err = parseMail(cmd.args, offered); err == nil {
				written := parseCommand(appendMail(nil, m, offered)).args
				if again, err := parseMail(strings.TrimSuffix(written, "\r\n"), offered); err != nil || again != m {
					t.Errorf("%q: read %+v, wrote %q, read %+v, %v", line, m, written, again, err)
				}
				err = m.Path.check()
			}
		case "RCPT":
			var r Recipient
			if r, err = parseRcpt(cmd.args, true, offered); err == nil {
				written := parseCommand(appendRcpt(nil, r, offered)).args
				if again, err := parseRcpt(strings.TrimSuffix(written, "\r\n"), true, offered); err != nil || again != r {
					t.Errorf("%q: read %+v, wrote %q, read %+v, %v", line, r, written, again, err)
				}
				err = r.Path.check()
			}
		}
		if err == nil {
			return
		}
		reply := string(appendReply(nil, ReplyOf(err), true, false))
		if code := codeOf(err); code < 500 || strings.Count(reply, "\n") != 1 || !isASCII(reply) {
			t.Errorf("%q: refused with %q (%v), want one line of ASCII with a permanent code", line, reply, err)
		}
	})
}
