package guest

import (
	"bytes"
	"io"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/mail/message"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
)

// message.go: header, body and envelope as a guest reads and edits them. Guests read
// the view of their own edits.

// fieldCost is what a field costs, in octets, where all fields are looked at or moved.
const fieldCost = 32

// header returns the header of the current view; ok is false where there is none.
func (g *Env) header() (h message.Header, ok bool) {
	if !g.at(abi.WithHeader) {
		return h, false
	}
	m := g.event.Edits.Message()
	if m == nil {
		return h, false
	}
	return m.Header, true
}

// editable is header where the header may be changed.
func (g *Env) editable() (h message.Header, ok bool) {
	if !g.at(abi.EditingHeader) {
		return h, false
	}
	return g.header()
}

// HdrCount implements Host.
func (g *Env) HdrCount() int32 {
	h, ok := g.header()
	if !ok {
		return int32(abi.EPHASE)
	}
	return int32(h.Len())
}

// HdrGet implements Host.
func (g *Env) HdrGet(i int32, buf []byte) int64 {
	h, ok := g.header()
	if !ok {
		return int64(abi.EPHASE)
	}
	if i < 0 || int(i) >= h.Len() {
		return int64(abi.ENOENT)
	}
	f := h.Field(int(i))
	if !g.charge(int64(len(f.Raw()))) {
		return int64(abi.ETIME)
	}
	name, value := f.Name(), f.Value()
	n := copy(buf, name)
	copy(buf[n:], value)
	return int64(len(name))<<32 | int64(len(value))
}

// HdrFind implements Host.
func (g *Env) HdrFind(name []byte, from int32) int32 {
	h, ok := g.header()
	if !ok {
		return int32(abi.EPHASE)
	}
	if from < 0 {
		return int32(abi.EINVAL)
	}
	if !g.charge(fieldCost * int64(max(0, h.Len()-int(from)))) {
		return int32(abi.ETIME)
	}
	for i := int(from); i < h.Len(); i++ {
		if bytes.EqualFold(h.Field(i).Name(), name) {
			return int32(i)
		}
	}
	return int32(abi.ENOENT)
}

// rawHeader is the octets of a header section. They are put together once for a view,
// not for each window that a guest reads of them.
type rawHeader struct {
	of *policy.Message
	b  []byte
}

func (r *rawHeader) bytes(m *policy.Message) []byte {
	if r.of != m {
		r.of, r.b = m, m.Header.AppendTo(r.b[:0])
	}
	return r.b
}

// rawHeader returns the header section of the current view, or an error number. It is valid
// until the view changes.
func (g *Env) rawHeader() (*bytes.Reader, abi.Errno) {
	m := g.event.Edits.Message()
	if g.raw.of != m && !g.charge(m.Header.Size()) {
		return nil, abi.ETIME
	}
	return bytes.NewReader(g.raw.bytes(m)), 0
}

// HdrRaw implements Host.
func (g *Env) HdrRaw(off int32, buf []byte) int32 {
	if _, ok := g.header(); !ok {
		return int32(abi.EPHASE)
	}
	if g.raw.of != g.event.Edits.Message() && !g.charge(g.event.Edits.Message().Header.Size()) || !g.charge(int64(len(buf))) {
		return int32(abi.ETIME)
	}
	raw := g.raw.bytes(g.event.Edits.Message())
	if off < 0 || int(off) > len(raw) {
		return int32(abi.EINVAL)
	}
	return fill(buf, raw[off:])
}

// maxHeader is the most octets of header fields that a filter may write at one hook, as
// package policy has it.
const maxHeader = 128 << 10

// HdrAdd implements Host.
func (g *Env) HdrAdd(at int32, name, value []byte) int32 {
	h, ok := g.editable()
	if !ok {
		return int32(abi.EPHASE)
	}
	pos := int(at)
	switch {
	case len(name)+len(value) > maxHeader:
		return int32(abi.ELIMIT)
	case at == -1:
		pos = h.Len()
	case at < -1 || pos > h.Len():
		return int32(abi.EINVAL)
	}
	if !g.charge(fieldCost*int64(h.Len()) + int64(len(value))) {
		return int32(abi.ETIME)
	}
	return errnoOf(g.event.Edits.AddHeader(pos, string(name), string(value)))
}

// HdrSet implements Host.
func (g *Env) HdrSet(i int32, value []byte) int32 {
	h, ok := g.editable()
	if !ok {
		return int32(abi.EPHASE)
	}
	if len(value) > maxHeader {
		return int32(abi.ELIMIT)
	}
	if !g.charge(fieldCost*int64(h.Len()) + int64(len(value))) {
		return int32(abi.ETIME)
	}
	return errnoOf(g.event.Edits.SetHeader(int(i), string(value)))
}

// HdrDel implements Host.
func (g *Env) HdrDel(i int32) int32 {
	h, ok := g.editable()
	if !ok {
		return int32(abi.EPHASE)
	}
	if !g.charge(fieldCost * int64(h.Len())) {
		return int32(abi.ETIME)
	}
	return errnoOf(g.event.Edits.DeleteHeader(int(i)))
}

// body returns the body of the current view.
func (g *Env) body() (b policy.Body, ok bool) {
	if !g.at(abi.WithBody) {
		return b, false
	}
	m := g.event.Edits.Message()
	if m == nil {
		return b, false
	}
	return m.Body, true
}

// BodyLen implements Host.
func (g *Env) BodyLen() int64 {
	b, ok := g.body()
	if !ok {
		return int64(abi.EPHASE)
	}
	if !g.may(abi.CapBodyRead) {
		return int64(abi.EPERM)
	}
	return b.Size()
}

// BodyRead implements Host.
func (g *Env) BodyRead(off int64, buf []byte) int32 {
	b, ok := g.body()
	if !ok {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapBodyRead) {
		return int32(abi.EPERM)
	}
	if off < 0 {
		return int32(abi.EINVAL)
	}
	if len(buf) > abi.MaxBodyRead {
		buf = buf[:abi.MaxBodyRead]
	}
	if off >= b.Size() || len(buf) == 0 {
		return 0
	}
	if !g.charge(int64(len(buf))) {
		return int32(abi.ETIME)
	}
	n, err := b.ReadAt(buf, off)
	if err != nil && err != io.EOF {
		return int32(abi.EUNAVAIL)
	}
	return int32(n)
}

// BodySplice implements Host.
func (g *Env) BodySplice(off, del int64, data []byte) int32 {
	if _, ok := g.body(); !ok {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapBodyEdit) {
		return int32(abi.EPERM)
	}
	if off < 0 || del < 0 {
		return int32(abi.EINVAL)
	}
	if !g.charge(int64(len(data))) {
		return int32(abi.ETIME)
	}
	return errnoOf(g.event.Edits.SpliceBody(off, del, data))
}

// BodyNew implements Host.
func (g *Env) BodyNew() int32 {
	if _, ok := g.body(); !ok {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapBodyEdit) {
		return int32(abi.EPERM)
	}
	g.newBody, g.writing = newBody{}, true
	return 0
}

// BodyWrite implements Host.
func (g *Env) BodyWrite(p []byte) int32 {
	if _, ok := g.body(); !ok {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapBodyEdit) {
		return int32(abi.EPERM)
	}
	if !g.writing {
		return int32(abi.EPHASE)
	}
	// The same bound as for splices; what does not pass it here would fail at the
	// commit, after it had been collected.
	if g.newBody.size+int64(len(p)) > g.event.Edits.MaxBody() {
		return int32(abi.ELIMIT)
	}
	if !g.charge(int64(len(p))) {
		return int32(abi.ETIME)
	}
	g.newBody.write(p)
	return int32(len(p))
}

// BodyCommit implements Host.
func (g *Env) BodyCommit() int32 {
	if _, ok := g.body(); !ok {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapBodyEdit) {
		return int32(abi.EPERM)
	}
	if !g.writing {
		return int32(abi.EPHASE)
	}
	err := g.event.Edits.ReplaceBody(g.newBody.body())
	g.newBody, g.writing = newBody{}, false
	return errnoOf(err)
}

// newBody is what a guest writes in the place of a body, in pieces that double: what was
// written is not copied again, however large it grows.
type newBody struct {
	pieces [][]byte
	size   int64
}

const (
	firstPiece = 4 << 10
	mostPiece  = 256 << 10
)

func (b *newBody) write(p []byte) {
	b.size += int64(len(p))
	for len(p) > 0 {
		last := len(b.pieces) - 1
		if last < 0 || len(b.pieces[last]) == cap(b.pieces[last]) {
			room := firstPiece
			if last >= 0 {
				room = min(2*cap(b.pieces[last]), mostPiece)
			}
			b.pieces = append(b.pieces, make([]byte, 0, room))
			last++
		}
		n := min(len(p), cap(b.pieces[last])-len(b.pieces[last]))
		b.pieces[last] = append(b.pieces[last], p[:n]...)
		p = p[n:]
	}
}

// body is what was written. Nothing may be written any more.
func (b *newBody) body() policy.Body { return policy.BytesBody(b.pieces...) }

// address reads an address of a guest; the empty one is the null path if null is set.
func address(addr []byte, null bool) (smtp.Path, bool) {
	if len(addr) == 0 {
		return smtp.Path{}, null
	}
	if len(addr) > abi.MaxAddress {
		return smtp.Path{}, false
	}
	p, err := smtp.ParseAddress(string(addr))
	return p, err == nil
}

// EnvFrom implements Host.
func (g *Env) EnvFrom(addr []byte) int32 {
	if !g.at(abi.WithSender) {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapEnvelope) {
		return int32(abi.EPERM)
	}
	p, ok := address(addr, true)
	if !ok {
		return int32(abi.EINVAL)
	}
	return errnoOf(g.event.Edits.SetSender(p))
}

// RcptCount implements Host.
func (g *Env) RcptCount() int32 {
	if !g.at(abi.WithRcpts) {
		return int32(abi.EPHASE)
	}
	return int32(len(g.event.Edits.Recipients()))
}

// RcptGet implements Host.
func (g *Env) RcptGet(i int32, buf []byte) int32 {
	if !g.at(abi.WithRcpts) {
		return int32(abi.EPHASE)
	}
	rcpts := g.event.Edits.Recipients()
	if i < 0 || int(i) >= len(rcpts) {
		return int32(abi.ENOENT)
	}
	return fill(buf, rcpts[i].Path.String())
}

// RcptAdd implements Host.
func (g *Env) RcptAdd(addr []byte) int32 {
	if !g.at(abi.EditingRcpts) {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapEnvelope) {
		return int32(abi.EPERM)
	}
	p, ok := address(addr, false)
	if !ok {
		return int32(abi.EINVAL)
	}
	return errnoOf(g.event.Edits.AddRecipient(p))
}

// RcptSet implements Host.
func (g *Env) RcptSet(i int32, addr []byte) int32 {
	if !g.at(abi.EditingRcpts) {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapEnvelope) {
		return int32(abi.EPERM)
	}
	p, ok := address(addr, false)
	if !ok {
		return int32(abi.EINVAL)
	}
	return errnoOf(g.event.Edits.SetRecipient(int(i), p))
}

// RcptDel implements Host.
func (g *Env) RcptDel(i int32) int32 {
	if !g.at(abi.EditingRcpts) {
		return int32(abi.EPHASE)
	}
	if !g.may(abi.CapEnvelope) {
		return int32(abi.EPERM)
	}
	return errnoOf(g.event.Edits.DeleteRecipient(int(i)))
}

// RcptVerdict implements Host.
func (g *Env) RcptVerdict(i int32, verdict int64) int32 {
	if !g.at(abi.JudgingRcpts) {
		return int32(abi.EPHASE)
	}
	v := abi.Verdict(verdict)
	if v&abi.ErrorBit != 0 || v.Unknown() != 0 || v.HasText() && !g.hasReply {
		return int32(abi.EINVAL)
	}
	if need := g.needs(v.Action()); need != "" && !g.may(need) {
		return int32(abi.EPERM)
	}
	out := g.unpack(v)
	if out.Action == policy.Quarantine && out.Reply != nil && out.Reply.Code == 0 && out.Reply.Enh == (smtp.Enhanced{}) {
		out.Reply, out.Reason = nil, out.Reply.Text
	}
	return errnoOf(g.event.Edits.Judge(int(i), out))
}
