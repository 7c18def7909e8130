package peers

import (
	"context"
	"testing"

	"github.com/miekg/dns"
)

// TestUnboundKeepsToItself: it knows what it was told, and asks nobody else.
func TestUnboundKeepsToItself(t *testing.T) {
	s := Unbound(t, UnboundOptions{Data: []string{"mx.example.net. A 192.0.2.1"}})
	for _, tt := range []struct {
		name  string
		rcode int
	}{
		{"mx.example.net.", dns.RcodeSuccess},
		{"example.org.", dns.RcodeRefused},
		{".", dns.RcodeRefused},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), conversationLimit)
		m := new(dns.Msg)
		m.SetQuestion(tt.name, dns.TypeA)
		reply, _, err := new(dns.Client).ExchangeContext(ctx, m, s.Addr)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if reply.Rcode != tt.rcode || tt.rcode == dns.RcodeSuccess && len(reply.Answer) != 1 {
			t.Errorf("%s: got %v, want %s", tt.name, reply, dns.RcodeToString[tt.rcode])
		}
	}
}
