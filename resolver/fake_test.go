package resolver

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// fake_test.go: a DNS server that fails in a chosen way, and what all tests need.

// fake is a resolver on the loopback, over UDP and TCP on one port. It belongs to one test,
// and ends with it.
type fake struct {
	addr string
	// zone are its records. A name that is asked for and not there does not exist, unless
	// something is below it.
	zone []dns.RR
	// ad tells it to say of all answers that they are authenticated.
	ad atomic.Bool

	mu    sync.Mutex
	react reaction // nil answers from the zone
	asked []asked
}

// asked is a query as the fake saw it.
type asked struct {
	name string
	typ  Type
	tcp  bool
	id   uint16
	from string // address and port
	edns bool
	ad   bool
}

// reaction answers a query in its own way. reply is what the zone says; nil sends nothing.
type reaction func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg

// newFake starts a fake with the records of a zone file.
func newFake(t testing.TB, zone string) *fake {
	t.Helper()
	f := &fake{zone: parseZone(t, zone)}
	pc, l := listen(t)
	f.addr = l.Addr().String()
	started := make(chan struct{}, 2)
	for _, s := range []*dns.Server{{PacketConn: pc, UDPSize: 4096}, {Listener: l}} {
		s.Handler, s.NotifyStartedFunc = f, func() { started <- struct{}{} }
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.ActivateAndServe()
		}()
		t.Cleanup(func() {
			s.Shutdown()
			<-done
		})
	}
	<-started
	<-started
	return f
}

// listen takes a port for both UDP and TCP.
func listen(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		if pc, err := net.ListenPacket("udp", l.Addr().String()); err == nil {
			return pc, l
		}
		l.Close()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return nil, nil
}

func parseZone(t testing.TB, zone string) []dns.RR {
	t.Helper()
	var list []dns.RR
	p := dns.NewZoneParser(strings.NewReader("$TTL 300\n"+zone), ".", "zone")
	for rr, ok := p.Next(); ok; rr, ok = p.Next() {
		list = append(list, rr)
	}
	if err := p.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

// ServeDNS answers one query.
func (f *fake) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	a := asked{
		name: fold(q.Question[0].Name), typ: Type(q.Question[0].Qtype), id: q.Id,
		from: w.RemoteAddr().String(), edns: q.IsEdns0() != nil, ad: q.AuthenticatedData,
	}
	_, a.tcp = w.RemoteAddr().(*net.TCPAddr)
	f.mu.Lock()
	f.asked = append(f.asked, a)
	react := f.react
	f.mu.Unlock()
	m := f.answer(q)
	if react != nil {
		m = react(q, a, m)
	}
	if m == nil {
		return
	}
	if a.tcp {
		w.WriteMsg(m)
		return
	}
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = int(opt.UDPSize())
	}
	m.Truncate(size)
	w.WriteMsg(m)
}

// answer is what the zone says.
func (f *fake) answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	m.AuthenticatedData = f.ad.Load() && q.AuthenticatedData
	m.Rcode = dns.RcodeNameError
	name := fold(q.Question[0].Name)
	for range 20 { // a chain
		next := ""
		for _, rr := range f.zone {
			h := rr.Header()
			if owner := fold(h.Name); owner != name && !strings.HasSuffix(owner, "."+name) {
				continue
			} else if m.Rcode = dns.RcodeSuccess; owner != name {
				continue
			}
			if c, ok := rr.(*dns.CNAME); ok && q.Question[0].Qtype != dns.TypeCNAME {
				next = fold(c.Target)
				m.Answer = append(m.Answer, rr)
			} else if h.Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		if next == "" {
			break
		}
		name, m.Rcode = next, dns.RcodeNameError
	}
	for _, rr := range f.zone {
		if soa, ok := rr.(*dns.SOA); ok && within(name, fold(soa.Hdr.Name)) {
			m.Ns = append(m.Ns, rr)
		}
	}
	return m
}

// set changes how the fake reacts.
func (f *fake) set(r reaction) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.react = r
}

// queries returns what was asked so far.
func (f *fake) queries() []asked {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]asked(nil), f.asked...)
}

// clock is a clock that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// start makes a Resolver that asks the fakes, for the time of the test.
func start(t testing.TB, o Options, fakes ...*fake) *Resolver {
	t.Helper()
	for _, f := range fakes {
		o.Servers = append(o.Servers, Server{Address: f.addr})
	}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
