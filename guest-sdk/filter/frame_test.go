package filter

import (
	"encoding/binary"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// deafHost knows nothing: every call is ENOENT.
type deafHost struct{ Host }

const enoent = int32(abi.ENOENT)

func (deafHost) Get(int32, int32, []byte) int32        { return enoent }
func (deafHost) Log(int32, []byte) int32               { return enoent }
func (deafHost) LogEnabled(int32) int32                { return enoent }
func (deafHost) Reply([]byte) int32                    { return enoent }
func (deafHost) Tag([]byte, []byte) int32              { return enoent }
func (deafHost) RcptCount() int32                      { return enoent }
func (deafHost) RcptGet(int32, []byte) int32           { return enoent }
func (deafHost) HdrCount() int32                       { return enoent }
func (deafHost) HdrFind([]byte, int32) int32           { return enoent }
func (deafHost) HdrGet(int32, []byte) int64            { return int64(enoent) }
func (deafHost) HdrRaw(int32, []byte) int32            { return enoent }
func (deafHost) BodyLen() int64                        { return int64(enoent) }
func (deafHost) SessGet([]byte, []byte) int32          { return enoent }
func (deafHost) Random([]byte) int32                   { return enoent }
func (deafHost) BodyRead(int64, []byte) int32          { return enoent }
func (deafHost) BodySplice(int64, int64, []byte) int32 { return enoent }

// curious returns a filter that asks every event for everything.
func curious(got func(e Event)) *Filter {
	f := New("curious")
	mail := func(e mailEvent) {
		got(e.Event)
		e.From()
		e.Size()
		e.Params()
		e.Recipients().All()
	}
	f.OnConnect(func(_ Reply, e *ConnectEvent) { got(e.Event) })
	f.OnSecure(func(_ Reply, e *SecureEvent) { got(e.Event) })
	f.OnHelo(func(_ Reply, e *HeloEvent) { got(e.Event) })
	f.OnAuth(func(w Reply, e *AuthEvent) {
		got(e.Event)
		e.Mechanism()
		e.Login()
		e.Authz()
		e.Password()
		e.Token()
		w.Accept()
	})
	f.OnMailFrom(func(_ Reply, e *MailEvent) { mail(e.mailEvent) })
	f.OnRcptTo(func(_ Reply, e *RcptEvent) { mail(e.mailEvent); e.Rcpt(); e.RcptParams() })
	f.OnDataCommand(func(_ Reply, e *DataEvent) { mail(e.mailEvent) })
	f.OnHeaders(func(_ Reply, m *HeadersEvent) { mail(m.mailEvent); m.Header.Get("x") })
	f.OnData(func(w Reply, m *Message) {
		mail(m.mailEvent)
		if n, err := m.Body.Read(make([]byte, 1)); n != 0 || err == nil {
			panic("a body without a host")
		}
		w.Reject(0, "", "text that is not taken")
	})
	out := func(e OutboundEvent) {
		mail(mailEvent(e))
		e.QueueID()
		e.Target()
		e.Try()
		e.Arrived()
		e.Expires()
		e.Way("relay")
	}
	f.OnRoute(func(_ Reply, e *RouteEvent) { out(e.OutboundEvent) })
	f.OnDeliver(func(_ Reply, e *DeliverEvent) { out(e.OutboundEvent); e.Hops() })
	told := func(e *OutcomeEvent) { out(e.OutboundEvent); e.Fates() }
	f.OnDeferred(told)
	f.OnBounced(told)
	f.OnDelivered(told)
	f.OnReset(func(e *Event) { got(*e) })
	f.OnClose(func(e *Event) { got(*e) })
	return f
}

func askAll(e Event) {
	e.ClientIP()
	e.ServerIP()
	e.ClientPort()
	e.RDNS()
	e.Helo()
	e.User()
	e.TLS().Active()
	e.TLS().Cipher()
	e.Tags()
	e.ConnID()
	e.Listener()
	e.Time()
	e.Budget()
	e.SessionID()
	e.Transaction()
	e.Session().Get("x")
}

// FuzzFrame: whatever the mailbox holds, no handler panics, and a frame that is not one
// is said to be a failure.
func FuzzFrame(f *testing.F) {
	f.Add(uint32(6), build(abi.HookRcpt, entry{abi.FieldHelo, abi.KindBytes, []byte("x")}, entry{abi.FieldRcptParams, abi.KindList, []byte{1, 0, 0, 0, 'A'}}))
	f.Add(uint32(1), build(abi.HookConnect, entry{abi.FieldClientIP, abi.KindIP, []byte{192, 0, 2, 1}}, entry{abi.FieldClientPort, abi.KindInt, []byte{1}}))
	f.Add(uint32(10), build(abi.HookMessage))
	f.Add(uint32(14), build(abi.HookDeliver, entry{abi.FieldHops, abi.KindList, []byte("\x08\x00\x00\x00a\t1\tb,c\t")}))
	f.Add(uint32(16), build(abi.HookBounced, entry{abi.FieldFates, abi.KindList, []byte("\x03\x00\x00\x001\ta\x00\x00\x00\x00")}))
	f.Add(uint32(99), build(99))
	f.Add(uint32(6), []byte("MG1\x00"))
	f.Fuzz(func(t *testing.T, hook uint32, b []byte) {
		v := abi.Verdict(curious(askAll).Hook(deafHost{}, hook, b))
		_, ok := parseFrame(b, hook)
		if failed := v&abi.ErrorBit != 0; failed == ok {
			t.Errorf("hook %d, frame % x: verdict %#x, frame good: %v", hook, b, uint64(v), ok)
		}
		if uint32(v) == failPanic && v&abi.ErrorBit != 0 {
			t.Errorf("hook %d, frame % x: a handler panicked", hook, b)
		}
	})
}

type entry struct {
	id      abi.Field
	kind    abi.Kind
	payload []byte
}

// build writes a frame as the host does.
func build(hook abi.Hook, entries ...entry) []byte {
	b := make([]byte, abi.FrameHead+len(entries)*abi.FrameEntry)
	le := binary.LittleEndian
	le.PutUint32(b[abi.OffMagic:], abi.FrameMagic)
	le.PutUint16(b[abi.OffHook:], uint16(hook))
	le.PutUint16(b[abi.OffFields:], uint16(len(entries)))
	le.PutUint64(b[abi.OffSession:], 0x1122334455667788)
	le.PutUint64(b[abi.OffTransaction:], 3)
	le.PutUint64(b[abi.OffTime:], 1<<60)
	le.PutUint64(b[abi.OffBudget:], 2e6)
	for i, e := range entries {
		at := b[abi.FrameHead+i*abi.FrameEntry:]
		le.PutUint16(at, uint16(e.id))
		le.PutUint16(at[abi.EntryKind:], uint16(e.kind))
		le.PutUint32(at[abi.EntryOff:], uint32(len(b)))
		le.PutUint32(at[abi.EntryLen:], uint32(len(e.payload)))
		b = append(b, e.payload...)
	}
	le.PutUint32(b[abi.OffLength:], uint32(len(b)))
	return b
}

// TestFrame: values come out of the frame, at their full width, without asking the host.
func TestFrame(t *testing.T) {
	frame := build(abi.HookConnect,
		entry{77, 9, []byte("from the future")}, // unknown fields are skipped
		entry{abi.FieldHelo, abi.KindBytes, []byte("name")},
		entry{abi.FieldClientPort, abi.KindInt, []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}},
		entry{abi.FieldTags, abi.KindList, []byte{1, 0, 0, 0, 'a', 0, 0, 0, 0, 2, 0, 0, 0, 'b', 'c', 9, 0, 0, 0, 'x'}},
		entry{abi.FieldRDNS, abi.KindInt, []byte("a number of the wrong kind")},
		entry{abi.FieldClientIP, abi.KindIP, []byte{192, 0, 2, 1}},
	)
	called := false
	f := curious(func(e Event) {
		called = true
		if e.Helo() != "name" || e.ClientPort() != -2 || e.RDNS() != "" || e.ClientIP().String() != "192.0.2.1" {
			t.Errorf("got %q %d %q %s", e.Helo(), e.ClientPort(), e.RDNS(), e.ClientIP())
		}
		if tags := e.Tags(); len(tags) != 3 || tags[0] != "a" || tags[1] != "" || tags[2] != "bc" {
			t.Errorf("tags: got %q, want a, nothing and bc; the last is cut short", tags)
		}
		if e.SessionID() != 0x1122334455667788 || e.Transaction() != 3 || e.Time() != 1<<60 || e.Budget() != 2e6 {
			t.Errorf("head: got %#x %d %d %d", e.SessionID(), e.Transaction(), e.Time(), e.Budget())
		}
	})
	if v := f.Hook(deafHost{}, uint32(abi.HookConnect), frame); v != 0 || !called {
		t.Errorf("verdict %#x, handler called: %v", v, called)
	}
}
