package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// together lets a client talk to a server of the same package; say must end with Quit. It
// returns what the server's sessions noted, one after the other.
func together(t *testing.T, o ServerOptions, co ClientOptions, mechs []string, say func(ctx context.Context, c *Client)) string {
	t.Helper()
	var sessions []*scripted
	srv := mustServer(t, HandlerFunc(func(_ context.Context, c *Conn) (Session, error) {
		s := &scripted{conn: c, mechs: mechs}
		sessions = append(sessions, s)
		return s, nil
	}), o)
	ours, theirs := net.Pipe()
	served := make(chan error)
	go func() { served <- srv.ServeConn(theirs) }()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	co.LMTP, co.LocalName = o.LMTP, "client.test"
	c, err := NewClient(ctx, ours, co)
	if err != nil {
		t.Fatal(err)
	}
	say(ctx, c)
	c.Close()
	<-served
	var noted []string
	for _, s := range sessions {
		noted = append(noted, s.events...)
	}
	return strings.Join(noted, "\n")
}

// What the client promises of a message and its recipients arrives, and binary content
// octet for octet.
func TestClientServerEnvelope(t *testing.T) {
	content := []byte("Subject: x\r\n\r\n\x00\r\r\n\n.\r\n\xff")
	from := Sender{Path: mustPath(t, "<a@client.test>"), Body: BodyBinary, RequireTLS: true, Return: ReturnFull, EnvID: "7+8=15"}
	to := Recipient{Path: mustPath(t, "<b@mx.test>"), Notify: NotifyFailure | NotifyDelay, Original: OriginalRecipient{"rfc822", "c+d@mx.test"}}
	noted := together(t, ServerOptions{Hostname: "mx.test", TLS: testTLS(t), Offer: Extensions{DSN: true, BinaryMIME: true, RequireTLS: true}},
		ClientOptions{}, nil, func(ctx context.Context, c *Client) {
			if err := c.Mail(ctx, from); codeOf(err) != 554 && codeOf(err) != 550 {
				t.Errorf("MAIL in clear: got %v, want a refusal", err)
			}
			if err := c.StartTLS(ctx, &tls.Config{InsecureSkipVerify: true}); err != nil {
				t.Fatal(err)
			}
			if rcpts, err := c.Envelope(ctx, from, []Recipient{to}); err != nil || rcpts[0] != nil {
				t.Fatal(rcpts, err)
			}
			replies, err := c.Data(ctx, pieces(slices.Collect(slices.Chunk(content, 3))))
			if err != nil || replies[0].Code != 250 {
				t.Errorf("Data: got %v, %v", replies, err)
			}
			c.Quit(ctx)
		})
	for _, want := range []string{"BINARYMIME", "requiretls", "FULL", "7+8=15", "notify=FAILURE,DELAY original=rfc822;c+d@mx.test",
		`message "Subject: x\r\n\r\n\x00\r\r\n\n.\r\n\xff"`} {
		if !strings.Contains(noted, want) {
			t.Errorf("the server noted no %q:\n%s", want, noted)
		}
	}
}

// Many chunks, refused ones among them, by SMTP and LMTP: each message arrives whole or not
// at all, and its replies are its own.
func TestClientServerChunks(t *testing.T) {
	big := bytes.Repeat([]byte("A line.\r\n"), 100_000)
	for _, lmtp := range []bool{false, true} {
		noted := together(t, ServerOptions{Hostname: "mx.test", LMTP: lmtp, MaxMessage: int64(len(big))}, ClientOptions{}, nil, func(ctx context.Context, c *Client) {
			send := func(from string, content []byte) (codes []int) {
				to := []Recipient{{Path: mustPath(t, "<b@mx.test>")}, {Path: mustPath(t, "<rcpt-550@mx.test>")}, {Path: mustPath(t, "<c@mx.test>")}}
				if _, err := c.Envelope(ctx, Sender{Path: mustPath(t, from)}, to); err != nil {
					return []int{codeOf(err)}
				}
				replies, err := c.Data(ctx, pieces(slices.Collect(slices.Chunk(content, 50_000))))
				for _, r := range replies {
					codes = append(codes, r.Code)
				}
				if err != nil {
					codes = append(codes, codeOf(err))
				}
				return codes
			}
			taken, spam := []int{250}, []int{554}
			if lmtp {
				taken, spam = []int{250, 250}, []int{554, 554}
			}
			for _, tt := range []struct {
				from    string
				content []byte
				want    []int
			}{
				{"<a@client.test>", big, taken},
				{"<msg-554@client.test>", big, spam},
				{"<data-451@client.test>", big, []int{451}}, // at the first chunk
				{"<a@client.test>", slices.Concat(big, big), []int{552}},
				{"<early-552@client.test>", big, []int{552}},
				{"<a@client.test>", big, taken},
			} {
				if got := send(tt.from, tt.content); !slices.Equal(got, tt.want) {
					t.Errorf("lmtp %v, %s with %d octets: got %v, want %v", lmtp, tt.from, len(tt.content), got, tt.want)
				}
				if c.Broken() {
					t.Fatalf("lmtp %v, %s: the client is broken", lmtp, tt.from)
				}
			}
			c.Quit(ctx)
		})
		if n := strings.Count(noted, `message "A line.`); n != 3 { // the one that was refused afterwards, too
			t.Errorf("lmtp %v: %d messages arrived whole, want 3", lmtp, n)
		}
	}
}

// Logins, with and without challenges, and whom we speak for.
func TestClientServerIdentity(t *testing.T) {
	everybody := func(net.Addr) bool { return true }
	o := ServerOptions{Hostname: "mx.test", Auth: AuthOptions{Insecure: true, FailureDelay: -1}, XClient: everybody, XForward: everybody}
	f := Forwarded{Name: "client.example", Addr: netip.MustParseAddr("2001:db8::1"), Port: 1025, Proto: "ESMTP", Helo: "there.example", Ident: "4F"}
	noted := together(t, o, ClientOptions{ClearAuth: true}, []string{"WORDS"}, func(ctx context.Context, c *Client) {
		for _, tt := range []struct {
			m    words
			want int
		}{
			{words{initial: []byte("no")}, 535},
			{words{answers: []string{"no"}}, 535},
			{words{answers: []string{"again", "!"}}, 0}, // cancelled
			{words{answers: []string{"again", "late", ""}}, 0},
		} {
			if err := c.Auth(ctx, &tt.m); codeOf(err) != tt.want && !errors.Is(err, errSaid) {
				t.Errorf("Auth: got %v, want %d", err, tt.want)
			}
		}
		if err := errors.Join(c.XForward(ctx, f), c.XClient(ctx, f)); err != nil {
			t.Error(err)
		}
		if err := c.Mail(ctx, Sender{Path: mustPath(t, "<a@client.test>")}); err != nil {
			t.Error(err)
		}
		if err := c.XClient(ctx, f); codeOf(err) != 503 {
			t.Errorf("XCLIENT in a transaction: got %v, want 503", err)
		}
		c.Quit(ctx)
	})
	for _, want := range []string{`response "late"`, "helo there.example"} {
		if !strings.Contains(noted, want) {
			t.Errorf("the server noted no %q:\n%s", want, noted)
		}
	}
}
