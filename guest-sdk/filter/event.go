package filter

import (
	"iter"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// event.go: what handlers are told. A fact is read out of the frame when it is asked
// for; what the frame of the hook does not have is asked of the gateway.

// Event is what all handlers are told: the facts of the session. It is valid until the
// handler returns. Facts that there are not, such as a user who did not authenticate,
// are empty.
type Event struct{ call *call }

// ConnectEvent is a client that connected.
type ConnectEvent struct{ Event }

// SecureEvent is a finished TLS handshake.
type SecureEvent struct{ Event }

// HeloEvent is HELO or EHLO.
type HeloEvent struct{ Event }

// AuthEvent is a client that logs in.
type AuthEvent struct{ Event }

// MailEvent is MAIL FROM.
type MailEvent struct{ mailEvent }

// RcptEvent is RCPT TO.
type RcptEvent struct{ mailEvent }

// DataEvent is the command DATA.
type DataEvent struct{ mailEvent }

// HeadersEvent is a message of which the header section is there.
type HeadersEvent struct {
	mailEvent
	// Header reads and changes the header section.
	Header Header
}

// ChunkEvent is a piece of a message's body, of which the rest may still be on its way.
type ChunkEvent struct {
	mailEvent
	// Header reads the header section.
	Header Header
}

// Message is a message that is all there.
type Message struct {
	mailEvent
	// Header reads and changes the header section.
	Header Header
	// Body reads and changes what follows the header section.
	Body *Body
}

// ConnID returns the name that the connection has in the gateway's log.
func (e Event) ConnID() string { return e.text(abi.FieldConnID) }

// SessionID returns a number that no other session of the gateway process has.
func (e Event) SessionID() uint64 { return e.call.frame.session() }

// Transaction counts the transactions of the session, from 1; 0 outside of one.
func (e Event) Transaction() uint64 { return e.call.frame.transaction() }

// Listener returns the name of the listener that the client connected to.
func (e Event) Listener() string { return e.text(abi.FieldListener) }

// Time returns when the event began, in nanoseconds since 1970 UTC, as time.Unix(0, t)
// takes it.
func (e Event) Time() int64 { return e.call.frame.time() }

// Now returns the time it is, in nanoseconds since 1970 UTC.
func (e Event) Now() int64 { return e.call.host.Now() }

// Mono returns nanoseconds since some moment, for measuring: it never goes back.
func (e Event) Mono() int64 { return e.call.host.Mono() }

// Budget returns the computing time that the handler has, in nanoseconds; 0 if the
// gateway does not say.
func (e Event) Budget() int64 { return e.call.frame.budget() }

// ClientIP returns the client's address; the zero IP for a local socket.
func (e Event) ClientIP() IP { return e.ip(abi.FieldClientIP) }

// ClientPort returns the client's port.
func (e Event) ClientPort() int { return int(e.number(abi.FieldClientPort)) }

// ServerIP returns the address that the client connected to.
func (e Event) ServerIP() IP { return e.ip(abi.FieldServerIP) }

// RDNS returns the name of the client's address, if it leads back to the address.
func (e Event) RDNS() string { return e.text(abi.FieldRDNS) }

// Helo returns what the client called itself.
func (e Event) Helo() string { return e.text(abi.FieldHelo) }

// User returns the authenticated user. During a login there is none yet: see
// [AuthEvent.Login].
func (e Event) User() string { return e.text(abi.FieldAuthUser) }

// TLS returns what is known of the encryption.
func (e Event) TLS() TLS { return TLS{e} }

// Tags returns what filters noted so far, as FILTER.KEY=VALUE.
func (e Event) Tags() []string { return e.list(abi.FieldTags) }

// Tag notes a key and a value for later filters and for the log. Keys and values are
// short UTF-8 text.
func (e Event) Tag(key, value string) error {
	return check("tag", e.call.host.Tag([]byte(key), []byte(value)))
}

// Session returns the values that the filter keeps for the session.
func (e Event) Session() Values { return Values{e.call.host} }

// Random fills p with random octets fit for secrets. For numbers see [Event.Rand].
func (e Event) Random(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), abi.MaxRandom)
		if err := check("random", e.call.host.Random(p[:n])); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// Log writes a line to the gateway's log: the text, and pairs of key and value behind
// it. The gateway keeps 32 lines of a call.
func (e Event) Log(level Level, text string, pairs ...string) {
	logLine(e.call.host, level, text, pairs)
}

// LogEnabled tells whether a line of that level would be kept, for those that cost
// something to make.
func (e Event) LogEnabled(level Level) bool { return e.call.host.LogEnabled(int32(level)) == 1 }

// bytes returns a field's payload, out of the frame if it is there and still true.
func (e Event) bytes(id abi.Field, kind abi.Kind) []byte {
	if !e.call.edited {
		if p, k, ok := e.call.frame.field(id); ok {
			if k != kind {
				return nil
			}
			return p
		}
	}
	index := int32(0)
	if kind == abi.KindList {
		index = -1
	}
	return grow(func(b []byte) int32 { return e.call.host.Get(int32(id), index, b) })
}

// grow calls a read of the host with as much room as it needs. nil means that there is
// no such thing.
func grow(read func([]byte) int32) []byte {
	b := make([]byte, 128)
	for {
		n := int(read(b))
		switch {
		case n < 0:
			return nil
		case n <= len(b):
			return b[:n]
		}
		b = make([]byte, n)
	}
}

func (e Event) text(id abi.Field) string { return string(e.bytes(id, abi.KindBytes)) }

func (e Event) list(id abi.Field) []string { return list(e.bytes(id, abi.KindList)) }

func (e Event) number(id abi.Field) int64 {
	b := e.bytes(id, abi.KindInt)
	if len(b) != 8 {
		return 0
	}
	return int64(u64(b))
}

func (e Event) ip(id abi.Field) IP { return ipOf(e.bytes(id, abi.KindIP)) }

// Mechanism returns the SASL mechanism, as in "PLAIN".
func (e AuthEvent) Mechanism() string { return e.text(abi.FieldAuthMechanism) }

// Login returns who the client claims to be. Nothing is proven yet.
func (e AuthEvent) Login() string { return e.text(abi.FieldAuthLogin) }

// Authz returns who the client wants to act as, empty if it does not say. A handler that
// accepts a login accepts this too.
func (e AuthEvent) Authz() string { return e.text(abi.FieldAuthAuthz) }

// Password returns the password that the client gave with PLAIN or LOGIN. ok is false, and
// the handler cannot decide, if there is none or if the operator does not leave logins to
// filters. Compare it without telling by time where it differs, as
// crypto/subtle.ConstantTimeCompare does, and keep it out of logs, tags and replies.
func (e AuthEvent) Password() (password string, ok bool) { return e.secret(abi.FieldAuthPassword) }

// Token returns the token that the client gave with XOAUTH2 or OAUTHBEARER; ok as of
// Password.
func (e AuthEvent) Token() (token string, ok bool) { return e.secret(abi.FieldAuthToken) }

func (e AuthEvent) secret(id abi.Field) (string, bool) {
	b := e.bytes(id, abi.KindBytes)
	return string(b), len(b) > 0
}

// mailEvent has the facts of a transaction.
type mailEvent struct{ Event }

// From returns the sender; the null sender is the zero Address.
func (e mailEvent) From() Address { return Address{e.text(abi.FieldMailFrom)} }

// SetFrom changes the sender. addr is without brackets; empty is the null sender, whose
// mail is never answered with a bounce.
func (e mailEvent) SetFrom(addr string) error {
	e.call.edited = true
	return check("set sender", e.call.host.EnvFrom([]byte(addr)))
}

// Size returns the size of the message in octets: the one that the client announced, 0 if
// it did not, and from the whole message on the real one.
func (e mailEvent) Size() int64 { return e.number(abi.FieldSize) }

// Params returns the parameters of MAIL. Values are as they are meant, without the spelling of
// xtext (RFC 3461, Section 4).
func (e mailEvent) Params() Params { return e.list(abi.FieldMailParams) }

// Recipients returns the recipients that were accepted so far. At RCPT TO the last one is
// the candidate. There are none before.
func (e mailEvent) Recipients() Recipients { return Recipients{e.call} }

// Rcpt returns the recipient that the client names.
func (e RcptEvent) Rcpt() Address { return Address{e.text(abi.FieldRcpt)} }

// RcptParams returns the parameters of RCPT, in the same way.
func (e RcptEvent) RcptParams() Params { return e.list(abi.FieldRcptParams) }

// Bytes returns the piece, of up to 64 KiB. It is valid until the handler returns. There are
// no empty pieces: nil says that the operator did not grant body_read.
func (e ChunkEvent) Bytes() []byte { return e.bytes(abi.FieldChunk, abi.KindBytes) }

// Offset returns where the piece begins in the body. It is the end of the piece before, and
// 0 for the first.
func (e ChunkEvent) Offset() int64 { return e.number(abi.FieldChunkOffset) }

// TLS tells about the encryption of the connection.
type TLS struct{ e Event }

// Active tells whether the connection is encrypted.
func (t TLS) Active() bool { return t.Version() != 0 }

// Version returns 0x0303 for TLS 1.2, 0x0304 for TLS 1.3, and 0 in clear.
func (t TLS) Version() int { return int(t.e.number(abi.FieldTLSVersion)) }

// Cipher returns the IANA name of the cipher suite.
func (t TLS) Cipher() string { return t.e.text(abi.FieldTLSCipher) }

// Peer returns the subject of the client's certificate. Unless it is Verified anybody can have
// any subject.
func (t TLS) Peer() string { return t.e.text(abi.FieldTLSPeer) }

// Verified tells whether the client's certificate was issued by an authority that the listener
// trusts.
func (t TLS) Verified() bool { return t.e.number(abi.FieldTLSVerified) == 1 }

// Fingerprint returns the SHA-256 of the client's certificate, 64 lower-case hexadecimal digits;
// empty if it sent none, or if a proxy has ended TLS.
func (t TLS) Fingerprint() string { return t.e.text(abi.FieldTLSFingerprint) }

// ServerName returns the name that the client asked for (SNI).
func (t TLS) ServerName() string { return t.e.text(abi.FieldTLSName) }

// ALPN returns the negotiated application protocol.
func (t TLS) ALPN() string { return t.e.text(abi.FieldTLSALPN) }

// Params are parameters of MAIL or RCPT, as KEY or KEY=VALUE.
type Params []string

// Get returns the value of a parameter; ok tells whether it was given at all. The key's
// case does not matter (RFC 5321, Section 4.1.1.11).
func (p Params) Get(key string) (value string, ok bool) {
	for _, s := range p {
		k, v := cut(s, '=')
		if equalFold(k, key) {
			return v, true
		}
	}
	return "", false
}

// Values are what a filter keeps for a session. The gateway holds them: they are there at
// the next event whichever instance of the filter gets it, and end with the session. All
// together may have 16 KiB.
type Values struct{ host host }

// Get returns a value, empty if there is none.
func (v Values) Get(key string) string { return string(v.Bytes(key)) }

// Bytes returns a value, nil if there is none.
func (v Values) Bytes(key string) []byte {
	return grow(func(b []byte) int32 { return v.host.SessGet([]byte(key), b) })
}

// Set keeps a value; the empty value deletes it.
func (v Values) Set(key, value string) error { return v.SetBytes(key, []byte(value)) }

// SetBytes keeps a value; the empty value deletes it.
func (v Values) SetBytes(key string, value []byte) error {
	return check("set session value", v.host.SessSet([]byte(key), value))
}

// Recipients are the recipients of a transaction. An index is good until the next
// change.
type Recipients struct{ call *call }

// Len returns their number.
func (r Recipients) Len() int { return max(0, int(r.call.host.RcptCount())) }

// At returns recipient i; the zero Address if there is none.
func (r Recipients) At(i int) Address {
	return Address{string(grow(func(b []byte) int32 { return r.call.host.RcptGet(int32(i), b) }))}
}

// All returns all of them.
func (r Recipients) All() []Address {
	all := make([]Address, r.Len())
	for i := range all {
		all[i] = r.At(i)
	}
	return all
}

// Add adds a recipient. It has to pass the gateway's rules like one that the client
// names.
func (r Recipients) Add(addr string) error {
	r.call.edited = true
	return check("add recipient", r.call.host.RcptAdd([]byte(addr)))
}

// Set changes recipient i.
func (r Recipients) Set(i int, addr string) error {
	r.call.edited = true
	return check("set recipient", r.call.host.RcptSet(int32(i), []byte(addr)))
}

// Delete takes recipient i out. At RCPT TO the candidate is not taken out but refused or
// discarded.
func (r Recipients) Delete(i int) error {
	r.call.edited = true
	return check("delete recipient", r.call.host.RcptDel(int32(i)))
}

// Each returns the recipients one by one, each with the ways to answer for it alone. The
// list must not be changed meanwhile; verdicts do not change it.
func (r Recipients) Each() iter.Seq[Recipient] {
	return func(yield func(Recipient) bool) {
		for i := range r.Len() {
			if !yield(Recipient{r.At(i), r.call, i}) {
				return
			}
		}
	}
}

// Recipient is one recipient of a message. At OnHeaders and OnData it may have a verdict of
// its own, while the message goes on for the others; the last one counts, and a verdict
// about the message as a whole stands above it. Codes and texts are as in [Reply], whose
// methods' names these have.
//
// A client that speaks LMTP hears each recipient's answer. One that speaks SMTP hears one:
// if nothing honest can be said in one, the gateway asks it to send the message again, and
// then takes those recipients apart from the others.
type Recipient struct {
	Address
	call *call
	i    int
}

// Continue takes back what was said about the recipient before.
func (r Recipient) Continue() error { return r.say(verdict{}) }

// Reject refuses the recipient for good.
func (r Recipient) Reject(code int, enhanced, text string) error {
	return r.say(verdict{abi.ActReject, code, parseEnhanced(enhanced), text})
}

// Tempfail refuses the recipient for now.
func (r Recipient) Tempfail(code int, enhanced, text string) error {
	return r.say(verdict{abi.ActTempfail, code, parseEnhanced(enhanced), text})
}

// Discard lets the client believe that the recipient gets the message.
func (r Recipient) Discard() error { return r.say(verdict{action: abi.ActDiscard}) }

// Quarantine holds the message for a person before this recipient gets it.
func (r Recipient) Quarantine(reason string) error {
	return r.say(verdict{action: abi.ActQuarantine, text: reason[:min(len(reason), maxReason)]})
}

// say gives a verdict to the host. A text that it does not take must not lose the verdict.
func (r Recipient) say(v verdict) error {
	hasText := v.text != ""
	if hasText {
		if err := check("reply", r.call.host.Reply([]byte(v.text))); err != nil {
			logLine(r.call.host, LevelWarn, "the text was not taken: "+err.Error(), nil)
			hasText = false
		}
	}
	packed := abi.NewVerdict(v.action, v.code, v.enhanced[0], v.enhanced[1], v.enhanced[2], hasText)
	return check("recipient's verdict", r.call.host.RcptVerdict(int32(r.i), int64(packed)))
}
