package guest

import (
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/mail/parts"
	"github.com/penstock/penstock/policy"
)

// parts.go: the MIME parts of the message. They are found when a guest first asks, once for a
// view of the message, and read from where they are.

// structure is the parts of a view, and the one that is being read. A filter that adds a
// field makes a new view, whose body is the same; so it is kept by what it depends on.
type structure struct {
	known   bool
	body    policy.Body
	fields  string // of the header, those that say what the message is
	list    []parts.Part
	reader  *parts.Reader
	reading int // the part that reader reads
}

// typeFields are the header fields that Scan looks at.
var typeFields = [...]string{"Content-Type", "Content-Disposition", "Content-Transfer-Encoding", "Content-ID"}

// parts returns the parts of the current view, or an error number.
func (g *Env) parts() ([]parts.Part, abi.Errno) {
	body, ok := g.body()
	if !ok {
		return nil, abi.EPHASE
	}
	if !g.may(abi.CapBodyRead) {
		return nil, abi.EPERM
	}
	header := g.event.Edits.Message().Header
	var b strings.Builder
	for _, name := range typeFields {
		for i := header.Find(name, 0); i >= 0; i = header.Find(name, i+1) {
			b.Write(header.Field(i).Raw())
		}
	}
	if !g.charge(int64(header.Len()*16 + b.Len())) {
		return nil, abi.ETIME
	}
	if g.mime.known && g.mime.body.Same(body) && g.mime.fields == b.String() {
		return g.mime.list, 0
	}
	list, err := parts.Scan(header, body, body.Size(), g.charge)
	if err != nil {
		return nil, readErrno(err)
	}
	g.mime = structure{known: true, body: body, fields: b.String(), list: list}
	return list, 0
}

// readErrno is what an error of reading a message is to a guest.
func readErrno(err error) abi.Errno {
	if errors.Is(err, parts.ErrStopped) {
		return abi.ETIME
	}
	return abi.EUNAVAIL
}

// part returns part i.
func (g *Env) part(i int32) (*parts.Part, abi.Errno) {
	list, no := g.parts()
	switch {
	case no != 0:
		return nil, no
	case i < 0 || int(i) >= len(list):
		return nil, abi.ENOENT
	}
	return &list[i], 0
}

// PartCount implements Host.
func (g *Env) PartCount() int32 {
	list, no := g.parts()
	if no != 0 {
		return int32(no)
	}
	return int32(len(list))
}

// PartInfo implements Host.
func (g *Env) PartInfo(i int32, buf []byte) int32 {
	p, no := g.part(i)
	if no != 0 {
		return int32(no)
	}
	g.scratch = appendPart(g.scratch[:0], p)
	return fill(buf, g.scratch)
}

// appendPart writes the record of a part, as package abi draws it.
func appendPart(b []byte, p *parts.Part) []byte {
	le := binary.LittleEndian
	b = le.AppendUint32(b, abi.PartHead)
	b = le.AppendUint32(b, uint32(p.Flags))
	b = le.AppendUint32(b, uint32(p.Depth))
	b = le.AppendUint32(b, uint32(p.Parent))
	b = le.AppendUint64(b, uint64(p.HeaderOff))
	b = le.AppendUint64(b, uint64(p.Off))
	b = le.AppendUint64(b, uint64(p.Size))
	for _, s := range []string{p.Type, p.Charset, p.Disposition, p.Transfer, p.ID, p.Name()} {
		b = appendList(b, s)
	}
	if len(p.Names) < 2 {
		return appendList(b, "")
	}
	return appendList(b, strings.Join(p.Names[1:], "\x00"))
}

// content returns how to read a part in a form, and how long that is; -1 if it has to be
// decoded for that.
func (g *Env) content(i, form int32) (r io.ReaderAt, size int64, no abi.Errno) {
	p, no := g.part(i)
	if no != 0 {
		return nil, 0, no
	}
	body := g.mime.body
	switch abi.PartForm(form) {
	case abi.PartRaw:
		return io.NewSectionReader(body, p.Off, p.Size), p.Size, 0
	case abi.PartHeader:
		if p.HeaderOff < 0 {
			raw, no := g.rawHeader()
			if no != 0 {
				return nil, 0, no
			}
			return raw, raw.Size(), 0
		}
		return io.NewSectionReader(body, p.HeaderOff, p.Off-p.HeaderOff), p.Off - p.HeaderOff, 0
	case abi.PartDecoded:
		if p.Encoding == parts.Identity {
			return io.NewSectionReader(body, p.Off, p.Size), p.Size, 0
		}
		if g.mime.reader == nil || g.mime.reading != int(i) {
			g.mime.reader, g.mime.reading = parts.NewReader(body, p, g.charge), int(i)
		}
		return g.mime.reader, -1, 0
	}
	return nil, 0, abi.EINVAL
}

// PartLen implements Host.
func (g *Env) PartLen(i, form int32) int64 {
	_, size, no := g.content(i, form)
	if no != 0 {
		return int64(no)
	}
	if size < 0 {
		var err error
		if size, err = g.mime.reader.Size(); err != nil {
			return int64(readErrno(err))
		}
	}
	return size
}

// PartRead implements Host.
func (g *Env) PartRead(i, form int32, off int64, buf []byte) int32 {
	r, size, no := g.content(i, form)
	switch {
	case no != 0:
		return int32(no)
	case off < 0:
		return int32(abi.EINVAL)
	}
	buf = buf[:min(len(buf), abi.MaxBodyRead)]
	if len(buf) == 0 || size >= 0 && off >= size {
		return 0
	}
	if !g.charge(int64(len(buf))) {
		return int32(abi.ETIME)
	}
	n, err := r.ReadAt(buf, off)
	if err != nil && err != io.EOF {
		return int32(readErrno(err))
	}
	return int32(n)
}
