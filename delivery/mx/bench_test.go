package mx_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/testnet"
	"github.com/penstock/penstock/resolver"
)

// BenchmarkFind finds the hosts of a domain that has two with two addresses each: with records
// in memory, and of 10,000 domains by a resolver that has all of them in its cache.
func BenchmarkFind(b *testing.B) {
	b.Run("memory", func(b *testing.B) {
		d := testnet.NewDNS(`
			example.com MX 10 mx1.example.net
			example.com MX 20 mx2.example.net
			mx1.example.net A 192.0.2.1
			mx1.example.net AAAA 2001:db8::1
			mx2.example.net A 192.0.2.2
			mx2.example.net AAAA 2001:db8::2
		`)
		find(b, d, func(int) string { return "example.com" })
	})
	b.Run("cache", func(b *testing.B) {
		const domains = 10_000
		r, err := resolver.New(resolver.Options{
			Servers:   []resolver.Server{{Address: server(b)}},
			CacheSize: 10 * domains, CacheBytes: 256 << 20,
		})
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
		name := func(i int) string { return fmt.Sprintf("d%d.example", i%domains) }
		o := mx.Options{DNS: r, Guard: guard(b, mx.GuardOptions{})}
		for i := range domains {
			if _, err := mx.Find(b.Context(), mx.Target{Domain: name(i)}, o); err != nil {
				b.Fatal(err)
			}
		}
		find(b, r, name)
	})
}

func find(b *testing.B, d resolver.DNS, name func(i int) string) {
	o := mx.Options{DNS: d, Guard: guard(b, mx.GuardOptions{})}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := mx.Find(b.Context(), mx.Target{Domain: name(i)}, o); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// server answers each question about MX records with two hosts of the name, and about addresses
// with one.
func server(b *testing.B) string {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	s := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(q)
		name := q.Question[0].Name
		for _, data := range map[uint16][]string{
			dns.TypeMX: {"MX 10 mx1." + name, "MX 20 mx2." + name}, dns.TypeA: {"A 192.0.2.1"}, dns.TypeAAAA: {"AAAA 2001:db8::1"},
		}[q.Question[0].Qtype] {
			rr, err := dns.NewRR(name + " 3600 IN " + data)
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		w.WriteMsg(m)
	})}
	done := make(chan struct{})
	started := make(chan struct{})
	s.NotifyStartedFunc = func() { close(started) }
	go func() {
		defer close(done)
		s.ActivateAndServe()
	}()
	<-started
	b.Cleanup(func() { s.Shutdown(); <-done })
	return pc.LocalAddr().String()
}
