package smtp

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"syscall"
)

// client_bdat.go sends a message in chunks (RFC 3030). A chunk says its length first, and
// what is in it means nothing to the protocol: no dot is stuffed and no end mark looked
// for. A message that fits one chunk needs one write and one reply.
//
// Chunks are collected in the connection's buffer, behind some room for the command that
// is known only when the chunk is complete. Large pieces are not collected: they leave as
// they are, in a chunk together with what was collected before.

const (
	// chunkHead is room for the longest command.
	chunkHead = len("BDAT 9223372036854775807 LAST\r\n")
	// maxChunk is the largest piece that is taken as it is, but for its tail, so that there is
	// something left for the last chunk.
	maxChunk = 256 << 10
	tail     = 4 << 10
	// chunksAhead is how many chunks go without their reply with PIPELINING. So many
	// replies fit the buffers of any socket, and a server that refuses is heard before too
	// much was sent in vain.
	chunksAhead = 16
)

// errChunkRefused ends the writing of content; the reply is in the chunkWriter.
var errChunkRefused = errors.New("smtp: chunk refused")

// sendChunks is Data by BDAT.
func (c *Client) sendChunks(content io.WriterTo) ([]*Reply, error) {
	if c.accepted == 0 {
		// How many replies an LMTP server would give to that nobody can know.
		return nil, Refuse(503, Enhanced{5, 5, 1}, "no recipient was accepted")
	}
	c.phase = PhaseContent
	w := newChunkWriter(c)
	err := w.copy(content, c.binary)
	if err == nil {
		err = w.end()
	}
	switch {
	case err == nil:
		replies, err := c.dataReplies()
		for _, r := range replies {
			// RFC 3030, Section 2: what a refused chunk leaves behind is known after RSET.
			c.unclear = c.unclear || !r.Positive()
		}
		return replies, err
	case w.refused != nil:
		return nil, w.giveUp()
	case c.broken != nil:
		return nil, c.broken
	}
	err = fmt.Errorf("smtp: sending data: %w", err)
	switch {
	case c.wire.ended() != nil:
		return nil, c.fail(err)
	case w.err != nil:
		return nil, c.cutOff(err, w.owed)
	}
	// Without its LAST the message is none.
	return nil, c.failAs(KindContent, err)
}

// chunkWriter makes chunks of what is written to it.
type chunkWriter struct {
	c       *Client
	ahead   int    // chunks that may go without their reply
	owed    int    // replies to chunks that were sent
	ended   bool   // one of these was the last
	refused *Reply // to a chunk
	err     error  // of writing to the connection
	stopped error  // sticky: nothing is sent behind what failed
}

func newChunkWriter(c *Client) *chunkWriter {
	w := &chunkWriter{c: c}
	_, pipelining := c.ext["PIPELINING"]
	// A connection in memory may have no buffers: either side would wait for the other to
	// take what it writes.
	if _, socket := c.raw.(syscall.Conn); socket && pipelining {
		w.ahead = chunksAhead
	}
	c.wire.growOut()
	w.reserve()
	return w
}

// reserve begins a chunk.
func (w *chunkWriter) reserve() { w.c.wire.out = w.c.wire.out[:chunkHead] }

// copy writes the content; text gets the right line ends.
func (w *chunkWriter) copy(content io.WriterTo, binary bool) error {
	if binary {
		_, err := content.WriteTo(w)
		return err
	}
	lines := lineWriter{w: w}
	if _, err := content.WriteTo(&lines); err != nil {
		return err
	}
	return lines.close()
}

// Write implements io.Writer.
func (w *chunkWriter) Write(p []byte) (int, error) {
	if w.stopped != nil {
		return 0, w.stopped
	}
	total := len(p)
	for {
		out := w.c.wire.out
		room := cap(out) - len(out)
		if len(p) <= room {
			w.c.wire.out = append(out, p...)
			return total, nil
		}
		var n int
		var extra []byte
		if len(p) < maxOutput {
			n = wholeLineEnds(p, room)
			w.c.wire.out = append(out, p[:n]...)
		} else {
			n = wholeLineEnds(p, min(len(p)-tail, maxChunk))
			extra = p[:n]
		}
		if w.stopped = w.send(extra, false); w.stopped != nil {
			return total - len(p), w.stopped
		}
		p = p[n:]
	}
}

// wholeLineEnds returns where to cut p at n or just before it: a server that looks at each
// chunk for itself must not see half a line end.
func wholeLineEnds(p []byte, n int) int {
	if n > 0 && p[n-1] == '\r' {
		n--
	}
	return n
}

// send sends what is collected, and extra behind it, as one chunk. Behind one that is not
// the last it waits for replies, if too many are owed.
func (w *chunkWriter) send(extra []byte, last bool) error {
	c := w.c
	chunk := c.wire.out
	var buf [chunkHead]byte
	head := strconv.AppendInt(append(buf[:0], "BDAT "...), int64(len(chunk)-chunkHead+len(extra)), 10)
	if last {
		head = append(head, " LAST"...)
	}
	if c.debug {
		c.opts.Log.Debug("C", "line", string(head))
	}
	head = append(head, "\r\n"...)
	start := chunkHead - len(head)
	copy(chunk[start:], head)

	c.wire.timeout = c.opts.Timeouts.DataBlock
	c.wire.out = chunk[:0]
	if w.err = c.wire.writeAll(chunk[start:]); w.err == nil && len(extra) > 0 {
		w.err = c.wire.writeAll(extra)
	}
	if w.err != nil {
		return w.err
	}
	w.owed++
	w.ended = last
	if last {
		return nil
	}
	for w.owed > w.ahead {
		if err := w.reply(); err != nil {
			return err
		}
	}
	w.reserve()
	return nil
}

// reply reads the reply to a chunk that is not the last.
func (w *chunkWriter) reply() error {
	timeout := w.c.opts.Timeouts.DataBlock
	if w.ended {
		timeout = w.c.opts.Timeouts.DataEnd
	}
	r, err := w.c.commandReply(timeout)
	if err != nil {
		return err
	}
	w.owed--
	if r.Code/100 == 2 {
		return nil
	}
	w.refused = r
	return errChunkRefused
}

// end sends the last chunk. The replies to the others are read then, but not its own.
func (w *chunkWriter) end() error {
	if w.stopped != nil {
		return w.stopped // which the content kept to itself
	}
	if w.owed == 0 && w.c.Unasked() {
		// An answer to the message before there was one must not be taken for it.
		return w.c.failAs(KindProtocol, errUnasked)
	}
	w.c.phase = PhaseEnd
	if err := w.send(nil, true); err != nil {
		return err
	}
	for w.owed > 1 {
		if err := w.reply(); err != nil {
			return err
		}
	}
	return nil
}

// giveUp ends a message of which a chunk was refused. Its error is the refusal.
func (w *chunkWriter) giveUp() error {
	c := w.c
	c.accepted, c.unclear = 0, true
	c.wire.out = c.wire.out[:0]
	if w.ended && c.opts.LMTP {
		// It may answer the last chunk once or for each recipient.
		c.fail(w.refused)
	}
	for ; w.owed > 0 && c.broken == nil; w.owed-- {
		c.commandReply(c.opts.Timeouts.DataEnd) // to what was on its way; says nothing new
	}
	c.wire.shrinkOut()
	if w.refused.Positive() {
		return c.refusal(w.refused)
	}
	return w.refused
}

// lineWriter passes text on with CRLF for every line end. It is the DataWriter of what needs
// no dots stuffed.
type lineWriter struct {
	w      io.Writer
	mid    bool   // not at the start of a line
	cr     bool   // a CR was held back: the next byte tells what it is
	mended []byte // what mendLines returned last
}

// Write implements io.Writer.
func (l *lineWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n, err := l.step(p[:min(len(p), maxChunk)])
		p = p[n:]
		if err != nil {
			return total - len(p), err
		}
	}
	return total, nil
}

// step writes the front of p and returns how much of p that was.
func (l *lineWriter) step(p []byte) (int, error) {
	if l.cr {
		l.cr, l.mid = false, false
		_, err := l.w.Write(crlf)
		if p[0] == '\n' && err == nil {
			return 1, nil
		}
		return 0, err
	}
	if n := soundLines(p); n > 0 {
		l.mid = p[n-1] != '\n'
		return l.w.Write(p[:n])
	}
	if len(p) == 1 && p[0] == '\r' {
		l.cr = true
		return 1, nil
	}
	var n int
	l.mended, n = mendLines(l.mended[:0], p)
	l.mid = l.mended[len(l.mended)-1] != '\n'
	if _, err := l.w.Write(l.mended); err != nil {
		return 0, err
	}
	return n, nil
}

// close ends the last line, if it has no end.
func (l *lineWriter) close() error {
	if !l.cr && !l.mid {
		return nil
	}
	_, err := l.w.Write(crlf)
	return err
}

// soundLines returns the length of the longest prefix of p without a bare CR or LF, and
// without a CR at the end of p. passable stops at dots, too, and is given a block at a time:
// where there are many bad line ends it looks at its block for each.
func soundLines(p []byte) int {
	n := 0
	for n < len(p) {
		more := passable(p[n:min(len(p), n+largeBuffer)])
		if more == 0 {
			break
		}
		n += more
	}
	return n
}

// mendLines makes CRLF of the line ends in the front of in, where soundLines has found a bad
// one, and appends the result to dst; it returns how much of in that was. It stops before a
// CR that ends in.
func mendLines(dst, in []byte) (out []byte, taken int) {
	limit := min(len(in), mendPiece)
	i := 0
	for i < limit {
		n := bytes.IndexAny(in[i:limit], "\r\n")
		if n < 0 {
			return append(dst, in[i:limit]...), limit
		}
		dst = append(dst, in[i:i+n]...)
		i += n
		if in[i] == '\r' && i+1 == len(in) {
			break
		}
		if in[i] == '\r' && in[i+1] == '\n' {
			i++
		}
		dst = append(dst, crlf...)
		i++
	}
	return dst, i
}
