package lab

// world.go puts the parts together and starts them.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/resolver"
)

// Where things are. At lameAddr questions are refused, at silentAddr they are taken and not
// answered.
const (
	nsdAddr    = "127.53.0.1"
	lameAddr   = "127.53.0.2"
	silentAddr = "127.53.0.3"
	webAddr    = "127.0.128.1"
)

// World is the small Internet of one test. Zones and hosts are added until Start; what they
// recorded may be read by several goroutines afterwards.
type World struct {
	// Authority is a certificate authority that the world trusts, for PKIX.
	Authority *Cert
	// DNS asks unbound, and believes its AD bit. It is there from Start on.
	DNS *resolver.Resolver
	// Resolver is the address of unbound, and Unbound what runs there.
	Resolver string
	Unbound  *peers.UnboundServer

	t     testing.TB
	ports map[string]string // where the port of a service is really; nil: there
	zones []*Zone           // the root is the first
	hosts []*Host
	web   *web
	nsd   *peers.NSDServer
	last  int // how many addresses of hosts were given out
	last6 int // and of IPv6
}

// New makes a world that has a root zone and nothing else. What it starts is stopped when
// the test ends. It must be called after Enter.
func New(t testing.TB) *World {
	t.Helper()
	w := &World{t: t, Authority: SelfSigned(t, CertSpec{Name: "Penstock lab authority", Authority: true})}
	if os.Getenv(inside) != t.Name() {
		w.ports = highPorts(t)
	}
	w.web = newWeb(w)
	w.Zone(".", Signed)
	return w
}

// highPorts finds stand-ins for the ports of the services.
func highPorts(t testing.TB) map[string]string {
	t.Helper()
	ports := make(map[string]string)
	for _, service := range []string{"25", "53", "443"} {
		for tries := 0; ports[service] == ""; tries++ {
			port := strconv.Itoa(20000 + rand.IntN(12000))
			l, err := net.Listen("tcp", net.JoinHostPort(nsdAddr, port))
			if err == nil {
				l.Close()
				ports[service] = port
			} else if tries == 200 {
				t.Fatalf("lab: no free port for %s: %v", service, err)
			}
		}
	}
	return ports
}

// Port returns where a well-known port is in this world: there, in a namespace.
func (w *World) Port(service string) string {
	if p, ok := w.ports[service]; ok {
		return p
	}
	return service
}

// Real skips a test that needs the real ports and more than one account, since it runs mail
// servers of others.
func (w *World) Real(t testing.TB) {
	t.Helper()
	if w.ports != nil || alone() {
		peers.Missing(t, "a network namespace with all accounts", "run the tests as root, in a container that permits unshare(2)")
	}
}

// Dial connects like net.Dialer, to where the port really is. It has the shape that most
// settings for a dialer have.
func (w *World) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(host, w.Port(port)))
}

// Zone adds a zone. Its parent is the zone with the longest name above it.
func (w *World) Zone(name string, kind Kind) *Zone {
	w.t.Helper()
	server := map[Kind]string{Lame: lameAddr, Silent: silentAddr}[kind]
	if server == "" {
		server = nsdAddr
	}
	z := newZone(w.t, dns.Fqdn(name), kind, server)
	w.zones = append(w.zones, z)
	return z
}

// zoneOf returns the zone that a name is in.
func (w *World) zoneOf(name string, above bool) *Zone {
	var found *Zone
	for _, z := range w.zones {
		fits := dns.IsSubDomain(z.name, name) && !(above && z.name == name)
		if fits && (found == nil || len(z.name) > len(found.name) || found.name == ".") {
			found = z
		}
	}
	return found
}

// Start signs the zones and starts everything. It is called once.
func (w *World) Start() {
	w.t.Helper()
	zones := make(map[string]string)
	for _, z := range w.zones[1:] {
		w.zoneOf(z.name, true).delegate(z)
	}
	for _, z := range w.zones {
		if !z.empty {
			zones[z.name] = z.file()
		}
	}
	w.listenLame()
	w.listenSilent()
	w.nsd = peers.NSD(w.t, peers.NSDOptions{Addr: net.JoinHostPort(nsdAddr, w.Port("53")), Zones: zones})
	w.startUnbound(w.nsd.Addr)
	for _, h := range w.hosts {
		h.start()
	}
	w.web.start()
}

// Update makes what was changed in a zone since Start known. It must not be called while others
// look names up: the name server is away for a moment. Unbound keeps what it was told
// before for as long as its TTL says, an hour unless the record says otherwise; that there is
// no record, for a minute.
func (w *World) Update(t testing.TB, z *Zone) {
	t.Helper()
	w.nsd.Replace(t, z.name, z.file())
}

// startUnbound starts the resolver and makes ours that asks it.
func (w *World) startUnbound(nsd string) {
	w.t.Helper()
	opt := peers.UnboundOptions{
		Addr:    net.JoinHostPort("127.0.0.1", w.Port("53")),
		Zones:   make(map[string]string),
		Anchors: []string{w.zones[0].anchor()},
		Conf:    []string{"log-servfail: yes", "rrset-roundrobin: no"}, // the order is that of the zone
	}
	for _, z := range w.zones {
		// Zones have to be named where NS records lead to another port than 53.
		switch {
		case z.kind == Lame:
			opt.Zones[z.name] = net.JoinHostPort(lameAddr, w.Port("53"))
		case z.kind == Silent:
			opt.Zones[z.name] = net.JoinHostPort(silentAddr, w.Port("53"))
		case w.ports != nil || z.name == ".":
			opt.Zones[z.name] = nsd
		}
		if dns.CountLabel(z.name) == 1 { // unbound knows some that are not to be asked for, as test.
			opt.Conf = append(opt.Conf, fmt.Sprintf(`local-zone: "%s" nodefault`, z.name))
		}
	}
	w.Unbound = peers.Unbound(w.t, opt)
	w.Resolver = w.Unbound.Addr
	if w.ports == nil {
		w.coverResolvConf()
	}
	var err error
	w.DNS, err = resolver.New(resolver.Options{Servers: []resolver.Server{{Address: w.Resolver}}})
	if err != nil {
		w.t.Fatalf("lab: resolver: %v", err)
	}
	w.t.Cleanup(w.DNS.Close)
}

// coverResolvConf leads everybody in the namespace to unbound. With trust-ad the C library
// passes the AD bit on, which Postfix needs.
func (w *World) coverResolvConf() {
	w.t.Helper()
	file := filepath.Join(w.t.TempDir(), "resolv.conf")
	text := "nameserver 127.0.0.1\noptions trust-ad edns0\n"
	err := os.WriteFile(file, []byte(text), 0o644)
	if err == nil {
		err = os.Chmod(file, 0o644)
	}
	if err == nil {
		err = cover(file)
	}
	if err != nil {
		w.t.Fatalf("lab: %v", err)
	}
}

// listenLame refuses questions for the lame zones.
func (w *World) listenLame() {
	w.t.Helper()
	refuse := dns.HandlerFunc(func(rw dns.ResponseWriter, q *dns.Msg) {
		_ = rw.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeRefused))
	})
	for _, network := range []string{"udp", "tcp"} {
		ready, done := make(chan struct{}), make(chan error, 1)
		s := &dns.Server{Addr: net.JoinHostPort(lameAddr, w.Port("53")), Net: network, Handler: refuse, NotifyStartedFunc: func() { close(ready) }}
		go func() { done <- s.ListenAndServe() }() // ends with Shutdown
		select {
		case <-ready:
		case err := <-done:
			w.t.Fatalf("lab: %v", err)
		}
		w.t.Cleanup(func() {
			_ = s.Shutdown()
			<-done
		})
	}
}

// listenSilent takes questions for the silent zones and answers none.
func (w *World) listenSilent() {
	w.t.Helper()
	addr := net.JoinHostPort(silentAddr, w.Port("53"))
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		w.t.Fatalf("lab: %v", err)
	}
	tcp, err := net.Listen("tcp", addr)
	if err != nil {
		udp.Close()
		w.t.Fatalf("lab: %v", err)
	}
	w.t.Cleanup(func() {
		udp.Close()
		tcp.Close()
	})
}

// address gives out the next address of a mail host: 127.0.1.1 and on.
func (w *World) address() netip.Addr {
	addr := netip.AddrFrom4([4]byte{127, 0, byte(1 + w.last/250), byte(1 + w.last%250)})
	w.last++
	return addr
}

// IPv6 tells whether hosts can have addresses of IPv6: in a namespace, where IPv6 is not off.
func (w *World) IPv6() bool {
	if w.ports != nil {
		return false
	}
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return false
	}
	l.Close()
	return true
}

// address6 gives out the next address of IPv6: fd53::1 and on.
func (w *World) address6() netip.Addr {
	w.t.Helper()
	w.last6++
	addr := netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x53, 14: byte(w.last6 >> 8), 15: byte(w.last6)})
	if err := assign(addr); err != nil {
		w.t.Fatalf("lab: %v", err)
	}
	return addr
}

// stopLimit is how long a server of the world may take to stop.
const stopLimit = 2 * time.Second
