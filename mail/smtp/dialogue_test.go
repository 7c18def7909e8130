package smtp

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/penstock/penstock/internal/parity"
)

// dialogue_test.go runs the dialogues of testdata/*.txt. Each file is a txtar archive,
// each section one dialogue with a server whose session is scripted (see there):
//
//	# why this is so, and where it stands
//	options: reject size=100     what the server is given; see dialogueOptions
//	S: 250 *                     the server says this; * is any text
//	C: EHLO client.test          the client says this, and CRLF
//	C: a\n.\r\n                  the same with line ends of its own (\r \n \t \0 \\ \xFF)
//	C: half\                     or none at all
//	C: ${x*5000}                 x, five thousand times
//	rows: SS-41                  of docs/parity.md, which the dialogue proves
//	tls                          the client does the handshake
//	closed                       the server has closed
//	= message "a\r\n"            what the session noted, all of it or nothing
//
// Lines of the client that follow each other leave it in one write.

// step is one line of a dialogue; line is its place in the file's section.
type step struct {
	kind string // "S", "C", "tls", "closed", "="
	text string
	line int
}

type dialogue struct {
	options []string
	steps   []step
}

func parseDialogue(tb testing.TB, text string) dialogue {
	tb.Helper()
	var d dialogue
	for n, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		kind, rest, _ := strings.Cut(line, " ")
		switch kind {
		case "options:":
			d.options = strings.Fields(rest)
		case "rows:":
			parity.Row(tb, strings.Fields(rest)...)
		case "S:", "C:":
			d.steps = append(d.steps, step{kind[:1], rest, n + 1})
		case "tls", "closed", "=":
			d.steps = append(d.steps, step{kind, rest, n + 1})
		case "", "#":
		default:
			tb.Fatalf("line %d: %q is no line of a dialogue", n+1, line)
		}
	}
	return d
}

// dialogueOptions: the words of an options line. newSession makes the session they ask for.
func dialogueOptions(tb testing.TB, words []string) (o ServerOptions, newSession func() *scripted) {
	var script scripted
	o = ServerOptions{Hostname: "mx.test", MinRate: -1, ErrorDelay: -1, Auth: AuthOptions{FailureDelay: -1}}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		n, _ := strconv.Atoi(value)
		switch key {
		case "reject":
			o.LineEndings = RejectLineEndings
		case "starttls":
			o.TLS = testTLS(tb)
		case "implicit":
			o.TLS, o.Implicit = testTLS(tb), true
		case "size":
			o.MaxMessage = int64(n)
		case "recipients":
			o.MaxRecipients = n
		case "messages":
			o.MaxMessages = n
		case "line":
			o.MaxLine = n
		case "commands":
			o.MaxCommands = n
		case "bad":
			o.MaxBadCommands = n
		case "errors":
			o.MaxErrors = n
		case "lmtp":
			o.LMTP, script.each = true, true
		case "offer":
			o.Offer = Extensions{DSN: true, BinaryMIME: true, RequireTLS: true}
		case "queue":
			o.Offer = Extensions{Priority: true, DeliverBy: time.Minute, FutureRelease: time.Hour}
		case "disabled":
			o.Disabled = strings.Split(value, ",")
		case "without":
			o.Without = strings.Split(value, ",")
		case "banner":
			o.Banner = value
		case "hello":
			o.HelloText = value
		case "auth":
			script.mechs = strings.Split(value, ",")
		case "insecure":
			o.Auth.Insecure = true
		case "required":
			o.Auth.Required = true
		case "unauthenticated":
			o.MaxUnauthenticated = n
		case "requiretls":
			o.RequireTLS = true
		case "logins": // that a proxy tells of
			o.XClientLogin = true
		case "proxy":
			o.XClient = func(net.Addr) bool { return true }
			o.XForward = o.XClient
		case "connect":
			script.connect = verdict("connect", "connect-"+value)
			if value == "insecure" { // in clear it is let in
				script.secure = Refuse(554, Enhanced{5, 7, 0}, "not with this TLS")
			}
		default:
			tb.Fatalf("option %q is not known", word)
		}
	}
	return o, func() *scripted {
		return &scripted{connect: script.connect, secure: script.secure, each: script.each, mechs: script.mechs}
	}
}

var repeated = regexp.MustCompile(`\$\{(.+?)\*(\d+)\}`)

// clientBytes is what a C: line sends.
func clientBytes(tb testing.TB, text string) string {
	text = repeated.ReplaceAllStringFunc(text, func(s string) string {
		m := repeated.FindStringSubmatch(s)
		n, _ := strconv.Atoi(m[2])
		return strings.Repeat(m[1], n)
	})
	raw, open := strings.CutSuffix(text, `\`)
	raw = strings.ReplaceAll(raw, `\0`, `\x00`)
	said, err := strconv.Unquote(`"` + strings.ReplaceAll(raw, `"`, `\"`) + `"`)
	if err != nil {
		tb.Fatalf("%q: %v", text, err)
	}
	if open || strings.HasSuffix(raw, `\n`) || strings.HasSuffix(raw, `\r`) {
		return said
	}
	return said + "\r\n"
}

// matches tells whether line fits pattern, in which * is any text.
func matches(pattern, line string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == line
	}
	if !strings.HasPrefix(line, parts[0]) {
		return false
	}
	line = line[len(parts[0]):]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(line, p)
		if i < 0 {
			return false
		}
		line = line[i+len(p):]
	}
	return strings.HasSuffix(line, parts[len(parts)-1])
}

func eachDialogue(t *testing.T, f func(t *testing.T, d dialogue)) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("dialogues: got %d files, %v", len(files), err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, section := range archive.Files {
			name := strings.TrimSuffix(filepath.Base(file), ".txt") + "/" + section.Name
			t.Run(name, func(t *testing.T) { f(t, parseDialogue(t, string(section.Data))) })
		}
	}
}

func TestDialogues(t *testing.T) {
	eachDialogue(t, func(t *testing.T, d dialogue) {
		opts, newSession := dialogueOptions(t, d.options)
		sess := newSession()
		ours, theirs := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- sess.serve(opts, theirs) }()
		talk := &dialogueClient{t: t, nc: ours}
		talk.run(d.steps)
		ours.Close()
		if err := <-done; err != nil {
			t.Errorf("ServeConn: %v", err)
		}
		talk.checkEvents(d.steps, sess.events)
	})
}

// dialogueClient is the client of one dialogue.
type dialogueClient struct {
	t  *testing.T
	nc net.Conn
	r  *bufio.Reader
}

func (c *dialogueClient) run(steps []step) {
	c.nc.SetDeadline(time.Now().Add(10 * time.Second))
	c.r = bufio.NewReader(c.nc)
	sent := make(chan error, 1)
	sent <- nil
	for i, s := range steps {
		switch s.kind {
		case "C":
			if i > 0 && steps[i-1].kind == "C" {
				continue // went with the first
			}
			var said bytes.Buffer
			for _, s := range steps[i:] {
				if s.kind != "C" {
					break
				}
				said.WriteString(clientBytes(c.t, s.text))
			}
			<-sent // one write after the other, while replies are read
			go func() {
				_, err := c.nc.Write(said.Bytes())
				sent <- err
			}()
		case "S":
			line, err := c.r.ReadString('\n')
			if err != nil || !matches(s.text+"\r\n", line) {
				c.t.Fatalf("line %d: got %q, %v, want %q", s.line, line, err, s.text)
			}
		case "tls":
			<-sent
			tc := tls.Client(c.nc, &tls.Config{InsecureSkipVerify: true})
			if err := tc.Handshake(); err != nil {
				c.t.Fatalf("line %d: handshake: %v", s.line, err)
			}
			c.nc, c.r = tc, bufio.NewReader(tc)
			sent <- nil
		case "closed":
			if line, err := c.r.ReadString('\n'); err == nil || line != "" || isTimeout(err) {
				c.t.Fatalf("line %d: got %q, %v, want the end", s.line, line, err)
			}
		}
	}
	c.nc.SetDeadline(time.Unix(1, 0)) // a write that nobody takes ends
	<-sent
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// checkEvents compares what the session noted, if the dialogue says anything of it.
func (c *dialogueClient) checkEvents(steps []step, got []string) {
	var want []string
	for _, s := range steps {
		if s.kind == "=" {
			want = append(want, s.text)
		}
	}
	if want != nil && !slices.EqualFunc(want, got, matches) {
		c.t.Errorf("session: got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// A script is a dialogue for a client that waits for nothing but the handshake.
type script struct {
	d             dialogue
	opts          ServerOptions
	newSession    func() *scripted
	tls           bool // there is a handshake, after lines in clear
	lines         int
	clear, secret []byte
}

func newScript(t *testing.T, d dialogue) *script {
	s := &script{d: d}
	s.opts, s.newSession = dialogueOptions(t, d.options)
	for _, step := range d.steps {
		switch {
		case step.kind == "tls":
			s.tls = true
		case step.kind == "S" && !s.tls:
			s.lines++
		case step.kind == "C" && s.tls:
			s.secret = append(s.secret, clientBytes(t, step.text)...)
		case step.kind == "C":
			s.clear = append(s.clear, clientBytes(t, step.text)...)
		}
	}
	return s
}

// run says the script in these pieces and returns what the server says and what its
// session notes.
func (s *script) run(t *testing.T, clear, secret [][]byte) (string, []string) {
	t.Helper()
	sess := s.newSession()
	if s.tls {
		said, err := sess.serveSecret(s.opts, clear, s.lines, secret)
		if err != nil {
			t.Fatalf("said %q: %v", said, err)
		}
		return said, sess.events
	}
	c := &scriptConn{chunks: clear}
	sess.serve(s.opts, c)
	return c.out.String(), sess.events
}

// injects tells whether the client says something in clear between STARTTLS and the
// handshake that it never does. Such a stream alone may be answered in two ways: what
// came together with STARTTLS ends the connection at once, what came later ends the
// handshake that was begun. Either way nothing of it is executed.
func (s *script) injects() bool { return s.opts.TLS != nil && !s.opts.Implicit && !s.tls }

// cuts calls f with said in pieces: by octet, in two at each point (at fifty random ones
// if it is long), and twenty times at random.
func cuts(r *mathrand.Rand, said []byte, f func(how string, chunks [][]byte)) {
	f("octet by octet", byteByByte(said))
	points := len(said)
	if points > 1000 {
		points = 50
	}
	for i := range points {
		if points != len(said) {
			i = r.IntN(len(said))
		}
		f(fmt.Sprintf("cut at %d", i), split(said, i))
	}
	for range 20 {
		f("random", randomSplit(r, said))
	}
}

// Each dialogue's client side, sent by a client that waits for nothing but the handshake,
// gives the same replies and the same session wherever the stream is cut, in clear and
// within TLS.
func TestDialoguesSegmentation(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := mathrand.New(mathrand.NewPCG(seed, 0))
	eachDialogue(t, func(t *testing.T, d dialogue) {
		s := newScript(t, d)
		whole := func(b []byte) [][]byte { return [][]byte{bytes.Clone(b)} }
		want, wantEvents := s.run(t, whole(s.clear), whole(s.secret))
		check := func(how string, clear, secret [][]byte) {
			t.Helper()
			got, events := s.run(t, clear, secret)
			same := got == want || s.injects() && strings.HasPrefix(got, want)
			if !same || !slices.Equal(events, wantEvents) {
				t.Fatalf("seed %d, %s: got\n%q\n%q\nin one piece\n%q\n%q", seed, how, got, events, want, wantEvents)
			}
		}
		cuts(r, s.clear, func(how string, chunks [][]byte) { check("in clear "+how, chunks, whole(s.secret)) })
		if s.tls {
			cuts(r, s.secret, func(how string, chunks [][]byte) { check("within TLS "+how, whole(s.clear), chunks) })
		}
	})
}

// testTLS returns a configuration with a certificate that nobody trusts.
func testTLS(tb testing.TB) *tls.Config {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"mx.test"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}
