package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
)

// options_test.go: what a program may ask of a server: a look at the connection before all
// else, limits, delays, and words of its own.

// prefaced is a connection whose first octet said for whom it is.
type prefaced struct {
	net.Conn
	client net.Addr
}

func (p *prefaced) RemoteAddr() net.Addr { return p.client }

// preface reads one octet, the last digit of the client's address. "x" is refused.
func preface(_ context.Context, nc net.Conn) (net.Conn, error) {
	var b [1]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		return nil, err
	}
	if b[0] == 'x' {
		return nil, errors.New("not for us")
	}
	return &prefaced{nc, &net.TCPAddr{IP: net.IPv4(192, 0, 2, b[0]-'0'), Port: 99}}, nil
}

func (p *peer) send(s string) {
	p.t.Helper()
	if _, err := io.WriteString(p.nc, s); err != nil {
		p.t.Fatalf("sending %q: %v", s, err)
	}
}

// hearAll hears the lines of one reply, the last of which fits the pattern.
func (p *peer) hearAll(pattern string) {
	p.t.Helper()
	for {
		line, err := p.r.ReadString('\n')
		if err == nil && len(line) > 3 && line[3] == '-' {
			continue
		}
		if err != nil || !matches(pattern+"\r\n", line) {
			p.t.Fatalf("got %q, %v, want %q", line, err, pattern)
		}
		return
	}
}

// What Prepare returns is the connection from then on, in clear and below TLS.
func TestPrepare(t *testing.T) {
	parity.Row(t, "SS-28", "SS-79")
	for _, implicit := range []bool{false, true} {
		t.Run(fmt.Sprintf("implicit=%v", implicit), func(t *testing.T) {
			var conn *Conn
			h := HandlerFunc(func(_ context.Context, c *Conn) (Session, error) { conn = c; return Accept{}, nil })
			asked := ""
			o := ServerOptions{Prepare: preface, XClient: func(a net.Addr) bool { asked = a.String(); return true }}
			if implicit {
				o.TLS, o.Implicit = testTLS(t), true
			}
			p, done := pipeTo(t, mustServer(t, h, o))
			p.send("7")
			if implicit {
				p = newPeer(t, tls.Client(p.nc, &tls.Config{InsecureSkipVerify: true}))
			}
			p.hear("220 *")
			p.say("EHLO client.test")
			p.hearAll("250 *")
			if got := fmt.Sprintf("%s %s %s", conn.Peer(), conn.RemoteAddr(), asked); got != "192.0.2.7:99 192.0.2.7:99 192.0.2.7:99" {
				t.Errorf("peer, remote address and the one that XClient was asked of: got %s", got)
			}
			if nc, ok := conn.NetConn().(*prefaced); !ok {
				t.Errorf("NetConn: got %T, want what Prepare returned", nc)
			}
			p.say("QUIT")
			p.hear("221 *")
			p.hearEnd()
			<-done
		})
	}
}

// A connection that Prepare refuses ends without a word and without a session, and a
// shutdown does not wait for its preface.
func TestPrepareFails(t *testing.T) {
	parity.Row(t, "SS-28", "SS-52")
	h := HandlerFunc(func(context.Context, *Conn) (Session, error) { t.Error("a session"); return Accept{}, nil })
	p, done := pipeTo(t, mustServer(t, h, ServerOptions{Prepare: preface}))
	p.send("x")
	p.hearEnd()
	<-done
	panics := func(context.Context, net.Conn) (net.Conn, error) { panic("on purpose") }
	p, done = pipeTo(t, mustServer(t, h, ServerOptions{Prepare: panics}))
	p.hear("421 4.3.0 *")
	p.hearEnd()
	<-done
	synctest.Test(t, func(t *testing.T) {
		srv := mustServer(t, h, ServerOptions{Prepare: preface})
		p, done := pipeTo(t, srv)
		p.t = t
		synctest.Wait()
		began := time.Now()
		stopped := make(chan error, 1)
		go func() { stopped <- srv.Shutdown(t.Context()) }()
		p.hearEnd()
		<-done
		if err := <-stopped; err != nil || time.Since(began) > time.Second {
			t.Errorf("Shutdown: got %v after %v", err, time.Since(began))
		}
	})
}

// Connections count from their first octet on, and those that are turned away do not.
func TestMaxConnections(t *testing.T) {
	parity.Row(t, "SS-27", "SS-58")
	var told atomic.Int64
	srv := mustServer(t, acceptAll, ServerOptions{MaxConnections: 2, Prepare: preface, TurnedAway: func() { told.Add(1) }})
	silent, ended := pipeTo(t, srv) // it is in Prepare
	waitFor(t, func() bool { return srv.admitted.Load() == 1 })
	second, _ := pipeTo(t, srv)
	second.send("1")
	second.hear("220 *")
	for range 3 {
		p, done := pipeTo(t, srv)
		p.send("2")
		p.hear("421 4.3.2 too many connections*")
		p.hearEnd()
		<-done
	}
	if got := srv.Connections(); got != 2 {
		t.Errorf("connections: got %d, want 2", got)
	}
	if got := srv.TurnedAway(); got != 3 || told.Load() != 3 {
		t.Errorf("turned away: got %d, and was told %d times, want 3", got, told.Load())
	}
	silent.nc.Close()
	<-ended
	third, _ := pipeTo(t, srv)
	third.send("3")
	third.hear("220 *")
	srv.open.Add(103) // as if as many were being turned away
	if !srv.flooded() {
		t.Error("with 105 connections where 2 are allowed: not flooded")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if n, err := nc.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("a connection more: got %d octets, %v, want the end", n, err)
	}
	if got := srv.TurnedAway(); got != 4 || told.Load() != 4 {
		t.Errorf("turned away without a word: got %d, and was told %d times, want 4", got, told.Load())
	}
	srv.open.Add(-103)
	go io.Copy(io.Discard, third.nc) // 421
	go io.Copy(io.Discard, second.nc)
	if err := srv.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	<-served
	if got := srv.admitted.Load(); got != 0 {
		t.Errorf("connections that count at the end: %d", got)
	}
}

// waitFor waits until ok.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
		<-time.After(time.Millisecond)
	}
}

// connected is a handler whose sessions accept all that s does not decide.
func connected(at func(*Conn), s Session) Handler {
	return HandlerFunc(func(_ context.Context, c *Conn) (Session, error) { at(c); return s, nil })
}

// How long answers are held back, and what a client does meanwhile.
func TestDelays(t *testing.T) {
	parity.Row(t, "SS-38", "SS-46")
	refusing := &scripted{mechs: []string{"ECHO"}}
	delay := func(c *Conn) { c.GreetDelay(5 * time.Second) }
	nothing := func(c *Conn) { refusing.conn = c }
	for _, tt := range []struct {
		name   string
		h      Handler
		opts   ServerOptions
		client func(p *peer)
		want   time.Duration // from connecting to the end
	}{
		{"refusals after the first ten", connected(nothing, refusing), ServerOptions{ErrorDelay: 2 * time.Second}, func(p *peer) {
			p.hear("220 *")
			p.say("HELO client.test", "MAIL FROM:<a@client.test>")
			p.hear("250 *", "250 *")
			for range 13 {
				p.say("RCPT TO:<rcpt-550@mx.test>")
				p.hear("550 *")
			}
			p.say("RCPT TO:<b@mx.test>", "QUIT") // what is accepted is not held back
			p.hear("250 *", "221 *")
		}, 6 * time.Second},
		{"an accepted message makes up for refusals", connected(nothing, refusing), ServerOptions{ErrorDelay: 2 * time.Second}, func(p *peer) {
			p.hear("220 *")
			p.say("HELO client.test")
			p.hear("250 *")
			for range 2 {
				p.say("MAIL FROM:<a@client.test>", "RCPT TO:<b@mx.test>")
				p.hear("250 *", "250 *")
				for range 10 {
					p.say("RCPT TO:<rcpt-550@mx.test>")
					p.hear("550 *")
				}
				p.say("DATA")
				p.hear("354 *")
				p.say(".")
				p.hear("250 *")
			}
			p.say("QUIT")
			p.hear("221 *")
		}, 0},
		{"no delay", connected(nothing, refusing), ServerOptions{ErrorDelay: -1, MaxErrors: 20}, func(p *peer) {
			p.hear("220 *")
			p.say("HELO client.test", "MAIL FROM:<a@client.test>")
			p.hear("250 *", "250 *")
			for range 19 {
				p.say("RCPT TO:<rcpt-550@mx.test>")
				p.hear("550 *")
			}
			p.say("RCPT TO:<rcpt-550@mx.test>")
			p.hear("421 4.7.0 too many errors")
		}, 0},
		{"failed logins, doubling", connected(nothing, refusing), ServerOptions{Auth: AuthOptions{Insecure: true, MaxFailures: 6}}, func(p *peer) {
			p.hear("220 *")
			p.say("HELO client.test")
			p.hear("250 *")
			for range 5 {
				p.say("AUTH ECHO bm8=")
				p.hear("535 *")
			}
			p.say("AUTH ECHO bm8=")
			p.hear("421 4.7.0 too many failed logins")
		}, (1 + 2 + 4 + 8 + 10 + 10) * time.Second},
		{"greeting", connected(delay, Accept{}), ServerOptions{}, func(p *peer) {
			p.hear("220 *")
			p.say("QUIT")
			p.hear("221 *")
		}, 5 * time.Second},
		{"talking before the greeting", connected(delay, Accept{}), ServerOptions{}, func(p *peer) {
			<-time.After(time.Second)
			p.say("EHLO client.test")
			p.hear("421 4.7.0 you spoke before the greeting*")
		}, time.Second},
		{"talking before the greeting within TLS", connected(delay, Accept{}), ServerOptions{TLS: testTLS(t), Implicit: true}, func(p *peer) {
			tc := tls.Client(p.nc, &tls.Config{InsecureSkipVerify: true})
			p.nc, p.r = tc, newPeer(p.t, tc).r
			<-time.After(time.Second) // before the handshake, which says nothing of what it waits for
			p.say("EHLO client.test")
			p.hear("421 4.7.0 you spoke before the greeting*")
		}, time.Second},
		{"a proxy waits once", connected(delay, Accept{}), ServerOptions{XClient: func(net.Addr) bool { return true }}, func(p *peer) {
			p.hear("220 *")
			for range 3 {
				p.say("XCLIENT ADDR=192.0.2.1")
				p.hear("220 *")
			}
			p.say("QUIT")
			p.hear("221 *")
		}, 5 * time.Second},
		{"little time when connections are short", acceptAll, ServerOptions{Stressed: func() bool { return true }, StressTimeout: 7 * time.Second}, func(p *peer) {
			p.hear("220 *")
			<-time.After(6 * time.Second)
			p.begin()
			p.say("DATA")
			p.hear("354 *")
			<-time.After(time.Minute) // in data it is not looked at
			p.say(".")
			p.hear("250 *", "421 4.4.2 *")
		}, 73 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				p, done := pipeTo(t, mustServer(t, tt.h, tt.opts))
				p.t = t
				tt.client(p)
				took := time.Since(began)
				p.nc.Close()
				<-done
				if took != tt.want {
					t.Errorf("end after %v, want %v", took, tt.want)
				}
			})
		})
	}
}

// The handshake has its time from the first octet on, whatever Prepare and Connect took of
// it.
func TestHandshakeFromAccept(t *testing.T) {
	parity.Row(t, "SS-53")
	synctest.Test(t, func(t *testing.T) {
		var end error
		h := HandlerFunc(func(context.Context, *Conn) (Session, error) {
			<-time.After(10 * time.Second)
			return ending{Accept{}, &end}, nil
		})
		p, done := pipeTo(t, mustServer(t, h, ServerOptions{TLS: testTLS(t), Implicit: true, Prepare: preface}))
		p.t = t
		began := time.Now()
		<-time.After(15 * time.Second)
		p.send("1")
		p.hearEnd()
		<-done
		if took := time.Since(began); took != 30*time.Second {
			t.Errorf("end after %v, want 30 s", took)
		}
		if !errors.Is(end, os.ErrDeadlineExceeded) && !errors.Is(end, context.DeadlineExceeded) || !strings.Contains(end.Error(), "TLS handshake") {
			t.Errorf("Close was told %v", end)
		}
	})
}

// ending is a session that keeps what Close is told.
type ending struct {
	Accept
	err *error
}

func (e ending) Close(err error) { *e.err = err }

// Shutdown in the middle of things.
func TestShutdownWithin(t *testing.T) {
	parity.Row(t, "SS-51")
	for _, tt := range []struct {
		name          string
		before, after func(p *peer)
		want          time.Duration
	}{
		{"a message in chunks", func(p *peer) {
			p.begin()
			p.say("BDAT 4")
			p.send("half")
		}, func(p *peer) {
			p.hear("250 2.0.0 *")
			<-time.After(time.Minute)
			p.say("BDAT 4 LAST")
			p.send("half")
			p.hear("250 2.6.0 *", "421 4.3.2 *")
		}, time.Minute},
		{"a login", func(p *peer) {
			p.say("HELO client.test", "AUTH ECHO")
			p.hear("250 *", "334 *")
		}, func(p *peer) { p.hear("421 4.3.2 *") }, 0},
		{"a pause after a failed login", func(p *peer) {
			p.say("HELO client.test", "AUTH ECHO bm8=")
		}, func(p *peer) { p.hear("250 *", "535 *", "421 4.3.2 *") }, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sess := &scripted{mechs: []string{"ECHO"}}
				h := connected(func(c *Conn) { sess.conn = c }, sess)
				srv := mustServer(t, h, ServerOptions{Auth: AuthOptions{Insecure: true}})
				p, done := pipeTo(t, srv)
				p.t = t
				p.hear("220 *")
				tt.before(p)
				synctest.Wait()
				began := time.Now()
				stopped := make(chan error, 1)
				go func() { stopped <- srv.Shutdown(t.Context()) }()
				tt.after(p)
				p.hearEnd()
				<-done
				if err := <-stopped; err != nil || time.Since(began) != tt.want {
					t.Errorf("Shutdown: got %v after %v, want no error after %v", err, time.Since(began), tt.want)
				}
			})
		})
	}
}

// What a session learns of its connection while it goes on.
func TestConnProperties(t *testing.T) {
	parity.Row(t, "SS-75", "SS-76", "SS-77", "SS-78", "SS-79")
	everybody := func(net.Addr) bool { return true }
	s := &telling{}
	h := HandlerFunc(func(_ context.Context, c *Conn) (Session, error) { s.conn = c; return s, nil })
	p, done := pipeTo(t, mustServer(t, h, ServerOptions{XClient: everybody, XClientLogin: true, XForward: everybody, TLS: testTLS(t)}))
	talk := func(lines ...string) {
		t.Helper()
		for _, line := range lines {
			p.say(line)
			p.hearAll("*")
		}
	}
	p.hear("220 *")
	talk("HELO client.test", "MAIL FROM:<a@client.test>", "RCPT TO:<rcpt-550@mx.test>", "RSET", "STARTTLS")
	p = newPeer(t, tls.Client(p.nc, &tls.Config{InsecureSkipVerify: true, ServerName: "mx.test"}))
	talk("EHLO client.test", "AUTH ECHO eWVz", "MAIL FROM:<b@client.test>", "RSET",
		"XCLIENT ADDR=192.0.2.1 LOGIN=ann", "EHLO far.test", "XFORWARD ADDR=192.0.2.2", "MAIL FROM:<c@client.test>", "QUIT")
	p.hearEnd()
	<-done
	want := []string{
		"1 from <a@client.test> by SMTP of client.test, logged in false, secure false , refused <nil>, for invalid IP",
		"2 from <b@client.test> by ESMTPSA of client.test, logged in true, secure true mx.test, refused 550 rcpt refused, for invalid IP",
		"3 from <c@client.test> by ESMTPSA of far.test, logged in true, secure true mx.test, refused 550 rcpt refused, for 192.0.2.2",
	}
	if got := strings.Join(s.told, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// telling is a scripted session that tells at MAIL of its connection.
type telling struct {
	scripted
	told []string
}

func (s *telling) Mechanisms() []string { return []string{"ECHO"} }

func (s *telling) Mail(_ context.Context, from Sender) error {
	st, secure := s.conn.TLS()
	x, _ := s.conn.XForward()
	refused := "<nil>"
	if r := s.conn.LastRefusal(); r != nil {
		refused = fmt.Sprint(r.Code, " ", r.Text)
	}
	s.told = append(s.told, fmt.Sprintf("%d from <%s> by %s of %s, logged in %v, secure %v %s, refused %s, for %s", s.conn.Transaction(), from.Path, s.conn.Protocol(), s.conn.Helo(),
		s.conn.Authenticated(), secure, st.ServerName, refused, x.Addr))
	return nil
}

// Offer says what one connection may use, from the next EHLO on.
func TestOffer(t *testing.T) {
	parity.Row(t, "SS-14")
	h := connected(func(c *Conn) {
		if c.LocalAddr() != nil {
			c.Offer(Extensions{DSN: true})
		}
	}, Accept{})
	said, _, _ := talkScript(t, h, ServerOptions{Hostname: "mx.test", Offer: Extensions{BinaryMIME: true}},
		"EHLO client.test\r\nMAIL FROM:<a@client.test> RET=FULL\r\nRSET\r\nMAIL FROM:<a@client.test> BODY=BINARYMIME\r\n")
	for want, n := range map[string]int{"250-DSN\r\n": 1, "BINARYMIME\r\n": 0, "250 2.1.0 sender OK\r\n": 1, "\r\n501 5.5.4 BODY ": 1} {
		if got := strings.Count(said, want); got != n {
			t.Errorf("%q: got it %d times, want %d, in\n%s", want, got, n, said)
		}
	}
}

// talkScript lets a server with this handler talk to a client that does not wait.
func talkScript(t *testing.T, h Handler, o ServerOptions, said string) (string, *Server, *scriptConn) {
	t.Helper()
	c := &scriptConn{chunks: [][]byte{[]byte(said)}}
	srv := mustServer(t, h, o)
	srv.ServeConn(c)
	return c.out.String(), srv, c
}

// The words of the server's own: what they may be, and where they stand.
func TestServerWords(t *testing.T) {
	parity.Row(t, "SS-03", "SS-09", "SS-10", "SS-12")
	for _, tt := range []struct {
		opts ServerOptions
		want string // in the error; empty is none
	}{
		{ServerOptions{Banner: "ready", HelloText: "hi %s, welcome", Disabled: []string{" vrfy", "Help", "AUTH", "HELO"}, Without: []string{"chunking", "starttls "}}, ""},
		{ServerOptions{Banner: "ready\r\n250 x"}, "banner"},
		{ServerOptions{Banner: strings.Repeat("x", 201)}, "banner"},
		{ServerOptions{HelloText: "grüßt"}, "hello text"},
		{ServerOptions{Auth: AuthOptions{RequiredText: "a\x00b"}}, "login"},
		{ServerOptions{Disabled: []string{"EHLO"}}, "without EHLO there is no mail"},
		{ServerOptions{Disabled: []string{"quit"}}, "without QUIT there is no mail"},
		{ServerOptions{Disabled: []string{"FROB"}}, `"FROB" is no command`},
		{ServerOptions{Without: []string{"FROB"}}, `"FROB" is none of PIPELINING`},
		{ServerOptions{StressTimeout: -1}, "stress timeout"},
		{ServerOptions{MaxErrors: -1}, "errors"},
		{ServerOptions{MaxUnauthenticated: -1}, "commands before a login"},
		{ServerOptions{Auth: AuthOptions{MaxFailures: -1}}, "login failures"},
		{ServerOptions{MaxConnections: -1}, "connections"},
		{ServerOptions{RequireTLS: true}, "TLS is required"},
		{ServerOptions{RequireTLS: true, TLS: &tls.Config{}, Disabled: []string{"starttls"}}, "TLS is required"},
	} {
		tt.opts.Hostname = "mx.test"
		err := tt.opts.Validate()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %q", tt.opts, err, tt.want)
		}
	}
	said, _, _ := talkScript(t, acceptAll, ServerOptions{Hostname: "mx.test", Banner: "ready", HelloText: "hi %s, welcome", Disabled: []string{"vrfy"},
		Auth: AuthOptions{Required: true, RequiredText: "who are you?"}}, "HELO "+strings.Repeat("x", 250)+"\r\nHELO a\r\nMAIL FROM:<>\r\nVRFY x\r\n")
	want := "220 mx.test ESMTP ready\r\n250 mx.test hi " + strings.Repeat("x", 250) + ", welcome\r\n250 mx.test hi a, welcome\r\n530 5.7.0 who are you?\r\n502 5.5.1 command not implemented\r\n"
	if said != want {
		t.Errorf("got\n%s\nwant\n%s", said, want)
	}
}

// endless is a connection that says NOOP n times in one go and notes how much memory is in
// use, heap and stacks, after a tenth and at the end.
type endless struct {
	scriptConn
	n, said     int
	first, last uint64
}

func (e *endless) Read(p []byte) (int, error) {
	if e.said == e.n {
		return 0, io.EOF
	}
	const noop = "NOOP\r\n"
	k := min(len(p)/len(noop), e.n-e.said)
	copy(p, strings.Repeat(noop, k))
	e.said += k
	return k * len(noop), nil
}

func (e *endless) Write(p []byte) (int, error) {
	e.writes++
	switch {
	case e.first == 0 && e.said > e.n/10:
		e.first = inUse()
	case e.said == e.n:
		e.last = inUse()
	}
	return len(p), nil
}

func inUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// Any number of commands in one go is answered in steady memory.
func TestServerManyCommands(t *testing.T) {
	parity.Row(t, "SS-69")
	const n = 500_000
	c := &endless{n: n}
	mustServer(t, acceptAll, ServerOptions{MaxCommands: 2 * n}).ServeConn(c)
	if c.said != n || c.first == 0 || c.last == 0 || c.last > c.first+128<<10 {
		t.Errorf("%d commands: %d octets in use after a tenth, %d at the end", c.said, c.first, c.last)
	}
}
