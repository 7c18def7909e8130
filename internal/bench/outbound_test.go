//go:build linux

package bench

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/internal/testnet"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// outbound_test.go: mail that leaves by MX records. The engine and its store are in this process,
// and the sink in another, so that the figures are the engine's own.

// outboundMail is how many messages one operation delivers.
const outboundMail = 5000

// BenchmarkOutbound: what does a message of 4 KB cost that is planned, sent to a host elsewhere over
// one of a hundred connections, and recorded, when all of it waits in the store? A connection carries
// fifty messages. An operation is 5,000 of them.
func BenchmarkOutbound(b *testing.B) {
	for _, domains := range []int{1, 1000} {
		for _, how := range []string{"clear", "tls", "dane", "sts"} {
			b.Run(fmt.Sprintf("domains=%d/%s", domains, how), func(b *testing.B) { benchOutbound(b, domains, how) })
		}
	}
}

func benchOutbound(b *testing.B, domains int, how string) {
	s, zone := setup{Role: roleSink}, new(strings.Builder)
	fmt.Fprintln(zone, "mx.example.net A 127.0.0.1")
	for i := range domains {
		fmt.Fprintf(zone, "d%d.example.com MX 10 mx.example.net\n", i)
	}
	var trust *x509.CertPool
	var policies delivery.Policies
	if how != "clear" {
		ca := peers.NewCA(b)
		cert := ca.Issue(b, "mx.example.net")
		s = s.with(&cert)
		switch how {
		case "sts":
			trust, policies = ca.Pool(), enforced{}
		case "dane":
			sum := sha256.Sum256(cert.TLS.Leaf.RawSubjectPublicKeyInfo)
			fmt.Fprintf(zone, "_PORT._tcp.mx.example.net TLSA 3 1 1 %s\n", hex.EncodeToString(sum[:]))
		}
	}
	sink := startChild(b, s)
	to := netip.MustParseAddrPort(sink.addr)
	dns := testnet.NewDNS(strings.ReplaceAll(zone.String(), "_PORT", fmt.Sprint("_", to.Port())))
	dns.Sign("example.com", "example.net")
	q, e := startOutbound(b, to.Port(), dns, policies, trust)
	content := bytes.TrimSuffix(mailData(4<<10), []byte(".\r\n"))
	var used usage
	var took time.Duration
	for b.Loop() {
		b.StopTimer()
		fill(b, q, domains, content)
		sink.usage(b)
		if *profiles != "" {
			f, err := os.Create(*profiles + "/" + strings.NewReplacer("/", "_", "=", "-").Replace(b.Name()) + ".prof")
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			pprof.StartCPUProfile(f)
		}
		before, began := ownUsage(), time.Now()
		b.StartTimer()
		ctx, stop := context.WithCancel(b.Context())
		ran := make(chan struct{})
		go func() {
			defer close(ran)
			e.Run(ctx)
		}()
		awaitMessages(b, sink, outboundMail)
		took += time.Since(began)
		since := ownUsage().since(before)
		b.StopTimer()
		if *profiles != "" {
			pprof.StopCPUProfile()
		}
		used.User, used.Kernel = used.User+since.User, used.Kernel+since.Kernel
		used.Mallocs, used.Bytes = used.Mallocs+since.Mallocs, used.Bytes+since.Bytes
		for n := int64(1); n > 0; { // what is recorded, too, is over
			c, err := q.Count(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			if n = c.Messages; n > 0 {
				<-time.After(5 * time.Millisecond)
			}
		}
		stop()
		<-ran
		b.StartTimer()
	}
	n := float64(b.N) * outboundMail
	b.ReportMetric(n/took.Seconds(), "msgs/s")
	b.ReportMetric((used.User+used.Kernel).Seconds()/n*1000, "cpu-s/1000")
	b.ReportMetric(100*used.Kernel.Seconds()/(used.User+used.Kernel).Seconds(), "%kernel")
	b.ReportMetric(float64(used.Mallocs)/n, "allocs/msg")
	b.ReportMetric(float64(used.Bytes)/n, "B/msg")
}

// enforced is an MTA-STS policy for every domain: each has one of its own, as in life.
type enforced struct{}

// Lookup and Renew implement delivery.Policies.
func (enforced) Lookup(context.Context, string) mtasts.Result {
	until := time.Now().Add(time.Hour)
	return mtasts.Result{Expires: until, ID: "1",
		Policy: &mtasts.Policy{ID: "1", Mode: mtasts.Enforce, MX: []string{"mx.example.net"}, MaxAge: time.Hour, Expires: until}}
}

func (e enforced) Renew(ctx context.Context, domain string) mtasts.Result {
	return e.Lookup(ctx, domain)
}

// startOutbound makes an engine with a store of its own.
func startOutbound(b *testing.B, port uint16, dns *testnet.DNS, policies delivery.Policies, trust *x509.CertPool) (store.Queue, *delivery.Engine) {
	dir, err := os.MkdirTemp(os.Getenv("BENCH_DIR"), "penstock-bench-*")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	kept, err := embedded.Open(dir, embedded.Options{})
	if err != nil {
		b.Fatal(err)
	}
	guard, err := mx.NewGuard(mx.GuardOptions{AllowLocal: true})
	if err != nil {
		b.Fatal(err)
	}
	planner, err := delivery.NewPlanner(delivery.PlanOptions{MX: mx.Options{DNS: dns, Guard: guard}, STS: policies, Port: port})
	if err != nil {
		b.Fatal(err)
	}
	transport, err := delivery.New(delivery.Options{LocalName: hostname})
	if err != nil {
		b.Fatal(err)
	}
	e, err := delivery.NewEngine(delivery.EngineOptions{Queue: kept.Queue(), Transport: transport, Hostname: hostname, DestinationWorkers: 100,
		Route: func(smtp.Path) store.Destination { return "nowhere" },
		Outbound: &delivery.OutboundOptions{Planner: planner, Guard: guard, MaxUses: 50,
			Secure: delivery.SecureOptions{Authorities: trust}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := e.Shutdown(ctx); err != nil {
			b.Error(err)
		}
		if err := transport.Shutdown(ctx); err != nil {
			b.Error(err)
		}
		planner.Close()
		if err := kept.Close(); err != nil {
			b.Error(err)
		}
	})
	return kept.Queue(), e
}

// fill puts messages into the store.
func fill(b *testing.B, q store.Queue, domains int, content []byte) {
	now := time.Now()
	from, err := smtp.ParseAddress("from@example.org")
	if err != nil {
		b.Fatal(err)
	}
	one := func(i int) error {
		to, err := smtp.ParseAddress(fmt.Sprintf("to@d%d.example.com", i%domains))
		if err != nil {
			return err
		}
		m := &store.Message{Arrived: now, Sender: smtp.Sender{Path: from}, Expires: now.Add(time.Hour),
			Recipients: []store.Recipient{{Recipient: smtp.Recipient{Path: to}, Destination: delivery.MXDestination(mx.TargetOf(to.Domain)), Due: now}}}
		in, err := q.Begin(b.Context(), m)
		if err != nil {
			return err
		}
		defer in.Abort()
		if _, err := in.Write(content); err != nil {
			return err
		}
		_, err = in.Commit(b.Context())
		return err
	}
	var writers sync.WaitGroup
	for w := range 100 {
		writers.Go(func() {
			for i := w; i < outboundMail; i += 100 {
				if err := one(i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
}
