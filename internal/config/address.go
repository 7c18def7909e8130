package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// address.go holds everything that names something else: domains, sockets, files
// and modules.

// Domain is a domain name in the form it has in DNS: lower case, A-labels.
type Domain string

// UnmarshalText reads a domain name. U-labels become A-labels by the look-up rules
// of IDNA2008 (RFC 5891, Section 5).
func (d *Domain) UnmarshalText(text []byte) error {
	name, err := parseDomain(string(text))
	*d = Domain(name)
	return err
}

func (Domain) describe() string { return "domain name" }

// parseDomain returns the DNS form of a domain name.
func parseDomain(text string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("%s is not a domain name: %s", quote(text), why)
	}
	name := strings.ToLower(text)
	switch {
	case len(text) > 4*253: // four bytes are the most for one letter; IDNA takes quadratic time
		return bad("it is longer than 253 characters")
	case !utf8.ValidString(text):
		return bad("it is not UTF-8")
	}
	if !plainASCII(name) {
		var err error
		if name, err = idna.Lookup.ToASCII(text); err != nil {
			return bad("it has characters that no domain has")
		}
	}
	if _, err := netip.ParseAddr(text); err == nil {
		return bad("it is an address")
	}
	if len(name) > 253 { // RFC 1035, Section 2.3.4, without the root label
		return bad("it is longer than 253 characters")
	}
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if why := badLabel(l); why != "" {
			return bad(why)
		}
	}
	// RFC 3696, Section 2: a top-level domain is not all digits, so that a name
	// cannot be taken for an address.
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return bad("its last part is a number")
	}
	return name, nil
}

// plainASCII reports whether IDNA has nothing to say about a name. Names without
// A-labels are not asked about, since the rules would refuse existing ones with
// hyphens in third and fourth place.
func plainASCII(name string) bool {
	for i := range len(name) {
		if name[i] >= 0x80 {
			return false
		}
	}
	return !strings.HasPrefix(name, "xn--") && !strings.Contains(name, ".xn--")
}

// badLabel returns what is wrong with one label, by RFC 1123, Section 2.1 and
// RFC 1035, Section 2.3.4.
func badLabel(l string) string {
	switch {
	case l == "":
		return "it has an empty part"
	case len(l) > 63:
		return "a part is longer than 63 characters"
	case l[0] == '-' || l[len(l)-1] == '-':
		return "a part begins or ends with a hyphen"
	case strings.ContainsFunc(l, notLDH):
		return "it has characters that no domain has"
	}
	return ""
}

func notLDH(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
}

// A Pattern is a domain, or with "*." in front all names below it, or "*" for every
// domain, which a route gives only to those who may relay.
type Pattern string

// UnmarshalText reads a domain name, a wildcard such as *.example.com, or *.
func (p *Pattern) UnmarshalText(text []byte) error {
	if string(text) == "*" {
		*p = "*"
		return nil
	}
	name, wild := strings.CutPrefix(string(text), "*.")
	if strings.Contains(name, "*") {
		return fmt.Errorf("%s is not a pattern: a wildcard is * alone, or *. in front of a domain, such as *.example.com", quote(string(text)))
	}
	d, err := parseDomain(name)
	if wild && err == nil {
		d = "*." + d
	}
	*p = Pattern(d)
	return err
}

func (Pattern) describe() string { return "domain pattern" }

// Matches reports whether a domain, lower case and in A-labels, is the pattern's
// domain, or for a wildcard is any number of labels below it. The wildcard's own
// domain does not match.
func (p Pattern) Matches(domain string) bool {
	if suffix, wild := strings.CutPrefix(string(p), "*"); wild {
		return len(domain) > len(suffix) && strings.HasSuffix(domain, suffix)
	}
	return string(p) == domain
}

// wider calls yield with each wildcard that matches all that p matches, p itself
// excepted, until it returns true, and reports whether it did.
func (p Pattern) wider(yield func(Pattern) bool) bool {
	rest := strings.TrimPrefix(string(p), "*.")
	for {
		_, after, ok := strings.Cut(rest, ".")
		if !ok {
			return false
		}
		if yield(Pattern("*." + after)) {
			return true
		}
		rest = after
	}
}

// A ListenAddress is what a listener listens on.
type ListenAddress struct {
	Network string // "tcp" or "unix", as for net.Listen, or "systemd"
	Address string // host:port, the path of the socket, or the name that systemd has for it
}

// UnmarshalText reads host:port, :port, unix:/path or systemd:NAME. Port 0 asks the system for a
// free one.
func (l *ListenAddress) UnmarshalText(text []byte) error {
	t := string(text)
	if path, unix := strings.CutPrefix(t, "unix:"); unix {
		if path == "" {
			return fmt.Errorf("%s lacks the path of the socket", quote(t))
		}
		*l = ListenAddress{Network: "unix", Address: path}
		return nil
	}
	if name, systemd := strings.CutPrefix(t, "systemd:"); systemd {
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == ':' }) {
			return fmt.Errorf("%s lacks the name that systemd has for the socket", quote(t))
		}
		*l = ListenAddress{Network: "systemd", Address: name}
		return nil
	}
	host, port, err := net.SplitHostPort(t)
	if err != nil {
		return fmt.Errorf("%s is not an address to listen on: write host:port, :port, unix:/path or systemd:NAME", quote(t))
	}
	if host != "" {
		if host, err = parseHost(host); err != nil {
			return err
		}
	}
	if _, err := parsePort(port, 0); err != nil {
		return err
	}
	*l = ListenAddress{Network: "tcp", Address: net.JoinHostPort(host, port)}
	return nil
}

// String returns the address as it is written in the file.
func (l ListenAddress) String() string {
	if l.Network == "tcp" {
		return l.Address
	}
	return l.Network + ":" + l.Address
}

func (ListenAddress) describe() string { return "listen address" }

// Absolute returns the address with a whole path, if it is one: what is relative after Load is
// so to the working directory.
func (l ListenAddress) Absolute() ListenAddress {
	if l.Network != "unix" || strings.HasPrefix(l.Address, "@") {
		return l
	}
	if path, err := filepath.Abs(l.Address); err == nil { // it fails without a working directory
		l.Address = path
	}
	return l
}

func (l *ListenAddress) rebase(dir string) {
	if l.Network == "unix" && !strings.HasPrefix(l.Address, "@") { // @ is Linux's space of names without files
		l.Address = inDir(dir, l.Address)
	}
}

// overlapping returns the listener in taken that l cannot be had next to. An address
// that stands for all of the machine takes its port from every other; port 0 is
// another port each time.
func (l ListenAddress) overlapping(taken map[ListenAddress]int) (int, bool) {
	host, port, _ := net.SplitHostPort(l.Address)
	if l.Network == "tcp" && port == "0" {
		return 0, false
	}
	if l.Network == "tcp" && !unspecified(host) {
		if i, ok := taken[l]; ok {
			return i, true
		}
		l = ListenAddress{"all", port}
	} else if l.Network == "tcp" {
		l = ListenAddress{"any", port}
	}
	i, ok := taken[l]
	return i, ok
}

// take enters listener i into taken: under its address, under "any" for its port,
// and if it has the port on all addresses, under "all" for it.
func (l ListenAddress) take(taken map[ListenAddress]int, i int) {
	keys := []ListenAddress{l}
	if host, port, _ := net.SplitHostPort(l.Address); l.Network == "tcp" {
		keys = append(keys, ListenAddress{"any", port})
		if unspecified(host) {
			keys = append(keys, ListenAddress{"all", port})
		}
	}
	for _, key := range keys {
		if _, ok := taken[key]; !ok && l != (ListenAddress{}) {
			taken[key] = i
		}
	}
}

func unspecified(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}

// parseHost returns an address or a domain name in its plain form.
func parseHost(host string) (string, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.String(), nil
	}
	return parseDomain(host)
}

func parsePort(port string, least uint64) (uint64, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n < least {
		return 0, fmt.Errorf("%s is not a port number", quote(port))
	}
	return n, nil
}

// A BackendAddress is one address of a backend and the protocol spoken there.
type BackendAddress struct {
	Protocol    Protocol
	ImplicitTLS bool   // smtps: the connection begins with the TLS handshake
	Network     string // "tcp" or "unix", as for net.Dial
	Address     string // host:port, or the path of the socket
}

// schemes of backend addresses, with the port each has when none is written. LMTP
// has no registered one; 24 is the convention.
func schemes() map[string]struct {
	address BackendAddress
	port    string
} {
	return map[string]struct {
		address BackendAddress
		port    string
	}{
		"smtp":      {BackendAddress{ProtocolSMTP, false, "tcp", ""}, "25"},
		"smtps":     {BackendAddress{ProtocolSMTP, true, "tcp", ""}, "465"},
		"lmtp":      {BackendAddress{ProtocolLMTP, false, "tcp", ""}, "24"},
		"smtp+unix": {BackendAddress{ProtocolSMTP, false, "unix", ""}, ""},
		"lmtp+unix": {BackendAddress{ProtocolLMTP, false, "unix", ""}, ""},
	}
}

// UnmarshalText reads an address such as lmtp://10.0.0.5:24 or
// smtp+unix:///run/mail.sock.
func (b *BackendAddress) UnmarshalText(text []byte) error {
	t := string(text)
	scheme, rest, ok := strings.Cut(t, "://")
	s, known := schemes()[strings.ToLower(scheme)]
	if !ok || !known {
		return fmt.Errorf("%s is not a backend address: write smtp://, lmtp:// or smtps:// with host:port, or smtp+unix:// or lmtp+unix:// with a path", quote(behindLogin(t)))
	}
	*b = s.address
	if b.Network == "unix" {
		b.Address = rest
		if rest == "" {
			return fmt.Errorf("%s lacks the path of the socket", quote(t))
		}
		return nil
	}
	address, err := dialAddress(rest, s.port)
	b.Address = address
	return err
}

// behindLogin is what may be shown of an address: what stands before "@" may be a password.
func behindLogin(s string) string { return s[strings.LastIndexByte(s, '@')+1:] }

// dialAddress returns host:port for a host with or without a port.
func dialAddress(rest, defaultPort string) (string, error) {
	if address := behindLogin(rest); address != rest {
		return "", fmt.Errorf("a login stands before %s, and does not belong there", quote(address))
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		host, port = strings.TrimSuffix(strings.TrimPrefix(rest, "["), "]"), defaultPort
	}
	if host == "" {
		return "", fmt.Errorf("%s lacks a host", quote(rest))
	}
	if host, err = parseHost(host); err != nil {
		return "", err
	}
	n, err := parsePort(port, 1)
	if err != nil {
		return "", err
	}
	return net.JoinHostPort(host, strconv.FormatUint(n, 10)), nil
}

// Host returns the host of the address, without its port; "" for a socket.
func (b BackendAddress) Host() string {
	if b.Network == "unix" {
		return ""
	}
	host, _, _ := net.SplitHostPort(b.Address)
	return host
}

// String returns the address as it is written in the file.
func (b BackendAddress) String() string {
	for scheme, s := range schemes() {
		a := s.address
		a.Address = b.Address
		if a == b {
			return scheme + "://" + b.Address
		}
	}
	return b.Address
}

func (BackendAddress) describe() string { return "backend address" }

func (b *BackendAddress) rebase(dir string) {
	if b.Network == "unix" && !strings.HasPrefix(b.Address, "@") {
		b.Address = inDir(dir, b.Address)
	}
}

// Path is the path of a file or folder. Relative to the folder of the configuration
// file if it was written there, to the working directory if it came from the
// environment or a flag. Empty means none.
type Path string

func (Path) describe() string { return "path" }

func (p *Path) rebase(dir string) { *p = Path(inDir(dir, string(*p))) }

func inDir(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}

// A Module says where a filter's code is.
type Module struct {
	Name    string // without builtin:, folder and .wasm
	Builtin bool   // one that ships with the gateway
	File    string // where it is on disk; empty for Builtin
}

// UnmarshalText reads builtin:NAME, NAME, or a path that ends in .wasm.
func (m *Module) UnmarshalText(text []byte) error {
	t := string(text)
	name, builtin := strings.CutPrefix(t, "builtin:")
	switch {
	case builtin:
		*m = Module{Name: name, Builtin: true}
	case strings.HasPrefix(t, "sha256:") || validName(strings.ReplaceAll(t, "@", "")) && strings.Contains(t, "@"):
		return fmt.Errorf("%s %s; use the path of a .wasm file", quote(t), needsStore)
	case strings.HasSuffix(t, ".wasm"):
		name = strings.TrimSuffix(filepath.Base(t), ".wasm")
		*m = Module{Name: name, File: t}
	default:
		*m = Module{Name: t}
	}
	if name == "" || m.File == "" && !validName(name) {
		return fmt.Errorf("%s is not a module: write builtin:NAME, the NAME of a file in filters.dir, or a path that ends in .wasm", quote(t))
	}
	return nil
}

// String returns the module as it is written in the file.
func (m Module) String() string {
	switch {
	case m.Builtin:
		return "builtin:" + m.Name
	case m.File != "":
		return m.File
	}
	return m.Name
}

func (Module) describe() string { return "module" }

func (m *Module) rebase(dir string) { m.File = inDir(dir, m.File) }

// ValidName reports whether s can name a listener, a backend, a chain or a module.
func ValidName(s string) bool { return validName(s) }

// validName reports whether s can name a listener, a backend, a chain or a module.
// Such names stand in the log and in metrics.
func validName(s string) bool {
	bad := func(r rune) bool {
		return notLDH(r) && (r < 'A' || r > 'Z') && r != '_' && r != '.'
	}
	return s != "" && len(s) <= 64 && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, bad)
}

func portOf(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}
