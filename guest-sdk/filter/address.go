package filter

// address.go: addresses of mail and of machines. Package net/netip would be the
// natural type for the latter, but doubles what a small filter adds to the runtime.

// Address is an address of the envelope in the gateway's canonical form: the domain is in
// lower case and in A-labels. The zero Address is the null sender. Addresses are compared
// with ==.
type Address struct{ s string }

// ParseAddress returns the address that s is, with its domain in lower case. It does not
// check the syntax: it is for comparing what was configured with what came.
func ParseAddress(s string) Address {
	at := lastAt(s)
	if at < 0 {
		return Address{s}
	}
	return Address{s[:at] + lower(s[at:])}
}

// String returns the address without brackets, with quotes in the local part where they
// are needed.
func (a Address) String() string { return a.s }

// IsNull tells whether a is the null sender, as bounces have it.
func (a Address) IsNull() bool { return a.s == "" }

// Domain returns what follows the last "@"; empty for the null sender and for
// "postmaster" alone.
func (a Address) Domain() string {
	at := lastAt(a.s)
	if at < 0 {
		return ""
	}
	return a.s[at+1:]
}

// Local returns the local part as it is meant, without quotes: `a b` for
// "a b"@example.com. Its case is kept (RFC 5321, Section 2.4).
func (a Address) Local() string {
	local := a.s
	if at := lastAt(a.s); at >= 0 {
		local = a.s[:at]
	}
	if len(local) < 2 || local[0] != '"' || local[len(local)-1] != '"' {
		return local
	}
	out := make([]byte, 0, len(local))
	for i := 1; i < len(local)-1; i++ {
		if local[i] == '\\' && i+1 < len(local)-1 {
			i++
		}
		out = append(out, local[i])
	}
	return string(out)
}

// lastAt finds the "@" before the domain: a quoted local part may have others.
func lastAt(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '@' {
			return i
		}
	}
	return -1
}

// IP is an IP address. The zero IP is no address. An IPv4 address that is mapped into
// IPv6 is held as IPv4, so that one address has one form; IPs are compared with ==.
type IP struct {
	b [16]byte
	n uint8 // 0, 4 or 16
}

// ipOf reads an address in network order.
func ipOf(p []byte) (ip IP) {
	const mapped = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff"
	if len(p) == 16 && string(p[:12]) == mapped {
		p = p[12:]
	}
	if len(p) == 4 || len(p) == 16 {
		ip.n = uint8(copy(ip.b[:], p))
	}
	return ip
}

// IsValid tells whether ip is an address.
func (ip IP) IsValid() bool { return ip.n != 0 }

// Is4 tells whether ip is an IPv4 address.
func (ip IP) Is4() bool { return ip.n == 4 }

// Bytes returns the 4 or 16 octets in network order.
func (ip IP) Bytes() []byte { return append([]byte(nil), ip.b[:ip.n]...) }

// In tells whether ip is in the network that the first bits of net are.
func (ip IP) In(net IP, bits int) bool {
	if ip.n == 0 || ip.n != net.n || bits < 0 || bits > 8*int(ip.n) {
		return false
	}
	whole := bits / 8
	if string(ip.b[:whole]) != string(net.b[:whole]) {
		return false
	}
	rest := bits % 8
	return rest == 0 || (ip.b[whole]^net.b[whole])>>(8-rest) == 0
}

// ParsePrefix reads a network such as 192.0.2.0/24, or an address, which is a network of
// one.
func ParsePrefix(s string) (net IP, bits int, ok bool) {
	addr, length := cut(s, '/')
	if net, ok = ParseIP(addr); !ok {
		return IP{}, 0, false
	}
	if len(addr) == len(s) {
		return net, 8 * int(net.n), true
	}
	bits, ok = decimal(length, 128)
	if !ok || bits > 8*int(net.n) {
		return IP{}, 0, false
	}
	return net, bits, true
}

// ParseIP reads an address: 192.0.2.1, 2001:db8::1 or ::ffff:192.0.2.1, which is
// 192.0.2.1. Zones and leading zeros of IPv4 are no part of an address here.
func ParseIP(s string) (ip IP, ok bool) {
	if v4, ok := parseIP4(s); ok {
		return ipOf(v4[:]), true
	}
	return parseIP6(s)
}

func parseIP4(s string) (b [4]byte, ok bool) {
	for i := range b {
		part, rest := cut(s, '.')
		if last := i == 3; last != (len(part) == len(s)) {
			return b, false
		}
		n, ok := decimal(part, 255)
		if !ok {
			return b, false
		}
		b[i], s = byte(n), rest
	}
	return b, true
}

// parseIP6 reads RFC 4291, Section 2.2. head holds the groups before "::" and tail those
// behind it.
func parseIP6(s string) (IP, bool) {
	var head, tail []byte
	cur, short := &head, false
	if len(s) >= 2 && s[:2] == "::" {
		s, cur, short = s[2:], &tail, true
	}
	for s != "" {
		part, rest := cut(s, ':')
		final := len(part) == len(s)
		if b, ok := parseIP4(part); ok && final {
			*cur = append(*cur, b[:]...)
			break
		}
		n, ok := hex16(part)
		if !ok || !final && rest == "" {
			return IP{}, false
		}
		*cur = append(*cur, byte(n>>8), byte(n))
		if s = rest; len(s) > 0 && s[0] == ':' {
			if short {
				return IP{}, false
			}
			s, cur, short = s[1:], &tail, true
		}
	}
	return joinIP6(head, tail, short)
}

func joinIP6(head, tail []byte, short bool) (IP, bool) {
	n := len(head) + len(tail)
	// RFC 5952, Section 4.2.2 asks writers not to shorten one group; readers take it.
	if short && n > 14 || !short && n != 16 {
		return IP{}, false
	}
	var b [16]byte
	copy(b[:], head)
	copy(b[16-len(tail):], tail)
	return ipOf(b[:]), true
}

// String returns the address as RFC 5952 writes it; empty for the zero IP.
func (ip IP) String() string {
	if ip.n == 4 {
		var out []byte
		for i, b := range ip.b[:4] {
			if i > 0 {
				out = append(out, '.')
			}
			out = appendInt(out, int(b))
		}
		return string(out)
	}
	if ip.n == 0 {
		return ""
	}
	return ip.string6()
}

func (ip IP) string6() string {
	from, to := ip.zeros()
	var out []byte
	for i := 0; i < 8; i++ {
		if i == from {
			out = append(out, "::"...)
			i = to - 1
			continue
		}
		if i > 0 && i != to {
			out = append(out, ':')
		}
		out = appendHex(out, uint(ip.b[2*i])<<8|uint(ip.b[2*i+1]))
	}
	return string(out)
}

// zeros finds the longest run of two or more groups that are zero, the first of several:
// RFC 5952, Section 4.2.3.
func (ip IP) zeros() (from, to int) {
	from, to = -1, -1
	for i := 0; i < 8; {
		j := i
		for j < 8 && ip.b[2*j] == 0 && ip.b[2*j+1] == 0 {
			j++
		}
		if j-i >= 2 && j-i > to-from {
			from, to = i, j
		}
		i = max(j, i+1)
	}
	return from, to
}
