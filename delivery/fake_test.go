package delivery

import (
	"bufio"
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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/leak"
	"github.com/penstock/penstock/mail/smtp"
)

// fake_test.go: a backend that fails in a chosen way, and what all tests need.

func TestMain(m *testing.M) { leak.Main(m) }

// fake is a backend. Its zero value takes everything. It belongs to one test, and ends
// with it.
type fake struct {
	greeting string // default 220
	ehlo     []string
	lmtp     bool
	tls      *tls.Config
	implicit bool
	// answer gives the reply to a line, which is in upper case up to the first colon
	// or space; "" means the default. Besides replies it knows: "drop" closes, "hang"
	// waits for the client to close. Several lines are separated by "\n".
	answer func(line string) string
	// end gives the reply to the data, for LMTP of each recipient.
	end func(rcpt string) string
	// inData is the same as answer for the first line of data; "" means to go on.
	inData func() string
	// mended makes it forget answer, end and inData.
	mended atomic.Bool

	listeners []net.Listener // of the test's goroutine

	mu    sync.Mutex // guards what follows
	lines []string   // what clients said
	conns []net.Conn
	open  int
	most  int
	all   sync.WaitGroup
}

// listen makes the fake a listener on the loopback and returns its endpoint.
func (f *fake) listen(t testing.TB) Endpoint {
	t.Helper()
	return f.serve(t, listen(t, "tcp", "127.0.0.1:0"))
}

func listen(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (f *fake) serve(t testing.TB, l net.Listener) Endpoint {
	f.all.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			f.start(nc)
		}
	})
	f.listeners = append(f.listeners, l)
	t.Cleanup(f.stop)
	return Endpoint{Network: l.Addr().Network(), Address: l.Addr().String(), LMTP: f.lmtp, ImplicitTLS: f.implicit}
}

// stop closes all there is and waits for the goroutines.
func (f *fake) stop() {
	for _, l := range f.listeners {
		l.Close()
	}
	f.hangUp()
	f.all.Wait()
}

// hangUp closes all connections.
func (f *fake) hangUp() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, nc := range f.conns {
		nc.Close()
	}
}

func (f *fake) start(nc net.Conn) {
	f.mu.Lock()
	f.conns = append(f.conns, nc)
	f.open++
	f.most = max(f.most, f.open)
	f.mu.Unlock()
	f.all.Go(func() {
		defer func() {
			nc.Close()
			f.mu.Lock()
			f.open--
			f.mu.Unlock()
		}()
		f.talk(nc)
	})
}

// talk is one connection.
func (f *fake) talk(nc net.Conn) {
	if f.implicit {
		nc = tls.Server(nc, f.tls)
	}
	r := bufio.NewReader(nc)
	var rcpts []string
	if !f.say(nc, or(f.greeting, "220 fake")) {
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		f.mu.Lock()
		f.lines = append(f.lines, line)
		f.mu.Unlock()
		reply := ""
		if f.answer != nil && !f.mended.Load() {
			reply = f.answer(line)
		}
		verb, args, _ := strings.Cut(line, " ")
		if verb == "BDAT" {
			if !f.chunk(nc, r, args, reply, rcpts) {
				return
			}
			continue
		}
		ok := f.say(nc, or(reply, f.byDefault(verb)))
		switch {
		case !ok, verb == "QUIT":
			return
		case verb == "STARTTLS" && reply == "":
			nc = tls.Server(nc, f.tls)
			r = bufio.NewReader(nc)
		case verb == "MAIL":
			rcpts = nil
		case verb == "RCPT" && (reply == "" || reply[0] == '2'):
			rcpts = append(rcpts, line)
		case verb == "DATA" && reply == "":
			if !f.data(nc, r, rcpts) {
				return
			}
		}
	}
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (f *fake) byDefault(verb string) string {
	switch verb {
	case "EHLO", "LHLO":
		return strings.Join(append([]string{"250-fake"}, f.keywords()...), "\n")
	case "DATA":
		return "354 go on"
	case "STARTTLS":
		return "220 go on"
	case "XCLIENT":
		return "220 fake again"
	case "AUTH":
		return "235 hello"
	case "QUIT":
		return "221 bye"
	}
	return "250 ok"
}

func (f *fake) keywords() []string {
	var all []string
	for _, k := range f.ehlo {
		all = append(all, "250-"+k)
	}
	if f.tls != nil && !f.implicit {
		all = append(all, "250-STARTTLS")
	}
	return append(all, "250 X-END")
}

// say sends a reply and tells whether the dialogue goes on.
func (f *fake) say(nc net.Conn, reply string) bool {
	switch reply {
	case "drop":
		return false
	case "hang":
		io.Copy(io.Discard, nc)
		return false
	}
	_, err := io.WriteString(nc, strings.ReplaceAll(reply, "\n", "\r\n")+"\r\n")
	return err == nil
}

func (f *fake) data(nc net.Conn, r *bufio.Reader, rcpts []string) bool {
	if f.inData != nil && !f.mended.Load() {
		r.ReadString('\n')
		if reply := f.inData(); reply != "" {
			f.say(nc, reply)
			return false
		}
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return false
		}
		if line == ".\r\n" {
			break
		}
	}
	return f.ended(nc, rcpts)
}

// chunk reads one chunk and answers it. refusal is the answer that was chosen for it.
func (f *fake) chunk(nc net.Conn, r *bufio.Reader, args, refusal string, rcpts []string) bool {
	size, last, _ := strings.Cut(args, " ")
	n, err := strconv.ParseInt(size, 10, 64)
	if err == nil {
		_, err = io.CopyN(io.Discard, r, n)
	}
	switch {
	case err != nil:
		return false
	case refusal != "" || last == "":
		return f.say(nc, or(refusal, "250 go on"))
	}
	return f.ended(nc, rcpts)
}

// ended answers a message.
func (f *fake) ended(nc net.Conn, rcpts []string) bool {
	if !f.lmtp {
		rcpts = []string{""}
	}
	for _, rcpt := range rcpts {
		reply := ""
		if f.end != nil && !f.mended.Load() {
			reply = f.end(rcpt)
		}
		if !f.say(nc, or(reply, "250 taken")) {
			return false
		}
	}
	return true
}

// heard counts the lines that begin with prefix.
func (f *fake) heard(prefix string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, l := range f.lines {
		if strings.HasPrefix(l, prefix) {
			n++
		}
	}
	return n
}

// said returns all that clients said.
func (f *fake) said() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.lines, "|")
}

// dialled returns the number of connections so far, and the most at once.
func (f *fake) dialled() (all, most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.conns), f.most
}

// network is a network of fakes in memory, for tests in a bubble of synctest.
type network struct {
	mu    sync.Mutex
	hosts map[string]*fake // by address; no entry: connection refused
	holes map[string]bool  // nobody answers
}

func (n *network) dial(ctx context.Context, _, address string) (net.Conn, error) {
	n.mu.Lock()
	f, hole := n.hosts[address], n.holes[address]
	n.mu.Unlock()
	switch {
	case hole:
		<-ctx.Done()
		return nil, ctx.Err()
	case f == nil:
		return nil, errors.New("connection refused")
	}
	client, server := net.Pipe()
	f.start(server)
	return client, nil
}

// set gives an address a host, or none.
func (n *network) set(address string, f *fake) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[address] = f
}

// one is a backend with each endpoint in a group of its own.
func one(endpoints ...Endpoint) BackendOptions {
	var o BackendOptions
	for _, e := range endpoints {
		o.Groups = append(o.Groups, []Endpoint{e})
	}
	return o
}

// open returns a Transport with a backend "b" that is shut down at the end of the test,
// before the fakes.
func open(t testing.TB, b BackendOptions) *Transport {
	t.Helper()
	return openWith(t, b, nil)
}

func openWith(t testing.TB, b BackendOptions, n *network) *Transport {
	t.Helper()
	o := Options{LocalName: "gateway.test", Backends: map[string]BackendOptions{"b": b}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if n != nil {
		o.Dial = n.dial
	}
	tr, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := tr.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v; a transaction is left open", err)
		}
	})
	return tr
}

// text is a smtp.Content.
type text string

func (s text) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, string(s))
	return int64(n), err
}

func (s text) Size() int64 { return int64(len(s)) }

const letter = text("Subject: test\r\n\r\nhello\r\n")

func path(t testing.TB, s string) smtp.Path {
	t.Helper()
	p, err := smtp.ParseAddress(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func from(t testing.TB) smtp.Sender { return smtp.Sender{Path: path(t, "from@example.org")} }

func rcpt(t testing.TB, s string) smtp.Recipient { return smtp.Recipient{Path: path(t, s)} }

// send does a whole transaction. It returns what it came to: the replies to the data, or
// where it failed.
func send(t testing.TB, tr *Transport, to ...string) string {
	t.Helper()
	return sendFrom(t, tr, from(t), to...)
}

func sendFrom(t testing.TB, tr *Transport, sender smtp.Sender, to ...string) string {
	t.Helper()
	ctx := t.Context()
	tx, err := tr.Begin(ctx, "b", sender)
	if err != nil {
		return "begin: " + outcome(err)
	}
	defer tx.Abort()
	if len(to) == 0 {
		to = []string{"to@example.org"}
	}
	var said []string
	accepted := 0
	for _, r := range to {
		err := tx.Rcpt(ctx, rcpt(t, r))
		if err == nil {
			accepted++
			continue
		}
		said = append(said, "rcpt: "+outcome(err))
	}
	if accepted == 0 {
		return strings.Join(said, ", ")
	}
	replies, err := tx.Data(ctx, letter)
	if err != nil {
		return strings.Join(append(said, "data: "+outcome(err)), ", ")
	}
	if len(replies) != accepted {
		t.Errorf("%d replies to the data for %d accepted recipients", len(replies), accepted)
	}
	for _, r := range replies {
		said = append(said, r.Line())
	}
	return strings.Join(said, ", ")
}

// outcome is the line of a reply, or "error".
func outcome(err error) string {
	if r, ok := errors.AsType[*smtp.Reply](err); ok {
		return r.Line()
	}
	return "error"
}

func check[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// stats returns those of the backend "b".
func stats(t testing.TB, tr *Transport) BackendStats {
	t.Helper()
	all := tr.Stats()
	i := slices.IndexFunc(all, func(s BackendStats) bool { return s.Name == "b" })
	if i < 0 {
		t.Fatalf("no backend b in %v", all)
	}
	return all[i]
}

// figures is a short form of what tests look at.
func figures(s BackendStats) string {
	return fmt.Sprintf("open %d idle %d busy %d dialled %d reused %d lost %d", s.Open, s.Idle, s.Busy, s.Dialled, s.Reused, s.Lost)
}

// socket returns a path short enough for a unix socket.
func socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "delivery")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}
