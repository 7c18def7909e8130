// Command goguest follows the scripts of package tck with the Go SDK, so far as its handlers
// can be made to do what a script wants: they do not let an author read a header before there
// is one, for example.
package main

import (
	"encoding/hex"
	"errors"
	"io"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filter"
)

func main() {}

func init() { newFilter().Serve() }

// step is a step of a script, as package tck describes it.
type step struct {
	hook   abi.Hook
	number uint16
	imp    uint32 // hash of its name
	args   []byte
}

// newFilter returns a filter that reads its script from the configuration.
func newFilter() *filter.Filter {
	f := filter.New("tck")
	var script []step
	f.Configure(func(c filter.Config) error {
		c.Only("script")
		b, err := hex.DecodeString(c.String("script"))
		if err != nil {
			return err
		}
		script, err = parse(b)
		return err
	})
	follow := func(at abi.Hook, w filter.Reply, e filter.Event, on session) {
		for _, s := range script {
			if s.hook == at {
				on.do(w, e, s)
			}
		}
	}
	f.OnConnect(func(w filter.Reply, e *filter.ConnectEvent) { follow(abi.HookConnect, w, e.Event, session{}) })
	f.OnSecure(func(w filter.Reply, e *filter.SecureEvent) { follow(abi.HookSecure, w, e.Event, session{}) })
	f.OnHelo(func(w filter.Reply, e *filter.HeloEvent) { follow(abi.HookHelo, w, e.Event, session{}) })
	f.OnAuth(func(w filter.Reply, e *filter.AuthEvent) { follow(abi.HookAuth, w, e.Event, session{}) })
	f.OnMailFrom(func(w filter.Reply, e *filter.MailEvent) { follow(abi.HookMail, w, e.Event, session{mail: e}) })
	f.OnRcptTo(func(w filter.Reply, e *filter.RcptEvent) { follow(abi.HookRcpt, w, e.Event, session{mail: e}) })
	f.OnDataCommand(func(w filter.Reply, e *filter.DataEvent) { follow(abi.HookData, w, e.Event, session{mail: e}) })
	f.OnHeaders(func(w filter.Reply, m *filter.HeadersEvent) {
		follow(abi.HookHeaders, w, m.Event, session{mail: m, header: &m.Header})
	})
	f.OnChunk(func(w filter.Reply, m *filter.ChunkEvent) { follow(abi.HookChunk, w, m.Event, session{}) })
	f.OnData(func(w filter.Reply, m *filter.Message) {
		follow(abi.HookMessage, w, m.Event, session{mail: m, header: &m.Header, body: m.Body, msg: m})
	})
	f.OnRoute(func(w filter.Reply, e *filter.RouteEvent) {
		follow(abi.HookRoute, w, e.Event, session{out: &e.OutboundEvent, route: e})
	})
	f.OnDeliver(func(w filter.Reply, e *filter.DeliverEvent) {
		follow(abi.HookDeliver, w, e.Event, session{out: &e.OutboundEvent, deliver: e})
	})
	told := func(h abi.Hook) func(e *filter.OutcomeEvent) {
		return func(e *filter.OutcomeEvent) { follow(h, filter.Reply{}, e.Event, session{out: &e.OutboundEvent}) }
	}
	f.OnDeferred(told(abi.HookDeferred))
	f.OnBounced(told(abi.HookBounced))
	f.OnDelivered(told(abi.HookDelivered))
	f.OnReset(func(e *filter.Event) { follow(abi.HookReset, filter.Reply{}, *e, session{}) })
	f.OnClose(func(e *filter.Event) { follow(abi.HookClose, filter.Reply{}, *e, session{}) })
	return f
}

var errScript = errors.New("the script is broken")

func parse(b []byte) (script []step, err error) {
	for {
		if len(b) == 0 {
			return nil, errScript
		}
		if b[0] == 0xff {
			return script, nil
		}
		if len(b) < 12 || len(b) < 12+int(u32(b[8:])) {
			return nil, errScript
		}
		n := 12 + int(u32(b[8:]))
		script = append(script, step{abi.Hook(b[0]), uint16(b[2]) | uint16(b[3])<<8, u32(b[4:]), b[12:n]})
		b = b[n:]
	}
}

func u32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// number takes an argument that is a number, text one that is octets, room one for a buffer.
func (s *step) num() int64 {
	v := int64(u32(s.args)) | int64(u32(s.args[4:]))<<32
	s.args = s.args[8:]
	return v
}

func (s *step) text() string {
	n := 4 + u32(s.args)
	t := string(s.args[4:n])
	s.args = s.args[n:]
	return t
}

func (s *step) room() int {
	n := int(u32(s.args))
	s.args = s.args[4:]
	return n
}

// hash is the 32-bit FNV-1a of an import's name.
func hash(name string) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return h
}

// session is what an event has besides what all have; nil where there is none.
type session struct {
	mail interface {
		SetFrom(addr string) error
		Recipients() filter.Recipients
	}
	header *filter.Header
	body   *filter.Body
	msg    *filter.Message
	writer io.WriteCloser // of a new body

	out     *filter.OutboundEvent
	route   *filter.RouteEvent
	deliver *filter.DeliverEvent
}

// outcome is what came of a step.
type outcome struct {
	result  int64
	buffer  []byte // all of its room
	unknown bool   // the SDK cannot express it
}

// done is the outcome of what returns an error alone.
func done(err error) outcome {
	var no abi.Errno
	switch {
	case err == nil:
		return outcome{}
	case errors.As(err, &no):
		return outcome{result: int64(no)}
	}
	return outcome{result: int64(abi.EINVAL)}
}

// read is the outcome of a read that found data, of which room takes some.
func read(data string, room int) outcome {
	b := make([]byte, room)
	for i := copy(b, data); i < room; i++ {
		b[i] = 0xee
	}
	return outcome{result: int64(len(data)), buffer: b}
}

// none is the outcome of a read that found nothing.
func none(room int) outcome {
	o := read("", room)
	o.result = int64(abi.ENOENT)
	return o
}

// do does a step and logs what came of it, if the event has what it needs.
func (on *session) do(w filter.Reply, e filter.Event, s step) {
	var o outcome
	ok := false
	for _, try := range []func(filter.Reply, filter.Event, *step) (outcome, bool){on.core, on.headers, on.bodies, on.parts, on.envelope, on.outside, on.outward} {
		if o, ok = try(w, e, &s); ok {
			break
		}
	}
	if !ok {
		return
	}
	line := []byte{byte(s.number), byte(s.number >> 8), 0, 0}
	if o.unknown {
		line[2] = 1
	}
	for i := range 8 {
		line = append(line, byte(o.result>>(8*i)))
	}
	e.Log(filter.LevelInfo, "tck "+hex.EncodeToString(append(line, o.buffer...)))
}

func (on *session) core(w filter.Reply, e filter.Event, s *step) (outcome, bool) {
	switch s.imp {
	case hash("verdict"):
		return outcome{unknown: !verdict(w, abi.Verdict(s.num()))}, true
	case hash("log_enabled"):
		if e.LogEnabled(filter.Level(s.num())) {
			return outcome{result: 1}, true
		}
		return outcome{}, false
	case hash("now"):
		return outcome{result: e.Now()}, true
	case hash("mono"):
		return outcome{result: e.Mono()}, true
	case hash("tag"):
		return done(e.Tag(s.text(), s.text())), true
	case hash("score"):
		return done(e.Score(s.text(), s.num())), true
	case hash("sess_get"):
		key, room := s.text(), s.room()
		if v := e.Session().Get(key); v != "" {
			return read(v, room), true
		}
		return none(room), true
	case hash("sess_set"):
		return done(e.Session().Set(s.text(), s.text())), true
	case hash("random"):
		room := s.room()
		p := make([]byte, room)
		if err := e.Random(p); err != nil {
			return done(err), true
		}
		return outcome{result: int64(room), buffer: p}, true
	case hash("get"):
		f := s.num()
		if f != int64(abi.Field(f)) {
			return outcome{}, false
		}
		return fact(e, abi.Field(f), s.num(), s.room())
	}
	return outcome{}, false
}

// verdict says a verdict, unless it is one whose text or reason the SDK gives itself.
func verdict(w filter.Reply, v abi.Verdict) bool {
	class, subject, detail := v.Enhanced()
	enhanced := string([]byte{byte('0' + class), '.', byte('0' + subject), '.', byte('0' + detail)})
	switch {
	case v.HasText():
		return false
	case v.Action() == abi.ActReject:
		w.Reject(v.Code(), enhanced, "")
	case v.Action() == abi.ActTempfail:
		w.Tempfail(v.Code(), enhanced, "")
	default:
		return false
	}
	return true
}

// fact reads a field for which the SDK has a method.
func fact(e filter.Event, f abi.Field, index int64, room int) (outcome, bool) {
	if index != 0 || f == 0 {
		return outcome{}, false
	}
	switch f {
	case abi.FieldHelo:
		return read(e.Helo(), room), true
	case abi.FieldClientIP:
		return read(string(e.ClientIP().Bytes()), room), true
	case abi.FieldTLSVersion:
		v := e.TLS().Version()
		return read(string([]byte{byte(v), byte(v >> 8), 0, 0, 0, 0, 0, 0}), room), true
	}
	return outcome{}, false
}

func (on *session) headers(_ filter.Reply, _ filter.Event, s *step) (outcome, bool) {
	h := on.header
	if h == nil {
		return outcome{}, false
	}
	switch s.imp {
	case hash("hdr_count"):
		return outcome{result: int64(h.Len())}, true
	case hash("hdr_get"):
		i, room := s.num(), s.room()
		if name, value := h.At(int(i)); name != "" {
			o := read(name+value, room)
			o.result = int64(len(name))<<32 | int64(len(value))
			return o, true
		}
		return none(room), true
	case hash("hdr_find"):
		name, from := s.text(), s.num()
		if i := h.Find(name, int(from)); i >= 0 {
			return outcome{result: int64(i)}, from >= 0
		}
		return outcome{result: int64(abi.ENOENT)}, from >= 0
	case hash("hdr_raw"):
		off, room := s.num(), s.room()
		raw, err := io.ReadAll(h.Raw())
		if err != nil || off < 0 || off > int64(len(raw)) {
			return outcome{}, false
		}
		return read(string(raw[off:]), room), true
	case hash("hdr_add"):
		return done(h.Insert(int(s.num()), s.text(), s.text())), true
	case hash("hdr_set"):
		return done(h.SetAt(int(s.num()), s.text())), true
	case hash("hdr_del"):
		return done(h.DeleteAt(int(s.num()))), true
	}
	return outcome{}, false
}

func (on *session) bodies(_ filter.Reply, _ filter.Event, s *step) (outcome, bool) {
	b := on.body
	if b == nil {
		return outcome{}, false
	}
	switch s.imp {
	case hash("body_len"):
		n := b.Size()
		return outcome{result: n}, n > 0
	case hash("body_read"):
		off, room := s.num(), s.room()
		p := make([]byte, room)
		n, err := b.ReadAt(p, off)
		if err != nil && err != io.EOF {
			return outcome{}, false
		}
		return read(string(p[:n]), room), true
	case hash("body_splice"):
		off, del := s.num(), s.num()
		return done(b.Splice(off, del, []byte(s.text()))), true
	case hash("body_new"):
		var err error
		on.writer, err = b.NewWriter()
		return done(err), true
	}
	if on.writer == nil {
		return outcome{}, false
	}
	switch s.imp {
	case hash("body_write"):
		n, err := on.writer.Write([]byte(s.text()))
		if err != nil {
			return done(err), true
		}
		return outcome{result: int64(n)}, true
	case hash("body_commit"):
		return done(on.writer.Close()), true
	}
	return outcome{}, false
}

func (on *session) parts(_ filter.Reply, _ filter.Event, s *step) (outcome, bool) {
	if on.msg == nil || s.imp != hash("part_count") && s.imp != hash("part_read") {
		return outcome{}, false
	}
	var list []*filter.Part
	for p := range on.msg.Parts() {
		list = append(list, p)
	}
	if s.imp == hash("part_count") {
		return outcome{result: int64(len(list))}, len(list) > 0
	}
	i, form, off, room := s.num(), abi.PartForm(s.num()), s.num(), s.room()
	if i < 0 || i >= int64(len(list)) || off < 0 {
		return outcome{}, false
	}
	c := list[i].Content()
	switch form {
	case abi.PartDecoded:
	case abi.PartRaw:
		c = list[i].Raw()
	case abi.PartHeader:
		c = list[i].Header()
	default:
		return outcome{}, false
	}
	p := make([]byte, room)
	n, err := c.ReadAt(p, off)
	if err != nil && err != io.EOF {
		return done(err), true
	}
	return read(string(p[:n]), room), true
}

// outside is what is not the session's.
func (on *session) outside(_ filter.Reply, e filter.Event, s *step) (outcome, bool) {
	switch s.imp {
	case hash("kv_get"):
		key, room := s.text(), s.room()
		v, ok, err := e.KV().Get(key)
		switch {
		case err != nil:
			o := read("", room)
			o.result = done(err).result
			return o, true
		case !ok:
			return none(room), true
		}
		return read(string(v), room), true
	case hash("kv_set"):
		return done(e.KV().Set(s.text(), []byte(s.text()), s.num())), true
	case hash("kv_cas"):
		ok, err := e.KV().Swap(s.text(), []byte(s.text()), []byte(s.text()), s.num())
		if ok {
			return outcome{result: 1}, true
		}
		return done(err), true
	case hash("kv_del"):
		return done(e.KV().Delete(s.text())), true
	case hash("kv_incr"):
		key, delta, ttl, room := s.text(), s.num(), s.num(), s.room()
		sum, err := e.KV().Add(key, delta, ttl)
		if err != nil {
			o := read("", room)
			o.result = done(err).result
			return o, true
		}
		b := make([]byte, 8)
		for i := range b {
			b[i] = byte(sum >> (8 * i))
		}
		return read(string(b), room), true
	case hash("secret"):
		name, room := s.text(), s.room()
		v, err := e.Secret(name)
		if err != nil {
			o := read("", room)
			o.result = done(err).result
			return o, true
		}
		return read(v, room), true
	}
	return outcome{}, false
}

// outward is the way of outgoing mail.
func (on *session) outward(_ filter.Reply, _ filter.Event, s *step) (outcome, bool) {
	switch {
	case on.route != nil && s.imp == hash("out_relay"):
		return done(on.route.SetRelay(s.text())), true
	case on.route != nil && s.imp == hash("out_source"):
		return done(on.route.SetSource(s.text())), true
	case on.route != nil && s.imp == hash("out_tls"):
		return done(on.route.SetTLS(filter.Encryption(s.num()))), true
	case on.deliver != nil && s.imp == hash("out_connect"):
		return done(on.deliver.Connect(s.text())), true
	case on.out != nil && s.imp == hash("rcpt_count"):
		n := len(on.out.Recipients())
		return outcome{result: int64(n)}, n > 0
	}
	return outcome{}, false
}

func (on *session) envelope(_ filter.Reply, _ filter.Event, s *step) (outcome, bool) {
	if on.mail == nil {
		return outcome{}, false
	}
	rcpts := on.mail.Recipients()
	switch s.imp {
	case hash("env_from"):
		return done(on.mail.SetFrom(s.text())), true
	case hash("rcpt_count"):
		n := rcpts.Len()
		return outcome{result: int64(n)}, n > 0
	case hash("rcpt_get"):
		i, room := s.num(), s.room()
		if a := rcpts.At(int(i)); !a.IsNull() {
			return read(a.String(), room), true
		}
		return none(room), rcpts.Len() > 0
	case hash("rcpt_add"):
		return done(rcpts.Add(s.text())), true
	case hash("rcpt_set"):
		return done(rcpts.Set(int(s.num()), s.text())), true
	case hash("rcpt_del"):
		return done(rcpts.Delete(int(s.num()))), true
	}
	return outcome{}, false
}
