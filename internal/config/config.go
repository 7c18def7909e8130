// Package config reads the gateway's configuration and says everything that is
// wrong with it at once.
//
// A value is looked for in three layers, the later winning over the earlier:
//
//	the YAML file        log: {level: debug}
//	the environment      PENSTOCK_LOG__LEVEL=debug     two underscores between levels
//	the command line     log.level=debug               see Override
//
// Mappings are merged key by key. A list is replaced as a whole: in the
// environment and on the command line it is written as a YAML value,
// PENSTOCK_LISTENERS='[{name: mx, address: ":2525"}]'. A backend whose name has
// characters that no variable can have is meant by its name in capitals with
// underscores: PENSTOCK_BACKENDS__MAIL_STORE__TLS is backends.mail-store.tls.
//
// The struct Config is the table of keys. Each field's tags hold its key, its
// default and its meaning; what is accepted, what is suggested for a misspelt key
// and what Reference prints all come from them, so they cannot drift apart. Zero
// and empty mean the default everywhere.
//
// koanf does the layering. It keeps no positions, so the file is parsed to YAML
// nodes first, and each value's place is remembered until the last check is
// through: a backend that does not exist is reported at the line of the route
// that names it, and a bad value from a variable under the variable's name.
package config

import (
	"encoding/json"
	"time"
)

// Config is the whole configuration, as read by Load. It is not changed after
// Load returns, so it may be read from many goroutines.
//
// Defaults are filled in, relative paths are resolved, and names are in the form
// they have on the wire. Its fields have no comments of their own: the doc tag is
// the comment, and Reference prints it.
type Config struct {
	Hostname        Domain             `key:"hostname" required:"true" doc:"Our own name: in the greeting, in the answer to EHLO, and in the Received field we add."`
	Listeners       []Listener         `key:"listeners" required:"true" doc:"Where mail is taken in."`
	Routes          []Route            `key:"routes" doc:"Which recipients are ours, and where their mail goes. The first match wins; a recipient without a route is refused."`
	Backends        map[string]Backend `key:"backends" doc:"The mail servers behind us, by name."`
	Store           Store              `key:"store" doc:"Where messages are kept that are not handed on at once, and certificates that were obtained."`
	Overload        Overload           `key:"overload" doc:"When the gateway as a whole has too much to do: from 80 % of a limit on clients may be silent for a shorter time, at the limit new ones are told 421."`
	Delivery        Delivery           `key:"delivery" doc:"How we find out about others."`
	Filters         Filters            `key:"filters" doc:"WebAssembly filters, and the chains they form."`
	Certificates    Certificates       `key:"certificates" doc:"The certificates we show to clients."`
	Admin           Admin              `key:"admin" doc:"The HTTP API through which the commands act on a running gateway."`
	Log             Log                `key:"log" doc:"What is logged, on standard error."`
	ShutdownTimeout time.Duration      `key:"shutdown_timeout" default:"30s" doc:"How long sessions may take to finish once we were told to stop."`

	origins origins // where each value was written; nil in a Config made by hand
}

// A Listener is where mail is taken in, on one or more addresses, and its rules.
type Listener struct {
	Name               string             `key:"name" required:"true" doc:"Its name in the log; each listener has its own."`
	Address            ListenAddresses    `key:"address" required:"true" doc:"What to listen on: host:port, unix:/path, or systemd:NAME for a socket that systemd opened; or a list of such. Without a host, all addresses of the machine."`
	SocketMode         FileMode           `key:"socket_mode" default:"0660" doc:"Who may connect to a unix socket, as chmod writes it."`
	Protocol           Protocol           `key:"protocol" default:"smtp" doc:"The protocol spoken. lmtp (RFC 2033) answers for each recipient of a message."`
	Banner             string             `key:"banner" doc:"What the greeting says behind our name and the protocol."`
	HelloText          string             `key:"hello_text" doc:"What the answer to HELO and EHLO says behind our name; %s is the name that the client gave itself. Empty is greets %s."`
	TLS                ListenerTLS        `key:"tls" default:"starttls" doc:"starttls offers STARTTLS (RFC 3207); starttls_required takes no mail before it, and is not for port 25; implicit begins with the TLS handshake (RFC 8314); off has neither."`
	TLSMinVersion      TLSVersion         `key:"tls_min_version" doc:"The lowest version of TLS that is spoken here; empty for that of certificates.min_version."`
	ClientCertificates ClientCertificates `key:"client_certificates" doc:"Whether clients are asked for a certificate."`
	Chain              string             `key:"chain" doc:"The chain in filters.chains that judges the mail; empty for none."`
	Accept             Accept             `key:"accept" default:"routes" doc:"routes takes recipients that have a route; any also relays for the peers in trusted_networks and for users who logged in, and for nobody else."`
	TrustedNetworks    Networks           `key:"trusted_networks" doc:"Whose mail is relayed with accept: any. With either accept they are not held to connection_rate, message_rate and greet_delay; to connections_per_ip and auth_failure_rate they are."`
	SenderRouting      Bool               `key:"sender_routing" default:"false" doc:"true takes recipients such as user%elsewhere@here, elsewhere!user@here and \"user@elsewhere\"@here from clients that may not relay, too. Set it only where no backend sends on what is so addressed."`
	Auth               Auth               `key:"auth" doc:"Who may log in, and how (RFC 4954)."`
	ProxyProtocol      ProxyProtocol      `key:"proxy_protocol" doc:"Load balancers in front of us that say for whom they connect, in version 1 or 2 of the PROXY protocol."`
	XClient            XClient            `key:"xclient" doc:"Proxies that say with XCLIENT whose connection theirs is to be taken for."`
	XForward           XForward           `key:"xforward" doc:"Proxies that say with XFORWARD where mail came from, for the log and the backend. It never grants anything."`
	ReverseDNS         ReverseDNS         `key:"reverse_dns" doc:"Looking up the name of a client's address."`
	LineEndings        LineEndings        `key:"line_endings" default:"normalize" doc:"A bare CR or LF in the message: normalize makes it CRLF, and only CRLF.CRLF ends the message; reject answers 550 5.5.2 and closes."`
	DisabledCommands   []string           `key:"disabled_commands" doc:"Commands that are answered with 502, such as VRFY, AUTH or STARTTLS."`
	DisabledExtensions []string           `key:"disabled_extensions" doc:"Extensions that are not offered, by their EHLO keywords, such as CHUNKING or SMTPUTF8. STARTTLS and PIPELINING are then only not spoken of."`
	Submission         Submission         `key:"submission" doc:"What is done with mail of those who may relay (RFC 6409): with accept: any the trusted_networks and users who logged in."`
	Limits             Limits             `key:"limits" doc:"What one client, one session and one message may use. 0 means the default."`
}

// Submission says what is done with mail of those who may relay.
type Submission struct {
	Senders  Senders `key:"senders" default:"any" doc:"Which addresses a user who logged in may send from, in MAIL and in the fields From and Sender: any is all there are; own is the user's name where that is an address, else that name at a domain that a route has by name, or at our hostname, each with +anything behind it; file:PATH is a list of lines such as ann: ann@example.com @shop.example.com, with * for any. Where users are not all the same person, own or a list keeps them from writing in each other's name."`
	Complete Bool    `key:"complete" default:"true" doc:"true adds the fields Date and Message-ID where they are missing."`
	Sign     Bool    `key:"sign" default:"true" doc:"true signs with the key of delivery.dkim for the domain of the field From, if there is one."`
}

// ClientCertificates says whether clients are asked for a certificate.
type ClientCertificates struct {
	Mode   ClientAuth `key:"mode" default:"off" doc:"off does not ask; request asks and takes any or none; require takes any; verify_if_given takes none, or one of an authority in ca_file; verify takes only such a one."`
	CAFile Path       `key:"ca_file" doc:"PEM file with the authorities whose certificates count; required with verify and verify_if_given. Read at start alone."`
}

// Auth says who may log in.
type Auth struct {
	Required     Bool        `key:"required" default:"false" doc:"true refuses mail before a login, with 530."`
	Mechanisms   []Mechanism `key:"mechanisms" doc:"What is offered, in this order: PLAIN, LOGIN, CRAM-MD5, XOAUTH2, OAUTHBEARER, SCRAM-SHA-256, SCRAM-SHA-256-PLUS, EXTERNAL. Empty is what users can serve, without CRAM-MD5. What cannot work on a connection is not offered there."`
	Users        Users       `key:"users" doc:"Who decides: file:PATH of lines name:hash, as gateway user add writes them; backend:NAME to try the login there; or filter, where a filter of the chain decides at stage auth. Nobody can log in while this is not set."`
	Insecure     Bool        `key:"insecure" default:"false" doc:"true allows logins without TLS. Passwords can then be read on the way."`
	RequiredText string      `key:"required_text" doc:"What a client is told that must log in first. Empty is log in first."`
}

// ProxyProtocol names the load balancers in front of a listener.
type ProxyProtocol struct {
	Trusted Networks      `key:"trusted" doc:"Whose connections begin with the header, always: without it they are closed. From others it is an unknown command. A client that has TLS with them, by the word of a header of version 2, counts as one that has TLS with us."`
	Timeout time.Duration `key:"timeout" default:"5s" doc:"How long the header may take."`
}

// XClient names the proxies that may say XCLIENT.
type XClient struct {
	Trusted Networks `key:"trusted" doc:"Who may say it."`
	Relay   Bool     `key:"relay" default:"false" doc:"true lets the address and the login that it tells of grant relaying as the client's own would."`
}

// XForward names the proxies that may say XFORWARD.
type XForward struct {
	Trusted Networks `key:"trusted" doc:"Who may say it."`
}

// ReverseDNS says how the name of a client's address is found.
type ReverseDNS struct {
	Enabled Bool          `key:"enabled" default:"true" doc:"false looks up nothing."`
	Timeout time.Duration `key:"timeout" default:"1500ms" doc:"How long it may take; the client waits for its greeting meanwhile."`
}

// Limits bounds what a listener's clients may use. Load replaces zeros by the
// defaults.
type Limits struct {
	MessageSize             Size          `key:"message_size" default:"50MiB" doc:"The largest message, as announced by SIZE (RFC 1870)."`
	Recipients              int           `key:"recipients" default:"1000" doc:"Recipients of one message. RFC 5321, Section 4.5.3.1.8 asks for at least 100."`
	Connections             int           `key:"connections" default:"10000" doc:"Connections open at one time."`
	ConnectionsPerIP        int           `key:"connections_per_ip" default:"100" doc:"Connections open at one time from one address."`
	ConnectionRate          Rate          `key:"connection_rate" default:"off" doc:"Connections of one address in a time, such as 60/1m, or off. With IPv6 an address is its network of 64 bits."`
	ConnectionRateNetwork   Rate          `key:"connection_rate_network" default:"off" doc:"The same for a network: 24 bits of IPv4, 48 of IPv6."`
	MessageRate             Rate          `key:"message_rate" default:"off" doc:"Messages of one address in a time, and of one user who has logged in, wherever it comes from. trusted_networks are not held to it; a proxy's own connection is not before it has said for whom it comes."`
	MessageRateNetwork      Rate          `key:"message_rate_network" default:"off" doc:"The same for a network."`
	RecipientRate           Rate          `key:"recipient_rate" default:"off" doc:"Recipients of one address in a time, and of one user who has logged in, such as 500/1h, refused ones included. trusted_networks are not held to it."`
	GreetDelay              Pause         `key:"greet_delay" default:"100ms" doc:"How long the greeting waits for clients that speak before it, which are refused; or off. Addresses whose mail was accepted before are not held up."`
	IdleTimeout             time.Duration `key:"idle_timeout" default:"5m" doc:"How long a client may be silent. RFC 5321, Section 4.5.3.2.7 asks for at least 5m."`
	StressTimeout           time.Duration `key:"stress_timeout" default:"10s" doc:"How long a client may be silent between commands while connections or memory are short."`
	SessionTimeout          time.Duration `key:"session_timeout" default:"30m" doc:"How long a session may last; looked at between messages, so that none is cut off."`
	DataMinRate             Size          `key:"data_min_rate" default:"1KiB" doc:"The least a client must send per second of a message, over 5 minutes."`
	HandshakeTimeout        time.Duration `key:"handshake_timeout" default:"30s" doc:"How long a TLS handshake may take."`
	Commands                int           `key:"commands" default:"1000" doc:"Commands before a message, and between two, recipients that are accepted not counted."`
	BadCommands             int           `key:"bad_commands" default:"10" doc:"Commands in error before the session is closed."`
	Errors                  int           `key:"errors" default:"100" doc:"Refusals of any kind, without a message accepted between them, before the session is closed. A recipient that is put off to a message of its own (452 4.5.3) is none."`
	ErrorDelay              Pause         `key:"error_delay" default:"1s" doc:"How long the answer waits to each refusal after the first ten; or off."`
	UnauthenticatedCommands int           `key:"unauthenticated_commands" default:"20" doc:"Commands before the login, where one is required."`
	AuthFailures            int           `key:"auth_failures" default:"3" doc:"Failed logins before the session is closed."`
	AuthFailureRate         Rate          `key:"auth_failure_rate" default:"20/10m" doc:"Failed logins of one address in a time, after which it may not try."`
	AuthDelay               Pause         `key:"auth_delay" default:"1s" doc:"How long the answer to a failed login waits; it doubles with each in a session. Or off."`
	Messages                int           `key:"messages" default:"1000" doc:"Messages in one session."`
	LineLength              Size          `key:"line_length" default:"0" doc:"The longest command line with its CRLF, 512 to 32768; 0 leaves the 4KiB that are built in."`
	Hops                    int           `key:"hops" default:"50" doc:"Received fields before a message counts as looping (RFC 5321, Section 6.3)."`
	HeaderSize              Size          `key:"header_size" default:"1MiB" doc:"The largest header section of a message."`
}

// A Route sends the mail of some domains, or of single addresses, to a backend or to a part of
// the gateway itself.
type Route struct {
	Domains    []Pattern     `key:"domains" doc:"Recipient domains: example.com for itself, *.example.com for every name below it, * for every domain, which only those are given who may relay: on a listener with accept: any its trusted_networks and users who logged in. Without a route for * what they send elsewhere is delivered as delivery says."`
	Recipients []MailAddress `key:"recipients" doc:"Single recipients, beside domains or instead of them, such as tlsrpt@example.com, in any case."`
	Backend    string        `key:"backend" doc:"The name of the backend in backends. Either this or handler."`
	Handler    Handler       `key:"handler" doc:"What takes the mail in the gateway itself: tlsrpt reads reports that others send us about TLS (RFC 8460) and keeps them for 90 days, for gateway tlsrpt. What is no such report is refused."`
}

// A Backend is a mail server, or several that are equal, behind the gateway.
type Backend struct {
	Addresses   [][]BackendAddress `key:"addresses" required:"true" doc:"Where it is: smtp://host:25, lmtp://host:24, smtps://host:465, smtp+unix:///path or lmtp+unix:///path. Tried in order; equal ones share an inner list: [[a, b], [c]]."`
	TLS         BackendTLS         `key:"tls" default:"opportunistic" doc:"opportunistic takes STARTTLS when it is offered; required insists on it; verify also insists on a certificate for the right name; off never asks."`
	Mode        Mode               `key:"mode" default:"direct" doc:"direct: the client gets its 250 after the backend has given its own; queue: once the message is safe in the store."`
	WhenDown    WhenDown           `key:"when_down" default:"tempfail" doc:"When no address answers: tempfail makes the client try again later; queue keeps the message, of recipients that callout, file: or accept vouches for."`
	Recipients  Recipients         `key:"recipients" default:"pass" doc:"Who knows which recipients exist: pass asks the backend about each at once; callout asks it in a conversation of its own and remembers the answer; file:PATH is a list of addresses, a line each, @domain for all of a domain, and keeps the gateway from starting while it has none; accept takes all of a route's domains unasked."`
	Separator   string             `key:"recipient_separator" doc:"What begins the part of a local part that file: ignores, such as +. Empty for none."`
	Callout     Callout            `key:"callout" doc:"How recipients: callout asks and remembers."`
	Login       BackendLogin       `key:"login" doc:"How we log in there, if it asks for that."`
	Chunking    Bool               `key:"chunking" default:"true" doc:"false sends by DATA where the backend offers CHUNKING, too."`
	XClient     Bool               `key:"xclient" default:"false" doc:"true tells the backend with XCLIENT who the client is, if it offers that: it then judges the client as if it were connected itself."`
	XForward    Bool               `key:"xforward" default:"false" doc:"true tells the backend with XFORWARD who the client is, if it offers that, for its log."`
	Connections int                `key:"connections" default:"50" doc:"Connections open to it at one time."`
	Pace        Rate               `key:"pace" default:"off" doc:"Messages that each gateway hands it from the queue in a time, such as 600/1m, or off. They are spread over it."`
	CAFile      Path               `key:"ca_file" doc:"PEM file with the authorities that tls: verify trusts; empty for those of the system."`
	TLSName     Domain             `key:"tls_name" doc:"The name that tls: verify looks for in the certificate; empty for the host of the address."`
	Timeouts    Timeouts           `key:"timeouts" doc:"How long we wait for it."`
}

// Callout says how a backend is asked whether recipients exist.
type Callout struct {
	Positive time.Duration `key:"positive" default:"1h" doc:"How long it is remembered that a recipient exists."`
	Negative time.Duration `key:"negative" default:"5m" doc:"How long it is remembered that one does not."`
	Timeout  time.Duration `key:"timeout" default:"10s" doc:"How long the backend may take to answer."`
	Stale    time.Duration `key:"stale" default:"24h" doc:"How long after its time a recipient that existed is still taken while the backend does not answer."`
	Entries  int           `key:"entries" default:"50000" doc:"Recipients that are remembered at one time."`
}

// BackendLogin says how we log in at a backend.
type BackendLogin struct {
	User     string `key:"user" doc:"Our name there. Empty does not log in."`
	Password File   `key:"password" doc:"file:PATH of a file that holds the password alone."`
	Insecure Bool   `key:"insecure" default:"false" doc:"true lets passwords out without TLS, also those that auth: users: backend:NAME tries here. To this machine and to unix sockets they may go in any case."`
}

// Timeouts bounds the waits of one conversation with a backend.
type Timeouts struct {
	Connect time.Duration `key:"connect" default:"30s" doc:"For the connection and the TLS handshake."`
	Command time.Duration `key:"command" default:"5m" doc:"For the answer to a command (RFC 5321, Section 4.5.3.2)."`
	Data    time.Duration `key:"data" default:"10m" doc:"For the answer to the message (RFC 5321, Section 4.5.3.2.6)."`
}

// Overload bounds what all listeners may use together. 0 means the default.
type Overload struct {
	Sessions int  `key:"sessions" default:"10000" doc:"Sessions open at one time."`
	Memory   Size `key:"memory" default:"0" doc:"Memory of the process, at least 64MiB; 0 for 80 % of what the machine, its control group or GOMEMLIMIT allows."`
	Spool    Size `key:"spool" default:"4GiB" doc:"Messages that are on their way in at one time, in memory and on disk; those beyond are told 452. At least the largest message_size."`
}

// Delivery says how mail goes to others.
type Delivery struct {
	Resolver       Resolver      `key:"resolver" doc:"Who answers our questions to the DNS."`
	DANE           DANEMode      `key:"dane" default:"opportunistic" doc:"TLSA records (RFC 7672): opportunistic authenticates hosts that have them, and sends as if there were no DANE to those that have none; required sends to no host without them; off does not look. None is found unless the resolver validates and its word counts."`
	MTASTS         STSMode       `key:"mta_sts" default:"enforce" doc:"Policies of MTA-STS (RFC 8461): enforce obeys them, as each domain asks for; testing delivers as without them, and reports; off does not look."`
	Both           Bool          `key:"require_both" default:"false" doc:"true asks a host that has both, TLSA records that count and a policy in mode enforce, for a certificate that both accept. With false DANE alone decides about the certificate, and of the policy it counts alone that it names the host."`
	TLSRPT         TLSRPT        `key:"tlsrpt" doc:"Daily reports to domains that ask for them, of how TLS went with their hosts (RFC 8460)."`
	IPFamilies     []IPFamily    `key:"ip_families" doc:"The kinds of addresses that are connected to, ipv4 and ipv6. Empty is both."`
	PreferIPv6     Bool          `key:"prefer_ipv6" default:"false" doc:"true tries the IPv6 addresses of a host first."`
	BlockLocal     Bool          `key:"block_local_addresses" default:"true" doc:"false also connects to this machine, private networks and link-local addresses, to which whoever owns a domain can have it lead. The relay and the backends are exempt."`
	BlockReserved  Bool          `key:"block_reserved_networks" default:"true" doc:"false also connects to addresses that are reserved, for documentation or for benchmarks, and that nobody on the Internet has."`
	NAT64Prefixes  []NAT64Prefix `key:"nat64_prefixes" doc:"Networks in which IPv6 addresses stand for those of IPv4 (RFC 6052), beside 64:ff9b::/96. Such addresses are judged as what they stand for."`
	Port           int           `key:"port" default:"25" doc:"The port that hosts are connected to. Another than 25 is for tests, and for networks that forward it."`
	ConnectTimeout time.Duration `key:"connect_timeout" default:"30s" doc:"How long a connection to one address may take."`
	Relay          Relay         `key:"relay" doc:"A host that takes all mail for others, in place of the hosts that their MX records name: HOST or HOST:PORT, or mx:DOMAIN for the mail exchangers of a domain. DANE and MTA-STS are asked about it. One that wants a login is a backend instead, with a route for every domain. Empty for none."`
	RelayTLS       RelayTLS      `key:"relay_tls" default:"policy" doc:"What the relay must show: policy is what DANE and MTA-STS say of it; required also refuses clear text; verify also wants a certificate of an authority for its name, unless TLSA records decide about it."`
	Chain          string        `key:"chain" doc:"The chain in filters.chains that is asked about mail to others: where it goes, and what became of it. Empty for none."`
	DKIM           []DKIM        `key:"dkim" doc:"Keys that mail of our own is signed with, by the domain of its sender (RFC 6376); of one domain there may be several. They are read again when a file changes, and on HUP."`
	Sources        []Source      `key:"sources" doc:"Addresses of this machine to send from, with the names that belong to them. Messages are spread over them; a filter may choose. Empty leaves the address to the system, and the name is hostname."`
	Proxy          Proxy         `key:"proxy" doc:"A proxy that hosts are connected to through: socks5://HOST:PORT, or http:// or https:// for CONNECT. Names are looked up here, and addresses judged, before it is asked. Empty for none."`
	ProxyLogin     ProxyLogin    `key:"proxy_login" doc:"Who we are to the proxy, if it asks."`
	Connections    int           `key:"connections" default:"20" doc:"Connections open at one time to one destination: to all hosts that a set of MX records names, whichever domains share it."`
	Pace           Rate          `key:"pace" default:"off" doc:"Messages to one destination, in the sense of connections, that each gateway sends in a time, such as 600/1m, or off. They are spread over it."`
	Authorities    Path          `key:"authorities" doc:"PEM file with authorities that count beside those of the system where MTA-STS wants a certificate."`
	Schedule       Schedule      `key:"schedule" doc:"When what could not be delivered is tried again."`
	Lease          time.Duration `key:"lease" default:"2m" doc:"For how long a node has a message to itself; it asks for more while it delivers. With store.driver: postgres, what a node had when it died comes back to the others after this time, and a database that is away for longer than half of it makes them deliver again what was under way. At least 5s."`
}

// TLSRPT says who sends the reports on TLS.
type TLSRPT struct {
	Enabled      Bool        `key:"enabled" default:"true" doc:"false counts nothing and sends no reports."`
	Organization string      `key:"organization" doc:"Who we are, in the reports; by default hostname."`
	Contact      MailAddress `key:"contact" doc:"Where questions about a report go, and the sender of those that go by mail; by default postmaster at hostname."`
}

// DKIM is a key that mail of a domain is signed with.
type DKIM struct {
	Domain   Domain       `key:"domain" required:"true" doc:"The domain of the signature: mail from it is signed, and from names below it that have no key of their own."`
	Selector DKIMSelector `key:"selector" required:"true" doc:"The name of the key in DNS: its record is at SELECTOR._domainkey.DOMAIN."`
	Key      File         `key:"key" required:"true" doc:"file:PATH of the private key in PEM form, RSA of 2048 bits at least or Ed25519. gateway dkim new makes one."`
}

// Source is where connections come from, and the name that is said there.
type Source struct {
	Name     string   `key:"name" required:"true" doc:"Its name in the log, and for filters."`
	IPv4     Address4 `key:"ipv4" doc:"The IPv4 address; empty leaves it to the system."`
	IPv6     Address6 `key:"ipv6" doc:"The IPv6 address."`
	Helo     Domain   `key:"helo" doc:"The name in EHLO: the one that the address leads back to. By default hostname."`
	HeloIPv4 Domain   `key:"helo_ipv4" doc:"That of connections over IPv4, if it is another."`
	HeloIPv6 Domain   `key:"helo_ipv6" doc:"That of connections over IPv6."`
}

// ProxyLogin says who we are to a proxy.
type ProxyLogin struct {
	User     string `key:"user" doc:"Our name there. Empty does not log in."`
	Password File   `key:"password" doc:"file:PATH of a file that holds the password alone."`
}

// Schedule says when recipients that could not be served are tried again.
type Schedule struct {
	First  time.Duration `key:"first" default:"5m" doc:"The wait after the first try."`
	Factor int           `key:"factor" default:"2" doc:"How much longer each wait is than the one before."`
	Max    time.Duration `key:"max" default:"6h" doc:"The longest wait."`
	Expire time.Duration `key:"expire" default:"5d" doc:"How long a message is tried before it is returned. RFC 5321, Section 4.5.4.1 asks for at least 4 to 5 days."`
	Notify Pause         `key:"notify" default:"4h" doc:"When the sender is told of the delay; or off."`
}

// Store says where messages are kept, and certificates.
type Store struct {
	Driver  StoreDriver   `key:"driver" doc:"embedded keeps messages, and certificates that were obtained, in a folder, for one node; postgres in a database, for one or more. none keeps nothing: clients hear 250 after the backend said it, and nothing can be queued or held. By default embedded where something needs it, else none."`
	Path    Path          `key:"path" default:"./data/store" doc:"The folder, with driver: embedded. Nobody else may write to it."`
	URL     string        `key:"url" doc:"The database, with driver: postgres, as in postgres://user@host/name."`
	Key     File          `key:"key" doc:"file:PATH of a file with 32 octets in hexadecimal that encrypt private keys in the store. Required with driver: postgres."`
	Timeout time.Duration `key:"timeout" default:"30s" doc:"How long a client waits for its message to be safe while the store does not answer, before it is told to try again later. Longer than a database takes to be replaced by its standby, shorter than clients wait. At least 1s."`
}

// Resolver names the DNS servers that we ask.
type Resolver struct {
	Address ResolverAddresses `key:"address" doc:"auto, as when it is empty, takes 127.0.0.1:53 if there is a resolver, else the servers of /etc/resolv.conf. Or one address or up to 4, asked in order: an IP address, with a port or without, tcp:// or tls:// before it (RFC 7858), https://ADDRESS/PATH (RFC 8484), or unix:/path. Behind a # stands what the certificate of tls:// and https:// must have, the name, a pin of the key as sha256:BASE64, or both with a comma: tls://192.0.2.1#dns.example.net."`
	Trusted Trust             `key:"trusted" default:"auto" doc:"Whether its word counts that an answer was authenticated by DNSSEC: auto for the loopback alone, true for a resolver over tls:// or https:// too, or false. It must validate itself, since we do not."`
	CAFile  Path              `key:"ca_file" doc:"PEM file with the authorities that may have issued the certificates of tls:// and https:// servers; empty for those of the system."`
	Probe   DNSName           `key:"probe" default:"." doc:"A name whose zone is signed. It is asked for each minute, to see whether the resolver validates; when it does not, there is no DANE, and the log says so. The root will do, but on a network without it."`
}

// Filters names where filters are and the chains they form.
type Filters struct {
	Dir     Path                    `key:"dir" doc:"Folder of *.wasm files that a chain can name without their ending."`
	Cache   Path                    `key:"cache" default:"./data/compiled" doc:"Folder for compiled filters, so that the next start is quick. It holds native code: nobody else may write to it."`
	Secrets map[string]SecretSource `key:"secrets" doc:"Secrets by name, as in a key for a web server: file:PATH of a file that holds it alone, or env:NAME of a variable. A filter reads those that it is granted."`
	Chains  map[string][]Filter     `key:"chains" doc:"Chains by name, each a list of filters that are asked in order."`
}

// A Filter is one filter of a chain and how it is run.
type Filter struct {
	Module   Module          `key:"module" required:"true" doc:"builtin:NAME for one that ships with us, NAME for NAME.wasm in filters.dir, or a path that ends in .wasm."`
	Name     string          `key:"name" doc:"Its name in the log; by default the module's."`
	Config   json.RawMessage `key:"config" doc:"Handed to the filter as JSON, keys sorted."`
	Grant    Grant           `key:"grant" doc:"What it may do beside judging, and writing header fields. Nothing is granted unless it is written here; gateway check says what a filter asks for."`
	Limits   FilterLimits    `key:"limits" doc:"What it may use. 0 means the default."`
	Instance Instance        `key:"instance" default:"session" doc:"How long the memory of a guest belongs to one session: session, from the first call to the end; hook, for each call, so that sessions which wait for their client cost no memory of guests, and the filter keeps what it needs with sess_set; shared, for ever and by all, for filters that you trust and that keep something for all sessions."`
	Log      FilterLog       `key:"log" doc:"The least important of its own lines that is logged, whatever log.level says; or off. Without it log.level holds."`
	OnError  OnErrors        `key:"on_error" default:"tempfail" doc:"What becomes of a message when the filter fails: tempfail answers 451, accept goes on without it, reject answers 554, quarantine holds the message in the store for a person to look at. By hook it is a mapping, as in {default: tempfail, connect: accept}; the hooks are connect, secure, helo, auth, mail, rcpt, data, headers, chunk and message."`
	OnBroken OnErrors        `key:"on_broken" doc:"The same for a filter that fails so often that it is not asked for a while. Without it, and at hooks that a mapping without default does not name, on_error answers."`
}

// FilterLimits bounds what one instance of a filter may use.
type FilterLimits struct {
	Memory     Size          `key:"memory" default:"16MiB" doc:"Memory of one instance, from 64KiB to 64MiB."`
	CPU        time.Duration `key:"cpu" default:"2ms" doc:"CPU time of one call at connect, secure, helo, auth, mail, rcpt, data, reset and close, at most 500ms."`
	CPUMessage time.Duration `key:"cpu_message" default:"20ms" doc:"CPU time of one call at headers, chunk and message, at most 500ms; cpu_per_mib comes on top."`
	CPUPerMiB  time.Duration `key:"cpu_per_mib" default:"10ms" doc:"CPU time of such a call for each MiB of the message, at most 500ms."`
	CPUSession time.Duration `key:"cpu_session" default:"200ms" doc:"CPU time of all calls in one transaction, at most 5s; that of headers, chunk and message comes on top."`
	Wall       time.Duration `key:"wall" default:"5s" doc:"Time for one call, waiting for others included, at most 1m. Waiting for the processor is not."`

	Boot          time.Duration `key:"boot" default:"1s" doc:"CPU time of its start, at most 1m."`
	Stack         Size          `key:"stack" default:"512KiB" doc:"How deeply its calls may be nested, by an estimate of what their frames take: from 16KiB to 512KiB."`
	LogLines      int           `key:"log_lines" default:"32" doc:"Lines that it may log at one stage, at most 1000."`
	SessionValues Size          `key:"session_values" default:"16KiB" doc:"What it may keep for a session with sess_set, at most 1MiB."`
	HeaderEdits   int           `key:"header_edits" default:"256" doc:"Changes of header fields in one call, at most 4096."`
	HeaderSize    Size          `key:"header_size" default:"128KiB" doc:"Octets of header fields that it writes in one call, at most 1MiB."`
	Recipients    int           `key:"recipients" default:"100" doc:"Recipients that it may add in one call, at most 1000."`
	BodyGrowth    Size          `key:"body_growth" default:"1MiB" doc:"How much larger than twice its size it may make a body, at most 64MiB."`
}

// Certificates names the certificates shown to clients.
type Certificates struct {
	Files      []CertificateFile `key:"files" doc:"Certificates with their keys; which one is shown depends on the name the client asks for, and the first is the default."`
	Dir        Path              `key:"dir" default:"./data/certificates" doc:"Where the self-signed certificate is kept that is made when there is no other, and, without a store, in acme below it the certificates that were obtained, their keys and the account with the CA. With a store those are there, and what acme has is copied into it at the start."`
	MinVersion TLSVersion        `key:"min_version" default:"1.2" doc:"The lowest version of TLS that clients may speak. RFC 8996 has retired 1.0 and 1.1."`
	Names      []CertificateName `key:"names" doc:"Host names that a certificate is obtained for, each of its own, and kept renewed. They must lead to this machine, or to one of those that share a store."`
	ACME       ACME              `key:"acme" doc:"The authority that the certificates for names are obtained from, and how it is shown that the names are ours (RFC 8555)."`
}

// ACME says from whom certificates are obtained, and how.
type ACME struct {
	Email     MailAddress      `key:"email" doc:"Where the authority writes to when something is wrong. Required with names."`
	Directory ACMEDirectory    `key:"directory" default:"letsencrypt" doc:"The authority: letsencrypt, letsencrypt-staging for trying things out, or the https URL of a directory."`
	Agreed    Bool             `key:"agreed" default:"false" doc:"true says that you agree to the authority's terms of service. Required with names; nobody is asked later."`
	CARoots   Path             `key:"ca_roots" doc:"PEM file with the roots to trust when talking to the authority; empty for those of the system."`
	HTTP01    ChallengeAddress `key:"http01" default:":80" doc:"Where the challenge HTTP-01 is answered, and nothing else. The authority comes to port 80 of the name: another port needs somebody who forwards. off does without."`
	TLSALPN01 ChallengeAddress `key:"tlsalpn01" default:":443" doc:"The same for TLS-ALPN-01 (RFC 8737) and port 443. One of the two is enough."`
}

// A CertificateFile is a certificate chain and its private key, both PEM.
type CertificateFile struct {
	Cert Path `key:"cert" required:"true" doc:"PEM file with the certificate, then its issuers."`
	Key  Path `key:"key" required:"true" doc:"PEM file with the private key."`
}

// Log says what is logged, and how.
type Log struct {
	Level  LogLevel  `key:"level" default:"info" doc:"The least important that is logged; debug shows the dialogue."`
	Format LogFormat `key:"format" default:"text" doc:"text for people, json for programs."`
}

// Problem returns an error about the value at key, such as
// "backends.mailstore.ca_file", with the place where the value, or the nearest
// thing around it, was written. It is for what only shows when the configuration
// is put to use, a file that cannot be opened for one.
func (c *Config) Problem(key, text string) Problem {
	return c.origins.find(key).problem(key, text)
}

// Warning is like Problem, for what does not keep the gateway from starting.
func (c *Config) Warning(key, text string) Problem {
	p := c.Problem(key, text)
	p.Warning = true
	return p
}
