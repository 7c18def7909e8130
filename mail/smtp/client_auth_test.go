package smtp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// words is a mechanism that says what is written down; "!" is a failure.
type words struct {
	initial []byte
	answers []string
	heard   []string
}

func (w *words) Start() (string, []byte, error) { return "WORDS", w.initial, nil }

func (w *words) Next(challenge []byte) ([]byte, error) {
	w.heard = append(w.heard, string(challenge))
	if len(w.answers) == 0 || w.answers[0] == "!" {
		return nil, errSaid
	}
	answer := w.answers[0]
	w.answers = w.answers[1:]
	return []byte(answer), nil
}

// proof is a mechanism whose server has to prove something.
type proof struct {
	*words
	missing error
}

func (p proof) Finish() error { return p.missing }

// A server that lets us in without a proof may be anybody.
func TestClientAuthFinish(t *testing.T) {
	for _, missing := range []error{nil, errSaid} {
		c := replyReader("235 ok\r\n")
		c.opts.ClearAuth = true
		c.learn("x\nAUTH WORDS")
		err := c.Auth(t.Context(), proof{&words{initial: []byte("x")}, missing})
		if !errors.Is(err, missing) || c.Broken() != (missing != nil) {
			t.Errorf("got %v, broken %v, want %v", err, c.Broken(), missing)
		}
	}
}

var errSaid = errors.New("the server is not who it says")

func TestClientAuth(t *testing.T) {
	offer := slices.Concat(greet, []string{">250-mx.test", ">250 AUTH PLAIN words"})
	long := []byte(strings.Repeat("x", 400)) // 536 octets in base64
	for _, tt := range []struct {
		name   string
		m      words
		script []string
		heard  string
		reply  int    // code of the error that is a *Reply
		err    string // in the error; empty is none
		broken bool
	}{
		{"initial response", words{initial: []byte("secret")}, []string{"<AUTH WORDS c2VjcmV0", ">235 2.7.0 hello"}, "[]", 0, "", false},
		{"empty initial response", words{initial: []byte{}}, []string{"<AUTH WORDS =", ">235 ok"}, "[]", 0, "", false},
		{"challenges", words{answers: []string{"me", ""}}, []string{"<AUTH WORDS", ">334 VXNlcg==", "<bWU=", ">334 ", "<", ">235 ok"}, "[User ]", 0, "", false},
		{"long initial response", words{initial: long}, []string{"<AUTH WORDS", ">334 ", "<eHh4*", ">235 ok"}, "[]", 0, "", false},
		{"wrong", words{initial: []byte("secret")}, []string{"<AUTH *", ">535 5.7.8 no"}, "[]", 535, "535", false},
		{"later", words{initial: []byte("secret")}, []string{"<AUTH *", ">454 4.7.0 later"}, "[]", 454, "454", false},
		{"fails here", words{answers: []string{"!"}}, []string{"<AUTH WORDS", ">334 dg==", "<*", ">501 cancelled"}, "[v]", 0, errSaid.Error(), false},
		{"no base64", words{answers: []string{"x"}}, []string{"<AUTH WORDS", ">334 ?", "<*", ">501 cancelled"}, "[]", 0, "base64", false},
		{"cancelled in vain", words{answers: []string{"!"}}, []string{"<AUTH WORDS", ">334 ", "<*", ">235 welcome"}, "[]", 0, "cancelling", true},
		{"too long", words{answers: []string{strings.Repeat("x", 12288)}}, []string{"<AUTH WORDS", ">334 ", "<*", ">501 cancelled"}, "[]", 0, "too long", false},
		{"endless", words{answers: slices.Repeat([]string{"x"}, 100)}, slices.Concat([]string{"<AUTH WORDS"},
			slices.Repeat([]string{">334 ", "<eA=="}, maxChallenges), []string{">334 ", "<*", ">501 cancelled"}), "", 0, "too many", false},
		{"unexpected", words{initial: []byte("x")}, []string{"<AUTH *", ">250 ok"}, "[]", 0, "unexpected", true},
		{"closed", words{initial: []byte("x")}, []string{"<AUTH *"}, "[]", 0, "EOF", true},
		{"421", words{initial: []byte("x")}, []string{"<AUTH *", ">421 bye"}, "[]", 421, "421", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			var log strings.Builder
			o := ClientOptions{ClearAuth: true, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
			broken := false
			err, scriptErr := talkTo(ctx, o, slices.Concat(offer, tt.script), func(c *Client) error {
				err := c.Auth(ctx, &tt.m)
				broken = c.Broken()
				return err
			})
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) || broken != tt.broken {
				t.Errorf("got %v, broken %v, want %q, %v; server: %v", err, broken, tt.err, tt.broken, scriptErr)
			}
			if r, ok := errors.AsType[*Reply](err); ok != (tt.reply != 0) || ok && r.Code != tt.reply {
				t.Errorf("got %v as a reply %v, want code %d", err, ok, tt.reply)
			}
			if got := fmt.Sprint(tt.m.heard); tt.heard != "" && got != tt.heard {
				t.Errorf("challenges: got %q, want %q", got, tt.heard)
			}
			if strings.Contains(log.String(), "c2VjcmV0") || !strings.Contains(log.String(), "AUTH WORDS") {
				t.Errorf("log: %s", log.String())
			}
		})
	}
}

// A secret is not said in clear unless that is wanted, and no mechanism is tried that is
// not offered.
func TestClientAuthRefuses(t *testing.T) {
	for _, tt := range []struct {
		offers string
		clear  bool
		want   error
	}{
		{"AUTH WORDS", false, ErrClearAuth},
		{"AUTH PLAIN", true, ErrNoMechanism},
		{"SIZE", true, ErrNoMechanism},
	} {
		c := replyReader("235 ok\r\n")
		c.opts.ClearAuth = tt.clear
		c.learn("x\n" + tt.offers)
		err := c.Auth(t.Context(), &words{initial: []byte("secret")})
		if said := c.raw.(*scriptConn).out.String(); !errors.Is(err, tt.want) || said != "" || c.Broken() {
			t.Errorf("%q: got %v and said %q, want %v", tt.offers, err, said, tt.want)
		}
	}
}

func TestClientForwarded(t *testing.T) {
	f := Forwarded{Name: "client.test", Addr: netip.MustParseAddr("192.0.2.1"), Helo: "there", Ident: "1.2", Login: "joe"}
	offer := slices.Concat(greet, []string{">250-mx.test", ">250-XCLIENT NAME ADDR HELO LOGIN", ">250-SIZE 10", ">250 XFORWARD ADDR IDENT"})
	xclient := slices.Concat(offer, []string{"<XCLIENT NAME=client.test ADDR=192.0.2.1 HELO=there LOGIN=joe"})
	for _, tt := range []struct {
		name   string
		script []string
		say    func(c *Client, ctx context.Context, f Forwarded) error
		code   int // 0: no error
		size   int64
	}{
		{"XCLIENT", slices.Concat(xclient, []string{">220 mx.test", "<EHLO there", ">250-mx.test", ">250 SIZE 20"}), (*Client).XClient, 0, 20},
		{"XCLIENT refused", slices.Concat(xclient, []string{">550 5.7.0 not you"}), (*Client).XClient, 550, 10},
		{"XCLIENT, EHLO refused", slices.Concat(xclient, []string{">220 mx.test", "<EHLO there", ">554 5.7.1 not there", "<HELO there", ">554 5.7.1 not there"}),
			(*Client).XClient, 554, 0},
		{"XFORWARD", slices.Concat(offer, []string{"<XFORWARD ADDR=192.0.2.1 IDENT=1.2", ">250 ok"}), (*Client).XForward, 0, 10},
		{"XFORWARD refused", slices.Concat(offer, []string{"<XFORWARD *", ">501 5.5.4 what"}), (*Client).XForward, 501, 10},
		{"not offered", slices.Concat(greet, []string{">250 mx.test"}), (*Client).XForward, 502, 0},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err, scriptErr := talkTo(ctx, ClientOptions{}, tt.script, func(c *Client) error {
			err := tt.say(c, ctx, f)
			if c.MaxSize() != tt.size || c.Broken() {
				t.Errorf("%s: got size %d, broken %v, want %d", tt.name, c.MaxSize(), c.Broken(), tt.size)
			}
			return err
		})
		if codeOf(err) != tt.code || scriptErr != nil {
			t.Errorf("%s: got %v, want %d; server: %v", tt.name, err, tt.code, scriptErr)
		}
	}
}
