package smtp

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/penstock/penstock/internal/parity"
)

// readData reads mail data that comes in chunks, and returns with the content what
// was left unread.
func readData(e LineEndings, max int64, chunks ...[]byte) (content, left string, err error) {
	w := scriptedWire(chunks...)
	b, err := io.ReadAll(newDataReader(w, max, e))
	if err == nil {
		for more := error(nil); more == nil; more = w.more() {
			left += string(w.unread())
			w.r = w.w
		}
	}
	w.release()
	return string(b), left, err
}

// split cuts s at the points.
func split(s []byte, points ...int) [][]byte {
	var chunks [][]byte
	last := 0
	for _, p := range points {
		chunks = append(chunks, s[last:p])
		last = p
	}
	return append(chunks, s[last:])
}

// dataCases is mail data with all that may be wrong with it. What hides a second
// transaction is followed by one; normal is the content with NormalizeLineEndings and
// ends of the data at CRLF.CRLF alone.
var dataCases = []struct {
	wire, normal string
	bare         bool // refused with RejectLineEndings
}{
	{".\r\n", "", false},                                         // no content
	{"a\r\n.\r\n", "a\r\n", false},                               //
	{"\r\n.\r\n", "\r\n", false},                                 //
	{"..\r\n.\r\n", ".\r\n", false},                              // RFC 5321, Section 4.5.2
	{"...\r\n.\r\n", "..\r\n", false},                            //
	{".a\r\n.\r\n", "a\r\n", false},                              // a dot too few is dropped all the same
	{"a.\r\n.b\r\n.\r\n", "a.\r\nb\r\n", false},                  //
	{"a\r\n..\r\n..b\r\n.\r\n", "a\r\n.\r\n.b\r\n", false},       //
	{"a\x00b\r\n\x00.\r\n.\r\n", "a\x00b\r\n\x00.\r\n", false},   // NUL is content
	{"a\r\n.\x00\r\nb\r\n.\r\n", "a\r\n\x00\r\nb\r\n", false},    //
	{"a\r\n.\r\x00\n.\r\n.\r\n", "a\r\n\r\n\x00\r\n.\r\n", true}, //
	{"a\n.\nb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},                // LF.LF
	{"a\n.\r\nb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},              // LF.CRLF
	{"a\r\n.\nb\r\n.\r\n", "a\r\n\r\nb\r\n", true},               // CRLF.LF: the dot was stuffed
	{"a\r.\rb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},                // CR.CR
	{"a\r.\r\nb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},              // CR.CRLF
	{"a\r\n.\rb\r\n.\r\n", "a\r\n\r\nb\r\n", true},               // CRLF.CR
	{"a\n.\rb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},                // LF.CR
	{"a\r.\nb\r\n.\r\n", "a\r\n.\r\nb\r\n", true},                // CR.LF
	{"a\r\r\n.\r\n", "a\r\n\r\n", true},                          // CRCRLF, then the end
	{"a\r\n.\r\r\nb\r\n.\r\n", "a\r\n\r\n\r\nb\r\n", true},       // CRLF.CRCRLF
	{"a\r\r\n.\r\r\nb\r\n.\r\n", "a\r\n\r\n\r\n\r\nb\r\n", true}, //
	{"a\n\r\n.\r\n", "a\r\n\r\n", true},                          //
	{"a\n\r.\r\nb\r\n.\r\n", "a\r\n\r\n.\r\nb\r\n", true},        // LFCR is two line ends
	{"\n.\r\nb\r\n.\r\n", "\r\n.\r\nb\r\n", true},                // at the very beginning
	{"\r.\r\nb\r\n.\r\n", "\r\n.\r\nb\r\n", true},                //
	{".\nb\r\n.\r\n", "\r\nb\r\n", true},                         //
	{".\rb\r\n.\r\n", "\r\nb\r\n", true},                         //
	{"a\n..\nb\r\n.\r\n", "a\r\n..\r\nb\r\n", true},              // nothing is stuffed behind a bare LF
	{"\r\r\r\n\n\n\r\r\n.\r\n", strings.Repeat("\r\n", 7), true}, //
}

// hidden is what a smuggler would have a second program take for commands.
const hidden = "MAIL FROM:<b@x.test>\r\nRCPT TO:<c@x.test>\r\nDATA\r\nb\r\n.\r\n"

func TestDataReader(t *testing.T) {
	parity.Row(t, "SS-83")
	for _, tt := range dataCases {
		wire := []byte(tt.wire + hidden)
		for _, chunks := range [][][]byte{{wire}, byteByByte(wire)} {
			content, left, err := readData(NormalizeLineEndings, 0, chunks...)
			if content != tt.normal || left != hidden || err != nil {
				t.Errorf("%q normalised: got %q, left %q, %v, want %q and the rest left", tt.wire, content, left, err, tt.normal)
			}
		}
		for _, chunks := range [][][]byte{{wire}, byteByByte(wire)} {
			content, left, err := readData(RejectLineEndings, 0, chunks...)
			if tt.bare && !errors.Is(err, errBareLine) || !tt.bare && (content != tt.normal || left != hidden || err != nil) {
				t.Errorf("%q rejecting: got %q, left %q, %v, want refused=%v", tt.wire, content, left, err, tt.bare)
			}
		}
	}
}

// A message that does not come to its end is an error, wherever it breaks.
func TestDataReaderCut(t *testing.T) {
	whole := []byte("a\r\n..b\r\n.\r\n")
	for n := range len(whole) {
		if content, _, err := readData(NormalizeLineEndings, 0, whole[:n]); err != io.ErrUnexpectedEOF {
			t.Errorf("%q: got %q, %v, want %v", whole[:n], content, err, io.ErrUnexpectedEOF)
		}
	}
}

// The limit counts content, not stuffed dots nor the end mark.
func TestDataReaderLimit(t *testing.T) {
	wire := []byte("..234\r\n.\r\n") // 6 octets of content
	for _, tt := range []struct {
		max int64
		err error
	}{{0, nil}, {6, nil}, {7, nil}, {5, errTooLarge}, {1, errTooLarge}} {
		for _, chunks := range [][][]byte{{wire}, byteByByte(wire)} {
			content, _, err := readData(NormalizeLineEndings, tt.max, chunks...)
			want := ".234\r\n"
			if tt.err != nil {
				want = want[:tt.max]
			}
			if content != want || err != tt.err {
				t.Errorf("max %d: got %q, %v, want %q, %v", tt.max, content, err, want, tt.err)
			}
		}
	}
}

// Read and WriteTo give the same, whatever the size of the reader's buffer, and the
// size that they count.
func TestDataReaderForms(t *testing.T) {
	parity.Row(t, "SS-82")
	for _, tt := range dataCases {
		for name, wrap := range map[string]func(io.Reader) io.Reader{
			"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "WriteTo": nil,
		} {
			d := newDataReader(scriptedWire([]byte(tt.wire)), 0, NormalizeLineEndings)
			var got bytes.Buffer
			var err error
			if wrap == nil {
				_, err = d.WriteTo(&got)
			} else {
				_, err = got.ReadFrom(wrap(d))
			}
			if got.String() != tt.normal || err != nil || d.Size() != int64(got.Len()) {
				t.Errorf("%s of %q: got %q, size %d, %v, want %q", name, tt.wire, &got, d.Size(), err, tt.normal)
			}
		}
	}
}

// WriteTo can be taken up again where the writer failed.
func TestDataReaderWriteToError(t *testing.T) {
	d := newDataReader(scriptedWire([]byte("hello\r\n.\r\n")), 0, NormalizeLineEndings)
	if n, err := d.WriteTo(shortWriter{}); n != 2 || err != io.ErrShortWrite {
		t.Errorf("WriteTo a short writer: got %d, %v, want 2, %v", n, err, io.ErrShortWrite)
	}
	if rest, err := io.ReadAll(d); string(rest) != "llo\r\n" || err != nil {
		t.Errorf("the rest: got %q, %v, want %q", rest, err, "llo\r\n")
	}
	d.end()
	if _, err := d.Read(make([]byte, 1)); err != errDataDone {
		t.Errorf("Read after the end: got %v, want %v", err, errDataDone)
	}
}

type shortWriter struct{}

func (shortWriter) Write(p []byte) (int, error) { return min(2, len(p)), nil }

func TestDataWriter(t *testing.T) {
	for _, tt := range []struct{ content, want string }{
		{"", ".\r\n"},
		{"a\r\n", "a\r\n.\r\n"},
		{"a", "a\r\n.\r\n"}, // the last line gets its end
		{"a\r", "a\r\n.\r\n"},
		{"a\n", "a\r\n.\r\n"},
		{".", "..\r\n.\r\n"},
		{".\r\n.", "..\r\n..\r\n.\r\n"},
		{"a\r\n.b", "a\r\n..b\r\n.\r\n"},
		{"a\n.\nb", "a\r\n..\r\nb\r\n.\r\n"}, // what becomes a line end begins a line
		{"a\r.\rb", "a\r\n..\r\nb\r\n.\r\n"},
		{"a\r\r\n.b", "a\r\n\r\n..b\r\n.\r\n"},
		{"a\r\n.\r\nQUIT\r\n", "a\r\n..\r\nQUIT\r\n.\r\n"},
		{"\x00.\r\n\x00\x00..\r\n.\x00\r\n", "..\r\n...\r\n..\x00\r\n.\r\n"}, // without NULs no line is a dot
		{"a\n\x00.\n\x00\nb\x00\r\x00.", "a\r\n..\r\n\r\nb\x00\r\n..\r\n.\r\n"},
		{"\x00", ".\r\n"},
		{"\r\r.\n\n.\r", "\r\n\r\n..\r\n\r\n..\r\n.\r\n"},
	} {
		for _, pieces := range [][][]byte{{[]byte(tt.content)}, byteByByte([]byte(tt.content))} {
			var got bytes.Buffer
			d := NewDataWriter(&got)
			for _, p := range pieces {
				if n, err := d.Write(p); n != len(p) || err != nil {
					t.Errorf("Write(%q): got %d, %v", p, n, err)
				}
			}
			if err := d.Close(); err != nil || got.String() != tt.want {
				t.Errorf("%q in %d pieces: got %q, %v, want %q", tt.content, len(pieces), &got, err, tt.want)
			}
			if d.Close() == nil {
				t.Errorf("second Close: got no error; it would be a command")
			}
			if _, err := d.Write([]byte("x")); err == nil || got.String() != tt.want {
				t.Errorf("Write after Close: got %v and %q", err, &got)
			}
		}
	}
}

// failingWriter takes n octets.
type failingWriter struct {
	bytes.Buffer
	n int
}

func (w *failingWriter) Write(p []byte) (int, error) {
	if len(p) > w.n {
		w.n = 0
		return 0, io.ErrClosedPipe
	}
	w.n -= len(p)
	return w.Buffer.Write(p)
}

// After a failed write there is no end mark, even if the writer would take it again.
func TestDataWriterError(t *testing.T) {
	for n := range 12 {
		w := &failingWriter{n: n}
		d := NewDataWriter(w)
		d.Write([]byte("a\r\n.b\nc\r\n"))
		w.n = 100
		_, err := d.Write([]byte("more"))
		closed := d.Close()
		if ended := strings.HasSuffix(w.String(), "\r\n.\r\n"); ended != (closed == nil) || (err == nil) != (closed == nil) {
			t.Errorf("failing after %d octets: got %q, %v, %v", n, w.String(), err, closed)
		}
	}
}

// normalise is what DataWriter and DataReader do to content, the slow way.
func normalise(content []byte) string {
	var b strings.Builder
	for i := 0; i < len(content); i++ {
		switch c := content[i]; {
		case c == '\r' && i+1 < len(content) && content[i+1] == '\n':
		case c == '\r' || c == '\n':
			b.WriteString("\r\n")
		default:
			b.WriteByte(c)
		}
	}
	if s := b.String(); s != "" && !strings.HasSuffix(s, "\r\n") {
		return s + "\r\n"
	}
	return b.String()
}

// leadingNULs are what the writer drops, with the end of the line in front of them.
var leadingNULs = regexp.MustCompile(`(^|\n)\x00+`)

// asWritten is what a reader gets of content that went through a writer.
func asWritten(content []byte) string {
	lines := leadingNULs.ReplaceAllString(normalise(content), "$1")
	front := bytes.TrimRight(content, "\x00")
	if len(front) < len(content) && (len(front) == 0 || bytes.ContainsRune([]byte("\r\n"), rune(front[len(front)-1]))) {
		return strings.TrimSuffix(lines, "\r\n") // the last line was nothing but NULs, and had no end
	}
	return lines
}

// Long mixtures, at random pieces: the blocks of both sides end everywhere.
func TestDataLong(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	words := []string{"a", ".", "..", "\r\n", "\r\n", "\n", "\r", "\x00", "text of some length", strings.Repeat("x", 1000)}
	const most = 200 << 10 // of which the longest stretch may be all; blocks have 64 KiB at most
	for range 16 {
		var content []byte
		for len(content) < most {
			// Stretches with one taste each: those of line ends alone, and ordinary ones.
			lo := r.IntN(len(words))
			hi := lo + 1 + r.IntN(len(words)-lo)
			for n := r.IntN(5000); n > 0 && len(content) < most; n-- {
				content = append(content, words[lo+r.IntN(hi-lo)]...)
			}
		}
		var wired bytes.Buffer
		d := NewDataWriter(&wired)
		for rest := content; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(100<<10))
			d.Write(rest[:n])
			rest = rest[n:]
		}
		d.Close()
		if got, left, err := readData(RejectLineEndings, 0, randomSplit(r, wired.Bytes())...); got != asWritten(content) || left != "" || err != nil {
			t.Fatalf("seed %d: read %d octets, left %d, %v, want %d; they differ", seed, len(got), len(left), err, len(asWritten(content)))
		}
		// The other reader, on what no writer wrote: once in one piece, once in many.
		raw := append(append([]byte(nil), content...), "\r\n.\r\n"...)
		want, left, err := readData(NormalizeLineEndings, 0, raw)
		got, left2, err2 := readData(NormalizeLineEndings, 0, randomSplit(r, raw)...)
		if got != want || left != left2 || err != nil || err2 != nil {
			t.Fatalf("seed %d: in pieces %d octets, left %d, %v; in one %d, left %d, %v", seed, len(got), len(left2), err2, len(want), len(left), err)
		}
	}
}

func randomSplit(r *rand.Rand, b []byte) [][]byte {
	var chunks [][]byte
	for len(b) > 0 {
		n := 1 + r.IntN(min(len(b), 1<<r.IntN(18)))
		chunks = append(chunks, b[:n])
		b = b[n:]
	}
	return chunks
}

// What is written is read as the same content, normalised; nothing of it is read as
// the end, and what leaves has no bare line end.
func FuzzDataRoundTrip(f *testing.F) {
	for _, tt := range dataCases {
		f.Add([]byte(tt.wire), 1)
	}
	f.Fuzz(func(t *testing.T, content []byte, piece int) {
		piece = max(1, piece)
		var wired bytes.Buffer
		d := NewDataWriter(&wired)
		for rest := content; len(rest) > 0; {
			n := min(len(rest), piece)
			d.Write(rest[:n])
			rest = rest[n:]
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		got, left, err := readData(RejectLineEndings, 0, wired.Bytes())
		if want := asWritten(content); got != want || left != "" || err != nil {
			t.Errorf("%q in pieces of %d: sent %q, read %q, left %q, %v, want %q", content, piece, &wired, got, left, err, want)
		}
	})
}

// However the input is cut, the content, the error and what is left are the same; and
// the end is the first CRLF.CRLF and no other place.
func FuzzDataSegmentation(f *testing.F) {
	for _, tt := range dataCases {
		f.Add([]byte(tt.wire+"QUIT\r\n"), 3, 4, true)
		f.Add([]byte(tt.wire), 1, 2, false)
	}
	f.Fuzz(func(t *testing.T, input []byte, one, two int, reject bool) {
		e := NormalizeLineEndings
		if reject {
			e = RejectLineEndings
		}
		one = max(0, min(one, len(input)))
		two = max(one, min(two, len(input)))
		content, left, err := readData(e, 0, input)
		for _, chunks := range [][][]byte{split(input, one, two), byteByByte(input)} {
			content2, left2, err2 := readData(e, 0, chunks...)
			if err != err2 || content != content2 || left != left2 {
				t.Errorf("%q at %d and %d: got %q, left %q, %v; in one piece %q, left %q, %v",
					input, one, two, content2, left2, err2, content, left, err)
			}
		}
		end := bytes.Index(append([]byte("\r\n"), input...), []byte("\r\n.\r\n"))
		switch {
		case err == nil && (end < 0 || left != string(input[end+3:])):
			t.Errorf("%q: ended with %q left, CRLF.CRLF is at %d", input, left, end)
		case err == io.ErrUnexpectedEOF && end >= 0:
			t.Errorf("%q: did not end, though CRLF.CRLF is at %d", input, end)
		}
	})
}

// countingWriter counts writes.
type countingWriter struct{ n int }

func (w *countingWriter) Write(p []byte) (int, error) { w.n++; return len(p), nil }

// A block of bare line ends is mended in few steps. With one step for each, of which
// every one looks through the block, a message of them would cost a minute.
func TestDataBareLineEndsInPieces(t *testing.T) {
	const size = 1 << 20
	for _, bare := range []string{"\r", "\n", "x\r", "\r.", "\n.\r."} {
		content := bytes.Repeat([]byte(bare), size/len(bare))
		most := 4 * size / mendPiece
		var r, w countingWriter
		d := newDataReader(scriptedWire(content, []byte("\r\n.\r\n")), 0, NormalizeLineEndings)
		if _, err := d.WriteTo(&r); err != nil || r.n > most {
			t.Errorf("reading %q: got %d pieces, %v, want at most %d", bare, r.n, err, most)
		}
		if _, err := NewDataWriter(&w).Write(content); err != nil || w.n > most {
			t.Errorf("writing %q: got %d pieces, %v, want at most %d", bare, w.n, err, most)
		}
	}
}
