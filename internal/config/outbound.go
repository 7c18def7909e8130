package config

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// outbound.go holds the values of delivery, and finds what is wrong between them.

// DANEMode says what DNSSEC and TLSA records mean for a connection.
type DANEMode string

// Whether TLSA records are not looked for, obeyed where there are some, or demanded of every
// host (RFC 7672).
const (
	DANEOff           DANEMode = "off"
	DANEOpportunistic DANEMode = "opportunistic"
	DANERequired      DANEMode = "required"
)

func (DANEMode) words() []string { return []string{"off", "opportunistic", "required"} }

// STSMode says what the policies of MTA-STS mean for a connection.
type STSMode string

// Whether MTA-STS policies are not looked for, only reported on, or obeyed (RFC 8461).
const (
	STSOff     STSMode = "off"
	STSTesting STSMode = "testing"
	STSEnforce STSMode = "enforce"
)

func (STSMode) words() []string { return []string{"off", "testing", "enforce"} }

// RelayTLS says what TLS a relay must show.
type RelayTLS string

// What a relay must show: what its policies say, and beside that no clear text, or a valid
// certificate.
const (
	RelayTLSPolicy   RelayTLS = "policy"
	RelayTLSRequired RelayTLS = "required"
	RelayTLSVerify   RelayTLS = "verify"
)

func (RelayTLS) words() []string { return []string{"policy", "required", "verify"} }

// IPFamily is a kind of addresses.
type IPFamily string

// The kinds of addresses.
const (
	IPv4 IPFamily = "ipv4"
	IPv6 IPFamily = "ipv6"
)

func (IPFamily) words() []string { return []string{"ipv4", "ipv6"} }

// ResolverAddresses is one address of a resolver or a list of them; the word auto and an empty
// list look for one.
type ResolverAddresses []string

// oneOrMore lets one word stand for a list of that word.
func (ResolverAddresses) oneOrMore() {}

// Auto tells whether no resolver is named.
func (r ResolverAddresses) Auto() bool {
	return len(r) == 0 || len(r) == 1 && (r[0] == "auto" || r[0] == "")
}

// A DNSName is a name in DNS that need not be that of a host; the root is a dot.
type DNSName string

// UnmarshalText reads a domain name or a dot.
func (n *DNSName) UnmarshalText(text []byte) error {
	if string(text) == "." {
		*n = "."
		return nil
	}
	d, err := parseDomain(strings.TrimSuffix(string(text), "."))
	*n = DNSName(d)
	return err
}

func (DNSName) describe() string { return "domain name or ." }

// An Address4 is an IPv4 address.
type Address4 struct{ netip.Addr }

// An Address6 is an IPv6 address.
type Address6 struct{ netip.Addr }

// UnmarshalText reads an IPv4 address.
func (a *Address4) UnmarshalText(text []byte) error {
	got, err := netip.ParseAddr(string(text))
	if err != nil || !got.Is4() || got.IsUnspecified() || got.IsMulticast() {
		return fmt.Errorf("%s is not an IPv4 address", quote(string(text)))
	}
	a.Addr = got
	return nil
}

func (Address4) describe() string { return "IPv4 address" }

// UnmarshalText reads an IPv6 address.
func (a *Address6) UnmarshalText(text []byte) error {
	got, err := netip.ParseAddr(string(text))
	if err != nil || !got.Is6() || got.Is4In6() || got.IsUnspecified() || got.IsMulticast() {
		return fmt.Errorf("%s is not an IPv6 address", quote(string(text)))
	}
	a.Addr = got
	return nil
}

func (Address6) describe() string { return "IPv6 address" }

// A NAT64Prefix is a range in which IPv6 addresses stand for those of IPv4.
type NAT64Prefix struct{ netip.Prefix }

// UnmarshalText reads a prefix of one of the lengths of RFC 6052, Section 2.2.
func (n *NAT64Prefix) UnmarshalText(text []byte) error {
	p, err := netip.ParsePrefix(string(text))
	if err != nil || !p.Addr().Is6() || !slices.Contains([]int{32, 40, 48, 56, 64, 96}, p.Bits()) {
		return fmt.Errorf("%s is not a prefix of NAT64: write an IPv6 network of 32, 40, 48, 56, 64 or 96 bits (RFC 6052, Section 2.2)", quote(string(text)))
	}
	n.Prefix = p.Masked()
	return nil
}

func (NAT64Prefix) describe() string { return "IPv6 network" }

// A Relay is a host that all mail for others goes through.
type Relay struct {
	Host string // a domain name or an address; empty for none
	Port int    // that of delivery.port if it is 0
	MX   bool   // the mail exchangers of Host take the mail, not Host itself
}

// UnmarshalText reads HOST, HOST:PORT or mx:DOMAIN.
func (r *Relay) UnmarshalText(text []byte) error {
	t := string(text)
	if domain, ok := strings.CutPrefix(t, "mx:"); ok {
		d, err := parseDomain(domain)
		*r = Relay{Host: string(d), MX: true}
		return err
	}
	host, port, err := net.SplitHostPort(t)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(t, "["), "]"), ""
	}
	host, err = parseHost(host)
	if err == nil && port != "" {
		var n uint64
		n, err = parsePort(port, 1)
		r.Port = int(n)
	}
	if err != nil {
		return fmt.Errorf("%s is not a relay: write HOST, HOST:PORT or mx:DOMAIN", quote(behindLogin(t)))
	}
	r.Host = host
	return nil
}

// String returns the relay as it is written in the file.
func (r Relay) String() string {
	switch {
	case r.MX:
		return "mx:" + r.Host
	case r.Port != 0:
		return net.JoinHostPort(r.Host, strconv.Itoa(r.Port))
	}
	return r.Host
}

func (Relay) describe() string { return "HOST, HOST:PORT or mx:DOMAIN" }

// A Proxy is the URL of a proxy that connections are made through.
type Proxy struct {
	Scheme  string // socks5, http or https; empty for none
	Address string // host:port
}

// UnmarshalText reads socks5://host:port, http://host:port or https://host:port. A login
// stands in a key of its own, so that the password is in a file.
func (p *Proxy) UnmarshalText(text []byte) error {
	t := string(text)
	u, err := url.Parse(t)
	port := ""
	if err == nil {
		port = map[string]string{"socks5": "1080", "http": "80", "https": "443"}[u.Scheme]
	}
	switch {
	case err != nil || port == "" || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		if err == nil && u.User != nil {
			u.User = nil // what is wrong is shown, and a password must not be
			t = u.String()
		}
		if strings.Contains(t, "@") { // as in socks5:user:password@host
			t = "it"
		}
		return fmt.Errorf("%s is not a proxy: write socks5://HOST:PORT, http://HOST:PORT or https://HOST:PORT", quote(t))
	case u.User != nil:
		return fmt.Errorf("who we are belongs into proxy_login, with the password in a file")
	}
	address, err := dialAddress(u.Host, port)
	if err != nil {
		return err
	}
	*p = Proxy{Scheme: u.Scheme, Address: address}
	return nil
}

// String returns the URL.
func (p Proxy) String() string {
	if p.Scheme == "" {
		return ""
	}
	return p.Scheme + "://" + p.Address
}

func (Proxy) describe() string { return "URL of a proxy" }

// delivery checks how mail goes to others.
func (k *checker) delivery() {
	d := k.c.Delivery
	if d.Lease != 0 && d.Lease < 5*time.Second {
		k.errorf("delivery.lease", "is less than 5s")
	}
	if d.Schedule.First > d.Schedule.Max {
		k.errorf("delivery.schedule.first", "is longer than max")
	}
	if d.Schedule.Max > d.Schedule.Expire {
		k.errorf("delivery.schedule.max", "is longer than expire")
	}
	k.resolver("delivery.resolver", d.Resolver)
	k.refer("delivery.chain", "filters.chains", "chain", d.Chain, slices.Sorted(maps.Keys(k.c.Filters.Chains)))
	k.families(d)
	k.sources(d)
	k.dkim(d.DKIM)
	k.proxy(d)
	if d.Port < 0 || d.Port > 65535 {
		k.errorf("delivery.port", "%d is not a port number", d.Port)
	}
	if d.BlockLocal == False {
		k.warnf("delivery.block_local_addresses", "false lets whoever owns a domain have us connect to this machine and the networks around it")
	}
	if k.written("delivery.relay_tls") && d.Relay == (Relay{}) && !k.broken("delivery.relay") {
		k.warnf("delivery.relay_tls", "has no effect without relay")
	}
	if d.TLSRPT.Enabled == False {
		k.withoutEffect("enabled: false", "delivery.tlsrpt.organization", "delivery.tlsrpt.contact")
	} else if d.DANE == DANEOff && d.MTASTS == STSOff && k.written("delivery.tlsrpt.enabled") {
		k.warnf("delivery.tlsrpt.enabled", "has little to tell with dane: off and mta_sts: off: no policy is looked for")
	}
	if k.c.Store.Driver == StoreNone {
		k.withoutEffect("a store: only what was stored goes to others by MX", "delivery.relay", "delivery.chain", "delivery.dkim", "delivery.sources", "delivery.proxy")
	}
}

// withoutEffect warns of keys that were written and do nothing.
func (k *checker) withoutEffect(why string, keys ...string) {
	for _, key := range keys {
		if k.c.origins.has(key) {
			if strings.HasPrefix(why, "enabled") {
				k.warnf(key, "has no effect with %s", why)
			} else {
				k.warnf(key, "has no effect without %s", why)
			}
		}
	}
}

// resolver checks what can be said about servers without reading their addresses.
func (k *checker) resolver(at string, r Resolver) {
	key := child(at, "address")
	if len(r.Address) > 4 {
		k.errorf(key, "more than 4 servers are never asked in time")
	}
	if len(r.Address) > 1 && slices.Contains(r.Address, "auto") {
		k.errorf(key, "auto does not go with other addresses")
	}
	secure := slices.ContainsFunc(r.Address, func(a string) bool {
		return strings.HasPrefix(a, "tls://") || strings.HasPrefix(a, "https://")
	})
	if r.CAFile != "" && !secure && !k.broken(key) {
		k.warnf(child(at, "ca_file"), "has no effect without an address tls:// or https://")
	}
	if r.Address.Auto() && r.Trusted == TrustYes && !k.broken(key) {
		k.errorf(child(at, "trusted"), "true needs an address: what auto finds in /etc/resolv.conf is never trusted")
	}
}

// families checks the kinds of addresses.
func (k *checker) families(d Delivery) {
	seen := map[IPFamily]bool{}
	for i, f := range d.IPFamilies {
		if seen[f] && f != "" {
			k.warnf(item("delivery.ip_families", i), "%s is there twice", f)
		}
		seen[f] = true
	}
	if d.PreferIPv6 == True && len(d.IPFamilies) > 0 && !(seen[IPv4] && seen[IPv6]) {
		k.warnf("delivery.prefer_ipv6", "has no effect with one family in ip_families")
	}
}

// sources checks the addresses that we send from.
func (k *checker) sources(d Delivery) {
	names := map[string]int{}
	uses := func(f IPFamily) bool { return len(d.IPFamilies) == 0 || slices.Contains(d.IPFamilies, f) }
	for i, s := range d.Sources {
		at := item("delivery.sources", i)
		k.name(child(at, "name"), s.Name)
		if j, ok := names[s.Name]; ok && s.Name != "" {
			k.errorf(child(at, "name"), "%s is the name of delivery.sources[%d] too", quote(s.Name), j)
		} else {
			names[s.Name] = i
		}
		if !s.IPv4.IsValid() && !s.IPv6.IsValid() && s.Helo == "" && s.HeloIPv4 == "" && s.HeloIPv6 == "" &&
			!k.broken(child(at, "ipv4")) && !k.broken(child(at, "ipv6")) {
			k.errorf(at, "has neither an address nor a name")
		}
		for _, f := range []struct {
			key     string
			written bool
			family  IPFamily
		}{
			{"ipv4", s.IPv4.IsValid(), IPv4}, {"helo_ipv4", s.HeloIPv4 != "", IPv4},
			{"ipv6", s.IPv6.IsValid(), IPv6}, {"helo_ipv6", s.HeloIPv6 != "", IPv6},
		} {
			if f.written && !uses(f.family) {
				k.warnf(child(at, f.key), "has no effect without %s in ip_families", f.family)
			}
		}
	}
}

// dkim checks the keys that we sign with.
func (k *checker) dkim(list []DKIM) {
	type name struct {
		domain   Domain
		selector DKIMSelector
	}
	seen := map[name]int{}
	for i, d := range list {
		n := name{d.Domain, d.Selector}
		if j, ok := seen[n]; ok && d.Domain != "" && d.Selector != "" {
			k.errorf(item("delivery.dkim", i), "%s and %s are those of delivery.dkim[%d] too", d.Domain, d.Selector, j)
			continue
		}
		seen[n] = i
	}
}

// proxy checks what goes through a proxy.
func (k *checker) proxy(d Delivery) {
	if d.Proxy == (Proxy{}) {
		if !k.broken("delivery.proxy") && d.ProxyLogin != (ProxyLogin{}) {
			k.warnf("delivery.proxy_login", "has no effect without proxy")
		}
		return
	}
	if (d.ProxyLogin.User == "") != (d.ProxyLogin.Password == "") {
		k.errorf("delivery.proxy_login", "user and password need each other")
	}
}

// A DKIMSelector is the first part of the name of a DKIM key in DNS.
type DKIMSelector string

// UnmarshalText reads a selector (RFC 6376, Section 3.1).
func (s *DKIMSelector) UnmarshalText(text []byte) error {
	d, err := parseDomain(string(text))
	if err != nil {
		return fmt.Errorf("%s is not a selector: use letters, digits and hyphens, as in %s", quote(string(text)), "mail2026")
	}
	*s = DKIMSelector(d)
	return nil
}

func (DKIMSelector) describe() string { return "selector" }
