package abi

// table.go: the contract as data. The host registers its functions from it, docs/abi.md
// is written from it, and a test compares it with the numbers of every release.

// Type is a WebAssembly value type.
type Type byte

// The types that mg1 uses.
const (
	I32 Type = 0x7f
	I64 Type = 0x7e
)

// String returns "i32" or "i64".
func (t Type) String() string {
	if t == I64 {
		return "i64"
	}
	return "i32"
}

// Param is a parameter of an import.
type Param struct {
	Name string
	Type Type
}

// Import is a function that the host gives to guests.
type Import struct {
	Name   string
	Group  string
	Params []Param
	Result Type
	// When are the hooks at which it may be called; at others it returns EPHASE.
	When Hooks
	// Since is the minor version that added it.
	Since int
	Doc   string
}

func i32(names ...string) []Param {
	var p []Param
	for _, n := range names {
		p = append(p, Param{n, I32})
	}
	return p
}

// Imports is every function of the import module mg1. It is made anew by each call, so
// that nobody can change it for others, and so that a guest that never calls it does not
// carry it.
//
// Pairs of parameters p, n are a pointer and a length of the guest's memory; buf, cap a
// pointer and the room behind it. A range outside of memory is a trap. A function that
// fills a buffer returns the full length of what it has and writes at most cap octets of
// it: a return value above cap tells how much room is needed.
func Imports() []Import {
	i64 := func(n string) Param { return Param{n, I64} }
	return []Import{
		{"subscribe", "core", []Param{i64("hooks")}, I32, DuringInit, 0, "Chooses the hooks the guest is called at: bit n stands for hook n. Unknown bits are EINVAL. Returns 0."},
		{"features", "core", nil, I64, Anytime, 0, "Returns the host's minor version."},
		{"get", "core", i32("field", "index", "buf", "cap"), I32, InSession, 0, "Reads a field. Of a list, index chooses the element; index -1 reads the whole list as in a frame. Of other kinds index is 0. ENOENT where there is none."},
		{"config", "core", i32("off", "buf", "cap"), I32, Anytime, 0, "Reads the configuration, a JSON text, from offset off. Returns the length from off on."},
		{"reply", "core", i32("p", "n"), I32, Deciding, 0, "Gives the text of the reply, UTF-8, lines separated by LF. The verdict's text bit says that it counts."},
		{"tag", "core", i32("kp", "kn", "vp", "vn"), I32, Deciding, 0, "Notes a key and a value for later filters and the log. With action quarantine, the value of the key \"reason\" is shown to whoever looks at the message."},
		{"score", "core", []Param{{"kp", I32}, {"kn", I32}, i64("milli")}, I32, Deciding, 1, "Adds thousandths, which may be negative, to the score of a key: of the transaction, or outside of one of the session. All filters add to the same scores. The key is as for tag."},
		{"log", "log", i32("level", "p", "n"), I32, Anytime, 0, "Writes a line to the log, as the filter's."},
		{"log_enabled", "log", i32("level"), I32, Anytime, 0, "Returns 1 if a line of that level would be written, else 0."},
		{"metric", "metrics", i32("np", "nn", "kind"), I32, DuringInit, 1, "Names a number that the gateway counts for the filter. A name has the letters a-z, digits and _, and begins with a letter; kind is 0, a counter. Returns the metric's number, which is the same in every copy of the guest."},
		{"metric_add", "metrics", []Param{{"id", I32}, i64("v")}, I32, InSession, 1, "Adds v, which is not negative, to a metric. It counts at once, whatever becomes of the call."},
		{"now", "time", nil, I64, Anytime, 0, "Returns the time in nanoseconds since 1970 UTC."},
		{"mono", "time", nil, I64, Anytime, 0, "Returns nanoseconds since some moment, for measuring."},
		{"random", "random", i32("buf", "n"), I32, Anytime, 0, "Fills the buffer with random octets fit for secrets. Returns n."},
		{"sess_get", "session", i32("kp", "kn", "buf", "cap"), I32, InSession, 0, "Reads a value that the filter keeps for the session."},
		{"sess_set", "session", i32("kp", "kn", "vp", "vn"), I32, InSession, 0, "Keeps a value for the session; an empty value deletes it. ELIMIT when all of them would be too large."},
		{"hdr_count", "headers", nil, I32, WithHeader, 0, "Returns the number of header fields."},
		{"hdr_get", "headers", i32("i", "buf", "cap"), I64, WithHeader, 0, "Reads field i: its name and, right behind it, its value without the last CRLF, folded as it came. Returns name length << 32 | value length, or an error number as i64."},
		{"hdr_find", "headers", i32("np", "nn", "from"), I32, WithHeader, 0, "Returns the index of the first field with that name, in any case, from index from on; ENOENT if there is none."},
		{"hdr_raw", "headers", i32("off", "buf", "cap"), I32, WithHeader, 0, "Reads the whole header section, byte for byte, from offset off. Returns the length from off on."},
		{"hdr_add", "headers", i32("at", "np", "nn", "vp", "vn"), I32, EditingHeader, 0, "Adds a field at index at; -1 is the bottom. Text beyond ASCII is encoded, long text folded. Trace fields are EPERM."},
		{"hdr_set", "headers", i32("i", "vp", "vn"), I32, EditingHeader, 0, "Gives field i a new value."},
		{"hdr_del", "headers", i32("i"), I32, EditingHeader, 0, "Takes field i out."},
		{"body_len", "body", nil, I64, WithBody, 0, "Returns the length of the body in octets."},
		{"body_read", "body", []Param{i64("off"), {"buf", I32}, {"n", I32}}, I32, WithBody, 0, "Reads up to n octets of the body from off on. Returns how many; 0 at the end."},
		{"body_splice", "body", []Param{i64("off"), i64("del"), {"p", I32}, {"n", I32}}, I32, WithBody, 0, "Replaces del octets at off."},
		{"body_new", "body", nil, I32, WithBody, 0, "Begins a new body; what was written before is forgotten."},
		{"body_write", "body", i32("p", "n"), I32, WithBody, 0, "Adds to the new body. Returns n."},
		{"body_commit", "body", nil, I32, WithBody, 0, "Puts the new body in the place of the old one."},
		{"part_count", "parts", nil, I32, WithBody, 1, "Returns the number of MIME parts, which are listed in the order of the message. Part 0 is the message itself, so there is always one. At most 1000 are listed."},
		{"part_info", "parts", i32("i", "buf", "cap"), I32, WithBody, 1, "Reads the record of part i. ENOENT if there is none."},
		{"part_len", "parts", i32("i", "form"), I64, WithBody, 1, "Returns the length of part i in a form: 0 its content as it is in the message, 1 its content decoded, 2 its header section. For form 1 the part is decoded if it was not."},
		{"part_read", "parts", []Param{{"i", I32}, {"form", I32}, i64("off"), {"buf", I32}, {"n", I32}}, I32, WithBody, 1, "Reads up to n octets of part i, in a form as for part_len, from off on. Returns how many; 0 at the end. To go on behind the last read costs least."},
		{"match_set", "scan", i32("kind", "p", "n"), I32, DuringInit, 1, "Makes a set of patterns, given as a list as in a frame. Kinds: 0 octets, 1 octets with letters of ASCII in any case, 2 regular expressions in RE2's syntax, ^ and $ by line. Returns the set's number, which is the same in every copy of the guest. A pattern that will not do is EINVAL, and the log says which and why; ELIMIT when the sets would take too much memory."},
		{"match", "scan", []Param{{"set", I32}, {"part", I32}, i64("off"), {"buf", I32}, {"cap", I32}}, I32, WithBody, 1, "Looks for the patterns of a set, from off on, in the decoded content of a part; part -1 is the whole body as it is, -2 the header section. Returns how many of the patterns it found, and writes a hit for as many as have room, each pattern once with its first place: 16 octets of place i64, pattern u32, length u32, by pattern. Regular expressions see content in chunks of 1 KiB to 16 KiB that end at the end of a line if they can; a match does not reach from one into the next."},
		{"hash", "scan", i32("alg", "part", "buf", "cap"), I32, WithBody, 1, "Gives a checksum of a part as for match: 1 SHA-256, 2 SHA-1, 3 MD5."},
		{"env_from", "envelope", i32("p", "n"), I32, WithSender, 0, "Changes the sender. The address has no brackets; empty is the null sender."},
		{"rcpt_count", "envelope", nil, I32, WithRcpts, 0, "Returns the number of recipients; at hook rcpt the last is the candidate."},
		{"rcpt_get", "envelope", i32("i", "buf", "cap"), I32, WithRcpts, 0, "Reads the address of recipient i."},
		{"rcpt_add", "envelope", i32("p", "n"), I32, EditingRcpts, 0, "Adds a recipient."},
		{"rcpt_set", "envelope", i32("i", "p", "n"), I32, EditingRcpts, 0, "Changes recipient i."},
		{"rcpt_del", "envelope", i32("i"), I32, EditingRcpts, 0, "Takes recipient i out; the candidate of hook rcpt is refused or discarded by a verdict instead."},
		{"rcpt_verdict", "envelope", []Param{{"i", I32}, i64("verdict")}, I32, JudgingRcpts, 1, "Gives recipient i a verdict of its own while the message goes on for the others: reject, tempfail, discard or quarantine; continue takes it back. The text given with reply counts if the text bit is set, and stays for the next call; with quarantine it is the reason. A verdict that makes no sense is EINVAL."},
		{"kv_get", "kv", i32("kp", "kn", "buf", "cap"), I32, InSession, 1, "Reads a value that the filter keeps beyond the session; filters of one name share their values. ENOENT if there is none. Like the others of this group it takes the grant kv."},
		{"kv_set", "kv", append(i32("kp", "kn", "vp", "vn"), i64("ttl_ms")), I32, InSession, 1, "Keeps a value, which is not empty, for a time in milliseconds; 0 is for ever. ELIMIT beyond the filter's quota."},
		{"kv_incr", "kv", []Param{{"kp", I32}, {"kn", I32}, i64("delta"), i64("ttl_ms"), {"buf", I32}, {"cap", I32}}, I32, InSession, 1, "Adds to a number, which begins at 0, and writes the sum, an int64 of 8 octets. kv_get reads it as decimal digits. The time counts from where the number begins. EINVAL if the value is no number, or becomes too large."},
		{"kv_cas", "kv", append(i32("kp", "kn", "op", "on", "vp", "vn"), i64("ttl_ms")), I32, InSession, 1, "Is kv_set if the value is the old one at that moment; an old one of no octets means that there is none. Returns 1 if it was, else 0."},
		{"kv_del", "kv", i32("kp", "kn"), I32, InSession, 1, "Forgets a value. It is no error if there is none."},
		{"dns", "io", i32("type", "np", "nn", "buf", "cap"), I32, InSession, 1, "Looks records up, by the number of their type, and reads them as \"Answers from outside\" says. ENOENT if there are none, EUNAVAIL if that is not known. An answer above cap is kept: the same call with more room reads it. Takes the grant dns."},
		{"http", "io", i32("p", "n", "buf", "cap"), I32, InSession, 1, "Makes a request and reads the response, as \"Answers from outside\" says. No redirect is followed. A response above the operator's limit is ELIMIT. An answer above cap is kept as by dns. Takes the grant http."},
		{"dsn", "io", i32("p", "n"), I32, InSession, 1, "Sends a notification, with the null sender and the gateway's name: a list of recipient, subject and text. ENOENT if the gateway has no route for the recipient, ELIMIT above the operator's rate. Takes the grant dsn."},
		{"submit", "io", i32("kind", "p", "n"), I32, InSession, 1, "Begins what dns (kind 1: the type, a u32, and the name behind it) or http (kind 2: the request) does, beside the guest. Returns a number for wait, or their error. What is not waited for ends with the hook."},
		{"wait", "io", i32("h", "timeout_ms", "buf", "cap"), I32, InSession, 1, "Waits for what submit began, up to so many milliseconds, and reads what dns or http would; ETIME if it is not there yet, and it may be waited for again. An answer above cap is kept. ENOENT for what was read."},
		{"secret", "secret", i32("np", "nn", "buf", "cap"), I32, Anytime, 1, "Reads a secret that the operator grants by name; EPERM for others."},
		{"out_relay", "way", i32("p", "n"), I32, Routing, 2, "Sends an outgoing message to a smart host instead of the hosts of its domain: a host name, an address, or mx: and the domain whose hosts it is. The empty text takes that back. A relay that cannot be one is the filter's failure. Like the others of this group it takes the grant route."},
		{"out_source", "way", i32("p", "n"), I32, Routing, 2, "Chooses the address that connections come from, by its name in the configuration; the empty text takes that back. A name that is not there is the filter's failure."},
		{"out_tls", "way", i32("mode"), I32, Routing, 2, "Says how far connections must be encrypted: 0 as the other side's policy says, 1 not at all, 2 where it is offered, 3 in any case, 4 and the host must have a certificate for its name. 3 and 4 count beside what the policy asks for; 1 and 2 are EPERM unless the operator grants less than that."},
		{"out_connect", "way", i32("p", "n"), I32, Connecting, 2, "Connects to another address than those of the first host, given as an address and perhaps a port, as in 192.0.2.1:25 or [2001:db8::1]:25. The host keeps its name and what TLS it must show, and the address must be one that mail may go to. The empty text takes that back."},
	}
}

// HookInfo describes a hook.
type HookInfo struct {
	Hook   Hook
	Name   string
	Doc    string
	Fields []Field // those of its frame
}

// HookTable returns every hook.
func HookTable() []HookInfo {
	conn := []Field{FieldClientIP, FieldClientPort, FieldServerIP, FieldRDNS, FieldListener, FieldConnID}
	tls := []Field{FieldClientIP, FieldRDNS, FieldTLSVersion, FieldTLSCipher, FieldTLSPeer, FieldTLSName, FieldTLSALPN, FieldListener, FieldConnID, FieldTLSVerified, FieldTLSFingerprint}
	helo := []Field{FieldClientIP, FieldRDNS, FieldHelo, FieldTLSVersion, FieldListener, FieldConnID}
	auth := []Field{FieldClientIP, FieldRDNS, FieldHelo, FieldTLSVersion, FieldAuthMechanism, FieldAuthLogin, FieldAuthAuthz, FieldListener, FieldConnID}
	mail := []Field{FieldClientIP, FieldRDNS, FieldHelo, FieldTLSVersion, FieldAuthUser, FieldMailFrom, FieldMailParams, FieldSize, FieldListener, FieldConnID}
	rcpt := []Field{FieldClientIP, FieldHelo, FieldAuthUser, FieldMailFrom, FieldRcpt, FieldRcptParams, FieldListener, FieldConnID}
	data := []Field{FieldClientIP, FieldHelo, FieldAuthUser, FieldMailFrom, FieldSize, FieldListener, FieldConnID}
	out := []Field{FieldClientIP, FieldHelo, FieldAuthUser, FieldMailFrom, FieldMailParams, FieldSize, FieldListener, FieldConnID,
		FieldQueueID, FieldTarget, FieldTry, FieldArrived, FieldExpires, FieldWay}
	after := []Field{FieldAuthUser, FieldMailFrom, FieldSize, FieldListener, FieldConnID, FieldQueueID, FieldTarget, FieldTry, FieldArrived, FieldFates}
	return []HookInfo{
		{HookConnect, "connect", "A client connected; no greeting was sent.", conn},
		{HookSecure, "secure", "A TLS handshake is done.", tls},
		{HookHelo, "helo", "HELO or EHLO.", helo},
		{HookAuth, "auth", "A client logs in. Accept says that its credentials are right, where the operator leaves that to filters; the filters behind are asked all the same.", auth},
		{HookMail, "mail", "MAIL FROM.", mail},
		{HookRcpt, "rcpt", "RCPT TO.", rcpt},
		{HookData, "data", "DATA was asked for; nothing was read yet.", data},
		{HookHeaders, "headers", "The header section is there; the client still sends.", data},
		{HookChunk, "chunk", "A piece of the body is there, as it came; the client still sends. The pieces come in order, each of 65,536 octets but the last. Nothing can be changed. A guest that subscribes needs a mailbox of 73,728 octets or more.", append(data, FieldChunk, FieldChunkOffset)},
		{HookMessage, "message", "The whole message is there; no reply was sent.", data},
		{HookReset, "reset", "The transaction was given up. The verdict does not count.", []Field{FieldConnID}},
		{HookClose, "close", "The connection has ended. The verdict does not count.", []Field{FieldConnID}},
		{HookRoute, "route", "An attempt to deliver a message from the queue to hosts elsewhere begins; nothing was looked up. Reject makes its recipients fail, tempfail has them wait.", out},
		{HookDeliver, "deliver", "It is known which hosts the attempt will try. Verdicts are as for route.", append(out, FieldHops)},
		{HookDeferred, "deferred", "Recipients wait for another try. The verdict does not count.", after},
		{HookBounced, "bounced", "Recipients have failed for good. The verdict does not count.", after},
		{HookDelivered, "delivered", "Recipients were taken by the next hop. The verdict does not count.", after},
	}
}

// FieldInfo describes a field.
type FieldInfo struct {
	Field Field
	Name  string
	Kind  Kind
	Doc   string
}

// FieldTable returns every field.
func FieldTable() []FieldInfo {
	return []FieldInfo{
		{FieldClientIP, "client_ip", KindIP, "The client's address; missing for a local socket."},
		{FieldRDNS, "rdns", KindBytes, "The name of the client's address, if it leads back to the address."},
		{FieldHelo, "helo", KindBytes, "What the client called itself."},
		{FieldTLSVersion, "tls_version", KindInt, "The TLS version, 0x0303 for 1.2, 0x0304 for 1.3; missing in clear."},
		{FieldTLSCipher, "tls_cipher", KindBytes, "The cipher suite's IANA name."},
		{FieldTLSPeer, "tls_peer", KindBytes, "The subject of the client's certificate. Without tls_verified anybody can have any."},
		{FieldAuthUser, "auth_user", KindBytes, "The authenticated user; missing before a login."},
		{FieldMailFrom, "mail_from", KindBytes, "The sender without brackets, canonical; empty for the null sender."},
		{FieldMailParams, "mail_params", KindList, "The parameters of MAIL, as KEY or KEY=VALUE: SIZE, BODY, SMTPUTF8, REQUIRETLS, RET, ENVID, AUTH, MT-PRIORITY, BY, HOLDFOR, HOLDUNTIL. Values are as they are meant, without the spelling of xtext."},
		{FieldRcpt, "rcpt", KindBytes, "The recipient that RCPT names, without brackets, canonical."},
		{FieldRcptParams, "rcpt_params", KindList, "The parameters of RCPT, in the same way: NOTIFY, ORCPT."},
		{FieldSize, "size", KindInt, "The announced size; from the message hook on, the real one."},
		{FieldListener, "listener", KindBytes, "The name of the listener."},
		{FieldTags, "tags", KindList, "What filters noted so far, as FILTER.KEY=VALUE."},
		{FieldConnID, "conn_id", KindBytes, "The name of the connection in the log."},
		{FieldClientPort, "client_port", KindInt, "The client's port."},
		{FieldServerIP, "server_ip", KindIP, "The address that the client connected to."},
		{FieldTLSName, "tls_name", KindBytes, "The server name that the client asked for (SNI)."},
		{FieldTLSALPN, "tls_alpn", KindBytes, "The negotiated application protocol."},
		{FieldRcpts, "rcpts", KindList, "The accepted recipients; at hook rcpt the last is the candidate."},
		{FieldAuthMechanism, "auth_mechanism", KindBytes, "The SASL mechanism of a login, as in PLAIN; like the other fields of a login at hook auth alone."},
		{FieldAuthLogin, "auth_login", KindBytes, "Who the client claims to be."},
		{FieldAuthAuthz, "auth_authz", KindBytes, "Who the client wants to act as; missing if it does not say."},
		{FieldAuthPassword, "auth_password", KindBytes, "The password, with PLAIN and LOGIN. Only get has it, and only where the operator leaves logins to filters; needs the grant auth_data."},
		{FieldAuthToken, "auth_token", KindBytes, "The token, with XOAUTH2 and OAUTHBEARER; as auth_password."},
		{FieldTLSVerified, "tls_verified", KindInt, "1 if the client's certificate was issued by an authority that the listener trusts; else missing."},
		{FieldTLSFingerprint, "tls_fingerprint", KindBytes, "The SHA-256 of the client's certificate, 64 lower-case hexadecimal digits; missing if it sent none, or if a proxy has ended TLS."},
		{FieldScores, "scores", KindList, "The scores that filters added up so far, this one's included, as KEY=N, N in thousandths."},
		{FieldChunk, "chunk", KindBytes, "A piece of the body, at hook chunk alone."},
		{FieldChunkOffset, "chunk_offset", KindInt, "Where the piece begins in the body."},
		{FieldQueueID, "queue_id", KindBytes, "The name of an outgoing message in the queue and in the log. Like the fields below it is there at the hooks of outgoing mail alone; those of the session are of the one in which the message came."},
		{FieldTarget, "target", KindBytes, "The domain that the recipients are at, in A-labels, or an address literal."},
		{FieldTry, "try", KindInt, "Which attempt it is for these recipients, from 1."},
		{FieldArrived, "arrived", KindInt, "When the message came, in nanoseconds since 1970 UTC."},
		{FieldExpires, "expires", KindInt, "When it is given up, likewise; missing if its sender did not say."},
		{FieldWay, "way", KindList, "What filters chose so far, as KEY=VALUE: relay, source, tls, to."},
		{FieldHops, "hops", KindList, "The hosts that will be tried, in order, each as texts with TAB between them: host name, preference, addresses with commas between them, what TLS it must show, and why it is not to be used."},
		{FieldFates, "fates", KindList, "What became of each recipient, in their order, as texts with TAB between them: when it is tried again, in nanoseconds since 1970 UTC or 0, the host and its address, and the reply."},
	}
}

// ActionInfo describes an action.
type ActionInfo struct {
	Action Action
	Name   string
	Doc    string
}

// ActionTable returns every action.
func ActionTable() []ActionInfo {
	return []ActionInfo{
		{ActContinue, "continue", "No objection; the next filter is asked."},
		{ActAccept, "accept", "The rest of the chain is not asked at this hook; needs the grant accept_final. At hook auth: the credentials are right; needs the grant auth_data."},
		{ActReject, "reject", "A reply 5xx, 550 5.7.1 by default; at hook auth 535 5.7.8."},
		{ActTempfail, "tempfail", "A reply 4xx, 451 4.7.1 by default; at hook auth 454 4.7.0."},
		{ActDiscard, "discard", "The client hears 250, the mail is dropped; at hook rcpt for this recipient alone. Needs the grant discard."},
		{ActQuarantine, "quarantine", "The mail is held for a person, and the client hears 250. Without a store it hears 451 4.3.0 at DATA or after the message, and keeps the mail."},
		{ActDisconnect, "disconnect", "The reply (421 or 5xx), and the end of the connection."},
		{ActSkip, "skip", "No objection, and no more calls until the transaction ends (said outside one: until the session ends). At hook chunk: no more pieces of this message."},
	}
}

// Names of capabilities: what an operator grants to a filter, and a filter's manifest asks
// for. What is not granted answers EPERM.
const (
	CapBodyRead    = "body_read"
	CapBodyEdit    = "body_edit"
	CapEnvelope    = "envelope"
	CapDiscard     = "discard"
	CapAcceptFinal = "accept_final"
	CapAuthData    = "auth_data"
	CapKV          = "kv"
	CapDNS         = "dns"
	CapHTTP        = "http"
	CapDSN         = "dsn"
	CapSecret      = "secret"
	CapRoute       = "route"
)

// CapabilityInfo describes a capability.
type CapabilityInfo struct{ Name, Doc string }

// CapabilityTable returns every capability.
func CapabilityTable() []CapabilityInfo {
	return []CapabilityInfo{
		{CapBodyRead, "Read the body and its parts, search and hash them. Without it a filter sees the header section."},
		{CapBodyEdit, "Change the body."},
		{CapEnvelope, "Change the sender, and add, change and take out recipients. Whether it may name those for whom the client may not relay is a parameter."},
		{CapDiscard, "The action discard."},
		{CapAcceptFinal, "The action accept, at all hooks but auth."},
		{CapAuthData, "The fields auth_password and auth_token, and the action accept at hook auth."},
		{CapKV, "Keep values beyond the session."},
		{CapDNS, "Look names up."},
		{CapHTTP, "Fetch from web servers that the operator lists."},
		{CapDSN, "Send notifications."},
		{CapSecret, "Read secrets that the operator lists."},
		{CapRoute, "Choose the way of outgoing mail: relay, source, encryption, address. Whether less encryption than the other side asks for is a parameter."},
	}
}

// Capabilities returns the names of all capabilities.
func Capabilities() []string {
	return []string{CapBodyRead, CapBodyEdit, CapEnvelope, CapDiscard, CapAcceptFinal, CapAuthData, CapKV, CapDNS, CapHTTP, CapDSN, CapSecret, CapRoute}
}

// DNSType is the number of a type of records, as the DNS has it.
type DNSType uint16

// The types that dns looks up.
const (
	DNSA     DNSType = 1
	DNSNS    DNSType = 2
	DNSCNAME DNSType = 5
	DNSPTR   DNSType = 12
	DNSMX    DNSType = 15
	DNSTXT   DNSType = 16
	DNSAAAA  DNSType = 28
	DNSSRV   DNSType = 33
)

// DNSSecure is set in the flags of an answer that was validated with DNSSEC, by somebody
// whose word counts.
const DNSSecure = 1 << 0

// DNSTypeInfo describes a type of records.
type DNSTypeInfo struct {
	Type DNSType
	Name string
	Doc  string // of a record's octets
}

// DNSTypes returns every type that dns looks up.
func DNSTypes() []DNSTypeInfo {
	return []DNSTypeInfo{
		{DNSA, "A", "4 octets"}, {DNSAAAA, "AAAA", "16 octets"}, {DNSTXT, "TXT", "the text, its strings joined"},
		{DNSMX, "MX", "preference u16, then the host"}, {DNSPTR, "PTR", "the name"}, {DNSCNAME, "CNAME", "the name"},
		{DNSNS, "NS", "the host"}, {DNSSRV, "SRV", "priority u16, weight u16, port u16, then the host"},
	}
}

// Op is what submit begins.
type Op int32

// What submit begins.
const (
	OpDNS  Op = 1
	OpHTTP Op = 2
)

// ErrnoInfo describes an error number.
type ErrnoInfo struct {
	Errno Errno
	Name  string
	Doc   string
}

// Errnos is every error number.
var Errnos = [...]ErrnoInfo{
	{EINVAL, "EINVAL", "an argument makes no sense"},
	{ENOENT, "ENOENT", "there is no such thing"},
	{EPERM, "EPERM", "the operator did not grant it"},
	{ELIMIT, "ELIMIT", "a limit of the filter is reached"},
	{ETIME, "ETIME", "it took too long"},
	{EUNAVAIL, "EUNAVAIL", "the host cannot do it now"},
	{EPHASE, "EPHASE", "not at this hook"},
}
