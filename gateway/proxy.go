package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pires/go-proxyproto"

	"github.com/penstock/penstock/policy"
)

// proxy.go reads the PROXY protocol, versions 1 and 2, by which a load balancer says
// for whom it connects. Its header decides about trust, so it is taken from the networks
// that were named and from nobody else, and there it must be: a balancer that forgets
// it would make every client of its own address.
//
// The header is read octet-exact before anything else looks at the connection: what
// follows it (a TLS handshake, a client that talks early) stays in the socket. How its
// octets are cut into segments makes no difference.
//
// Wiring: accept is called in the connection's own goroutine, never in the loop that
// accepts, and before the connection is counted by address. What it returns takes the
// place of the connection. With an error the connection is closed already and nothing
// was said to it, since whoever speaks there does not speak SMTP.

// proxySettings says from whom a PROXY header is taken. The zero value takes it from
// nobody.
type proxySettings struct {
	// trusted are the networks whose connections begin with the header, unix adds local
	// sockets. Prefixes are masked, IPv4 is not written as IPv6.
	trusted []netip.Prefix
	unix    bool
	// timeout is for the whole header. Default 5 s.
	timeout time.Duration
	// closing, if not nil, tells that no connection is wanted any more. It is asked once
	// the read deadline is set, so that a deadline which somebody else set shortly
	// before, to end the wait, is not lost.
	closing func() bool
}

// proxyInfo is what a header said. The zero value means that none was looked for.
type proxyInfo struct {
	version int // 1 or 2
	// local: the proxy speaks for itself, as health checks do.
	local bool
	// unnamed: the proxy speaks for a client and does not say which. The addresses of
	// the connection are then the proxy's, and must not give the client what the proxy
	// may do, such as relaying.
	unnamed bool
	// proxy is the address that connected to us; zero with a unix socket.
	proxy netip.AddrPort

	uniqueID  string // as it came if it is text, else in hexadecimal
	authority string // the name that the client asked for (SNI)
	alpn      string
	tls       proxyTLS
}

// endedTLS tells whether the client spoke TLS to the proxy. Nil is no proxy.
func (p *proxyInfo) endedTLS() bool { return p != nil && p.tls.used }

// proxyTLS is what the proxy tells about the TLS between the client and itself.
type proxyTLS struct {
	used            bool
	version, cipher string // as the proxy calls them
	commonName      string // of the client's certificate
	certificate     bool   // the client had one
	verified        bool   // and the proxy found it good
}

const (
	defaultProxyTimeout = 5 * time.Second
	// minProxyLine is the shortest header, "PROXY UNKNOWN" with CRLF. maxProxyLine is
	// the longest line of version 1 that its specification allows.
	minProxyLine = 15
	maxProxyLine = 107
	// proxyV2Fixed is the part of a header of version 2 that has the length of the rest,
	// maxProxyV2 the longest rest that we read. A client certificate fits.
	proxyV2Fixed = 16
	maxProxyV2   = 4096
	// maxTLVs is how many there may be in one vector; all that are defined are 15.
	maxTLVs = 64
)

var (
	proxyLine = []byte("PROXY ")
	proxyV2   = []byte("\r\n\r\n\x00\r\nQUIT\n")

	errNoProxyHeader = errors.New("not a PROXY header")
	errProxyLong     = errors.New("PROXY header is too long")
	errProxyAddress  = errors.New("no address that a TCP client can have")
	errProxyTLV      = errors.New("malformed TLV")
	errProxyChecksum = errors.New("wrong checksum")
	errProxyClosing  = errors.New("shutting down")
)

// accept reads the header if nc comes from where it is expected, and returns the
// connection to use from then on: nc itself if there is no header or it names no client.
// The read deadline is then not set. With an error nc is closed; the error is io.EOF
// (errors.Is) if the other side closed without a single octet, as port checks do. To end
// the wait early, end ctx or set nc's read deadline to the past.
func (p proxySettings) accept(ctx context.Context, nc net.Conn) (net.Conn, proxyInfo, error) {
	if !p.trusts(nc.RemoteAddr()) {
		return nc, proxyInfo{}, nil
	}
	head, err := p.await(ctx, nc)
	var h proxyHeader
	if err == nil {
		h, err = parseProxyHeader(head)
	}
	if err == nil {
		err = nc.SetReadDeadline(time.Time{})
	}
	if err != nil {
		nc.Close()
		return nil, proxyInfo{}, fmt.Errorf("gateway: PROXY header from %s: %w", nc.RemoteAddr(), err)
	}
	h.info.proxy = addrPort(nc.RemoteAddr())
	if !h.client.IsValid() {
		return nc, h.info, nil
	}
	return &proxyConn{Conn: nc, remote: net.TCPAddrFromAddrPort(h.client), local: net.TCPAddrFromAddrPort(h.server)}, h.info, nil
}

func (p proxySettings) trusts(a net.Addr) bool {
	if a.Network() == "unix" {
		return p.unix
	}
	ip := addrPort(a).Addr().WithZone("") // a Prefix contains no address with a zone
	return slices.ContainsFunc(p.trusted, func(n netip.Prefix) bool { return n.Contains(ip) })
}

// await reads the header in the time that it has.
func (p proxySettings) await(ctx context.Context, nc net.Conn) ([]byte, error) {
	timeout := p.timeout
	if timeout == 0 {
		timeout = defaultProxyTimeout
	}
	if err := nc.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { nc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if p.closing != nil && p.closing() {
		return nil, errProxyClosing
	}
	head, err := readProxyHeader(nc)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return head, err
}

// readProxyHeader reads one header and not an octet more. It stops at the first octet
// that shows that none comes.
func readProxyHeader(r io.Reader) ([]byte, error) {
	head := make([]byte, 0, 128)
	for {
		want, err := proxyWants(head)
		if err != nil || want == len(head) {
			return head, err
		}
		head = slices.Grow(head, want-len(head))
		n, err := io.ReadAtLeast(r, head[len(head):want], 1)
		head = head[:len(head)+n]
		if n == 0 {
			if len(head) > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// proxyWants returns how long a header is at least that begins with head; it is complete
// if that is the length of head.
func proxyWants(head []byte) (int, error) {
	switch {
	case bytes.HasPrefix(proxyLine, head[:min(len(head), len(proxyLine))]):
		return proxyLineWants(head)
	case !bytes.HasPrefix(proxyV2, head[:min(len(head), len(proxyV2))]):
		return 0, errNoProxyHeader
	case len(head) < proxyV2Fixed:
		return proxyV2Fixed, nil
	}
	rest := int(binary.BigEndian.Uint16(head[14:]))
	if rest > maxProxyV2 {
		return 0, errProxyLong
	}
	return proxyV2Fixed + rest, nil
}

func proxyLineWants(head []byte) (int, error) {
	end := bytes.IndexByte(head, '\n')
	switch {
	case end >= 0 && end != len(head)-1:
		return 0, errNoProxyHeader // a line that is shorter than any header
	case end >= 0:
		return len(head), nil
	case len(head) >= maxProxyLine:
		return 0, errProxyLong
	}
	// Nobody knows where the line ends, and what is behind it is not ours. One octet at
	// a time costs some 25 µs a connection, and version 2 is there for whom it matters.
	return max(minProxyLine, len(head)+1), nil
}

// proxyHeader is a header taken apart. client is invalid if it names none.
type proxyHeader struct {
	info           proxyInfo
	client, server netip.AddrPort
}

// parseProxyHeader takes a complete header apart.
func parseProxyHeader(head []byte) (proxyHeader, error) {
	var h proxyHeader
	v2 := head[0] != proxyLine[0]
	if v2 && head[12] == byte(proxyproto.PROXY) && head[13] == byte(proxyproto.UNSPEC) {
		// A client whose address cannot be told. The receiver may take it (Section 2.2 of
		// the specification), as it must with UNKNOWN of version 1; the library takes it
		// with the other command alone.
		h.info.unnamed = true
		checked := bytes.Clone(head)
		checked[12] = byte(proxyproto.LOCAL)
		if _, err := libraryParse(checked); err != nil {
			return h, err
		}
		h.info.version = 2
		return h, h.readTLVs(head, 0)
	}
	lib, err := libraryParse(head)
	if err != nil {
		return h, err
	}
	h.info.version = int(lib.Version)
	if lib.Command.IsLocal() {
		// Of version 2 all else must be ignored; in version 1 this is UNKNOWN.
		h.info.local, h.info.unnamed = v2, !v2
		return h, nil
	}
	var length int
	switch lib.TransportProtocol {
	case proxyproto.TCPv4:
		length = 12
	case proxyproto.TCPv6:
		length = 36
	case proxyproto.UnixStream:
		// The client came to the proxy by a local socket and has no address.
		h.info.unnamed = true
		return h, h.readTLVs(head, 216)
	default:
		return h, errProxyAddress // datagrams carry no SMTP
	}
	if h.client, err = clientAddr(lib.SourceAddr); err != nil {
		return h, err
	}
	h.server = addrPort(lib.DestinationAddr)
	if v2 {
		return h, h.readTLVs(head, length)
	}
	return h, nil
}

func libraryParse(head []byte) (*proxyproto.Header, error) {
	// The buffer holds all, for a line that is not there at once is refused.
	return proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(head), len(head)))
}

// clientAddr refuses addresses that no client has: to count or to trust them would be to
// count or trust nobody in particular.
func clientAddr(a net.Addr) (netip.AddrPort, error) {
	ap := addrPort(a)
	ip := ap.Addr()
	if !ip.IsValid() || ip.IsUnspecified() || ip.IsMulticast() || ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.AddrPort{}, errProxyAddress
	}
	return ap, nil
}

// readTLVs reads what follows the addresses, which take length octets.
func (h *proxyHeader) readTLVs(head []byte, length int) error {
	start := proxyV2Fixed + length
	return eachTLV(head[start:], func(typ proxyproto.PP2Type, at int, value []byte) error {
		switch typ {
		case proxyproto.PP2_TYPE_CRC32C:
			return checkProxySum(head, start+at, value)
		case proxyproto.PP2_TYPE_UNIQUE_ID:
			h.info.uniqueID = proxyID(value)
		case proxyproto.PP2_TYPE_AUTHORITY:
			h.info.authority = proxyText(value, 255)
		case proxyproto.PP2_TYPE_ALPN:
			h.info.alpn = proxyText(value, 255)
		case proxyproto.PP2_TYPE_SSL:
			return h.info.tls.read(value)
		}
		return nil
	})
}

// eachTLV calls f with each element of a vector and where its value begins.
func eachTLV(raw []byte, f func(typ proxyproto.PP2Type, at int, value []byte) error) error {
	n := 0
	for at := 0; at < len(raw); n++ {
		if len(raw)-at < 3 || n == maxTLVs {
			return errProxyTLV
		}
		typ := proxyproto.PP2Type(raw[at])
		length := int(binary.BigEndian.Uint16(raw[at+1:]))
		at += 3
		if length > len(raw)-at {
			return errProxyTLV
		}
		if err := f(typ, at, raw[at:at+length]); err != nil {
			return err
		}
		at += length
	}
	return nil
}

// checkProxySum checks the header's CRC-32c, which is computed with zeros in its own
// place. A connection with a wrong one must be dropped.
func checkProxySum(head []byte, at int, value []byte) error {
	if len(value) != 4 {
		return errProxyTLV
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, head[:at])
	sum = crc32.Update(sum, table, make([]byte, 4))
	sum = crc32.Update(sum, table, head[at+4:])
	if sum != binary.BigEndian.Uint32(value) {
		return errProxyChecksum
	}
	return nil
}

// read reads the element about TLS: a set of bits, the result of the verification, and
// a vector of its own.
func (t *proxyTLS) read(value []byte) error {
	const ssl, certConn, certSess = 1, 2, 4
	if len(value) < 5 {
		return errProxyTLV
	}
	bits := value[0]
	t.used = bits&ssl != 0
	t.certificate = bits&(certConn|certSess) != 0
	t.verified = t.certificate && binary.BigEndian.Uint32(value[1:]) == 0
	return eachTLV(value[5:], func(typ proxyproto.PP2Type, _ int, value []byte) error {
		switch typ {
		case proxyproto.PP2_SUBTYPE_SSL_VERSION:
			t.version = proxyText(value, 64)
		case proxyproto.PP2_SUBTYPE_SSL_CIPHER:
			t.cipher = proxyText(value, 128)
		case proxyproto.PP2_SUBTYPE_SSL_CN:
			t.commonName = proxyText(value, 256)
		}
		return nil
	})
}

// tlsFacts is what policy may know of the TLS between the client and the proxy. Names of
// ciphers that are not ours are left out.
func (p proxyInfo) tlsFacts() *policy.TLS {
	t := &policy.TLS{Version: proxyVersions[p.tls.version], ServerName: p.authority, ALPN: p.alpn}
	for _, suite := range tls.CipherSuites() {
		if suite.Name == p.tls.cipher {
			t.Cipher = suite.ID
		}
	}
	if p.tls.verified && p.tls.commonName != "" {
		t.Peer, t.Verified = pkix.Name{CommonName: p.tls.commonName}.String(), true
	}
	return t
}

// proxyVersions are the versions of TLS by the names that OpenSSL gives them.
var proxyVersions = map[string]uint16{"TLSv1": tls.VersionTLS10, "TLSv1.1": tls.VersionTLS11, "TLSv1.2": tls.VersionTLS12, "TLSv1.3": tls.VersionTLS13}

// proxyText returns a value that can be shown; empty if it is too long or is no text.
func proxyText(b []byte, limit int) string {
	if len(b) > limit || !utf8.Valid(b) || bytes.ContainsFunc(b, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return ""
	}
	return string(b)
}

// proxyID returns a unique id, which is at most 128 octets of any kind.
func proxyID(b []byte) string {
	if s := proxyText(b, 128); s != "" || len(b) > 128 {
		return s
	}
	return hex.EncodeToString(b)
}

// proxyConn is a connection with the addresses that its header named.
type proxyConn struct {
	net.Conn
	remote, local net.Addr
}

// RemoteAddr implements net.Conn: the client of the proxy.
func (c *proxyConn) RemoteAddr() net.Addr { return c.remote }

// LocalAddr implements net.Conn: what the client connected to.
func (c *proxyConn) LocalAddr() net.Addr { return c.local }

// NetConn returns the connection to the proxy.
func (c *proxyConn) NetConn() net.Conn { return c.Conn }

// CloseWrite ends our direction, where the connection can do so.
func (c *proxyConn) CloseWrite() error {
	if hc, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return hc.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SyscallConn implements syscall.Conn.
func (c *proxyConn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}

var _ syscall.Conn = (*proxyConn)(nil)
