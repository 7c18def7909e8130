// A guest that tells random numbers of all kinds, for the test that copies of it differ.
package main

import (
	"math/rand"
	randv2 "math/rand/v2"
	"strconv"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func init() {
	f := filter.New("randguest")
	f.OnMailFrom(func(_ filter.Reply, e *filter.MailEvent) {
		_ = e.Tag("v1", strconv.FormatInt(rand.Int63(), 10))
		_ = e.Tag("again", strconv.FormatInt(rand.Int63(), 10))
		_ = e.Tag("v2", strconv.FormatUint(randv2.Uint64(), 10))
		_ = e.Tag("rand", strconv.FormatUint(e.Rand().Uint64(), 10))
	})
	f.Serve()
}

func main() {}
