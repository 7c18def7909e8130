package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestAppendReply(t *testing.T) {
	long := strings.Repeat("x", maxReplyText)
	for _, tt := range []struct {
		reply *Reply
		want  string
	}{
		{Refuse(550, Enhanced{5, 7, 1}, "no"), "550 5.7.1 no\r\n"},
		{Refuse(250, Enhanced{}, "yes"), "250 2.0.0 yes\r\n"},
		{Refuse(250, Enhanced{}, ""), "250 2.0.0 \r\n"},
		{Refuse(354, Enhanced{}, "go on"), "354 go on\r\n"},              // RFC 2034, Section 4: not on 3xx
		{Refuse(354, Enhanced{3, 0, 0}, "go on"), "354 go on\r\n"},       //
		{Refuse(450, Enhanced{5, 1, 1}, "later"), "450 4.2.1 later\r\n"}, // classes agree
		{Refuse(550, Enhanced{2, 0, 0}, "no"), "550 5.1.1 no\r\n"},       //
		{Refuse(550, Enhanced{5, -1, 1}, "no"), "550 5.1.1 no\r\n"},      // RFC 3463, Section 2
		{Refuse(550, Enhanced{5, 1, 1000}, "no"), "550 5.1.1 no\r\n"},    //
		{Refuse(0, Enhanced{}, "what"), "451 4.3.0 what\r\n"},            // codes that are none
		{Refuse(199, Enhanced{}, "what"), "451 4.3.0 what\r\n"},          //
		{Refuse(600, Enhanced{5, 0, 0}, "what"), "451 4.3.0 what\r\n"},   //
		{Refuse(-250, Enhanced{}, "what"), "451 4.3.0 what\r\n"},         //
		{Refuse(550, Enhanced{5, 0, 0}, "a\nb\nc"), "550-5.0.0 a\r\n550-5.0.0 b\r\n550 5.0.0 c\r\n"},
		{Refuse(550, Enhanced{5, 0, 0}, "a\n"), "550 5.0.0 a\r\n"},                                 // a line end at the end is none
		{Refuse(550, Enhanced{5, 0, 0}, "a\n\nb"), "550-5.0.0 a\r\n550-5.0.0 \r\n550 5.0.0 b\r\n"}, //
		{Refuse(550, Enhanced{5, 0, 0}, "a\r\n250 OK"), "550-5.0.0 a \r\n550 5.0.0 250 OK\r\n"},    // no reply of its own
		{Refuse(550, Enhanced{5, 0, 0}, "a\r250\x00b\tc\x7f"), "550 5.0.0 a 250 b c \r\n"},         //
		{Refuse(550, Enhanced{5, 0, 0}, "é\xff\u0085"), "550 5.0.0 ???\r\n"},                       // ASCII alone
		{Refuse(550, Enhanced{5, 0, 0}, long+"y"), "550-5.0.0 " + long + "\r\n550 5.0.0 y\r\n"},
		{Refuse(550, Enhanced{5, 0, 0}, long[:400]+" "+long), "550-5.0.0 " + long[:400] + " \r\n550 5.0.0 " + long + "\r\n"},
		{Refuse(550, Enhanced{5, 1, 1}, "no").Because(errors.New("secret")), "550 5.1.1 no\r\n"}, // the cause is ours
	} {
		if got := string(appendReply(nil, tt.reply, true, false)); got != tt.want {
			t.Errorf("appendReply(%+v): got %q, want %q", tt.reply, got, tt.want)
		}
	}
	utf8 := Refuse(550, Enhanced{5, 0, 0}, "é\u0085\xff")
	if got, want := string(appendReply(nil, utf8, false, true)), "550 é??\r\n"; got != want {
		t.Errorf("appendReply for UTF-8 without enhanced codes: got %q, want %q", got, want)
	}
	if got := strings.Count(string(appendReply(nil, Refuse(250, Enhanced{}, strings.Repeat("a\n", 1000)), true, false)), "\r\n"); got != maxReplyLines {
		t.Errorf("lines of a reply of a thousand: got %d, want %d", got, maxReplyLines)
	}
}

func TestReplyOf(t *testing.T) {
	refusal := Refuse(550, Enhanced{5, 1, 1}, "no such user")
	for _, tt := range []struct {
		err  error
		want string // code and enhanced code
	}{
		{refusal, "550 5.1.1"},
		{refusal.Because(io.EOF), "550 5.1.1"},
		{fmt.Errorf("policy: %w", refusal), "550 5.1.1"},
		{errors.Join(io.EOF, refusal), "550 5.1.1"},
		{io.EOF, "451 4.3.0"}, // what is not known is temporary
		{context.DeadlineExceeded, "451 4.3.0"},
		{context.Canceled, "451 4.3.0"},
		{os.ErrDeadlineExceeded, "451 4.3.0"},
		{&net.DNSError{Err: "no such host"}, "451 4.3.0"},
	} {
		r := ReplyOf(tt.err)
		if got := fmt.Sprint(r.Code, " ", r.Enh); got != tt.want {
			t.Errorf("ReplyOf(%v): got %q, want %q", tt.err, got, tt.want)
		}
		if !errors.Is(r, tt.err) && r != refusal && r.Cause == nil {
			t.Errorf("ReplyOf(%v): got cause %v, want the error", tt.err, r.Cause)
		}
		if strings.Contains(r.Text, "host") || strings.Contains(r.Text, "EOF") {
			t.Errorf("ReplyOf(%v): got text %q, want nothing of the cause", tt.err, r.Text)
		}
	}
	if r := ReplyOf(nil); r != nil {
		t.Errorf("ReplyOf(nil): got %v, want nil", r)
	}
}

func TestReplyClasses(t *testing.T) {
	for _, tt := range []struct {
		code                           int
		positive, temporary, permanent bool
		asError                        int
	}{
		{250, true, false, false, 451}, // a refusal cannot say yes
		{354, true, false, false, 451},
		{421, false, true, false, 421},
		{550, false, false, true, 550},
		{0, false, false, false, 451},
		{600, false, false, false, 451},
	} {
		r := Refuse(tt.code, Enhanced{}, "x")
		if r.Positive() != tt.positive || r.Temporary() != tt.temporary || r.Permanent() != tt.permanent || r.asError().Code != tt.asError {
			t.Errorf("%d: got %v %v %v %d, want %+v", tt.code, r.Positive(), r.Temporary(), r.Permanent(), r.asError().Code, tt)
		}
	}
	r := Replyf(550, Enhanced{5, 1, 1}, "no %s\nhere\x1b[1m", "user").Because(io.EOF)
	if got, want := r.Error(), "550 5.1.1 no user / here [1m (EOF)"; got != want {
		t.Errorf("Error(): got %q, want %q", got, want)
	}
	if !errors.Is(r, io.EOF) {
		t.Errorf("%v: is not its cause", r)
	}
}

func TestParseEnhanced(t *testing.T) {
	for _, tt := range []struct {
		code int
		text string
		enh  Enhanced
		rest string
	}{
		{250, "2.1.0 ok", Enhanced{2, 1, 0}, "ok"},
		{250, "2.1.0", Enhanced{2, 1, 0}, ""},
		{550, "5.7.509 no", Enhanced{5, 7, 509}, "no"},
		{550, "4.1.1 no", Enhanced{}, "4.1.1 no"}, // of another class
		{250, "2.1 ok", Enhanced{}, "2.1 ok"},
		{250, "2.1.0.0 ok", Enhanced{}, "2.1.0.0 ok"},
		{250, "2.1000.0 ok", Enhanced{}, "2.1000.0 ok"},
		{250, "2..0 ok", Enhanced{}, "2..0 ok"},
		{250, "ok", Enhanced{}, "ok"},
		{250, "", Enhanced{}, ""},
	} {
		if enh, rest := parseEnhanced(tt.code, tt.text); enh != tt.enh || rest != tt.rest {
			t.Errorf("parseEnhanced(%d, %q): got %v, %q, want %v, %q", tt.code, tt.text, enh, rest, tt.enh, tt.rest)
		}
	}
}

// replyLine is what every line of a reply must be. RFC 5321, Section 4.2.
var replyLine = regexp.MustCompile(`^[2-5][0-9]{2}[ -][^\x00-\x1f\x7f]{0,507}$`)

// However it was filled in, a reply is one reply: lines of one code, all but the last
// with a hyphen, each within the limit, and our own reader understands it.
func FuzzReplyNeverInjects(f *testing.F) {
	for _, s := range []string{"no", "a\r\n250 ok", "a\x00b", "é\u2028\u0085", strings.Repeat("long ", 300), "\n\n", "2.0.0 ok"} {
		f.Add(550, 5, 1, 1, s, true, true)
		f.Add(42, 0, 0, 0, s, true, false)
	}
	f.Fuzz(func(t *testing.T, code, class, subject, detail int, text string, enhanced, utf8ok bool) {
		r := Refuse(code, Enhanced{class, subject, detail}, text)
		wire := string(appendReply(nil, r, enhanced, utf8ok))
		lines := strings.Split(wire, "\r\n")
		if lines[len(lines)-1] != "" {
			t.Fatalf("%+v: got %q, which does not end with CRLF", r, wire)
		}
		lines = lines[:len(lines)-1]
		for i, line := range lines {
			last := i == len(lines)-1
			if !replyLine.MatchString(line) || line[:3] != lines[0][:3] || (line[3] == ' ') != last || len(line) > 510 {
				t.Errorf("%+v: got line %q of %q", r, line, wire)
			}
			if !utf8ok && !isASCII(line) {
				t.Errorf("%+v: got line %q, want ASCII", r, line)
			}
			if enh, _ := parseEnhanced(int(line[0]-'0')*100, line[4:]); enhanced && line[0] != '3' && enh == (Enhanced{}) {
				t.Errorf("%+v: got line %q, want an enhanced code of its class", r, line)
			}
		}
		if line := r.Line(); strings.ContainsAny(line, "\r\n\x00\x1b") {
			t.Errorf("%+v: Line() is %q", r, line)
		}
		c := replyReader(wire)
		got, err := c.readReply()
		if err != nil || len(c.wire.unread()) > 0 {
			t.Errorf("%+v: reading %q: got %v, %v, left %q", r, wire, got, err, c.wire.unread())
		}
	})
}
