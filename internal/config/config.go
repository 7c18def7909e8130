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
	Filters         Filters            `key:"filters" doc:"WebAssembly filters, and the chains they form."`
	Certificates    Certificates       `key:"certificates" doc:"The certificates we show to clients."`
	Log             Log                `key:"log" doc:"What is logged, on standard error."`
	ShutdownTimeout time.Duration      `key:"shutdown_timeout" default:"30s" doc:"How long sessions may take to finish once we were told to stop."`

	origins origins // where each value was written; nil in a Config made by hand
}

// A Listener is one address on which mail is taken in, and its rules.
type Listener struct {
	Name            string        `key:"name" required:"true" doc:"Its name in the log; each listener has its own."`
	Address         ListenAddress `key:"address" required:"true" doc:"What to listen on: host:port, or unix:/path. Without a host, all addresses of the machine."`
	Protocol        Protocol      `key:"protocol" default:"smtp" doc:"The protocol spoken."`
	TLS             ListenerTLS   `key:"tls" default:"starttls" doc:"starttls offers STARTTLS (RFC 3207); implicit begins with the TLS handshake (RFC 8314); off has neither."`
	Chain           string        `key:"chain" doc:"The chain in filters.chains that judges the mail; empty for none."`
	Accept          Accept        `key:"accept" default:"routes" doc:"routes takes recipients that have a route; any also relays for the peers in trusted_networks, and for nobody else."`
	TrustedNetworks Networks      `key:"trusted_networks" doc:"Whose mail is relayed with accept: any."`
	LineEndings     LineEndings   `key:"line_endings" default:"normalize" doc:"A bare CR or LF in the message: normalize makes it CRLF, and only CRLF.CRLF ends the message; reject answers 550 5.5.2 and closes."`
	Limits          Limits        `key:"limits" doc:"What one client, one session and one message may use. 0 means the default."`
}

// Limits bounds what a listener's clients may use. Load replaces zeros by the
// defaults.
type Limits struct {
	MessageSize      Size          `key:"message_size" default:"50MiB" doc:"The largest message, as announced by SIZE (RFC 1870)."`
	Recipients       int           `key:"recipients" default:"1000" doc:"Recipients of one message. RFC 5321, Section 4.5.3.1.8 asks for at least 100."`
	Connections      int           `key:"connections" default:"10000" doc:"Connections open at one time."`
	ConnectionsPerIP int           `key:"connections_per_ip" default:"100" doc:"Connections open at one time from one address."`
	IdleTimeout      time.Duration `key:"idle_timeout" default:"5m" doc:"How long a client may be silent. RFC 5321, Section 4.5.3.2.7 asks for at least 5m."`
	SessionTimeout   time.Duration `key:"session_timeout" default:"30m" doc:"How long a session may last; looked at between messages, so that none is cut off."`
	DataMinRate      Size          `key:"data_min_rate" default:"1KiB" doc:"The least a client must send per second of a message, over 5 minutes."`
	HandshakeTimeout time.Duration `key:"handshake_timeout" default:"30s" doc:"How long a TLS handshake may take."`
	BadCommands      int           `key:"bad_commands" default:"10" doc:"Commands in error before the session is closed."`
	Messages         int           `key:"messages" default:"1000" doc:"Messages in one session."`
	LineLength       Size          `key:"line_length" default:"0" doc:"The longest command line with its CRLF, 512 to 32768; 0 leaves the 4KiB that are built in."`
	Hops             int           `key:"hops" default:"50" doc:"Received fields before a message counts as looping (RFC 5321, Section 6.3)."`
	HeaderSize       Size          `key:"header_size" default:"1MiB" doc:"The largest header section of a message."`
}

// A Route sends the mail of some domains to a backend.
type Route struct {
	Domains []Pattern `key:"domains" required:"true" doc:"Recipient domains: example.com for itself, *.example.com for every name below it, * for every domain, which only trusted_networks of a listener with accept: any are given."`
	Backend string    `key:"backend" required:"true" doc:"The name of the backend in backends."`
}

// A Backend is a mail server, or several that are equal, behind the gateway.
type Backend struct {
	Addresses   [][]BackendAddress `key:"addresses" required:"true" doc:"Where it is: smtp://host:25, lmtp://host:24, smtps://host:465, smtp+unix:///path or lmtp+unix:///path. Tried in order; equal ones share an inner list: [[a, b], [c]]."`
	TLS         BackendTLS         `key:"tls" default:"opportunistic" doc:"opportunistic takes STARTTLS when it is offered; required insists on it; verify also insists on a certificate for the right name; off never asks."`
	Mode        Mode               `key:"mode" default:"direct" doc:"direct: the client gets its 250 after the backend has given its own."`
	WhenDown    WhenDown           `key:"when_down" default:"tempfail" doc:"When no address answers: tempfail makes the client try again later."`
	Recipients  Recipients         `key:"recipients" default:"pass" doc:"pass asks the backend about each recipient at once; accept takes all of a route's domains unasked."`
	Connections int                `key:"connections" default:"50" doc:"Connections open to it at one time."`
	CAFile      Path               `key:"ca_file" doc:"PEM file with the authorities that tls: verify trusts; empty for those of the system."`
	TLSName     Domain             `key:"tls_name" doc:"The name that tls: verify looks for in the certificate; empty for the host of the address."`
	Timeouts    Timeouts           `key:"timeouts" doc:"How long we wait for it."`
}

// Timeouts bounds the waits of one conversation with a backend.
type Timeouts struct {
	Connect time.Duration `key:"connect" default:"30s" doc:"For the connection and the TLS handshake."`
	Command time.Duration `key:"command" default:"5m" doc:"For the answer to a command (RFC 5321, Section 4.5.3.2)."`
	Data    time.Duration `key:"data" default:"10m" doc:"For the answer to the message (RFC 5321, Section 4.5.3.2.6)."`
}

// Filters names where filters are and the chains they form.
type Filters struct {
	Dir    Path                `key:"dir" doc:"Folder of *.wasm files that a chain can name without their ending."`
	Cache  Path                `key:"cache" default:"./data/compiled" doc:"Folder for compiled filters, so that the next start is quick. It holds native code: nobody else may write to it."`
	Chains map[string][]Filter `key:"chains" doc:"Chains by name, each a list of filters that are asked in order."`
}

// A Filter is one filter of a chain and how it is run.
type Filter struct {
	Module  Module          `key:"module" required:"true" doc:"builtin:NAME for one that ships with us, NAME for NAME.wasm in filters.dir, or a path that ends in .wasm."`
	Name    string          `key:"name" doc:"Its name in the log; by default the module's."`
	Config  json.RawMessage `key:"config" doc:"Handed to the filter as JSON, keys sorted."`
	Limits  FilterLimits    `key:"limits" doc:"What it may use. 0 means the default."`
	OnError OnError         `key:"on_error" default:"tempfail" doc:"What becomes of a message when the filter fails: tempfail answers 451, accept goes on without it, reject answers 554."`
}

// FilterLimits bounds what one instance of a filter may use.
type FilterLimits struct {
	Memory Size          `key:"memory" default:"16MiB" doc:"Memory of one instance, from 64KiB to 64MiB."`
	Wall   time.Duration `key:"wall" default:"5s" doc:"Time for one call, waiting included."`
}

// Certificates names the certificates shown to clients.
type Certificates struct {
	Files []CertificateFile `key:"files" doc:"Certificates with their keys; which one is shown depends on the name the client asks for, and the first is the default."`
	Dir   Path              `key:"dir" default:"./data/certificates" doc:"Where the self-signed certificate is kept that is made when there is no other."`
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
