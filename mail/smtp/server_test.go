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
	"maps"
	"net"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/internal/parity"
)

// peer is the other side of a connection in a test.
type peer struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func newPeer(t *testing.T, nc net.Conn) *peer { return &peer{t, nc, bufio.NewReader(nc)} }

// say sends lines, each with CRLF.
func (p *peer) say(lines ...string) {
	p.t.Helper()
	if _, err := io.WriteString(p.nc, strings.Join(lines, "\r\n")+"\r\n"); err != nil {
		p.t.Fatalf("saying %q: %v", lines, err)
	}
}

// hear reads one line for each pattern.
func (p *peer) hear(patterns ...string) {
	p.t.Helper()
	for _, pattern := range patterns {
		line, err := p.r.ReadString('\n')
		if err != nil || !matches(pattern+"\r\n", line) {
			p.t.Fatalf("got %q, %v, want %q", line, err, pattern)
		}
	}
}

// hearEnd waits for the end of the connection.
func (p *peer) hearEnd() {
	p.t.Helper()
	if rest, err := io.ReadAll(p.r); err != nil || len(rest) > 0 {
		p.t.Fatalf("got %q, %v, want the end", rest, err)
	}
}

// begin opens a transaction with one recipient.
func (p *peer) begin() {
	p.t.Helper()
	for _, line := range []string{"HELO client.test", "MAIL FROM:<a@client.test>", "RCPT TO:<b@mx.test>"} {
		p.say(line)
		p.hear("250 *")
	}
}

// acceptAll is a handler whose sessions accept everything.
var acceptAll = HandlerFunc(func(context.Context, *Conn) (Session, error) { return Accept{}, nil })

func mustServer(tb testing.TB, h Handler, o ServerOptions) *Server {
	tb.Helper()
	if o.Hostname == "" {
		o.Hostname = "mx.test"
	}
	srv, err := NewServer(h, o)
	if err != nil {
		tb.Fatal(err)
	}
	return srv
}

// pipeTo serves one end of a pipe and returns the peer at the other, and a channel
// that is closed when the server has hung up.
func pipeTo(t *testing.T, srv *Server) (*peer, <-chan struct{}) {
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.ServeConn(theirs)
	}()
	t.Cleanup(func() { ours.Close() })
	return newPeer(t, ours), done
}

// acceptFrom is pipeTo for a connection as Serve takes it: its goroutine may be replaced. The
// server must have no other.
func acceptFrom(t *testing.T, srv *Server) (*peer, <-chan struct{}) {
	ours, theirs := net.Pipe()
	c, ok := srv.addConn(theirs)
	if !ok {
		t.Fatal("the server is closed")
	}
	c.own = true
	go c.serve(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.running.Wait()
	}()
	t.Cleanup(func() { ours.Close() })
	return newPeer(t, ours), done
}

func TestServerOptions(t *testing.T) {
	for _, tt := range []struct {
		opts ServerOptions
		want []string // each in the error; none is no error
	}{
		{ServerOptions{Hostname: "mx.test"}, nil},
		{ServerOptions{Hostname: "[192.0.2.1]", MinRate: -1}, nil},
		{ServerOptions{}, []string{"hostname"}},
		{ServerOptions{Hostname: "mx.test\r\n", Implicit: true, MaxMessage: -1, MaxRecipients: -1, MaxMessages: -1, MaxCommands: -1,
			MaxBadCommands: -1, IdleTimeout: -1, SessionTimeout: -1, HandshakeTimeout: -1, MaxLine: 100, LineEndings: 7},
			[]string{"hostname", "implicit", "largest", "recipients", "messages", "\ncommands", "bad commands", "idle", "session", "handshake", "line length", "line endings"}},
		{ServerOptions{Hostname: "mx.test", MaxLine: 64 << 10}, []string{"line length"}}, // more than the buffer holds
	} {
		_, err := NewServer(acceptAll, tt.opts)
		if (err == nil) != (tt.want == nil) {
			t.Errorf("%+v: got %v, want %q", tt.opts, err, tt.want)
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%+v: got %v, want a word on %q", tt.opts, err, w)
			}
		}
	}
	if o := (ServerOptions{Hostname: "bücher.test"}).withDefaults(); o.Hostname != "xn--bcher-kva.test" {
		t.Errorf("hostname in U-labels: got %q, want A-labels", o.Hostname)
	}
}

// RFC 2920, Section 3.2: the replies to a batch of commands leave in one segment.
func TestServerPipelining(t *testing.T) {
	chunks := [][]byte{
		[]byte("EHLO client.test\r\n"),
		[]byte("MAIL FROM:<a@client.test>\r\n" + strings.Repeat("RCPT TO:<b@mx.test>\r\n", 200) + "DATA\r\n"),
		[]byte("text\r\n.\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n"),
		[]byte(".\r\nQUIT\r\n"),
	}
	said, _, c := serveScript(ServerOptions{Hostname: "mx.test"}, chunks...)
	if n := strings.Count(said, "\n250 2.1.5 "); n != 201 || !strings.HasSuffix(said, "closing connection\r\n") {
		t.Fatalf("got %d accepted recipients in %q", n, said)
	}
	// The long batch does not fit the small buffer and is read in two.
	if c.writes != 6 {
		t.Errorf("writes: got %d, want one for the greeting, one for each batch, and one more for the long one", c.writes)
	}
}

// A client that sends without reading does not make us keep its replies.
func TestServerOverflow(t *testing.T) {
	_, _, c := serveScript(ServerOptions{Hostname: "mx.test", MaxCommands: 1 << 20}, bytes.Repeat([]byte("HELP\r\n"), 10000))
	if most := c.out.Len() / c.writes; most > 2*maxOutput {
		t.Errorf("output: got %d octets a write, want at most %d", most, 2*maxOutput)
	}
}

func TestServerTimeouts(t *testing.T) {
	parity.Row(t, "SS-33", "SS-46")
	handshake := ServerOptions{TLS: testTLS(t), Implicit: true}
	for _, tt := range []struct {
		name   string
		opts   ServerOptions
		client func(p *peer)
		want   time.Duration // from connecting to the end
	}{
		{"idle", ServerOptions{}, func(p *peer) {
			p.hear("220 *", "421 4.4.2 *")
		}, 5 * time.Minute},
		{"idle within a line", ServerOptions{IdleTimeout: time.Minute}, func(p *peer) {
			p.hear("220 *")
			io.WriteString(p.nc, "NOO")
			p.hear("421 4.4.2 *")
		}, time.Minute},
		{"busy with nothing", ServerOptions{}, func(p *peer) {
			p.hear("220 *")
			for range 29 {
				<-time.After(time.Minute)
				p.say("NOOP")
				p.hear("250 *")
			}
			p.hear("421 4.4.2 *")
		}, 30 * time.Minute},
		{"in a transaction that comes to nothing", ServerOptions{SessionTimeout: 10 * time.Minute}, func(p *peer) {
			p.hear("220 *")
			<-time.After(4 * time.Minute)
			p.begin()
			for range 9 { // the age of the session does not cut it, its own does
				<-time.After(time.Minute)
				p.say("NOOP")
				p.hear("250 *")
			}
			p.hear("421 4.4.2 *")
		}, 14 * time.Minute},
		{"session too old for another", ServerOptions{SessionTimeout: 10 * time.Minute}, func(p *peer) {
			p.hear("220 *")
			<-time.After(4 * time.Minute)
			p.begin()
			<-time.After(4 * time.Minute)
			p.say("DATA")
			p.hear("354 *")
			<-time.After(4 * time.Minute)
			p.say(".")
			p.hear("250 *", "421 4.4.2 *")
		}, 12 * time.Minute},
		{"silent in data", ServerOptions{}, func(p *peer) {
			p.hear("220 *")
			p.begin()
			p.say("DATA")
			p.hear("354 *")
			<-time.After(time.Minute)
			p.say("text")
			p.hear("421 4.4.2 *")
		}, 6 * time.Minute},
		{"trickling data", ServerOptions{}, func(p *peer) {
			p.hear("220 *")
			p.begin()
			p.say("DATA")
			p.hear("354 *")
			for range 10 { // 34 octets a second
				<-time.After(30 * time.Second)
				p.say(strings.Repeat("x", 1000))
			}
			p.hear("421 4.4.2 message comes too slowly")
		}, 5 * time.Minute},
		{"no handshake", handshake, func(p *peer) {}, 30 * time.Second},
	} {
		for kind, serve := range map[string]func(*testing.T, *Server) (*peer, <-chan struct{}){"ServeConn": pipeTo, "Serve": acceptFrom} {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					began := time.Now()
					p, done := serve(t, mustServer(t, acceptAll, tt.opts))
					p.t = t
					tt.client(p)
					p.hearEnd()
					<-done
					if took := time.Since(began); took != tt.want {
						t.Errorf("end after %v, want %v", took, tt.want)
					}
				})
			})
		}
	}
}

// A client that has been silent for long enough for its goroutine to be replaced finds
// everything as it was.
func TestServerDoze(t *testing.T) {
	var goroutines []string
	asked := func() { goroutines = append(goroutines, goroutineID()) }
	h := HandlerFunc(func(context.Context, *Conn) (Session, error) { return &askedSession{asked: asked}, nil })
	synctest.Test(t, func(t *testing.T) {
		srv := mustServer(t, h, ServerOptions{})
		p, done := acceptFrom(t, srv)
		p.hear("220 *")
		p.begin()
		<-time.After(2 * dozeAfter)
		p.say("RCPT TO:<a.recipient.with.a.long.name@mx.test>", "DATA") // more than ends a doze
		p.hear("250 *", "354 *")
		<-time.After(2 * dozeAfter)
		p.say("text", ".", "NOOP")
		p.hear("250 *", "250 *")
		<-time.After(2 * dozeAfter)
		ended := make(chan error)
		go func() { ended <- srv.Shutdown(context.Background()) }()
		p.hear("421 4.3.2 *")
		p.hearEnd()
		<-done
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if len(goroutines) != 2 || goroutines[0] == goroutines[1] {
		t.Errorf("RCPT was answered by %q, want two goroutines", goroutines)
	}
}

// askedSession tells when it is asked about a recipient.
type askedSession struct {
	Accept
	asked func()
}

func (s *askedSession) Rcpt(context.Context, Recipient) error {
	s.asked()
	return nil
}

// goroutineID is the first line of the stack: "goroutine 7 [running]:".
func goroutineID() string {
	b := make([]byte, 64)
	b = b[:runtime.Stack(b, false)]
	id, _, _ := strings.Cut(string(b), "[")
	return id
}

// slowSession takes its time with the message.
type slowSession struct {
	Accept
	pause time.Duration
}

func (s slowSession) Message(ctx context.Context, body *DataReader) ([]*Reply, error) {
	for {
		select {
		case <-time.After(s.pause):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if _, err := body.Read(make([]byte, 4<<10)); err == io.EOF {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
}

// The speed that counts is the client's: who waits for us is not too slow.
func TestServerSlowSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := HandlerFunc(func(context.Context, *Conn) (Session, error) { return slowSession{pause: time.Minute}, nil })
		p, done := pipeTo(t, mustServer(t, h, ServerOptions{}))
		p.hear("220 *")
		p.begin()
		p.say("DATA")
		p.hear("354 *")
		for range 10 {
			p.say(strings.Repeat(strings.Repeat("x", 70)+"\r\n", 30))
		}
		p.say(".")
		p.hear("250 *")
		p.say("QUIT")
		p.hear("221 *")
		<-done
	})
}

func TestShutdown(t *testing.T) {
	parity.Row(t, "SS-34", "SS-51")
	tlsOpts := ServerOptions{TLS: testTLS(t), Implicit: true}
	for _, tt := range []struct {
		name   string
		opts   ServerOptions
		before func(p *peer) // the shutdown
		after  func(p *peer) // only if the shutdown goes in order
		err    error
	}{
		{"idle", ServerOptions{}, func(p *peer) {
			p.hear("220 *")
		}, func(p *peer) {
			p.hear("421 4.3.2 *")
		}, nil},
		{"within a line", ServerOptions{}, func(p *peer) {
			p.hear("220 *")
			io.WriteString(p.nc, "MAIL FR")
		}, func(p *peer) {
			p.hear("421 4.3.2 *")
		}, nil},
		{"in a transaction", ServerOptions{}, func(p *peer) {
			p.hear("220 *")
			p.begin()
		}, func(p *peer) {
			p.hear("421 4.3.2 *")
		}, nil},
		{"in data", ServerOptions{}, func(p *peer) {
			p.hear("220 *")
			p.begin()
			p.say("DATA")
			p.hear("354 *")
			p.say("half")
		}, func(p *peer) {
			<-time.After(time.Minute)
			p.say("the other", ".")
			p.hear("250 2.6.0 *", "421 4.3.2 *")
		}, nil},
		{"in data without end", ServerOptions{}, func(p *peer) {
			p.hear("220 *")
			p.begin()
			p.say("DATA")
			p.hear("354 *")
		}, nil, context.DeadlineExceeded},
		{"in the handshake", tlsOpts, func(p *peer) {}, func(p *peer) {}, nil},
		{"client that does not read", ServerOptions{}, func(p *peer) {}, nil, context.DeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := mustServer(t, acceptAll, tt.opts)
				p, done := pipeTo(t, srv)
				p.t = t
				tt.before(p)
				synctest.Wait()
				stopped := make(chan error)
				go func() {
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
					defer cancel()
					stopped <- srv.Shutdown(ctx)
				}()
				synctest.Wait()
				if tt.err == nil {
					tt.after(p)
					p.hearEnd()
				}
				if err := <-stopped; err != tt.err {
					t.Errorf("Shutdown: got %v, want %v", err, tt.err)
				}
				<-done
				if n := srv.Connections(); n != 0 {
					t.Errorf("connections: got %d, want none", n)
				}
				if err := srv.Shutdown(t.Context()); err != nil {
					t.Errorf("second Shutdown: %v", err)
				}
				late, _ := net.Pipe()
				if err := srv.ServeConn(late); err != ErrServerClosed {
					t.Errorf("ServeConn after Shutdown: got %v, want %v", err, ErrServerClosed)
				}
			})
		})
	}
}

// heedless is a session that asks nobody: it takes what it could read of a message,
// and keeps the reader.
type heedless struct {
	Accept
	body *DataReader
}

func (h *heedless) Message(_ context.Context, body *DataReader) ([]*Reply, error) {
	h.body = body
	body.WriteTo(io.Discard)
	return nil, nil
}

// What a session overlooks the server sees: that a message was too large, and that a
// reader is used when its message is over.
func TestServerHeedlessSession(t *testing.T) {
	sess := &heedless{}
	h := HandlerFunc(func(context.Context, *Conn) (Session, error) { return sess, nil })
	p, done := pipeTo(t, mustServer(t, h, ServerOptions{MaxMessage: 10}))
	p.hear("220 *")
	for _, tt := range []struct{ text, want string }{{"short", "250 2.6.0 *"}, {"longer than ten", "552 5.3.4 *"}} {
		p.begin()
		p.say("DATA")
		p.hear("354 *")
		p.say(tt.text, ".")
		p.hear(tt.want)
		p.say("NOOP")
		p.hear("250 *")
		if n, err := sess.body.Read(make([]byte, 10)); n != 0 || err == nil || err == io.EOF {
			t.Errorf("Read when the message is over: got %d, %v, want an error", n, err)
		}
	}
	p.say("QUIT")
	p.hear("221 *")
	<-done
}

// A session that waits for something else is told by its context when the patience
// of a shutdown ends, and Shutdown waits for it.
func TestShutdownEndsContext(t *testing.T) {
	parity.Row(t, "SS-67")
	synctest.Test(t, func(t *testing.T) {
		h := HandlerFunc(func(context.Context, *Conn) (Session, error) { return slowSession{pause: time.Hour}, nil })
		srv := mustServer(t, h, ServerOptions{})
		p, done := pipeTo(t, srv)
		p.hear("220 *")
		p.begin()
		go p.nc.Write([]byte("DATA\r\n"))
		synctest.Wait()
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := srv.Shutdown(ctx); err != context.DeadlineExceeded || time.Since(began) != time.Minute {
			t.Errorf("Shutdown: got %v after %v, want %v after a minute", err, time.Since(began), context.DeadlineExceeded)
		}
		<-done
	})
}

// brokenListener fails n times, then gives one connection, then fails until it is
// closed.
type brokenListener struct {
	fails  []time.Time
	n      int
	conn   net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *brokenListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	if l.n--; l.n == 0 {
		return l.conn, nil
	}
	l.fails = append(l.fails, time.Now())
	return nil, errors.New("too many open files")
}

func (l *brokenListener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *brokenListener) Addr() net.Addr { return &net.TCPAddr{} }

// Accept errors are waited out, from 5 ms to a second, and do not end the server.
func TestServeAcceptErrors(t *testing.T) {
	parity.Row(t, "SS-44", "SS-55")
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		l := &brokenListener{n: 11, conn: theirs, closed: make(chan struct{})}
		var log strings.Builder
		srv := mustServer(t, acceptAll, ServerOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
		served := make(chan error)
		go func() { served <- srv.Serve(l) }()
		p := newPeer(t, ours)
		p.hear("220 *")
		p.say("QUIT")
		p.hear("221 *")
		<-time.After(10 * time.Millisecond)
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != ErrServerClosed {
			t.Errorf("Serve: got %v, want %v", err, ErrServerClosed)
		}
		var pauses []time.Duration
		for i, at := range l.fails[1:10] {
			pauses = append(pauses, at.Sub(l.fails[i]))
		}
		if got, want := fmt.Sprint(pauses), "[5ms 10ms 20ms 40ms 80ms 160ms 320ms 640ms 1s]"; got != want {
			t.Errorf("pauses: got %s, want %s", got, want)
		}
		if !strings.Contains(log.String(), "too many open files") {
			t.Errorf("log: got %q, want the error", log.String())
		}
	})
}

func TestServeClosedListener(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	srv := mustServer(t, acceptAll, ServerOptions{})
	if err := srv.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve on a closed listener: got %v, want %v", err, net.ErrClosed)
	}
	srv.Shutdown(t.Context())
	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Serve(l); err != ErrServerClosed {
		t.Errorf("Serve after Shutdown: got %v, want %v", err, ErrServerClosed)
	}
}

// One goroutine for each connection, in clear and with TLS, in a handshake, waiting
// and in data, and one for Serve, which is the caller's.
func TestServerGoroutines(t *testing.T) {
	srv := mustServer(t, acceptAll, ServerOptions{TLS: testTLS(t)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()
	var peers []*peer
	const each = 10
	for i := range 4 * each {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		p := newPeer(t, nc)
		p.hear("220 *")
		switch i / each {
		case 1:
			p.begin()
			p.say("DATA")
			p.hear("354 *")
		case 2:
			p.say("STARTTLS")
			p.hear("220 *")
		case 3:
			p.say("STARTTLS")
			p.hear("220 *")
			tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
			if err := tc.Handshake(); err != nil {
				t.Fatal(err)
			}
			p = newPeer(t, tc)
			p.say("NOOP")
			p.hear("250 *")
		}
		peers = append(peers, p)
	}
	stacks := make([]byte, 4<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	counts := make(map[string]int) // of goroutines, by who started them
	for _, m := range regexp.MustCompile(`(?m)^created by (\S+)`).FindAllStringSubmatch(string(stacks), -1) {
		by := strings.TrimPrefix(m[1], "github.com/penstock/penstock/mail/smtp.")
		if by != m[1] || strings.HasPrefix(by, "crypto/tls") || strings.HasPrefix(by, "context") {
			counts[by]++
		}
	}
	if want := map[string]int{"(*Server).Serve": len(peers), "TestServerGoroutines": 1}; !maps.Equal(counts, want) {
		t.Errorf("goroutines: got %v for %d connections, want %v", counts, len(peers), want)
	}
	for _, p := range peers[each : 2*each] {
		p.say(".")
		p.hear("250 *")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := <-served; err != ErrServerClosed {
		t.Errorf("Serve: got %v, want %v", err, ErrServerClosed)
	}
}

// The last reply reaches a client that has sent much more than we read: closing with
// unread input would reset the connection.
func TestServerLastReply(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls=%v", secure), func(t *testing.T) {
			srv := mustServer(t, acceptAll, ServerOptions{TLS: testTLS(t), Implicit: secure, MaxBadCommands: 1})
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
			if secure {
				nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
			}
			p := newPeer(t, nc)
			p.hear("220 *")
			p.say(strings.Repeat("WIZ\r\n", 5000))
			p.hear("421 4.7.0 *")
			p.hearEnd()
			if err := srv.Shutdown(t.Context()); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
			<-served
		})
	}
}

// The log has the dialogue, but not what follows AUTH.
func TestServerLog(t *testing.T) {
	parity.Row(t, "SS-25")
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	serveScript(ServerOptions{Hostname: "mx.test", Log: logger}, []byte("HELO client.test\r\nAUTH PLAIN c2VjcmV0\r\nc2VjcmV0\r\nAUTH\tPLAIN c2VjcmV0\r\n AUTH PLAIN c2VjcmV0\r\nMAIL FROM:<mail-error@x.test>\r\n"))
	for _, want := range []string{"HELO client.test", "AUTH …", "… (8 octets that are no command)", "451 4.3.0", io.ErrNoProgress.Error(), "connection ends"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("log: got\n%s\nwant %q in it", &log, want)
		}
	}
	if strings.Contains(log.String(), "c2VjcmV0") {
		t.Errorf("log: got\n%s\nwhich has a secret", &log)
	}
}

func TestConn(t *testing.T) {
	parity.Row(t, "SS-70", "SS-71", "SS-73")
	var conn *Conn
	h := HandlerFunc(func(_ context.Context, c *Conn) (Session, error) {
		conn = c
		return Accept{}, nil
	})
	p, done := pipeTo(t, mustServer(t, h, ServerOptions{}))
	p.hear("220 *")
	p.say("HELO client.test", "QUIT")
	p.hear("250 *", "221 *")
	<-done
	if len(conn.ID()) != 16 || conn.Helo() != "client.test" || conn.RemoteAddr() == nil || conn.LocalAddr() == nil {
		t.Errorf("conn: got %q %q %v %v", conn.ID(), conn.Helo(), conn.RemoteAddr(), conn.LocalAddr())
	}
	if _, ok := conn.TLS(); ok {
		t.Errorf("TLS: got true on a clear connection")
	}
}

// A client whose TLS somebody in front of us has ended is one that has TLS.
func TestSecured(t *testing.T) {
	for _, secured := range []bool{false, true} {
		var conn *Conn
		h := HandlerFunc(func(_ context.Context, c *Conn) (Session, error) {
			if conn = c; secured {
				c.Secured()
			}
			c.Offer(Extensions{RequireTLS: true})
			return &scripted{conn: c, mechs: []string{"ECHO"}}, nil
		})
		p, done := pipeTo(t, mustServer(t, h, ServerOptions{TLS: &tls.Config{}}))
		p.hear("220 *")
		p.say("EHLO client.test")
		offered := ""
		for !strings.Contains(offered, "\n250 ") {
			line, err := p.r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			offered += "\n" + line
		}
		for keyword, want := range map[string]bool{"AUTH ": secured, "REQUIRETLS": secured, "STARTTLS": !secured} {
			if got := strings.Contains(offered, "-"+keyword); got != want {
				t.Errorf("secured %v: %s offered %v, want %v", secured, keyword, got, want)
			}
		}
		if got, want := conn.Protocol(), map[bool]string{false: "ESMTP", true: "ESMTPS"}[secured]; got != want {
			t.Errorf("secured %v: protocol %s, want %s", secured, got, want)
		}
		if secured {
			p.say("STARTTLS")
			p.hear("503 5.5.1 *")
		}
		p.say("QUIT")
		p.hear("221 *")
		<-done
	}
}

// An idle connection gives its large buffers back.
func TestWireBuffers(t *testing.T) {
	w := scriptedWire([]byte(strings.Repeat("x", 3000)+"\r\n"), []byte("y\r\n"))
	if line, err := w.readLine(4096); len(line) != 3000 || err != nil || w.large == nil {
		t.Fatalf("long line: got %d octets, %v, large buffer %v", len(line), err, w.large != nil)
	}
	if line, err := w.readLine(4096); string(line) != "y" || err != nil || w.large != nil {
		t.Errorf("short line: got %q, %v, large buffer %v", line, err, w.large != nil)
	}
	w.growOut()
	w.out = append(w.out, bytes.Repeat([]byte("x"), 10000)...)
	w.flush()
	w.shrinkOut()
	if w.largeOut != nil || cap(w.out) != smallOutput {
		t.Errorf("output: got a buffer of %d, want %d", cap(w.out), smallOutput)
	}
	w.out = append(w.out, bytes.Repeat([]byte("x"), 10000)...)
	if w.flush(); cap(w.out) != smallOutput {
		t.Errorf("output after many replies: got a buffer of %d, want %d", cap(w.out), smallOutput)
	}
}
