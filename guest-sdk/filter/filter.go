// Package filter is for writing Penstock filters in Go. A filter is a program that the
// gateway asks at the stages of an SMTP dialogue, from the connection to the whole
// message, and that answers with a verdict and with changes:
//
//	package main
//
//	import "github.com/penstock/penstock/guest-sdk/filter"
//
//	func newFilter() *filter.Filter {
//		f := filter.New("rcpt-guard")
//		blocked := map[string]bool{}
//		f.Configure(func(c filter.Config) error {
//			c.Only("blocked")
//			for _, domain := range c.Strings("blocked") {
//				blocked[domain] = true
//			}
//			return nil
//		})
//		f.OnRcptTo(func(w filter.Reply, r *filter.RcptEvent) {
//			if blocked[r.Rcpt().Domain()] {
//				w.Reject(550, "5.7.1", "no such place")
//			}
//		})
//		return f
//	}
//
//	func init() { newFilter().Serve() }
//	func main() {}
//
// It is built with
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -ldflags="-s -w" -o rcpt-guard.wasm
//
// and, since the same code compiles natively, tested with package filtertest in plain
// go test.
//
// # Life of a filter
//
// The program starts once; its configuration is read then. The memory it has at that
// moment is frozen, and every session begins with a copy of it; with "instance: hook" in the
// gateway's configuration every call does. What handlers put in variables is therefore seen
// by the same session alone, or not even there: what must last for a session belongs in
// [Event.Session], what must last longer in [Event.KV].
// Goroutines do not run between calls. Random numbers: see [Event.Rand].
//
// # Handlers
//
// A handler gets a [Reply] and an event. One that says nothing has no objection. What it
// is given (events, headers, bodies) is valid until it returns. A handler that panics has
// failed: its changes are dropped, and the gateway answers what the operator chose for
// that, by default "try again later".
//
// # What the gateway does better
//
// A filter computes slower than the gateway, and what it looks at has to be copied to it. So
// the gateway finds and decodes the MIME parts of a message ([Message.Parts]), looks for
// patterns, ten thousand as well as one ([Config.MatchSet]), and makes checksums ([Part.Hash]):
//
//	f.OnData(func(w filter.Reply, m *filter.Message) {
//		for p := range m.Parts() {
//			if hits, _ := p.Match(words, 0); len(hits) > 0 {
//				_ = m.Score("spam", 1500*int64(len(hits)))
//				_ = m.Count(matched, 1)
//			}
//		}
//	})
//
// Scores are added up by all filters of a chain ([Event.Score]); metrics are numbers that the
// gateway shows to its operator ([Filter.Metric]).
//
// # Mail on its way out
//
// A chain that the gateway's operator names for delivery is asked at each attempt to deliver a
// message to hosts elsewhere: [Filter.OnRoute] may choose the way, [Filter.OnDeliver] sees the
// hosts, and [Filter.OnDeferred], [Filter.OnBounced] and [Filter.OnDelivered] are told what became
// of it.
//
// # What an operator grants
//
// Reading and changing the body, changing the envelope, dropping mail, seeing passwords,
// values that last ([Event.KV]), look-ups ([Event.LookUp], and several at once with
// [Event.StartLookUp]), requests to web servers ([Event.Fetch]), notifications ([Event.Notify]),
// secrets ([Config.Secret]) and the way of outgoing mail ([RouteEvent.SetRelay]) take a grant of the operator's each. What was not granted is an
// error, abi.EPERM, so that one filter can do with less. What a filter asks for stands in
// filter.json beside its sources:
//
//	{"name": "rcpt-guard", "version": "1", "capabilities": ["dns"], "optional": ["kv"]}
//
// The package imports little on purpose: a filter that uses package fmt, time or
// encoding/json pays for it with up to a megabyte of code. So times are in nanoseconds
// here, and [Config] reads JSON itself.
package filter

import (
	"runtime"
	"strconv"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// Filter is a filter: its name and its handlers. Handlers are set before [Filter.Serve].
// Natively it may be used by many sessions at once if its handlers allow it.
type Filter struct {
	name      string
	configure func(Config) error
	handlers  [abi.LastHook + 1]func(*call)
	metrics   []*Metric
}

// call is one call of a handler.
type call struct {
	host   host
	frame  frame
	edited bool // the envelope was changed: the frame is of before
	reply  verdict
}

// Numbers that a failed call gives to the log.
const (
	failFrame = 1 // the frame makes no sense
	failPanic = 2 // a handler panicked
)

// New returns a filter without handlers. The name is for its own errors; in the gateway
// it goes by the name of the configuration.
func New(name string) *Filter { return &Filter{name: name} }

// Name returns the name.
func (f *Filter) Name() string { return f.name }

// Configure sets the function that reads the configuration. It is called once, before
// the first handler. Its error, or one that c.Err has, keeps the filter from being
// loaded. A filter without such a function takes no configuration.
func (f *Filter) Configure(read func(c Config) error) { f.configure = read }

// OnConnect sets the handler for a client that connected and was not greeted yet.
func (f *Filter) OnConnect(handle func(w Reply, e *ConnectEvent)) {
	f.on(abi.HookConnect, func(c *call) { handle(Reply{c}, &ConnectEvent{Event{c}}) })
}

// OnSecure sets the handler for a finished TLS handshake.
func (f *Filter) OnSecure(handle func(w Reply, e *SecureEvent)) {
	f.on(abi.HookSecure, func(c *call) { handle(Reply{c}, &SecureEvent{Event{c}}) })
}

// OnHelo sets the handler for HELO and EHLO.
func (f *Filter) OnHelo(handle func(w Reply, e *HeloEvent)) {
	f.on(abi.HookHelo, func(c *call) { handle(Reply{c}, &HeloEvent{Event{c}}) })
}

// OnAuth sets the handler for a login. A refusal is always heard. Where the operator leaves
// logins to filters, the client is let in if a handler calls Accept and no filter refuses;
// elsewhere Accept is a failure of the filter.
func (f *Filter) OnAuth(handle func(w Reply, e *AuthEvent)) {
	f.on(abi.HookAuth, func(c *call) { handle(Reply{c}, &AuthEvent{Event{c}}) })
}

// OnMailFrom sets the handler for MAIL FROM.
func (f *Filter) OnMailFrom(handle func(w Reply, e *MailEvent)) {
	f.on(abi.HookMail, func(c *call) { handle(Reply{c}, &MailEvent{mailEvent{Event{c}}}) })
}

// OnRcptTo sets the handler for RCPT TO. A verdict is about this recipient alone.
func (f *Filter) OnRcptTo(handle func(w Reply, e *RcptEvent)) {
	f.on(abi.HookRcpt, func(c *call) { handle(Reply{c}, &RcptEvent{mailEvent{Event{c}}}) })
}

// OnDataCommand sets the handler for the command DATA, before anything of the message
// was read.
func (f *Filter) OnDataCommand(handle func(w Reply, e *DataEvent)) {
	f.on(abi.HookData, func(c *call) { handle(Reply{c}, &DataEvent{mailEvent{Event{c}}}) })
}

// OnHeaders sets the handler for a header section that is complete, while the client
// still sends the body.
func (f *Filter) OnHeaders(handle func(w Reply, m *HeadersEvent)) {
	f.on(abi.HookHeaders, func(c *call) {
		handle(Reply{c}, &HeadersEvent{mailEvent{Event{c}}, Header{c.host}})
	})
}

// OnChunk sets the handler for pieces of a body that come in while the client still sends,
// each of 64 KiB but the last. A refusal spares everybody the rest; [Reply.Skip] wants no
// more pieces of this message. Nothing can be changed here: that belongs to OnData, which
// is called behind the last piece.
func (f *Filter) OnChunk(handle func(w Reply, m *ChunkEvent)) {
	f.on(abi.HookChunk, func(c *call) {
		handle(Reply{c}, &ChunkEvent{mailEvent{Event{c}}, Header{c.host}})
	})
}

// OnData sets the handler for a whole message to which no reply was sent yet.
func (f *Filter) OnData(handle func(w Reply, m *Message)) {
	f.on(abi.HookMessage, func(c *call) {
		handle(Reply{c}, &Message{mailEvent{Event{c}}, Header{c.host}, newBody(c.host)})
	})
}

// OnReset sets the observer of a transaction that was given up.
func (f *Filter) OnReset(observe func(e *Event)) {
	f.on(abi.HookReset, func(c *call) { observe(&Event{c}) })
}

// OnClose sets the observer of the end of a connection.
func (f *Filter) OnClose(observe func(e *Event)) {
	f.on(abi.HookClose, func(c *call) { observe(&Event{c}) })
}

// on keeps a handler. A second one for the same hook would silently win, so it panics.
func (f *Filter) on(hook abi.Hook, handle func(*call)) {
	if f.handlers[hook] != nil {
		panic("filter: " + f.name + ": two handlers for hook " + strconv.Itoa(int(hook)))
	}
	f.handlers[hook] = handle
}

// served is the program's filter. A program has one, because the exports of the ABI
// carry no name.
var served *Filter

// Serve makes f the program's filter. It returns at once: the gateway calls the handlers.
// It belongs into func init, as main does not run in a filter. A second Serve panics.
func (f *Filter) Serve() {
	if served != nil {
		panic("filter: Serve of " + f.name + ", but " + served.name + " is served already")
	}
	served = f
}

// start reads the configuration and subscribes to the hooks that have handlers.
func (f *Filter) start(h host) (mask uint64, err error) {
	c, err := readConfig(h)
	if err != nil {
		return 0, err
	}
	read := f.configure
	if read == nil {
		read = func(c Config) error { c.Only(); return nil }
	}
	if err := read(c); err != nil {
		return 0, err
	}
	if err := c.Err(); err != nil {
		return 0, err
	}
	if err := f.nameMetrics(h); err != nil {
		return 0, err
	}
	for hook, handle := range f.handlers {
		if handle != nil {
			mask |= 1 << hook
		}
	}
	return mask, check("subscribe", h.Subscribe(mask))
}

// hook runs the handler of a hook. A panic is the filter's failure, not the program's:
// the gateway need not throw the instance away to know what happened.
func (f *Filter) hook(h host, hook uint32, mailbox []byte) (v abi.Verdict) {
	fr, ok := parseFrame(mailbox, hook)
	if !ok {
		logLine(h, LevelError, "the event frame makes no sense", nil)
		return abi.Failed(failFrame)
	}
	if hook >= uint32(len(f.handlers)) || f.handlers[hook] == nil {
		return abi.NewVerdict(abi.ActContinue, 0, 0, 0, 0, false)
	}
	defer func() {
		if p := recover(); p != nil {
			logPanic(h, p)
			v = abi.Failed(failPanic)
		}
	}()
	c := &call{host: h, frame: fr}
	f.handlers[hook](c)
	return c.finish()
}

// logPanic logs a panic with the functions that led to it, from the handler inwards: what
// is around it is the same every time.
func logPanic(h host, p any) {
	logLine(h, LevelError, "panic: "+panicText(p), nil)
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs[:])])
	for {
		f, more := frames.Next()
		if f.Function == "" || hasSuffix(f.Function, "/guest-sdk/filter.(*Filter).hook") {
			return
		}
		logLine(h, LevelError, "  at "+f.Function+" "+f.File+":"+strconv.Itoa(f.Line), nil)
		if !more {
			return
		}
	}
}

func panicText(p any) string {
	switch p := p.(type) {
	case error:
		return p.Error()
	case string:
		return p
	case interface{ String() string }:
		return p.String()
	}
	return "of another type"
}
