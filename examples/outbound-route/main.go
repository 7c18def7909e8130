// Outbound-route chooses the way of mail to others: some domains by a smart host, some over
// verified TLS alone, the mail of some users from an address of its own, and some domains not at
// all. README.md beside it has a configuration.
package main

import (
	"strconv"

	"github.com/penstock/penstock/guest-sdk/filter"
)

func main() {}

func init() { newFilter().Serve() }

// newFilter returns the filter; main_test.go runs it natively.
func newFilter() *filter.Filter {
	f := filter.New("outbound-route")
	var relays, sources map[string]string
	var verify, never []string
	f.Configure(func(c filter.Config) error {
		c.Only("relays", "sources", "verify", "never")
		relays, sources = texts(c.Sub("relays")), texts(c.Sub("sources"))
		verify, never = c.Strings("verify"), c.Strings("never")
		return c.Err()
	})
	bounces := f.Metric("bounces")

	// OnRoute is asked at each attempt, before anything is looked up: what it says one time does
	// not count the next.
	f.OnRoute(func(w filter.Reply, e *filter.RouteEvent) {
		target := e.Target()
		if contains(never, target) {
			w.Reject(550, "5.7.1", "mail to "+target+" does not leave here")
			return
		}
		if relay := relays[target]; relay != "" {
			must(w, e.SetRelay(relay))
		}
		if source := sources[e.User()]; source != "" {
			must(w, e.SetSource(source))
		}
		if contains(verify, target) {
			must(w, e.SetTLS(filter.TLSVerify))
		}
	})

	// Of what became of it, a filter is told, and has no say.
	f.OnBounced(func(e *filter.OutcomeEvent) {
		for _, fate := range e.Fates() {
			_ = e.Count(bounces, 1)
			e.Log(filter.LevelInfo, "bounced", "rcpt", fate.Rcpt.String(), "host", fate.Host, "reply", fate.Reply, "try", strconv.Itoa(e.Try()))
		}
	})
	return f
}

// must keeps mail back that cannot go the way that was written for it, as without the grant.
func must(w filter.Reply, err error) {
	if err != nil {
		w.Tempfail(451, "4.3.5", "the way of this message cannot be chosen now")
	}
}

func texts(c filter.Config) map[string]string {
	m := make(map[string]string)
	for _, key := range c.Keys() {
		m[key] = c.String(key)
	}
	return m
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
