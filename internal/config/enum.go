package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// enum.go holds the values that are words out of a short list.

// An enum knows the words it may hold. The zero value is the empty word, which
// Load replaces by the key's default.
type enum interface{ words() []string }

// An unfinished enum has further words that are part of its contract but cannot be
// used yet; each comes with what to say about it.
type unfinished interface{ later() map[string]string }

const needsStore = "needs the store, which is not there yet"

// checkWord returns an error that lists the words, or explains why this one is
// refused.
func checkWord(e enum, word string) error {
	words := e.words()
	if slices.Contains(words, word) {
		return nil
	}
	if u, ok := e.(unfinished); ok {
		if why, known := u.later()[word]; known {
			return fmt.Errorf("%s %s; use %s", quote(word), why, words[0])
		}
	}
	text := fmt.Sprintf("must be %s, not %s", orList(words), quote(word))
	if near, ok := nearest(word, words); ok && len(words) > 1 {
		text += fmt.Sprintf("; did you mean %q?", near)
	}
	return fmt.Errorf("%s", text)
}

// orList returns "a, b or c".
func orList(words []string) string {
	last := len(words) - 1
	if last < 1 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// Protocol is the protocol spoken with a peer.
type Protocol string

// The protocols: SMTP, and LMTP (RFC 2033), which answers for each recipient.
const (
	ProtocolSMTP Protocol = "smtp"
	ProtocolLMTP Protocol = "lmtp"
)

func (Protocol) words() []string { return []string{"smtp", "lmtp"} }

// Handler is a part of the gateway that takes mail.
type Handler string

// The handlers.
const HandlerTLSRPT Handler = "tlsrpt"

func (Handler) words() []string { return []string{"tlsrpt"} }

// ListenerTLS says how clients come to TLS.
type ListenerTLS string

// How clients come to TLS.
const (
	ListenerTLSOff      ListenerTLS = "off"
	ListenerTLSStartTLS ListenerTLS = "starttls"
	ListenerTLSImplicit ListenerTLS = "implicit"
	ListenerTLSRequired ListenerTLS = "starttls_required"
)

func (ListenerTLS) words() []string {
	return []string{"off", "starttls", "starttls_required", "implicit"}
}

// Accept says which recipients a listener takes.
type Accept string

// Which recipients a listener takes: those with a route, or any from those who
// are trusted.
const (
	AcceptRoutes Accept = "routes"
	AcceptAny    Accept = "any"
)

func (Accept) words() []string { return []string{"routes", "any"} }

// LineEndings says what becomes of a bare CR or LF in a message.
type LineEndings string

// What becomes of a bare CR or LF in a message.
const (
	LineEndingsNormalize LineEndings = "normalize"
	LineEndingsReject    LineEndings = "reject"
)

func (LineEndings) words() []string { return []string{"normalize", "reject"} }

// BackendTLS says how a connection to a backend is protected.
type BackendTLS string

// How a connection to a backend is protected.
const (
	BackendTLSOff           BackendTLS = "off"
	BackendTLSOpportunistic BackendTLS = "opportunistic"
	BackendTLSRequired      BackendTLS = "required"
	BackendTLSVerify        BackendTLS = "verify"
)

func (BackendTLS) words() []string { return []string{"off", "opportunistic", "required", "verify"} }

// Mode says when the client gets its 250.
type Mode string

// When the client gets its 250: after the backend has given its own, or once the message is
// safe in the store.
const (
	ModeDirect Mode = "direct"
	ModeQueue  Mode = "queue"
)

func (Mode) words() []string { return []string{"direct", "queue"} }

// WhenDown says what becomes of mail for a backend that does not answer.
type WhenDown string

// What becomes of mail for a backend that does not answer: the client tries again later, or
// we do.
const (
	WhenDownTempfail WhenDown = "tempfail"
	WhenDownQueue    WhenDown = "queue"
)

func (WhenDown) words() []string { return []string{"tempfail", "queue"} }

// ClientAuth says whether clients are asked for a certificate.
type ClientAuth string

// Whether clients are asked for a certificate, and what becomes of those without a good one.
const (
	ClientAuthOff           ClientAuth = "off"
	ClientAuthRequest       ClientAuth = "request"
	ClientAuthRequire       ClientAuth = "require"
	ClientAuthVerifyIfGiven ClientAuth = "verify_if_given"
	ClientAuthVerify        ClientAuth = "verify"
)

func (ClientAuth) words() []string {
	return []string{"off", "request", "require", "verify_if_given", "verify"}
}

// Mechanism is a mechanism of SASL.
type Mechanism string

func (Mechanism) words() []string {
	return []string{"PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", "EXTERNAL"}
}

// Trust says whether a resolver's word about DNSSEC counts.
type Trust string

// Whether a resolver's word about DNSSEC counts.
const (
	TrustAuto Trust = "auto"
	TrustYes  Trust = "true"
	TrustNo   Trust = "false"
)

func (Trust) words() []string { return []string{"auto", "true", "false"} }

// OnError says what becomes of a message whose filter failed.
type OnError string

// What becomes of a message whose filter failed.
const (
	OnErrorTempfail   OnError = "tempfail"
	OnErrorAccept     OnError = "accept"
	OnErrorReject     OnError = "reject"
	OnErrorQuarantine OnError = "quarantine"
)

func (OnError) words() []string { return []string{"tempfail", "accept", "reject", "quarantine"} }

// OnErrors is an OnError for each hook, by the name of the hook; DefaultHook has that of the
// hooks which are not named. Written as one word it is that of all.
type OnErrors map[string]OnError

// DefaultHook is the name in OnErrors that stands for all others.
const DefaultHook = "default"

// Hooks are the names of the hooks at which filters are asked, in their order: those of a
// session, at the last two of which they only observe, and those of mail to others, at the last
// three of which they do.
func Hooks() []string {
	return []string{"connect", "secure", "helo", "auth", "mail", "rcpt", "data", "headers", "chunk", "message", "reset", "close",
		"route", "deliver", "deferred", "bounced", "delivered"}
}

func (OnErrors) names() []string { return append([]string{DefaultHook}, Hooks()...) }
func (OnErrors) word() string    { return DefaultHook }

// String writes it as in "tempfail" and "tempfail, connect accept".
func (o OnErrors) String() string {
	parts := []string{string(cmp.Or(o[DefaultHook], OnErrorTempfail))}
	for _, hook := range Hooks() {
		if w, ok := o[hook]; ok {
			parts = append(parts, hook+" "+string(w))
		}
	}
	return strings.Join(parts, ", ")
}

// Instance says how long the memory of a guest belongs to one session.
type Instance string

// How long the memory of a guest belongs to one session: as long as the session lasts, for
// one call, or never.
const (
	InstanceSession Instance = "session"
	InstanceHook    Instance = "hook"
	InstanceShared  Instance = "shared"
)

func (Instance) words() []string { return []string{"session", "hook", "shared"} }

// StoreDriver says where messages are kept.
type StoreDriver string

// Where messages are kept: nowhere, in a folder, or in a database that several nodes share.
const (
	StoreNone     StoreDriver = "none"
	StoreEmbedded StoreDriver = "embedded"
	StorePostgres StoreDriver = "postgres"
)

func (StoreDriver) words() []string { return []string{"none", "embedded", "postgres"} }

// LogLevel is the least important that is logged.
type LogLevel string

// The levels of the log.
const (
	LogDebug LogLevel = "debug"
	LogInfo  LogLevel = "info"
	LogWarn  LogLevel = "warn"
	LogError LogLevel = "error"
)

func (LogLevel) words() []string { return []string{"debug", "info", "warn", "error"} }

// FilterLog is the least important of a filter's own lines that is logged; empty leaves it to
// the log's own level.
type FilterLog string

// FilterLogOff logs none of them. The other words are those of LogLevel.
const FilterLogOff FilterLog = "off"

func (FilterLog) words() []string { return append(LogInfo.words(), string(FilterLogOff)) }

// LogFormat is the form of a line in the log.
type LogFormat string

// The forms of the log.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

func (LogFormat) words() []string { return []string{"text", "json"} }

// TLSVersion is a version of TLS.
type TLSVersion string

// The versions. RFC 8996 has retired the first two.
const (
	TLS10 TLSVersion = "1.0"
	TLS11 TLSVersion = "1.1"
	TLS12 TLSVersion = "1.2"
	TLS13 TLSVersion = "1.3"
)

func (TLSVersion) words() []string { return []string{"1.0", "1.1", "1.2", "1.3"} }
