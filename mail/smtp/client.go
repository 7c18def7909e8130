package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// client.go: the client's side of a dialogue, for SMTP and LMTP (RFC 2033). Its further
// files: client_dial.go connects, client_send.go sends a message in one call,
// client_bdat.go sends messages in chunks, client_auth.go logs in, client_forwarded.go tells
// of the client that we speak for, and client_error.go says what went wrong.

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
	// NoChunking leaves CHUNKING and BINARYMIME unused where they are offered.
	NoChunking bool
	// ClearAuth lets Auth send secrets over a connection without TLS, as within one machine.
	ClearAuth bool
	// Timeouts per phase; a deadline of a call's context ends a wait earlier.
	Timeouts Timeouts
	// Log gets the dialogue at debug level, without content and without secrets. Nil discards.
	Log *slog.Logger
	// LogContent has Log get the content of messages, too, to find out what of it a server does
	// not like. It is for tests and for people who read their own mail.
	LogContent bool
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
	phase    Phase
	broken   error
	watched  watch
	last     *Reply // that came
	accepted int    // recipients of the open transaction
	utf8     bool   // MAIL of the open transaction said SMTPUTF8
	binary   bool   // MAIL of the open transaction said BINARYMIME
	unclear  bool   // the server may have a transaction open: RSET comes before the next
	secret   bool   // what is read and written now is not for the log
	loggedIn bool
	noHelo   bool   // a server that knows no EHLO is of no use
	Greeting *Reply // the 220 of the server
}

// errBroken is what every later call of a broken client returns, with the cause.
var errBroken = errors.New("smtp: connection is not usable any more")

// NewClient begins a dialogue on nc: it reads the greeting and says EHLO, and HELO
// if the server knows no EHLO (LHLO alone with LMTP). It takes nc over and closes it
// when it fails.
func NewClient(ctx context.Context, nc net.Conn, o ClientOptions) (*Client, error) {
	c := newClient(ctx, nc, o)
	if err := c.begin(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func newClient(ctx context.Context, nc net.Conn, o ClientOptions) *Client {
	o.Timeouts = o.Timeouts.withDefaults()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{opts: o, wire: newWire(nc), raw: nc}
	if tc, ok := nc.(*tls.Conn); ok {
		c.tls, c.raw = tc, tc.NetConn()
	}
	c.debug = o.Log.Enabled(ctx, slog.LevelDebug)
	return c
}

func (c *Client) begin(ctx context.Context) error {
	c.phase = PhaseGreeting
	if !isHeloName(c.opts.LocalName) {
		return fmt.Errorf("smtp: %q is not a name to say in EHLO", c.opts.LocalName)
	}
	if err := c.enter(ctx); err != nil {
		return err
	}
	c.wire.timeout = c.opts.Timeouts.Greeting
	r, err := c.readReply()
	if err != nil {
		return err
	}
	if r.Code != 220 {
		return c.refusal(r)
	}
	c.Greeting = r
	return c.helloAs(c.opts.LocalName)
}

// helloAs says EHLO and learns what the server offers.
func (c *Client) helloAs(name string) error {
	c.phase, c.ext, c.offers = PhaseHello, nil, extensions{}
	verb := "EHLO "
	if c.opts.LMTP {
		verb = "LHLO "
	}
	r, err := c.command(verb + name)
	if err != nil {
		return err
	}
	if r.Code != 250 && r.Permanent() && !c.opts.LMTP && !c.noHelo {
		// RFC 5321, Section 3.2: a server that knows no EHLO is asked with HELO.
		if r, err = c.command("HELO " + name); err != nil {
			return err
		}
		if r.Code == 250 {
			return nil
		}
	}
	if r.Code != 250 {
		return c.refusal(r)
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
	c.offers = extensions{eightBit: has("8BITMIME"), utf8: has("SMTPUTF8"), size: has("SIZE"), dsn: has("DSN"),
		chunking: has("CHUNKING") && !c.opts.NoChunking, requireTLS: has("REQUIRETLS") && c.tls != nil}
	c.offers.binary = c.offers.chunking && has("BINARYMIME")
	c.offers.learnTiming(c.ext)
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

// LoggedIn tells whether Auth has succeeded on this connection.
func (c *Client) LoggedIn() bool { return c.loggedIn }

// Last returns the last reply of the server, nil if there was none yet. After a failure it is
// what the server said before it.
func (c *Client) Last() *Reply { return c.last }

// Extensions returns the EHLO keywords that the server offered, in upper case and in
// alphabetical order.
func (c *Client) Extensions() []string { return slices.Sorted(maps.Keys(c.ext)) }

// StartTLS encrypts the connection and says EHLO again, since nothing that was said
// in clear may be believed (RFC 3207, Section 4.2); what came in clear behind the answer to
// STARTTLS is dropped unread, or it would be taken for the server's word over TLS. A server that refuses gives a
// *Reply; after a failed handshake the connection is broken.
func (c *Client) StartTLS(ctx context.Context, config *tls.Config) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	c.phase = PhaseStartTLS
	r, err := c.command("STARTTLS")
	if err != nil {
		return err
	}
	if r.Code != 220 {
		return c.refusal(r)
	}
	c.wire.forget()
	c.raw.SetDeadline(time.Now().Add(c.opts.Timeouts.Command))
	tc := tls.Client(c.raw, config)
	if err := tc.HandshakeContext(ctx); err != nil {
		return c.handshakeFailed(err)
	}
	c.raw.SetDeadline(time.Time{})
	c.tls, c.loggedIn = tc, false
	c.wire.nc, c.wire.armed = tc, time.Time{}
	return c.helloAs(c.opts.LocalName)
}

func (c *Client) handshakeFailed(err error) error {
	kind := c.kindOf(err)
	if kind == KindConnection {
		kind = KindTLS
	}
	return c.failAs(kind, fmt.Errorf("smtp: TLS handshake: %w", err))
}

// Mail begins a transaction. Parameters that the server does not offer are left out, but
// for those without which the message must not go there. These are refused here: 550 5.6.7
// for an address that needs SMTPUTF8, 554 5.6.3 for BINARYMIME (RFC 3030, Section 3),
// 550 5.7.30 for REQUIRETLS, also where the connection has no TLS, unless the sender is null
// (RFC 8689, Section 4.2.1),
// and, for a message that must be returned in time, 550 5.3.3 if the server does not know
// DELIVERBY, 550 5.4.7 if there is too little time (RFC 2852, Section 4.1).
// Who relays for a server that lacks DSN owes the sender the report that this server will
// not send (RFC 3461, Section 5.2.2).
func (c *Client) Mail(ctx context.Context, from Sender) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	if err := c.queueMail(from); err != nil {
		return err
	}
	return c.expect(250)
}

// Rcpt offers a recipient.
func (c *Client) Rcpt(ctx context.Context, to Recipient) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	if err := c.queueRcpt(to); err != nil {
		return err
	}
	return c.rcptReply()
}

// pipelined is how many recipients are sent before their replies are read. It keeps
// either side from waiting for the other to take what it writes: so many replies fit
// the buffers of any connection (RFC 2920, Section 3.1).
const pipelined = 100

// Envelope is Mail and Rcpt for all of to, in few writes if the server offers
// PIPELINING (RFC 2920). It returns one error per recipient, nil for those accepted;
// err is what Mail would return, and then the transaction has not begun. A recipient
// that needs SMTPUTF8 makes MAIL ask for it.
func (c *Client) Envelope(ctx context.Context, from Sender, to []Recipient) (rcpts []error, err error) {
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	rcpts, _, err = c.envelope(from, to, false)
	return rcpts, err
}

// envelope is Envelope that says DATA, too, if data is set and the server offers PIPELINING,
// together with the last recipients; ready is the reply to it then, else nil.
//
// DATA is said before anybody knows whether there is a recipient (RFC 2920, Section 3.1). So
// ready may be 354 where MAIL was refused, or every recipient: see Client.noContent.
func (c *Client) envelope(from Sender, to []Recipient, data bool) (rcpts []error, ready *Reply, err error) {
	for _, r := range to {
		from.UTF8 = from.UTF8 || c.offers.utf8 && r.Path.NeedsUTF8()
	}
	if err := c.queueMail(from); err != nil {
		return nil, nil, err
	}
	batch := pipelined
	if _, ok := c.ext["PIPELINING"]; !ok {
		batch, data = 1, false
	}
	mailSaid := false
	if batch == 1 || len(to) == 0 {
		mailSaid = true
		if err := c.expect(250); err != nil {
			return nil, nil, err
		}
	}
	rcpts = make([]error, len(to))
	for start := 0; start < len(to); start += batch {
		end := min(start+batch, len(to))
		sent := c.accepted
		for i := start; i < end; i++ {
			if rcpts[i] = c.queueRcpt(to[i]); rcpts[i] == nil {
				sent++
			}
		}
		dataSaid := data && end == len(to) && sent > 0
		if dataSaid {
			c.queueData()
		}
		if !mailSaid {
			mailSaid = true
			err = c.expect(250)
		}
		for i := start; i < end && c.broken == nil; i++ {
			if rcpts[i] == nil { // it was sent
				rcpts[i] = c.rcptReply()
			}
		}
		if dataSaid && c.broken == nil {
			ready, _ = c.dataReply()
		}
		if c.broken != nil {
			return nil, nil, c.broken
		}
		if err != nil {
			c.accepted = 0
			return nil, ready, err
		}
	}
	return rcpts, ready, nil
}

func (c *Client) queueMail(from Sender) error {
	c.phase = PhaseMail
	from.UTF8 = from.UTF8 || from.Path.NeedsUTF8()
	if err := c.suits(from); err != nil {
		return err
	}
	if err := c.clear(); err != nil {
		return err
	}
	c.accepted, c.utf8, c.binary = 0, from.UTF8, from.Body == BodyBinary
	return c.queue(func(b []byte) []byte { return appendMail(b, from, c.offers) })
}

// suits refuses a message that must not go to this server.
func (c *Client) suits(from Sender) error {
	if err := c.sendable(from.Path, from.UTF8 || from.Path.NeedsUTF8()); err != nil {
		return err
	}
	switch {
	case from.Body == BodyBinary && !c.offers.binary:
		return Refuse(554, Enhanced{5, 6, 3}, "the next hop takes no binary content")
	case from.RequireTLS && !c.offers.requireTLS && !from.Path.IsNull():
		// RFC 8689, Sections 4.2.1 and 5: a report goes on without.
		return Refuse(550, Enhanced{5, 7, 30}, "the next hop does not promise to use TLS alone")
	}
	return refuseBy(from.By, c.offers)
}

func (c *Client) queueRcpt(to Recipient) error {
	if err := c.addressable(to); err != nil {
		return err
	}
	if to.Path.NeedsUTF8() && !c.utf8 {
		return needsUTF8(553)
	}
	return c.queue(func(b []byte) []byte { return appendRcpt(b, to, c.offers) })
}

// addressable refuses a recipient that this server cannot be given.
func (c *Client) addressable(to Recipient) error {
	if to.Path.IsNull() {
		return Refuse(550, Enhanced{5, 1, 3}, "a recipient needs an address")
	}
	return c.sendable(to.Path, to.Path.NeedsUTF8())
}

// sendable refuses an address that this server cannot be given. RFC 6531, Section
// 3.1: what needs SMTPUTF8 must not go to a server that lacks it.
func (c *Client) sendable(p Path, utf8 bool) error {
	if err := p.check(); err != nil {
		return Refuse(550, Enhanced{5, 1, 3}, "this address cannot be sent").Because(err)
	}
	if utf8 && !c.offers.utf8 {
		return Refuse(550, Enhanced{5, 6, 7}, "the next hop takes no addresses in UTF-8")
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
		c.logLine("C", bytes.TrimSpace(c.wire.out[start:]))
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
		return c.refusal(r)
	}
	return nil
}

// rcptReply reads the reply to RCPT: 250, or 251 "will forward" (RFC 5321, Section
// 3.4).
func (c *Client) rcptReply() error {
	c.phase = PhaseRcpt
	r, err := c.commandReply(c.opts.Timeouts.Command)
	if err != nil {
		return err
	}
	if r.Code/100 != 2 {
		return c.refusal(r)
	}
	c.accepted++
	return nil
}

// Data sends content and returns the server's replies: one with SMTP, one per
// accepted recipient, in their order, with LMTP. The transaction is over then. A
// DATA or a chunk that was refused gives a *Reply. Any other error leaves it unknown
// whether the server has the message.
//
// If the server offers CHUNKING the content goes in chunks (RFC 3030), which saves the
// wait for 354, and with BINARYMIME octet for octet. Other content leaves with every line
// ended by CRLF, whatever it has.
func (c *Client) Data(ctx context.Context, content io.WriterTo) ([]*Reply, error) {
	if err := c.enter(ctx); err != nil {
		return nil, err
	}
	return c.data(content)
}

// data is Data within a call.
func (c *Client) data(content io.WriterTo) ([]*Reply, error) {
	c.phase = PhaseData
	if c.Unasked() {
		return nil, c.failAs(KindProtocol, errUnasked)
	}
	if c.offers.chunking {
		return c.sendChunks(c.shown(content))
	}
	if err := c.queueData(); err != nil {
		return nil, err
	}
	r, err := c.dataReply()
	if err != nil {
		return nil, err
	}
	return c.afterData(r, content)
}

func (c *Client) queueData() error {
	return c.queue(func(b []byte) []byte { return append(b, "DATA\r\n"...) })
}

func (c *Client) dataReply() (*Reply, error) {
	c.phase = PhaseData
	return c.commandReply(c.opts.Timeouts.DataInit)
}

// afterData sends the content if r, the reply to DATA, asks for it.
func (c *Client) afterData(r *Reply, content io.WriterTo) ([]*Reply, error) {
	if r.Code != 354 {
		return nil, c.refusal(r)
	}
	if c.Unasked() {
		// An answer to the message before there was one must not be taken for it.
		return nil, c.failAs(KindProtocol, errUnasked)
	}
	if err := c.sendContent(c.shown(content)); err != nil {
		return nil, err
	}
	return c.dataReplies()
}

var errUnasked = errors.New("smtp: server sent a reply that no command asked for")

// sendContent sends content and the end mark, but for what is still collected. When
// it fails the end mark is not sent: a message cut short must not look like a whole
// one.
func (c *Client) sendContent(content io.WriterTo) error {
	c.phase = PhaseContent
	c.wire.timeout = c.opts.Timeouts.DataBlock
	c.wire.growOut()
	block := &blockWriter{w: c.wire}
	data := NewDataWriter(block)
	_, err := content.WriteTo(data)
	if err == nil {
		err = data.Close()
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("smtp: sending data: %w", err)
	switch {
	case c.wire.ended() != nil:
		return c.fail(err)
	case block.err != nil:
		return c.cutOff(err, 0)
	}
	return c.failAs(KindContent, err)
}

// lastWord is how long a server that stopped taking data is listened to.
const lastWord = 5 * time.Second

// cutOff handles a server that does not take the rest of the data: often it has said
// why, and has closed (RFC 5321, Section 3.8). err is what writing gave. owed is the number
// of replies that may come before.
func (c *Client) cutOff(err error, owed int) error {
	c.wire.out = c.wire.out[:0]
	c.wire.timeout = min(c.wire.timeout, lastWord)
	last := err
	for range owed + 1 {
		r, readErr := c.readReply()
		if readErr != nil {
			break
		}
		if !r.Positive() {
			last = r
			break
		}
	}
	c.broken = nil
	return c.fail(last)
}

// dataReplies reads the replies to the end mark. If some recipients of LMTP have
// theirs when the connection breaks, those are returned, and for the others that it
// broke: who has the message must not get it again.
func (c *Client) dataReplies() ([]*Reply, error) {
	n := 1
	if c.opts.LMTP {
		n = c.accepted
	}
	c.accepted = 0
	replies := make([]*Reply, 0, n)
	c.phase = PhaseEnd
	for len(replies) < n {
		r, err := c.commandReply(c.opts.Timeouts.DataEnd)
		if err == nil && r.Code/100 == 3 {
			err = c.refusal(r)
		}
		if err != nil && len(replies) == 0 {
			return nil, err
		}
		if err != nil {
			r = ReplyOf(err)
		}
		replies = append(replies, r)
	}
	c.wire.shrinkOut()
	return replies, nil
}

// Reset gives the transaction up (RSET).
func (c *Client) Reset(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	c.unclear = true
	return c.clear()
}

// clear says RSET if that is needed.
func (c *Client) clear() error {
	if !c.unclear {
		return nil
	}
	phase := c.phase
	c.phase = "RSET"
	r, err := c.command("RSET")
	if err != nil {
		return err
	}
	c.accepted, c.unclear = 0, false
	if r.Code != 250 {
		return c.fail(c.refusal(r))
	}
	c.phase = phase
	return nil
}

// Noop asks whether the server is still there.
func (c *Client) Noop(ctx context.Context) error {
	if err := c.enter(ctx); err != nil {
		return err
	}
	c.phase = "NOOP"
	r, err := c.command("NOOP")
	if err != nil {
		return err
	}
	if r.Code/100 != 2 {
		return c.refusal(r)
	}
	return nil
}

// Quit says QUIT, waits for the answer and closes.
func (c *Client) Quit(ctx context.Context) error {
	err := c.enter(ctx)
	if err == nil {
		c.phase = "QUIT"
		_, err = c.command("QUIT")
	}
	return errors.Join(err, c.Close())
}

// Close closes the connection without a word, and without the close_notify of TLS: the
// dialogue has marks of its own where a message and where all ends, and a peer that
// does not read would make us wait. It may be called twice.
func (c *Client) Close() error {
	c.watched.end()
	if errors.Is(c.broken, net.ErrClosed) {
		return nil
	}
	c.broken = net.ErrClosed
	c.wire.release()
	return c.raw.Close()
}

// Broken tells whether the connection is of no use any more.
func (c *Client) Broken() bool { return c.broken != nil }

// Unasked tells whether the server has sent something that no command asked for. Whoever
// keeps a connection for later must not use it then: every reply would be taken for the
// answer to the command before.
func (c *Client) Unasked() bool { return len(c.wire.unread()) > 0 }

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
	// Before reading, even if there is something to read: a server that answers what it
	// was not asked must not make us keep our commands to ourselves.
	if err := c.wire.flush(); err != nil {
		return nil, c.fail(fmt.Errorf("smtp: sending commands: %w", err))
	}
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

// enter begins a call: until the next one the end of ctx ends every wait.
func (c *Client) enter(ctx context.Context) error {
	if c.broken != nil {
		return fmt.Errorf("%w: %w", errBroken, c.broken)
	}
	if ctx.Err() != nil {
		return c.fail(fmt.Errorf("smtp: %w", context.Cause(ctx)))
	}
	c.wire.ctx = ctx
	c.watched.begin(ctx, c.raw)
	return nil
}

// watch interrupts a connection when a context ends. It outlives the call that began
// it, since the calls of one transaction come with one context, and to watch it costs
// more than most of them.
type watch struct {
	done  <-chan struct{} // of the context that is watched
	stop  func() bool     // nil if none is
	fired chan struct{}   // closed when the connection has been interrupted
}

// begin watches ctx, and no other context any more.
func (w *watch) begin(ctx context.Context, nc net.Conn) {
	if ctx.Done() == w.done {
		return
	}
	w.end()
	if w.done = ctx.Done(); w.done == nil {
		return
	}
	fired := make(chan struct{})
	w.fired = fired
	w.stop = context.AfterFunc(ctx, func() {
		nc.SetDeadline(time.Unix(1, 0))
		close(fired)
	})
}

// end stops watching. An interrupt that is on its way has come when it returns: it
// must not hit a write of the next call, which may have another context. A read sets
// its deadline anew.
func (w *watch) end() {
	if w.stop != nil && !w.stop() {
		<-w.fired
	}
	w.done, w.stop = nil, nil
}

// Limits of a reply. RFC 5321, Section 4.5.3.1.5 has 512 octets a line; real servers
// exceed it.
const (
	maxReplyLine  = 4096
	maxReplyInput = 128 // lines
)

// readReply reads one reply, however many lines it has. All of it has to come within the
// wire's timeout: who sends an octet now and then must not hold us for ever.
func (c *Client) readReply() (*Reply, error) {
	reply := &Reply{}
	c.wire.until = time.Now().Add(c.wire.timeout)
	var text []byte // of more than one line
	for n := range maxReplyInput {
		line, err := c.wire.readLine(maxReplyLine)
		if err != nil {
			return nil, c.fail(fmt.Errorf("smtp: reading the reply: %w", err))
		}
		if c.debug {
			c.logLine("S", line)
		}
		code, last, rest, ok := splitReplyLine(line)
		if !ok || n > 0 && code != reply.Code {
			return nil, c.failAs(KindProtocol, fmt.Errorf("smtp: malformed reply line %q", clip(string(line), 80)))
		}
		reply.Code = code
		enh, words := parseEnhanced(code, rest)
		if enh != (Enhanced{}) {
			reply.Enh = enh
		}
		if n == 0 && last {
			reply.Text = words
			c.last = reply
			return reply, nil
		}
		if n > 0 {
			text = append(text, '\n')
		}
		text = append(text, words...)
		if last {
			reply.Text = string(text)
			c.last = reply
			return reply, nil
		}
	}
	return nil, c.failAs(KindProtocol, errors.New("smtp: reply has too many lines"))
}

// logLine writes a line of the dialogue to the log. Of a login it shows that something was
// said, and of the server's side what is no challenge.
func (c *Client) logLine(side string, line []byte) {
	text := string(line)
	switch {
	case c.secret && side == "C":
		text = "…"
	case c.secret && strings.HasPrefix(text, "334"):
		text = "334 …"
	}
	c.opts.Log.Debug(side, "line", text)
}

// shown is content that the log gets to see, if it is to.
func (c *Client) shown(content io.WriterTo) io.WriterTo {
	if !c.debug || !c.opts.LogContent {
		return content
	}
	return shownContent{content, c.opts.Log}
}

type shownContent struct {
	io.WriterTo
	log *slog.Logger
}

// maxShown is how much of one piece of content a log line shows.
const maxShown = 8 << 10

// WriteTo implements io.WriterTo.
func (s shownContent) WriteTo(w io.Writer) (int64, error) {
	return s.WriterTo.WriteTo(writerFunc(func(p []byte) (int, error) {
		s.log.Debug("C", "content", clip(string(p[:min(len(p), maxShown+1)]), maxShown), "bytes", len(p))
		return w.Write(p)
	}))
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

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
type blockWriter struct {
	w   *wire
	err error // of the connection
}

func (b *blockWriter) Write(p []byte) (int, error) {
	if len(b.w.out)+len(p) > largeBuffer {
		if b.err = b.w.flush(); b.err != nil {
			return 0, b.err
		}
		if len(p) > maxOutput {
			if b.err = b.w.writeAll(p); b.err != nil {
				return 0, b.err
			}
			return len(p), nil
		}
	}
	b.w.out = append(b.w.out, p...)
	return len(p), nil
}
