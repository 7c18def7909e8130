package mtasts

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/penstock/penstock/internal/testnet"
)

// BenchmarkLookup is a look-up from a warm memory of 10,000 domains, each with a policy.
func BenchmarkLookup(b *testing.B) {
	store := newStore()
	dns := testnet.NewDNS("")
	c, err := New(Options{DNS: dns, Store: store})
	check(b, err)
	defer c.Close()
	p, err := ParsePolicy([]byte(goodPolicy))
	check(b, err)
	now := time.Now()
	p.ID, p.Fetched, p.Expires = "1", now, now.Add(p.MaxAge)
	names := make([]string, 10_000)
	for i := range names {
		names[i] = fmt.Sprintf("domain%d.example.com", i)
		c.remember(&entry{domain: names[i], result: Result{Policy: &p, ID: "1", Expires: now.Add(time.Hour)}})
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if r := c.Lookup(context.Background(), names[i%len(names)]); r.Policy == nil {
			b.Fatal(r.Err)
		}
		i++
	}
}

// BenchmarkParsePolicy reads a policy as most are.
func BenchmarkParsePolicy(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(goodPolicy)))
	for b.Loop() {
		if _, err := ParsePolicy([]byte(goodPolicy)); err != nil {
			b.Fatal(err)
		}
	}
}
