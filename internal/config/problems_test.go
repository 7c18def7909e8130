package config

import "strings"

type problemCase struct{ name, yaml, want string }

// problemCases are laid over the text minimal, so the lines count in the case alone.
// A text that begins with "!" stands for itself.
func problemCases() []problemCase {
	listener := func(more string) string {
		return "listeners:\n  - name: mx\n    address: ':25'\n    " + strings.ReplaceAll(more, "\n", "\n    ") + "\n"
	}
	backend := func(more string) string {
		return "backends:\n  m:\n    " + strings.ReplaceAll(more, "\n", "\n    ") + "\n"
	}
	filter := func(more string) string {
		return "listeners: [{name: mx, address: ':25', chain: c}]\nfilters:\n  chains:\n    c:\n      - " + strings.ReplaceAll(more, "\n", "\n        ") + "\n"
	}
	return []problemCase{
		{"empty file", "!", `
penstock.yaml: hostname: is required
penstock.yaml: listeners: is required`},
		{"null document", "!~\n", `
penstock.yaml: hostname: is required
penstock.yaml: listeners: is required`},
		{"comment only", "!# nothing\n", `
penstock.yaml: hostname: is required
penstock.yaml: listeners: is required`},
		{"not a mapping", "!- a\n", `
penstock.yaml:1: must be a mapping with keys such as hostname, not a list`},
		{"syntax, scanner", "!a: 1\nb: c: d\n", `
penstock.yaml:2: this is not YAML: mapping values are not allowed in this context`},
		{"syntax, grammar", "!a: 1\nb:\n  - x\n c: 2\n", `
penstock.yaml:4: this is not YAML: did not find expected key`},
		{"syntax, first line", "!a: b: c\n", `
penstock.yaml:1: this is not YAML: mapping values are not allowed in this context`},
		{"syntax, unclosed", "!a: 1\nb: {c: 1\n\nd: 2\n", `
penstock.yaml:2: this is not YAML: did not find expected ',' or '}'`},
		{"tab", "!hostname: a.test\n\tlog: {}\n", `
penstock.yaml:2: this is not YAML: found a tab character that violates indentation`},
		{"unknown alias", "!hostname: a.test\nlog: *log\n", `
penstock.yaml:2: this is not YAML: unknown anchor 'log' referenced`},
		{"not UTF-8", "!hostname: a.test\nlog: \xff\n", `
penstock.yaml:2: this is not UTF-8`},
		{"control character", "!hostname: a.test\nlog: \x1b[2J\n", `
penstock.yaml:2: control character U+001B`},
		{"two documents", "!hostname: a.test\n---\nlog: {}\n", `
penstock.yaml:2: a second document begins here; only one is read`},

		{"unknown key", "hostnam: a.test\n", `
penstock.yaml:1: hostnam: unknown key; did you mean "hostname"?`},
		{"misspelt and missing is said once", "!hostnam: a.test\nlisteners: [{name: mx, address: ':25'}]\nroutes: [{domains: [a.test], backend: m}]\nbackends: {m: {addresses: [smtp://b.test]}}\n", `
penstock.yaml:1: hostnam: unknown key; did you mean "hostname"?`},
		{"unknown key in a list", listener("tsl: off"), `
penstock.yaml:4: listeners[0].tsl: unknown key; did you mean "tls"?`},
		{"known key in the wrong place", listener("message_size: 1MiB"), `
penstock.yaml:4: listeners[0].message_size: unknown key; there is listeners[].limits.message_size`},
		{"unknown key like no other", "certificates:\n  xyzzy: {}\n", `
penstock.yaml:2: certificates.xyzzy: unknown key; the keys here are files, dir, min_version, names, acme`},
		{"unknown key that would break a terminal", "\"a\\nb\\e[2J\\u202e\": 1\n", `
penstock.yaml:1: a\nb\x1b[2J\u202e: unknown key; the keys here are hostname, listeners, routes, backends, store, overload, delivery, filters, certificates, admin, log, shutdown_timeout`},
		{"unknown key that is very long", strings.Repeat("x", 300) + ": 1\n", `
penstock.yaml:1: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...: unknown key; the keys here are hostname, listeners, routes, backends, store, overload, delivery, filters, certificates, admin, log, shutdown_timeout`},
		{"duplicate key", "log: {level: info}\nshutdown_timeout: 1s\nlog: {format: json}\n", `
penstock.yaml:3: log: is given twice in one mapping, in line 1 and in line 3`},
		{"duplicate key, spelt otherwise", "log:\n  level: info\n  \"level\": warn\n", `
penstock.yaml:3: log.level: is given twice in one mapping, in line 2 and in line 3`},
		{"duplicate key in a filter's config", filter("module: builtin:a\nconfig: {a: {b: 1,\n  b: 2}}"), `
penstock.yaml:7: filters.chains.c[0].config.a.b: is given twice in one mapping, in line 6 and in line 7`},
		{"list as key", "[a]: 1\n", `
penstock.yaml:1: a key must be one word, not a list`},
		{"mapping for a word", "hostname: {a: 1}\n", `
penstock.yaml:1: hostname: must be one value (domain name), not a mapping`},
		{"word for a mapping", "log: debug\n", `
penstock.yaml:1: log: must be a mapping with keys such as level, not "debug"`},
		{"word for a list", "routes: a.test\n", `
penstock.yaml:1: routes: must be a list, such as [a, b], not "a.test"`},
		{"mapping for a list", "routes: {domains: [a.test]}\n", `
penstock.yaml:1: routes: must be a list, such as [a, b], not a mapping`},
		{"list for a mapping by name", "backends: [m]\n", `
penstock.yaml:1: backends: must be a mapping by name, not a list`},
		{"tag", "hostname: !secret a.test\n", `
penstock.yaml:1: hostname: the tag "!secret" has no meaning here`},
		{"binary", filter("module: builtin:a\nconfig: {a: !!binary aGk=}"), `
penstock.yaml:6: filters.chains.c[0].config.a: the tag "!!binary" has no meaning here`},

		{"hostname: not a domain", "hostname: mx_1.example.net\n", `
penstock.yaml:1: hostname: "mx_1.example.net" is not a domain name: it has characters that no domain has`},
		{"hostname: an address", "hostname: 192.0.2.1\n", `
penstock.yaml:1: hostname: "192.0.2.1" is not a domain name: it is an address`},
		{"hostname: a number at the end", "hostname: mx.1\n", `
penstock.yaml:1: hostname: "mx.1" is not a domain name: its last part is a number`},
		{"hostname: root dot", "hostname: mx.example.net.\n", `
penstock.yaml:1: hostname: "mx.example.net." is not a domain name: it has an empty part`},
		{"hostname: hyphen", "hostname: -mx.example.net\n", `
penstock.yaml:1: hostname: "-mx.example.net" is not a domain name: a part begins or ends with a hyphen`},
		{"hostname: no such letter", "hostname: \"a\\u2028b.test\"\n", `
penstock.yaml:1: hostname: "a\u2028b.test" is not a domain name: it has characters that no domain has`},
		{"hostname: bad A-label", "hostname: xn--a.test\n", `
penstock.yaml:1: hostname: "xn--a.test" is not a domain name: it has characters that no domain has`},
		{"hostname: long label", "hostname: " + strings.Repeat("a", 64) + ".test\n", `
penstock.yaml:1: hostname: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.test" is not a domain name: a part is longer than 63 characters`},
		{"hostname: long", "hostname: " + strings.Repeat("a.", 130) + "test\n", `
penstock.yaml:1: hostname: "a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a...." is not a domain name: it is longer than 253 characters`},
		{"everything at once", "hostname: a..b\nlog: {level: loud, format: xml}\nshutdown_timeout: 30\nroutes:\n  - {domains: ['*x'], backend: n}\n", `
penstock.yaml:1: hostname: "a..b" is not a domain name: it has an empty part
penstock.yaml:2: log.level: must be debug, info, warn or error, not "loud"
penstock.yaml:2: log.format: must be text or json, not "xml"
penstock.yaml:3: shutdown_timeout: "30" is not a duration: write a number with its unit, such as 30s, 5m, 1h30m or 2d
penstock.yaml:5: routes[0].domains[0]: "*x" is not a pattern: a wildcard is * alone, or *. in front of a domain, such as *.example.com
penstock.yaml:5: routes[0].backend: there is no backend "n" in backends; did you mean "m"?
penstock.yaml:7: warning: backends.m: no route leads here`},

		{"listener: nothing", "listeners:\n  -\n", `
penstock.yaml:2: listeners[0].address: is required
penstock.yaml:2: listeners[0].name: is required`},
		{"listener: empty list", "listeners: []\n", `
penstock.yaml:1: listeners: is required`},
		{"listener: name", "listeners: [{name: 'a b', address: ':25'}]\n", `
penstock.yaml:1: listeners[0].name: "a b" is not a name: use up to 64 letters, digits, dots, hyphens and underscores`},
		{"listener: same name", "listeners:\n  - {name: a, address: ':25'}\n  - {name: a, address: ':26'}\n", `
penstock.yaml:3: listeners[1].name: "a" is the name of listeners[0] too`},
		{"listener: same address", "listeners:\n  - {name: a, address: '127.0.0.1:25'}\n  - {name: b, address: ':25'}\n  - {name: c, address: '127.0.0.2:25'}\n", `
penstock.yaml:3: listeners[1].address: :25 cannot be had next to 127.0.0.1:25 of listeners[0]
penstock.yaml:4: listeners[2].address: 127.0.0.2:25 cannot be had next to :25 of listeners[1]`},
		{"listener: notations of an address", "listeners:\n  - {name: a, address: '[0:0::1]:25'}\n  - {name: b, address: '0.0.0.0:26'}\n  - {name: c, address: '[::1]:25'}\n  - {name: d, address: '[::]:26'}\n  - {name: e, address: ':27'}\n", `
penstock.yaml:4: listeners[2].address: [::1]:25 cannot be had next to [::1]:25 of listeners[0]
penstock.yaml:5: listeners[3].address: [::]:26 cannot be had next to 0.0.0.0:26 of listeners[1]`},
		{"listener: port 0 is never the same", "listeners:\n  - {name: a, address: ':0'}\n  - {name: b, address: ':0'}\n", ``},
		{"listener: same socket", "listeners:\n  - {name: a, address: 'unix:x'}\n  - {name: b, address: 'unix:./x'}\n", `
penstock.yaml:3: listeners[1].address: unix:x cannot be had next to unix:x of listeners[0]`},
		{"listener: no port", "listeners: [{name: a, address: localhost}]\n", `
penstock.yaml:1: listeners[0].address: "localhost" is not an address to listen on: write host:port, :port, unix:/path or systemd:NAME`},
		{"listener: port", "listeners: [{name: a, address: ':smtp'}, {name: b, address: ':65536'}]\n", `
penstock.yaml:1: listeners[0].address: "smtp" is not a port number
penstock.yaml:1: listeners[1].address: "65536" is not a port number`},
		{"listener: no path", "listeners: [{name: a, address: 'unix:'}]\n", `
penstock.yaml:1: listeners[0].address: "unix:" lacks the path of the socket`},
		{"listener: long path", "listeners: [{name: a, address: 'unix:/" + strings.Repeat("x", 110) + "'}]\n", `
penstock.yaml:1: listeners[0].address: the path of the socket has 111 bytes; at most 103 work on every system`},
		{"listener: words", listener("protocol: imap\ntls: startls\naccept: all\nline_endings: fix"), `
penstock.yaml:4: listeners[0].protocol: must be smtp or lmtp, not "imap"
penstock.yaml:5: listeners[0].tls: must be off, starttls, starttls_required or implicit, not "startls"; did you mean "starttls"?
penstock.yaml:6: listeners[0].accept: must be routes or any, not "all"
penstock.yaml:7: listeners[0].line_endings: must be normalize or reject, not "fix"`},
		{"listener: tls no", listener("tls: no"), `
penstock.yaml:4: listeners[0].tls: must be off, starttls, starttls_required or implicit, not "no"`},
		{"listener: chain", "listeners: [{name: a, address: ':25', chain: inbond}]\nfilters: {chains: {inbound: []}}\n", `
penstock.yaml:1: listeners[0].chain: there is no chain "inbond" in filters.chains; did you mean "inbound"?
penstock.yaml:2: warning: filters.chains.inbound: no listener uses it`},
		{"limits: not numbers", listener("limits:\n  message_size: 50M\n  recipients: many\n  connections: -1\n  idle_timeout: 5\n  hops: 1.5\n  header_size: 9999999TiB\n  messages: 99999999999"), `
penstock.yaml:5: listeners[0].limits.message_size: "50M" is not a size: write a whole number with B, KB, MB, GB, KiB, MiB or GiB, such as 50MiB
penstock.yaml:6: listeners[0].limits.recipients: "many" is not a whole number
penstock.yaml:7: listeners[0].limits.connections: "-1" is not a whole number
penstock.yaml:8: listeners[0].limits.idle_timeout: "5" is not a duration: write a number with its unit, such as 30s, 5m, 1h30m or 2d
penstock.yaml:9: listeners[0].limits.hops: "1.5" is not a whole number
penstock.yaml:10: listeners[0].limits.header_size: "9999999TiB" is too large
penstock.yaml:11: listeners[0].limits.messages: "99999999999" is too large: at most 1000000000`},
		{"limits: below the standard", listener("limits: {message_size: 10KiB, recipients: 99, line_length: 500}"), `
penstock.yaml:4: warning: listeners[0].limits.message_size: 10KiB is less than the 64KiB of RFC 5321, Section 4.5.3.1.7
penstock.yaml:4: warning: listeners[0].limits.recipients: 99 is less than the 100 of RFC 5321, Section 4.5.3.1.8
penstock.yaml:4: listeners[0].limits.line_length: 500B is not between 512B and 32KiB (RFC 5321, Section 4.5.3.1.4 asks for the former)`},
		{"limits: lines too long", listener("limits: {line_length: 32769}"), `
penstock.yaml:4: listeners[0].limits.line_length: 32769B is not between 512B and 32KiB (RFC 5321, Section 4.5.3.1.4 asks for the former)`},
		{"limits: a header larger than all", listener("limits:\n  message_size: 1MiB\n  header_size: 2MiB"), `
penstock.yaml:6: warning: listeners[0].limits.header_size: 2MiB is more than message_size, 1MiB, which comes first`},
		{"overload: no room for a message", listener("limits:\n  message_size: 60MiB") + "overload: {spool: 50MiB}\n", `
penstock.yaml:6: overload.spool: 50MiB has no room for one message of 60MiB, which listeners[0].limits.message_size allows`},
		{"overload: no room for the program", "overload:\n  memory: 63MiB\n", `
penstock.yaml:2: overload.memory: 63MiB is less than 64MiB, which the program needs for itself: no mail could pass`},
		{"limits: rate", listener("limits:\n  data_min_rate: 1GiB"), `
penstock.yaml:5: listeners[0].limits.data_min_rate: asks for 1GiB per second, more than a link of 100 Mbit/s carries: no message of message_size could pass`},
		{"limits: session", listener("limits:\n  message_size: 1GiB\n  session_timeout: 1m"), `
penstock.yaml:6: listeners[0].limits.session_timeout: 1m0s is too short for message_size: to send 1GiB takes 85 s on a link of 100 Mbit/s`},
		{"limits: largest message", listener("limits:\n  message_size: 9223372036854775807"), `
penstock.yaml:4: listeners[0].limits.session_timeout: 30m0s is too short for message_size: to send 9223372036854775807B takes 737869762948 s on a link of 100 Mbit/s
penstock.yaml:5: listeners[0].limits.message_size: 9223372036854775807B is more than overload.spool, 4GiB: no such message could pass`},
		{"relay: nobody", listener("accept: any"), `
penstock.yaml:4: warning: listeners[0].accept: any relays for nobody while trusted_networks is empty and nobody can log in`},
		{"relay: trusted for the rates alone", listener("trusted_networks: [127.0.0.1]"), ``},
		{"relay: not networks", listener("accept: any\ntrusted_networks: [10.0.0.0/33, 10.0.0, '', fe80::1%eth0, UNIX]"), `
penstock.yaml:5: listeners[0].trusted_networks[0]: "10.0.0.0/33" is not a network: write 192.0.2.0/24, 2001:db8::/32, an address, or the word unix
penstock.yaml:5: listeners[0].trusted_networks[1]: "10.0.0" is not a network: write 192.0.2.0/24, 2001:db8::/32, an address, or the word unix
penstock.yaml:5: listeners[0].trusted_networks[2]: is empty
penstock.yaml:5: listeners[0].trusted_networks[3]: "fe80::1%eth0" is not a network: write 192.0.2.0/24, 2001:db8::/32, an address, or the word unix
penstock.yaml:5: listeners[0].trusted_networks[4]: "UNIX" is not a network: write 192.0.2.0/24, 2001:db8::/32, an address, or the word unix`},
		{"relay: everybody", listener("accept: any\ntrusted_networks: [10.0.0.0/8, 0.0.0.0/0]"), `
penstock.yaml:5: listeners[0].trusted_networks: 10.0.0.0/8, 0.0.0.0/0 is every IPv4 address: with accept: any this would be an open relay`},
		{"relay: everybody by IPv6", listener("accept: any\ntrusted_networks: ['::/0']"), `
penstock.yaml:5: listeners[0].trusted_networks: ::/0 is every IPv6 address: with accept: any this would be an open relay`},
		{"relay: everybody by another notation", listener("accept: any\ntrusted_networks: ['192.0.2.1/0']"), `
penstock.yaml:5: listeners[0].trusted_networks: 0.0.0.0/0 is every IPv4 address: with accept: any this would be an open relay`},
		{"relay: everybody by mapped addresses", listener("accept: any\ntrusted_networks: ['::ffff:0:0/96']"), `
penstock.yaml:5: listeners[0].trusted_networks: 0.0.0.0/0 is every IPv4 address: with accept: any this would be an open relay`},
		{"relay: everybody by halves", listener("accept: any\ntrusted_networks: [128.0.0.0/1, 0.0.0.0/1]"), `
penstock.yaml:5: listeners[0].trusted_networks: 128.0.0.0/1, 0.0.0.0/1 is every IPv4 address: with accept: any this would be an open relay`},
		{"relay: everybody by IPv6 halves", listener("accept: any\ntrusted_networks: ['8000::/1', '::/1']"), `
penstock.yaml:5: listeners[0].trusted_networks: 8000::/1, ::/1 is every IPv6 address: with accept: any this would be an open relay`},
		{"relay: everybody by quarters", listener("accept: any\ntrusted_networks: [0.0.0.0/2, 64.0.0.0/2, 128.0.0.0/2, 192.0.0.0/2]"), `
penstock.yaml:5: listeners[0].trusted_networks: 0.0.0.0/2, 64.0.0.0/2, 128.0.0.0/2, 192.0.0.0/2 is every IPv4 address: with accept: any this would be an open relay`},
		{"relay: half is the operator's affair", listener("accept: any\ntrusted_networks: [0.0.0.0/1, 192.0.0.0/2, '::/3']"), ``},
		{"relay: but not with accept: routes", listener("trusted_networks: [0.0.0.0/0]"), `
penstock.yaml:4: warning: listeners[0].trusted_networks: 0.0.0.0/0 is every IPv4 address: nobody is held to the rates and the greet delay`},

		{"route: no backend", "routes:\n  - domains: [a.test]\n", `
penstock.yaml:2: routes[0].backend: is required, or handler
penstock.yaml:5: warning: backends.m: no route leads here`},
		{"route: nothing", "routes:\n  - {}\n", `
penstock.yaml:2: routes[0].backend: is required, or handler
penstock.yaml:2: routes[0].domains: is required, or recipients
penstock.yaml:5: warning: backends.m: no route leads here`},
		{"route: no domains", "routes:\n  - {domains: [], backend: m}\n", `
penstock.yaml:2: routes[0].domains: is required, or recipients`},
		{"route: recipients", "routes:\n  - {domains: [a.test], backend: m}\n  - {recipients: [r@b.test, r@a.test], handler: tlsrpt}\n", `
penstock.yaml:3: warning: routes[1].recipients[1]: is never looked at: "a.test" is in routes[0] already`},
		{"route: handler", "store: {driver: none}\nroutes:\n  - {domains: [a.test], backend: m, handler: tlsrpt}\n  - {domains: ['*'], handler: tlsrpt}\n  - {recipients: [a], handler: tlsrp}\n", `
penstock.yaml:3: routes[0].handler: does not go with backend
penstock.yaml:4: routes[1].handler: takes reports about our own domains; name them, or single recipients
penstock.yaml:5: routes[2].recipients[0]: "a" is not a mail address
penstock.yaml:5: routes[2].handler: must be tlsrpt, not "tlsrp"`},
		{"route: handler without a store", "store: {driver: none}\nroutes:\n  - {domains: [a.test], backend: m}\n  - {recipients: [a@b.test], handler: tlsrpt}\n", `
penstock.yaml:4: routes[1].handler: needs a store, and store.driver is none`},
		{"route: none", "routes: []\n", `
penstock.yaml:1: warning: routes: there are none: no recipient is ours`},
		{"route: backend", "routes: [{domains: [a.test], backend: mailstor}]\nbackends: {mailstore: {addresses: [smtp://b.test]}}\n", `
penstock.yaml:1: routes[0].backend: there is no backend "mailstor" in backends; did you mean "mailstore"?
penstock.yaml:2: warning: backends.mailstore: no route leads here`},
		{"route: wildcards", "routes:\n  - domains: ['*x', '*.*.test', 'a.*.test', '*a.test', '*.', '*..test', '']\n    backend: m\n", `
penstock.yaml:2: routes[0].domains[0]: "*x" is not a pattern: a wildcard is * alone, or *. in front of a domain, such as *.example.com
penstock.yaml:2: routes[0].domains[1]: "*.*.test" is not a pattern: a wildcard is * alone, or *. in front of a domain, such as *.example.com
penstock.yaml:2: routes[0].domains[2]: "a.*.test" is not a pattern: a wildcard is * alone, or *. in front of a domain, such as *.example.com
penstock.yaml:2: routes[0].domains[3]: "*a.test" is not a pattern: a wildcard is * alone, or *. in front of a domain, such as *.example.com
penstock.yaml:2: routes[0].domains[4]: "" is not a domain name: it has an empty part
penstock.yaml:2: routes[0].domains[5]: ".test" is not a domain name: it has an empty part
penstock.yaml:2: routes[0].domains[6]: is empty`},
		{"route: nobody gets there", "routes:\n  - {domains: ['*.a.test', b.test], backend: m}\n  - {domains: [x.y.a.test, '*.x.a.test', B.test], backend: m}\n", `
penstock.yaml:3: warning: routes[1]: no message can get here: "x.y.a.test" is matched by "*.a.test" in routes[0]`},
		{"route: one domain of two", "routes:\n  - {domains: ['*.a.test'], backend: m}\n  - domains:\n      - a.test\n      - x.a.test\n    backend: m\n", `
penstock.yaml:5: warning: routes[1].domains[1]: is never looked at: "x.a.test" is matched by "*.a.test" in routes[0]`},
		{"route: twice in one", "routes:\n  - {domains: [a.test, a.test], backend: m}\n", `
penstock.yaml:2: warning: routes[0].domains[1]: is never looked at: "a.test" is in routes[0] already`},

		{"backend: no addresses", backend("tls: off"), `
penstock.yaml:2: backends.m.addresses: is required`},
		{"backend: nothing", "backends:\n  m:\n", `
penstock.yaml:2: backends.m.addresses: is required`},
		{"backend: name", "backends:\n  m: {addresses: [smtp://a.test]}\n  'a b': {addresses: [smtp://a.test]}\n  '': {addresses: [smtp://a.test]}\n", `
penstock.yaml:3: backends.a b: "a b" is not a name: use up to 64 letters, digits, dots, hyphens and underscores
penstock.yaml:4: backends."": cannot be a name`},
		{"backend: unused", "backends:\n  m: {addresses: [smtp://a.test]}\n  n: {addresses: [smtp://b.test]}\n", `
penstock.yaml:3: warning: backends.n: no route leads here`},
		{"backend: addresses", backend("addresses:\n  - a.test:25\n  - http://a.test\n  - smtp://\n  - smtp://a.test:0\n  - smtp://user@a.test\n  - smtp://a.test/x\n  - lmtp+unix://\n  - []\n  - [smtp://::1, smtp://a_b]"), `
penstock.yaml:4: backends.m.addresses[0]: "a.test:25" is not a backend address: write smtp://, lmtp:// or smtps:// with host:port, or smtp+unix:// or lmtp+unix:// with a path
penstock.yaml:5: backends.m.addresses[1]: "http://a.test" is not a backend address: write smtp://, lmtp:// or smtps:// with host:port, or smtp+unix:// or lmtp+unix:// with a path
penstock.yaml:6: backends.m.addresses[2]: "" lacks a host
penstock.yaml:7: backends.m.addresses[3]: "0" is not a port number
penstock.yaml:8: backends.m.addresses[4]: a login stands before "a.test", and does not belong there
penstock.yaml:9: backends.m.addresses[5]: "a.test/x" is not a domain name: it has characters that no domain has
penstock.yaml:10: backends.m.addresses[6]: "lmtp+unix://" lacks the path of the socket
penstock.yaml:11: backends.m.addresses[7]: is empty
penstock.yaml:12: backends.m.addresses[8][1]: "a_b" is not a domain name: it has characters that no domain has`},
		{"backend: LMTP on 25", backend("addresses: ['lmtp://a.test:25', 'lmtp://a.test:25']"), `
penstock.yaml:3: warning: backends.m.addresses[0]: lmtp://a.test:25 speaks LMTP on the port of SMTP
penstock.yaml:3: warning: backends.m.addresses[1]: lmtp://a.test:25 is there twice
penstock.yaml:3: warning: backends.m.addresses[1]: lmtp://a.test:25 speaks LMTP on the port of SMTP`},
		{"backend: smtps without TLS", backend("addresses: ['smtps://a.test']\ntls: off"), `
penstock.yaml:3: backends.m.addresses[0]: smtps://a.test:465 begins with TLS, and tls is off`},
		{"backend: verify a socket", backend("addresses: ['lmtp+unix:///a']\ntls: verify"), `
penstock.yaml:3: backends.m.addresses[0]: lmtp+unix:///a has no host whose certificate tls: verify could check; set tls_name`},
		{"backend: without effect", backend("addresses: ['smtp://a.test']\nca_file: a\ntls_name: a.test"), `
penstock.yaml:4: warning: backends.m.ca_file: has no effect without tls: verify
penstock.yaml:5: warning: backends.m.tls_name: has no effect without tls: verify`},
		{"listener: rates and pauses", listener("limits: {connection_rate: 60, message_rate: 0/1m, greet_delay: never}"), `
penstock.yaml:4: listeners[0].limits.connection_rate: "60" is not a rate: write a number and a time, such as 60/1m, or off
penstock.yaml:4: listeners[0].limits.message_rate: "0/1m" is not a rate: write a number and a time, such as 60/1m, or off
penstock.yaml:4: listeners[0].limits.greet_delay: "never" is not a duration: write a number with its unit, such as 30s, 5m, 1h30m or 2d`},
		{"listener: TLS required of everybody", listener("tls: starttls_required"), `
penstock.yaml:4: warning: listeners[0].tls: starttls_required on port 25 turns away servers that send in clear (RFC 3207, Section 4)`},
		{"listener: TLS required of those who submit", "listeners: [{name: in, address: ':587', tls: starttls_required}]\n", ``},
		{"auth: nobody decides", listener("auth: {required: true}"), `
penstock.yaml:4: listeners[0].auth.users: is required: it says who decides about logins`},
		{"auth: no such backend", listener("auth: {users: 'backend:n'}"), `
penstock.yaml:4: listeners[0].auth.users: there is no backend "n" in backends; did you mean "m"?`},
		{"auth: no chain", listener("auth: {users: filter}"), `
penstock.yaml:4: listeners[0].auth.users: a filter is to decide, and the listener has no chain`},
		{"auth: words", listener("auth: {users: 'ldap:x', mechanisms: [DIGEST-MD5]}"), `
penstock.yaml:4: listeners[0].auth.users: "ldap:x" is none of file:PATH, backend:NAME and filter
penstock.yaml:4: listeners[0].auth.mechanisms[0]: must be PLAIN, LOGIN, CRAM-MD5, XOAUTH2, OAUTHBEARER, SCRAM-SHA-256, SCRAM-SHA-256-PLUS or EXTERNAL, not "DIGEST-MD5"`},
		{"auth: what cannot be judged", listener("auth: {users: 'backend:m', mechanisms: [SCRAM-SHA-256]}"), `
penstock.yaml:4: listeners[0].auth.mechanisms: CRAM-MD5 and SCRAM need users: file:PATH, since the password does not come over`},
		{"auth: nobody shows a certificate", listener("auth: {users: 'backend:m', mechanisms: [EXTERNAL]}"), `
penstock.yaml:4: listeners[0].auth.mechanisms: EXTERNAL needs client_certificates with mode: verify or verify_if_given`},
		{"auth: only in clear", listener("tls: off\nauth: {users: 'backend:m'}"), `
penstock.yaml:5: warning: listeners[0].auth: nobody can log in: tls is off and insecure is not set`},
		{"auth: only in clear, and required", listener("tls: off\nauth:\n  users: 'backend:m'\n  required: true"), `
penstock.yaml:7: listeners[0].auth.required: nobody can log in, and so no mail can pass: tls is off and insecure is not set`},
		{"auth: only in clear without STARTTLS", listener("disabled_commands: [starttls]\nauth:\n  users: 'backend:m'\n  required: true"), `
penstock.yaml:7: listeners[0].auth.required: nobody can log in, and so no mail can pass: STARTTLS is disabled and insecure is not set`},
		{"auth: TLS ends in front", listener("tls: off\nauth: {users: 'backend:m', required: true}\nproxy_protocol: {trusted: [127.0.0.1]}"), ``},
		{"auth: one mistake, not two", listener("tls: off\nauth: {users: 'backend:m', required: true, insecure: yes}"), `
penstock.yaml:5: listeners[0].auth.insecure: must be true or false, not "yes"`},
		{"auth: without AUTH", listener("auth: {users: 'backend:m'}\ndisabled_commands: [VRFY, auth]\ndisabled_extensions: [AUTH]"), `
penstock.yaml:5: listeners[0].disabled_commands[1]: nobody can log in without AUTH, and auth.users says who may
penstock.yaml:6: listeners[0].disabled_extensions[0]: nobody can log in without AUTH, and auth.users says who may`},
		{"listener: idle keys", listener("proxy_protocol: {timeout: 1s}\nsocket_mode: 600\nreverse_dns: {enabled: false, timeout: 1s}\nauth: {required_text: who}\ntls: off\ntls_min_version: 1.1"), `
penstock.yaml:4: warning: listeners[0].proxy_protocol.timeout: has no effect without trusted
penstock.yaml:5: warning: listeners[0].socket_mode: has no effect without an address unix:/path
penstock.yaml:6: warning: listeners[0].reverse_dns.timeout: has no effect with enabled: false
penstock.yaml:7: warning: listeners[0].auth.required_text: has no effect without required: true
penstock.yaml:9: warning: listeners[0].tls_min_version: has no effect with tls: off`},
		{"listener: old TLS", listener("tls_min_version: 1.0"), `
penstock.yaml:4: warning: listeners[0].tls_min_version: TLS 1.0 is retired (RFC 8996): what is sent under it may be read by others`},
		{"client certificates", listener("client_certificates: {mode: verify}"), `
penstock.yaml:4: listeners[0].client_certificates.ca_file: is required with mode: verify`},
		{"frontends: everybody", listener("proxy_protocol: {trusted: ['0.0.0.0/0']}\nxclient: {trusted: ['::/0'], relay: true}"), `
penstock.yaml:4: listeners[0].proxy_protocol.trusted: 0.0.0.0/0 is every IPv4 address: anybody could be anybody
penstock.yaml:5: listeners[0].xclient.trusted: ::/0 is every IPv6 address: anybody could be anybody
penstock.yaml:5: warning: listeners[0].xclient.relay: has no effect without accept: any`},
		{"backend: login", backend("addresses: ['smtp://a.test']\nlogin: {user: us}\nxclient: true"), `
penstock.yaml:4: backends.m.login: user and password need each other
penstock.yaml:5: backends.m.xclient: does not go with login: behind XCLIENT a backend forgets who logged in`},
		{"backend: list", backend("addresses: ['smtp://a.test']\nrecipients: 'file:'\nrecipient_separator: '+-'"), `
penstock.yaml:4: backends.m.recipients: must be pass, callout, accept or file:PATH, not "file:"
penstock.yaml:5: warning: backends.m.recipient_separator: has no effect without recipients: file:PATH
penstock.yaml:5: backends.m.recipient_separator: must be one character`},
		{"backend: callout", backend("addresses: ['smtp://a.test']\ncallout: {stale: 1h}"), `
penstock.yaml:4: warning: backends.m.callout.stale: has no effect without recipients: callout`},
		{"backend: queue", backend("addresses: ['smtp://a.test']\nmode: queue\nwhen_down: queue"), `
penstock.yaml:5: warning: backends.m.when_down: queue has no effect with recipients: pass: nobody would know which recipients exist`},
		{"backend: queue for anybody", backend("addresses: ['smtp://a.test']\nmode: queue\nrecipients: accept"), `
penstock.yaml:5: warning: backends.m.recipients: accept takes mail for anybody, and what the backend refuses later is returned to senders that may be forged`},
		{"store: none", backend("addresses: ['smtp://a.test']\nmode: queue") + "store: {driver: none}\n", `
penstock.yaml:4: backends.m.mode: needs a store, and store.driver is none`},
		{"store: postgres", "store: {driver: postgres, timeout: 900ms}\ndelivery: {lease: 4s, schedule: {first: 7h}}\n", `
penstock.yaml:1: store.key: is required with driver: postgres: it encrypts private keys, which others could read there
penstock.yaml:1: store.url: is required with driver: postgres
penstock.yaml:1: store.timeout: is less than 1s
penstock.yaml:2: delivery.lease: is less than 5s
penstock.yaml:2: delivery.schedule.first: is longer than max`},
		{"delivery: words", "delivery:\n  dane: on\n  mta_sts: test\n  ip_families: [ipv4, ipv5]\n  port: 70000\n  nat64_prefixes: ['2001:db8::/95', 192.0.2.0/24]\n  relay: smtp://a.test\n  proxy: 'ftp://u:secret@a.test'\n  chain: inbund\n", `
penstock.yaml:2: delivery.dane: must be off, opportunistic or required, not "on"
penstock.yaml:3: delivery.mta_sts: must be off, testing or enforce, not "test"
penstock.yaml:4: delivery.ip_families[1]: must be ipv4 or ipv6, not "ipv5"; did you mean "ipv4"?
penstock.yaml:5: delivery.port: 70000 is not a port number
penstock.yaml:6: delivery.nat64_prefixes[0]: "2001:db8::/95" is not a prefix of NAT64: write an IPv6 network of 32, 40, 48, 56, 64 or 96 bits (RFC 6052, Section 2.2)
penstock.yaml:6: delivery.nat64_prefixes[1]: "192.0.2.0/24" is not a prefix of NAT64: write an IPv6 network of 32, 40, 48, 56, 64 or 96 bits (RFC 6052, Section 2.2)
penstock.yaml:7: delivery.relay: "smtp://a.test" is not a relay: write HOST, HOST:PORT or mx:DOMAIN
penstock.yaml:8: delivery.proxy: "ftp://a.test" is not a proxy: write socks5://HOST:PORT, http://HOST:PORT or https://HOST:PORT
penstock.yaml:9: delivery.chain: there is no chain "inbund" in filters.chains`},
		{"delivery: resolver", "delivery:\n  resolver:\n    address: [auto, '1.1.1.1']\n    ca_file: ca.pem\n    probe: a..b\n  block_local_addresses: false\n  tlsrpt: {enabled: false, contact: a@b.test}\n", `
penstock.yaml:3: delivery.resolver.address: auto does not go with other addresses
penstock.yaml:4: warning: delivery.resolver.ca_file: has no effect without an address tls:// or https://
penstock.yaml:5: delivery.resolver.probe: "a..b" is not a domain name: it has an empty part
penstock.yaml:6: warning: delivery.block_local_addresses: false lets whoever owns a domain have us connect to this machine and the networks around it
penstock.yaml:7: warning: delivery.tlsrpt.contact: has no effect with enabled: false`},
		{"delivery: trust in what is found", "delivery: {resolver: {trusted: true}}", `
penstock.yaml:1: delivery.resolver.trusted: true needs an address: what auto finds in /etc/resolv.conf is never trusted`},
		{"delivery: sources", "store: {driver: embedded}\ndelivery:\n  ip_families: [ipv4]\n  prefer_ipv6: true\n  sources:\n    - {name: a, ipv6: '2001:db8::1'}\n    - {name: a, ipv4: 0.0.0.0}\n    - {name: b c}\n    - {name: d, ipv6: '::ffff:192.0.2.1'}\n", `
penstock.yaml:4: warning: delivery.prefer_ipv6: has no effect with one family in ip_families
penstock.yaml:6: warning: delivery.sources[0].ipv6: has no effect without ipv6 in ip_families
penstock.yaml:7: delivery.sources[1].name: "a" is the name of delivery.sources[0] too
penstock.yaml:7: delivery.sources[1].ipv4: "0.0.0.0" is not an IPv4 address
penstock.yaml:8: delivery.sources[2]: has neither an address nor a name
penstock.yaml:8: delivery.sources[2].name: "b c" is not a name: use up to 64 letters, digits, dots, hyphens and underscores
penstock.yaml:9: delivery.sources[3].ipv6: "::ffff:192.0.2.1" is not an IPv6 address`},
		{"delivery: dkim and proxy", "store: {driver: embedded}\ndelivery:\n  dkim:\n    - {domain: a.test, selector: s, key: 'file:k'}\n    - {domain: A.test, selector: S, key: 'file:l'}\n    - {domain: b.test, selector: '*'}\n  proxy_login: {user: u}\n  proxy: https://p.test\n", `
penstock.yaml:5: delivery.dkim[1]: a.test and s are those of delivery.dkim[0] too
penstock.yaml:6: delivery.dkim[2].key: is required
penstock.yaml:6: delivery.dkim[2].selector: "*" is not a selector: use letters, digits and hyphens, as in mail2026
penstock.yaml:7: delivery.proxy_login: user and password need each other`},
		{"delivery: no relay", "delivery: {relay_tls: verify}", `
penstock.yaml:1: warning: delivery.relay_tls: has no effect without relay`},
		{"delivery: a login in a URL", "delivery:\n  proxy: 'http://u:secret@p.test'\n", `
penstock.yaml:2: delivery.proxy: who we are belongs into proxy_login, with the password in a file`},
		{"delivery: a login in what is no URL", "delivery:\n  proxy: 'socks5:u:secret@p.test'\n", `
penstock.yaml:2: delivery.proxy: "it" is not a proxy: write socks5://HOST:PORT, http://HOST:PORT or https://HOST:PORT`},
		{"passwords in wrong places", "backends: {m: {addresses: ['smtp://u:secret@m.test'], login: {user: u, password: secret}}}\ndelivery: {relay: 'u:secret@r.test:25'}\n", `
penstock.yaml:1: backends.m.addresses[0]: a login stands before "m.test", and does not belong there
penstock.yaml:1: backends.m.login: user and password need each other
penstock.yaml:1: backends.m.login.password: is not a file: write file:PATH, not what the file holds
penstock.yaml:2: delivery.relay: "r.test:25" is not a relay: write HOST, HOST:PORT or mx:DOMAIN`},
		{"delivery: no store", "delivery:\n  relay: mx:a.test\n  proxy_login: {user: u}\n", `
penstock.yaml:2: warning: delivery.relay: has no effect without a store: only what was stored goes to others by MX
penstock.yaml:3: warning: delivery.proxy_login: has no effect without proxy`},
		{"backend: words", backend("addresses: ['smtp://a.test']\nmode: indirect\nrecipients: pas"), `
penstock.yaml:4: backends.m.mode: must be direct or queue, not "indirect"; did you mean "direct"?
penstock.yaml:5: backends.m.recipients: must be pass, callout, accept or file:PATH, not "pas"; did you mean "pass"?`},

		{"filter: module", filter("{}") + "      - module: 'builtin:'\n      - module: a@1\n      - module: sha256:aa\n      - module: a/b\n      - module: .wasm\n      - module: here\n", `
penstock.yaml:5: filters.chains.c[0].module: is required
penstock.yaml:6: filters.chains.c[1].module: "builtin:" is not a module: write builtin:NAME, the NAME of a file in filters.dir, or a path that ends in .wasm
penstock.yaml:7: filters.chains.c[2].module: "a@1" needs the store, which is not there yet; use the path of a .wasm file
penstock.yaml:8: filters.chains.c[3].module: "sha256:aa" needs the store, which is not there yet; use the path of a .wasm file
penstock.yaml:9: filters.chains.c[4].module: "a/b" is not a module: write builtin:NAME, the NAME of a file in filters.dir, or a path that ends in .wasm
penstock.yaml:10: filters.chains.c[5].module: ".wasm" is not a module: write builtin:NAME, the NAME of a file in filters.dir, or a path that ends in .wasm
penstock.yaml:11: filters.chains.c[6].module: "here" would be in filters.dir, which is not set`},
		{"filter: on_error", filter("module: a.wasm\non_error: quarantine\non_broken: {data: quarantine}"), ``},
		{"filter: on_error by hook", filter("module: a.wasm\non_error: {default: acept, conect: accept, helo: quarantine, close: accept}\non_broken: rejct"), `
penstock.yaml:6: filters.chains.c[0].on_error.default: must be tempfail, accept, reject or quarantine, not "acept"; did you mean "accept"?
penstock.yaml:6: filters.chains.c[0].on_error.conect: unknown key; did you mean "connect"?
penstock.yaml:6: filters.chains.c[0].on_error.helo: quarantine holds a message, and at helo there is none yet; use tempfail, accept or reject
penstock.yaml:6: filters.chains.c[0].on_error.close: has no effect: at close filters only observe, and nothing is answered
penstock.yaml:7: filters.chains.c[0].on_broken: must be tempfail, accept, reject or quarantine, not "rejct"; did you mean "reject"?`},
		{"filter: on_error as a list", filter("module: a.wasm\non_error: [accept]"), `
penstock.yaml:6: filters.chains.c[0].on_error: must be one value (tempfail, accept, reject or quarantine) or a mapping by hook, not a list`},
		{"filter: on_broken needs a store", "store: {driver: none}\n" + filter("module: a.wasm\non_broken: {rcpt: quarantine}"), `
penstock.yaml:7: filters.chains.c[0].on_broken: needs a store, and store.driver is none`},
		{"filter: limits", filter("module: a.wasm\nlimits: {memory: 1KiB, wall: -1s, fuel: 2ms}"), `
penstock.yaml:6: filters.chains.c[0].limits.memory: 1KiB is not between 64KiB and 64MiB
penstock.yaml:6: filters.chains.c[0].limits.wall: "-1s" is not a duration: write a number with its unit, such as 30s, 5m, 1h30m or 2d
penstock.yaml:6: filters.chains.c[0].limits.fuel: unknown key; the keys here are memory, cpu, cpu_message, cpu_per_mib, cpu_session, wall, boot, stack, log_lines, session_values, header_edits, header_size, recipients, body_growth`},
		{"filter: sizes", filter("module: a.wasm\nlimits: {stack: 1MiB, session_values: 2MiB, header_size: 2MiB, body_growth: 65MiB, log_lines: 1001, header_edits: 5000, recipients: 1001, boot: 2m}\ngrant: {http: {hosts: [a.test], max_per_hook: 33}, kv: {max_per_hook: 1025}}"), `
penstock.yaml:6: filters.chains.c[0].limits.stack: 1MiB is not between 16KiB and 512KiB
penstock.yaml:6: filters.chains.c[0].limits.session_values: 2MiB is not between 1B and 1MiB
penstock.yaml:6: filters.chains.c[0].limits.header_size: 2MiB is not between 1B and 1MiB
penstock.yaml:6: filters.chains.c[0].limits.body_growth: 65MiB is not between 1B and 64MiB
penstock.yaml:6: filters.chains.c[0].limits.log_lines: 1001 is not between 1 and 1000
penstock.yaml:6: filters.chains.c[0].limits.header_edits: 5000 is not between 1 and 4096
penstock.yaml:6: filters.chains.c[0].limits.recipients: 1001 is not between 1 and 1000
penstock.yaml:6: filters.chains.c[0].limits.boot: 2m0s is more than 1m0s
penstock.yaml:7: filters.chains.c[0].grant.http.max_per_hook: 33 is not between 1 and 32
penstock.yaml:7: warning: filters.chains.c[0].grant.kv: there is no store: what the filter keeps is lost at a restart
penstock.yaml:7: filters.chains.c[0].grant.kv.max_per_hook: 1025 is not between 1 and 1024`},
		{"filter: CPU time", filter("module: a.wasm\nlimits: {cpu: 501ms, cpu_session: 6s, wall: 2m}"), `
penstock.yaml:6: filters.chains.c[0].limits.cpu: 501ms is more than 500ms
penstock.yaml:6: filters.chains.c[0].limits.cpu_session: 6s is more than 5s
penstock.yaml:6: filters.chains.c[0].limits.wall: 2m0s is more than 1m0s`},
		{"filter: CPU time beyond what there is for a message", filter("module: a.wasm\nlimits: {cpu_per_mib: 400ms}"), `
penstock.yaml:6: filters.chains.c[0].limits.cpu_per_mib: gives a message of 50MiB, which listeners[0].limits.message_size allows, 20.02s with cpu_message, but no call gets more than 10s: lower cpu_per_mib or message_size`},
		{"filter: no CPU time to look at a message", filter("module: a.wasm\nlimits: {cpu_message: 1ms, cpu_per_mib: 20us}"), `
penstock.yaml:6: filters.chains.c[0].limits.cpu_per_mib: leaves 2ms for a message of 50MiB, which listeners[0].limits.message_size allows, and no filter can look at it in that: raise cpu_per_mib, or lower message_size`},
		{"filter: grants", filter("module: a.wasm\ngrant:\n  kv: {}\n  http: {timeout: 2h, max_response: 1GiB, private: [unix]}\n  dns: {types: [A, HINFO], max_per_hook: 33}\n  secret: [tokne]\n  body_read: yes\n  envelope: true") + "  secrets: {token: hunter2, other: env:X}\nstore: {driver: none}\n", `
penstock.yaml:7: warning: filters.chains.c[0].grant.kv: there is no store: what the filter keeps is lost at a restart
penstock.yaml:8: filters.chains.c[0].grant.http.hosts: is required: name the hosts that it may ask
penstock.yaml:8: filters.chains.c[0].grant.http.timeout: 2h0m0s is not between 0 and 1m0s
penstock.yaml:8: filters.chains.c[0].grant.http.max_response: 1GiB is more than 16MiB
penstock.yaml:8: filters.chains.c[0].grant.http.private[0]: is no network of addresses
penstock.yaml:9: filters.chains.c[0].grant.dns.types[1]: must be A, AAAA, TXT, MX, PTR, CNAME, NS or SRV, not "HINFO"
penstock.yaml:9: filters.chains.c[0].grant.dns.max_per_hook: 33 is not between 1 and 32
penstock.yaml:10: filters.chains.c[0].grant.secret[0]: there is no secret "tokne" in filters.secrets; did you mean "token"?
penstock.yaml:11: filters.chains.c[0].grant.body_read: must be true or false, not "yes"
penstock.yaml:12: filters.chains.c[0].grant.envelope: must be a mapping with keys such as relay, not "true"
penstock.yaml:13: filters.secrets.token: is not a place: write file:PATH or env:NAME, not the secret`},
		{"filter: hosts to ask", filter("module: a.wasm\ngrant: {http: {hosts: ['ftp://a.test', 'a.test:0', '*.*.test', 'http://*', 'a.test/x', '*.']}, dsn: {rate: off}}") + "store: {driver: none}\n", `
penstock.yaml:6: filters.chains.c[0].grant.http.hosts[0]: "ftp://a.test" is not a host to ask: write [https://]host[:port] or http://host[:port], with *.example.com for every name below, or *
penstock.yaml:6: filters.chains.c[0].grant.http.hosts[1]: "a.test:0" is not a host to ask: write [https://]host[:port] or http://host[:port], with *.example.com for every name below, or *
penstock.yaml:6: filters.chains.c[0].grant.http.hosts[2]: "*.*.test" is not a host to ask: write [https://]host[:port] or http://host[:port], with *.example.com for every name below, or *
penstock.yaml:6: filters.chains.c[0].grant.http.hosts[4]: "a.test/x" is not a host to ask: write [https://]host[:port] or http://host[:port], with *.example.com for every name below, or *
penstock.yaml:6: filters.chains.c[0].grant.http.hosts[5]: "*." is not a host to ask: write [https://]host[:port] or http://host[:port], with *.example.com for every name below, or *
penstock.yaml:6: filters.chains.c[0].grant.dsn: needs a store, and store.driver is none
penstock.yaml:6: filters.chains.c[0].grant.dsn.rate: must be 1 to 1000 in at most 24h0m0s`},
		{"filter: same name", filter("module: a.wasm") + "      - module: b/a.wasm\n      - {module: b/a.wasm, name: b}\n", `
penstock.yaml:6: warning: filters.chains.c[1]: is called "a" in the log, as filters.chains.c[0] is; give it a name`},
		{"filter: label", filter("module: a.wasm\nname: 'a b'"), `
penstock.yaml:6: filters.chains.c[0].name: "a b" is not a name: use up to 64 letters, digits, dots, hyphens and underscores`},
		{"filter: numbers", filter("module: a.wasm\nconfig:\n  a: .inf\n  b: [.nan]"), `
penstock.yaml:7: filters.chains.c[0].config.a: .inf is a number that JSON does not have
penstock.yaml:8: filters.chains.c[0].config.b[0]: .nan is a number that JSON does not have`},
		{"filter: unused chain", "filters: {chains: {c: [{module: a.wasm}]}}\n", `
penstock.yaml:1: warning: filters.chains.c: no listener uses it`},
		{"certificates: names without the rest", "certificates:\n  names: [mx.example.net]\n", `
penstock.yaml:1: certificates.acme.agreed: must be true with certificates.names: certificates are given to those who agree to the authority's terms of service
penstock.yaml:1: certificates.acme.email: is required with certificates.names: the authority writes to it`},
		{"certificates: the rest without names", "certificates:\n  acme: {agreed: true}\n", `
penstock.yaml:2: warning: certificates.acme: has no effect without certificates.names`},
		{"certificates: names", "certificates:\n  acme: {agreed: true, email: a@b.test}\n  names: [a.test, '*.b.test', under_score.test, A.test, 192.0.2.1]\n", `
penstock.yaml:3: certificates.names[1]: "*.b.test" is a wildcard: its proof is DNS-01, which is not there yet; name the hosts
penstock.yaml:3: certificates.names[2]: "under_score.test" is not a domain name: it has characters that no domain has
penstock.yaml:3: certificates.names[3]: "a.test" is names[0] too
penstock.yaml:3: certificates.names[4]: "192.0.2.1" is not a domain name: it is an address`},
		{"certificates: acme", "certificates:\n  names: [a.test]\n  acme:\n    agreed: maybe\n    email: '\"a b\"@c.test'\n    directory: http://ca.test/dir\n    http01: unix:/run/x\n    tlsalpn01: '443'\n", `
penstock.yaml:4: certificates.acme.agreed: must be true or false, not "maybe"
penstock.yaml:5: certificates.acme.email: "\"a b\"@c.test" is not a mail address
penstock.yaml:6: certificates.acme.directory: "http://ca.test/dir" is none of letsencrypt, letsencrypt-staging and an https URL
penstock.yaml:7: certificates.acme.http01: "unix:/run/x" is not an address for challenges: write host:port, :port or off
penstock.yaml:8: certificates.acme.tlsalpn01: "443" is not an address for challenges: write host:port, :port or off`},
		{"certificates: no challenge", "certificates:\n  names: [a.test]\n  acme: {agreed: true, email: a@b.test, http01: off, tlsalpn01: off}\n", `
penstock.yaml:3: certificates.acme: http01 and tlsalpn01 are both off: the authority needs one of them to see that the names are ours`},
		{"certificates: challenges and listeners in each other's way", "certificates:\n  names: [a.test]\n  acme: {agreed: true, email: a@b.test, http01: ':25', tlsalpn01: '127.0.0.1:25'}\n", `
penstock.yaml:3: certificates.acme.http01: :25 cannot be had next to :25 of listeners[0]
penstock.yaml:3: certificates.acme.tlsalpn01: 127.0.0.1:25 cannot be had next to :25 of listeners[0]`},
		{"certificates: challenges in each other's way", "certificates:\n  names: [a.test]\n  acme: {agreed: true, email: a@b.test, http01: ':8080', tlsalpn01: '127.0.0.1:8080'}\n", `
penstock.yaml:3: certificates.acme.tlsalpn01: 127.0.0.1:8080 cannot be had next to :8080 of http01`},
		{"certificates: old TLS", "certificates:\n  min_version: 1.1\n", `
penstock.yaml:2: warning: certificates.min_version: TLS 1.1 is retired (RFC 8996): what is sent under it may be read by others`},
		{"certificates: no TLS", "certificates:\n  min_version: 1.4\n", `
penstock.yaml:2: certificates.min_version: must be 1.0, 1.1, 1.2 or 1.3, not "1.4"; did you mean "1.0"?`},
		{"certificates", "certificates:\n  files:\n    - {cert: a.pem}\n", `
penstock.yaml:3: certificates.files[0].key: is required`},

		{"admin: off", "admin: {metrics: false}\n", `
penstock.yaml:1: warning: admin: the admin API is off while tokens is not set`},
		{"admin: tokens", "admin: {tokens: tokens.txt}\n", `
penstock.yaml:1: admin.tokens: is not a file: write file:PATH, not what the file holds`},
		{"admin: words", "admin:\n  tokens: file:t\n  metrics: yes\n  hosts: ['localhost:80']\n", `
penstock.yaml:3: admin.metrics: must be true or false, not "yes"
penstock.yaml:4: admin.hosts[0]: "localhost:80" is not a domain name: it has characters that no domain has`},
		{"admin: open to all", "admin: {tokens: 'file:t', address: ':8025'}\n", `
penstock.yaml:1: warning: admin.address: :8025 can be reached from outside, and tokens would pass in clear text`},
		{"admin: systemd", "admin: {tokens: 'file:t', address: 'systemd:a'}\n", `
penstock.yaml:1: admin.address: systemd:a is for listeners; write host:port or unix:/path`},
		{"admin: a listener's address", "admin: {tokens: 'file:t', address: '127.0.0.1:25'}\n", `
penstock.yaml:1: admin.address: 127.0.0.1:25 cannot be had next to :25 of listeners[0]`},

		{"admin: a challenge's address", "admin: {tokens: 'file:t', address: '127.0.0.1:80'}\ncertificates:\n  names: [a.test]\n  acme: {agreed: true, email: a@b.test}\n", `
penstock.yaml:4: certificates.acme.http01: :80 cannot be had next to 127.0.0.1:80 of admin.address`},

		{"merge key", "backends:\n  m: &m {addresses: [smtp://a.test], tls: off}\n  n:\n    <<: *m\n    tls: required\nroutes: [{domains: [a.test], backend: m}, {domains: [b.test], backend: n}]\n", ``},
		{"merge key, wrong", "backends:\n  m:\n    <<: [5]\n    addresses: [smtp://a.test]\n", `
penstock.yaml:3: backends.m: << must be a mapping, not "5"`},
		{"merge key, mistake inside", "backends:\n  m: {<<: [{tsl: off}], addresses: [smtp://a.test]}\n", `
penstock.yaml:2: backends.m.tsl: unknown key; did you mean "tls"?`},
		{"alias bomb", filter("module: builtin:a\nconfig:\n  a: &a [x,x,x,x,x,x,x,x,x,x]\n  b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n  c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n  d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n  e: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]"), `
penstock.yaml:7: filters.chains.c[0].config.e[7][8][8][6][2]: more than 100000 values, aliases put in`},
		{"alias of itself", filter("module: builtin:a\nconfig: &a [*a]"), `
penstock.yaml:6: filters.chains.c[0].config[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0...: nested more than 64 deep`},
		{"merge of itself", "backends: {m: &m {<<: *m, addresses: [smtp://a.test]}}\n", `
penstock.yaml:1: backends.m: nested more than 64 deep`},
		{"deep", filter("module: builtin:a\nconfig: " + strings.Repeat("[", 100) + strings.Repeat("]", 100)), `
penstock.yaml:6: filters.chains.c[0].config[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0...: nested more than 64 deep`},
		{"deeper than the parser goes", "!" + strings.Repeat("[", 20000) + "\n", `
penstock.yaml:1: this is not YAML: exceeded max depth of 10000`},
		{"too many values", "routes:\n  - backend: m\n    domains: [" + strings.Repeat("a,", 120000) + "]\n", `
penstock.yaml:3: routes[0].domains[99989]: more than 100000 values, aliases put in`},
		{"a word that is not text", "hostname: ~\nlog: {level: 1}\n", `
penstock.yaml: hostname: is required
penstock.yaml:2: log.level: must be debug, info, warn or error, not "1"`},
	}
}
