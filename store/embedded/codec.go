package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
)

// codec.go: records as octets. Numbers are varints, texts have their length before them, and
// times are microseconds since 1970, with zero for the zero time. A record begins with the
// version of its form and ends with a CRC-32C of key and record.

// Kinds of records: the first octet of a key.
const (
	kindState    = 's'
	kindEnvelope = 'e'
	kindContent  = 'b'
	kindAttempts = 'a'

	kindFile   = 'f'
	kindKV     = 'k'
	kindModule = 'm' // a binary
	kindName   = 'n' // the versions of a module's name
	kindPolicy = 'p'
)

// recordKinds are those of a message.
var recordKinds = [...]byte{kindState, kindEnvelope, kindContent, kindAttempts}

// codecVersion is the form of the records below.
const codecVersion = 1

// castagnoli is the polynomial that processors have an instruction for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errRecord = errors.New("record does not fit its form")

// key is the key of a message's record.
func key(kind byte, id [16]byte) []byte {
	k := make([]byte, 17)
	k[0] = kind
	copy(k[1:], id[:])
	return k
}

// sumLen is the length of a checksum.
const sumLen = 4

// seal adds the checksum.
func seal(key, record []byte) []byte {
	return binary.LittleEndian.AppendUint32(record, checksum(key, record))
}

func checksum(key, record []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, record)
}

// unseal takes the checksum off, or returns ErrCorrupt.
func unseal(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - sumLen
	if n < 0 || binary.LittleEndian.Uint32(sealed[n:]) != checksum(key, sealed[:n]) {
		return nil, fmt.Errorf("%w: checksum of record %q", store.ErrCorrupt, key)
	}
	return sealed[:n], nil
}

// encoder appends to a record.
type encoder struct{ b []byte }

func (e *encoder) uint(n uint64) { e.b = binary.AppendUvarint(e.b, n) }
func (e *encoder) int(n int64)   { e.b = binary.AppendVarint(e.b, n) }
func (e *encoder) byte(n byte)   { e.b = append(e.b, n) }

func (e *encoder) text(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

// micros is a time as a record has it.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// timeOf is micros backwards. The first microsecond of 1970 is no time of ours.
func timeOf(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

func (e *encoder) time(t time.Time) { e.int(micros(t)) }

func (e *encoder) path(p smtp.Path) {
	e.text(p.Local)
	e.text(p.Domain.String())
}

func (e *encoder) addr(a netip.Addr) {
	// MarshalBinary of an address has no error.
	b, _ := a.MarshalBinary()
	e.text(string(b))
}

func (e *encoder) reply(r *smtp.Reply) {
	if r == nil {
		e.byte(0)
		return
	}
	e.byte(1)
	e.int(int64(r.Code))
	for _, n := range r.Enh {
		e.int(int64(n))
	}
	e.text(r.Text)
	cause := ""
	if r.Cause != nil {
		cause = r.Cause.Error()
	}
	e.text(cause)
}

// decoder takes a record apart. After the first error it returns zeros, and err is set.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	d.b, d.err = nil, errRecord
}

func (d *decoder) uint() uint64 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) int() int64 {
	n, size := binary.Varint(d.b)
	if size <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[size:]
	return n
}

// small is a number that fits an int of 32 bits.
func (d *decoder) small() int {
	n := d.int()
	if n < math.MinInt32 || n > math.MaxInt32 {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	n := d.b[0]
	d.b = d.b[1:]
	return n
}

// bytes is a text that belongs to the record.
func (d *decoder) bytes() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	s := d.b[:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) text() string    { return string(d.bytes()) }
func (d *decoder) time() time.Time { return timeOf(d.int()) }

// count is how many things follow, each of at least one octet.
func (d *decoder) count() int {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) path() smtp.Path {
	local, domain := d.text(), d.text()
	p := smtp.Path{Local: local}
	if domain == "" {
		return p
	}
	var err error
	if p.Domain, err = smtp.ParseDomain(domain); err != nil {
		d.fail()
	}
	return p
}

func (d *decoder) addr() (a netip.Addr) {
	if a.UnmarshalBinary(d.bytes()) != nil {
		d.fail()
	}
	return a
}

func (d *decoder) reply() *smtp.Reply {
	if d.byte() == 0 {
		return nil
	}
	r := &smtp.Reply{Code: d.small()}
	for i := range r.Enh {
		r.Enh[i] = d.small()
	}
	r.Text = d.text()
	if cause := d.text(); cause != "" {
		r.Cause = errors.New(cause)
	}
	return r
}

// end returns the error of the record, which must have been read to its end.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail()
	}
	return d.err
}

// begin reads the version.
func begin(record []byte) *decoder {
	d := &decoder{b: record}
	if d.byte() != codecVersion {
		d.fail()
	}
	return d
}

// appendEnvelope writes what never changes of a message.
func appendEnvelope(b []byte, m *store.Message) []byte {
	e := &encoder{append(b, codecVersion)}
	s := &m.Sender
	e.path(s.Path)
	e.int(s.Size)
	e.text(string(s.Body))
	e.byte(bits(s.UTF8, s.RequireTLS))
	e.text(string(s.Return))
	e.text(s.EnvID)
	e.text(s.Auth)
	o := &m.Origin
	e.text(o.Listener)
	e.text(o.Session)
	e.text(string(o.ReportOf))
	e.text(o.Reason)
	e.time(o.By)
	e.text(o.Mode)
	e.forwarded(&o.Client)
	e.uint(uint64(len(m.Recipients)))
	for i := range m.Recipients {
		r := &m.Recipients[i].Recipient
		e.path(r.Path)
		e.byte(byte(r.Notify))
		e.text(r.Original.Type)
		e.text(r.Original.Address)
	}
	// What came later stands at the end, and only where it says something.
	if later := bits(o.Trusted, o.TLSOptional); later != 0 {
		e.byte(later)
	}
	return e.b
}

func (e *encoder) forwarded(f *smtp.Forwarded) {
	e.text(f.Name)
	e.addr(f.Addr)
	e.uint(uint64(f.Port))
	e.text(f.Proto)
	e.text(f.Helo)
	e.text(f.Ident)
	e.text(f.Source)
	e.text(f.Login)
	e.addr(f.DestAddr)
	e.uint(uint64(f.DestPort))
}

func (d *decoder) forwarded() (f smtp.Forwarded) {
	f.Name = d.text()
	f.Addr = d.addr()
	f.Port = uint16(d.uint())
	f.Proto = d.text()
	f.Helo = d.text()
	f.Ident = d.text()
	f.Source = d.text()
	f.Login = d.text()
	f.DestAddr = d.addr()
	f.DestPort = uint16(d.uint())
	return f
}

// bits puts booleans into an octet, the first lowest.
func bits(list ...bool) (b byte) {
	for i, set := range list {
		if set {
			b |= 1 << i
		}
	}
	return b
}

// decodeEnvelope fills in m what appendEnvelope wrote.
func decodeEnvelope(record []byte, m *store.Message) error {
	d := begin(record)
	s := &m.Sender
	s.Path = d.path()
	s.Size = d.int()
	s.Body = smtp.Body(d.text())
	flags := d.byte()
	s.UTF8, s.RequireTLS = flags&1 != 0, flags&2 != 0
	s.Return = smtp.Return(d.text())
	s.EnvID = d.text()
	s.Auth = d.text()
	o := &m.Origin
	o.Listener = d.text()
	o.Session = d.text()
	o.ReportOf = store.ID(d.text())
	o.Reason = d.text()
	o.By = d.time()
	o.Mode = d.text()
	o.Client = d.forwarded()
	m.Recipients = make([]store.Recipient, d.count())
	for i := range m.Recipients {
		r := &m.Recipients[i].Recipient
		r.Path = d.path()
		r.Notify = smtp.Notify(d.byte())
		r.Original.Type = d.text()
		r.Original.Address = d.text()
	}
	if len(d.b) > 0 {
		later := d.byte()
		o.Trusted, o.TLSOptional = later&1 != 0, later&2 != 0
	}
	return d.end()
}

// state is what an 's' record holds.
type state struct {
	arrived, size, expires int64 // times in microseconds
	priority               int8
	inFile                 bool // the content has a file of its own
	attempts               bool // there is an 'a' record
	recipients             []stateRecipient
}

type stateRecipient struct {
	destination []byte // of the record, or store.Destination's octets
	state       store.State
	told        bool
	due         int64
	tries       uint32
}

// appendState writes s. Destinations that follow each other and are the same are written
// once.
func appendState(b []byte, s *state) []byte {
	e := &encoder{append(b, codecVersion)}
	e.int(s.arrived)
	e.int(s.size)
	e.int(s.expires)
	e.int(int64(s.priority))
	e.byte(bits(s.inFile, s.attempts))
	e.uint(uint64(len(s.recipients)))
	for i := range s.recipients {
		r := &s.recipients[i]
		same := i > 0 && string(s.recipients[i-1].destination) == string(r.destination)
		e.byte(byte(r.state) | bits(r.told, same)<<4)
		if !same {
			e.uint(uint64(len(r.destination)))
			e.b = append(e.b, r.destination...)
		}
		e.int(r.due)
		e.uint(uint64(r.tries))
	}
	return e.b
}

// decodeState reads into s, whose recipients it uses again.
func decodeState(record []byte, s *state) error {
	d := begin(record)
	s.arrived, s.size, s.expires = d.int(), d.int(), d.int()
	priority := d.int()
	s.priority = int8(priority)
	flags := d.byte()
	s.inFile, s.attempts = flags&1 != 0, flags&2 != 0
	n := d.count()
	s.recipients = s.recipients[:0]
	var last []byte
	for range n {
		head := d.byte()
		if head>>4&2 == 0 {
			last = d.bytes()
		}
		r := stateRecipient{destination: last, state: store.State(head & 15), told: head>>4&1 != 0, due: d.int()}
		tries := d.uint()
		r.tries = uint32(tries)
		if r.state > store.Failed || tries > math.MaxUint32 {
			d.fail()
		}
		s.recipients = append(s.recipients, r)
	}
	if n == 0 || priority != int64(s.priority) || s.size < 0 {
		d.fail()
	}
	return d.end()
}

// attempts is what an 'a' record holds.
type attempts struct {
	last []*smtp.Reply // by recipient
	list []store.Attempt
}

func appendAttempts(b []byte, a *attempts) []byte {
	e := &encoder{append(b, codecVersion)}
	e.uint(uint64(len(a.last)))
	for _, r := range a.last {
		e.reply(r)
	}
	e.uint(uint64(len(a.list)))
	for i := range a.list {
		t := &a.list[i]
		e.time(t.Time)
		e.text(string(t.Destination))
		e.text(t.Host)
		e.uint(uint64(len(t.Recipients)))
		for _, i := range t.Recipients {
			e.int(int64(i))
		}
		e.reply(t.Reply)
		e.int(int64(t.Took))
	}
	// What came later stands at the end, and only where it says something.
	if slices.ContainsFunc(a.list, knowsConnection) {
		for i := range a.list {
			e.addr(a.list[i].Addr)
			e.text(a.list[i].TLS)
			e.text(a.list[i].Verdict)
		}
	}
	return e.b
}

// knowsConnection tells whether an attempt says anything of its connection.
func knowsConnection(t store.Attempt) bool { return t.Addr.IsValid() || t.TLS != "" || t.Verdict != "" }

func decodeAttempts(record []byte) (*attempts, error) {
	d := begin(record)
	a := &attempts{last: make([]*smtp.Reply, d.count())}
	for i := range a.last {
		a.last[i] = d.reply()
	}
	a.list = make([]store.Attempt, d.count())
	for i := range a.list {
		t := &a.list[i]
		t.Time = d.time()
		t.Destination = store.Destination(d.text())
		t.Host = d.text()
		if n := d.count(); n > 0 {
			t.Recipients = make([]int, n)
		}
		for i := range t.Recipients {
			t.Recipients[i] = d.small()
		}
		t.Reply = d.reply()
		t.Took = time.Duration(d.int())
	}
	for i := 0; i < len(a.list) && (i > 0 || len(d.b) > 0); i++ {
		t := &a.list[i]
		t.Addr = d.addr()
		t.TLS = d.text()
		t.Verdict = d.text()
	}
	return a, d.end()
}
