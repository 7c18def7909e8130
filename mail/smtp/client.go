package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"time"
)

// client.go: the client's side of a dialogue, for SMTP and LMTP (RFC 2033).

// Timeouts are the longest waits of a Client, phase by phase. The zero value of each
// means the default that RFC 5321, Section 4.5.3.2 names.
type Timeouts struct {
	Greeting  time.Duration // for 220. Default 5 minutes.
	Command   time.Duration // for the reply to a command. Default 5 minutes.
	DataInit  time.Duration // for 354. Default 2 minutes.
	DataBlock time.Duration // for one block of data to be taken. Default 3 minutes.
	DataEnd   time.Duration // for the reply to the end mark. Default 10 minutes.
}

func (t Timeouts) withDefaults() Timeouts {
	setDefault(&t.Greeting, 5*time.Minute)
	setDefault(&t.Command, 5*time.Minute)
	setDefault(&t.DataInit, 2*time.Minute)
	setDefault(&t.DataBlock, 3*time.Minute)
	setDefault(&t.DataEnd, 10*time.Minute)
	return t
}

// ClientOptions are the settings of a Client. The zero value of each field means its
// default.
type ClientOptions struct {
	// LocalName is what we say in EHLO: a domain name or an address literal. Required.
	LocalName string
	// LMTP speaks LHLO and reads one reply per recipient after the data.
	LMTP bool
	// Timeouts per phase; a deadline of a call's context ends a wait earlier.
	Timeouts Timeouts
	// Log gets the dialogue at debug level, without content. Nil discards.
	Log *slog.Logger
}

// Client is one connection to a server. It is for one goroutine at a time.
//
// Its methods return a *Reply (see [ReplyOf]) as error if the server refused; the
// dialogue can then go on. Any other error means that the connection is of no use
// any more, see [Client.Broken].
type Client struct {
	opts     ClientOptions
	wire     *wire
	raw      net.Conn
	tls      *tls.Conn
	ext      map[string]string // EHLO keywords in upper case, with their parameters
	offers   extensions
	debug    bool
	broken   error
	ctx      context.Context // of the call that runs
	accepted int    // recipients of the open transaction
	Greeting *Reply // the 220 of the server
}

// errBroken is what every later call of a broken client returns, with the cause.
var errBroken = errors.New("smtp: connection is not usable any more")

// NewClient begins a dialogue on nc: it reads the greeting and says EHLO, and HELO
// if the server knows no EHLO (LHLO alone with LMTP). It takes nc over and closes it
// when it fails.
func NewClient(ctx context.Context, nc net.Conn, o ClientOptions) (*Client, error) {
	o.Timeouts = o.Timeouts.withDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{opts: o, wire: newWire(nc), raw: nc}
	c.ctx = ctx
	c.wire.closing = func() bool { return c.ctx.Err() != nil }
	c.tls, _ = nc.(*tls.Conn)
	c.debug = o.Log.Enabled(ctx, slog.LevelDebug)
	if err := c.begin(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) begin(ctx context.Context) error {
	if !isHeloName(c.opts.LocalName) {
		return fmt.Errorf("smtp: %q is not a name to say in EHLO", c.opts.LocalName)
	}
	defer c.watch(ctx)()
	c.wire.timeout = c.opts.Timeouts.Greeting
	r, err := c.readReply()
	if err != nil {
		return err
	}
	if r.Code != 220 {
		return asRefusal(r)
	}
	c.Greeting = r
	return c.hello()
}

// asRefusal makes r an error also where its code is positive but not what the
// protocol asks for here.
func asRefusal(r *Reply) error {
	if r.Positive() {
		return fmt.Errorf("smtp: unexpected reply: %s", r.Line())
	}
	return r
}

// hello says EHLO and learns what the server offers.
func (c *Client) hello() error {
	c.ext, c.offers = nil, extensions{}
	verb := "EHLO "
	if c.opts.LMTP {
		verb = "LHLO "
	}
	r, err := c.command(verb + c.opts.LocalName)
	if err != nil {
		return err
	}
	if r.Code != 250 && r.Permanent() && !c.opts.LMTP {
		// RFC 5321, Section 3.2: a server that knows no EHLO is asked with HELO.
		if r, err = c.command("HELO " + c.opts.LocalName); err != nil {
			return err
		}
		if r.Code == 250 {
			return nil
		}
	}
	if r.Code != 250 {
		return asRefusal(r)
	}
	c.learn(r.Text)
	return nil
}

// learn reads the keywords of an EHLO reply; its first line is a greeting.
func (c *Client) learn(text string) {
	c.ext = make(map[string]string)
	_, lines, _ := strings.Cut(text, "\n")
	for line := range strings.SplitSeq(lines, "\n") {
		key, params, _ := strings.Cut(strings.TrimSpace(line), " ")
		if isKeyword(key) {
			c.ext[strings.ToUpper(key)] = strings.TrimSpace(params)
		}
	}
	has := func(k string) bool { _, ok := c.ext[k]; return ok }
	c.offers = extensions{eightBit: has("8BITMIME"), utf8: has("SMTPUTF8"), size: has("SIZE")}
}

// Extension tells whether the server offered the EHLO keyword, given in upper case,
// and with what parameters.
func (c *Client) Extension(keyword string) (params string, ok bool) {
	params, ok = c.ext[keyword]
	return params, ok
}

// MaxSize returns the largest message the server says it takes, 0 if it does not say
// (RFC 1870, Section 4).
func (c *Client) MaxSize() int64 {
	n, err := strconv.ParseInt(c.ext["SIZE"], 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// TLS returns the state of TLS; ok is false on a clear connection.
func (c *Client) TLS() (state tls.ConnectionState, ok bool) {
	if c.tls == nil {
		return state, false
	}
	return c.tls.ConnectionState(), true
}

// StartTLS encrypts the connection and says EHLO again, since nothing that was said
// in clear may be believed (RFC 3207, Section 4.2). A server that refuses gives a
// *Reply; after a failed handshake the connection is broken.
func (c *Client) StartTLS(ctx context.Context, config *tls.Config) error {
	defer c.watch(ctx)()
	r, err := c.command("STARTTLS")
	if err != nil {
		return err
	}
	if r.Code != 220 {
		return asRefusal(r)
	}
	if len(c.wire.unread()) > 0 {
		return c.fail(errors.New("smtp: server sent data between STARTTLS and the handshake"))
	}
	c.raw.SetDeadline(time.Now().Add(c.opts.Timeouts.Command))
	tc := tls.Client(c.raw, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		return c.fail(fmt.Errorf("smtp: TLS handshake: %w", err))
	}
	c.raw.SetDeadline(time.Time{})
	c.tls = tc
	c.wire.nc, c.wire.armed = tc, time.Time{}
	return c.hello()
}

// Mail begins a transaction. Parameters that the server does not offer are left out,
// but for SMTPUTF8: an address that needs it is refused here with 550 5.6.7.
func (c *Client) Mail(ctx context.Context, from Sender) error {
	defer c.watch(ctx)()
	if err := c.queueMail(from); err != nil {
		return err
	}
	return c.expect(250)
}

// Rcpt offers a recipient.
func (c *Client) Rcpt(ctx context.Context, to Recipient) error {
	defer c.watch(ctx)()
	if err := c.queueRcpt(to); err != nil {
		return err
	}
	return c.rcptReply()
}

// Envelope is Mail and Rcpt for all of to, in one write if the server offers
// PIPELINING (RFC 2920). It returns one error per recipient, nil for those accepted;
// err is what Mail would return, and then the transaction has not begun.
func (c *Client) Envelope(ctx context.Context, from Sender, to []Recipient) (rcpts []error, err error) {
	defer c.watch(ctx)()
	if err := c.queueMail(from); err != nil {
		return nil, err
	}
	_, pipelining := c.ext["PIPELINING"]
	if !pipelining {
		if err := c.expect(250); err != nil {
			return nil, err
		}
	}
	rcpts = make([]error, len(to))
	queued := make([]bool, len(to))
	for i, r := range to {
		if rcpts[i] = c.queueRcpt(r); rcpts[i] != nil {
			continue
		}
		if queued[i] = pipelining; !pipelining {
			rcpts[i] = c.rcptReply()
		}
	}
	if !pipelining {
		return rcpts, c.broken
	}
	mailErr := c.expect(250)
	for i := range to {
		if queued[i] && c.broken == nil {
			rcpts[i] = c.rcptReply()
		}
	}
	if c.broken != nil {
		return nil, c.broken
	}
	if mailErr != nil {
		c.accepted = 0
		return nil, mailErr
	}
	return rcpts, nil
}

func (c *Client) queueMail(from Sender) error {
	if err := c.sendable(from.Path, from.UTF8); err != nil {
		return err
	}
	c.accepted = 0
	return c.queue(func(b []byte) []byte { return appendMail(b, from, c.offers) })
}

func (c *Client) queueRcpt(to Recipient) error {
	if err := c.sendable(to.Path, false); err != nil {
		return err
	}
	return c.queue(func(b []byte) []byte { return appendRcpt(b, to) })
}

// sendable refuses an address that this server cannot be given. RFC 6531, Section
// 3.1: what needs SMTPUTF8 must not go to a server that lacks it.
func (c *Client) sendable(p Path, utf8 bool) error {
	if (utf8 || p.NeedsUTF8()) && !c.offers.utf8 {
		return Refuse(550, Enhanced{5, 6, 7}, "the next hop takes no addresses in UTF-8")
	}
	for i := range len(p.Local) {
		if p.Local[i] < ' ' || p.Local[i] == 0x7f {
			return Refuse(550, Enhanced{5, 1, 3}, "control character in an address")
		}
	}
	return nil
}

func (c *Client) queue(add func([]byte) []byte) error {
	if c.broken != nil {
		return fmt.Errorf("%w: %w", errBroken, c.broken)
	}
	start := len(c.wire.out)
	c.wire.out = add(c.wire.out)
	if c.debug {
		c.opts.Log.Debug("C", "line", string(bytes.TrimSpace(c.wire.out[start:])))
	}
	return nil
}

// expect reads a reply; any but want is an error.
func (c *Client) expect(want int) error {
	r, err := c.commandReply(c.opts.Timeouts.Command)
	if err != nil {
		return err
	}
	if r.Code != want {
		return asRefusal(r)
	}
	return nil
}

// rcptReply reads the reply to RCPT: 250, or 251 "will forward" (RFC 5321, Section
// 3.4).
func (c *Client) rcptReply() error {
	r, err := c.commandReply(c.opts.Timeouts.Command)
	if err != nil {
		return err
	}
	if r.Code/100 != 2 {
		return asRefusal(r)
	}
	c.accepted++
	return nil
}

// Data sends content and returns the server's replies: one with SMTP, one per
// accepted recipient, in their order, with LMTP. The transaction is over then. A
// DATA that was refused gives a *Reply. Any other error leaves it unknown whether
// the server has the message.
func (c *Client) Data(ctx context.Context, content io.WriterTo) ([]*Reply, error) {
	defer c.watch(ctx)()
	if err := c.queue(func(b []byte) []byte { return append(b, "DATA\r\n"...) }); err != nil {
		return nil, err
	}
	r, err := c.commandReply(c.opts.Timeouts.DataInit)
	if err != nil {
		return nil, err
	}
	if r.Code != 354 {
		return nil, asRefusal(r)
	}
	c.wire.timeout = c.opts.Timeouts.DataBlock
	data := NewDataWriter(blockWriter{c.wire})
	if _, err := content.WriteTo(data); err != nil {
		// The end mark is not sent: a message cut short must not look like a whole one.
		return nil, c.fail(fmt.Errorf("smtp: sending data: %w", err))
	}
	if err := data.Close(); err != nil {
		return nil, c.fail(fmt.Errorf("smtp: sending data: %w", err))
	}
	return c.dataReplies()
}

func (c *Client) dataReplies() ([]*Reply, error) {
	n := 1
	if c.opts.LMTP {
		n = c.accepted
	}
	c.accepted = 0
	replies := make([]*Reply, 0, n)
	for range n {
		r, err := c.commandReply(c.opts.Timeouts.DataEnd)
		if err != nil {
			return nil, err
		}
		replies = append(replies, r)
	}
	return replies, nil
}

// Reset gives the transaction up (RSET).
func (c *Client) Reset(ctx context.Context) error {
	defer c.watch(ctx)()
	r, err := c.command("RSET")
	if err != nil {
		return err
	}
	c.accepted = 0
	if r.Code != 250 {
		return c.fail(asRefusal(r))
	}
	return nil
}

// Noop asks whether the server is still there.
func (c *Client) Noop(ctx context.Context) error {
	defer c.watch(ctx)()
	r, err := c.command("NOOP")
	if err != nil {
		return err
	}
	if r.Code/100 != 2 {
		return asRefusal(r)
	}
	return nil
}

// Quit says QUIT, waits for the answer and closes.
func (c *Client) Quit(ctx context.Context) error {
	stop := c.watch(ctx)
	_, err := c.command("QUIT")
	stop()
	return errors.Join(err, c.Close())
}

// Close closes the connection without a word. It may be called twice.
func (c *Client) Close() error {
	if c.broken == nil {
		c.broken = net.ErrClosed
	}
	c.wire.release()
	return c.raw.Close()
}

// Broken tells whether the connection is of no use any more.
func (c *Client) Broken() bool { return c.broken != nil }

// command sends line and reads the reply.
func (c *Client) command(line string) (*Reply, error) {
	if err := c.queue(func(b []byte) []byte { return append(append(b, line...), "\r\n"...) }); err != nil {
		return nil, err
	}
	return c.commandReply(c.opts.Timeouts.Command)
}

func (c *Client) commandReply(timeout time.Duration) (*Reply, error) {
	if c.broken != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, c.broken)
	}
	c.wire.timeout = timeout
	r, err := c.readReply()
	if err != nil {
		return nil, err
	}
	if r.Code == 421 {
		// RFC 5321, Section 3.8: the server closes behind it.
		c.fail(r)
	}
	return r, nil
}

// watch makes the end of ctx end the waits of a call; the returned function ends the
// watching. A context without end costs nothing.
func (c *Client) watch(ctx context.Context) (stop func()) {
	deadline, _ := ctx.Deadline()
	c.wire.until, c.ctx = deadline, ctx
	if ctx.Done() == nil {
		return func() {}
	}
	unwatch := context.AfterFunc(ctx, func() { c.raw.SetDeadline(time.Unix(1, 0)) })
	return func() {
		c.wire.until = time.Time{}
		if !unwatch() {
			c.fail(context.Cause(ctx))
		}
	}
}

// fail marks the connection as broken and returns err.
func (c *Client) fail(err error) error {
	if c.broken == nil {
		c.broken = err
	}
	return err
}

// Limits of a reply. RFC 5321, Section 4.5.3.1.5 has 512 octets a line; real servers
// exceed it.
const (
	maxReplyLine  = 4096
	maxReplyInput = 128 // lines
)

// readReply reads one reply, however many lines it has.
func (c *Client) readReply() (*Reply, error) {
	reply := &Reply{}
	var text []byte
	for n := range maxReplyInput {
		line, err := c.wire.readLine(maxReplyLine)
		if err != nil {
			return nil, c.fail(fmt.Errorf("smtp: reading the reply: %w", err))
		}
		if c.debug {
			c.opts.Log.Debug("S", "line", string(line))
		}
		code, last, rest, ok := splitReplyLine(line)
		if !ok || n > 0 && code != reply.Code {
			return nil, c.fail(fmt.Errorf("smtp: malformed reply line %q", clip(string(line), 80)))
		}
		reply.Code = code
		enh, words := parseEnhanced(code, rest)
		if enh != (Enhanced{}) {
			reply.Enh = enh
		}
		if n > 0 {
			text = append(text, '\n')
		}
		text = append(text, words...)
		if last {
			reply.Text = string(text)
			return reply, nil
		}
	}
	return nil, c.fail(errors.New("smtp: reply has too many lines"))
}

// splitReplyLine takes "250-text", "250 text" and "250" apart. RFC 5321, Section 4.2.
func splitReplyLine(line []byte) (code int, last bool, text string, ok bool) {
	if len(line) < 3 {
		return 0, false, "", false
	}
	code, ok = smallNumber(string(line[:3]))
	if !ok || code < 200 || code > 599 {
		return 0, false, "", false
	}
	if len(line) == 3 {
		return code, true, "", true
	}
	if line[3] != ' ' && line[3] != '-' {
		return 0, false, "", false
	}
	return code, line[3] == ' ', string(line[4:]), true
}

// blockWriter collects output in the wire's buffer and writes it in large blocks.
type blockWriter struct{ w *wire }

func (b blockWriter) Write(p []byte) (int, error) {
	if len(b.w.out)+len(p) > maxOutput {
		if err := b.w.flush(); err != nil {
			return 0, err
		}
		if len(p) > maxOutput/2 {
			if err := b.w.writeAll(p); err != nil {
				return 0, err
			}
			return len(p), nil
		}
	}
	b.w.out = append(b.w.out, p...)
	return len(p), nil
}
