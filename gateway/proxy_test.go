package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/penstock/penstock/policy"
)

// v2Header writes a header of version 2 by hand: what reads it is not to check itself.
func v2Header(command, family byte, addresses string, tlvs ...string) string {
	rest := addresses + strings.Join(tlvs, "")
	b := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(rest)))
	return string(b) + rest
}

func tlv(typ byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{typ}, uint16(len(value)))) + value
}

// summed puts the right checksum into the TLV of a header whose value is "....".
func summed(h string) string {
	at := strings.Index(h, tlv(3, "....")) + 3
	zero := h[:at] + "\x00\x00\x00\x00" + h[at+4:]
	sum := crc32.Checksum([]byte(zero), crc32.MakeTable(crc32.Castagnoli))
	return h[:at] + string(binary.BigEndian.AppendUint32(nil, sum)) + h[at+4:]
}

const (
	v2Proxy, v2Local = 0x21, 0x20
	v2TCP4, v2TCP6   = 0x11, 0x21
	addr4            = "\xc0\x00\x02\x01\xc6\x33\x64\x02\x30\x39\x00\x19" // 192.0.2.1:12345, 198.51.100.2:25
)

var addr6 = "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x02" + "\x30\x39\x00\x19"

var mapped = strings.Repeat("\x00", 10) + "\xff\xff\xc0\x00\x02\x01" + strings.Repeat("\x00", 10) + "\xff\xff\xc6\x33\x64\x02" + "\x30\x39\x00\x19"

func TestProxyHeader(t *testing.T) {
	secure := tlv(0x20, "\x05\x00\x00\x00\x00"+tlv(0x21, "TLSv1.3")+tlv(0x22, "client.test")+tlv(0x23, "TLS_AES_128_GCM_SHA256"))
	full := proxyInfo{version: 2, uniqueID: "id-7", authority: "mx.test", alpn: "smtp",
		tls: proxyTLS{used: true, version: "TLSv1.3", cipher: "TLS_AES_128_GCM_SHA256", commonName: "client.test", certificate: true, verified: true}}
	for _, tc := range []struct {
		name, header, client, server string
		info                         proxyInfo
		err                          error
	}{
		{"v1", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\r\n", "192.0.2.1:12345", "198.51.100.2:25", proxyInfo{version: 1}, nil},
		{"v1, IPv6", "PROXY TCP6 2001:db8::1 2001:db8::2 1 25\r\n", "[2001:db8::1]:1", "[2001:db8::2]:25", proxyInfo{version: 1}, nil},
		{"v1, mapped: counted and trusted as IPv4", "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 25\r\n", "192.0.2.1:1", "192.0.2.2:25", proxyInfo{version: 1}, nil},
		{"v1, unknown", "PROXY UNKNOWN\r\n", "", "", proxyInfo{version: 1, unnamed: true}, nil},
		{"v1, unknown with addresses that are ignored", "PROXY UNKNOWN 192.0.2.1 x y\r\n", "", "", proxyInfo{version: 1, unnamed: true}, nil},
		{"v1, longest", "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", "", "", proxyInfo{version: 1, unnamed: true}, nil},
		{"v1, too long", "PROXY UNKNOWN " + strings.Repeat("x", 92) + "\r\n", "", "", proxyInfo{}, errProxyLong},
		{"v1, without end", "PROXY " + strings.Repeat("x", 1<<20), "", "", proxyInfo{}, errProxyLong},
		{"v1, bare LF", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\n", "", "", proxyInfo{}, errAny},
		{"v1, ends before any header", "PROXY TCP4\r\nEHLO x\r\n", "", "", proxyInfo{}, errNoProxyHeader},
		{"v1, IPv4 where IPv6 was said", "PROXY TCP6 192.0.2.1 192.0.2.2 1 25\r\n", "", "", proxyInfo{}, errAny},
		{"v1, port out of range", "PROXY TCP4 192.0.2.1 192.0.2.2 65536 25\r\n", "", "", proxyInfo{}, errAny},
		{"v1, one word too many", "PROXY TCP4 192.0.2.1 192.0.2.2 1 25 x\r\n", "", "", proxyInfo{}, errAny},
		{"v1, zone", "PROXY TCP6 fe80::1%lo fe80::2%lo 1 25\r\n", "", "", proxyInfo{}, errAny},
		{"v1, datagrams", "PROXY UDP4 192.0.2.1 192.0.2.2 1 25\r\n", "", "", proxyInfo{}, errAny},
		{"v1, lower case", "proxy TCP4 192.0.2.1 192.0.2.2 1 25\r\n", "", "", proxyInfo{}, errNoProxyHeader},
		{"v1, nobody's address", "PROXY TCP4 0.0.0.0 192.0.2.2 1 25\r\n", "", "", proxyInfo{}, errProxyAddress},
		{"v1, everybody's address", "PROXY TCP4 255.255.255.255 192.0.2.2 1 25\r\n", "", "", proxyInfo{}, errProxyAddress},
		{"v1, cut off", "PROXY TCP4 192.0.2.1 198.5", "", "", proxyInfo{}, io.ErrUnexpectedEOF},
		{"an SMTP client", "EHLO client.test\r\n", "", "", proxyInfo{}, errNoProxyHeader},
		{"a TLS client", "\x16\x03\x01\x02\x00", "", "", proxyInfo{}, errNoProxyHeader},
		{"nothing", "", "", "", proxyInfo{}, io.EOF},

		{"v2", v2Header(v2Proxy, v2TCP4, addr4), "192.0.2.1:12345", "198.51.100.2:25", proxyInfo{version: 2}, nil},
		{"v2, IPv6", v2Header(v2Proxy, v2TCP6, addr6), "[2001:db8::1]:12345", "[2001:db8::2]:25", proxyInfo{version: 2}, nil},
		{"v2, mapped", v2Header(v2Proxy, v2TCP6, mapped), "192.0.2.1:12345", "198.51.100.2:25", proxyInfo{version: 2}, nil},
		{"v2, the proxy itself", v2Header(v2Local, 0, ""), "", "", proxyInfo{version: 2, local: true}, nil},
		{"v2, the proxy itself, with what must be skipped", v2Header(v2Local, v2TCP4, addr4, tlv(5, "id")), "", "", proxyInfo{version: 2, local: true}, nil},
		{"v2, unnamed", v2Header(v2Proxy, 0, "", tlv(5, "id")), "", "", proxyInfo{version: 2, unnamed: true, uniqueID: "id"}, nil},
		{"v2, client on a unix socket", v2Header(v2Proxy, 0x31, strings.Repeat("/", 216), tlv(5, "id")), "", "", proxyInfo{version: 2, unnamed: true, uniqueID: "id"}, nil},
		{"v2, datagrams", v2Header(v2Proxy, 0x12, addr4), "", "", proxyInfo{}, errProxyAddress},
		{"v2, unix datagrams", v2Header(v2Proxy, 0x32, strings.Repeat("/", 216)), "", "", proxyInfo{}, errProxyAddress},
		{"v2, IPv4 without transport", v2Header(v2Proxy, 0x10, addr4), "", "", proxyInfo{}, errAny},
		{"v2, multicast", v2Header(v2Proxy, v2TCP4, "\xe0"+addr4[1:]), "", "", proxyInfo{}, errProxyAddress},
		{"v2, unknown command", v2Header(0x22, v2TCP4, addr4), "", "", proxyInfo{}, errAny},
		{"v2, version 3", v2Header(0x31, v2TCP4, addr4), "", "", proxyInfo{}, errAny},
		{"v2, too short for its addresses", v2Header(v2Proxy, v2TCP4, addr4[:11]), "", "", proxyInfo{}, errAny},
		{"v2, too long", v2Header(v2Proxy, v2TCP4, strings.Repeat("x", maxProxyV2+1)), "", "", proxyInfo{}, errProxyLong},
		{"v2, cut off", v2Header(v2Proxy, v2TCP4, addr4)[:20], "", "", proxyInfo{}, io.ErrUnexpectedEOF},
		{"v2, TLVs", v2Header(v2Proxy, v2TCP4, addr4, tlv(1, "smtp"), tlv(2, "mx.test"), tlv(4, "\x00"), tlv(5, "id-7"), secure, tlv(0xe0, "own")), "192.0.2.1:12345", "198.51.100.2:25", full, nil},
		{"v2, checksum", summed(v2Header(v2Proxy, v2TCP4, addr4, tlv(3, "...."), tlv(5, "id"))), "192.0.2.1:12345", "198.51.100.2:25", proxyInfo{version: 2, uniqueID: "id"}, nil},
		{"v2, wrong checksum", v2Header(v2Proxy, v2TCP4, addr4, tlv(3, "....")), "", "", proxyInfo{}, errProxyChecksum},
		{"v2, short checksum", v2Header(v2Proxy, v2TCP4, addr4, tlv(3, "...")), "", "", proxyInfo{}, errProxyTLV},
		{"v2, checksum of an unnamed client", v2Header(v2Proxy, 0, "", tlv(3, "....")), "", "", proxyInfo{}, errProxyChecksum},
		{"v2, TLV longer than the header", v2Header(v2Proxy, v2TCP4, addr4, "\x05\x00\x09id"), "", "", proxyInfo{}, errProxyTLV},
		{"v2, half a TLV", v2Header(v2Proxy, v2TCP4, addr4, "\x05\x00"), "", "", proxyInfo{}, errProxyTLV},
		{"v2, TLVs without number", v2Header(v2Proxy, v2TCP4, addr4, strings.Repeat(tlv(4, ""), maxTLVs+1)), "", "", proxyInfo{}, errProxyTLV},
		{"v2, TLS cut off", v2Header(v2Proxy, v2TCP4, addr4, tlv(0x20, "\x01")), "", "", proxyInfo{}, errProxyTLV},
		{"v2, certificate not verified", v2Header(v2Proxy, v2TCP4, addr4, tlv(0x20, "\x07\x00\x00\x00\x01")), "192.0.2.1:12345", "198.51.100.2:25", proxyInfo{version: 2, tls: proxyTLS{used: true, certificate: true}}, nil},
		{"v2, nothing was verified without a certificate", v2Header(v2Proxy, v2TCP4, addr4, tlv(0x20, "\x01\x00\x00\x00\x00")), "192.0.2.1:12345", "198.51.100.2:25", proxyInfo{version: 2, tls: proxyTLS{used: true}}, nil},
		{"v2, names that nobody can show", v2Header(v2Proxy, v2TCP4, addr4, tlv(2, "mx\r\n250 ok"), tlv(5, "\x00\xff")), "192.0.2.1:12345", "198.51.100.2:25", proxyInfo{version: 2, uniqueID: "00ff"}, nil},
		{"v2, id that is too long", v2Header(v2Proxy, v2TCP4, addr4, tlv(5, strings.Repeat("i", 129))), "192.0.2.1:12345", "198.51.100.2:25", proxyInfo{version: 2}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, err := readAll(strings.NewReader(tc.header))
			if tc.err != nil {
				if err == nil || tc.err != errAny && !errors.Is(err, tc.err) {
					t.Fatalf("got %+v, %v, want error %v", h, err, tc.err)
				}
				return
			}
			client, server := ports(tc.client), ports(tc.server)
			if err != nil || h.info != tc.info || h.client != client || h.server != server {
				t.Fatalf("got %+v, %v, want %v %v %+v", h, err, client, server, tc.info)
			}
		})
	}
}

// errAny stands for an error of the library.
var errAny = errors.New("any error")

// TestProxyTLS: what a proxy tells of TLS, in words of ours; who was not verified is nobody.
func TestProxyTLS(t *testing.T) {
	for _, c := range []struct {
		info proxyInfo
		want policy.TLS
	}{
		{proxyInfo{}, policy.TLS{}},
		{proxyInfo{authority: "mx.test", alpn: "smtp", tls: proxyTLS{version: "TLSv1.3", cipher: "TLS_AES_128_GCM_SHA256", commonName: "client.test", verified: true}},
			policy.TLS{Version: tls.VersionTLS13, Cipher: tls.TLS_AES_128_GCM_SHA256, ServerName: "mx.test", ALPN: "smtp", Peer: "CN=client.test", Verified: true}},
		{proxyInfo{tls: proxyTLS{version: "TLSv1.2", cipher: "ECDHE-RSA-AES128-GCM-SHA256", commonName: "client.test"}}, policy.TLS{Version: tls.VersionTLS12}},
		{proxyInfo{tls: proxyTLS{version: "TLSv9", commonName: "a,b", verified: true}}, policy.TLS{Peer: `CN=a\,b`, Verified: true}},
	} {
		if got := *c.info.tlsFacts(); got != c.want {
			t.Errorf("%+v: got %+v, want %+v", c.info, got, c.want)
		}
	}
}

func ports(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

func readAll(r io.Reader) (proxyHeader, error) {
	head, err := readProxyHeader(r)
	if err != nil {
		return proxyHeader{}, err
	}
	return parseProxyHeader(head)
}

// FuzzProxyHeader: a header is read or refused in the same way however it is cut, what
// follows it is not touched, and a client that it names has an address.
func FuzzProxyHeader(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\r\nEHLO x\r\n"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte(v2Header(v2Proxy, v2TCP6, addr6, tlv(1, "smtp"), tlv(0x20, "\x05\x00\x00\x00\x00"+tlv(0x21, "TLSv1.3"))) + "EHLO"))
	f.Add([]byte(summed(v2Header(v2Proxy, v2TCP4, addr4, tlv(3, "....")))))
	f.Add([]byte(v2Header(v2Proxy, 0, "", tlv(5, "id"))))
	f.Add([]byte(v2Header(v2Local, v2TCP4, "")))
	f.Add([]byte(v2Header(v2Proxy, 0x31, strings.Repeat("/", 216))))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole, slow := bytes.NewReader(in), bytes.NewReader(in)
		h, err := readAll(whole)
		again, err2 := readAll(iotest.OneByteReader(slow))
		if h != again || (err == nil) != (err2 == nil) {
			t.Fatalf("at once: %+v, %v; one by one: %+v, %v", h, err, again, err2)
		}
		if err != nil {
			return
		}
		if whole.Len() != slow.Len() || len(in)-whole.Len() > proxyV2Fixed+maxProxyV2 {
			t.Fatalf("%d and %d octets are left of %d", whole.Len(), slow.Len(), len(in))
		}
		if named := h.client.IsValid(); named == (h.info.local || h.info.unnamed) || named != h.server.IsValid() {
			t.Fatalf("%+v", h)
		}
	})
}

// at is a connection that says it comes from a given place.
type at struct {
	net.Conn
	remote net.Addr
}

func (c at) RemoteAddr() net.Addr { return c.remote }

// proxied is a pipe whose near end comes from the trusted network.
func proxied(t *testing.T) (near, far net.Conn) {
	a, b := net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return at{a, &net.TCPAddr{IP: net.IPv4(10, 0, 0, 1), Port: 1}}, b
}

var fromTen = proxySettings{trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fe80::/10")}}

func TestProxyTrust(t *testing.T) {
	unix := proxySettings{unix: true}
	for _, tc := range []struct {
		p      proxySettings
		remote net.Addr
		want   bool
	}{
		{fromTen, &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3)}, true},
		{fromTen, &net.TCPAddr{IP: net.ParseIP("::ffff:10.1.2.3")}, true},
		{fromTen, &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}, true},
		{fromTen, &net.TCPAddr{IP: net.IPv4(11, 0, 0, 1)}, false},
		{fromTen, &net.UnixAddr{Net: "unix"}, false},
		{unix, &net.UnixAddr{Net: "unix"}, true},
		{unix, &net.TCPAddr{IP: net.IPv4(10, 1, 2, 3)}, false},
		{proxySettings{}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, false},
	} {
		if got := tc.p.trusts(tc.remote); got != tc.want {
			t.Errorf("%+v trusts %v: %v", tc.p, tc.remote, got)
		}
	}
}

// A stranger's PROXY line is data: it must not be read, let alone believed.
func TestProxyStranger(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	nc, info, err := fromTen.accept(t.Context(), a)
	if nc != a || info != (proxyInfo{}) || err != nil {
		t.Fatal(nc, info, err)
	}
}

func TestProxyAccept(t *testing.T) {
	near, far := proxied(t)
	go io.WriteString(far, "PROXY TCP4 192.0.2.1 198.51.100.2 12345 25\r\nEHLO x\r\n")
	nc, info, err := fromTen.accept(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	if got := nc.RemoteAddr().String() + " " + nc.LocalAddr().String(); got != "192.0.2.1:12345 198.51.100.2:25" {
		t.Error(got)
	}
	if info != (proxyInfo{version: 1, proxy: ports("10.0.0.1:1")}) {
		t.Errorf("%+v", info)
	}
	rest := make([]byte, 8)
	if _, err := io.ReadFull(nc, rest); err != nil || string(rest) != "EHLO x\r\n" {
		t.Errorf("%q, %v", rest, err)
	}
	nc.SetReadDeadline(time.Unix(1, 0))
	if _, err := nc.Read(rest); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
	if err := nc.(*proxyConn).CloseWrite(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error("a pipe has no halves:", err)
	}
	if _, err := nc.(*proxyConn).SyscallConn(); !errors.Is(err, errors.ErrUnsupported) {
		t.Error("a pipe has no descriptor:", err)
	}
}

// A header whose octets come slowly has the same time as any other.
func TestProxySlow(t *testing.T) {
	for _, tc := range []struct {
		name   string
		every  time.Duration
		header string
		took   time.Duration // 0: it is read
	}{
		{"in time", 100 * time.Millisecond, "PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n", 0},
		{"v1", 200 * time.Millisecond, "PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n", defaultProxyTimeout},
		{"v2", time.Second, v2Header(v2Proxy, v2TCP4, addr4), defaultProxyTimeout},
		{"half-open", time.Hour, "PROXY", defaultProxyTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, far := proxied(t)
				var drip sync.WaitGroup
				defer drip.Wait()
				drip.Go(func() {
					for i := range len(tc.header) {
						if _, err := io.WriteString(far, tc.header[i:i+1]); err != nil {
							return
						}
						time.Sleep(tc.every)
					}
				})
				start := time.Now()
				nc, _, err := fromTen.accept(t.Context(), near)
				if tc.took == 0 {
					if err != nil {
						t.Fatal(err)
					}
					nc.SetReadDeadline(start.Add(time.Minute)) // that of the header is gone
					if _, err := nc.Read(make([]byte, 1)); time.Since(start) != time.Minute {
						t.Error(time.Since(start), err)
					}
					return
				}
				if !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != tc.took {
					t.Fatal(time.Since(start), err)
				}
				if n, err := far.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("it was told %d octets, %v", n, err)
				}
			})
		})
	}
}

// A shutdown does not wait for a header.
func TestProxyInterrupted(t *testing.T) {
	for name, interrupt := range map[string]func(nc net.Conn, cancel func()){
		"deadline": func(nc net.Conn, _ func()) { nc.SetReadDeadline(time.Unix(1, 0)) },
		"context":  func(_ net.Conn, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, _ := proxied(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				done := make(chan error, 1)
				start := time.Now()
				go func() {
					_, _, err := fromTen.accept(ctx, near)
					done <- err
				}()
				synctest.Wait()
				interrupt(near, cancel)
				if err := <-done; err == nil || time.Since(start) != 0 {
					t.Error(err, time.Since(start))
				}
			})
		})
	}
	near, _ := proxied(t)
	late := fromTen
	late.closing = func() bool { return true } // and the deadline that said so was overwritten
	if _, _, err := late.accept(t.Context(), near); !errors.Is(err, errProxyClosing) {
		t.Error(err)
	}
}

// Over real sockets: a reset before the header, a proxy that closes at once, and the
// halves of the connection that comes out.
func TestProxySockets(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	p := proxySettings{trusted: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	open := func(act func(c *net.TCPConn)) (net.Conn, error) {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		act(c.(*net.TCPConn))
		nc, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		nc, _, err = p.accept(t.Context(), nc)
		return nc, err
	}
	if _, err := open(func(c *net.TCPConn) { c.Close() }); !errors.Is(err, io.EOF) {
		t.Error("closed:", err)
	}
	if _, err := open(func(c *net.TCPConn) { io.WriteString(c, "PROXY "); c.SetLinger(0); c.Close() }); err == nil {
		t.Error("reset: no error")
	}
	var peer *net.TCPConn
	nc, err := open(func(c *net.TCPConn) { peer = c; io.WriteString(c, v2Header(v2Proxy, v2TCP4, addr4)+"x") })
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.(*proxyConn).SyscallConn(); err != nil {
		t.Error(err)
	}
	if err := nc.(*proxyConn).CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Error("the other half is open:", err)
	}
	if n, err := nc.Read(make([]byte, 2)); n != 1 || err != nil {
		t.Error(n, err)
	}
}
