package resolver

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// auto.go finds servers if the options name none.

// probeLimit is how long a server on the loopback has to show itself. A resolver answers
// for the root out of its memory; one that has just started asks once.
const probeLimit = time.Second

// servers returns the servers to ask: those named, or what is found.
func (o Options) servers() ([]Server, error) {
	if len(o.Servers) > 0 {
		return o.Servers, nil
	}
	local := Server{Network: "udp", Address: o.local}
	if answers(local) {
		return []Server{local}, nil
	}
	return readResolvConf(o.ResolvConf)
}

// answers tells whether there is a server that does recursion: it is asked for the name servers
// of the root, which one that is authoritative alone refuses. One that fails to find them, or that
// takes connections and says nothing in time, is there all the same: whoever keeps it from the
// root while we start must not leave us without DNSSEC for good.
func answers(s Server) bool {
	ctx, cancel := context.WithTimeout(context.Background(), probeLimit)
	defer cancel()
	h := newHost(s)
	defer h.close()
	m, err := h.exchange(ctx, newQuery(".", TypeNS), new(counters))
	if err == nil {
		return m.RecursionAvailable && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeServerFailure)
	}
	conn, err := net.DialTimeout("tcp", s.Address, probeLimit)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// maxResolvConf bounds what is read of the file.
const maxResolvConf = 64 << 10

// readResolvConf returns the servers of a file like resolv.conf(5). Their AD bit does not
// count, not even on the loopback: a stub that forwards copies whatever it gets.
func readResolvConf(path string) ([]Server, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("resolver: read servers: %w", err)
	}
	defer f.Close()
	servers, err := parseResolvConf(f)
	if err != nil {
		return nil, fmt.Errorf("resolver: read servers of %s: %w", path, err)
	}
	if len(servers) == 0 {
		return nil, fmt.Errorf("resolver: %s names no server", path)
	}
	return servers, nil
}

// parseResolvConf returns the servers of the nameserver lines, as many as are asked by the
// C library: three. Search lists and options are not for us, whose names are absolute.
func parseResolvConf(r io.Reader) ([]Server, error) {
	const most = 3
	text, err := io.ReadAll(io.LimitReader(r, maxResolvConf))
	if err != nil {
		return nil, err
	}
	var servers []Server
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		if err == nil && len(servers) < most {
			servers = append(servers, Server{
				Network: "udp", Address: netip.AddrPortFrom(addr, 53).String(), Trust: TrustNo,
			})
		}
	}
	return servers, nil
}
