package peers

// clients_test.go lets the peers that connect to us talk to servers of this process.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/mail/smtp"
)

// sink is a Handler that notes what clients send.
type sink struct {
	mu       sync.Mutex // guards what follows
	conns    int
	messages []received
}

// received is one message with its envelope.
type received struct {
	helo string
	tls  tls.ConnectionState // zero in clear
	from smtp.Sender
	to   []string
	raw  []byte
}

func (s *sink) Connect(_ context.Context, conn *smtp.Conn) (smtp.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns++
	return &sinkSession{sink: s, conn: conn}, nil
}

type sinkSession struct {
	smtp.Accept
	sink *sink
	conn *smtp.Conn
	now  received
}

func (s *sinkSession) Mail(_ context.Context, from smtp.Sender) error {
	s.now = received{helo: s.conn.Helo(), from: from}
	s.now.tls, _ = s.conn.TLS()
	return nil
}

// Rcpt refuses whom the local part says.
func (s *sinkSession) Rcpt(_ context.Context, to smtp.Recipient) error {
	address := to.Path.String()
	switch {
	case strings.Contains(address, "unknown@"):
		return smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no such user")
	case strings.Contains(address, "later@"):
		return smtp.Refuse(450, smtp.Enhanced{4, 2, 1}, "not now")
	}
	s.now.to = append(s.now.to, address)
	return nil
}

func (s *sinkSession) Message(_ context.Context, body *smtp.DataReader) ([]*smtp.Reply, error) {
	var b bytes.Buffer
	if _, err := body.WriteTo(&b); err != nil {
		return nil, err
	}
	s.now.raw = b.Bytes()
	s.sink.mu.Lock()
	defer s.sink.mu.Unlock()
	s.sink.messages = append(s.sink.messages, s.now)
	return nil, nil
}

// all returns the messages so far.
func (s *sink) all() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

func (s *sink) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

// newSink starts a server for the time of the test.
func newSink(t *testing.T, opt smtp.ServerOptions) (*sink, *smtp.Server) {
	t.Helper()
	opt.Hostname = "mx.test"
	s := new(sink)
	server, err := smtp.NewServer(s, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), conversationLimit)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
	})
	return s, server
}

// listen serves connections, each with a call of its own, for the time of the test.
func listen(t *testing.T, serve func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			wg.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(conversationLimit))
				serve(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func TestPostfixSends(t *testing.T) {
	ca := NewCA(t)
	certificate := ca.Issue(t, "mx.test")
	s, server := newSink(t, smtp.ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{certificate.TLS}}})
	addr := listen(t, func(c net.Conn) { _ = server.ServeConn(c) })
	p := NewPostfixSender(t, PostfixSenderOptions{NextHop: addr, TLS: "secure", CA: ca, ServerName: "mx.test"})

	got := p.Send(t, PostfixMail{To: []string{"ann@one.test", "unknown@one.test", "later@one.test"}, Raw: hard})
	for i, want := range []PostfixDelivery{
		{To: "ann@one.test", Status: "sent", DSN: "2.6.0", Text: "250 2.6.0"},
		{To: "unknown@one.test", Status: "bounced", DSN: "5.1.1", Text: "550 5.1.1 no such user"},
		{To: "later@one.test", Status: "deferred", DSN: "4.2.1", Text: "450 4.2.1 not now"},
	} {
		d := got[i]
		if d.To != want.To || d.Status != want.Status || d.DSN != want.DSN || !strings.Contains(d.Text, want.Text) || d.Relay != "127.0.0.1["+strings.Replace(addr, ":", "]:", 1) {
			t.Errorf("delivery %d: got %+v, want %+v", i, d, want)
		}
	}
	p.Send(t, PostfixMail{From: "<>", Raw: []byte("Subject: null\n\nsecond\n")})

	messages := s.all()
	if len(messages) != 2 {
		t.Fatalf("the server got %d messages, want 2; bounces stay with Postfix: %+v", len(messages), messages)
	}
	first, second := messages[0], messages[1]
	sameBytes(t, "first message", afterReceived(first.raw), hard)
	if first.helo != "client.test" || first.from.Path.String() != "sender@client.test" || first.from.Body != smtp.BodyEightBit {
		t.Errorf("first message: got %+v from %+v", first.helo, first.from)
	}
	if first.tls.ServerName != "mx.test" {
		t.Errorf("TLS: got %+v, want it with the name mx.test", first.tls)
	}
	sameBytes(t, "second message", afterReceived(second.raw), []byte("Subject: null\r\n\r\nsecond\r\n"))
	if !second.from.Path.IsNull() {
		t.Errorf("second message: got the sender %q, want none", second.from.Path)
	}
}

// afterReceived cuts off the field that Postfix puts on top, with its folded lines.
func afterReceived(raw []byte) []byte {
	return regexp.MustCompile(`(?s)^Received: .*?\r\n([^ \t])`).ReplaceAll(raw, []byte("$1"))
}

// One transaction, and a message of some size.
func TestPostfixSendsMuch(t *testing.T) {
	s, server := newSink(t, smtp.ServerOptions{})
	addr := listen(t, func(c net.Conn) { _ = server.ServeConn(c) })
	p := NewPostfixSender(t, PostfixSenderOptions{NextHop: addr, Main: []string{"smtp_destination_recipient_limit = 1000"}})
	const recipients, size = 300, 10 << 20
	var to []string
	for i := range recipients {
		to = append(to, fmt.Sprintf("user%d@example.org", i))
	}
	raw := append([]byte("Subject: much\r\n\r\n"), bytes.Repeat([]byte(strings.Repeat("x", 78)+"\r\n"), size/80)...)
	for _, d := range p.Send(t, PostfixMail{To: to, Raw: raw}) {
		if d.Status != "sent" {
			t.Errorf("got %+v, want it sent", d)
		}
	}
	got := s.all()
	if len(got) != 1 || len(got[0].to) != recipients || !bytes.Equal(afterReceived(got[0].raw), raw) {
		t.Errorf("the server got %d messages, want one to %d with all its octets", len(got), recipients)
	}
}

// A server with a script shows the words themselves.
func TestPostfixSaysWhatIsOffered(t *testing.T) {
	lines := make(chan string, 100)
	addr := listen(t, func(c net.Conn) {
		scripted(c, "250-mx.test\r\n250-DSN\r\n250-8BITMIME\r\n250 PIPELINING\r\n", lines, io.Discard)
	})
	p := NewPostfixSender(t, PostfixSenderOptions{NextHop: addr, LMTP: true, Hostname: "front.test"})
	p.Send(t, PostfixMail{To: []string{"a@one.test", "b@one.test"}, MailParams: "RET=HDRS ENVID=x1", RcptParams: "NOTIFY=SUCCESS,FAILURE", Raw: []byte("Subject: a\r\n\r\nZ\xc3\xbcrich\r\n")})
	said := drain(lines)
	for _, want := range []string{
		"LHLO front.test",
		"MAIL FROM:<sender@client.test> BODY=8BITMIME ENVID=x1 RET=HDRS",
		"RCPT TO:<a@one.test> ORCPT=rfc822;a@one.test NOTIFY=SUCCESS,FAILURE",
		"RCPT TO:<b@one.test> ORCPT=rfc822;b@one.test NOTIFY=SUCCESS,FAILURE",
		"DATA",
	} {
		if !slices.Contains(said, want) {
			t.Errorf("Postfix says %q, want %q among it", said, want)
		}
	}
}

// scripted is a server that says yes to all, offers what it is told to, and sends each
// line of the client to lines, and what comes with BDAT to content. It knows no TLS.
func scripted(c net.Conn, offer string, lines chan<- string, content io.Writer) {
	r := bufio.NewReader(io.LimitReader(c, 1<<20))
	say := func(text string) { _, _ = io.WriteString(c, text) } // the client's side shows an error
	say("220 mx.test ESMTP\r\n")
	rcpts := 0
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimSpace(line)
		lines <- line
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		switch verb {
		case "EHLO", "LHLO":
			say(offer)
		case "XCLIENT":
			say("220 mx.test ESMTP\r\n")
		case "AUTH":
			say("235 2.7.0 OK\r\n")
		case "BDAT":
			var size int64
			if _, err := fmt.Sscan(line[len(verb):], &size); err != nil {
				return
			}
			if _, err := io.CopyN(content, r, size); err != nil {
				return
			}
			say("250 2.6.0 OK\r\n")
		case "DATA":
			say("354 go on\r\n")
			for line != "." && err == nil {
				line, err = r.ReadString('\n')
				line = strings.TrimSpace(line)
			}
			say(strings.Repeat("250 2.6.0 OK\r\n", rcpts))
		case "QUIT":
			say("221 2.0.0 bye\r\n")
			return
		case "RCPT":
			rcpts++
			fallthrough
		default:
			say("250 2.0.0 OK\r\n")
		}
	}
}

// drain returns what is in the channel.
func drain(lines <-chan string) (said []string) {
	for {
		select {
		case line := <-lines:
			said = append(said, line)
		default:
			return said
		}
	}
}

func TestEximSendsChunks(t *testing.T) {
	lines := make(chan string, 100)
	var content bytes.Buffer
	addr := listen(t, func(c net.Conn) {
		scripted(c, "250-mx.test\r\n250-PIPELINING\r\n250 CHUNKING\r\n", lines, &content)
	})
	raw := []byte("From: <a@client.test>\n\n.\n" + strings.Repeat("x\n", 10000))
	got := EximSend(t, EximOptions{NextHop: addr}, "a@client.test", []string{"b@mx.test", "c@mx.test"}, raw)
	if len(got) != 2 || got[0].Status != "sent" || !got[0].Chunked || got[1].To != "c@mx.test" || !strings.Contains(got[0].Line, "250 2.6.0 OK") {
		t.Errorf("Exim says %+v, want both recipients sent, with BDAT", got)
	}
	said := drain(lines)
	last := slices.IndexFunc(said, func(line string) bool { return strings.HasPrefix(line, "BDAT ") && strings.HasSuffix(line, " LAST") })
	if last < 0 || slices.Contains(said, "DATA") {
		t.Errorf("Exim says %q, want BDAT with LAST", said)
	}
	if body := bytes.ReplaceAll(raw, []byte("\n"), []byte("\r\n")); !bytes.HasSuffix(content.Bytes(), body[bytes.Index(body, []byte("\r\n\r\n")):]) {
		t.Errorf("content: got %d octets, want the message in them", content.Len())
	}
}

func TestEximSends(t *testing.T) {
	s, server := newSink(t, smtp.ServerOptions{})
	addr := listen(t, func(c net.Conn) { _ = server.ServeConn(c) })
	got := EximSend(t, EximOptions{NextHop: addr, Hostname: "front.test"}, "a@client.test",
		[]string{"ann@one.test", "unknown@one.test", "later@one.test"}, []byte("Subject: a\n\nb\n"))
	status := make(map[string]string)
	for _, d := range got {
		status[d.To] = d.Status
	}
	if want := map[string]string{"ann@one.test": "sent", "unknown@one.test": "bounced", "later@one.test": "deferred"}; !maps.Equal(status, want) {
		t.Errorf("Exim says %+v, want %v", got, want)
	}
	if messages := s.all(); len(messages) != 1 || messages[0].helo != "front.test" {
		t.Errorf("the server got %+v, want the one message; bounces stay with Exim", messages)
	}
}

func TestSwaksSaysWhatIsOffered(t *testing.T) {
	lines := make(chan string, 100)
	addr := listen(t, func(c net.Conn) {
		scripted(c, "250-mx.test\r\n250-AUTH PLAIN LOGIN\r\n250 XCLIENT ADDR NAME\r\n", lines, io.Discard)
	})
	for _, test := range []struct {
		args string
		want []string
	}{
		{"--protocol LMTP", []string{"LHLO"}},
		{"--auth PLAIN --auth-user ann --auth-password secret", []string{"AUTH PLAIN AGFubgBzZWNyZXQ="}},
		{"--xclient-addr 192.0.2.1 --xclient-name client.test", []string{"XCLIENT ADDR=192.0.2.1 NAME=client.test"}},
	} {
		args := append([]string{"--server", addr, "--to", "ann@example.org"}, strings.Fields(test.args)...)
		transcript, code := Swaks(t, args...)
		said := drain(lines)
		for _, want := range test.want {
			if code != 0 || !slices.ContainsFunc(said, func(line string) bool { return strings.HasPrefix(line, want) }) {
				t.Errorf("swaks %s: exits with %d and says %q, want %q among it\n%s", test.args, code, said, want, transcript)
			}
		}
	}
}

// proxied is what the header of the PROXY protocol says.
type proxied struct {
	command byte // 'L' LOCAL, 'P' PROXY
	source  netip.AddrPort
	tlvs    map[byte][]byte
}

// readProxy reads a header of version 1 or 2 for TCP over IPv4. It reads no byte beyond it.
func readProxy(r io.Reader) (p proxied, err error) {
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head[:12]); err != nil {
		return p, err
	}
	if string(head[:12]) != "\r\n\r\n\x00\r\nQUIT\n" {
		return readProxyLine(r, string(head[:12]))
	}
	if _, err := io.ReadFull(r, head[12:]); err != nil {
		return p, err
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, rest); err != nil {
		return p, err
	}
	p.command = "LP"[head[12]&1]
	if head[13] == 0x11 && len(rest) >= 12 {
		p.source = netip.AddrPortFrom(netip.AddrFrom4([4]byte(rest)), binary.BigEndian.Uint16(rest[8:]))
		p.tlvs = readTLVs(rest[12:])
	}
	return p, nil
}

func readProxyLine(r io.Reader, line string) (p proxied, err error) {
	for b := make([]byte, 1); !strings.HasSuffix(line, "\r\n"); line += string(b) {
		if _, err := io.ReadFull(r, b); err != nil || len(line) > 107 {
			return p, fmt.Errorf("no header line: %q, %w", line, err)
		}
	}
	var source, dest string
	var port, destPort uint16
	if _, err := fmt.Sscanf(line, "PROXY TCP4 %s %s %d %d", &source, &dest, &port, &destPort); err != nil {
		return p, fmt.Errorf("header line %q: %w", line, err)
	}
	addr, err := netip.ParseAddr(source)
	return proxied{command: 'P', source: netip.AddrPortFrom(addr, port)}, err
}

func readTLVs(b []byte) map[byte][]byte {
	tlvs := make(map[byte][]byte)
	for len(b) >= 3 {
		n := int(binary.BigEndian.Uint16(b[1:]))
		tlvs[b[0]] = b[3:min(3+n, len(b))]
		b = b[min(3+n, len(b)):]
	}
	return tlvs
}

// proxySink is a sink behind the PROXY protocol. Connections that say LOCAL are closed.
func proxySink(t *testing.T) (s *sink, addr string, headers chan proxied) {
	t.Helper()
	s, server := newSink(t, smtp.ServerOptions{})
	headers = make(chan proxied, 100)
	addr = listen(t, func(c net.Conn) {
		p, err := readProxy(c)
		if err != nil {
			t.Errorf("PROXY header: %v", err)
			return
		}
		headers <- p
		if p.command == 'P' {
			_ = server.ServeConn(c)
		}
	})
	return s, addr, headers
}

func TestHAProxySaysWhoConnects(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		s, addr, headers := proxySink(t)
		h := HAProxy(t, HAProxyOptions{Backend: addr, SendProxy: version})
		if n := s.connections(); n != 0 {
			t.Errorf("%s: starting it made %d connections", version, n)
		}
		conn, err := net.Dial("tcp", h.Addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if p := <-headers; p.source.String() != conn.LocalAddr().String() {
			t.Errorf("%s: the header tells of %v, want %v", version, p.source, conn.LocalAddr())
		}
		send(t, h.Addr, nil, "user@example.org", hard)
		if got := s.all(); len(got) != 1 || !bytes.Equal(got[0].raw, hard) {
			t.Errorf("%s: the server got %d messages, want the one sent", version, len(got))
		}
	}
}

func TestHAProxyEndsTLS(t *testing.T) {
	ca := NewCA(t)
	certificate, client := ca.Issue(t, "mx.test"), ca.Issue(t, "client.test")
	s, addr, headers := proxySink(t)
	h := HAProxy(t, HAProxyOptions{Backend: addr, SendProxy: "v2", TLVs: []string{"ssl", "cert-cn", "authority", "unique-id", "crc32c"},
		Certificate: &certificate, ClientCA: ca})
	output, code := OpenSSL(t, h.Addr, "EHLO client.test\r\nQUIT\r\n", "-servername", "mx.test", "-CAfile", ca.File, "-verify_return_error",
		"-verify_hostname", "mx.test", "-cert", client.CertFile, "-key", client.KeyFile, "-tls1_3")
	if code != 0 || !strings.Contains(output, "Verification: OK") || !strings.Contains(output, "\n221 2.0.0 mx.test") {
		t.Errorf("openssl exits with %d:\n%s", code, output)
	}
	const authority, crc32c, uniqueID, ssl = 0x02, 0x03, 0x05, 0x20
	p := <-headers
	if string(p.tlvs[authority]) != "mx.test" || len(p.tlvs[crc32c]) != 4 || len(p.tlvs[uniqueID]) == 0 {
		t.Errorf("TLVs: got %q", p.tlvs)
	}
	// Behind a byte of flags and four of the check: TLVs of its own.
	const version, commonName = 0x21, 0x22
	if tls := p.tlvs[ssl]; len(tls) < 5 || tls[0] != 0x07 || string(readTLVs(tls[5:])[version]) != "TLSv1.3" || string(readTLVs(tls[5:])[commonName]) != "client.test" {
		t.Errorf("TLV of TLS: got %q, want TLSv1.3 and the client's name", tls)
	}
	if n := s.connections(); n != 1 {
		t.Errorf("the server had %d connections, want 1", n)
	}
}

func TestHAProxyChecksAreLocal(t *testing.T) {
	_, addr, headers := proxySink(t)
	HAProxy(t, HAProxyOptions{Backend: addr, SendProxy: "v2", Checks: true})
	if p := <-headers; p.command != 'L' || p.source.IsValid() {
		t.Errorf("check: got %+v, want LOCAL", p)
	}
}

func TestSwaksProxies(t *testing.T) {
	for _, test := range []struct{ version, family string }{{"1", "TCP4"}, {"2", "AF_INET"}} {
		s, addr, headers := proxySink(t)
		transcript, code := Swaks(t, "--server", addr, "--to", "ann@example.org", "--proxy-version", test.version, "--proxy-family", test.family,
			"--proxy-source", "192.0.2.1", "--proxy-source-port", "1025", "--proxy-dest", "192.0.2.2", "--proxy-dest-port", "25")
		if code != 0 || len(s.all()) != 1 {
			t.Fatalf("swaks, version %s: exits with %d\n%s", test.version, code, transcript)
		}
		if p := <-headers; p.source.String() != "192.0.2.1:1025" {
			t.Errorf("swaks, version %s: the header tells of %v", test.version, p.source)
		}
	}
}

func TestOpenSSLStartsTLS(t *testing.T) {
	ca := NewCA(t)
	certificate := ca.Issue(t, "mx.test")
	s, server := newSink(t, smtp.ServerOptions{TLS: &tls.Config{Certificates: []tls.Certificate{certificate.TLS}}})
	addr := listen(t, func(c net.Conn) { _ = server.ServeConn(c) })
	const mail = "EHLO client.test\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\nSubject: a\r\n\r\n" +
		"Q\r\nR\r\n.\r\nQUIT\r\n" // no commands of s_client
	output, code := OpenSSL(t, addr, mail, "-starttls", "smtp", "-name", "client.test", "-tls1_2", "-alpn", "smtp", "-CAfile", ca.File)
	if code != 0 || !strings.Contains(output, "Verify return code: 0") || !strings.Contains(output, "TLSv1.2") {
		t.Errorf("openssl exits with %d:\n%s", code, output)
	}
	if got := s.all(); len(got) != 1 || string(got[0].raw) != "Subject: a\r\n\r\nQ\r\nR\r\n" || got[0].tls.Version != tls.VersionTLS12 {
		t.Errorf("the server got %+v", got)
	}
	output, code = OpenSSL(t, addr, "QUIT\r\n", "-starttls", "smtp", "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0")
	if code == 0 || !strings.Contains(output, "alert protocol version") {
		t.Errorf("openssl with TLS 1.1 exits with %d, want a failure:\n%s", code, output)
	}
}
