package smtp

import (
	"fmt"
	"io"
	"strconv"
	"strings"
)

// chunk.go: mail data that comes with BDAT (RFC 3030). The client says how long each chunk
// is, so nothing in it can be taken for the end of the message, and no dot means anything.
// The rules for line ends hold all the same: unless it is BINARYMIME, content is text, and
// may go on to a server by DATA.
//
// The reader asks for the next chunk by itself when it has used one up. So a Session reads
// the whole message in one go, and need not know how it came.

// chunks is the state of a message that comes with BDAT.
type chunks struct {
	left   int64 // octets of the chunk at hand that have not been read
	last   bool  // it is the last
	binary bool  // the content is no text
	heldCR bool  // a chunk of text ended with a CR: what it is the next octet tells
	// next answers for the chunk that was read and waits for the next one. Nil means that
	// there is to be no other: the message has been decided upon.
	next    func() error
	givenUp string // the command by which the client gave the message up
}

// errGivenUp is what a reader gets if the client, between two chunks, does something else.
var errGivenUp = fmt.Errorf("smtp: client gave the message up: %w", io.ErrUnexpectedEOF)

// stepChunk is step for content that comes with BDAT.
func (d *DataReader) stepChunk() ([]byte, error) {
	k := d.chunks
	if k.left == 0 {
		return d.endChunk()
	}
	in := d.w.unread()
	in = in[:min(int64(len(in)), k.left)]
	switch {
	case len(in) == 0:
		return nil, d.more()
	case k.binary:
		return d.takeChunk(in, len(in)), nil
	case k.heldCR:
		k.heldCR = false
		if in[0] == '\n' {
			d.takeChunk(in, 1)
			return crlf, nil
		}
		return d.bareCR()
	}
	if n := passable(in); n > 0 {
		return d.takeChunk(in, n), nil
	}
	// Here are a bare LF, a bare CR, or a CR whose next byte is unknown.
	if len(in) == 1 && in[0] == '\r' {
		if k.left > 1 {
			return nil, d.more()
		}
		k.heldCR = true
		d.takeChunk(in, 1)
		return nil, nil
	}
	if d.endings == RejectLineEndings {
		return nil, errBareLine
	}
	var n int
	d.mended, n, _ = mend(d.mended[:0], in, true, false)
	d.takeChunk(in, n)
	return d.mended, nil
}

// takeChunk takes n octets of in off the input.
func (d *DataReader) takeChunk(in []byte, n int) []byte {
	d.w.r += n
	d.chunks.left -= int64(n)
	return in[:n]
}

// bareCR is what a CR becomes that no LF follows.
func (d *DataReader) bareCR() ([]byte, error) {
	if d.endings == RejectLineEndings {
		return nil, errBareLine
	}
	return crlf, nil
}

// endChunk is called when a chunk is used up.
func (d *DataReader) endChunk() ([]byte, error) {
	k := d.chunks
	switch {
	case !k.last && k.next != nil:
		return nil, k.next()
	case k.heldCR && k.next != nil:
		k.heldCR = false
		return d.bareCR()
	}
	return nil, io.EOF
}

// parseChunk reads what follows "BDAT ". RFC 3030, Section 2.
func parseChunk(args string) (size int64, last bool, err error) {
	number, word, more := strings.Cut(args, " ")
	if more {
		word = strings.TrimLeft(word, " ")
		last = strings.EqualFold(word, "LAST")
	}
	if number == "" || len(number) > 20 || strings.Trim(number, "0123456789") != "" || more && !last {
		return 0, false, syntaxError("syntax: BDAT size [LAST]")
	}
	size, err = strconv.ParseInt(number, 10, 64)
	if err != nil {
		size = 1<<63 - 1 // larger than any limit
	}
	return size, last, nil
}
