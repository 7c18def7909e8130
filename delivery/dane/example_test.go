package dane_test

import (
	"fmt"
	"testing"

	"github.com/penstock/penstock/delivery/dane"
)

// A certificate is held against records that somebody else has looked up.
func ExampleVerify() {
	cert := issue(new(testing.B), nil, spec{name: "mx.example.net"})

	record, err := dane.Of(cert.Certificate, dane.UsageDANEEE, dane.SelectorSPKI, dane.MatchSHA256)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(dane.Describe(record))

	match, err := dane.Verify(chain(cert), []dane.Record{record}, dane.VerifyOptions{})
	fmt.Println(match.Depth, err)

	another := issue(new(testing.B), nil, spec{name: "mx.example.net"})
	_, err = dane.Verify(chain(another), []dane.Record{record}, dane.VerifyOptions{})
	fmt.Println(err)
	// Output:
	// DANE-EE(3) SPKI(1) SHA2-256(1)
	// 0 <nil>
	// dane: no record matches
}
