package smtp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// badServer plays a server from a script, one string for each thing it does:
//
//	"<text"  wait for a line that matches text
//	">text"  send text and CRLF
//	"!text"  send text as it is, with Go escapes already done
//	"data"   read mail data up to its end
//	"gulp"   read whatever comes next
//	"hang"   wait until the client goes away
//	"slow N" wait N seconds (of a synctest bubble)
//
// At the end of the script it closes. It reports the first thing that went wrong.
func badServer(nc net.Conn, script ...string) error {
	defer nc.Close()
	r := bufio.NewReader(nc)
	for _, s := range script {
		var err error
		switch {
		case s[0] == '<':
			var line string
			if line, err = r.ReadString('\n'); err == nil && !matches(s[1:]+"\r\n", line) {
				err = fmt.Errorf("got %q, want %q", line, s[1:])
			}
		case s[0] == '>':
			_, err = io.WriteString(nc, s[1:]+"\r\n")
		case s[0] == '!':
			_, err = io.WriteString(nc, s[1:])
		case s == "data":
			for line := ""; line != ".\r\n" && err == nil; {
				line, err = r.ReadString('\n')
			}
		case s == "gulp":
			_, err = r.Read(make([]byte, 64<<10))
		case s == "hang":
			io.Copy(io.Discard, r)
		case strings.HasPrefix(s, "slow "):
			d, _ := time.ParseDuration(s[len("slow "):] + "s")
			<-time.After(d)
		}
		if err != nil {
			return fmt.Errorf("at %q: %w", s, err)
		}
	}
	return nil
}

// talkTo lets do talk to a bad server over a pipe and returns the errors of both.
func talkTo(ctx context.Context, o ClientOptions, script []string, do func(c *Client) error) (client, server error) {
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- badServer(theirs, script...) }()
	if o.LocalName == "" {
		o.LocalName = "client.test"
	}
	c, err := NewClient(ctx, ours, o)
	if err == nil {
		err = do(c)
		c.Close()
	}
	return err, <-done
}

// send sends one message to b, c and d and returns what became of it in one line.
func send(ctx context.Context, c *Client) (string, error) {
	var to []Recipient
	for _, local := range []string{"b", "c", "d"} {
		to = append(to, Recipient{Path: Path{local, Domain{"mx.test"}}})
	}
	rcpts, err := c.Envelope(ctx, Sender{Path: Path{"a", Domain{"client.test"}}}, to)
	if err != nil {
		return "", err
	}
	said := ""
	for _, err := range rcpts {
		said += fmt.Sprint(codeOf(err), " ")
	}
	replies, err := c.Data(ctx, memContent("text\r\n.\r\n"))
	if err != nil {
		return said, err
	}
	for _, r := range replies {
		said += fmt.Sprint("/", r.Code)
	}
	return said, nil
}

var (
	greet    = []string{">220 mx.test ESMTP", "<EHLO client.test"}
	pipeline = []string{"<MAIL FROM:<a@client.test>", "<RCPT TO:<b@mx.test>", "<RCPT TO:<c@mx.test>", "<RCPT TO:<d@mx.test>"}
	ehlo     = slices.Concat(greet, []string{">250-mx.test", ">250-PIPELINING", ">250 SIZE 1000"})
	lhlo     = []string{">220 mx.test LMTP", "<LHLO client.test", ">250-mx.test", ">250 PIPELINING"}
	allTaken = slices.Concat(pipeline, []string{">250 ok", ">250 ok", ">250 ok", ">250 ok", "<DATA"})
)

func TestClient(t *testing.T) {
	lmtp := ClientOptions{LMTP: true}
	for _, tt := range []struct {
		name   string
		opts   ClientOptions
		script []string
		want   string // what became of the message
		err    string // in the error; empty is none
		reply  int    // code of the error that is a *Reply
	}{
		// What goes well.
		{"message", ClientOptions{}, slices.Concat(ehlo, allTaken, []string{">354 go", "<text", "<..", "<.", ">250 2.0.0 taken"}), "0 0 0 /250", "", 0},
		{"one by one", ClientOptions{}, slices.Concat(greet, []string{">250 mx.test", "<MAIL *", ">250 ok", "<RCPT *", ">250 ok", "<RCPT *", ">550 no", "<RCPT *", ">251 ok",
			"<DATA", ">354 go", "data", ">250 ok"}), "0 550 0 /250", "", 0},
		{"HELO", ClientOptions{}, []string{">220 mx.test", "<EHLO *", ">502 what", "<HELO client.test", ">250 mx.test", "<MAIL *", ">550 no"}, "", "550", 550},
		{"multi-line", ClientOptions{}, slices.Concat([]string{">220-mx.test", ">220-hello", ">220 and more"}, greet[1:], []string{">250-mx.test", ">250-pipelining", ">250 size 10"},
			pipeline, []string{">250-ok", ">250 ok", ">250", ">250-", ">250 ", ">250 ok", "<DATA", ">354-go", ">354 on", "data", ">250 ok"}), "0 0 0 /250", "", 0},
		{"some refused", ClientOptions{}, slices.Concat(ehlo, pipeline, []string{">250 ok", ">550 5.1.1 no", ">250 ok", ">452 4.5.3 more later", "<DATA", ">354 go", "data", ">250 ok"}),
			"550 0 452 /250", "", 0},
		{"lmtp", lmtp, slices.Concat(lhlo, pipeline, []string{">250 ok", ">250 ok", ">550 no", ">250 ok", "<DATA", ">354 go", "data", ">250 ok", ">452 full"}), "0 550 0 /250/452", "", 0},
		{"lmtp refuses all", lmtp, slices.Concat(lhlo, pipeline, []string{">250 ok", ">550 no", ">550 no", ">550 no", "<DATA", ">503 none"}), "550 550 550 ", "503", 503},

		// What is refused.
		{"421 greeting", ClientOptions{}, []string{">421 4.3.2 come later"}, "", "421 4.3.2 come later", 421},
		{"554 greeting", ClientOptions{}, []string{">554 5.7.1 not you"}, "", "554 5.7.1", 554},
		{"EHLO later", ClientOptions{}, slices.Concat(greet, []string{">451 4.3.0 later"}), "", "451", 451},
		{"EHLO and HELO refused", ClientOptions{}, slices.Concat(greet, []string{">502 what", "<HELO *", ">550 not you"}), "", "550", 550},
		{"LHLO refused", lmtp, []string{">220 mx.test", "<LHLO *", ">500 what"}, "", "500", 500}, // there is no HELO in LMTP
		{"MAIL refused in a pipeline", ClientOptions{}, slices.Concat(ehlo, pipeline, []string{">552 5.3.4 too big", ">503 no", ">503 no", ">503 no"}), "", "552 5.3.4", 552},
		{"DATA refused", ClientOptions{}, slices.Concat(ehlo, allTaken, []string{">554 5.5.1 no"}), "0 0 0 ", "554", 554},
		{"message refused", ClientOptions{}, slices.Concat(ehlo, allTaken, []string{">354 go", "data", ">554 5.7.1 spam"}), "0 0 0 /554", "", 0},
		{"421 in a pipeline", ClientOptions{}, slices.Concat(ehlo, pipeline, []string{">250 ok", ">421 4.3.2 bye"}), "", "421 4.3.2", 421},

		// What is no SMTP.
		{"nothing", ClientOptions{}, nil, "", "EOF", 0},
		{"half a line", ClientOptions{}, []string{"!220 mx"}, "", "unexpected EOF", 0},
		{"bare LF", ClientOptions{}, []string{"!220 mx.test\n", "hang"}, "", "CRLF", 0},
		{"bare CR", ClientOptions{}, []string{"!220 mx\r250 x\r\n", "hang"}, "", "CRLF", 0},
		{"no code", ClientOptions{}, []string{">hello", "hang"}, "", `malformed reply line "hello"`, 0},
		{"empty line", ClientOptions{}, []string{">", "hang"}, "", "malformed", 0},
		{"short code", ClientOptions{}, []string{">22", "hang"}, "", "malformed", 0},
		{"code without space", ClientOptions{}, []string{">220mx.test", "hang"}, "", "malformed", 0},
		{"code of no class", ClientOptions{}, []string{">999 x", "hang"}, "", "malformed", 0},
		{"1xx", ClientOptions{}, []string{">120 wait", "hang"}, "", "malformed", 0},
		{"codes differ", ClientOptions{}, []string{">220-mx.test", ">250 ok", "hang"}, "", "malformed", 0},
		{"another protocol", ClientOptions{}, []string{"!HTTP/1.1 400 Bad Request\r\n", "hang"}, "", "malformed", 0},
		{"wrong greeting", ClientOptions{}, []string{">250 ok", "hang"}, "", "unexpected reply", 0},
		{"wrong reply to EHLO", ClientOptions{}, slices.Concat(greet, []string{">220 again", "hang"}), "", "unexpected reply", 0},
		{"wrong reply to DATA", ClientOptions{}, slices.Concat(ehlo, allTaken, []string{">250 ok", "hang"}), "0 0 0 ", "unexpected reply", 0},
		{"354 twice", ClientOptions{}, slices.Concat(ehlo, allTaken, []string{">354 go", "data", ">354 go", "hang"}), "0 0 0 ", "unexpected reply", 0},
		{"endless line", ClientOptions{}, []string{"!220 " + strings.Repeat("x", 2<<20)}, "", "line", 0},
		{"long line", ClientOptions{}, []string{">220 " + strings.Repeat("x", 4096), "hang"}, "", "too long", 0},
		{"endless reply", ClientOptions{}, []string{"!" + strings.Repeat("220-x\r\n", 1000)}, "", "too many lines", 0},

		// What breaks off.
		{"closed after 220", ClientOptions{}, greet, "", "EOF", 0},
		{"closed in EHLO", ClientOptions{}, slices.Concat(greet, []string{">250-mx.test"}), "", "EOF", 0},
		{"closed after MAIL", ClientOptions{}, slices.Concat(ehlo, pipeline), "", "EOF", 0},
		{"closed in a pipeline", ClientOptions{}, slices.Concat(ehlo, pipeline, []string{">250 ok", ">250 ok"}), "", "EOF", 0},
		{"closed after DATA", ClientOptions{}, slices.Concat(ehlo, allTaken), "0 0 0 ", "EOF", 0},
		{"closed after 354", ClientOptions{}, slices.Concat(ehlo, allTaken, []string{">354 go"}), "0 0 0 ", "", 0},
		{"closed after the data", ClientOptions{}, slices.Concat(ehlo, allTaken, []string{">354 go", "data"}), "0 0 0 ", "EOF", 0},
		{"lmtp breaks between replies", lmtp, slices.Concat(lhlo, allTaken, []string{">354 go", "data", ">250 ok"}), "0 0 0 /250/451/451", "", 0},
		{"lmtp 421 between replies", lmtp, slices.Concat(lhlo, allTaken, []string{">354 go", "data", ">250 ok", ">421 4.3.2 bye"}), "0 0 0 /250/421/421", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			var got string
			err, scriptErr := talkTo(ctx, tt.opts, tt.script, func(c *Client) (err error) {
				got, err = send(ctx, c)
				return err
			})
			if tt.name == "closed after 354" {
				if err == nil {
					t.Errorf("got %q, want an error", got)
				}
				return
			}
			if tt.err == "" && scriptErr != nil {
				t.Errorf("server: %v", scriptErr)
			}
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %q, %v, want %q, %q", got, err, tt.want, tt.err)
			}
			if r, ok := errors.AsType[*Reply](err); ok != (tt.reply != 0) || ok && r.Code != tt.reply {
				t.Errorf("got %v as a reply %v, want code %d", err, ok, tt.reply)
			}
			if e, ok := errors.AsType[*ClientError](err); tt.err != "" && tt.reply == 0 && (!ok || e.Phase == "" || !e.Temporary() ||
				e.Kind != KindProtocol && e.Kind != KindConnection) {
				t.Errorf("got %#v, want a typed error", err)
			}
		})
	}
}

// Every wait has its own limit, in every phase, and none is longer.
func TestClientTimeouts(t *testing.T) {
	limits := Timeouts{Greeting: time.Second, Command: 2 * time.Second, DataInit: 3 * time.Second, DataBlock: 4 * time.Second, DataEnd: 5 * time.Second}
	for _, tt := range []struct {
		name   string
		opts   Timeouts
		script []string
		want   time.Duration
	}{
		{"greeting", limits, []string{"hang"}, 1 * time.Second},
		{"greeting octet by octet", limits, []string{"!2", "slow 0.9", "!2", "slow 0.9", "!0", "slow 0.9", "! ", "hang"}, 1 * time.Second},
		{"EHLO", limits, slices.Concat(greet, []string{"hang"}), 2 * time.Second},
		{"MAIL not taken", limits, slices.Concat(ehlo, []string{"slow 100"}), 2 * time.Second},
		{"MAIL not answered", limits, slices.Concat(ehlo, []string{"hang"}), 2 * time.Second},
		{"DATA", limits, slices.Concat(ehlo, allTaken, []string{"hang"}), 3 * time.Second},
		{"data not taken", limits, slices.Concat(ehlo, allTaken, []string{">354 go", "slow 100"}), 5 * time.Second}, // little of it goes with the end mark
		{"end of data", limits, slices.Concat(ehlo, allTaken, []string{">354 go", "data", "hang"}), 5 * time.Second},
		{"default greeting", Timeouts{}, []string{"hang"}, 5 * time.Minute}, // RFC 5321, Section 4.5.3.2
		{"default DATA", Timeouts{}, slices.Concat(ehlo, allTaken, []string{"hang"}), 2 * time.Minute},
		{"default end of data", Timeouts{}, slices.Concat(ehlo, allTaken, []string{">354 go", "data", "hang"}), 10 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				var took time.Duration
				err, _ := func() (client, server error) {
					ours, theirs := net.Pipe()
					done := make(chan error, 1)
					go func() { done <- badServer(theirs, tt.script...) }()
					c, err := NewClient(t.Context(), ours, ClientOptions{LocalName: "client.test", Timeouts: tt.opts})
					if err == nil {
						_, err = send(t.Context(), c)
						took = time.Since(began)
						if !c.Broken() {
							t.Errorf("client is not broken")
						}
						if again := c.Noop(t.Context()); !errors.Is(again, errBroken) || !errors.Is(again, os.ErrDeadlineExceeded) {
							t.Errorf("next call: got %v, want %v because of the deadline", again, errBroken)
						}
						c.Close()
					} else {
						took = time.Since(began)
					}
					return err, <-done
				}()
				if !errors.Is(err, os.ErrDeadlineExceeded) || took != tt.want {
					t.Errorf("got %v after %v, want a deadline after %v", err, took, tt.want)
				}
			})
		})
	}
}

// The end of the context ends every wait at once, whatever the timeouts say: for a
// reply, for the server to take a command, for it to take data.
func TestClientContext(t *testing.T) {
	big := memContent(bytes.Repeat([]byte("text\r\n"), 100000))
	for _, tt := range []struct {
		name   string
		script []string
	}{
		{"greeting", []string{"hang"}},
		{"EHLO", slices.Concat(greet, []string{"hang"})},
		{"EHLO not taken", []string{">220 mx.test", "slow 600"}},
		{"MAIL", slices.Concat(ehlo, []string{"<MAIL*", "hang"})},
		{"MAIL not taken", slices.Concat(ehlo, []string{"slow 600"})},
		{"DATA", slices.Concat(ehlo, allTaken, []string{"hang"})},
		{"data not taken", slices.Concat(ehlo, allTaken, []string{">354 go", "<text", "slow 600"})},
		{"end of data", slices.Concat(ehlo, allTaken, []string{">354 go", "data", "hang"})},
	} {
		for _, how := range []string{"cancel", "deadline"} {
			t.Run(tt.name+"/"+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					began := time.Now()
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					want := context.DeadlineExceeded
					if how == "cancel" {
						cancel()
						ctx, cancel = context.WithCancel(t.Context())
						want = context.Canceled
						time.AfterFunc(time.Second, cancel)
					}
					defer cancel()
					ours, theirs := net.Pipe()
					done := make(chan error, 1)
					go func() { done <- badServer(theirs, tt.script...) }()
					c, err := NewClient(ctx, ours, ClientOptions{LocalName: "client.test"})
					if err == nil {
						to := []Recipient{{Path: Path{"b", Domain{"mx.test"}}}, {Path: Path{"c", Domain{"mx.test"}}}, {Path: Path{"d", Domain{"mx.test"}}}}
						if _, err = c.Envelope(ctx, Sender{Path: Path{"a", Domain{"client.test"}}}, to); err == nil {
							_, err = c.Data(ctx, big)
						}
						if !c.Broken() {
							t.Errorf("client is not broken")
						}
						c.Close()
					}
					if took := time.Since(began); !errors.Is(err, want) || took != time.Second {
						t.Errorf("got %v after %v, want %v after a second", err, took, want)
					}
					<-done
				})
			})
		}
	}
}

// A context that ended between two calls, or that belonged to an earlier one, is no
// matter of the next.
func TestClientContexts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := mustServer(t, acceptAll, ServerOptions{IdleTimeout: time.Hour})
		ours, theirs := net.Pipe()
		done := make(chan error)
		go func() { done <- srv.ServeConn(theirs) }()
		first, cancelFirst := context.WithCancel(t.Context())
		defer cancelFirst()
		c, err := NewClient(first, ours, ClientOptions{LocalName: "client.test"})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if i == 2 {
				ctx = context.Background()
			}
			if err := c.Noop(ctx); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
			if i%2 == 0 {
				<-time.After(2 * time.Minute) // runs out while nothing is said
			}
			cancel()
			cancelFirst()
			synctest.Wait()
		}
		if err := c.Noop(first); !errors.Is(err, context.Canceled) || !c.Broken() {
			t.Errorf("call with a context that has ended: got %v, broken %v", err, c.Broken())
		}
		c.Close()
		if err := c.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
		<-done
	})
}

// A server that stops taking data says why, and the client hears it.
func TestClientCutOff(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	srv := mustServer(t, acceptAll, ServerOptions{MaxMessage: 1000})
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(t.Context(), nc, ClientOptions{LocalName: "client.test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Envelope(t.Context(), Sender{}, []Recipient{{Path: mustPath(t, "<b@mx.test>")}}); err != nil {
		t.Fatal(err)
	}
	content := &slowContent{chunk: bytes.Repeat([]byte("text\r\n"), 10000), n: 1000}
	if _, err := c.Data(t.Context(), content); codeOf(err) != 552 {
		// The kernel may have thrown the reply away with the connection.
		if _, refused := errors.AsType[*Reply](err); err == nil || refused {
			t.Errorf("message without end: got %v, want 552 or a broken connection", err)
		}
	}
	if !c.Broken() {
		t.Errorf("client is not broken")
	}
	c.Close()
	srv.Shutdown(t.Context())
	<-served
}

// slowContent writes chunk n times.
type slowContent struct {
	chunk []byte
	n     int
}

func (s *slowContent) WriteTo(w io.Writer) (total int64, err error) {
	for range s.n {
		n, err := w.Write(s.chunk)
		if total += int64(n); err != nil {
			return total, err
		}
	}
	return total, nil
}

// Content that cannot be read to its end is not ended on the wire.
func TestClientContentFails(t *testing.T) {
	for _, o := range []ClientOptions{{NoChunking: true}, {}} {
		sess := &scripted{}
		srv := mustServer(t, HandlerFunc(func(_ context.Context, c *Conn) (Session, error) { sess.conn = c; return sess, nil }),
			ServerOptions{Hostname: "mx.test"})
		ours, theirs := net.Pipe()
		served := make(chan error)
		go func() { served <- srv.ServeConn(theirs) }()
		o.LocalName = "client.test"
		c, err := NewClient(t.Context(), ours, o)
		if err != nil {
			t.Fatal(err)
		}
		c.Mail(t.Context(), Sender{})
		c.Rcpt(t.Context(), Recipient{Path: mustPath(t, "<b@mx.test>")})
		if _, err := c.Data(t.Context(), failingContent{}); !errors.Is(err, io.ErrNoProgress) || !c.Broken() {
			t.Errorf("Data: got %v, broken %v, want %v", err, c.Broken(), io.ErrNoProgress)
		}
		if err := c.Quit(t.Context()); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("Quit: got %v, want why it is broken", err)
		}
		<-served
		events := strings.Join(sess.events, "\n")
		if strings.Contains(events, "message \"") || o.NoChunking != strings.Contains(events, "message broken") {
			t.Errorf("server with %+v: got %s, want no message", o, events)
		}
	}
}

type failingContent struct{}

func (failingContent) WriteTo(w io.Writer) (int64, error) {
	n, _ := io.WriteString(w, "text\r\n")
	return int64(n), io.ErrNoProgress
}

// What is not fit for this server is refused before it is sent.
func TestClientAddresses(t *testing.T) {
	x := Domain{"mx.test"}
	utf8 := Path{"jörg", x}
	for _, tt := range []struct {
		name   string
		offers string
		from   Sender
		to     Path
		want   string // of MAIL and RCPT, and what the server heard
	}{
		{"plain", "SMTPUTF8", Sender{}, Path{"b", x}, "0 0 MAIL FROM:<> RCPT TO:<b@mx.test>"},
		{"UTF-8", "SMTPUTF8", Sender{Path: utf8}, utf8, "0 0 MAIL FROM:<jörg@mx.test> SMTPUTF8 RCPT TO:<jörg@mx.test>"},
		{"recipient in UTF-8", "SMTPUTF8", Sender{}, utf8, "0 0 MAIL FROM:<> SMTPUTF8 RCPT TO:<jörg@mx.test>"},
		{"sender in UTF-8 not offered", "SIZE", Sender{Path: utf8}, Path{"b", x}, "550 0 "},
		{"header in UTF-8 not offered", "SIZE", Sender{UTF8: true}, Path{"b", x}, "550 0 "},
		{"recipient in UTF-8 not offered", "SIZE", Sender{}, utf8, "0 550 MAIL FROM:<>"},
		{"size and body", "SIZE", Sender{Size: 5, Body: BodyEightBit}, Path{"b", x}, "0 0 MAIL FROM:<> SIZE=5 RCPT TO:<b@mx.test>"},
		{"line end", "SIZE", Sender{Path: Path{"a\r\nDATA", x}}, Path{"b", x}, "550 0 "},
		{"line end in a recipient", "SIZE", Sender{}, Path{"b\r\nDATA", x}, "0 550 MAIL FROM:<>"},
		{"no domain", "SIZE", Sender{}, Path{"b", Domain{}}, "0 550 MAIL FROM:<>"},
		{"null recipient", "SIZE", Sender{}, Path{}, "0 550 MAIL FROM:<>"},
		{"not UTF-8", "SMTPUTF8", Sender{}, Path{"\xff", x}, "0 550 MAIL FROM:<> SMTPUTF8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nc := &scriptConn{chunks: [][]byte{[]byte("220 x\r\n250-x\r\n250-PIPELINING\r\n250 " + tt.offers + "\r\n250 ok\r\n250 ok\r\n")}}
			c, err := NewClient(t.Context(), nc, ClientOptions{LocalName: "client.test"})
			if err != nil {
				t.Fatal(err)
			}
			before := nc.out.Len()
			rcpts, err := c.Envelope(t.Context(), tt.from, []Recipient{{Path: tt.to}})
			got := fmt.Sprint(codeOf(err), " ")
			if err == nil {
				got = fmt.Sprint(codeOf(err), " ", codeOf(rcpts[0]), " ")
			} else {
				got += "0 "
			}
			heard := strings.TrimSpace(strings.ReplaceAll(nc.out.String()[before:], "\r\n", " "))
			if got+heard != tt.want {
				t.Errorf("got %q, want %q", got+heard, tt.want)
			}
		})
	}
	// A recipient on its own cannot make MAIL ask for SMTPUTF8 any more.
	c := replyReader("250 ok\r\n")
	c.offers.utf8 = true
	c.Mail(t.Context(), Sender{})
	if err := c.Rcpt(t.Context(), Recipient{Path: utf8}); codeOf(err) != 553 {
		t.Errorf("Rcpt in UTF-8 after a MAIL without: got %v, want 553", err)
	}
}

// Many recipients go in batches: neither side waits for ever to be read.
func TestClientManyRecipients(t *testing.T) {
	srv := mustServer(t, acceptAll, ServerOptions{MaxRecipients: 100000})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	counted := &countingConn{Conn: ours}
	c, err := NewClient(ctx, counted, ClientOptions{LocalName: "client.test"})
	if err != nil {
		t.Fatal(err)
	}
	to := make([]Recipient, 5*pipelined+1)
	for i := range to {
		to[i] = Recipient{Path: Path{fmt.Sprint("b", i), Domain{"mx.test"}}}
	}
	before := counted.writes
	rcpts, err := c.Envelope(ctx, Sender{}, to)
	if err != nil || len(rcpts) != len(to) || slices.ContainsFunc(rcpts, func(err error) bool { return err != nil }) {
		t.Errorf("Envelope: got %v, %v", rcpts, err)
	}
	if got := counted.writes - before; got != 6 {
		t.Errorf("writes: got %d, want 6", got)
	}
	if replies, err := c.Data(ctx, memContent("text")); err != nil || replies[0].Code != 250 {
		t.Errorf("Data: got %v, %v", replies, err)
	}
	if err := c.Quit(ctx); err != nil {
		t.Errorf("Quit: %v", err)
	}
	srv.Shutdown(ctx)
	<-done
}

type countingConn struct {
	net.Conn
	writes int
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.writes++
	return c.Conn.Write(p)
}

// Both ends: STARTTLS, implicit TLS, several messages, RSET.
func TestClientAndServer(t *testing.T) {
	for _, how := range []string{"clear", "starttls", "implicit"} {
		t.Run(how, func(t *testing.T) {
			o := ServerOptions{Hostname: "mx.test"}
			if how != "clear" {
				o.TLS, o.Implicit = testTLS(t), how == "implicit"
			}
			sess := &scripted{}
			srv := mustServer(t, HandlerFunc(func(_ context.Context, c *Conn) (Session, error) { sess.conn = c; return sess, nil }), o)
			ours, theirs := net.Pipe()
			done := make(chan error)
			go func() { done <- srv.ServeConn(theirs) }()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			insecure := &tls.Config{InsecureSkipVerify: true}
			if how == "implicit" {
				ours = tls.Client(ours, insecure)
			}
			c, err := NewClient(ctx, ours, ClientOptions{LocalName: "client.test"})
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := c.Extension("STARTTLS"); ok != (how == "starttls") {
				t.Errorf("STARTTLS offered: got %v", ok)
			}
			if how == "starttls" {
				if err := c.StartTLS(ctx, insecure); err != nil {
					t.Fatal(err)
				}
			}
			if _, ok := c.TLS(); ok != (how != "clear") {
				t.Errorf("TLS: got %v", ok)
			}
			if n := c.MaxSize(); n != 50<<20 {
				t.Errorf("MaxSize: got %d", n)
			}
			from := Sender{Path: mustPath(t, "<a@client.test>"), Size: 5, Body: BodyEightBit}
			to := []Recipient{{Path: mustPath(t, "<b@mx.test>")}, {Path: mustPath(t, "<rcpt-550@mx.test>")}}
			big := bytes.Repeat([]byte(".text\n"), 50000)
			for range 2 {
				rcpts, err := c.Envelope(ctx, from, to)
				if err != nil || rcpts[0] != nil || codeOf(rcpts[1]) != 550 {
					t.Errorf("Envelope: got %v, %v", rcpts, err)
				}
				replies, err := c.Data(ctx, memContent(big))
				if err != nil || len(replies) != 1 || replies[0].Code != 250 || replies[0].Enh != (Enhanced{2, 6, 0}) {
					t.Errorf("Data: got %v, %v", replies, err)
				}
			}
			if err := errors.Join(c.Mail(ctx, from), c.Rcpt(ctx, to[0]), c.Reset(ctx), c.Noop(ctx)); err != nil {
				t.Error(err)
			}
			if err := c.Rcpt(ctx, to[0]); codeOf(err) != 503 {
				t.Errorf("Rcpt after Reset: got %v, want 503", err)
			}
			if err := c.Quit(ctx); err != nil {
				t.Errorf("Quit: %v", err)
			}
			<-done
			want := fmt.Sprintf("message %q", bytes.ReplaceAll(big, []byte("\n"), []byte("\r\n")))
			if n := len(slices.DeleteFunc(sess.events, func(e string) bool { return e != want })); n != 2 {
				t.Errorf("messages that arrived as they were sent: got %d, want 2", n)
			}
		})
	}
}

// RFC 3207, Section 4.2: what a server said in clear behind its 220 is not believed.
func TestClientStartTLS(t *testing.T) {
	offers := slices.Concat(greet, []string{">250-mx.test", ">250 STARTTLS", "<STARTTLS"})
	for _, tt := range []struct {
		name   string
		script []string
		err    string
		broken bool
	}{
		{"injected", slices.Concat(offers, []string{"!220 go\r\n250 believe me\r\n"}), "TLS handshake", true},
		{"refused", slices.Concat(offers, []string{">454 4.7.0 not now", "<QUIT", ">221 bye"}), "454 4.7.0", false},
		{"wrong code", slices.Concat(offers, []string{">250 ok"}), "unexpected reply", true},
		{"no handshake", slices.Concat(offers, []string{">220 go", "gulp", ">what"}), "TLS handshake", true},
		{"closed", slices.Concat(offers, []string{">220 go"}), "TLS handshake", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err, _ := talkTo(ctx, ClientOptions{}, tt.script, func(c *Client) error {
				err := c.StartTLS(ctx, &tls.Config{InsecureSkipVerify: true})
				if c.Broken() != tt.broken {
					t.Errorf("broken: got %v, want %v", c.Broken(), tt.broken)
				}
				c.Quit(ctx)
				return err
			})
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %v, want %q", err, tt.err)
			}
		})
	}
}

func TestClientLocalName(t *testing.T) {
	for _, name := range []string{"", "a b", "a\r\nQUIT", "ü.test"} {
		nc := &scriptConn{chunks: [][]byte{[]byte("220 x\r\n250 x\r\n")}}
		if _, err := NewClient(t.Context(), nc, ClientOptions{LocalName: name}); err == nil || !nc.closed || nc.out.Len() > 0 {
			t.Errorf("LocalName %q: got %v, closed %v, said %q", name, err, nc.closed, &nc.out)
		}
	}
}

// A reply is within its limits or an error, and the same however it was cut.
func FuzzReplyParser(f *testing.F) {
	for _, s := range []string{"250 ok\r\n", "250-a\r\n250 b\r\n", "250\r\n", "550 5.1.1 no\r\n", "250-a\r\n251 b\r\n", "250-\r\n", "2500\r\n",
		"250 a\n", "250 a\rb\r\n", "999 x\r\n", "250 2.0.0\r\n", "\xff50 x\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		c := replyReader(string(input))
		r, err := c.readReply()
		pieces := &Client{wire: scriptedWire(byteByByte(input)...)}
		r2, err2 := pieces.readReply()
		if fmt.Sprint(err) != fmt.Sprint(err2) || err == nil && *r != *r2 {
			t.Errorf("%q: got %+v, %v; octet by octet %+v, %v", input, r, err, r2, err2)
		}
		if err != nil {
			if !c.Broken() {
				t.Errorf("%q: got %v, and the client goes on", input, err)
			}
			return
		}
		if r.Code < 200 || r.Code > 599 || r.Enh != (Enhanced{}) && r.Enh[0] != r.Code/100 || strings.Contains(r.Text, "\r") ||
			strings.Count(r.Text, "\n") >= maxReplyInput {
			t.Errorf("%q: got %+v", input, r)
		}
	})
}
