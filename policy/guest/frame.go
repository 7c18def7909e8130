package guest

import (
	"crypto/tls"
	"encoding/binary"
	"net/netip"
	"strconv"
	"time"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/mail/smtp"
)

// frame.go: the facts of an event as fields, in the frame and one by one.

// hookFields are the fields of each hook's frame, by hook number.
var hookFields = func() (t [abi.LastHook + 1][]abi.Field) {
	for _, h := range abi.HookTable() {
		t[h.Hook] = h.Fields
	}
	return t
}()

// Frame implements Host. What does not fit is left out and flagged.
func (g *Env) Frame(buf []byte) int {
	fields := hookFields[g.hook]
	end := abi.FrameHead + len(fields)*abi.FrameEntry // payload begins behind all entries
	n, flags := 0, uint32(0)
	for _, f := range fields {
		// Written where it belongs: what does not fit goes elsewhere by itself.
		room := buf[min(end, len(buf)):]
		value, kind := g.field(room[:0], f)
		if kind == 0 {
			continue
		}
		if len(value) > len(room) {
			flags |= abi.FlagPartial
			continue
		}
		entry := buf[abi.FrameHead+n*abi.FrameEntry:][:abi.FrameEntry]
		binary.LittleEndian.PutUint16(entry, uint16(f))
		binary.LittleEndian.PutUint16(entry[abi.EntryKind:], uint16(kind))
		binary.LittleEndian.PutUint32(entry[abi.EntryOff:], uint32(end))
		binary.LittleEndian.PutUint32(entry[abi.EntryLen:], uint32(len(value)))
		if len(value) > 0 && &value[0] != &room[0] { // it was there already, elsewhere
			copy(room, value)
		}
		end += len(value)
		n++
	}
	g.frameHead(buf, n, end, flags)
	return end
}

func (g *Env) frameHead(buf []byte, fields, length int, flags uint32) {
	le := binary.LittleEndian
	le.PutUint32(buf[abi.OffMagic:], abi.FrameMagic)
	le.PutUint16(buf[abi.OffHook:], uint16(g.hook))
	le.PutUint16(buf[abi.OffFields:], uint16(fields))
	le.PutUint32(buf[abi.OffLength:], uint32(length))
	le.PutUint32(buf[abi.OffFlags:], flags)
	le.PutUint64(buf[abi.OffSession:], g.event.Session.Number)
	seq := uint64(0)
	if g.event.Tx != nil {
		seq = g.event.Tx.Seq
	}
	le.PutUint64(buf[abi.OffTransaction:], seq)
	le.PutUint64(buf[abi.OffTime:], uint64(g.event.Time.UnixNano()))
	le.PutUint64(buf[abi.OffBudget:], uint64(g.cpu))
}

// Get implements Host.
func (g *Env) Get(field, index int32, buf []byte) int32 {
	if !g.at(abi.InSession) {
		return int32(abi.EPHASE)
	}
	if field < 0 || field > 0xffff || index < -1 {
		return int32(abi.EINVAL)
	}
	value, kind := g.field(g.scratch[:0], abi.Field(field))
	if cap(value) > cap(g.scratch) && abi.Field(field) != abi.FieldChunk { // whose octets are not ours
		g.scratch = value[:0] // it grew
	}
	if !g.charge(int64(len(value))) { // of a list, all of it is written each time
		return int32(abi.ETIME)
	}
	switch {
	case kind == 0 && g.concealed(abi.Field(field)):
		return int32(abi.EPERM)
	case kind == 0:
		return int32(abi.ENOENT)
	case kind != abi.KindList && index > 0:
		return int32(abi.EINVAL)
	case kind != abi.KindList || index == -1:
		return fill(buf, value)
	}
	for ; index > 0 && len(value) > 0; index-- {
		value = value[4+binary.LittleEndian.Uint32(value):]
	}
	if len(value) == 0 {
		return int32(abi.ENOENT)
	}
	return fill(buf, value[4:4+binary.LittleEndian.Uint32(value)])
}

// concealed tells whether a field is there and is kept from the filter.
func (g *Env) concealed(f abi.Field) bool {
	if f == abi.FieldChunk {
		return g.event.Chunk != nil && !g.opts.Grants.BodyRead
	}
	a := g.event.Auth
	if a == nil || !a.Reveal || g.opts.Grants.AuthData {
		return false
	}
	return f == abi.FieldAuthPassword && a.Password != "" || f == abi.FieldAuthToken && a.Token != ""
}

// field returns a field's payload; kind 0 means that the event has no such field. It is
// appended to b, which is empty, or was there already: it may not be changed.
func (g *Env) field(b []byte, f abi.Field) (value []byte, kind abi.Kind) {
	s := g.event.Session
	switch f {
	case abi.FieldClientIP:
		return ip(b, s.Remote.Addr())
	case abi.FieldClientPort:
		return number(b, int64(s.Remote.Port()), s.Remote.IsValid())
	case abi.FieldServerIP:
		return ip(b, s.Local.Addr())
	case abi.FieldRDNS:
		return text(b, s.RDNS, s.RDNS != "")
	case abi.FieldHelo:
		return text(b, s.Helo, s.Helo != "")
	case abi.FieldAuthUser:
		return text(b, s.User, s.User != "")
	case abi.FieldListener:
		return text(b, s.Listener, true)
	case abi.FieldConnID:
		return text(b, s.ID, true)
	case abi.FieldTags:
		return g.tags(b)
	case abi.FieldScores:
		return g.scores(b)
	case abi.FieldTLSVersion, abi.FieldTLSCipher, abi.FieldTLSPeer, abi.FieldTLSName, abi.FieldTLSALPN,
		abi.FieldTLSVerified, abi.FieldTLSFingerprint:
		return g.tlsField(b, f)
	case abi.FieldAuthMechanism, abi.FieldAuthLogin, abi.FieldAuthAuthz, abi.FieldAuthPassword, abi.FieldAuthToken:
		return g.authField(b, f)
	case abi.FieldChunk:
		if c := g.event.Chunk; c != nil && g.may(abi.CapBodyRead) {
			return c.Data, abi.KindBytes
		}
		return nil, 0
	case abi.FieldChunkOffset:
		if c := g.event.Chunk; c != nil {
			return number(b, c.Offset, true)
		}
		return nil, 0
	}
	switch {
	case g.event.Tx == nil:
		return nil, 0
	case f >= abi.FieldQueueID:
		return g.outboundField(b, f)
	}
	return g.transactionField(b, f)
}

func (g *Env) transactionField(b []byte, f abi.Field) ([]byte, abi.Kind) {
	edits := g.event.Edits
	switch f {
	case abi.FieldMailFrom:
		return path(b, edits.Sender().Path)
	case abi.FieldMailParams:
		return mailParams(b, edits.Sender())
	case abi.FieldSize:
		if m := edits.Message(); m != nil && g.hook == abi.HookMessage {
			return number(b, m.Size(), true)
		}
		size := edits.Sender().Size
		return number(b, size, size > 0)
	case abi.FieldRcpt, abi.FieldRcptParams:
		rcpts := edits.Recipients()
		if g.hook != abi.HookRcpt || len(rcpts) == 0 {
			return nil, 0
		}
		candidate := &rcpts[len(rcpts)-1]
		if f == abi.FieldRcptParams {
			return rcptParams(b, &candidate.Recipient)
		}
		return path(b, candidate.Path)
	case abi.FieldRcpts:
		rcpts := edits.Recipients()
		for i := range rcpts {
			at := len(b)
			b = rcpts[i].Path.AppendTo(append(b, 0, 0, 0, 0))
			binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
		}
		return b, abi.KindList
	}
	return nil, 0
}

func (g *Env) tlsField(b []byte, f abi.Field) ([]byte, abi.Kind) {
	t := g.event.Session.TLS
	if t == nil {
		return nil, 0
	}
	switch f {
	case abi.FieldTLSVersion:
		return number(b, int64(t.Version), true)
	case abi.FieldTLSCipher:
		return text(b, tls.CipherSuiteName(t.Cipher), true)
	case abi.FieldTLSPeer:
		return text(b, t.Peer, t.Peer != "")
	case abi.FieldTLSVerified:
		return number(b, 1, t.Verified)
	case abi.FieldTLSFingerprint:
		return text(b, t.Fingerprint, t.Fingerprint != "")
	case abi.FieldTLSName:
		return text(b, t.ServerName, t.ServerName != "")
	default:
		return text(b, t.ALPN, t.ALPN != "")
	}
}

func (g *Env) authField(b []byte, f abi.Field) ([]byte, abi.Kind) {
	a := g.event.Auth
	if a == nil {
		return nil, 0
	}
	switch f {
	case abi.FieldAuthMechanism:
		return text(b, a.Mechanism, true)
	case abi.FieldAuthLogin:
		return text(b, a.User, a.User != "")
	case abi.FieldAuthAuthz:
		return text(b, a.Authz, a.Authz != "")
	case abi.FieldAuthPassword:
		return text(b, a.Password, a.Reveal && a.Password != "" && g.may(abi.CapAuthData))
	default:
		return text(b, a.Token, a.Reveal && a.Token != "" && g.may(abi.CapAuthData))
	}
}

func text(b []byte, s string, ok bool) ([]byte, abi.Kind) {
	if !ok {
		return nil, 0
	}
	return append(b, s...), abi.KindBytes
}

func path(b []byte, p smtp.Path) ([]byte, abi.Kind) {
	return p.AppendTo(b), abi.KindBytes
}

func number(b []byte, n int64, ok bool) ([]byte, abi.Kind) {
	if !ok {
		return nil, 0
	}
	return binary.LittleEndian.AppendUint64(b, uint64(n)), abi.KindInt
}

func ip(b []byte, a netip.Addr) ([]byte, abi.Kind) {
	if !a.IsValid() {
		return nil, 0
	}
	return append(b, a.Unmap().AsSlice()...), abi.KindIP
}

// mailParams and rcptParams have values as they are meant: a filter should not have to know
// xtext.
func mailParams(b []byte, m *smtp.Sender) ([]byte, abi.Kind) {
	if m.Size > 0 {
		var text [32]byte
		b = appendList(b, strconv.AppendInt(append(text[:0], "SIZE="...), m.Size, 10))
	}
	b = param(b, "BODY=", string(m.Body))
	if m.UTF8 {
		b = appendList(b, "SMTPUTF8")
	}
	if m.RequireTLS {
		b = appendList(b, "REQUIRETLS")
	}
	b = param(b, "RET=", string(m.Return))
	b = param(b, "ENVID=", m.EnvID)
	b = param(b, "AUTH=", m.Auth)
	if m.Priority != 0 {
		var text [16]byte
		b = appendList(b, strconv.AppendInt(append(text[:0], "MT-PRIORITY="...), int64(m.Priority), 10))
	}
	if !m.By.IsZero() {
		b = param(b, "BY=", m.By.String())
	}
	if m.HoldFor > 0 {
		var text [32]byte
		b = appendList(b, strconv.AppendInt(append(text[:0], "HOLDFOR="...), int64(m.HoldFor/time.Second), 10))
	}
	if !m.HoldUntil.IsZero() {
		b = param(b, "HOLDUNTIL=", m.HoldUntil.UTC().Format(time.RFC3339))
	}
	return b, abi.KindList
}

func rcptParams(b []byte, r *smtp.Recipient) ([]byte, abi.Kind) {
	if r.Notify != 0 {
		b = param(b, "NOTIFY=", r.Notify.String())
	}
	if !r.Original.IsZero() {
		b = param(b, "ORCPT=", r.Original.String())
	}
	return b, abi.KindList
}

// param appends a parameter to the list b if it was given.
func param(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return appendList(b, key+value)
}

func (g *Env) tags(b []byte) ([]byte, abi.Kind) {
	for _, t := range g.event.Session.Tags {
		b = appendList(b, t.Filter+"."+t.Key+"="+t.Value)
	}
	if g.event.Tx != nil {
		for _, t := range g.event.Tx.Tags {
			b = appendList(b, t.Filter+"."+t.Key+"="+t.Value)
		}
	}
	return b, abi.KindList
}

func (g *Env) scores(b []byte) ([]byte, abi.Kind) {
	for _, s := range g.event.Edits.Scores() {
		b = appendList(b, s.Key+"="+strconv.FormatInt(s.Milli, 10))
	}
	return b, abi.KindList
}
