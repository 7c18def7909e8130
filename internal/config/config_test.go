package config

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// full sets every key there is, to something else than its default.
const full = `
hostname: MX1.Bücher.example
listeners:
  - name: mx
    address: "127.0.0.1:2525"
    protocol: smtp
    tls: implicit
    chain: inbound
    accept: any
    trusted_networks: [10.0.0.1/8, "::ffff:192.0.2.1", 2001:db8::/32, unix]
    sender_routing: true
    line_endings: reject
    banner: ready
    hello_text: "hello, %s"
    tls_min_version: 1.3
    client_certificates: {mode: verify, ca_file: clients.pem}
    auth: {required: true, mechanisms: [PLAIN, EXTERNAL], users: "file:users.txt", insecure: true, required_text: who are you}
    proxy_protocol: {trusted: [127.0.0.1], timeout: 1s}
    xclient: {trusted: [127.0.0.2], relay: true}
    xforward: {trusted: [127.0.0.3]}
    reverse_dns: {timeout: 1s}
    disabled_commands: [VRFY]
    disabled_extensions: [CHUNKING]
    limits:
      connection_rate: 60/1m
      connection_rate_network: 600/1h
      message_rate: 10/1s
      message_rate_network: 20/1s
      recipient_rate: 500/1h
      greet_delay: off
      stress_timeout: 5s
      commands: 99
      errors: 50
      error_delay: 2s
      unauthenticated_commands: 9
      auth_failures: 2
      auth_failure_rate: off
      auth_delay: 3s
      message_size: 10MiB
      recipients: 200
      connections: 20
      connections_per_ip: 2
      idle_timeout: 1m
      session_timeout: 1h30m
      data_min_rate: 2KB
      handshake_timeout: 10s
      bad_commands: 3
      messages: 7
      line_length: 2000
      hops: 20
      header_size: 64KiB
    submission: {senders: "file:senders.txt", complete: false, sign: false}
  - {name: local, address: ["unix:run/mx.sock", "systemd:mx"], socket_mode: 0600, protocol: lmtp, tls: off, reverse_dns: {enabled: false}}
routes:
  - {domains: [Example.COM, "*.example.com"], backend: mail-store}
  - {domains: [example.org], backend: other}
  - {domains: [example.net], backend: asked}
  - {recipients: [tlsrpt@Example.info], handler: tlsrpt}
backends:
  mail-store:
    addresses: [["lmtp://10.0.0.5", "smtps://mail.example.com"], "smtp+unix:///run/lmtp.sock"]
    tls: verify
    mode: direct
    when_down: tempfail
    recipients: accept
    connections: 5
    ca_file: ca.pem
    tls_name: mail.example.com
    login: {user: us, password: "file:pw", insecure: true}
    chunking: false
    xclient: false
    xforward: true
    pace: 600/1m
    timeouts: {connect: 1s, command: 2s, data: 3s}
  other:
    addresses: ["smtp://[2001:db8::1]:2525"]
    recipients: file:list.txt
    recipient_separator: +
  asked:
    addresses: ["smtp://192.0.2.7"]
    recipients: callout
    callout: {positive: 1m, negative: 2m, timeout: 3s, stale: 4m, entries: 5}
store: {driver: postgres, path: s, url: "postgres://db", key: "file:k", timeout: 4s}
overload: {sessions: 1, memory: 64MiB, spool: 50MiB}
delivery:
  resolver: {address: ["tls://192.0.2.53#dns.example.net", "127.0.0.1:53"], trusted: false, ca_file: dns.pem, probe: Lab.example.}
  dane: required
  mta_sts: testing
  require_both: true
  tlsrpt: {enabled: true, organization: Example Inc, contact: tls@Example.net}
  ip_families: [ipv6, ipv4]
  prefer_ipv6: true
  block_local_addresses: true
  block_reserved_networks: false
  nat64_prefixes: ["2001:db8:64::/96"]
  port: 2525
  connect_timeout: 7s
  relay: "[2001:DB8::2]:587"
  relay_tls: verify
  chain: inbound
  dkim: [{domain: Example.com, selector: mail2026, key: "file:dkim.pem"}]
  sources: [{name: a, ipv4: 192.0.2.8, ipv6: "2001:db8::8", helo: out.example.com, helo_ipv4: out4.example.com, helo_ipv6: out6.example.com}]
  proxy: socks5://proxy.example.com
  proxy_login: {user: us, password: "file:pw"}
  connections: 8
  pace: 60/1m
  authorities: ca.pem
  schedule: {first: 1m, factor: 3, max: 2m, expire: 3m, notify: off}
  lease: 6s
filters:
  dir: filters
  cache: compiled
  secrets: {token: "file:token", other: "env:OTHER"}
  chains:
    inbound:
      - module: builtin:rcptguard
        name: guard
        config: {blocked: [spam.example], "1": 0x10, b: 1.5, a: true, none: ~, day: 2026-01-02, tag: <b>}
        instance: hook
        log: off
        limits: {memory: 1MiB, cpu: 1ms, cpu_message: 2ms, cpu_per_mib: 3ms, cpu_session: 4ms, wall: 1s, boot: 2s, stack: 64KiB, log_lines: 5, session_values: 1KiB, header_edits: 6, header_size: 2KiB, recipients: 7, body_growth: 3KiB}
        grant:
          body_read: true
          body_edit: true
          envelope: {relay: true}
          discard: true
          accept_final: true
          auth_data: true
          kv: {quota: 1MiB, max_per_hook: 4}
          dns: {types: [A, TXT], max_per_hook: 3}
          http: {hosts: ["*.Rbl.example:8443", "http://[2001:DB8::1]"], private: [10.0.0.0/8], methods: [GET], max_response: 2KiB, timeout: 1s, max_per_hook: 5}
          dsn: {rate: 5/1m}
          secret: [token]
          route: {weaker_tls: true}
        on_error: accept
        on_broken: {default: reject, connect: tempfail}
      - module: sub/second.wasm
      - module: third
certificates:
  files: [{cert: /etc/tls/cert.pem, key: key.pem}]
  dir: certs
  min_version: 1.3
  names: [MX1.bücher.example, mx2.example.net]
  acme: {email: Post.Master+acme@Example.net, directory: "https://ca.example/dir", agreed: true, ca_roots: roots.pem, http01: off, tlsalpn01: "[2001:DB8::1]:8443"}
admin: {address: "[::1]:99", tokens: "file:tokens.txt", hosts: [Admin.example, "[2001:DB8::1]"], metrics: false}
log: {level: debug, format: json}
shutdown_timeout: 2d
`

func fullConfig() *Config {
	off := Rate{Count: -1}
	defaults := Limits{
		MessageSize: 50 << 20, Recipients: 1000, Connections: 10000, ConnectionsPerIP: 100,
		IdleTimeout: 5 * time.Minute, SessionTimeout: 30 * time.Minute, DataMinRate: 1 << 10,
		HandshakeTimeout: 30 * time.Second, BadCommands: 10, Messages: 1000, Hops: 50, HeaderSize: 1 << 20,
		ConnectionRate: off, ConnectionRateNetwork: off, MessageRate: off, MessageRateNetwork: off, RecipientRate: off,
		GreetDelay: Pause(100 * time.Millisecond), StressTimeout: 10 * time.Second, Commands: 1000, Errors: 100,
		ErrorDelay: Pause(time.Second), UnauthenticatedCommands: 20, AuthFailures: 3, AuthFailureRate: Rate{20, 10 * time.Minute},
		AuthDelay: Pause(time.Second),
	}
	callout := Callout{time.Hour, 5 * time.Minute, 10 * time.Second, 24 * time.Hour, 50000}
	nothing := Grant{BodyRead: False, BodyEdit: False, Envelope: EnvelopeGrant{Relay: False}, Discard: False, AcceptFinal: False, AuthData: False,
		KV: KVGrant{Quota: 16 << 20, MaxPerHook: 128}, DNS: DNSGrant{MaxPerHook: 32}, HTTP: HTTPGrant{MaxResponse: 1 << 20, Timeout: 2 * time.Second, MaxPerHook: 8},
		DSN: DSNGrant{Rate: Rate{10, time.Hour}}, Route: RouteGrant{WeakerTLS: False}}
	return &Config{
		Hostname: "mx1.xn--bcher-kva.example",
		Listeners: []Listener{{
			Name: "mx", Address: ListenAddresses{{"tcp", "127.0.0.1:2525"}}, SocketMode: 0o660, Protocol: ProtocolSMTP,
			Banner: "ready", HelloText: "hello, %s", TLSMinVersion: TLS13,
			ClientCertificates: ClientCertificates{ClientAuthVerify, "/etc/p/clients.pem"},
			Auth:               Auth{True, []Mechanism{"PLAIN", "EXTERNAL"}, Users{File: "/etc/p/users.txt"}, True, "who are you"},
			ProxyProtocol:      ProxyProtocol{Networks{{Prefix: netip.MustParsePrefix("127.0.0.1/32")}}, time.Second},
			XClient:            XClient{Networks{{Prefix: netip.MustParsePrefix("127.0.0.2/32")}}, True},
			XForward:           XForward{Networks{{Prefix: netip.MustParsePrefix("127.0.0.3/32")}}},
			ReverseDNS:         ReverseDNS{True, time.Second},
			Submission:         Submission{Senders{File: "/etc/p/senders.txt"}, False, False},
			DisabledCommands:   []string{"VRFY"}, DisabledExtensions: []string{"CHUNKING"},
			TLS: ListenerTLSImplicit, Chain: "inbound", Accept: AcceptAny, SenderRouting: True, LineEndings: LineEndingsReject,
			TrustedNetworks: Networks{
				{Prefix: netip.MustParsePrefix("10.0.0.0/8")}, {Prefix: netip.MustParsePrefix("192.0.2.1/32")},
				{Prefix: netip.MustParsePrefix("2001:db8::/32")}, {Unix: true},
			},
			Limits: Limits{
				MessageSize: 10 << 20, Recipients: 200, Connections: 20, ConnectionsPerIP: 2,
				IdleTimeout: time.Minute, SessionTimeout: 90 * time.Minute, DataMinRate: 2000,
				HandshakeTimeout: 10 * time.Second, BadCommands: 3, Messages: 7, LineLength: 2000, Hops: 20, HeaderSize: 64 << 10,
				ConnectionRate: Rate{60, time.Minute}, ConnectionRateNetwork: Rate{600, time.Hour},
				MessageRate: Rate{10, time.Second}, MessageRateNetwork: Rate{20, time.Second}, RecipientRate: Rate{500, time.Hour},
				GreetDelay: -1, StressTimeout: 5 * time.Second, Commands: 99, Errors: 50, ErrorDelay: Pause(2 * time.Second),
				UnauthenticatedCommands: 9, AuthFailures: 2, AuthFailureRate: off, AuthDelay: Pause(3 * time.Second),
			},
		}, {
			Name: "local", Address: ListenAddresses{{"unix", "/etc/p/run/mx.sock"}, {"systemd", "mx"}}, SocketMode: 0o600,
			Protocol: ProtocolLMTP, ClientCertificates: ClientCertificates{Mode: ClientAuthOff},
			Auth: Auth{Required: False, Insecure: False}, ProxyProtocol: ProxyProtocol{Timeout: 5 * time.Second},
			XClient: XClient{Relay: False}, ReverseDNS: ReverseDNS{False, 1500 * time.Millisecond},
			TLS: ListenerTLSOff, Accept: AcceptRoutes, SenderRouting: False, LineEndings: LineEndingsNormalize, Limits: defaults,
			Submission: Submission{Senders{Any: true}, True, True},
		}},
		Routes: []Route{
			{Domains: []Pattern{"example.com", "*.example.com"}, Backend: "mail-store"},
			{Domains: []Pattern{"example.org"}, Backend: "other"},
			{Domains: []Pattern{"example.net"}, Backend: "asked"},
			{Recipients: []MailAddress{"tlsrpt@example.info"}, Handler: HandlerTLSRPT},
		},
		Backends: map[string]Backend{
			"mail-store": {
				Addresses: [][]BackendAddress{
					{{ProtocolLMTP, false, "tcp", "10.0.0.5:24"}, {ProtocolSMTP, true, "tcp", "mail.example.com:465"}},
					{{ProtocolSMTP, false, "unix", "/run/lmtp.sock"}},
				},
				TLS: BackendTLSVerify, Mode: ModeDirect, WhenDown: WhenDownTempfail, Recipients: Recipients{Word: RecipientsAccept},
				Callout: callout, Login: BackendLogin{"us", "/etc/p/pw", True}, Chunking: False, XClient: False, XForward: True, Pace: Rate{600, time.Minute},
				Connections: 5, CAFile: "/etc/p/ca.pem", TLSName: "mail.example.com",
				Timeouts: Timeouts{time.Second, 2 * time.Second, 3 * time.Second},
			},
			"other": {
				Addresses: [][]BackendAddress{{{ProtocolSMTP, false, "tcp", "[2001:db8::1]:2525"}}},
				TLS:       BackendTLSOpportunistic, Mode: ModeDirect, WhenDown: WhenDownTempfail, Recipients: Recipients{File: "/etc/p/list.txt"}, Separator: "+",
				Callout: callout, XClient: False, XForward: False, Pace: Rate{Count: -1}, Chunking: True, Login: BackendLogin{Insecure: False},
				Connections: 50, Timeouts: Timeouts{30 * time.Second, 5 * time.Minute, 10 * time.Minute},
			},
			"asked": {
				Addresses: [][]BackendAddress{{{ProtocolSMTP, false, "tcp", "192.0.2.7:25"}}},
				TLS:       BackendTLSOpportunistic, Mode: ModeDirect, WhenDown: WhenDownTempfail, Recipients: Recipients{Word: RecipientsCallout},
				Callout: Callout{time.Minute, 2 * time.Minute, 3 * time.Second, 4 * time.Minute, 5}, XClient: False, XForward: False, Pace: Rate{Count: -1}, Chunking: True, Login: BackendLogin{Insecure: False},
				Connections: 50, Timeouts: Timeouts{30 * time.Second, 5 * time.Minute, 10 * time.Minute},
			},
		},
		Overload: Overload{1, 64 << 20, 50 << 20},
		Store:    Store{StorePostgres, "/etc/p/s", "postgres://db", "/etc/p/k", 4 * time.Second},
		Delivery: Delivery{
			Resolver: Resolver{ResolverAddresses{"tls://192.0.2.53#dns.example.net", "127.0.0.1:53"}, TrustNo, "/etc/p/dns.pem", "lab.example"},
			DANE:     DANERequired, MTASTS: STSTesting, Both: True, TLSRPT: TLSRPT{True, "Example Inc", "tls@example.net"},
			IPFamilies: []IPFamily{IPv6, IPv4}, PreferIPv6: True, BlockLocal: True, BlockReserved: False,
			NAT64Prefixes: []NAT64Prefix{{netip.MustParsePrefix("2001:db8:64::/96")}}, Port: 2525, ConnectTimeout: 7 * time.Second,
			Relay: Relay{Host: "2001:db8::2", Port: 587}, RelayTLS: RelayTLSVerify, Chain: "inbound",
			DKIM: []DKIM{{"example.com", "mail2026", "/etc/p/dkim.pem"}},
			Sources: []Source{{"a", Address4{netip.MustParseAddr("192.0.2.8")}, Address6{netip.MustParseAddr("2001:db8::8")},
				"out.example.com", "out4.example.com", "out6.example.com"}},
			Proxy: Proxy{"socks5", "proxy.example.com:1080"}, ProxyLogin: ProxyLogin{"us", "/etc/p/pw"}, Connections: 8, Pace: Rate{60, time.Minute}, Authorities: "/etc/p/ca.pem",
			Schedule: Schedule{time.Minute, 3, 2 * time.Minute, 3 * time.Minute, -1}, Lease: 6 * time.Second,
		},
		Filters: Filters{Dir: "/etc/p/filters", Cache: "/etc/p/compiled", Secrets: map[string]SecretSource{"token": {File: "/etc/p/token"}, "other": {Env: "OTHER"}}, Chains: map[string][]Filter{"inbound": {
			{
				Module: Module{Name: "rcptguard", Builtin: true}, Name: "guard", OnError: OnErrors{"default": OnErrorAccept},
				OnBroken: OnErrors{"default": OnErrorReject, "connect": OnErrorTempfail},
				Config:   json.RawMessage(`{"1":16,"a":true,"b":1.5,"blocked":["spam.example"],"day":"2026-01-02","none":null,"tag":"<b>"}`),
				Instance: InstanceHook, Log: FilterLogOff,
				Limits: FilterLimits{1 << 20, time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 4 * time.Millisecond, time.Second,
					2 * time.Second, 64 << 10, 5, 1 << 10, 6, 2 << 10, 7, 3 << 10},
				Grant: Grant{BodyRead: True, BodyEdit: True, Envelope: EnvelopeGrant{true, True}, Discard: True, AcceptFinal: True, AuthData: True,
					KV: KVGrant{true, 1 << 20, 4}, DNS: DNSGrant{true, []DNSType{"A", "TXT"}, 3},
					HTTP: HTTPGrant{true, []WebHost{{"https", "*.rbl.example", 8443}, {"http", "2001:db8::1", 0}},
						Networks{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}, []HTTPMethod{"GET"}, 2 << 10, time.Second, 5},
					DSN: DSNGrant{true, Rate{5, time.Minute}}, Secret: []string{"token"}, Route: RouteGrant{true, True}},
			},
			{Module: Module{Name: "second", File: "/etc/p/sub/second.wasm"}, Name: "second", OnError: OnErrors{}, OnBroken: OnErrors{}, Instance: InstanceSession, Limits: defaultLimits, Grant: nothing},
			{Module: Module{Name: "third", File: "/etc/p/filters/third.wasm"}, Name: "third", OnError: OnErrors{}, OnBroken: OnErrors{}, Instance: InstanceSession, Limits: defaultLimits, Grant: nothing},
		}}},
		Certificates: Certificates{
			Files: []CertificateFile{{"/etc/tls/cert.pem", "/etc/p/key.pem"}}, Dir: "/etc/p/certs", MinVersion: TLS13,
			Names: []CertificateName{"mx1.xn--bcher-kva.example", "mx2.example.net"},
			ACME: ACME{Email: "Post.Master+acme@example.net", Directory: "https://ca.example/dir", Agreed: True, CARoots: "/etc/p/roots.pem",
				HTTP01: ChallengeAddress{Off: true}, TLSALPN01: ChallengeAddress{Address: "[2001:db8::1]:8443"}},
		},
		Admin:           Admin{ListenAddress{"tcp", "[::1]:99"}, "/etc/p/tokens.txt", []Host{"admin.example", "2001:db8::1"}, False},
		Log:             Log{LogDebug, LogJSON},
		ShutdownTimeout: 48 * time.Hour,
	}
}

var defaultLimits = FilterLimits{16 << 20, 2 * time.Millisecond, 20 * time.Millisecond, 10 * time.Millisecond, 200 * time.Millisecond, 5 * time.Second,
	time.Second, 512 << 10, 32, 16 << 10, 256, 128 << 10, 100, 1 << 20}

// read is load for a test: the file is /etc/p/penstock.yaml, but is called
// penstock.yaml in the lines that come back.
func read(text string, env []string, overrides ...Override) (*Config, string) {
	c, problems := load("/etc/p/penstock.yaml", []byte(text), env, overrides)
	return c, strings.ReplaceAll(problems.Error(), "/etc/p/", "")
}

func TestLoadFull(t *testing.T) {
	got, problems := read(full, nil)
	if problems != "" {
		t.Fatalf("problems:\n%s", problems)
	}
	got.origins = nil
	if want := fullConfig(); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Every key stands in the full example, so that a key nobody reads cannot hide.
func TestFullExampleHasEveryKey(t *testing.T) {
	schemaOf(reflect.TypeFor[Config]()).each("", func(path string, f field) {
		if !strings.Contains(full, f.key+":") {
			t.Errorf("%s is not in the example", path)
		}
	})
}

// minimal is the least that runs.
const minimal = `hostname: mx.example.net
listeners: [{name: mx, address: ":25"}]
routes: [{domains: [example.com], backend: m}]
backends: {m: {addresses: ["smtp://10.0.0.5"]}}
`

func TestLoadDefaults(t *testing.T) {
	c, problems := read(minimal, nil)
	if problems != "" {
		t.Fatalf("problems:\n%s", problems)
	}
	if c.ShutdownTimeout != 30*time.Second || c.Log != (Log{LogInfo, LogText}) || c.Certificates.Dir != "/etc/p/data/certificates" {
		t.Errorf("top level: got %v, %v, %v", c.ShutdownTimeout, c.Log, c.Certificates.Dir)
	}
	if want := (Admin{Address: ListenAddress{"tcp", "127.0.0.1:8025"}, Metrics: True}); !reflect.DeepEqual(c.Admin, want) {
		t.Errorf("admin: got %+v, want %+v", c.Admin, want)
	}
	if l := c.Listeners[0]; l.TLS != ListenerTLSStartTLS || l.Accept != AcceptRoutes || !reflect.DeepEqual(l.Limits, fullConfig().Listeners[1].Limits) {
		t.Errorf("listener: got %+v", l)
	}
	zero, problems := read(strings.Replace(minimal, `":25"`, `":25", tls: "", limits: {message_size: 0, hops: 0, idle_timeout: 0, recipients: ~}`, 1), nil)
	if problems != "" || !reflect.DeepEqual(zero.Listeners, c.Listeners) {
		t.Errorf("zero is not the default: %s\ngot  %+v\nwant %+v", problems, zero, c)
	}
}

// TestProblems holds what is wrong and the lines that say so. A case's text is laid
// over minimal: a key that it has replaces the same key there.
func TestProblems(t *testing.T) {
	for _, c := range problemCases() {
		t.Run(c.name, func(t *testing.T) {
			text := c.yaml
			if !strings.HasPrefix(text, "!") {
				text = overMinimal(text)
			}
			cfg, got := read(strings.TrimPrefix(text, "!"), nil)
			want := strings.TrimSpace(c.want)
			if got != want {
				t.Errorf("file:\n%s\ngot:\n%s\nwant:\n%s", text, got, want)
			}
			fatal := want != "" && strings.Count(want, "\n")+1 > strings.Count(want, ": warning: ")
			if (cfg == nil) != fatal {
				t.Errorf("config is nil: %v, and the problems are:\n%s", cfg == nil, got)
			}
		})
	}
}

// overMinimal puts the lines of minimal whose keys text lacks behind it, so that
// the lines of text keep their numbers.
func overMinimal(text string) string {
	for _, line := range strings.SplitAfter(minimal, "\n") {
		key, _, _ := strings.Cut(line, ":")
		if !strings.Contains("\n"+text, "\n"+key+":") {
			text = strings.TrimSuffix(text, "\n") + "\n" + line
		}
	}
	return text
}

func TestLayers(t *testing.T) {
	const file = minimal + "log: {level: warn, format: json}\n"
	for _, c := range []struct {
		env  string // variables, one to a line
		set  string // overrides, one to a line
		look string // a key
		want string // its value, or the problems
	}{
		{"", "", "Log.Level", "warn"},
		{"PENSTOCK_LOG__LEVEL=debug", "", "Log.Level", "debug"},
		{"PENSTOCK_LOG__LEVEL=debug", "log.level=error", "Log.Level", "error"},               // flags win
		{"PENSTOCK_LOG__LEVEL=debug", "", "Log.Format", "json"},                              // the rest of the mapping stays
		{"PENSTOCK_LOG={level: error}", "", "Log.Format", "json"},                            // a mapping is merged too
		{"PENSTOCK_LOG__LEVEL=debug\nPENSTOCK_LOG={level: error}", "", "Log.Level", "debug"}, // the deeper key wins, in any order
		{"PENSTOCK_LOG__LEVEL=", "", "Log.Level", "info"},                                    // empty is the default, not the file's
		{"PENSTOCK_HOSTNAME=mx2.example.net", "", "Hostname", "mx2.example.net"},
		{"PENSTOCK_SHUTDOWN_TIMEOUT=1m", "", "ShutdownTimeout", "1m0s"},
		{"PENSTOCK_LISTENERS=[{name: a, address: ':2525'}, {name: b, address: ':2526'}]", "", "Listeners.1.Address.0", ":2526"}, // a list is one value
		{"PENSTOCK_ROUTES=", "", "Routes", "[]"},                                                                                // and can be emptied
		{"PENSTOCK_BACKENDS__M__TLS=off", "", "Backends.m.TLS", "off"},
		{"PENSTOCK_BACKENDS__M__ADDRESSES=[smtp://a.test, [smtp://b.test]]", "", "Backends.m.Addresses", "[[smtp://a.test:25] [smtp://b.test:25]]"},
		{"PENSTOCK_BACKENDS__NEW__ADDRESSES=[smtp://a.test]", "", "Backends.new.Addresses", "[[smtp://a.test:25]]"},                                             // a new name is in small letters
		{"PENSTOCK_BACKENDS={My-Store: {}}\nPENSTOCK_BACKENDS__MY_STORE__ADDRESSES=[smtp://a.test]", "", "Backends.My-Store.Addresses", "[[smtp://a.test:25]]"}, // a known one keeps its spelling
		{"", "backends.m.tls=off", "Backends.m.TLS", "off"},
		{"PENSTOCK_BACKENDS={a.b: {addresses: [smtp://a.test]}}", "backends.a.b.tls=off", "Backends.a!b.TLS", "off"}, // a name with a dot
		{"PENSTOCK_CERTIFICATES__DIR=here", "", "Certificates.Dir", "here"},                                          // relative to the working directory
		{"", "certificates.dir=", "Certificates.Dir", "/etc/p/data/certificates"},
		{"PENSTOCK_BACKENDS__M__ADDRESSES=['smtp+unix://x.sock']", "", "Backends.m.Addresses", "[[smtp+unix://x.sock]]"},
		{"PENSTOCK_PORT=tcp://10.0.0.1:25\nPENSTOCK_SERVICE_HOST=10.0.0.1\nPENSTOCK_PORT_25_TCP_ADDR=10.0.0.1\nPENSTOCK_MX_SERVICE_PORT=25", "", "Log.Level", "warn"}, // Kubernetes
		{"PENSTOCKER=1\nLOG__LEVEL=x\nPENSTOCK_LOG__LEVEL", "", "Log.Level", "warn"},                                                                                  // not ours, and not a variable

		{"PENSTOCK_LOG__LEVEL=loud", "", "", `PENSTOCK_LOG__LEVEL: log.level: must be debug, info, warn or error, not "loud"`},
		{"PENSTOCK_LOG__LEVLE=info", "", "", `PENSTOCK_LOG__LEVLE: log.levle: unknown key; did you mean "level"?`},
		{"PENSTOCK_LOG__LEVEL__X=info", "", "", `PENSTOCK_LOG__LEVEL__X: log.level.x: unknown key; nothing lies below log.level`},
		{"PENSTOCK_=1\nPENSTOCK___LOG=1", "", "", "PENSTOCK_: unknown key; the keys here are hostname"},
		{"PENSTOCK_LISTENERS__0__ADDRESS=:26", "", "", `PENSTOCK_LISTENERS__0__ADDRESS: listeners.0: listeners is a list, and is given as a whole: a YAML value such as [a, b]`},
		{"PENSTOCK_LISTENERS=[{nam: a, address: ':2525'}]", "", "", `PENSTOCK_LISTENERS: listeners[0].nam: unknown key; did you mean "name"?`},
		{"PENSTOCK_LISTENERS=[{address: ':2525'}]", "", "", "PENSTOCK_LISTENERS: listeners[0].name: is required"},
		{"PENSTOCK_LISTENERS=[{name: a, name: b, address: ':2525'}]", "", "", "PENSTOCK_LISTENERS: listeners[0].name: is given twice in one mapping"},
		{"PENSTOCK_LISTENERS=[{", "", "", "PENSTOCK_LISTENERS: listeners: this is not YAML: did not find expected node content"},
		{"PENSTOCK_LISTENERS=25", "", "", `PENSTOCK_LISTENERS: listeners: must be a list, such as [a, b], not "25"`},
		{"PENSTOCK_BACKENDS={a-b: {}, a_b: {}}\nPENSTOCK_BACKENDS__A_B__TLS=off", "", "", "PENSTOCK_BACKENDS__A_B__TLS: backends.a_b: could be"},
		{"PENSTOCK_ROUTES=[{domains: [a.test], backend: n}]", "", "", `PENSTOCK_ROUTES: routes[0].backend: there is no backend "n" in backends; did you mean "m"?`},
		{"", "log.level=loud", "", `--set log.level: log.level: must be debug, info, warn or error, not "loud"`},
		{"", "log.=loud", "", `--set log.: log.: unknown key`},
		{"", "backends..tls=off", "", `--set backends..tls: backends."": cannot be a name`},
	} {
		cfg, problems := read(file, strings.Split(c.env, "\n"), overridesOf(c.set)...)
		if c.look == "" {
			if !strings.Contains(problems, c.want) {
				t.Errorf("%s %s\ngot  %s\nwant %s", c.env, c.set, problems, c.want)
			}
			continue
		}
		if cfg == nil {
			t.Errorf("%s %s: %s", c.env, c.set, problems)
		} else if got := lookUp(cfg, c.look); got != c.want {
			t.Errorf("%s %s: %s: got %s, want %s", c.env, c.set, c.look, got, c.want)
		}
	}
}

func overridesOf(lines string) []Override {
	var out []Override
	for line := range strings.Lines(lines) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		out = append(out, Override{Key: k, Value: v})
	}
	return out
}

// A problem that a later check finds has the place of its key, and a flag its name.
func TestProblemPlaces(t *testing.T) {
	c, problems := read("hostname: mx.example.net\nbackends:\n  m:\n    addresses: [smtp://a.test]\n    tls: verify\n    ca_file: ca.pem\nlisteners: [{name: a, address: ':25'}]\nroutes: [{domains: [a.test], backend: m}]\n",
		[]string{"PENSTOCK_FILTERS__DIR=f"}, Override{Key: "log.level", Value: "debug", Flag: "--verbose"})
	if problems != "" {
		t.Fatal(problems)
	}
	for _, row := range [][2]string{
		{"backends.m.ca_file", "penstock.yaml:6: backends.m.ca_file: x"},
		{"backends.m.mode", "penstock.yaml:3: backends.m.mode: x"}, // a default: where it would be
		{"filters.dir", "PENSTOCK_FILTERS__DIR: filters.dir: x"},
		{"log.level", "--verbose: log.level: x"},
		{"shutdown_timeout", "penstock.yaml: shutdown_timeout: x"},
	} {
		if got := strings.TrimPrefix(c.Problem(row[0], "x").String(), "/etc/p/"); got != row[1] {
			t.Errorf("got %q, want %q", got, row[1])
		}
	}
	if got := (&Config{}).Warning("hostname", "x").String(); got != "warning: hostname: x" {
		t.Errorf("without places: got %q", got)
	}
}

// A configuration made by hand is checked like one that was read.
func TestValidateByHand(t *testing.T) {
	got := (&Config{Hostname: "a.test", Log: Log{Level: "loud"}, Listeners: []Listener{{Chain: "c"}}}).Validate().Sorted("").Error()
	want := `listeners[0].address: is required
listeners[0].chain: there is no chain "c" in filters.chains
listeners[0].name: is required
log.level: must be debug, info, warn or error, not "loud"
warning: routes: there are none: no recipient is ours`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if c := fullConfig(); len(c.Validate()) != 0 {
		t.Errorf("the full example: %s", c.Validate())
	}
}

func TestLoadFile(t *testing.T) {
	dir := t.TempDir()
	good, huge := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "huge.yaml")
	write := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good, minimal)
	write(huge, strings.Repeat("#", maxFile+1))
	c, problems := Load(good, nil, nil)
	if c == nil || problems.Err() != nil || string(c.Certificates.Dir) != filepath.Join(dir, "data/certificates") {
		t.Errorf("good: got %+v, %v", c, problems)
	}
	for path, want := range map[string]string{
		huge:                       "is larger than 1MiB",
		dir:                        "is not a regular file",
		filepath.Join(dir, "gone"): "cannot be read: no such file or directory",
	} {
		c, problems := Load(path, nil, nil)
		if c != nil || problems.Error() != path+": "+want {
			t.Errorf("%s: got %v, %q, want %q", path, c, problems.Error(), want)
		}
	}
	env := []string{"PENSTOCK_HOSTNAME=mx.test", "PENSTOCK_LISTENERS=[{name: a, address: ':25'}]", "PENSTOCK_ROUTES=[{domains: [a.test], backend: m}]", "PENSTOCK_BACKENDS={m: {addresses: [smtp://b.test]}}"}
	if c, problems := Load("", env, nil); c == nil || len(problems) != 0 || c.Certificates.Dir != "data/certificates" {
		t.Errorf("without a file: got %+v, %v", c, problems)
	}
}
