package guest

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"strings"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
)

// outbound.go: mail on its way out.

// outboundField is a field of the hooks of outgoing mail.
func (g *Env) outboundField(b []byte, f abi.Field) ([]byte, abi.Kind) {
	o := g.event.Tx.Outbound
	if o == nil {
		return nil, 0
	}
	switch f {
	case abi.FieldQueueID:
		return text(b, g.event.Session.ID, true)
	case abi.FieldTarget:
		return text(b, o.Target, true)
	case abi.FieldTry:
		return number(b, int64(o.Try), true)
	case abi.FieldArrived:
		return number(b, o.Arrived.UnixNano(), !o.Arrived.IsZero())
	case abi.FieldExpires:
		return number(b, o.Expires.UnixNano(), !o.Expires.IsZero())
	case abi.FieldWay:
		return way(b, g.event.Edits.Way())
	case abi.FieldHops:
		for i := range o.Hops {
			b = appendHop(b, &o.Hops[i])
		}
		return b, abi.KindList
	case abi.FieldFates:
		for i := range o.Fates {
			b = appendFate(b, &o.Fates[i])
		}
		return b, abi.KindList
	}
	return nil, 0
}

func way(b []byte, w policy.Way) ([]byte, abi.Kind) {
	b = param(b, "relay=", w.Relay)
	b = param(b, "source=", w.Source)
	if w.TLS != policy.AsPolicySays {
		b = appendList(b, "tls="+w.TLS.String())
	}
	if w.To.IsValid() {
		b = appendList(b, "to="+w.To.String())
	}
	return b, abi.KindList
}

// appendHop appends a host as an element of a list, its parts with TAB between them.
func appendHop(b []byte, h *policy.Hop) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	b = appendWord(b, h.Host)
	b = append(strconv.AppendUint(b, uint64(h.Preference), 10), '\t')
	for i, a := range h.Addrs {
		if i > 0 {
			b = append(b, ',')
		}
		b = a.AppendTo(b)
	}
	b = append(b, '\t')
	b = appendWord(b, h.Demand)
	return endElement(append(b, printable(h.Refused)...), at)
}

// appendFate appends what became of a recipient.
func appendFate(b []byte, f *policy.Fate) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0)
	due := int64(0)
	if !f.Due.IsZero() {
		due = f.Due.UnixNano()
	}
	b = append(strconv.AppendInt(b, due, 10), '\t')
	b = appendWord(b, f.Host)
	if f.Addr.IsValid() {
		b = f.Addr.AppendTo(b)
	}
	b = append(b, '\t')
	if f.Reply != nil {
		b = append(b, printable(f.Reply.Line())...)
	}
	return endElement(b, at)
}

func appendWord(b []byte, s string) []byte { return append(append(b, printable(s)...), '\t') }

// endElement writes the length of the element that begins at at.
func endElement(b []byte, at int) []byte {
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// printable keeps what other hosts said from making parts of its own.
func printable(s string) string {
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s), "\uFFFD")
}

// choice is the beginning of all that chooses a way: where it may be, and how long it may be.
func (g *Env) choice(when abi.Hooks, n, most int) int32 {
	switch {
	case !g.at(when):
		return int32(abi.EPHASE)
	case !g.may(abi.CapRoute):
		return int32(abi.EPERM)
	case n > most:
		return int32(abi.ELIMIT)
	}
	return 0
}

// chosen is errnoOf, but for what is out of range: nothing is looked for here.
func chosen(err error) int32 {
	if n := errnoOf(err); n != int32(abi.ENOENT) {
		return n
	}
	return int32(abi.EINVAL)
}

// OutRelay implements Host.
func (g *Env) OutRelay(relay []byte) int32 {
	if no := g.choice(abi.Routing, len(relay), abi.MaxRelay); no != 0 {
		return no
	}
	return chosen(g.event.Edits.SetRelay(string(relay)))
}

// OutSource implements Host.
func (g *Env) OutSource(name []byte) int32 {
	if no := g.choice(abi.Routing, len(name), abi.MaxSource); no != 0 {
		return no
	}
	return chosen(g.event.Edits.SetSource(string(name)))
}

// OutTls implements Host.
func (g *Env) OutTls(mode int32) int32 {
	if no := g.choice(abi.Routing, 0, 0); no != 0 {
		return no
	}
	switch abi.Encryption(mode) {
	case abi.TLSOff, abi.TLSOpportunistic:
		if !g.opts.Grants.Route.WeakerTLS {
			return int32(abi.EPERM)
		}
	case abi.TLSPolicy, abi.TLSRequired, abi.TLSVerify:
	default:
		return int32(abi.EINVAL)
	}
	return chosen(g.event.Edits.SetEncryption(policy.Encryption(mode)))
}

// OutConnect implements Host.
func (g *Env) OutConnect(address []byte) int32 {
	if no := g.choice(abi.Connecting, len(address), abi.MaxRelay); no != 0 {
		return no
	}
	to, ok := parseAddress(string(address))
	if !ok {
		return int32(abi.EINVAL)
	}
	return chosen(g.event.Edits.Connect(to))
}

// parseAddress reads an address and perhaps a port; the empty text is neither.
func parseAddress(s string) (netip.AddrPort, bool) {
	if s == "" {
		return netip.AddrPort{}, true
	}
	if to, err := netip.ParseAddrPort(s); err == nil {
		return to, true
	}
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if s, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.AddrPort{}, false
		}
	}
	a, err := netip.ParseAddr(s)
	return netip.AddrPortFrom(a, 0), err == nil
}
