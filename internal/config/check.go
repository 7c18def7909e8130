package config

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"
)

// check.go finds what is wrong between values that are each well-formed.

// Validate returns everything that is wrong with the configuration, in no
// particular order. Load has called it; it is for a Config that was made by hand.
func (c *Config) Validate() Problems {
	return c.validate(func(string) bool { return false })
}

// validate is Validate for a configuration of which some keys were found wrong
// already: what follows from those is left out where the key of the problem itself
// does not show it.
func (c *Config) validate(broken func(key string) bool) Problems {
	k := &checker{c: c, broken: broken}
	k.shape(reflect.ValueOf(c).Elem(), schemaOf(reflect.TypeFor[Config]()), "")
	k.listeners()
	k.routes()
	k.backends()
	k.chains()
	k.overload()
	k.store()
	k.delivery()
	k.certificates()
	k.admin()
	return k.problems
}

// A checker gathers what Validate finds.
type checker struct {
	c        *Config
	broken   func(key string) bool
	problems Problems
}

func (k *checker) errorf(key, format string, args ...any) {
	k.problems = append(k.problems, k.c.Problem(key, fmt.Sprintf(format, args...)))
}

func (k *checker) warnf(key, format string, args ...any) {
	k.problems = append(k.problems, k.c.Warning(key, fmt.Sprintf(format, args...)))
}

// shape reports the keys that must have a value and do not, and words that are not
// in their list.
func (k *checker) shape(v reflect.Value, s *schema, path string) {
	switch s.kind {
	case kindMapping:
		for _, f := range s.fields {
			fv, at := v.Field(f.index), child(path, f.key)
			if f.required && (fv.IsZero() || fv.Kind() == reflect.Slice && fv.Len() == 0) {
				k.errorf(at, "is required")
			}
			k.shape(fv, f.schema, at)
		}
	case kindNamed:
		for _, name := range v.MapKeys() {
			k.shape(v.MapIndex(name), s.elem, child(path, name.String()))
		}
	case kindList:
		for i := range v.Len() {
			k.shape(v.Index(i), s.elem, item(path, i))
		}
	case kindScalar:
		if e, ok := v.Interface().(enum); ok && !v.IsZero() {
			if err := checkWord(e, v.String()); err != nil {
				k.errorf(path, "%v", err)
			}
		}
	}
}

func (k *checker) listeners() {
	chains := slices.Sorted(maps.Keys(k.c.Filters.Chains))
	names, taken := map[string]int{}, map[ListenAddress]int{} // the first listener that has it
	for i, l := range k.c.Listeners {
		at := item("listeners", i)
		k.name(child(at, "name"), l.Name)
		if j, ok := names[l.Name]; !ok {
			names[l.Name] = i
		} else if l.Name != "" {
			k.errorf(child(at, "name"), "%s is the name of listeners[%d] too", quote(l.Name), j)
		}
		k.listenAddresses(at, i, l, taken)
		k.refer(child(at, "chain"), "filters.chains", "chain", l.Chain, chains)
		k.relaying(at, l)
		k.listenerTLS(at, l)
		k.auth(child(at, "auth"), l)
		k.frontends(at, l)
		k.idle(at, l)
		k.limits(child(at, "limits"), l.Limits)
	}
}

// listenAddresses checks those of listener i, and enters them into taken.
func (k *checker) listenAddresses(at string, i int, l Listener, taken map[ListenAddress]int) {
	for n, a := range l.Address {
		key := child(at, "address")
		if len(l.Address) > 1 {
			key = item(key, n)
		}
		if j, ok := a.overlapping(taken); ok {
			k.errorf(key, "%s cannot be had next to %s of listeners[%d]", a, k.c.Listeners[j].Address[0], j)
		}
		a.take(taken, i)
		k.socket(key, a.Network, a.Absolute().Address)
	}
}

// idle warns of keys that another key has made idle.
func (k *checker) idle(at string, l Listener) {
	key := child(at, "proxy_protocol")
	if k.written(child(key, "timeout")) && len(l.ProxyProtocol.Trusted) == 0 && !k.broken(child(key, "trusted")) {
		k.warnf(child(key, "timeout"), "has no effect without trusted")
	}
	unix := func(a ListenAddress) bool { return a.Network == "unix" || a == (ListenAddress{}) } // or unreadable
	if key := child(at, "socket_mode"); k.written(key) && !slices.ContainsFunc(l.Address, unix) {
		k.warnf(key, "has no effect without an address unix:/path")
	}
	if key := child(at, "reverse_dns.timeout"); k.written(key) && l.ReverseDNS.Enabled == False {
		k.warnf(key, "has no effect with enabled: false")
	}
	if l.Auth.RequiredText != "" && l.Auth.Required != True && !k.broken(child(at, "auth.required")) {
		k.warnf(child(at, "auth.required_text"), "has no effect without required: true")
	}
}

// written tells whether the value at key was given, and is not the default.
func (k *checker) written(key string) bool {
	_, ok := k.c.origins[key]
	return ok
}

// oldTLS warns of a lowest version that lets old ones in.
func (k *checker) oldTLS(key string, v TLSVersion) {
	if v == TLS10 || v == TLS11 {
		k.warnf(key, "TLS %s is retired (RFC 8996): what is sent under it may be read by others", v)
	}
}

// taken returns the addresses of all listeners.
func (k *checker) taken() map[ListenAddress]int {
	taken := map[ListenAddress]int{}
	for i, l := range k.c.Listeners {
		for _, a := range l.Address {
			a.take(taken, i)
		}
	}
	return taken
}

// listenerTLS checks what is asked of a listener's TLS.
func (k *checker) listenerTLS(at string, l Listener) {
	if l.TLS == ListenerTLSOff && l.TLSMinVersion != "" {
		k.warnf(child(at, "tls_min_version"), "has no effect with tls: off")
	} else {
		k.oldTLS(child(at, "tls_min_version"), l.TLSMinVersion)
	}
	cc := l.ClientCertificates
	key := child(at, "client_certificates")
	verifies := cc.Mode == ClientAuthVerify || cc.Mode == ClientAuthVerifyIfGiven
	switch {
	case verifies && cc.CAFile == "":
		k.errorf(child(key, "ca_file"), "is required with mode: %s", cc.Mode)
	case !verifies && cc.CAFile != "":
		k.warnf(child(key, "ca_file"), "has no effect without mode: verify or verify_if_given")
	case cc.Mode != ClientAuthOff && cc.Mode != "" && l.TLS == ListenerTLSOff:
		k.warnf(key, "has no effect with tls: off")
	}
	public := slices.ContainsFunc(l.Address, func(a ListenAddress) bool { return a.Network == "tcp" && portOf(a.Address) == "25" })
	if l.TLS == ListenerTLSRequired && public {
		k.warnf(child(at, "tls"), "starttls_required on port 25 turns away servers that send in clear (RFC 3207, Section 4)")
	}
}

// auth checks who may log in.
func (k *checker) auth(at string, l Listener) {
	a := l.Auth
	names := slices.Sorted(maps.Keys(k.c.Backends))
	k.refer(child(at, "users"), "backends", "backend", a.Users.Backend, names)
	has := func(m Mechanism) bool { return slices.Contains(a.Mechanisms, m) }
	switch {
	case a.Users == (Users{}):
		if a.Required == True || len(a.Mechanisms) > 0 {
			k.errorf(child(at, "users"), "is required: it says who decides about logins")
		}
		return
	case a.Users.Filter && l.Chain == "":
		k.errorf(child(at, "users"), "a filter is to decide, and the listener has no chain")
	case a.Users.File != "" && (has("XOAUTH2") || has("OAUTHBEARER")):
		k.errorf(child(at, "mechanisms"), "no file can judge tokens: XOAUTH2 and OAUTHBEARER need users: backend:NAME or filter")
	case a.Users.File == "" && (has("CRAM-MD5") || has("SCRAM-SHA-256") || has("SCRAM-SHA-256-PLUS")):
		k.errorf(child(at, "mechanisms"), "CRAM-MD5 and SCRAM need users: file:PATH, since the password does not come over")
	}
	if has("EXTERNAL") && l.ClientCertificates.Mode != ClientAuthVerify && l.ClientCertificates.Mode != ClientAuthVerifyIfGiven {
		k.errorf(child(at, "mechanisms"), "EXTERNAL needs client_certificates with mode: verify or verify_if_given")
	}
	k.loginsPossible(at, l)
}

// loginsPossible finds what keeps everybody from logging in. Where a login is required that
// keeps out all mail.
func (k *checker) loginsPossible(at string, l Listener) {
	for _, d := range []struct {
		key   string
		words []string
	}{{"disabled_commands", l.DisabledCommands}, {"disabled_extensions", l.DisabledExtensions}} {
		if i := slices.IndexFunc(d.words, isWord("AUTH")); i >= 0 {
			k.errorf(item(child(parent(at), d.key), i), "nobody can log in without AUTH, and auth.users says who may")
		}
	}
	// A proxy in front may end TLS, and says so.
	if l.Auth.Insecure == True || k.broken(child(at, "insecure")) ||
		len(l.ProxyProtocol.Trusted) > 0 || k.broken(child(parent(at), "proxy_protocol.trusted")) {
		return
	}
	why := ""
	switch {
	case l.TLS == ListenerTLSOff:
		why = "tls is off"
	case l.TLS == ListenerTLSStartTLS && slices.ContainsFunc(l.DisabledCommands, isWord("STARTTLS")):
		why = "STARTTLS is disabled"
	default:
		return
	}
	if l.Auth.Required == True {
		k.errorf(child(at, "required"), "nobody can log in, and so no mail can pass: %s and insecure is not set", why)
		return
	}
	k.warnf(at, "nobody can log in: %s and insecure is not set", why)
}

// isWord returns what tells whether a text is a word of the protocol, however it is written.
func isWord(word string) func(string) bool {
	return func(s string) bool { return strings.EqualFold(strings.TrimSpace(s), word) }
}

// frontends checks whom a listener believes about others.
func (k *checker) frontends(at string, l Listener) {
	for _, f := range []struct {
		key     string
		trusted Networks
	}{{"proxy_protocol", l.ProxyProtocol.Trusted}, {"xclient", l.XClient.Trusted}, {"xforward", l.XForward.Trusted}} {
		if all := f.trusted.everyone(); all != "" {
			k.errorf(child(child(at, f.key), "trusted"), "%s is every %s address: anybody could be anybody", shorten(f.trusted.list()), all)
		}
	}
	if l.XClient.Relay == True && l.Accept != AcceptAny {
		k.warnf(child(child(at, "xclient"), "relay"), "has no effect without accept: any")
	}
	if key := child(at, "submission"); l.Accept != AcceptAny {
		for _, of := range []string{"senders", "complete", "sign"} {
			if k.written(child(key, of)) {
				k.warnf(child(key, of), "has no effect without accept: any")
			}
		}
	}
}

// name checks a name that the operator made up, if there is one.
func (k *checker) name(key, name string) {
	if name != "" && !validName(name) {
		k.errorf(key, "%s is not a name: use up to 64 letters, digits, dots, hyphens and underscores", quote(name))
	}
}

// maxSuggest is how many names are compared with one that does not exist. A file
// can have ten thousand of each.
const maxSuggest = 200

// refer checks that a name that is referred to is among the names, which are sorted.
func (k *checker) refer(key, where, what, name string, names []string) {
	if _, ok := slices.BinarySearch(names, name); ok || name == "" || k.broken(where) {
		return
	}
	hint := ""
	if near, ok := nearest(name, names[:min(len(names), maxSuggest)]); ok {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	k.errorf(key, "there is no %s %s in %s%s", what, quote(name), where, hint)
}

// maxSocketPath is the longest path of a unix socket, in bytes, on the system that
// allows the least of those we run on.
const maxSocketPath = 103

func (k *checker) socket(key, network, path string) {
	if network == "unix" && len(path) > maxSocketPath {
		k.errorf(key, "the path of the socket has %d bytes; at most %d work on every system", len(path), maxSocketPath)
	}
}

// relaying refuses an open relay: whoever may reach us could send mail to anybody
// under our name.
func (k *checker) relaying(at string, l Listener) {
	key := child(at, "trusted_networks")
	switch all := l.TrustedNetworks.everyone(); {
	case l.Accept == AcceptAny && len(l.TrustedNetworks) == 0 && l.Auth.Users == (Users{}):
		k.warnf(child(at, "accept"), "any relays for nobody while trusted_networks is empty and nobody can log in")
	case l.Accept != AcceptAny && all != "":
		k.warnf(key, "%s is every %s address: nobody is held to the rates and the greet delay", shorten(l.TrustedNetworks.list()), all)
	case l.Accept == AcceptAny && all != "":
		k.errorf(key, "%s is every %s address: with accept: any this would be an open relay", shorten(l.TrustedNetworks.list()), all)
	}
}

// fastLink is the speed of a client that we take for fast, in bytes per second: 100
// Mbit/s. Limits that ask for more than that are a mistake.
const fastLink = 12_500_000

// limits refuses limits under which no client could send a message of the size that
// is announced, and warns of those below what RFC 5321, Section 4.5.3.1 asks for.
func (k *checker) limits(at string, l Limits) {
	if l.DataMinRate > fastLink {
		k.errorf(child(at, "data_min_rate"), "asks for %s per second, more than a link of 100 Mbit/s carries: no message of message_size could pass", l.DataMinRate)
	}
	if need := int64(l.MessageSize / fastLink); l.SessionTimeout > 0 && int64(l.SessionTimeout/time.Second) < need {
		k.errorf(child(at, "session_timeout"), "%v is too short for message_size: to send %s takes %d s on a link of 100 Mbit/s", l.SessionTimeout, l.MessageSize, need)
	}
	least(k, child(at, "message_size"), l.MessageSize, 64<<10, "4.5.3.1.7")
	least(k, child(at, "recipients"), l.Recipients, 100, "4.5.3.1.8")
	if n := l.LineLength; n != 0 && (n < minLine || n > maxLine) {
		k.errorf(child(at, "line_length"), "%s is not between %s and %s (RFC 5321, Section 4.5.3.1.4 asks for the former)", n, Size(minLine), Size(maxLine))
	}
	if l.HeaderSize > l.MessageSize && l.MessageSize > 0 && k.written(child(at, "header_size")) {
		k.warnf(child(at, "header_size"), "%s is more than message_size, %s, which comes first", l.HeaderSize, l.MessageSize)
	}
}

// The longest command line is one of at least minLine octets, which the standard gives every
// client, and at most maxLine, so that a connection needs little memory.
const (
	minLine Size = 512
	maxLine Size = 32 << 10
)

// leastMemory is what the program needs to be of any use: it has about 20 MiB when nobody is
// there, and a filter has 16.
const leastMemory Size = 64 << 20

// overload refuses limits of the whole that leave nothing for a message.
func (k *checker) overload() {
	o := k.c.Overload
	if o.Memory > 0 && o.Memory < leastMemory {
		k.errorf("overload.memory", "%s is less than %s, which the program needs for itself: no mail could pass", o.Memory, leastMemory)
	}
	for i, l := range k.c.Listeners {
		size := child(item("listeners", i), "limits.message_size")
		switch {
		case o.Spool == 0 || o.Spool >= l.Limits.MessageSize:
		case k.written("overload.spool"):
			k.errorf("overload.spool", "%s has no room for one message of %s, which %s allows", o.Spool, l.Limits.MessageSize, size)
			return
		default:
			k.errorf(size, "%s is more than overload.spool, %s: no such message could pass", l.Limits.MessageSize, o.Spool)
		}
	}
}

// least warns of a limit below what the standard asks for.
func least[T cmp.Ordered](k *checker, key string, got, want T, section string) {
	var zero T
	if got > zero && got < want {
		k.warnf(key, "%v is less than the %v of RFC 5321, Section %s", got, want, section)
	}
}

func (k *checker) routes() {
	names := slices.Sorted(maps.Keys(k.c.Backends))
	first := map[Pattern]int{} // the route that a pattern was first seen in
	for i, r := range k.c.Routes {
		at := item("routes", i)
		k.refer(child(at, "backend"), "backends", "backend", r.Backend, names)
		k.route(at, r)
		k.shadowed(at, i, r, first)
		for j, address := range r.Recipients {
			_, domain, _ := strings.Cut(string(address), "@")
			if by, ok := earlierPattern(Pattern(domain), first); ok && first[by] < i {
				k.warnf(item(child(at, "recipients"), j), "is never looked at: %s", taken(Pattern(domain), by, first[by]))
			}
		}
	}
	if len(k.c.Routes) == 0 && len(k.c.Listeners) > 0 && !k.c.SendsOut() {
		k.warnf("routes", "there are none: no recipient is ours")
	}
}

// route checks that a route leads from somewhere to somewhere.
func (k *checker) route(at string, r Route) {
	empty := func(key string, n int) bool { return n == 0 && !k.broken(child(at, key)) }
	if empty("domains", len(r.Domains)) && empty("recipients", len(r.Recipients)) {
		k.errorf(child(at, "domains"), "is required, or recipients")
	}
	switch {
	case r.Backend != "" && r.Handler != "":
		k.errorf(child(at, "handler"), "does not go with backend")
	case empty("backend", len(r.Backend)) && empty("handler", len(r.Handler)):
		k.errorf(child(at, "backend"), "is required, or handler")
	case r.Handler != "" && slices.Contains(r.Domains, "*"):
		k.errorf(child(at, "handler"), "takes reports about our own domains; name them, or single recipients")
	}
}

// shadowed warns of domains that an earlier route takes all mail of, and adds the
// route's own to first.
func (k *checker) shadowed(at string, index int, r Route, first map[Pattern]int) {
	type shadow struct {
		domain int
		by     Pattern
	}
	var found []shadow
	earlier := 0 // domains that another route takes
	for j, p := range r.Domains {
		if by, ok := earlierPattern(p, first); ok {
			found = append(found, shadow{j, by})
			if first[by] < index {
				earlier++
			}
		} else if p != "" {
			first[p] = index
		}
	}
	if n := len(found); n > 0 && n == len(r.Domains) && earlier == n {
		s := found[0]
		k.warnf(at, "no message can get here: %s", taken(r.Domains[s.domain], s.by, first[s.by]))
		return
	}
	for _, s := range found {
		k.warnf(item(child(at, "domains"), s.domain), "is never looked at: %s", taken(r.Domains[s.domain], s.by, first[s.by]))
	}
}

func taken(p, by Pattern, route int) string {
	if p == by {
		return fmt.Sprintf("%s is in routes[%d] already", quote(string(p)), route)
	}
	return fmt.Sprintf("%s is matched by %s in routes[%d]", quote(string(p)), quote(string(by)), route)
}

// earlierPattern returns a pattern seen before that matches all that p matches.
func earlierPattern(p Pattern, first map[Pattern]int) (by Pattern, found bool) {
	if _, ok := first[p]; ok {
		return p, true
	}
	found = p.wider(func(w Pattern) bool {
		_, ok := first[w]
		by = w
		return ok
	})
	return by, found
}

func (k *checker) backends() {
	used := map[string]bool{}
	for _, r := range k.c.Routes {
		used[r.Backend] = true
	}
	for name, b := range k.c.Backends {
		at := child("backends", name)
		k.name(at, name)
		if !used[name] && len(k.c.Routes) > 0 {
			k.warnf(at, "no route leads here")
		}
		if b.CAFile != "" && b.TLS != BackendTLSVerify {
			k.warnf(child(at, "ca_file"), "has no effect without tls: verify")
		}
		if b.TLSName != "" && b.TLS != BackendTLSVerify {
			k.warnf(child(at, "tls_name"), "has no effect without tls: verify")
		}
		k.addresses(child(at, "addresses"), b)
		if b.Separator != "" && b.Recipients.File == "" {
			k.warnf(child(at, "recipient_separator"), "has no effect without recipients: file:PATH")
		}
		k.callout(child(at, "callout"), b)
		if (b.Login.User == "") != (b.Login.Password == "") {
			k.errorf(child(at, "login"), "user and password need each other")
		}
		if b.Login.User != "" && b.XClient == True {
			k.errorf(child(at, "xclient"), "does not go with login: behind XCLIENT a backend forgets who logged in")
		}
		if len(b.Separator) > 1 {
			k.errorf(child(at, "recipient_separator"), "must be one character")
		}
	}
}

// callout warns of settings of a callout where there is none.
func (k *checker) callout(at string, b Backend) {
	if b.Recipients.Word == RecipientsCallout || k.broken(child(parent(at), "recipients")) {
		return
	}
	for _, key := range []string{"positive", "negative", "timeout", "stale", "entries"} {
		if k.written(child(at, key)) {
			k.warnf(child(at, key), "has no effect without recipients: callout")
		}
	}
}

func (k *checker) addresses(at string, b Backend) {
	seen := map[BackendAddress]bool{}
	for i, group := range b.Addresses {
		if len(group) == 0 {
			k.errorf(item(at, i), "is empty")
		}
		for j, a := range group {
			key := item(at, i)
			if len(group) > 1 {
				key = item(key, j)
			}
			if a == (BackendAddress{}) {
				continue
			}
			if seen[a] {
				k.warnf(key, "%s is there twice", a)
			}
			seen[a] = true
			k.address(key, a, b)
		}
	}
}

func (k *checker) address(key string, a BackendAddress, b Backend) {
	k.socket(key, a.Network, a.Address)
	if a.ImplicitTLS && b.TLS == BackendTLSOff {
		k.errorf(key, "%s begins with TLS, and tls is off", a)
	}
	if a.Network == "unix" && b.TLS == BackendTLSVerify && b.TLSName == "" {
		k.errorf(key, "%s has no host whose certificate tls: verify could check; set tls_name", a)
	}
	// RFC 2033, Section 5: LMTP is not to be used on port 25, where a mail server
	// that takes it for SMTP would answer once for all recipients.
	if a.Protocol == ProtocolLMTP && a.Network == "tcp" && portOf(a.Address) == "25" {
		k.warnf(key, "%s speaks LMTP on the port of SMTP", a)
	}
}

// SendsOut tells whether somebody may send to where no route leads: on a listener with accept:
// any, while no route is for every domain.
func (c *Config) SendsOut() bool { return c.sendsOut() != "" }

// sendsOut returns the key that says so, empty if nothing does.
func (c *Config) sendsOut() string {
	for _, r := range c.Routes {
		if slices.Contains(r.Domains, "*") {
			return ""
		}
	}
	for i, l := range c.Listeners {
		if l.Accept == AcceptAny && (len(l.TrustedNetworks) > 0 || l.Auth.Users != (Users{})) {
			return child(item("listeners", i), "accept")
		}
	}
	return ""
}

// needsStore returns a key that needs a store, empty if none does.
func (c *Config) needsStore() string {
	if key := c.sendsOut(); key != "" {
		return key
	}
	for i, r := range c.Routes {
		if r.Handler != "" {
			return child(item("routes", i), "handler")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Backends)) {
		b := c.Backends[name]
		switch {
		case b.Mode == ModeQueue:
			return child(child("backends", name), "mode")
		case b.WhenDown == WhenDownQueue:
			return child(child("backends", name), "when_down")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Filters.Chains)) {
		for i, f := range c.Filters.Chains[name] {
			at := item(child("filters.chains", name), i)
			if f.OnError.has(OnErrorQuarantine) {
				return child(at, "on_error")
			}
			if f.OnBroken.has(OnErrorQuarantine) {
				return child(at, "on_broken")
			}
			if f.Grant.DSN.Given {
				return child(item(child("filters.chains", name), i), "grant.dsn")
			}
		}
	}
	return ""
}

// store checks where messages are kept.
func (k *checker) store() {
	s := k.c.Store
	if key := k.c.needsStore(); key != "" && s.Driver == StoreNone {
		k.errorf(key, "needs a store, and store.driver is none")
	}
	if s.Driver == StorePostgres {
		if s.URL == "" {
			k.errorf("store.url", "is required with driver: postgres")
		}
		if s.Key == "" {
			k.errorf("store.key", "is required with driver: postgres: it encrypts private keys, which others could read there")
		}
	}
	if s.URL != "" && s.Driver != StorePostgres {
		k.warnf("store.url", "has no effect without driver: postgres")
	}
	for name, b := range k.c.Backends {
		at := child("backends", name)
		vouched := b.Recipients.File != "" || b.Recipients.Word == RecipientsCallout || b.Recipients.Word == RecipientsAccept
		if b.WhenDown == WhenDownQueue && !vouched {
			k.warnf(child(at, "when_down"), "queue has no effect with recipients: pass: nobody would know which recipients exist")
		}
		if b.Recipients.Word == RecipientsAccept && (b.Mode == ModeQueue || b.WhenDown == WhenDownQueue) {
			k.warnf(child(at, "recipients"), "accept takes mail for anybody, and what the backend refuses later is returned to senders that may be forged")
		}
	}
	if s.Timeout != 0 && s.Timeout < time.Second {
		k.errorf("store.timeout", "is less than 1s")
	}
}

func (k *checker) chains() {
	used := map[string]bool{k.c.Delivery.Chain: true}
	largest := map[string]int{} // the listener with the largest messages
	for i, l := range k.c.Listeners {
		used[l.Chain] = true
		if j, ok := largest[l.Chain]; !ok || l.Limits.MessageSize > k.c.Listeners[j].Limits.MessageSize {
			largest[l.Chain] = i
		}
	}
	for name, chain := range k.c.Filters.Chains {
		at := child("filters.chains", name)
		k.name(at, name)
		if !used[name] {
			k.warnf(at, "no listener uses it")
		}
		labels := map[string]int{}
		for i, f := range chain {
			k.filter(item(at, i), f)
			if j, ok := largest[name]; ok {
				k.messageCPU(item(at, i), f.Limits, j)
			}
			if j, ok := labels[f.Name]; ok && f.Name != "" {
				k.warnf(item(at, i), "is called %s in the log, as %s is; give it a name", quote(f.Name), item(at, j))
			}
			labels[f.Name] = i
		}
	}
}

// The memory of a WebAssembly instance comes in pages of 64 KiB; the host gives no
// instance more than 64 MiB.
const (
	wasmPage   Size = 64 << 10
	wasmMemory Size = 64 << 20
)

func (k *checker) filter(at string, f Filter) {
	k.onErrors(child(at, "on_error"), f.OnError)
	k.onErrors(child(at, "on_broken"), f.OnBroken)
	k.name(child(at, "name"), f.Name)
	if m := f.Module; m.Name != "" && !m.Builtin && m.File == "" {
		k.errorf(child(at, "module"), "%s would be in filters.dir, which is not set", quote(m.Name))
	}
	k.grant(child(at, "grant"), f.Grant)
	k.filterSizes(child(at, "limits"), f.Limits)
	k.filterTime(child(at, "limits"), f.Limits)
}

// filterSizes checks what a filter may take and give that is no time. The caps are the host's.
func (k *checker) filterSizes(at string, l FilterLimits) {
	for _, s := range []struct {
		key                string
		value, least, most Size
	}{
		{"memory", l.Memory, wasmPage, wasmMemory}, {"stack", l.Stack, 16 << 10, 512 << 10}, {"session_values", l.SessionValues, 1, 1 << 20},
		{"header_size", l.HeaderSize, 1, 1 << 20}, {"body_growth", l.BodyGrowth, 1, 64 << 20},
	} {
		if s.value != 0 && (s.value < s.least || s.value > s.most) {
			k.errorf(child(at, s.key), "%s is not between %s and %s", s.value, s.least, s.most)
		}
	}
	for _, n := range []struct {
		key         string
		value, most int
	}{{"log_lines", l.LogLines, 1000}, {"header_edits", l.HeaderEdits, 4096}, {"recipients", l.Recipients, 1000}} {
		if n.value < 0 || n.value > n.most {
			k.errorf(child(at, n.key), "%d is not between 1 and %d", n.value, n.most)
		}
	}
}

// What a filter's CPU time may be. maxMessageCPU is the most that a call with a message gets
// whatever its limits say, and minPerMiB what it takes to look at a MiB at all.
const (
	maxCPU        = 500 * time.Millisecond
	maxCPUSession = 5 * time.Second
	maxWall       = time.Minute
	maxBoot       = time.Minute
	maxMessageCPU = 10 * time.Second
	minPerMiB     = 50 * time.Microsecond
)

func (k *checker) filterTime(at string, l FilterLimits) {
	for _, t := range []struct {
		key         string
		value, most time.Duration
	}{
		{"cpu", l.CPU, maxCPU}, {"cpu_message", l.CPUMessage, maxCPU}, {"cpu_per_mib", l.CPUPerMiB, maxCPU},
		{"cpu_session", l.CPUSession, maxCPUSession}, {"wall", l.Wall, maxWall}, {"boot", l.Boot, maxBoot},
	} {
		if t.value > t.most {
			k.errorf(child(at, t.key), "%v is more than %v", t.value, t.most)
		}
	}
}

// messageCPU refuses limits under which a filter could not let the largest message of the
// listener with index i pass.
func (k *checker) messageCPU(at string, l FilterLimits, i int) {
	size := k.c.Listeners[i].Limits.MessageSize
	key := child(item("listeners", i), "limits.message_size")
	mib := float64(size) / (1 << 20)
	need := l.CPUMessage + time.Duration(mib*float64(l.CPUPerMiB))
	switch per := child(at, "limits.cpu_per_mib"); {
	case need > maxMessageCPU:
		k.errorf(per, "gives a message of %s, which %s allows, %v with cpu_message, but no call gets more than %v: lower cpu_per_mib or message_size", size, key, need, maxMessageCPU)
	case need < time.Duration(mib*float64(minPerMiB)):
		k.errorf(per, "leaves %v for a message of %s, which %s allows, and no filter can look at it in that: raise cpu_per_mib, or lower message_size", need, size, key)
	}
}

// has tells whether one of the words is w.
func (o OnErrors) has(w OnError) bool { return slices.Contains(slices.Collect(maps.Values(o)), w) }

// onErrors checks answers by hook. What a default says fits where it can: the rest is 451.
func (k *checker) onErrors(at string, o OnErrors) {
	for _, hook := range slices.Sorted(maps.Keys(o)) {
		switch {
		case hook == "reset" || hook == "close":
			k.errorf(child(at, hook), "has no effect: at %s filters only observe, and nothing is answered", hook)
		case o[hook] == OnErrorQuarantine && slices.Contains([]string{"connect", "secure", "helo", "auth"}, hook):
			k.errorf(child(at, hook), "quarantine holds a message, and at %s there is none yet; use tempfail, accept or reject", hook)
		case hook != DefaultHook && !slices.Contains(Hooks(), hook): // in a Config made by hand
			k.errorf(child(at, hook), "is no hook")
		}
	}
}

func (k *checker) certificates() {
	const at = "certificates"
	c := k.c.Certificates
	k.oldTLS(child(at, "min_version"), c.MinVersion)
	acme := child(at, "acme")
	if len(c.Names) == 0 {
		if c.ACME.Email != "" || c.ACME.Agreed == True {
			k.warnf(acme, "has no effect without certificates.names")
		}
		return
	}
	first := map[CertificateName]int{}
	for i, name := range c.Names {
		if j, ok := first[name]; ok && name != "" {
			k.errorf(item(child(at, "names"), i), "%s is names[%d] too", quote(string(name)), j)
		} else {
			first[name] = i
		}
	}
	if c.ACME.Email == "" && !k.broken(child(acme, "email")) {
		k.errorf(child(acme, "email"), "is required with certificates.names: the authority writes to it")
	}
	if c.ACME.Agreed != True && !k.broken(child(acme, "agreed")) {
		k.errorf(child(acme, "agreed"), "must be true with certificates.names: certificates are given to those who agree to the authority's terms of service")
	}
	k.challenges(acme, c.ACME)
}

// challenges checks where those of the authority are answered.
func (k *checker) challenges(at string, a ACME) {
	if a.HTTP01.Off && a.TLSALPN01.Off {
		k.errorf(at, "http01 and tlsalpn01 are both off: the authority needs one of them to see that the names are ours")
	}
	taken := k.taken()
	admin := map[ListenAddress]int{}
	if k.c.Admin.Tokens != "" {
		k.c.Admin.Address.take(admin, 0)
	}
	for _, c := range []struct {
		key  string
		addr ChallengeAddress
	}{{"http01", a.HTTP01}, {"tlsalpn01", a.TLSALPN01}} {
		if c.addr.Off || c.addr.Address == "" {
			continue
		}
		if j, ok := c.addr.listen().overlapping(taken); ok {
			k.errorf(child(at, c.key), "%s cannot be had next to %s of listeners[%d]", c.addr, k.c.Listeners[j].Address[0], j)
		}
		if _, ok := c.addr.listen().overlapping(admin); ok {
			k.errorf(child(at, c.key), "%s cannot be had next to %s of admin.address", c.addr, k.c.Admin.Address)
		}
	}
	if a.HTTP01.Address != "" && !a.TLSALPN01.Off {
		other := map[ListenAddress]int{}
		a.HTTP01.listen().take(other, 0)
		if _, ok := a.TLSALPN01.listen().overlapping(other); ok {
			k.errorf(child(at, "tlsalpn01"), "%s cannot be had next to %s of http01", a.TLSALPN01, a.HTTP01)
		}
	}
}
