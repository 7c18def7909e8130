package smtp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
)

// outcome is a result in one line: who was accepted, who was not and why, and the error.
func outcome(r SendResult, err error) string {
	var said []string
	for _, p := range r.Accepted {
		said = append(said, p.Local)
	}
	for _, e := range r.Rejected {
		said = append(said, fmt.Sprintf("%s=%s", e.Recipient.Local, brief(e)))
	}
	if err != nil {
		e, ok := err.(*ClientError)
		if !ok {
			return fmt.Sprintf("%T %v", err, err)
		}
		said = append(said, "! "+brief(e))
	}
	return strings.Join(said, " ")
}

// brief is an error as "phase:code", or "phase:kind" where there is no reply of the server.
func brief(e *ClientError) string {
	s := strings.ReplaceAll(string(e.Phase), " ", "-") + ":"
	if e.Kind != KindRefused {
		s += string(e.Kind)
	}
	if e.Code() != 0 {
		s += fmt.Sprint(e.Code())
	}
	if e.MayBeDelivered() {
		s += "?"
	}
	return s
}

func recipients(locals ...string) (to []Recipient) {
	for _, local := range locals {
		to = append(to, Recipient{Path: Path{local, Domain{"mx.test"}}})
	}
	return to
}

var sender = Sender{Path: Path{"a", Domain{"client.test"}}}

// oneLine is content of one line, as the scripts of this file expect it.
func oneLine() io.WriterTo { return strings.NewReader("text") }

// TestSend: MAIL, RCPT and DATA go together, and whatever the server makes of them, every
// recipient is accounted for, and the next message goes through.
func TestSend(t *testing.T) {
	parity.Row(t, "SC-23", "SC-30", "SC-35", "SC-36", "SC-37", "SC-46", "SC-47", "SC-50")
	group := slices.Concat(pipeline, []string{"<DATA"})
	mailAndTwo := []string{"<MAIL FROM:<a@client.test>*", "<RCPT TO:<e@mx.test>", "<DATA", ">250 ok", ">250 ok", ">354 go", "<text", "<.", ">250 ok"}
	inOrder := mailAndTwo
	cleared := slices.Concat([]string{"<RSET", ">250 ok"}, mailAndTwo)
	dot := []string{"<.", ">250 empty"}
	none := []string{"hang"}
	lmtp := ClientOptions{LMTP: true}
	for _, tt := range []struct {
		name   string
		opts   ClientOptions
		ehlo   []string
		script []string
		then   []string // how the next message goes; none: it cannot
		want   string
	}{
		{"taken", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">250 ok", ">251 ok", ">354 go", "<text", "<.", ">250 taken"}), inOrder, "b c d"},
		{"in one segment", ClientOptions{}, ehlo, slices.Concat(group, []string{"!250 ok\r\n250 ok\r\n550 no\r\n250 ok\r\n354 go\r\n", "<text", "<.", ">250 taken"}), inOrder, "b d c=RCPT:550"},
		{"MAIL refused", ClientOptions{}, ehlo, slices.Concat(group, []string{">550 no", ">503 no", ">503 no", ">503 no", ">503 no"}), cleared, "b=MAIL:550 c=MAIL:550 d=MAIL:550 ! MAIL:550"},
		{"MAIL refused, content wanted", ClientOptions{}, ehlo, slices.Concat(group, []string{">451 no", ">503 no", ">503 no", ">503 no", ">354 go"}, dot), cleared, "b=MAIL:451 c=MAIL:451 d=MAIL:451 ! MAIL:451"},
		{"MAIL refused, recipients taken", ClientOptions{}, ehlo, slices.Concat(group, []string{">550 no", ">250 ok", ">250 ok", ">250 ok", ">354 go"}, dot), cleared, "b=MAIL:550 c=MAIL:550 d=MAIL:550 ! MAIL:550"},
		{"all refused", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">550 no", ">550 no", ">550 no", ">554 none"}), cleared, "b=RCPT:550 c=RCPT:550 d=RCPT:550 ! RCPT:550"},
		{"all refused, one for now", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">550 no", ">450 no", ">550 no", ">554 none"}), cleared, "b=RCPT:550 c=RCPT:450 d=RCPT:550 ! RCPT:450"},
		{"all refused, content wanted", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">550 no", ">550 no", ">550 no", ">354 go"}, dot), cleared, "b=RCPT:550 c=RCPT:550 d=RCPT:550 ! RCPT:550"},
		{"all refused, DATA answered 250", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">550 no", ">550 no", ">550 no", ">250 ok", "hang"}), none, "b=RCPT:550 c=RCPT:550 d=RCPT:550 ! RCPT:550"},
		{"some refused, DATA refused", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">550 no", ">250 ok", ">250 ok", ">451 later"}), cleared, "b=RCPT:550 c=DATA:451 d=DATA:451 ! DATA:451"},
		{"DATA answered 250", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">250 ok", ">250 ok", ">250 ok", "hang"}), none, "b=DATA:protocol c=DATA:protocol d=DATA:protocol ! DATA:protocol"},
		{"a reply too many", ClientOptions{}, ehlo, slices.Concat(group, []string{"!250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n", "hang"}), none, "b=DATA:protocol c=DATA:protocol d=DATA:protocol ! DATA:protocol"},
		{"message refused", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">550 no", ">250 ok", ">354 go", "<text", "<.", ">554 spam"}), cleared, "c=RCPT:550 b=end-of-data:554 d=end-of-data:554 ! end-of-data:554"},
		{"421 to a recipient", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">421 bye"}), none, "b=RCPT:421 c=RCPT:421 d=RCPT:421 ! RCPT:421"},
		{"421 to MAIL", ClientOptions{}, ehlo, slices.Concat(group, []string{">421 bye"}), none, "b=MAIL:421 c=MAIL:421 d=MAIL:421 ! MAIL:421"},
		{"421 to the message", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">250 ok", ">250 ok", ">354 go", "data", ">421 bye"}), none, "b=end-of-data:421 c=end-of-data:421 d=end-of-data:421 ! end-of-data:421"},
		{"closed after MAIL", ClientOptions{}, ehlo, group, none, "b=MAIL:connection c=MAIL:connection d=MAIL:connection ! MAIL:connection"},
		{"too few replies", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">250 ok"}), none, "b=RCPT:connection c=RCPT:connection d=RCPT:connection ! RCPT:connection"},
		{"closed after the data", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">250 ok", ">250 ok", ">354 go", "data"}), none, "b=end-of-data:connection? c=end-of-data:connection? d=end-of-data:connection? ! end-of-data:connection?"},
		{"code changes", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">250-ok", ">550 no", "hang"}), none, "b=RCPT:protocol c=RCPT:protocol d=RCPT:protocol ! RCPT:protocol"},
		{"blank line", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">", "hang"}), none, "b=RCPT:protocol c=RCPT:protocol d=RCPT:protocol ! RCPT:protocol"},
		{"8-bit text", ClientOptions{}, ehlo, slices.Concat(group, []string{">250 ok", ">550 \xff\xfe n\u00e4", ">250 ok", ">250 \xe4", ">354 go", "data", ">250 \xf6k"}), inOrder, "c d b=RCPT:550"},

		{"no PIPELINING", ClientOptions{}, slices.Concat(greet, []string{">250 mx.test"}), []string{"<MAIL *", ">250 ok", "<RCPT *", ">250 ok", "<RCPT *", ">550 no", "<RCPT *", ">251 ok", "<DATA", ">354 go", "data", ">250 ok"},
			[]string{"<MAIL *", ">250 ok", "<RCPT *", ">250 ok", "<DATA", ">354 go", "data", ">250 ok"}, "b d c=RCPT:550"},
		{"no PIPELINING, nobody", ClientOptions{}, slices.Concat(greet, []string{">250 mx.test"}), []string{"<MAIL *", ">250 ok", "<RCPT *", ">450 no", "<RCPT *", ">550 no", "<RCPT *", ">550 no"},
			[]string{"<RSET", ">250 ok", "<MAIL *", ">250 ok", "<RCPT *", ">250 ok", "<DATA", ">354 go", "data", ">250 ok"}, "b=RCPT:450 c=RCPT:550 d=RCPT:550 ! RCPT:450"},
		{"chunks", ClientOptions{}, chunkEhlo, slices.Concat(pipeline, []string{">250 ok", ">250 ok", ">550 no", ">250 ok", "<BDAT 6 LAST", "<text", ">250 ok"}),
			[]string{"<MAIL *", "<RCPT *", ">250 ok", ">250 ok", "<BDAT 6 LAST", "<text", ">250 ok"}, "b d c=RCPT:550"},
		{"chunk refused", ClientOptions{}, chunkEhlo, slices.Concat(pipeline, []string{">250 ok", ">250 ok", ">550 no", ">250 ok", "<BDAT 6 LAST", "<text", ">452 full"}),
			[]string{"<RSET", ">250 ok", "<MAIL *", "<RCPT *", ">250 ok", ">250 ok", "<BDAT 6 LAST", "<text", ">250 ok"}, "c=RCPT:550 b=end-of-data:452 d=end-of-data:452 ! end-of-data:452"},
		{"chunks, MAIL refused", ClientOptions{}, chunkEhlo, slices.Concat(pipeline, []string{">550 no", ">503 no", ">503 no", ">503 no"}),
			[]string{"<MAIL *", "<RCPT *", ">250 ok", ">250 ok", "<BDAT 6 LAST", "<text", ">250 ok"}, "b=MAIL:550 c=MAIL:550 d=MAIL:550 ! MAIL:550"},

		{"lmtp", lmtp, lhlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">550 no", ">250 ok", ">354 go", "data", ">250 ok", ">452 full"}),
			[]string{"<MAIL *", "<RCPT *", "<DATA", ">250 ok", ">250 ok", ">354 go", "data", ">250 ok"}, "b c=RCPT:550 d=end-of-data:452"},
		{"lmtp, all refused", lmtp, lhlo, slices.Concat(group, []string{">250 ok", ">550 no", ">550 no", ">550 no", ">503 none"}), cleared, "b=RCPT:550 c=RCPT:550 d=RCPT:550 ! RCPT:550"},
		{"lmtp, all refused, content wanted", lmtp, lhlo, slices.Concat(group, []string{">250 ok", ">550 no", ">550 no", ">550 no", ">354 go", "hang"}), none, "b=RCPT:550 c=RCPT:550 d=RCPT:550 ! RCPT:550"},
		{"lmtp, nobody takes it", lmtp, lhlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">550 no", ">250 ok", ">354 go", "data", ">550 no", ">452 full"}), cleared, "c=RCPT:550 b=end-of-data:550 d=end-of-data:452 ! end-of-data:452"},
		{"lmtp breaks", lmtp, lhlo, slices.Concat(group, []string{">250 ok", ">250 ok", ">250 no", ">250 ok", ">354 go", "data", ">250 ok"}), none, "b c=end-of-data:connection? d=end-of-data:connection?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var got, then string
			script := slices.Concat(tt.ehlo, tt.script)
			if len(tt.then) > 1 {
				script = append(script, tt.then...)
			}
			_, scriptErr := talkTo(ctx, tt.opts, script, func(c *Client) error {
				r, err := c.Send(ctx, Envelope{From: sender, To: recipients("b", "c", "d"), AsSaid: true}, oneLine())
				got = outcome(r, err)
				if len(tt.then) > 1 {
					r, err := c.Send(ctx, Envelope{From: sender, To: recipients("e"), AsSaid: true}, oneLine())
					then = outcome(r, err)
				} else if !c.Broken() {
					t.Errorf("the connection is still in use")
				}
				return nil
			})
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if len(tt.then) > 1 && (then != "e" || scriptErr != nil) {
				t.Errorf("the next message: got %s; server: %v", then, scriptErr)
			}
		})
	}
}

// A server that hangs, in whatever phase, is given up in time, and the error says in which.
func TestSendHangs(t *testing.T) {
	parity.Row(t, "SC-10", "SC-11", "SC-28", "SC-30", "SC-46")
	limits := Timeouts{Greeting: time.Second, Command: 2 * time.Second, DataInit: 3 * time.Second, DataBlock: 4 * time.Second, DataEnd: 5 * time.Second}
	group := slices.Concat(pipeline, []string{"<DATA"})
	big := bytes.Repeat([]byte("text\r\n"), 100_000)
	drip := []string{}
	for range 100 {
		drip = append(drip, "!250-\r\n", "slow 1.5")
	}
	for _, tt := range []struct {
		name   string
		script []string
		want   string
		within time.Duration
	}{
		{"greeting", []string{"hang"}, "greeting:timeout", time.Second},
		{"EHLO", slices.Concat(greet, []string{"hang"}), "EHLO:timeout", 2 * time.Second},
		{"EHLO line by line", slices.Concat(greet, drip), "EHLO:timeout", 2 * time.Second},
		{"commands not taken", slices.Concat(ehlo, []string{"slow 100"}), "MAIL:timeout", 2 * time.Second},
		{"MAIL", slices.Concat(ehlo, group, []string{"hang"}), "MAIL:timeout", 2 * time.Second},
		{"the second recipient", slices.Concat(ehlo, group, []string{">250 ok", ">250 ok", "hang"}), "RCPT:timeout", 2 * time.Second},
		{"too few replies", slices.Concat(ehlo, group, []string{">250 ok", ">250 ok", ">250 ok", ">250 ok", "hang"}), "DATA:timeout", 3 * time.Second},
		{"content not taken", slices.Concat(ehlo, group, []string{">250 ok", ">250 ok", ">250 ok", ">250 ok", ">354 go", "slow 100"}), "content:timeout", 8 * time.Second}, // and the last word
		{"end of data", slices.Concat(ehlo, group, []string{">250 ok", ">250 ok", ">250 ok", ">250 ok", ">354 go", "data", "hang"}), "end-of-data:timeout?", 5 * time.Second},
		{"end of data octet by octet", slices.Concat(ehlo, group, []string{">250 ok", ">250 ok", ">250 ok", ">250 ok", ">354 go", "data", "!2", "slow 4", "!5", "slow 4", "!0 ok\r\n"}), "end-of-data:timeout?", 5 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				done := make(chan error, 1)
				go func() { done <- badServer(theirs, tt.script...) }()
				began := time.Now()
				c, err := Dial(t.Context(), "mx.test", DialOptions{Conn: ours, ClientOptions: ClientOptions{LocalName: "client.test", Timeouts: limits}})
				if err == nil {
					_, err = c.Send(t.Context(), Envelope{From: sender, To: recipients("b", "c", "d"), AsSaid: true}, bytes.NewReader(big))
					c.Close()
				}
				e, ok := errors.AsType[*ClientError](err)
				if !ok || brief(e) != tt.want || !e.Temporary() || !e.Timeout() || time.Since(began) != tt.within {
					t.Errorf("got %v after %v, want %s after %v", err, time.Since(began), tt.want, tt.within)
				}
				<-done
			})
		})
	}
}

// replies returns a client of a server in memory that offers ehlo, keywords with commas
// between them. What it says next is for the test to put into chunks.
func replies(t *testing.T, o ClientOptions, ehlo string) (*Client, *scriptConn) {
	t.Helper()
	nc := &scriptConn{chunks: [][]byte{[]byte("220 x\r\n250-mx.test\r\n")}}
	words := strings.Split(ehlo, ",")
	for i, w := range words {
		sep := "-"
		if i == len(words)-1 {
			sep = " "
		}
		nc.chunks[0] = append(nc.chunks[0], "250"+sep+w+"\r\n"...)
	}
	o.LocalName = "client.test"
	c, err := NewClient(t.Context(), nc, o)
	if err != nil {
		t.Fatal(err)
	}
	nc.out.Reset()
	return c, nc
}

// TestSendNeeds: what a message needs is found out, said, and refused before the server is
// asked if it cannot do it.
func TestSendNeeds(t *testing.T) {
	parity.Row(t, "SC-36", "SC-37", "SC-38", "SC-39", "SC-40", "SC-41", "SC-42", "SC-43", "SC-44")
	x := Domain{"mx.test"}
	const all = "SIZE 100,8BITMIME,SMTPUTF8,DSN,REQUIRETLS"
	const ascii, latin, utf8Header, utf8Body = "Subject: a\r\n\r\nb\r\n", "Subject: \xe4\r\n\r\nb\r\n", "Subject: ä\r\n\r\nb\r\n", "Subject: a\r\n\r\nä\r\n"
	orcpt := OriginalRecipient{"rfc822", "c+d@mx.test"}
	for _, tt := range []struct {
		name    string
		offers  string
		from    Sender
		to      []Recipient
		content string
		asSaid  bool
		want    string // what is said of MAIL and RCPT, or the error
	}{
		{"plain", all, sender, recipients("b"), ascii, false, "MAIL FROM:<a@client.test> SIZE=17,RCPT TO:<b@mx.test>"},
		{"null sender", all, Sender{}, recipients("b"), ascii, false, "MAIL FROM:<> SIZE=17,RCPT TO:<b@mx.test>"},
		{"body in UTF-8", all, Sender{}, recipients("b"), utf8Body, false, "MAIL FROM:<> SIZE=18 BODY=8BITMIME,RCPT TO:<b@mx.test>"},
		{"said to be 7BIT", all, Sender{Body: BodySevenBit}, recipients("b"), utf8Body, false, "MAIL FROM:<> SIZE=18 BODY=8BITMIME,RCPT TO:<b@mx.test>"},
		{"header in UTF-8", all, Sender{}, recipients("b"), utf8Header, false, "MAIL FROM:<> SIZE=18 BODY=8BITMIME SMTPUTF8,RCPT TO:<b@mx.test>"},
		{"header in another charset", all, Sender{}, recipients("b"), latin, false, "MAIL FROM:<> SIZE=17 BODY=8BITMIME,RCPT TO:<b@mx.test>"},
		{"as said", all, Sender{Size: 9}, recipients("b"), utf8Header, true, "MAIL FROM:<> SIZE=9,RCPT TO:<b@mx.test>"},
		{"recipient in UTF-8", all, Sender{}, []Recipient{{Path: Path{"ä", x}}}, ascii, false, "MAIL FROM:<> SIZE=17 SMTPUTF8,RCPT TO:<ä@mx.test>"},
		{"too large", "SIZE 16", Sender{}, recipients("b"), ascii, false, "b=MAIL:unfit552 ! MAIL:unfit552"},
		{"said to be too large", "SIZE 100", Sender{Size: 101}, recipients("b"), ascii, false, "b=MAIL:unfit552 ! MAIL:unfit552"},
		{"any size", "SIZE 0", Sender{Size: 1 << 40}, recipients("b"), ascii, false, "MAIL FROM:<> SIZE=1099511627776,RCPT TO:<b@mx.test>"},
		{"no 8BITMIME", "SMTPUTF8", Sender{}, recipients("b"), utf8Body, false, "b=MAIL:unfit554 ! MAIL:unfit554"},
		{"no 8BITMIME, said", "SMTPUTF8", Sender{Body: BodyEightBit}, recipients("b"), utf8Body, true, "b=MAIL:unfit554 ! MAIL:unfit554"},
		{"no 8BITMIME, said for nothing", "SMTPUTF8", Sender{Body: BodyEightBit}, recipients("b"), ascii, true, "MAIL FROM:<>,RCPT TO:<b@mx.test>"},
		{"no SMTPUTF8, said", "8BITMIME", Sender{UTF8: true}, recipients("b"), utf8Header, true, "b=MAIL:unfit550 ! MAIL:unfit550"},
		{"no SMTPUTF8, said for nothing", "8BITMIME", Sender{UTF8: true}, recipients("b"), utf8Body, true, "MAIL FROM:<>,RCPT TO:<b@mx.test>"},
		{"no SMTPUTF8, header", "8BITMIME", Sender{}, recipients("b", "c"), utf8Header, false, "b=MAIL:unfit550 c=MAIL:unfit550 ! MAIL:unfit550"},
		{"no SMTPUTF8, sender", "8BITMIME", Sender{Path: Path{"ä", x}}, recipients("b"), ascii, false, "b=MAIL:unfit550 ! MAIL:unfit550"},
		{"no SMTPUTF8, one recipient", "8BITMIME,PIPELINING", Sender{}, append(recipients("b"), Recipient{Path: Path{"ä", x}}), ascii, false, "MAIL FROM:<>,RCPT TO:<b@mx.test>,DATA"},
		{"no SMTPUTF8, all recipients", "8BITMIME,PIPELINING", Sender{}, []Recipient{{Path: Path{"ä", x}}}, ascii, false, "ä=RCPT:unfit550 ! RCPT:unfit550"},
		{"no BINARYMIME", "8BITMIME", Sender{Body: BodyBinary}, recipients("b"), ascii, false, "b=MAIL:unfit554 ! MAIL:unfit554"},
		{"REQUIRETLS in clear", all, Sender{Path: sender.Path, RequireTLS: true}, recipients("b"), ascii, false, "b=MAIL:unfit550 ! MAIL:unfit550"},
		{"REQUIRETLS in clear, of a report", "REQUIRETLS,SIZE 100", Sender{RequireTLS: true}, recipients("b"), ascii, false, "MAIL FROM:<> SIZE=17,RCPT TO:<b@mx.test>"},
		{"nobody", all, Sender{}, nil, ascii, false, "! RCPT:unfit554"},
		{"recipient without an address", all, Sender{}, []Recipient{{}}, ascii, false, "=RCPT:unfit550 ! RCPT:unfit550"},
		{"line end in a recipient", all, Sender{}, []Recipient{{Path: Path{"b\r\nDATA", x}}}, ascii, false, "b\r\nDATA=RCPT:unfit550 ! RCPT:unfit550"},
		{"line end in the sender", all, Sender{Path: Path{"b>\r\nDATA", x}}, recipients("b"), ascii, false, "b=MAIL:unfit550 ! MAIL:unfit550"},
		{"reports", all, Sender{Return: ReturnHeaders, EnvID: "7+8=15"}, []Recipient{{Path{"b", x}, NotifySuccess | NotifyDelay, orcpt}, {Path{"c", x}, NotifyNever, OriginalRecipient{}}}, ascii, false,
			"MAIL FROM:<> SIZE=17 RET=HDRS ENVID=7+2B8+3D15,RCPT TO:<b@mx.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;c+2Bd@mx.test,RCPT TO:<c@mx.test> NOTIFY=NEVER"},
		{"reports nobody makes", "SIZE 100", Sender{Return: ReturnFull, EnvID: "x"}, []Recipient{{Path{"b", x}, NotifySuccess, orcpt}}, ascii, false, "MAIL FROM:<> SIZE=17,RCPT TO:<b@mx.test>"},
		{"bad RET", "SIZE 100", Sender{Return: "ALL"}, recipients("b"), ascii, false, "b=MAIL:unfit501 ! MAIL:unfit501"},
		{"bad ENVID", "SIZE 100", Sender{EnvID: "a\r\nb"}, recipients("b"), ascii, false, "b=MAIL:unfit501 ! MAIL:unfit501"},
		{"long ENVID", "SIZE 100", Sender{EnvID: strings.Repeat("+", 34)}, recipients("b"), ascii, false, "b=MAIL:unfit501 ! MAIL:unfit501"},
		{"bad NOTIFY", "SIZE 100", Sender{}, []Recipient{{Path{"b", x}, NotifyNever | NotifyDelay, orcpt}}, ascii, false, "b=RCPT:unfit501 ! RCPT:unfit501"},
		{"bad ORCPT", "SIZE 100", Sender{}, []Recipient{{Path{"b", x}, 0, OriginalRecipient{"rfc 822", "x"}}}, ascii, false, "b=RCPT:unfit501 ! RCPT:unfit501"},
		{"long ORCPT", "SIZE 100", Sender{}, []Recipient{{Path{"b", x}, 0, OriginalRecipient{"rfc822", strings.Repeat("x", 500)}}}, ascii, false, "b=RCPT:unfit501 ! RCPT:unfit501"},
	} {
		c, nc := replies(t, ClientOptions{}, tt.offers)
		nc.chunks = nil
		for range len(tt.to) + 1 {
			nc.chunks = append(nc.chunks, []byte("250 ok\r\n"))
		}
		r, err := c.Send(t.Context(), Envelope{tt.from, tt.to, tt.asSaid}, strings.NewReader(tt.content))
		got := outcome(r, err)
		if nc.out.Len() > 0 {
			got, _, _ = strings.Cut(strings.ReplaceAll(strings.TrimSpace(nc.out.String()), "\r\n", ","), ",DATA")
			if strings.HasSuffix(tt.want, ",DATA") {
				got += ",DATA"
			}
		}
		if got != tt.want {
			t.Errorf("%s:\n got %q\nwant %q", tt.name, got, tt.want)
		}
		if nc.out.Len() == 0 && c.Broken() {
			t.Errorf("%s: the connection was given up for nothing", tt.name)
		}
	}
}

// REQUIRETLS is said within TLS, to a server that offers it there.
func TestSendRequireTLS(t *testing.T) {
	parity.Row(t, "SC-44")
	noted := together(t, ServerOptions{Hostname: "mx.test", TLS: testTLS(t), Offer: Extensions{RequireTLS: true}}, ClientOptions{}, nil, func(ctx context.Context, c *Client) {
		e := Envelope{From: Sender{Path: sender.Path, RequireTLS: true}, To: recipients("b")}
		if r, err := c.Send(ctx, e, oneLine()); outcome(r, err) != "b=MAIL:unfit550 ! MAIL:unfit550" || err.(*ClientError).Enhanced() != (Enhanced{5, 7, 30}) {
			t.Errorf("in clear: got %s", outcome(r, err))
		}
		report := Envelope{From: Sender{RequireTLS: true}, To: recipients("b")}
		if r, err := c.Send(ctx, report, oneLine()); outcome(r, err) != "b" {
			t.Errorf("a report in clear: got %s", outcome(r, err))
		}
		if err := c.StartTLS(ctx, &tls.Config{InsecureSkipVerify: true}); err != nil {
			t.Fatal(err)
		}
		if r, err := c.Send(ctx, e, oneLine()); outcome(r, err) != "b" {
			t.Errorf("within TLS: got %s", outcome(r, err))
		}
		c.Quit(ctx)
	})
	if !strings.Contains(noted, "requiretls") {
		t.Errorf("the server noted %s", noted)
	}
}

// unread is a reader that cannot seek, and has a Size that means something else.
type unread struct{ *bufio.Reader }

// stream is content and nothing else.
type stream []byte

func (s stream) WriteTo(w io.Writer) (int64, error) { return bytes.NewReader(s).WriteTo(w) }

// TestSendContent: whatever the content comes as, it arrives once and whole, and what it needs
// is known or noticed.
func TestSendContent(t *testing.T) {
	parity.Row(t, "SC-35", "SC-38", "SC-39", "SC-45")
	ascii := []byte("Subject: a\r\n\r\n" + strings.Repeat(".line\r\n", 12_000))
	late := append(slices.Clone(ascii), "ä\r\n"...)
	header := []byte("Subject: ä\r\n\r\nb\r\n")
	path := filepath.Join(t.TempDir(), "m")
	file := func(b []byte) io.WriterTo {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	pipe := func(b []byte) io.WriterTo {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		go func() { w.Write(b); w.Close() }()
		return r
	}
	read := func(b []byte) io.WriterTo {
		r := bytes.NewReader(append([]byte("before"), b...))
		r.Seek(6, io.SeekStart)
		return r
	}
	kinds := map[string]func(b []byte) io.WriterTo{
		"bytes.Reader": read, "bytes.Buffer": func(b []byte) io.WriterTo { return bytes.NewBuffer(slices.Clone(b)) }, "strings.Reader": func(b []byte) io.WriterTo { return strings.NewReader(string(b)) },
		"bufio.Reader": func(b []byte) io.WriterTo { return unread{bufio.NewReader(bytes.NewReader(b))} }, "file": file, "pipe": pipe,
		"Content": func(b []byte) io.WriterTo { return memContent(b) }, "stream": func(b []byte) io.WriterTo { return stream(b) },
	}
	whole := []string{"bytes.Reader", "strings.Reader", "file", "Content"} // looked at from end to end
	for kind, make := range kinds {
		for _, tt := range []struct {
			name    string
			content []byte
			lacks   []string
			mail    string // what MAIL said, for those that were looked at
			once    string // for those that can be read but once
			blind   string // for those that only write themselves
			err     string
		}{
			{"ASCII", ascii, nil, "SIZE BODY=", "BODY=8BITMIME", "BODY=8BITMIME", ""},
			{"8-bit at the end", late, nil, "SIZE BODY=8BITMIME", "BODY=8BITMIME", "BODY=8BITMIME", ""},
			{"8-bit at the end, not offered", late, []string{"8BITMIME"}, "", "cut", "cut", "554"},
			{"header in UTF-8", header, nil, "SIZE BODY=8BITMIME SMTPUTF8", "SIZE BODY=8BITMIME SMTPUTF8", "cut", "550"},
			{"header in UTF-8, not offered", header, []string{"SMTPUTF8"}, "", "", "cut", "550"},
		} {
			want := tt.once
			switch {
			case slices.Contains(whole, kind):
				want = tt.mail
			case kind == "stream":
				want = tt.blind
			}
			for _, chunking := range []bool{false, true} {
				var r SendResult
				var err error
				noted := together(t, ServerOptions{Hostname: "mx.test", Without: tt.lacks}, ClientOptions{NoChunking: !chunking}, nil, func(ctx context.Context, c *Client) {
					r, err = c.Send(ctx, Envelope{From: sender, To: recipients("b")}, make(tt.content))
					c.Quit(ctx)
				})
				name := fmt.Sprintf("%s as %s, chunking %v", tt.name, kind, chunking)
				arrived := strings.Contains(noted, fmt.Sprintf("message %q", tt.content))
				if want == "" || want == "cut" {
					if codeOf(err) == 0 || fmt.Sprint(codeOf(err)) != tt.err || arrived || strings.Contains(noted, "mail <") != (want == "cut") {
						t.Errorf("%s: got %v, want %s", name, err, tt.err)
					}
					continue
				}
				if err != nil || !arrived || r.Size != int64(len(tt.content)) || len(r.Accepted) != 1 || r.Response.Code != 250 || r.EnvelopeTime <= 0 || r.MessageTime <= 0 {
					t.Errorf("%s: got %+v, %v, arrived %v", name, r, err, arrived)
				}
				for _, word := range []string{"SIZE", "8BITMIME", "SMTPUTF8"} {
					said := map[string]bool{"SIZE": !strings.Contains(noted, "size=0"), "8BITMIME": strings.Contains(noted, "body=8BITMIME"), "SMTPUTF8": strings.Contains(noted, "utf8=true")}[word]
					if said != strings.Contains(want, word) {
						t.Errorf("%s: said %s: %v, want %s", name, word, said, want)
					}
				}
			}
		}
	}
	for _, chunking := range []bool{false, true} {
		together(t, ServerOptions{Hostname: "mx.test"}, ClientOptions{NoChunking: !chunking}, nil, func(ctx context.Context, c *Client) {
			r, err := c.Send(ctx, Envelope{From: sender, To: recipients("b")}, failingContent{})
			if got := outcome(r, err); got != "b=content:content ! content:content" || !errors.Is(err, io.ErrNoProgress) || !c.Broken() {
				t.Errorf("content that fails: got %s, %v", got, err)
			}
			if r, err := c.Send(ctx, Envelope{From: sender, To: recipients("b")}, oneLine()); outcome(r, err) != "b=MAIL:connection ! MAIL:connection" {
				t.Errorf("on a broken connection: got %s", outcome(r, err))
			}
		})
	}
}

// FuzzScanner: what is found does not depend on how the content is cut, and is what a simple
// look at all of it finds.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{"", "Subject: a\r\n\r\nb", "Subject: ä\r\n\r\n", "Subject: \xe4\r\n\r\n", "\xc3", "a\n\nä", "a\r\rä", "\r\n\xc3\xa4", "Subject: \xc3\r\n\xa4\r\n\r\n", "\xf0\x9f\x98\x80: x", "\xf0\x9f\x98x\xed\xa0\x80"} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, content []byte, n int) {
		n = min(max(n, 1), 1000)
		var whole, cut scanner
		whole.Write(content)
		for piece := range slices.Chunk(content, n) {
			cut.Write(piece)
		}
		head, _, _ := bytes.Cut(bytes.ReplaceAll(bytes.ReplaceAll(bytes.ReplaceAll(append([]byte("\r\n"), content...), []byte("\r\n"), []byte("\n")), []byte("\r"), []byte("\n")), []byte("\n"), []byte("\r\n")), []byte("\r\n\r\n"))
		wantUTF8 := !isSevenBit(head) && checkValid(head)
		if whole.eightBit != cut.eightBit || whole.utf8Header() != cut.utf8Header() || whole.eightBit != slices.ContainsFunc(content, func(b byte) bool { return b > 127 }) || whole.utf8Header() != wantUTF8 {
			t.Errorf("%q: got 8-bit %v, UTF-8 %v; in pieces of %d %v, %v; want UTF-8 %v", content, whole.eightBit, whole.utf8Header(), n, cut.eightBit, cut.utf8Header(), wantUTF8)
		}
	})
}

// FuzzSend: whatever a server says, and in whatever pieces, every recipient is accounted for
// once, nobody is called accepted without the replies for it, and no content goes out that was
// not asked for.
func FuzzSend(f *testing.F) {
	for i, s := range []string{"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n|250 taken\r\n", "250 ok\r\n550 no\r\n550 no\r\n354 go\r\n|250 empty\r\n", "550 no\r\n503 no\r\n503 no\r\n354 go\r\n|554 no\r\n",
		"250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n", "250 ok\r\n421 bye\r\n", "250-ok\r\n550 no\r\n", "\r\n", "250 ok\r\n250 ok\r\n250 ok\r\n|250 ok\r\n452 full\r\n"} {
		for n := range 8 {
			f.Add([]byte(s), uint8(n+i))
		}
	}
	f.Fuzz(func(t *testing.T, said []byte, how uint8) {
		lmtp, chunking, pipelining := how&1 != 0, how&2 != 0, how&4 != 0
		greeting := "220 x\r\n250-x\r\n"
		for _, k := range []struct {
			on   bool
			word string
		}{{chunking, "CHUNKING"}, {pipelining, "PIPELINING"}} {
			if k.on {
				greeting += "250-" + k.word + "\r\n"
			}
		}
		nc := &scriptConn{chunks: append([][]byte{[]byte(greeting + "250 SIZE\r\n")}, bytes.Split(said, []byte("|"))...)}
		c, err := NewClient(t.Context(), nc, ClientOptions{LocalName: "client.test", LMTP: lmtp})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			r, err := c.Send(t.Context(), Envelope{From: sender, To: recipients("b", "c")}, strings.NewReader("a secret"))
			if len(r.Accepted)+len(r.Rejected) != 2 || (err == nil) != (len(r.Accepted) > 0) {
				t.Errorf("%q: got %s", said, outcome(r, err))
			}
			if _, typed := err.(*ClientError); err != nil && !typed {
				t.Errorf("%q: got %T", said, err)
			}
			if err == nil && bytes.Count(said, []byte("\n")) < 2+len(r.Accepted) {
				t.Errorf("%q: accepted without replies", said)
			}
		}
		sent := nc.out.String()
		if strings.Contains(sent, "a secret") && !chunking && !bytes.Contains(said, []byte("354")) {
			t.Errorf("%q: sent content that nobody asked for: %q", said, sent)
		}
		c.Close()
	})
}

func checkValid(b []byte) bool { return strings.ToValidUTF8(string(b), "") == string(b) }

// The log shows the dialogue and no secret, and content where it is asked for alone.
func TestClientLog(t *testing.T) {
	parity.Row(t, "SC-14", "SC-15", "SC-16", "SC-26")
	for _, chunking := range []bool{false, true} {
		for _, content := range []bool{false, true} {
			var log bytes.Buffer
			o := ClientOptions{ClearAuth: true, NoChunking: !chunking, LogContent: content,
				Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("component", "outbound")}
			together(t, ServerOptions{Hostname: "mx.test", Auth: AuthOptions{Insecure: true, FailureDelay: -1}}, o, []string{"WORDS"}, func(ctx context.Context, c *Client) {
				if err := c.Auth(ctx, &words{answers: []string{"again", "late", ""}}); err != nil || !c.LoggedIn() {
					t.Error(err)
				}
				if _, err := c.Send(ctx, Envelope{From: sender, To: recipients("b")}, strings.NewReader("Subject: private\r\n")); err != nil {
					t.Error(err)
				}
				c.Quit(ctx)
			})
			for _, want := range []string{"MAIL FROM:<a@client.test>", "AUTH WORDS", "334 …", "235 2.7.0", "221 ", "component=outbound"} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("no %q in the log:\n%s", want, &log)
				}
			}
			for _, secret := range []string{"YWdhaW4=", "bGF0ZQ==", "d2hvPw=="} { // again, late, who?
				if strings.Contains(log.String(), secret) {
					t.Errorf("the log shows a login:\n%s", &log)
				}
			}
			if strings.Contains(log.String(), "private") != content {
				t.Errorf("content in the log: want %v:\n%s", content, &log)
			}
		}
	}
}

// Many recipients go in batches, and DATA with the last of them.
func TestSendMany(t *testing.T) {
	var locals []string
	for i := range 2*pipelined + 1 {
		locals = append(locals, fmt.Sprint("b", i))
	}
	c, nc := replies(t, ClientOptions{}, "PIPELINING")
	said := strings.Repeat("250 ok\r\n", pipelined) + "550 no\r\n" + strings.Repeat("250 ok\r\n", pipelined) + "450 no\r\n354 go\r\n"
	nc.chunks = [][]byte{[]byte(said), []byte("250 taken\r\n")}
	before := nc.writes
	r, err := c.Send(t.Context(), Envelope{From: sender, To: recipients(locals...)}, oneLine())
	if err != nil || len(r.Accepted) != len(locals)-2 || len(r.Rejected) != 2 || r.Rejected[0].Recipient.Local != locals[pipelined-1] {
		t.Errorf("got %d accepted, %d rejected, %v", len(r.Accepted), len(r.Rejected), err)
	}
	if n := nc.writes - before; n != 4 { // three batches and the content
		t.Errorf("writes: got %d, want 4", n)
	}
}

// A reply that nobody asked for, behind that to a message, is not taken for one of the next.
func TestSendUnasked(t *testing.T) {
	c, nc := replies(t, ClientOptions{}, "PIPELINING")
	ok := "250 ok\r\n"
	nc.chunks = [][]byte{[]byte(ok + ok + "354 go\r\n"), []byte(ok + ok), []byte(ok + "550 no\r\n554 none\r\n")}
	e := Envelope{From: sender, To: recipients("b")}
	if r, err := c.Send(t.Context(), e, oneLine()); outcome(r, err) != "b" {
		t.Errorf("first: got %s", outcome(r, err))
	}
	said := nc.out.Len()
	if r, err := c.Send(t.Context(), e, oneLine()); outcome(r, err) != "b=MAIL:protocol ! MAIL:protocol" || !c.Broken() || nc.out.Len() != said {
		t.Errorf("second: got %s", outcome(r, err))
	}
}

// QUIT waits for its answer and closes, Close closes at once, and both may come late.
func TestClientEnd(t *testing.T) {
	parity.Row(t, "SC-48", "SC-49", "SC-50")
	for _, tt := range []struct {
		name   string
		script []string
		err    bool
	}{
		{"221", []string{"<QUIT", ">221 bye"}, false},
		{"refused", []string{"<QUIT", ">500 stay"}, false},
		{"closed", []string{"<QUIT"}, true},
		{"hangs", []string{"<QUIT", "hang"}, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			err, _ := talkTo(t.Context(), ClientOptions{}, slices.Concat(ehlo, tt.script), func(c *Client) error {
				began := time.Now()
				err := c.Quit(t.Context())
				if !c.Broken() || c.Close() != nil || time.Since(began) > 5*time.Minute {
					t.Errorf("%s: not closed", tt.name)
				}
				if again := c.Quit(t.Context()); !errors.Is(again, net.ErrClosed) {
					t.Errorf("%s: second QUIT: got %v", tt.name, again)
				}
				return err
			})
			if (err != nil) != tt.err {
				t.Errorf("%s: got %v", tt.name, err)
			}
		})
	}
}
