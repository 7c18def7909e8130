package resolver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// fault_test.go: servers that fail, lie, are slow or not there.

// overUDP lets a reaction answer queries over UDP, and the zone those over TCP.
func overUDP(react reaction) reaction {
	return func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
		if a.tcp {
			return reply
		}
		return react(q, a, reply)
	}
}

// code answers with a reply code, and an extended error if it is not 0.
func code(rcode int, ede uint16) reaction {
	return func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
		reply.SetRcode(q, rcode)
		if ede != 0 {
			reply.SetEdns0(1232, false)
			reply.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_EDE{InfoCode: ede, ExtraText: "why not"}}
		}
		return reply
	}
}

// rrs answers with these records alone.
func rrs(t *testing.T, zone string) reaction {
	list := parseZone(t, zone)
	return func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
		reply.Answer, reply.Ns, reply.Rcode = list, nil, dns.RcodeSuccess
		return reply
	}
}

func TestFaults(t *testing.T) {
	loop, long, many, large := "", "", "", ""
	for i := range 12 {
		long += fmt.Sprintf("c%d.example. CNAME c%d.example.\n", i, i+1)
	}
	for i := range maxRecords + 1 {
		many += fmt.Sprintf("x.example. A 192.0.%d.%d\n", i/256, i%256)
	}
	for i := range 200 {
		large += fmt.Sprintf("x.example. A 192.0.2.%d\n", i)
	}
	loop = "x.example. CNAME y.example.\ny.example. CNAME x.example."
	silent := func(*dns.Msg, asked, *dns.Msg) *dns.Msg { return nil }
	for _, tt := range []struct {
		why     string
		name    string // default x.example
		react   reaction
		want    error // of A; nil if there are addresses
		records int   // default 1
		queries int
		cause   string
	}{
		{why: "all is well", queries: 1},
		{why: "truncated", queries: 2, react: overUDP(func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Truncated, reply.Answer = true, nil
			return reply
		})},
		{why: "large", queries: 2, react: rrs(t, large), records: 200},
		{why: "truncated on a stream", queries: 2, want: ErrTemporary, cause: "truncated", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Truncated = true
			return reply
		}},
		{why: "another number", queries: 2, want: ErrTemporary, cause: "not the reply", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Id++
			return reply
		}},
		{why: "another name", queries: 2, want: ErrTemporary, cause: "not the reply", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Question[0].Name = "z.example."
			return reply
		}},
		{why: "another type", queries: 2, want: ErrTemporary, cause: "not the reply", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Question[0].Qtype = dns.TypeMX
			return reply
		}},
		{why: "another class", queries: 2, want: ErrTemporary, cause: "not the reply", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Question[0].Qclass = dns.ClassCHAOS
			return reply
		}},
		{why: "no question", queries: 2, want: ErrTemporary, cause: "not the reply", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Question = nil
			return reply
		}},
		{why: "two questions", queries: 2, want: ErrTemporary, cause: "not the reply", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Question = append(reply.Question, reply.Question[0])
			return reply
		}},
		{why: "a query", queries: 2, want: ErrTemporary, cause: "not the reply", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Response = false
			return reply
		}},
		{why: "the question in capitals", queries: 1, react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Question[0].Name = "X.eXample."
			reply.Answer[0].Header().Name = "x.EXAMPLE."
			return reply
		}},
		{why: "silent", queries: 2, react: silent, want: ErrTemporary, cause: "in time"},
		{why: "lost on the way", queries: 2, react: overUDP(silent)},
		{why: "no EDNS, says so", queries: 2, react: func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
			if a.edns {
				return reply.SetRcode(q, dns.RcodeFormatError)
			}
			return reply
		}},
		{why: "no EDNS, and no question", queries: 2, react: func(q *dns.Msg, a asked, reply *dns.Msg) *dns.Msg {
			if a.edns {
				reply.SetRcode(q, dns.RcodeNotImplemented)
				reply.Question = nil
			}
			return reply
		}},
		{why: "does not understand at all", queries: 2, want: ErrTemporary, cause: "FORMERR", react: code(dns.RcodeFormatError, 0)},
		{why: "failure", queries: 1, want: ErrTemporary, cause: "SERVFAIL", react: code(dns.RcodeServerFailure, 0)},
		{why: "failure with a reason", queries: 1, want: ErrTemporary, cause: `No Reachable Authority: "why not"`, react: code(dns.RcodeServerFailure, dns.ExtendedErrorCodeNoReachableAuthority)},
		{why: "bogus", queries: 1, want: ErrBogus, cause: `DNSSEC Bogus: "why not"`, react: code(dns.RcodeServerFailure, dns.ExtendedErrorCodeDNSBogus)},
		{why: "bogus in another way", queries: 1, want: ErrBogus, cause: "RRSIGs Missing", react: code(dns.RcodeServerFailure, dns.ExtendedErrorCodeRRSIGsMissing)},
		{why: "refused", queries: 1, want: ErrTemporary, cause: "REFUSED", react: code(dns.RcodeRefused, 0)},
		{why: "a code of an update", queries: 1, want: ErrTemporary, cause: "YXDOMAIN", react: code(dns.RcodeYXDomain, 0)},
		{why: "an unknown code", queries: 1, want: ErrTemporary, cause: "unknown", react: code(14, 0)},
		{why: "a referral", queries: 1, want: ErrTemporary, cause: "refers", react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Ns, reply.Answer, reply.RecursionAvailable = parseZone(t, "example. NS ns.example."), nil, false
			return reply
		}},
		{why: "a loop", queries: 1, want: ErrTemporary, cause: "does not end", react: rrs(t, loop)},
		{why: "a long chain", name: "c0.example", queries: 1, want: ErrTemporary, cause: "does not end", react: rrs(t, long+"c12.example. A 192.0.2.1")},
		{why: "a chain at the limit", name: "c2.example", queries: 1, react: rrs(t, long+"c12.example. A 192.0.2.1")},
		{why: "too many records", queries: 2, want: ErrTemporary, cause: "too many", react: rrs(t, many)},
		{why: "records of others", queries: 1, want: ErrNoData, react: rrs(t, "y.example. A 192.0.2.1")},
		{why: "NODATA without SOA", queries: 1, want: ErrNoData, react: rrs(t, "")},
		{why: "records with NXDOMAIN", queries: 1, want: ErrNoName, react: func(q *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
			reply.Rcode = dns.RcodeNameError
			return reply
		}},
	} {
		t.Run(tt.why, func(t *testing.T) {
			f := newFake(t, "x.example. A 192.0.2.1")
			f.set(tt.react)
			if tt.name == "" {
				tt.name = "x.example"
			}
			if tt.records == 0 {
				tt.records = 1
			}
			o := Options{Tries: 1}
			if tt.why == "lost on the way" || tt.cause == "in time" || tt.cause == "not the reply" {
				o.Timeout = 150 * time.Millisecond
			}
			r := start(t, o, f)
			got, err := r.LookupAddrs(t.Context(), tt.name, IPv4)
			switch {
			case tt.want == nil && (err != nil || len(got.Addrs) != tt.records):
				t.Errorf("got %v, %v; want %d addresses", got.Addrs, err, tt.records)
			case !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), tt.cause):
				t.Errorf("got %v, want %v with %q", err, tt.want, tt.cause)
			}
			if n := len(f.queries()); n != tt.queries {
				t.Errorf("the server was asked %d times, want %d", n, tt.queries)
			}
		})
	}
}

// spoofer answers over UDP with datagrams of its own before the reply.
func spoofer(t *testing.T, f *fake, before func(id uint16) [][]byte) *fake {
	t.Helper()
	pc, l := listen(t)
	s := &dns.Server{Listener: l, Handler: f}
	var done sync.WaitGroup
	done.Go(func() { s.ActivateAndServe() })
	done.Go(func() {
		var buf [1500]byte
		for {
			n, from, err := pc.ReadFrom(buf[:])
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if q.Unpack(buf[:n]) != nil {
				continue
			}
			for _, b := range before(q.Id) {
				pc.WriteTo(b, from)
			}
			if b, err := f.answer(q).Pack(); err == nil {
				pc.WriteTo(b, from)
			}
		}
	})
	t.Cleanup(func() {
		pc.Close()
		l.Close()
		done.Wait()
	})
	return &fake{addr: pc.LocalAddr().String()}
}

// TestForeign: what is not the reply does not keep the reply away, and who guesses
// numbers is left behind.
func TestForeign(t *testing.T) {
	forged := func(id uint16) []byte {
		m := new(dns.Msg)
		m.SetQuestion("x.example.", dns.TypeA)
		m.Id, m.Response = id, true
		m.Answer = parseZone(t, "x.example. A 192.0.2.66")
		b, _ := m.Pack()
		return b
	}
	for _, tt := range []struct {
		why     string
		before  func(id uint16) [][]byte
		foreign uint64
		streams uint64
	}{
		{"a few guesses", func(id uint16) [][]byte { return [][]byte{forged(id + 1), forged(id - 1), nil, {1, 2, 3}} }, 4, 0},
		{"many guesses", func(id uint16) [][]byte {
			var list [][]byte
			for i := range uint16(maxForeign) {
				list = append(list, forged(id+1+i))
			}
			return list
		}, maxForeign, 1},
		{"garbage with our number", func(id uint16) [][]byte {
			return [][]byte{slices.Concat([]byte{byte(id >> 8), byte(id), 0x80, 0, 0, 1, 0, 1, 0, 0, 0, 0}, []byte("\x07garbage"))}
		}, 1, 1},
	} {
		f := newFake(t, "x.example. A 192.0.2.1")
		r := start(t, Options{}, spoofer(t, f, tt.before))
		got, err := r.LookupAddrs(t.Context(), "x.example", IPv4)
		if err != nil || !slices.Equal(got.Addrs, addrs("192.0.2.1")) {
			t.Errorf("%s: got %v, %v", tt.why, got.Addrs, err)
		}
		if s := r.Stats(); s.Foreign != tt.foreign || s.Streams != tt.streams {
			t.Errorf("%s: got %d foreign and %d streams, want %d and %d", tt.why, s.Foreign, s.Streams, tt.foreign, tt.streams)
		}
	}
}

// TestUnguessable: each query has a number and a port of its own.
func TestUnguessable(t *testing.T) {
	f := newFake(t, "")
	r := start(t, Options{}, f)
	ids, ports := make(map[uint16]bool), make(map[string]bool)
	const n = 40
	for i := range n {
		r.LookupMX(t.Context(), fmt.Sprintf("x%d.example", i))
	}
	for _, q := range f.queries() {
		ids[q.id], ports[q.from] = true, true
	}
	// Some may meet by chance.
	if len(ids) < n-3 || len(ports) < n/2 {
		t.Errorf("%d queries had %d numbers and %d ports", n, len(ids), len(ports))
	}
}

// TestFailover: who is asked next.
func TestFailover(t *testing.T) {
	for _, tt := range []struct {
		why    string
		first  reaction
		want   error
		counts [2]int // queries for the first and the second name, at the first server
		second int
	}{
		{"silent, and asked last from then on", func(*dns.Msg, asked, *dns.Msg) *dns.Msg { return nil }, nil, [2]int{2, 0}, 2}, // over UDP and TCP
		{"failed", code(dns.RcodeServerFailure, 0), nil, [2]int{1, 1}, 2},
		{"refused", code(dns.RcodeRefused, 0), nil, [2]int{1, 1}, 2},
		{"bogus: nobody knows better", code(dns.RcodeServerFailure, dns.ExtendedErrorCodeDNSBogus), ErrBogus, [2]int{1, 1}, 0},
	} {
		a, b := newFake(t, "x.example. MX 1 x.example."), newFake(t, "x.example. MX 1 x.example.\ny.example. MX 1 y.example.")
		a.set(tt.first)
		r := start(t, Options{Timeout: 500 * time.Millisecond}, a, b)
		seen := 0
		for i, name := range []string{"x.example", "y.example"} {
			if _, err := r.LookupMX(t.Context(), name); !errors.Is(err, tt.want) {
				t.Errorf("%s: got %v, want %v", tt.why, err, tt.want)
			}
			now := len(a.queries())
			if now-seen != tt.counts[i] {
				t.Errorf("%s: the first server was asked %d times for %s, want %d", tt.why, now-seen, name, tt.counts[i])
			}
			seen = now
		}
		if n := len(b.queries()); n != tt.second {
			t.Errorf("%s: the second server was asked %d times, want %d", tt.why, n, tt.second)
		}
	}
}

// TestFailureBothWays: servers that both fail are asked once each; those that are silent
// again and again, within the budget.
func TestFailureBothWays(t *testing.T) {
	a, b := newFake(t, ""), newFake(t, "")
	a.set(code(dns.RcodeServerFailure, 0))
	b.set(code(dns.RcodeRefused, 0))
	r := start(t, Options{Tries: 3}, a, b)
	if _, err := r.LookupTXT(t.Context(), "x.example"); !errors.Is(err, ErrTemporary) {
		t.Errorf("got %v, want ErrTemporary", err)
	}
	if n := len(a.queries()) + len(b.queries()); n != 2 {
		t.Errorf("%d queries, want 2", n)
	}

	silent := func(*dns.Msg, asked, *dns.Msg) *dns.Msg { return nil }
	a.set(silent)
	b.set(silent)
	r = start(t, Options{Tries: 1000, Timeout: 20 * time.Millisecond, Budget: 150 * time.Millisecond}, a, b)
	began := time.Now()
	_, err := r.LookupTXT(t.Context(), "x.example")
	if took := time.Since(began); !errors.Is(err, ErrTemporary) || took > 3*time.Second {
		t.Errorf("got %v after %v, want ErrTemporary within the budget", err, took)
	}
	if n := len(a.queries()) + len(b.queries()) - 2; n < 3 {
		t.Errorf("%d queries, want several tries", n)
	}
}

// TestShared: many callers, one query; who leaves does not take the others along.
func TestShared(t *testing.T) {
	f := newFake(t, "x.example. MX 1 x.example.")
	release := make(chan struct{})
	f.set(func(_ *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
		<-release
		return reply
	})
	r := start(t, Options{}, f)
	leaving, leave := context.WithCancel(t.Context())
	var gone, all sync.WaitGroup
	gone.Go(func() {
		if _, err := r.LookupMX(leaving, "x.example"); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrTemporary) {
			t.Errorf("who left: got %v, want context.Canceled and ErrTemporary", err)
		}
	})
	const n = 50
	for range n {
		all.Go(func() {
			if a, err := r.LookupMX(t.Context(), "X.example."); err != nil || len(a.Records) != 1 {
				t.Errorf("who stayed: got %v, %v", a.Records, err)
			}
		})
	}
	eventually(t, func() bool { return r.Stats().Shared == n })
	leave()
	gone.Wait()
	close(release)
	all.Wait()
	if q := f.queries(); len(q) != 1 {
		t.Errorf("%d queries, want 1", len(q))
	}
}

// TestAbandoned: an answer that comes when nobody waits any more is there for the next.
func TestAbandoned(t *testing.T) {
	f := newFake(t, "x.example. MX 1 x.example.")
	release := make(chan struct{})
	f.set(func(_ *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
		<-release
		return reply
	})
	r := start(t, Options{}, f)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.LookupMX(ctx, "x.example"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want context.DeadlineExceeded", err)
	}
	close(release)
	eventually(t, func() bool { return r.Stats().Inflight == 0 })
	if _, err := r.LookupMX(t.Context(), "x.example"); err != nil || r.Stats().Hits != 1 {
		t.Errorf("got %v and %+v, want the answer from the cache", err, r.Stats())
	}
}

// eventually waits until a thing is so, which another goroutine makes so.
func eventually(t *testing.T, so func() bool) {
	t.Helper()
	limit := time.NewTimer(10 * time.Second)
	defer limit.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatal("it never was so")
		}
	}
}

// TestBusy: more look-ups than allowed fail at once, and are not held against the name.
func TestBusy(t *testing.T) {
	f := newFake(t, "y.example. MX 1 x.example.")
	release := make(chan struct{})
	f.set(func(_ *dns.Msg, _ asked, reply *dns.Msg) *dns.Msg {
		<-release
		return reply
	})
	r := start(t, Options{Inflight: 1}, f)
	var all sync.WaitGroup
	all.Go(func() { r.LookupMX(t.Context(), "x.example") })
	eventually(t, func() bool { return r.Stats().Inflight == 1 })
	if _, err := r.LookupMX(t.Context(), "y.example"); !errors.Is(err, errBusy) || !errors.Is(err, ErrTemporary) {
		t.Errorf("got %v, want errBusy", err)
	}
	close(release)
	all.Wait()
	if _, err := r.LookupMX(t.Context(), "y.example"); err != nil {
		t.Error(err)
	}
}

// TestClose ends what is under way, and is remembered.
func TestClose(t *testing.T) {
	f := newFake(t, "")
	f.set(func(*dns.Msg, asked, *dns.Msg) *dns.Msg { return nil })
	r := start(t, Options{Timeout: time.Minute, Budget: time.Minute}, f)
	var all sync.WaitGroup
	for i := range 10 {
		all.Go(func() {
			if _, err := r.LookupMX(t.Context(), fmt.Sprintf("x%d.example", i)); !errors.Is(err, ErrTemporary) {
				t.Errorf("got %v, want ErrTemporary", err)
			}
		})
	}
	eventually(t, func() bool { return len(f.queries()) == 10 })
	r.Close()
	r.Close()
	all.Wait()
	if _, err := r.LookupMX(t.Context(), "x.example"); !errors.Is(err, errClosed) || !errors.Is(err, ErrTemporary) {
		t.Errorf("after Close: got %v, want errClosed", err)
	}
}
