package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/tools/txtar"
)

// hostile_test.go: clients that mean harm, or that nobody could have meant. Whatever they
// say, the server answers in well-formed replies and ends; whatever it takes for a message
// is text in lines; nothing that they do costs more than they pay.

// hostileState is a point of the dialogue to which a client comes before it says anything.
type hostileState struct {
	name   string
	words  string // options, see dialogueOptions
	prefix string
	secret bool // the rest is said within TLS
}

var hostileStates = []hostileState{
	{"at the greeting", "size=5000 auth=ECHO insecure offer", "", false},
	{"after EHLO", "size=5000 auth=ECHO insecure offer", "EHLO c.test\r\n", false},
	{"in an exchange", "auth=ECHO insecure", "EHLO c.test\r\nAUTH ECHO\r\n", false},
	{"after MAIL", "size=5000 offer", "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\n", false},
	{"after RCPT", "size=5000", "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\n", false},
	{"in data", "size=5000", "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n", false},
	{"in data, strict", "size=5000 reject", "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n", false},
	{"between chunks", "size=5000", "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nBDAT 3\r\nab\r", false},
	{"between chunks, strict", "size=5000 reject", "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nBDAT 3\r\nab\r", false},
	{"in a chunk", "size=5000", "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nBDAT 40\r\nabc", false},
	{"in a binary chunk", "size=5000 offer", "EHLO c.test\r\nMAIL FROM:<a@c.test> BODY=BINARYMIME\r\nRCPT TO:<b@mx.test>\r\nBDAT 40\r\nabc", false},
	{"behind a refused chunk", "size=5000", "EHLO c.test\r\nMAIL FROM:<data-550@c.test>\r\nRCPT TO:<b@mx.test>\r\nBDAT 3\r\nabc", false},
	{"LMTP", "size=5000 lmtp", "LHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nRCPT TO:<c@mx.test>\r\n", false},
	{"LMTP in data", "size=5000 lmtp", "LHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n", false},
	{"LMTP between chunks", "size=5000 lmtp", "LHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nRCPT TO:<c@mx.test>\r\nBDAT 2\r\nab", false},
	{"after XCLIENT", "proxy size=5000 auth=ECHO insecure", "EHLO p.test\r\nXCLIENT ADDR=192.0.2.1 LOGIN=u\r\n", false},
	{"where XCLIENT may be said", "proxy size=5000", "EHLO p.test\r\n", false},
	{"where STARTTLS may be said", "starttls", "EHLO c.test\r\n", false},
	{"at the handshake", "starttls", "EHLO c.test\r\nSTARTTLS\r\n", false},
	{"at the implicit handshake", "implicit", "", false},
	{"behind STARTTLS", "starttls auth=ECHO size=5000", "EHLO c.test\r\nSTARTTLS\r\n", true},
}

// witness notes what the sessions of one connection got, and names each message in its
// answers: "kept 1.0" is the first answer to the first message.
type witness struct {
	faults   []string
	messages int
	answers  []string // that have to come, in order
	content  [][]byte
}

// witnessSession is scripted, with a witness.
type witnessSession struct {
	*scripted
	w    *witness
	lmtp bool
}

func (s *witnessSession) Message(_ context.Context, body *DataReader) ([]*Reply, error) {
	content, err := io.ReadAll(body)
	if s.sender.Body != BodyBinary {
		if i := bareLineEnd(content); i >= 0 {
			s.w.faults = append(s.w.faults, fmt.Sprintf("bare line end at %d of %q", i, content))
		}
	}
	if err != nil {
		return nil, err
	}
	s.w.messages++
	s.w.content = append(s.w.content, content)
	n := 1
	if s.lmtp {
		n = len(s.replies)
	}
	var replies []*Reply
	for i := range n {
		name := fmt.Sprintf("kept %d.%d", s.w.messages, i)
		s.w.answers = append(s.w.answers, name)
		replies = append(replies, &Reply{Code: 250, Enh: Enhanced{2, 6, 0}, Text: name})
	}
	return replies, nil
}

// bareLineEnd returns where a CR or LF of b is not part of a CRLF, or -1. A CR at the end is
// bare.
func bareLineEnd(b []byte) int {
	for i, c := range b {
		if c == '\n' && (i == 0 || b[i-1] != '\r') || c == '\r' && (i+1 == len(b) || b[i+1] != '\n') {
			return i
		}
	}
	return -1
}

var soundReply = regexp.MustCompile(`^([2-5][0-9][0-9])([ -])([\x20-\x7e\x{a0}-\x{10ffff}]*)$`)

// repliesOf takes what a server said apart; the error is what is not well-formed in it.
func repliesOf(said string) (replies []string, err error) {
	var open string
	for line := range strings.SplitAfterSeq(said, "\n") {
		if line == "" {
			continue
		}
		text, ok := strings.CutSuffix(line, "\r\n")
		m := soundReply.FindStringSubmatch(text)
		switch {
		case !ok || m == nil || len(line) > 512:
			return nil, fmt.Errorf("%q is no line of a reply", line)
		case open != "" && open != m[1]:
			return nil, fmt.Errorf("%q goes on with code %s", open, m[1])
		}
		open = m[1]
		if m[2] == " " {
			replies, open = append(replies, text), ""
		}
	}
	if open != "" {
		return nil, fmt.Errorf("the last reply has no end: %q", said)
	}
	return replies, nil
}

// hostileRun lets a server talk to a client that is in this state and says the chunks.
func (s hostileState) run(tb testing.TB, chunks [][]byte, opts func(*ServerOptions)) (said string, w *witness) {
	o, newSession := dialogueOptions(tb, strings.Fields(s.words))
	if opts != nil {
		opts(&o)
	}
	w = &witness{}
	srv, err := NewServer(HandlerFunc(func(_ context.Context, conn *Conn) (Session, error) {
		sess := newSession()
		sess.conn = conn
		return &witnessSession{scripted: sess, w: w, lmtp: o.LMTP}, nil
	}), o)
	if err != nil {
		tb.Fatal(err)
	}
	defer srv.kill()
	if s.secret {
		return s.runSecret(tb, srv, chunks), w
	}
	nc := &scriptConn{chunks: append([][]byte{[]byte(s.prefix)}, chunks...)}
	srv.ServeConn(nc)
	if n := srv.Connections(); n != 0 || srv.admitted.Load() != 0 {
		tb.Errorf("%d connections are counted after the last", n)
	}
	return nc.out.String(), w
}

func (s hostileState) runSecret(tb testing.TB, srv *Server, chunks [][]byte) string {
	ours, theirs := net.Pipe()
	ours.SetDeadline(time.Now().Add(10 * time.Second))
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.ServeConn(&headConn{theirs, [][]byte{[]byte(s.prefix)}})
	}()
	defer func() { ours.Close(); <-served }()
	clear := &lineReader{nc: ours}
	for said := ""; !strings.Contains(said, "ready for TLS"); said = clear.line() {
	}
	tc := tls.Client(ours, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		tb.Fatal(err)
	}
	sent := make(chan struct{})
	go func() { // its errors are those of a server that has closed
		defer close(sent)
		for _, c := range chunks {
			if _, err := tc.Write(c); err != nil {
				return
			}
		}
		tc.CloseWrite()
	}()
	said, _ := io.ReadAll(tc)
	ours.Close()
	<-sent
	return string(said)
}

// lineReader reads lines, and not an octet more.
type lineReader struct{ nc net.Conn }

func (r *lineReader) line() string {
	var line []byte
	for b := make([]byte, 1); ; {
		if n, err := r.nc.Read(b); n == 0 || err != nil {
			return "ready for TLS" // the handshake will tell
		}
		if line = append(line, b...); b[0] == '\n' {
			return string(line)
		}
	}
}

// check holds what was said against what a server may say.
func (s hostileState) check(tb testing.TB, input []byte, said string, w *witness) {
	tb.Helper()
	if strings.HasPrefix(s.name, "at the") && strings.HasSuffix(s.name, "handshake") {
		said, _, _ = strings.Cut(said, "\x15\x03") // the alert
	}
	replies, err := repliesOf(said)
	if err != nil {
		tb.Fatalf("%s, %q: %v", s.name, input, err)
	}
	for _, f := range w.faults {
		tb.Errorf("%s, %q: %s", s.name, input, f)
	}
	var answers []string
	for _, r := range replies {
		if _, name, ok := strings.Cut(r, "kept "); ok {
			answers = append(answers, "kept "+name)
		}
	}
	if strings.Join(answers, "|") != strings.Join(w.answers, "|") {
		tb.Errorf("%s, %q: answers to messages: got %q, want %q", s.name, input, answers, w.answers)
	}
	if strings.Contains(said, "internal error") && !bytes.Contains(bytes.ToLower(input), []byte("-panic")) && !bytes.Contains(bytes.ToLower(input), []byte("-error")) {
		tb.Errorf("%s, %q: %q", s.name, input, said)
	}
}

// FuzzServerStates: any octets at any stage give well-formed replies, one for each message
// and recipient that was taken, no message with a bare line end, the same for each way to
// cut the stream, and an end.
func FuzzServerStates(f *testing.F) {
	seeds := hostileSeeds(f)
	for i, s := range hostileStates {
		for k, seed := range seeds {
			if !s.secret || k%20 == 0 {
				f.Add(byte(i), seed)
			}
		}
	}
	f.Fuzz(func(t *testing.T, which byte, input []byte) {
		s := hostileStates[int(which)%len(hostileStates)]
		if bytes.Contains(input, []byte("panic")) {
			return // it is the session's, and logged with a stack
		}
		defer time.AfterFunc(20*time.Second, func() { panic(fmt.Sprintf("%s, %q: no end", s.name, input)) }).Stop()
		said, w := s.run(t, [][]byte{bytes.Clone(input)}, nil)
		s.check(t, input, said, w)
		if s.secret || strings.Contains(s.words, "starttls") || strings.Contains(s.words, "implicit") {
			return // what came with STARTTLS ends it at once, what comes later does not
		}
		cut, _ := s.run(t, byteByByte(bytes.Clone(input)), nil)
		if cut != said {
			t.Errorf("%s, %q: octet by octet\n%q\nin one piece\n%q", s.name, input, cut, said)
		}
	})
}

// A client that goes away between two chunks has sent no message: the end of the connection
// is not the end of the content.
func TestServerChunksCutOff(t *testing.T) {
	for _, s := range hostileStates {
		if !strings.HasSuffix(s.name, "between chunks") {
			continue
		}
		for _, rest := range []string{"", "BDAT 2\r\nab", "BDAT 0\r\n", "NOOP\r\n", "BDAT 0 LA", "BDAT 2 LAST\r\na"} {
			if said, w := s.run(t, [][]byte{[]byte(rest)}, nil); w.messages != 0 {
				t.Errorf("%s, %q and the end: the session took %q, the client was told %q", s.name, rest, w.content, said)
			}
		}
		if _, w := s.run(t, [][]byte{[]byte("BDAT 0 LAST\r\n")}, nil); w.messages != 1 {
			t.Errorf("%s, the last one: %d messages, want 1", s.name, w.messages)
		}
	}
}

// Ten thousand recipients in one go: those that are too many are put off, and the message
// goes to the others. RFC 5321, Section 4.5.3.1.10.
func TestServerManyRecipients(t *testing.T) {
	const all = 10000
	said := []byte("HELO c.test\r\nMAIL FROM:<a@c.test>\r\n" + strings.Repeat("RCPT TO:<b@mx.test>\r\n", all) + "DATA\r\n.\r\nQUIT\r\n")
	for _, tt := range []struct{ most, want, putOff int }{
		{1000, 1000, 9000},
		{all, all, 0},
	} {
		got, events, _ := serveScript(ServerOptions{Hostname: "mx.test", MaxRecipients: tt.most, ErrorDelay: time.Hour}, said)
		taken, putOff := strings.Count(got, "\r\n250 2.1.5 "), strings.Count(got, "\r\n452 4.5.3 ")
		if taken != tt.want || putOff != tt.putOff || !strings.Contains(got, "\r\n250 2.6.0 ") || events[len(events)-1] != "close true" {
			t.Errorf("at most %d: got %d taken, %d put off, %q at the end, want %d and %d", tt.most, taken, putOff, got[len(got)-80:], tt.want, tt.putOff)
		}
	}
	// Nobody is put off for ever.
	got, _, _ := serveScript(ServerOptions{Hostname: "mx.test", MaxRecipients: 10, MaxErrors: 5, ErrorDelay: -1}, said)
	if n := strings.Count(got, "\r\n452 "); n != 10*maxPutOff+4 || !strings.HasSuffix(got, "\r\n421 4.7.0 too many errors\r\n") {
		t.Errorf("at most 10: got %d put off and %q at the end", n, got[len(got)-80:])
	}
}

// generated is a connection whose client says head and then one unit again and again, at
// most so many octets. Nothing of it is kept, nor of what the client is told but its size.
type generated struct {
	scriptConn
	head, unit string
	left       int64
	at         int
	told       int64
	longest    int // in one write
	last       []byte

	reads, every int
	peak         uint64 // of the heap, at the 4th, 16th, 64th ... read
}

func (c *generated) Read(p []byte) (int, error) {
	if c.head != "" {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	if c.left <= 0 {
		return 0, io.EOF
	}
	if c.reads++; c.reads%c.every == 0 {
		c.peak = max(c.peak, allocated())
		c.every *= 4
	}
	n := 0
	for n < len(p) && c.left > 0 {
		k := copy(p[n:min(int64(len(p)), int64(n)+c.left)], c.unit[c.at:])
		c.at = (c.at + k) % len(c.unit)
		n, c.left = n+k, c.left-int64(k)
	}
	return n, nil
}

func (c *generated) Write(p []byte) (int, error) {
	c.told += int64(len(p))
	c.longest = max(c.longest, len(p))
	c.last = append(c.last[:0], p[max(0, len(p)-200):]...)
	return len(p), nil
}

// Whatever comes without end costs the same memory, and no stack.
func TestServerEndless(t *testing.T) {
	const gib = 1 << 30
	defer debug.SetMaxStack(debug.SetMaxStack(256 << 10)) // more ends the process
	transaction := "HELO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\n"
	endless := func(o *ServerOptions) { o.MaxCommands, o.Auth.Insecure = 1<<30, true }
	for _, tt := range []struct {
		name       string
		head, unit string
		size       int64
		opts       func(*ServerOptions)
		told       int64  // at least
		last       string // of what the client is told
		unread     bool   // it need not take all
	}{
		{"100,000 commands", "HELO c.test\r\n", "NOOP\r\n", 6 * 100_000, endless, 100_000 * 14, "250 2.0.0 OK\r\n", false},
		{"100,000 greetings", "", "HELO c.test\r\n", 13 * 100_000, endless, 100_000 * 20, "250 mx.test greets c.test\r\n", false},
		{"100,000 commands, by default", "HELO c.test\r\n", "NOOP\r\n", 6 * 100_000, nil, 1000 * 14, "421 4.7.0 too many commands without a message\r\n", true},
		{"a command without end", "", "x", gib, nil, 1, "421 4.5.2 line without end\r\n", true},
		{"a command of NULs", "", "\x00", gib, nil, 1, "421 4.5.2 line without end\r\n", true},
		{"a response without end", "EHLO c.test\r\nAUTH ECHO\r\n", "A", gib, endless, 1, "421 4.5.2 line without end\r\n", true},
		{"an exchange without end", "EHLO c.test\r\nAUTH ECHO\r\n", "YWdhaW4=\r\n", gib, func(o *ServerOptions) { o.Auth.Insecure = true }, 1,
			"421 4.7.0 too many commands without a message\r\n", true},
		{"a long exchange", "EHLO c.test\r\nAUTH ECHO\r\n", "YWdhaW4=\r\n", 10 * 100_000, endless, 100_000 * 6, "334 \r\n", false},
		{"a line of data without end", transaction + "DATA\r\n", "x", gib, nil, 1, "552 5.3.4 *", true},
		{"data of CRs", transaction + "DATA\r\n", "\r", gib, nil, 1, "552 5.3.4 *", true},
		{"data of dots", transaction + "DATA\r\n", "\r\n..", gib, nil, 1, "552 5.3.4 *", true},
		{"a chunk without end", transaction + "BDAT 99999999999999999999\r\n", "x", gib, nil, 1, "552 5.3.4 *", true},
		{"chunks without end", transaction, "BDAT 1\r\nx", gib, nil, 1, "421 4.7.0 too many commands without a message\r\n", true},
		{"empty messages without end", "HELO c.test\r\n", "MAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n.\r\n", gib, nil, 1,
			"421 4.7.0 too many messages on one connection, connect again\r\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ServerOptions{Hostname: "mx.test", MinRate: -1, ErrorDelay: -1, MaxMessage: 1 << 20}
			if tt.opts != nil {
				tt.opts(&o)
			}
			srv := mustServer(t, HandlerFunc(func(context.Context, *Conn) (Session, error) { return &untiring{}, nil }), o)
			nc := &generated{head: tt.head, unit: tt.unit, left: tt.size, every: 4}
			before := allocated()
			srv.ServeConn(nc)
			if grown := int64(max(nc.peak, allocated())) - int64(before); grown > 2<<20 {
				t.Errorf("memory: %d octets more than before", grown)
			}
			if nc.told < tt.told || !matchesEnd(tt.last, string(nc.last)) {
				t.Errorf("told %d octets, %q at the end, want %d at least and %q", nc.told, nc.last, tt.told, tt.last)
			}
			if nc.longest > 2*maxOutput {
				t.Errorf("one write of %d octets: the replies were kept", nc.longest)
			}
			if !tt.unread && nc.left != 0 {
				t.Errorf("%d octets were not taken", nc.left)
			}
		})
	}
}

// matchesEnd tells whether said ends with a line like pattern.
func matchesEnd(pattern, said string) bool {
	lines := strings.SplitAfter(said, "\n")
	return len(lines) > 1 && matches(pattern, lines[len(lines)-2])
}

// allocated is how much of the heap is reachable, about.
func allocated() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// untiring accepts all, and has an exchange that goes on for ever.
type untiring struct{ Accept }

func (*untiring) Mechanisms() []string { return []string{"ECHO"} }
func (*untiring) Auth(context.Context, string) (Mechanism, error) {
	return &echo{note: func(string, ...any) {}}, nil
}

// Clients that send an octet a second are served beside fast ones, and those that never
// read what they are told are given up after the time for a write; each ends by itself.
func TestServerSlowAndDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := mustServer(t, acceptAll, ServerOptions{MaxCommands: 1 << 20, MinRate: 1})
		var clients sync.WaitGroup
		start := time.Now()
		var slow, deaf [20]time.Duration
		for i := range slow {
			p, done := pipeTo(t, srv)
			clients.Go(func() {
				said := "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n" + strings.Repeat("x", 100) + "\r\n.\r\nQUIT\r\n"
				heard := make(chan string)
				go func() {
					all, _ := io.ReadAll(p.nc)
					heard <- string(all)
				}()
				for _, c := range []byte(said) {
					<-time.After(time.Second)
					p.nc.Write([]byte{c})
				}
				<-done
				slow[i] = time.Since(start)
				if got := <-heard; !strings.Contains(got, "\r\n250 2.6.0 ") {
					t.Errorf("slow client: got %q", got)
				}
			})
			mute, ended := pipeTo(t, srv)
			clients.Go(func() {
				mute.hear("220 *")
				go io.Copy(mute.nc, strings.NewReader(strings.Repeat("HELP\r\n", 100_000)))
				<-ended
				deaf[i] = time.Since(start)
			})
		}
		for range 100 {
			p, done := pipeTo(t, srv)
			began := time.Now()
			p.hear("220 *")
			p.say("HELO c.test", "QUIT")
			p.hear("250 *", "221 *")
			<-done
			if d := time.Since(began); d > time.Second {
				t.Errorf("fast client: %s", d)
			}
		}
		clients.Wait()
		for i := range slow {
			if slow[i] > 5*time.Minute || deaf[i] > 5*time.Minute+10*time.Second || deaf[i] < 5*time.Minute {
				t.Errorf("slow client: %s, deaf client: %s", slow[i], deaf[i])
			}
		}
		if n := srv.Connections(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}

// Connections that are reset in any state, in clear and within TLS, and five hundred that
// say nothing, leave nothing behind, and keep nobody out.
func TestServerResets(t *testing.T) {
	base := ServerOptions{Hostname: "mx.test", TLS: testTLS(t), MaxConnections: 1000, XClient: func(net.Addr) bool { return true },
		Auth: AuthOptions{Insecure: true}, Offer: Extensions{BinaryMIME: true}}
	srv := mustServer(t, HandlerFunc(func(context.Context, *Conn) (Session, error) { return &untiring{}, nil }), base)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() { srv.Shutdown(context.Background()); <-served }()
	dial := func() *net.TCPConn {
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		return nc.(*net.TCPConn)
	}
	var silent []*net.TCPConn
	for range 500 {
		silent = append(silent, dial())
	}
	for _, s := range hostileStates {
		if strings.Contains(s.words, "lmtp") || strings.Contains(s.words, "implicit") {
			continue
		}
		for _, wait := range []bool{false, true} {
			nc := dial()
			io.WriteString(nc, s.prefix)
			if wait {
				nc.Read(make([]byte, 4096))
			}
			if s.secret {
				tc := tls.Client(nc, &tls.Config{InsecureSkipVerify: true})
				nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // greeting and replies are no handshake
				tc.Handshake()
			}
			nc.SetLinger(0)
			nc.Close()
		}
	}
	nc := dial()
	p := newPeer(t, nc)
	p.hear("220 *")
	p.say("HELO c.test", "MAIL FROM:<a@c.test>", "RCPT TO:<b@mx.test>", "DATA", ".", "QUIT")
	p.hear("250 *", "250 *", "250 *", "354 *", "250 2.6.0 *", "221 *")
	nc.Close()
	for _, nc := range silent {
		nc.SetLinger(0)
		nc.Close()
	}
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for srv.Connections() > 0 || srv.admitted.Load() > 0 {
		select {
		case <-look.C:
		case <-deadline.C:
			t.Fatalf("%d connections are open, %d are counted", srv.Connections(), srv.admitted.Load())
		}
	}
}

// FuzzChunks: text that comes with BDAT is the same however it was cut into chunks, and the
// same as ever a bare line end was mended; in binary chunks it is what was sent.
func FuzzChunks(f *testing.F) {
	for _, s := range []string{"", "\r", "\n", "a\r\nb", "a\r\n.\r\n", "\r\r\n\n\r", "x\n.\n", strings.Repeat("\r", 300)} {
		for _, cuts := range []string{"", "\x00\x01\x02", "\x01\x01\x01\x01"} {
			f.Add([]byte(s), []byte(cuts), false)
			f.Add([]byte(s), []byte(cuts), true)
		}
	}
	states := map[bool]hostileState{
		false: {"text", "commands=100000", "EHLO c.test\r\nMAIL FROM:<a@c.test>\r\nRCPT TO:<b@mx.test>\r\n", false},
		true:  {"binary", "commands=100000 offer", "EHLO c.test\r\nMAIL FROM:<a@c.test> BODY=BINARYMIME\r\nRCPT TO:<b@mx.test>\r\n", false},
	}
	lineEnd := regexp.MustCompile("\r\n|\r|\n")
	f.Fuzz(func(t *testing.T, content, cuts []byte, binary bool) {
		want := content
		if !binary {
			want = lineEnd.ReplaceAll(content, crlf)
		}
		var said []byte
		rest := content
		for _, n := range cuts[:min(len(cuts), 200)] {
			k := min(int(n), len(rest))
			said = append(fmt.Appendf(said, "BDAT %d\r\n", k), rest[:k]...)
			rest = rest[k:]
		}
		said = append(fmt.Appendf(said, "BDAT %d LAST\r\n", len(rest)), rest...)
		for _, chunks := range [][][]byte{{bytes.Clone(said)}, byteByByte(bytes.Clone(said))} {
			answer, w := states[binary].run(t, chunks, nil)
			states[binary].check(t, said, answer, w)
			if len(w.content) != 1 || !bytes.Equal(w.content[0], want) {
				t.Fatalf("%q: got %q, want %q", said, w.content, want)
			}
		}
	})
}

// hostileSeeds are what the clients of all dialogues say, after their greeting and before.
func hostileSeeds(tb testing.TB) (seeds [][]byte) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		tb.Fatalf("dialogues: got %d files, %v", len(files), err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		for _, section := range archive.Files {
			var said []byte
			for line := range strings.Lines(string(section.Data)) {
				if text, ok := strings.CutPrefix(line, "C: "); ok {
					said = append(said, clientBytes(tb, strings.TrimSuffix(text, "\n"))...)
				}
			}
			if len(said) < 4<<10 {
				seeds = append(seeds, said)
			}
		}
	}
	return seeds
}
