package filter

import "github.com/penstock/penstock/guest-sdk/abi"

// parts.go: the MIME parts of a message. The gateway finds and decodes them.

// Part is a MIME part of a message. It is valid until the handler returns or the body is
// changed.
type Part struct {
	host  host
	index int
	head  [abi.PartHead]byte
	texts []string
}

// The texts of a part's record, in their order.
const (
	partType = iota
	partCharset
	partDisposition
	partTransfer
	partID
	partName
	partOtherNames
)

// Parts goes through the parts in the order of the message: first the message itself, then
// what is in it, and in each part of that.
//
//	for p := range m.Parts() {
//		if hasExecutableName(p.FileNames()) { … }
//	}
//
// A message may be built so that mail readers disagree about its parts; then [Part.Flags]
// says so. Whoever refuses messages by what is in them should refuse such ones too.
func (m *Message) Parts() func(yield func(p *Part) bool) {
	h := m.call.host
	return func(yield func(p *Part) bool) {
		for i := range max(0, int(h.PartCount())) {
			p, ok := readPart(h, i)
			if !ok || !yield(p) {
				return
			}
		}
	}
}

// readPart reads the record of a part.
func readPart(h host, i int) (*Part, bool) {
	b := grow(func(b []byte) int32 { return h.PartInfo(int32(i), b) })
	if len(b) < abi.PartHead {
		return nil, false
	}
	head := u32(b)
	if head < abi.PartHead || uint64(head) > uint64(len(b)) {
		return nil, false
	}
	p := &Part{host: h, index: i, texts: list(b[head:])}
	copy(p.head[:], b)
	return p, true
}

func (p *Part) text(i int) string {
	if i >= len(p.texts) {
		return ""
	}
	return p.texts[i]
}

// Index returns the part's number, from 0 for the message.
func (p *Part) Index() int { return p.index }

// Parent returns the number of the part that this one stands in; -1 for the message.
func (p *Part) Parent() int { return int(int32(u32(p.head[abi.PartOffParent:]))) }

// Depth returns 0 for the message, and one more than the parent's for others.
func (p *Part) Depth() int { return int(u32(p.head[abi.PartOffDepth:])) }

// PartFlag says that something about a part is not as it should be.
type PartFlag = abi.PartFlag

// The flags of parts.
const (
	PartBroken          = abi.PartBroken          // a multipart without parts or end, or nearly a delimiter in it; a type that is none
	PartAmbiguous       = abi.PartAmbiguous       // a field or parameter is there twice: readers differ in which one counts
	PartDeep            = abi.PartDeep            // not opened: too deep
	PartOpaque          = abi.PartOpaque          // a message under a transfer encoding, not opened
	PartTruncated       = abi.PartTruncated       // of part 0: there are more parts than are listed
	PartLongHeader      = abi.PartLongHeader      // only the beginning of its header section was looked at
	PartUnknownEncoding = abi.PartUnknownEncoding // its transfer encoding is not known: decoded is raw
)

// The most that the gateway lists: parts of a message, and how deep one may stand.
const (
	MaxParts     = abi.MaxParts
	MaxPartDepth = abi.MaxPartDepth
)

// Flags returns what is not as it should be; 0 if there is nothing.
func (p *Part) Flags() PartFlag { return PartFlag(u32(p.head[abi.PartOffFlags:])) }

// Type returns the media type in lower case, as in "text/plain".
func (p *Part) Type() string { return p.text(partType) }

// Charset returns the charset in lower case; empty if none is named.
func (p *Part) Charset() string { return p.text(partCharset) }

// Disposition returns "attachment", "inline" or another word; empty if there is none.
func (p *Part) Disposition() string { return p.text(partDisposition) }

// Encoding returns the name of the transfer encoding in lower case.
func (p *Part) Encoding() string { return p.text(partTransfer) }

// ID returns the Content-ID without its brackets.
func (p *Part) ID() string { return p.text(partID) }

// FileName returns the decoded file name that most mail readers show; empty if there is none.
func (p *Part) FileName() string { return p.text(partName) }

// FileNames returns all file names of the part: it may have several that differ, and mail
// readers differ in which one they show.
func (p *Part) FileNames() []string {
	if p.FileName() == "" {
		return nil
	}
	names := []string{p.FileName()}
	for more := p.text(partOtherNames); more != ""; {
		var name string
		name, more = cut(more, 0)
		names = append(names, name)
	}
	return names
}

// Offset returns where the content begins in the body of the message.
func (p *Part) Offset() int64 { return int64(u64(p.head[abi.PartOffOff:])) }

// RawSize returns the length of the content as it is in the message, still encoded.
func (p *Part) RawSize() int64 { return int64(u64(p.head[abi.PartOffSize:])) }

// Content reads a part: it implements io.Reader, io.ReaderAt, io.Seeker and io.WriterTo,
// through a window of 64 KiB. Size decodes the part to its end if that was not done yet;
// reading does not need it.
type Content struct{ reader }

// Content returns the content, decoded.
func (p *Part) Content() *Content { return p.open(abi.PartDecoded) }

// Raw returns the content as it is in the message, still encoded.
func (p *Part) Raw() *Content { return p.open(abi.PartRaw) }

// Header returns the header section of the part.
func (p *Part) Header() *Content { return p.open(abi.PartHeader) }

func (p *Part) open(form abi.PartForm) *Content {
	room := int64(window)
	if form != abi.PartHeader {
		room = min(room, p.RawSize()) // decoding makes nothing longer
	}
	return &Content{reader{src: source{p.host, int32(p.index), form}, size: -1, room: room}}
}

// PartCount returns how many parts Parts goes through, one at least. The error says that the
// gateway cannot tell now; Parts has none then, which must not be taken for a message without
// any.
func (m *Message) PartCount() (int, error) {
	n := m.call.host.PartCount()
	if err := check("count parts", n); err != nil {
		return 0, err
	}
	return int(n), nil
}
