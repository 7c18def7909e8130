// Package parts tells what a message is made of: its MIME parts, where each lies, what it
// says of itself, and its content decoded (RFC 2045 to 2049, 2183, 2231). It only looks.
// Nothing is written anew, and nothing is kept of a message but a short record for each part,
// however large it is: the body stays where it is, behind an io.ReaderAt.
//
//	multipart/mixed                 0
//	├── text/plain                  1    every part is a record in one list, in the order of
//	├── message/rfc822              2    the message; what stands in another part has its
//	│   └── multipart/alternative   3    number as Parent and one more Depth
//	│       ├── text/plain          4
//	│       └── text/html           5
//	└── application/zip             6
//
// # Hostile messages
//
// A message is taken for hostile: it is written by whoever wants that a filter sees one thing
// and the reader another. So the scanner opens what mail readers open: a delimiter line counts
// for the innermost part that has it, white space behind it is ignored, a header ends at a
// line that is no field, base64 goes on behind padding. Where readers are known to disagree
// it says so with a [Flag], and leaves the verdict to whoever asks. Numbers of parts, depth
// and sizes of headers have limits, and a flag says that one was met.
package parts

import (
	"errors"
	"io"
	"strings"

	"github.com/penstock/penstock/mail/message"
)

// Limits of what is looked at.
const (
	MaxParts    = 1000     // of a message; the rest is not listed
	MaxDepth    = 32       // of a part; one that stands deeper is not listed
	maxHeader   = 64 << 10 // octets of a part's header section that are read
	maxBoundary = 200      // octets; RFC 2046, Section 5.1.1 allows 70
	maxText     = 1 << 10  // octets of each text of a Part
	maxNames    = 8        // of a part
)

// Flag says that something about a part is not as it should be.
type Flag uint32

// The flags. Numbers are those of the filter ABI.
const (
	// Broken: a multipart without a boundary or parts, one that does not end, or that has a
	// line that is nearly a delimiter; a type that makes no sense; a line in the header section
	// that is no field, at which the content begins here and for other readers does not.
	Broken Flag = 1 << 0
	// Ambiguous: a field or parameter is there twice.
	Ambiguous Flag = 1 << 1
	// Deep: it is not opened, as its parts would stand too deep.
	Deep Flag = 1 << 2
	// Opaque: a message under a transfer encoding, which is not opened.
	Opaque Flag = 1 << 3
	// Truncated is set on the whole message: it has more parts than are listed.
	Truncated Flag = 1 << 4
	// LongHeader: only the first 64 KiB of its header section were read.
	LongHeader Flag = 1 << 5
	// UnknownEncoding: its transfer encoding is not known, so decoded it is what it is.
	UnknownEncoding Flag = 1 << 6
)

// Encoding is a transfer encoding. RFC 2045, Section 6.
type Encoding uint8

// The encodings. Identity is 7bit, 8bit, binary and every one that is not known.
const (
	Identity Encoding = iota
	QuotedPrintable
	Base64
)

// Part is one part. Texts are valid UTF-8 without control characters, and empty if they are
// not given; those that are no file names are in lower case.
type Part struct {
	// Parent is the number of the part that this one stands in; -1 for the message.
	Parent int
	// Depth is 0 for the message, and one more than the parent's for others.
	Depth int
	Flags Flag
	// Type is the media type, as in "text/plain": what the part says, or what it is by
	// default (RFC 2045, Section 5.2).
	Type string
	// Charset is the parameter of that name.
	Charset string
	// Disposition is "attachment", "inline" or another word. RFC 2183.
	Disposition string
	// Transfer is the transfer encoding as it was named.
	Transfer string
	// ID is the Content-ID as it was written, without its brackets.
	ID string
	// Names are the file names that the part has, decoded, without duplicates: that which
	// most readers show first. A part may have several that differ.
	Names []string
	// Encoding is how the content is encoded.
	Encoding Encoding
	// HeaderOff is where the part's header section begins in the message's body; -1 for the
	// message, whose header is not in it. It ends where the content begins.
	HeaderOff int64
	// Off and Size are where the content lies in the message's body, still encoded. That of a
	// multipart holds its parts.
	Off, Size int64

	boundary string
}

// Name returns the first of Names, empty if there is none.
func (p *Part) Name() string {
	if len(p.Names) == 0 {
		return ""
	}
	return p.Names[0]
}

// is tells whether the part's type is of a kind, as in "multipart/".
func (p *Part) is(kind string) bool { return strings.HasPrefix(p.Type, kind) }

// isMessage tells whether the content is a message that readers open.
func (p *Part) isMessage() bool { return p.Type == "message/rfc822" || p.Type == "message/global" }

// ErrStopped is returned when Options.Work said no.
var ErrStopped = errors.New("parts: stopped")

// Work is told of work before it is done, in octets of the body that are looked at. False
// stops it with ErrStopped. The nil Work lets all be done.
type Work func(octets int64) bool

func (w Work) do(n int) error {
	if w != nil && !w(int64(n)) {
		return ErrStopped
	}
	return nil
}

// Scan lists the parts of a message; part 0 is the message itself. body has size octets. An
// error is one of body, or ErrStopped; a message can be as broken as it likes.
func Scan(h message.Header, body io.ReaderAt, size int64, work Work) ([]Part, error) {
	s := scanner{src: body, size: size, work: work, room: window}
	err := s.scan(h)
	return s.parts, err
}
