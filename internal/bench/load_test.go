//go:build linux

package bench

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/penstock/penstock/internal/peers"
)

// load_test.go: a client that costs little. It sends MAIL, RCPT and DATA in one segment,
// as a good MTA does where PIPELINING is offered (RFC 2920), waits for their replies, and
// sends the content, which is ready as mail data.

// patience is the longest that a connection of the load may take, from connecting to
// QUIT.
const patience = time.Minute

// load is what is sent.
type load struct {
	addr    string
	clients int // connections at a time
	per     int // messages per connection
	content []byte
	tls     *tls.Config // nil does not say STARTTLS
	// implicit begins with the handshake. bare ends with it, and with the one octet that the
	// server says: it speaks no SMTP.
	implicit, bare bool
	took           *times // of messages, from MAIL to the last reply; nil does not care
}

// times collects durations.
type times struct {
	mu   sync.Mutex
	list []time.Duration
}

func (t *times) add(d []time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = append(t.list, d...)
}

// newLoad returns a load for addr. With ca it says STARTTLS.
func newLoad(s scenario, addr string, ca *peers.CA) load {
	l := load{addr: addr, clients: s.clients, per: s.per, content: mailData(s.size)}
	if ca != nil {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca.PEM)
		// One group that every server has, so that all do the same handshake. Without
		// a session cache each is a full one.
		l.tls = &tls.Config{RootCAs: pool, ServerName: hostname, CurvePreferences: []tls.CurveID{tls.X25519}}
	}
	return l
}

// mailData returns a message of about size octets, with its end mark.
func mailData(size int) []byte {
	var b bytes.Buffer
	b.WriteString("Received: from client.test ([127.0.0.1]) by relay.test with ESMTP id 0123456789;\r\n" +
		"\tFri, 1 Aug 2025 12:00:00 +0000\r\n" +
		"From: Sender <sender@client.test>\r\nTo: Recipient <recipient@example.org>\r\n" +
		"Subject: the fox\r\nDate: Fri, 1 Aug 2025 12:00:00 +0000\r\n" +
		"Message-ID: <1.2.3@client.test>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n")
	line := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 2)[:76] + "\r\n"
	for b.Len()+len(line) <= size {
		b.WriteString(line)
	}
	b.WriteString(".\r\n")
	return b.Bytes()
}

// running is a load that runs until it is stopped.
type running struct {
	ended       chan error // one value for each connection that ended
	stopped     chan struct{}
	sent        atomic.Int64 // messages
	connections atomic.Int64
	errs        []error // of each client's last connection; valid when clients are done
	clients     sync.WaitGroup
}

// start begins to send: each client connects, sends l.per messages, and begins anew.
func (l load) start() *running {
	r := &running{ended: make(chan error, l.clients), stopped: make(chan struct{}), errs: make([]error, l.clients)}
	for i := range l.clients {
		r.clients.Go(func() { r.errs[i] = r.client(l) })
	}
	return r
}

// client sends until it is stopped, and returns the error of the last connection.
func (r *running) client(l load) error {
	for {
		err := l.connection()
		if err == nil {
			r.sent.Add(int64(l.per))
			r.connections.Add(1)
		}
		select {
		case <-r.stopped: // also if somebody listened to r.ended
			return err
		default:
		}
		select {
		case r.ended <- err:
		case <-r.stopped:
			return err
		}
	}
}

// stop lets connections come to their end and returns how many messages were sent, and on
// how many connections.
func (r *running) stop() (messages, connections int64, err error) {
	close(r.stopped)
	r.clients.Wait()
	return r.sent.Load(), r.connections.Load(), errors.Join(r.errs...)
}

var envelope = []byte("MAIL FROM:<sender@client.test>\r\nRCPT TO:<recipient@example.org>\r\nDATA\r\n")

// connection sends l.per messages.
func (l load) connection() error {
	nc, err := net.DialTimeout("tcp", l.addr, patience)
	if err != nil {
		return err
	}
	c := &client{nc: nc}
	defer func() { c.nc.Close() }()
	if err := c.open(l); err != nil || l.bare {
		return err
	}
	took := make([]time.Duration, 0, l.per)
	for range l.per {
		start := time.Now()
		if err := c.message(l.content); err != nil {
			return err
		}
		took = append(took, time.Since(start))
	}
	if l.took != nil {
		l.took.add(took)
	}
	return c.say("QUIT\r\n", 221)
}

// client is one connection.
type client struct {
	nc   net.Conn
	buf  [4 << 10]byte
	r, w int // unread is buf[r:w]
}

// open brings a new connection as far as to the answer to EHLO.
func (c *client) open(l load) error {
	c.nc.SetDeadline(time.Now().Add(patience))
	config := l.tls
	if config != nil && (l.implicit || l.bare) {
		c.nc, config = tls.Client(c.nc, config), nil
	}
	if l.bare {
		return c.more()
	}
	return c.begin(config)
}

// begin reads the greeting, says EHLO, and starts TLS if config is not nil.
func (c *client) begin(config *tls.Config) error {
	if err := c.expect(220); err != nil {
		return err
	}
	if err := c.say("EHLO client.test\r\n", 250); err != nil || config == nil {
		return err
	}
	if err := c.say("STARTTLS\r\n", 220); err != nil {
		return err
	}
	c.nc = tls.Client(c.nc, config)
	return c.say("EHLO client.test\r\n", 250)
}

func (c *client) message(content []byte) error {
	if _, err := c.nc.Write(envelope); err != nil {
		return err
	}
	for _, code := range [...]int{250, 250, 354} {
		if err := c.expect(code); err != nil {
			return err
		}
	}
	if _, err := c.nc.Write(content); err != nil {
		return err
	}
	return c.expect(250)
}

func (c *client) say(line string, code int) error {
	if _, err := c.nc.Write([]byte(line)); err != nil {
		return err
	}
	return c.expect(code)
}

// expect reads one reply.
func (c *client) expect(code int) error {
	for {
		in := c.buf[c.r:c.w]
		i := bytes.IndexByte(in, '\n')
		if i < 0 {
			if err := c.more(); err != nil {
				return fmt.Errorf("waiting for %d after %q: %w", code, in, err)
			}
			continue
		}
		c.r += i + 1
		if i < 4 {
			return fmt.Errorf("reply %q, want %d", in[:i], code)
		}
		if got := int(in[0]-'0')*100 + int(in[1]-'0')*10 + int(in[2]-'0'); got != code {
			return fmt.Errorf("reply %q, want %d", in[:i], code)
		}
		if in[3] != '-' {
			return nil
		}
	}
}

func (c *client) more() error {
	c.w = copy(c.buf[:], c.buf[c.r:c.w])
	c.r = 0
	if c.w == len(c.buf) {
		return errors.New("line without end")
	}
	n, err := c.nc.Read(c.buf[c.w:])
	c.w += n
	return err
}
