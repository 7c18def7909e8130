package smtp

import (
	"errors"
	"fmt"
	"io"
)

// transfer.go: the message itself, by DATA or BDAT, and the answer to it.

func (c *conn) data(args string) error {
	switch {
	case c.notYet() != nil:
		return c.refuse(c.notYet())
	case args != "":
		return c.offence(syntaxError("DATA has no parameters"))
	case !c.inMail:
		return c.offence(badSequence("say MAIL first"))
	case c.sender.Body == BodyBinary:
		// RFC 3030, Section 3.
		return c.offence(badSequence("BODY=BINARYMIME goes with BDAT alone"))
	}
	if err := c.noRcpts(); err != nil {
		return c.refuse(err)
	}
	if err := c.sess.Data(c.ctx); err != nil {
		return c.refuse(err)
	}
	c.wire.out = append(c.wire.out, "354 end with <CRLF>.<CRLF>\r\n"...)
	return c.message(newDataReader(c.wire, c.srv.opts.MaxMessage, c.srv.opts.LineEndings))
}

// noRcpts is the refusal of a message that nobody is to get, or nil.
func (c *conn) noRcpts() error {
	switch {
	case c.rcpts > 0:
		return nil
	case !c.asked:
		c.bad++
		return badSequence("say RCPT first")
	}
	// RFC 5321, Section 3.3. It is no offence: a client that pipelines says DATA before it
	// knows (RFC 2920, Section 3.1).
	return errNoRcpts
}

var errNoRcpts = Refuse(554, Enhanced{5, 5, 1}, "no valid recipients")

// bdat answers the first BDAT of a message; those that follow are asked for by the reader.
// The chunk is read away before it is refused, or its octets would be taken for commands
// (RFC 3030, Section 2).
func (c *conn) bdat(args string) error {
	size, last, err := parseChunk(args)
	if err != nil {
		return c.last(ReplyOf(err)) // nobody knows where the next command begins
	}
	if err := c.refuseChunk(); err != nil {
		return c.skipChunk(size, err)
	}
	if err := c.sess.Data(c.ctx); err != nil {
		c.skips = true
		return c.skipChunk(size, err)
	}
	body := newDataReader(c.wire, c.srv.opts.MaxMessage, c.srv.opts.LineEndings)
	k := &chunks{left: size, last: last, binary: c.sender.Body == BodyBinary}
	k.next = func() error { return c.nextChunk(k) }
	body.chunks = k
	return c.message(body)
}

// refuseChunk tells why a chunk cannot be the first of a message here, or returns nil.
func (c *conn) refuseChunk() error {
	switch {
	case !c.offers().chunking:
		c.bad++
		return errUnimplemented
	case c.notYet() != nil:
		return c.notYet()
	case c.skips:
		return errSkips
	case !c.inMail:
		c.bad++
		return badSequence("say MAIL first")
	}
	return c.noRcpts()
}

var errSkips = badSequence("a chunk before this one was refused, say RSET")

// skipChunk reads a chunk away and refuses it. One that is larger than any message ends the
// connection.
func (c *conn) skipChunk(size int64, refusal error) error {
	r := ReplyOf(refusal).asError()
	if size > c.srv.opts.MaxMessage {
		return c.last(r)
	}
	c.wire.rate.start(c.srv.opts.MinRate)
	defer c.wire.rate.stop()
	body := newDataReader(c.wire, 0, c.srv.opts.LineEndings)
	body.chunks = &chunks{left: size, last: true, binary: true}
	if err := body.drain(size); err != nil {
		return c.brokenData(err)
	}
	if refusal == errSkips {
		c.reply(r) // it was sent in one go with what was refused, and counts once
		return c.overflow()
	}
	if c.bad >= c.srv.opts.MaxBadCommands {
		return c.last(tooManyBad(r))
	}
	return c.refuse(r)
}

// smallChunk is the size below which a chunk counts among the commands that are limited.
const smallChunk = 1 << 10

// nextChunk answers for the chunk that was read, and waits for the next one. Its errors have
// not been answered yet.
func (c *conn) nextChunk(k *chunks) error {
	if err := c.say(250, Enhanced{2, 0, 0}, "chunk received"); err != nil {
		return err
	}
	for {
		line, err := c.wire.readLine(c.srv.opts.MaxLine)
		switch {
		case errors.Is(err, errLineTooLong), errors.Is(err, errLineEnd):
			return Refuse(500, Enhanced{5, 5, 2}, "this is no command").Because(err)
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF // the connection's end is not the message's
		case err != nil:
			return err
		}
		cmd := parseCommand(line)
		if c.debug {
			c.logCommand(cmd, line)
		}
		switch cmd.verb {
		case "BDAT":
			if k.left, k.last, err = parseChunk(cmd.args); err != nil {
				return err
			}
			if k.left < smallChunk && !k.last {
				c.count++
			}
		case "RSET", "QUIT":
			k.left, k.givenUp = 0, cmd.verb
			return errGivenUp
		case "NOOP":
			c.count++
			c.reply(&Reply{Code: 250, Enh: Enhanced{2, 0, 0}, Text: "OK"})
		default:
			c.bad++
			c.reply(badSequence("a message is under way, go on with BDAT or give it up with RSET"))
		}
		switch {
		case c.count > c.srv.opts.MaxCommands:
			return Refuse(421, Enhanced{4, 7, 0}, "too many commands without a message")
		case c.bad >= c.srv.opts.MaxBadCommands:
			return tooManyBad(nil)
		case cmd.verb == "BDAT":
			return nil
		}
	}
}

// message gives the content to the session and answers.
func (c *conn) message(body *DataReader) error {
	c.wire.rate.start(c.srv.opts.MinRate)
	defer c.wire.rate.stop()
	c.inData = true
	defer func() { c.inData = false }()

	replies, err := c.sess.Message(c.ctx, body)
	if rest := c.finish(body, err != nil); rest != nil {
		return c.brokenData(rest)
	}
	answered := c.answer(body, replies, err)
	c.skips = body.chunks != nil && !body.chunks.last
	c.endMail() // only now: the reply to the message, too, may be in UTF-8
	return answered
}

// finish reads what the session left of the message; of one that it refused, no more than
// the chunk at hand.
func (c *conn) finish(body *DataReader, refused bool) error {
	defer body.end()
	if body.err == io.EOF {
		return nil
	}
	if body.chunks != nil && refused {
		body.chunks.next = nil
	}
	err := body.drain(c.srv.opts.MaxMessage + max(c.srv.opts.MaxMessage, 1<<20))
	if body.chunks != nil && errors.Is(err, errGivenUp) {
		return &givenUp{body.chunks.givenUp}
	}
	return err
}

// givenUp is the end of a message that the client gave up, by this command.
type givenUp struct{ verb string }

func (g *givenUp) Error() string { return "smtp: client gave the message up with " + g.verb }

// brokenData ends a dialogue whose framing is lost or that takes no end. A message that was
// given up in good order only ends its transaction.
func (c *conn) brokenData(err error) error {
	if g, ok := err.(*givenUp); ok {
		c.endMail()
		return c.dispatch(command{verb: g.verb})
	}
	if r, ok := errors.AsType[*Reply](err); ok {
		return c.last(r)
	}
	return c.lost(err)
}

// answer is the reply to a message that was read to its end, or to a chunk with which it was
// refused. One that was too large is refused even if the session did not notice.
func (c *conn) answer(body *DataReader, replies []*Reply, err error) error {
	if body.oversized {
		err = errTooLarge
	}
	n := 1
	if c.srv.opts.LMTP && (body.chunks == nil || body.chunks.last) {
		n = c.rcpts
	}
	switch {
	case err != nil:
		replies = []*Reply{ReplyOf(err).asError()}
	case len(replies) == 0:
		replies = accepted
	case len(replies) > 1 && len(replies) != n:
		err := fmt.Errorf("smtp: session gave %d replies for %d recipients", len(replies), c.rcpts)
		c.log.Error("message is deferred", "conn", c.id, "err", err)
		replies = []*Reply{ReplyOf(err)}
	}
	if n > 1 {
		return c.answerEach(replies, n)
	}
	return c.answerOne(replies[0])
}

// answerEach gives n recipients their answers. The client counts on all of them (RFC 2033,
// Section 4.2), so none is held back, and what ends the connection does so behind the last.
// All together are one refusal, or none if somebody has the message.
func (c *conn) answerEach(replies []*Reply, n int) error {
	var end *Reply
	taken := false
	for i := range n {
		r := replies[min(i, len(replies)-1)]
		switch {
		case r.Code/100 == 2:
			taken = true
		case r.Code == 421:
			r = &Reply{Code: 451, Enh: r.Enh, Text: r.Text, Cause: r.Cause}
		default:
			if r = r.asError(); r.Code == 521 || r.Hangup {
				end = r
			}
		}
		c.reply(r)
		if err := c.overflow(); err != nil {
			return err
		}
	}
	switch {
	case end != nil:
		return end
	case taken:
		c.count, c.errors = 0, 0
	default:
		c.errors++ // the next refusal looks whether they are too many
	}
	return nil
}

// accepted is the answer of a session that says nothing.
var accepted = []*Reply{{Code: 250, Enh: Enhanced{2, 6, 0}, Text: "message accepted"}}

func (c *conn) answerOne(r *Reply) error {
	if r.Code/100 != 2 {
		return c.refuse(r)
	}
	c.count, c.errors, c.later = 0, 0, 0
	c.reply(r)
	return c.overflow()
}
