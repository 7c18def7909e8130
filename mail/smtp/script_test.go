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
	"strconv"
	"strings"
	"time"
)

// script_test.go: what the tests of both sides share: a connection whose input is
// written down, and a session that decides by address.

// scriptConn is a connection in memory whose peer does not wait: its input is there
// from the beginning, one chunk for each Read, and then it ends.
type scriptConn struct {
	net.Conn
	chunks [][]byte
	out    bytes.Buffer
	writes int
	closed bool
}

func (c *scriptConn) Read(p []byte) (int, error) {
	for len(c.chunks) > 0 && len(c.chunks[0]) == 0 {
		c.chunks = c.chunks[1:]
	}
	if len(c.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.chunks[0])
	c.chunks[0] = c.chunks[0][n:]
	return n, nil
}

func (c *scriptConn) Write(p []byte) (int, error) {
	c.writes++
	return c.out.Write(p)
}

func (c *scriptConn) Close() error                     { c.closed = true; return nil }
func (c *scriptConn) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scriptConn) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scriptConn) SetDeadline(time.Time) error      { return nil }
func (c *scriptConn) SetReadDeadline(time.Time) error  { return nil }
func (c *scriptConn) SetWriteDeadline(time.Time) error { return nil }

// byteByByte splits input into chunks of one octet.
func byteByByte(input []byte) [][]byte {
	chunks := make([][]byte, len(input))
	for i := range input {
		chunks[i] = input[i : i+1]
	}
	return chunks
}

// scriptedWire returns a wire whose input is chunks.
func scriptedWire(chunks ...[]byte) *wire {
	w := newWire(&scriptConn{chunks: chunks})
	w.timeout = time.Minute
	return w
}

// replyReader returns a client that has input to read.
func replyReader(input string) *Client {
	w := scriptedWire([]byte(input))
	return &Client{wire: w, raw: w.nc, opts: ClientOptions{Timeouts: Timeouts{}.withDefaults()}}
}

// scripted is a session that decides by what it is given: a local part or HELO name
// "STAGE-CODE" is refused at that stage with that code. It notes what it is told.
//
// Stages: connect, secure (no address: see fields), helo, mail, rcpt, data (of the
// sender), early (Message returns before it has read), msg (after), reply (Message
// returns a reply instead of an error).
type scripted struct {
	conn    *Conn
	events  []string
	sender  Sender
	closed  chan struct{} // closed by Close; may be nil
	secure  error         // what Secure says
	connect error         // what the handler says
	each    bool          // Message answers for each recipient: "msg-CODE" is refused
	replies []*Reply      // of the recipients so far
	mechs   []string
}

func (s *scripted) note(format string, args ...any) {
	s.events = append(s.events, fmt.Sprintf(format, args...))
}

// verdict returns the refusal that name asks for at stage.
func verdict(stage, name string) error {
	if !strings.HasPrefix(name, stage+"-") {
		return nil
	}
	word := strings.TrimPrefix(name, stage+"-")
	switch word {
	case "error":
		return io.ErrNoProgress // of the inside, not for the client
	case "panic":
		panic("on purpose")
	case "inject":
		return Refuse(550, Enhanced{5, 0, 0}, "no\r\n250 2.0.0 yes\x00\r250 2.0.0 yes")
	case "utf8":
		return Refuse(550, Enhanced{5, 0, 0}, "näin")
	}
	code, err := strconv.Atoi(word)
	if err != nil {
		return nil
	}
	return Refuse(code, Enhanced{}, stage+" refused")
}

func (s *scripted) Secure(context.Context, tls.ConnectionState) error {
	s.note("secure")
	return s.secure
}

func (s *scripted) Helo(_ context.Context, name string) error {
	s.note("helo %s", name)
	name, _, _ = strings.Cut(name, ".")
	return verdict("helo", name)
}

func (s *scripted) Mail(_ context.Context, from Sender) error {
	if x, ok := s.conn.XForward(); ok {
		s.note("for %s", x.Addr)
	}
	s.note("mail <%s> size=%d body=%s utf8=%v with %s%s", from.Path, from.Size, from.Body, from.UTF8, s.conn.Protocol(), wishes(from))
	s.sender, s.replies = from, nil
	return verdict("mail", from.Path.Local)
}

// wishes are the parameters of MAIL that are rare.
func wishes(from Sender) string {
	text := ""
	for _, w := range []struct{ key, value string }{
		{"ret", string(from.Return)}, {"envid", from.EnvID}, {"auth", from.Auth},
	} {
		if w.value != "" {
			text += fmt.Sprintf(" %s=%s", w.key, w.value)
		}
	}
	if from.RequireTLS {
		text += " requiretls"
	}
	return text + string(appendTiming(nil, from, extensions{priority: true, deliverBy: true, hold: true}))
}

// Mechanisms implements AuthSession.
func (s *scripted) Mechanisms() []string { return s.mechs }

// Auth implements AuthSession: see echo.
func (s *scripted) Auth(_ context.Context, mechanism string) (Mechanism, error) {
	s.note("auth %s", mechanism)
	if mechanism == "BROKEN" {
		return nil, io.ErrNoProgress
	}
	return &echo{note: s.note}, nil
}

// echo is a mechanism that decides by what it is told: "yes" is let in, "late" with a last
// challenge, "again" asks once more; anything else is refused, "error" by a fault of ours.
type echo struct{ note func(string, ...any) }

func (e *echo) Next(response []byte) ([]byte, bool, error) {
	if response == nil {
		return []byte("who?"), false, nil
	}
	e.note("response %q", response)
	switch string(response) {
	case "yes":
		return nil, true, nil
	case "late":
		return []byte("fine"), true, nil
	case "again":
		return nil, false, nil
	case "error":
		return nil, false, io.ErrNoProgress
	}
	return nil, false, Refuse(535, Enhanced{5, 7, 8}, "no")
}

func (s *scripted) Rcpt(_ context.Context, to Recipient) error {
	note := fmt.Sprintf("rcpt <%s>", to.Path)
	if to.Notify != 0 || !to.Original.IsZero() {
		note += fmt.Sprintf(" notify=%s original=%s", to.Notify, to.Original)
	}
	s.note("%s", note)
	if err := verdict("rcpt", to.Path.Local); err != nil {
		return err
	}
	r := &Reply{Code: 250, Enh: Enhanced{2, 6, 0}, Text: "for " + to.Path.Local}
	if err := verdict("msg", to.Path.Local); err != nil {
		r = ReplyOf(err)
	}
	s.replies = append(s.replies, r)
	return nil
}

func (s *scripted) Data(context.Context) error {
	s.note("data")
	return verdict("data", s.sender.Path.Local)
}

func (s *scripted) Message(_ context.Context, body *DataReader) ([]*Reply, error) {
	if err := verdict("early", s.sender.Path.Local); err != nil {
		return nil, err
	}
	content, err := io.ReadAll(body)
	if err != nil {
		s.note("message broken after %q", content)
		return nil, err
	}
	s.note("message %q", content)
	if s.each {
		return s.replies, nil
	}
	if err := verdict("reply", s.sender.Path.Local); err != nil {
		return []*Reply{ReplyOf(err)}, nil
	}
	return nil, verdict("msg", s.sender.Path.Local)
}

func (s *scripted) Reset(context.Context) { s.note("reset") }

func (s *scripted) Close(err error) {
	s.note("close %v", err == nil)
	if s.closed != nil {
		close(s.closed)
	}
}

// serveScript lets a server talk to a client that says chunks and returns what the
// server says and what its session notes.
func serveScript(o ServerOptions, chunks ...[]byte) (said string, events []string, c *scriptConn) {
	c = &scriptConn{chunks: chunks}
	sess := &scripted{}
	sess.serve(o, c)
	return c.out.String(), sess.events, c
}

// serve lets a server with this session talk to nc, until it has ended.
func (s *scripted) serve(o ServerOptions, nc net.Conn) error {
	srv, err := NewServer(HandlerFunc(func(_ context.Context, conn *Conn) (Session, error) {
		s.conn = conn
		if x, ok := conn.XClient(); ok {
			if from := conn.RemoteAddr().String(); x.Addr.IsValid() {
				s.note("from %s", from)
			} else {
				s.note("from %s, unknown", from)
			}
			if x.Login != "" {
				s.note("login %q", x.Login)
			}
		}
		return s, s.connect
	}), o)
	if err != nil {
		panic(err)
	}
	defer srv.kill()
	return srv.ServeConn(nc)
}

// headConn is a server's connection that gives it head first, one chunk for each Read, and
// then what its peer writes.
type headConn struct {
	net.Conn
	head [][]byte
}

func (c *headConn) Read(p []byte) (int, error) {
	for len(c.head) > 0 && len(c.head[0]) == 0 {
		c.head = c.head[1:]
	}
	if len(c.head) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.head[0])
	c.head[0] = c.head[0][n:]
	return n, nil
}

// serveSecret is serve with a client that says clear, reads as many lines as it is told,
// does the handshake and says secret, one TLS record for each chunk. It returns what the
// server says, in clear and then through TLS.
func (s *scripted) serveSecret(o ServerOptions, clear [][]byte, lines int, secret [][]byte) (string, error) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	ours.SetDeadline(time.Now().Add(10 * time.Second))
	served := make(chan error, 1)
	go func() { served <- s.serve(o, &headConn{theirs, clear}) }()
	var said strings.Builder
	r := bufio.NewReader(ours)
	for range lines {
		line, err := r.ReadString('\n')
		if err != nil {
			return said.String(), err
		}
		said.WriteString(line)
	}
	tc := tls.Client(ours, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		return said.String(), err
	}
	sent := make(chan struct{})
	go func() { // its errors are those of a server that has closed
		defer close(sent)
		for _, chunk := range secret {
			if _, err := tc.Write(chunk); err != nil {
				return
			}
		}
		tc.CloseWrite()
	}()
	_, err := io.Copy(&said, tc)
	ours.Close()
	<-sent
	return said.String(), errors.Join(err, <-served)
}
