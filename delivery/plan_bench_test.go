package delivery

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/resolver"
)

// plan_bench_test.go: how many domains a second can be planned.

// BenchmarkPlan plans a thousand domains, as many at a time as there are processors: those whose plans are kept, and
// those whose plans are made anew of the answers that the resolver has kept. Each has two MX
// hosts with TLSA records and a policy.
func BenchmarkPlan(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
	}{{"kept", 0}, {"made", -1}} {
		b.Run(c.name, func(b *testing.B) {
			p, targets := benchPlanner(b, c.size)
			for _, to := range targets { // warms what there is
				if got := summed(p.Plan(b.Context(), to, Need{})); got != "mx1 dane, mx2 dane" && got != "mx2 dane, mx1 dane" {
					b.Fatal(got)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			var next atomic.Int64
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					to := targets[int(next.Add(1))%len(targets)]
					if _, err := p.Plan(b.Context(), to, Need{}); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "domains/s")
		})
	}
}

func benchPlanner(b *testing.B, size int) (*Planner, []mx.Target) {
	r, err := resolver.New(resolver.Options{Servers: []resolver.Server{{Address: serveDNS(b)}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Close)
	found, targets := make(fixed), make([]mx.Target, 1000)
	for i := range targets {
		targets[i] = target(b, fmt.Sprintf("d%d.example", i))
		found[targets[i].Domain] = sts(mtasts.Enforce, "*."+targets[i].Domain)
	}
	p, err := NewPlanner(PlanOptions{MX: mx.Options{DNS: r}, STS: found, CacheSize: size})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.Close)
	return p, targets
}

// fixed are policies that nothing changes.
type fixed map[string]mtasts.Result

func (f fixed) Lookup(_ context.Context, domain string) mtasts.Result { return f[domain] }
func (f fixed) Renew(_ context.Context, domain string) mtasts.Result  { return f[domain] }

// serveDNS answers for all domains: with two MX hosts, an address of each, and a TLSA record. It
// says that all is authenticated, and we are on the loopback.
func serveDNS(b *testing.B) (address string) {
	b.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.AuthenticatedData = true
		name := q.Question[0].Name
		var data []string
		switch q.Question[0].Qtype {
		case dns.TypeMX:
			data = []string{"10 mx1." + name, "10 mx2." + name}
		case dns.TypeA:
			data = []string{"9.0.0.1"}
		case dns.TypeAAAA:
			data = []string{"2a00::1"}
		case dns.TypeTLSA:
			data = []string{"3 1 1 " + strings.ToLower(someDigest)}
		}
		for _, d := range data {
			rr, err := dns.NewRR(name + " 3600 " + dns.TypeToString[q.Question[0].Qtype] + " " + d)
			if err != nil {
				panic(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.ActivateAndServe()
	}()
	b.Cleanup(func() {
		server.Shutdown()
		<-done
	})
	return pc.LocalAddr().String()
}
