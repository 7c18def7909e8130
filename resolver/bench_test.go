package resolver

import (
	"testing"

	"github.com/miekg/dns"
)

// BenchmarkCached is a look-up that the cache answers.
func BenchmarkCached(b *testing.B) {
	f := newFake(b, exampleZone)
	r := start(b, Options{}, f)
	ctx := b.Context()
	ip := addrs("192.0.2.1")[0]
	for _, bm := range []struct {
		name   string
		lookup func() error
	}{
		{"MX", func() error { _, err := r.LookupMX(ctx, "example.net"); return err }},
		{"Addrs", func() error { _, err := r.LookupAddrs(ctx, "mx1.example.net", Both); return err }},
		{"Name", func() error { return r.Name(ctx, ip).Err }},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := bm.lookup(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCachedParallel shows what the one lock of the cache costs.
func BenchmarkCachedParallel(b *testing.B) {
	r := start(b, Options{}, newFake(b, exampleZone))
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := r.LookupMX(b.Context(), "example.net"); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// BenchmarkAsked is a look-up that a server on the loopback answers; the server's work is
// in it.
func BenchmarkAsked(b *testing.B) {
	r := start(b, Options{CacheSize: -1}, newFake(b, exampleZone))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.LookupMX(b.Context(), "example.net"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReply is what it takes to read a reply.
func BenchmarkReply(b *testing.B) {
	f := &fake{zone: parseZone(b, exampleZone)}
	q := newQuery("a.example.net", TypeA)
	wire, err := f.answer(q).Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var m *dns.Msg
		if m, err = parseReply(q, wire); err != nil {
			b.Fatal(err)
		}
		if _, err := readAnswer(m, "a.example.net", TypeA); err != nil {
			b.Fatal(err)
		}
	}
}
