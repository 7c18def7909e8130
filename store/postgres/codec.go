package postgres

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net/netip"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// codec.go writes what no query asks for as octets: most of the envelope, replies, attempts.
//
//	+---------+--------+--- ... ---+--------+----------------+
//	| version | field  |           | field  | CRC-32C, 4     |
//	+---------+--------+--- ... ---+--------+----------------+
//
// Fields stand in a fixed order: numbers as varints, texts behind their length, times as
// microseconds since 1970. A later version may append fields.

const codecVersion = 1

func sum(b []byte) int64 { return int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))) }

// writer appends fields.
type writer struct{ b []byte }

func newWriter() *writer { return &writer{append(make([]byte, 0, 256), codecVersion)} }

func (w *writer) int(n int64) { w.b = binary.AppendVarint(w.b, n) }

func (w *writer) text(s string) {
	w.b = binary.AppendUvarint(w.b, uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) bool(v bool) {
	if v {
		w.int(1)
	} else {
		w.int(0)
	}
}

func (w *writer) time(t time.Time) { w.int(t.UnixMicro()) }

func (w *writer) path(p smtp.Path) {
	w.text(p.Local)
	w.text(p.Domain.String())
}

func (w *writer) addr(a netip.Addr) {
	if a.IsValid() {
		w.text(a.String())
	} else {
		w.text("")
	}
}

func (w *writer) reply(r *smtp.Reply) {
	w.bool(r != nil)
	if r == nil {
		return
	}
	w.int(int64(r.Code))
	for _, n := range r.Enh {
		w.int(int64(n))
	}
	w.text(r.Text)
	w.bool(r.Hangup)
}

func (w *writer) done() []byte {
	return binary.BigEndian.AppendUint32(w.b, uint32(sum(w.b)))
}

// reader takes fields off again. After the first that is not there, bad is set and all
// further ones are zero.
type reader struct {
	b   []byte
	bad bool
}

func newReader(b []byte) *reader {
	if len(b) < 5 || b[0] != codecVersion {
		return &reader{bad: true}
	}
	fields, end := b[:len(b)-4], b[len(b)-4:]
	if uint32(sum(fields)) != binary.BigEndian.Uint32(end) {
		return &reader{bad: true}
	}
	return &reader{b: fields[1:]}
}

func (r *reader) int() int64 {
	n, size := binary.Varint(r.b)
	if r.bad || size <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) text() string {
	n, size := binary.Uvarint(r.b)
	if r.bad || size <= 0 || n > uint64(len(r.b)-size) {
		r.bad = true
		return ""
	}
	s := string(r.b[size : size+int(n)])
	r.b = r.b[size+int(n):]
	return s
}

func (r *reader) bool() bool { return r.int() != 0 }

func (r *reader) time() time.Time { return time.UnixMicro(r.int()).UTC() }

func (r *reader) path() smtp.Path {
	p := smtp.Path{Local: r.text()}
	name := r.text()
	if name == "" {
		return p
	}
	d, err := smtp.ParseDomain(name)
	if err != nil {
		r.bad = true
	}
	p.Domain = d
	return p
}

func (r *reader) addr() netip.Addr {
	s := r.text()
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		r.bad = true
	}
	return a
}

func (r *reader) reply() *smtp.Reply {
	if !r.bool() {
		return nil
	}
	reply := &smtp.Reply{Code: int(r.int())}
	for i := range reply.Enh {
		reply.Enh[i] = int(r.int())
	}
	reply.Text = r.text()
	reply.Hangup = r.bool()
	return reply
}

// more tells whether fields follow: a record of before they were appended has none.
func (r *reader) more() bool { return !r.bad && len(r.b) > 0 }

func (r *reader) err(what string) error {
	if r.bad {
		return fmt.Errorf("%w: %s", store.ErrCorrupt, what)
	}
	return nil
}

// encodeEnvelope writes what no column has of a message.
func encodeEnvelope(m *store.Message) []byte {
	w := newWriter()
	s := m.Sender
	w.path(s.Path)
	w.int(s.Size)
	w.text(string(s.Body))
	w.bool(s.UTF8)
	w.bool(s.RequireTLS)
	w.text(string(s.Return))
	w.text(s.EnvID)
	w.text(s.Auth)
	o := m.Origin
	w.text(o.Listener)
	w.text(o.Session)
	w.text(string(o.ReportOf))
	w.text(o.Reason)
	w.time(o.By)
	w.text(o.Mode)
	c := o.Client
	w.text(c.Name)
	w.addr(c.Addr)
	w.int(int64(c.Port))
	w.text(c.Proto)
	w.text(c.Helo)
	w.text(c.Ident)
	w.text(c.Source)
	w.text(c.Login)
	w.addr(c.DestAddr)
	w.int(int64(c.DestPort))
	w.bool(o.Trusted)
	w.bool(o.TLSOptional)
	return w.done()
}

// decodeEnvelope reads it into m, or returns an error that is store.ErrCorrupt.
func decodeEnvelope(b []byte, m *store.Message) error {
	r := newReader(b)
	m.Sender = smtp.Sender{
		Path: r.path(), Size: r.int(), Body: smtp.Body(r.text()), UTF8: r.bool(), RequireTLS: r.bool(),
		Return: smtp.Return(r.text()), EnvID: r.text(), Auth: r.text(),
	}
	m.Origin = store.Origin{
		Listener: r.text(), Session: r.text(), ReportOf: store.ID(r.text()), Reason: r.text(),
		By: r.time(), Mode: r.text(),
		Client: smtp.Forwarded{
			Name: r.text(), Addr: r.addr(), Port: uint16(r.int()), Proto: r.text(), Helo: r.text(),
			Ident: r.text(), Source: r.text(), Login: r.text(), DestAddr: r.addr(), DestPort: uint16(r.int()),
		},
	}
	if r.more() {
		m.Origin.Trusted, m.Origin.TLSOptional = r.bool(), r.bool()
	}
	return r.err("an envelope")
}

func encodeRecipient(p smtp.Recipient) []byte {
	w := newWriter()
	w.path(p.Path)
	w.int(int64(p.Notify))
	w.text(p.Original.Type)
	w.text(p.Original.Address)
	return w.done()
}

func decodeRecipient(b []byte) (smtp.Recipient, error) {
	r := newReader(b)
	p := smtp.Recipient{
		Path: r.path(), Notify: smtp.Notify(r.int()),
		Original: smtp.OriginalRecipient{Type: r.text(), Address: r.text()},
	}
	return p, r.err("a recipient")
}

// encodeReply returns nil for nil.
func encodeReply(reply *smtp.Reply) []byte {
	if reply == nil {
		return nil
	}
	w := newWriter()
	w.reply(reply)
	return w.done()
}

func decodeReply(b []byte) (*smtp.Reply, error) {
	if b == nil {
		return nil, nil
	}
	r := newReader(b)
	return r.reply(), r.err("a reply")
}

func encodeAttempt(a *store.Attempt) []byte {
	w := newWriter()
	w.time(a.Time)
	w.text(string(a.Destination))
	w.text(a.Host)
	w.int(int64(a.Took))
	w.reply(a.Reply)
	w.int(int64(len(a.Recipients)))
	for _, n := range a.Recipients {
		w.int(int64(n))
	}
	w.addr(a.Addr)
	w.text(a.TLS)
	w.text(a.Verdict)
	return w.done()
}

func decodeAttempt(b []byte) (store.Attempt, error) {
	r := newReader(b)
	a := store.Attempt{
		Time: r.time(), Destination: store.Destination(r.text()), Host: r.text(),
		Took: time.Duration(r.int()), Reply: r.reply(),
	}
	n := r.int()
	if n < 0 || n > int64(len(r.b)) { // each takes an octet at least
		r.bad = true
	}
	for i := int64(0); i < n && !r.bad; i++ {
		a.Recipients = append(a.Recipients, int(r.int()))
	}
	if r.more() {
		a.Addr, a.TLS, a.Verdict = r.addr(), r.text(), r.text()
	}
	return a, r.err("an attempt")
}
