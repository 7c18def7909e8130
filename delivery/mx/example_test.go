package mx_test

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/internal/testnet"
)

// Where the mail of a domain goes, and which addresses must not be used. The resolver of the
// example knows one domain; a program has a *resolver.Resolver.
func ExampleFind() {
	zone := testnet.NewDNS(`
		example.com      MX   20 backup.example.net
		example.com      MX   10 mx.example.net
		mx.example.net   A       192.0.2.1
		mx.example.net   A       10.0.0.1
		backup.example.net AAAA  2001:db8::1
	`)
	guard, err := mx.NewGuard(mx.GuardOptions{
		// The addresses of documentation, for the example's sake.
		Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	target, err := mx.ParseTarget("user@Example.com")
	if err != nil {
		fmt.Println(err)
		return
	}
	route, err := mx.Find(context.Background(), target, mx.Options{DNS: zone, Guard: guard})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, host := range route.Hosts {
		fmt.Println(host.Preference, host.Name, host.Addrs)
	}
	for _, refused := range route.Refused {
		fmt.Println("not", refused.Host, refused.Addr)
	}
	// Output:
	// 10 mx.example.net [192.0.2.1]
	// 20 backup.example.net [2001:db8::1]
	// not mx.example.net 10.0.0.1
}
