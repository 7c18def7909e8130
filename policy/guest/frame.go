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
var hookFields = func() (t [abi.HookClose + 1][]abi.Field) {
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
	scratch := g.scratch
	defer func() { g.scratch = scratch }() // the guest's memory is nobody's to keep
	for _, f := range fields {
		// Written where it belongs: what does not fit goes elsewhere by itself.
		g.scratch = buf[min(end, len(buf)):min(end, len(buf)):len(buf)]
		value, kind := g.field(f)
		if kind == 0 {
			continue
		}
		if len(value) > len(buf)-end {
			flags |= abi.FlagPartial
			continue
		}
		entry := buf[abi.FrameHead+n*abi.FrameEntry:]
		binary.LittleEndian.PutUint16(entry, uint16(f))
		binary.LittleEndian.PutUint16(entry[abi.EntryKind:], uint16(kind))
		binary.LittleEndian.PutUint32(entry[abi.EntryOff:], uint32(end))
		binary.LittleEndian.PutUint32(entry[abi.EntryLen:], uint32(len(value)))
		if len(value) > 0 && &value[0] != &buf[end] { // it was there already, elsewhere
			copy(buf[end:], value)
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
	value, kind := g.field(abi.Field(field))
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

// field returns a field's payload; kind 0 means that the event has no such field. The
// payload is valid until the next call.
func (g *Env) field(f abi.Field) (value []byte, kind abi.Kind) {
	g.scratch = g.scratch[:0]
	s := g.event.Session
	switch f {
	case abi.FieldClientIP:
		return g.ip(s.Remote.Addr())
	case abi.FieldClientPort:
		return g.number(int64(s.Remote.Port()), s.Remote.IsValid())
	case abi.FieldServerIP:
		return g.ip(s.Local.Addr())
	case abi.FieldRDNS:
		return g.text(s.RDNS, s.RDNS != "")
	case abi.FieldHelo:
		return g.text(s.Helo, s.Helo != "")
	case abi.FieldAuthUser:
		return g.text(s.User, s.User != "")
	case abi.FieldListener:
		return g.text(s.Listener, true)
	case abi.FieldConnID:
		return g.text(s.ID, true)
	case abi.FieldTags:
		return g.tags()
	case abi.FieldScores:
		return g.scores()
	case abi.FieldTLSVersion, abi.FieldTLSCipher, abi.FieldTLSPeer, abi.FieldTLSName, abi.FieldTLSALPN,
		abi.FieldTLSVerified, abi.FieldTLSFingerprint:
		return g.tlsField(f)
	case abi.FieldAuthMechanism, abi.FieldAuthLogin, abi.FieldAuthAuthz, abi.FieldAuthPassword, abi.FieldAuthToken:
		return g.authField(f)
	case abi.FieldChunk:
		if c := g.event.Chunk; c != nil && g.may(abi.CapBodyRead) {
			return c.Data, abi.KindBytes
		}
		return nil, 0
	case abi.FieldChunkOffset:
		if c := g.event.Chunk; c != nil {
			return g.number(c.Offset, true)
		}
		return nil, 0
	}
	if g.event.Tx == nil {
		return nil, 0
	}
	return g.transactionField(f)
}

func (g *Env) transactionField(f abi.Field) ([]byte, abi.Kind) {
	edits := g.event.Edits // what it has is large: it is copied where it is needed
	switch f {
	case abi.FieldMailFrom:
		return g.path(edits.Sender().Path)
	case abi.FieldMailParams:
		return g.mailParams(edits.Sender())
	case abi.FieldSize:
		if m := edits.Message(); m != nil && g.hook == abi.HookMessage {
			return g.number(m.Size(), true)
		}
		size := edits.Sender().Size
		return g.number(size, size > 0)
	case abi.FieldRcpt, abi.FieldRcptParams:
		rcpts := edits.Recipients()
		if g.hook != abi.HookRcpt || len(rcpts) == 0 {
			return nil, 0
		}
		candidate := &rcpts[len(rcpts)-1]
		if f == abi.FieldRcptParams {
			return g.rcptParams(candidate.Recipient)
		}
		return g.path(candidate.Path)
	case abi.FieldRcpts:
		rcpts := edits.Recipients()
		for i := range rcpts {
			at := len(g.scratch)
			g.scratch = rcpts[i].Path.AppendTo(append(g.scratch, 0, 0, 0, 0))
			binary.LittleEndian.PutUint32(g.scratch[at:], uint32(len(g.scratch)-at-4))
		}
		return g.scratch, abi.KindList
	}
	return nil, 0
}

func (g *Env) tlsField(f abi.Field) ([]byte, abi.Kind) {
	t := g.event.Session.TLS
	if t == nil {
		return nil, 0
	}
	switch f {
	case abi.FieldTLSVersion:
		return g.number(int64(t.Version), true)
	case abi.FieldTLSCipher:
		return g.text(tls.CipherSuiteName(t.Cipher), true)
	case abi.FieldTLSPeer:
		return g.text(t.Peer, t.Peer != "")
	case abi.FieldTLSVerified:
		return g.number(1, t.Verified)
	case abi.FieldTLSFingerprint:
		return g.text(t.Fingerprint, t.Fingerprint != "")
	case abi.FieldTLSName:
		return g.text(t.ServerName, t.ServerName != "")
	default:
		return g.text(t.ALPN, t.ALPN != "")
	}
}

func (g *Env) authField(f abi.Field) ([]byte, abi.Kind) {
	a := g.event.Auth
	if a == nil {
		return nil, 0
	}
	switch f {
	case abi.FieldAuthMechanism:
		return g.text(a.Mechanism, true)
	case abi.FieldAuthLogin:
		return g.text(a.User, a.User != "")
	case abi.FieldAuthAuthz:
		return g.text(a.Authz, a.Authz != "")
	case abi.FieldAuthPassword:
		return g.text(a.Password, a.Reveal && a.Password != "" && g.may(abi.CapAuthData))
	default:
		return g.text(a.Token, a.Reveal && a.Token != "" && g.may(abi.CapAuthData))
	}
}

func (g *Env) text(s string, ok bool) ([]byte, abi.Kind) {
	if !ok {
		return nil, 0
	}
	g.scratch = append(g.scratch, s...)
	return g.scratch, abi.KindBytes
}

func (g *Env) path(p smtp.Path) ([]byte, abi.Kind) {
	g.scratch = p.AppendTo(g.scratch)
	return g.scratch, abi.KindBytes
}

func (g *Env) number(n int64, ok bool) ([]byte, abi.Kind) {
	if !ok {
		return nil, 0
	}
	g.scratch = binary.LittleEndian.AppendUint64(g.scratch, uint64(n))
	return g.scratch, abi.KindInt
}

func (g *Env) ip(a netip.Addr) ([]byte, abi.Kind) {
	if !a.IsValid() {
		return nil, 0
	}
	g.scratch = append(g.scratch, a.Unmap().AsSlice()...)
	return g.scratch, abi.KindIP
}

// mailParams and rcptParams have values as they are meant: a filter should not have to know
// xtext.
func (g *Env) mailParams(m smtp.Sender) ([]byte, abi.Kind) {
	if m.Size > 0 {
		var b [32]byte
		g.scratch = appendList(g.scratch, strconv.AppendInt(append(b[:0], "SIZE="...), m.Size, 10))
	}
	g.param("BODY=", string(m.Body))
	if m.UTF8 {
		g.scratch = appendList(g.scratch, "SMTPUTF8")
	}
	if m.RequireTLS {
		g.scratch = appendList(g.scratch, "REQUIRETLS")
	}
	g.param("RET=", string(m.Return))
	g.param("ENVID=", m.EnvID)
	g.param("AUTH=", m.Auth)
	if m.Priority != 0 {
		var b [16]byte
		g.scratch = appendList(g.scratch, strconv.AppendInt(append(b[:0], "MT-PRIORITY="...), int64(m.Priority), 10))
	}
	g.param("BY=", m.By.String())
	if m.HoldFor > 0 {
		var b [32]byte
		g.scratch = appendList(g.scratch, strconv.AppendInt(append(b[:0], "HOLDFOR="...), int64(m.HoldFor/time.Second), 10))
	}
	if !m.HoldUntil.IsZero() {
		g.param("HOLDUNTIL=", m.HoldUntil.UTC().Format(time.RFC3339))
	}
	return g.scratch, abi.KindList
}

func (g *Env) rcptParams(r smtp.Recipient) ([]byte, abi.Kind) {
	g.param("NOTIFY=", r.Notify.String())
	g.param("ORCPT=", r.Original.String())
	return g.scratch, abi.KindList
}

// param appends a parameter to the list in scratch if it was given.
func (g *Env) param(key, value string) {
	if value != "" {
		g.scratch = appendList(g.scratch, key+value)
	}
}

func (g *Env) tags() ([]byte, abi.Kind) {
	for _, t := range g.event.Session.Tags {
		g.scratch = appendList(g.scratch, t.Filter+"."+t.Key+"="+t.Value)
	}
	if g.event.Tx != nil {
		for _, t := range g.event.Tx.Tags {
			g.scratch = appendList(g.scratch, t.Filter+"."+t.Key+"="+t.Value)
		}
	}
	return g.scratch, abi.KindList
}

func (g *Env) scores() ([]byte, abi.Kind) {
	for _, s := range g.event.Edits.Scores() {
		g.scratch = appendList(g.scratch, s.Key+"="+strconv.FormatInt(s.Milli, 10))
	}
	return g.scratch, abi.KindList
}
