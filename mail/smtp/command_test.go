package smtp

import (
	"math"
	"strings"
	"testing"
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

func TestParseMail(t *testing.T) {
	a := mustPath(t, "<a@x.test>")
	for _, tt := range []struct {
		args string
		want Sender
		code int // of the refusal
	}{
		{"FROM:<a@x.test>", Sender{Path: a}, 0},
		{"from:<a@x.test>", Sender{Path: a}, 0},
		{"FROM: <a@x.test>", Sender{Path: a}, 0}, // not in the grammar, but in the world
		{"FROM:<>", Sender{}, 0},
		{"FROM:<a@x.test> SIZE=4096  BODY=8bitmime SMTPUTF8", Sender{a, 4096, BodyEightBit, true}, 0},
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
		{"FROM:<a@x.test> BODY=BINARYMIME", Sender{}, 501},            // RFC 3030 is not offered
		{"FROM:<a@x.test> SMTPUTF8=yes", Sender{}, 501},               //
		{"FROM:<a@x.test> =1", Sender{}, 501},                         //
		{"FROM:<a@x.test> -A=1", Sender{}, 501},                       //
		{"FROM:<a@x.test> SIZE=1=2", Sender{}, 501},                   //
		{"FROM:<a@x.test> SIZE=\x01", Sender{}, 501},                  //
		{"FROM:<a@x.test> RET=FULL", Sender{}, 555},                   // RFC 5321, Section 4.1.1.11
		{"FROM:<a@x.test> X", Sender{}, 555},                          //
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
		{"TO:<a@x.test> NOTIFY=NEVER", false, "", 555},
		{"TO:<a@x.test> SMTPUTF8", true, "", 555}, // it belongs to MAIL
	} {
		got, err := parseRcpt(tt.args, tt.utf8)
		if code := codeOf(err); code != tt.code || code == 0 && got.Path.String() != tt.want {
			t.Errorf("parseRcpt(%q, %v): got %+v, %v, want %q, code %d", tt.args, tt.utf8, got, err, tt.want, tt.code)
		}
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
	full := Sender{mustPath(t, `<"a b"@x.test>`), 42, BodyEightBit, true}
	for _, tt := range []struct {
		from Sender
		ext  extensions
		want string
	}{
		{full, offered, `MAIL FROM:<"a b"@x.test> SIZE=42 BODY=8BITMIME SMTPUTF8`},
		{full, extensions{}, `MAIL FROM:<"a b"@x.test>`},
		{Sender{}, offered, "MAIL FROM:<>"},
		{Sender{Body: "7BIT\r\nDATA"}, offered, "MAIL FROM:<>"}, // only what is known is sent
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
		"rcpt to: <@h.test:\"a b\"@[IPv6:::1]>", "EHLO a", "MAIL FROM:<\xff@x>", "MAIL FROM:<jörg@ü.test> SMTPUTF8"} {
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
			if r, err = parseRcpt(cmd.args, true); err == nil {
				written := parseCommand(appendRcpt(nil, r)).args
				if again, err := parseRcpt(strings.TrimSuffix(written, "\r\n"), true); err != nil || again != r {
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
