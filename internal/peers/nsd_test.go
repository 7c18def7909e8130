package peers

import (
	"testing"

	"github.com/miekg/dns"
)

// TestNSDServes: it has the zones that it was given, and refuses others.
func TestNSDServes(t *testing.T) {
	s := NSD(t, NSDOptions{Zones: map[string]string{"example.net.": `
example.net. 60 IN SOA ns.example.net. hostmaster.example.net. 1 60 60 60 60
example.net. 60 IN NS ns.example.net.
ns.example.net. 60 IN A 127.0.0.1
mx.example.net. 60 IN A 192.0.2.1
`}})
	for name, rcode := range map[string]int{
		"mx.example.net.":   dns.RcodeSuccess,
		"none.example.net.": dns.RcodeNameError,
		"example.org.":      dns.RcodeRefused,
	} {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		reply, _, err := new(dns.Client).ExchangeContext(t.Context(), m, s.Addr)
		if err != nil {
			t.Fatal(err)
		}
		if reply.Rcode != rcode {
			t.Errorf("%s: got %v, want %s", name, reply, dns.RcodeToString[rcode])
		}
	}
}
