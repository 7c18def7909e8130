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
	"strings"
	"testing"
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
