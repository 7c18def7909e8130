package filtertest_test

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/penstock/penstock/guest-sdk/filter"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// router sends mail as its target says, and notes what it saw.
func router() *filter.Filter {
	f := filter.New("router")
	f.OnRoute(func(w filter.Reply, e *filter.RouteEvent) {
		word, _, _ := strings.Cut(e.Target(), ".")
		var err error
		switch word {
		case "relay":
			err = e.SetRelay("relay.example:587")
		case "source":
			err = e.SetSource("pool")
		case "tls":
			err = e.SetTLS(filter.TLSVerify)
		case "weak":
			err = e.SetTLS(filter.TLSOff)
		case "never":
			w.Reject(550, "5.7.1", "not there")
		case "later":
			w.Tempfail(0, "", "")
		}
		if err != nil {
			e.Log(filter.LevelError, err.Error())
		}
		_ = e.Tag("saw", e.QueueID()+" "+e.From().String()+" "+e.Recipients()[0].String()+" "+e.User()+" "+e.Way("relay"))
	})
	f.OnDeliver(func(w filter.Reply, e *filter.DeliverEvent) {
		for _, h := range e.Hops() {
			if h.Refused == "" && h.Demand != "dane" {
				if err := e.Connect(h.Addrs[len(h.Addrs)-1]); err != nil {
					w.Tempfail(0, "", "")
				}
				return
			}
		}
	})
	told := func(e *filter.OutcomeEvent) {
		for _, f := range e.Fates() {
			e.Log(filter.LevelInfo, f.Rcpt.String()+" "+f.Reply+" by "+f.Host+" "+f.Addr, "due", time.Unix(0, f.Due).UTC().Format("15:04"))
		}
	}
	f.OnDeferred(told)
	f.OnBounced(told)
	f.OnDelivered(told)
	return f
}

func attempt(to string) filtertest.Attempt {
	return filtertest.Attempt{Envelope: filtertest.Envelope{From: "a@example.com", To: []string{to}}, Size: 100}
}

// TestOutbound: what a filter may choose, and what comes of its verdicts.
func TestOutbound(t *testing.T) {
	o := filtertest.Options{Filter: router(), Client: filtertest.Client{User: "alice"}}
	for _, tt := range []struct {
		to    string
		way   policy.Way
		reply string
		log   string
	}{
		{"x@plain.example", policy.Way{}, "", ""},
		{"x@relay.example", policy.Way{Relay: "relay.example:587"}, "", ""},
		{"x@source.example", policy.Way{Source: "pool"}, "", ""},
		{"x@tls.example", policy.Way{TLS: policy.Verified}, "", ""},
		{"x@weak.example", policy.Way{}, "", "ERROR filter: set encryption: mg1: EPERM: the operator did not grant it"},
		{"x@never.example", policy.Way{}, "550 5.7.1 not there", ""},
		{"x@later.example", policy.Way{}, "451 4.7.1 deferred by policy, try again later", ""},
	} {
		got := filtertest.Outbound(t, o, policy.StageRoute, attempt(tt.to))
		if got.Err != nil || got.Way != tt.way || got.Reply != tt.reply || strings.Join(got.Log, "\n") != tt.log {
			t.Errorf("%s: got %+v", tt.to, got)
		}
		if want := "saw=queue-1 a@example.com " + tt.to + " alice " + tt.way.Relay; !reflect.DeepEqual(got.Tags, []string{want}) {
			t.Errorf("%s: saw %q, want %q", tt.to, got.Tags, want)
		}
	}

	o = filtertest.Options{Filter: router(), Grants: &guest.Grants{}}
	if got := filtertest.Outbound(t, o, policy.StageRoute, attempt("x@relay.example")); got.Way != (policy.Way{}) || len(got.Log) != 2 {
		t.Errorf("without the grant: got %+v", got)
	}
}

// TestOutboundHops: a filter sees the hosts, and may connect elsewhere.
func TestOutboundHops(t *testing.T) {
	a := attempt("x@example.org")
	addr := netip.MustParseAddr
	a.Hops = []policy.Hop{{Host: "mx1.example.org", Preference: 1, Addrs: []netip.Addr{addr("192.0.2.1")}, Demand: "dane"},
		{Host: "mx2.example.org", Preference: 2, Refused: "no address"},
		{Host: "mx3.example.org", Preference: 3, Addrs: []netip.Addr{addr("192.0.2.3"), addr("2001:db8::3")}, Demand: "opportunistic"}}
	got := filtertest.Outbound(t, filtertest.Options{Filter: router()}, policy.StageDeliver, a)
	if want := netip.AddrPortFrom(addr("2001:db8::3"), 0); got.Way.To != want || got.Err != nil {
		t.Errorf("got %+v, want %v", got, want)
	}
}

// TestOutboundFates: a filter is told of each recipient, and has no say.
func TestOutboundFates(t *testing.T) {
	a := attempt("x@example.org")
	a.To = append(a.To, "y@example.org")
	a.Fates = []policy.Fate{
		{Reply: smtp.Refuse(451, smtp.Enhanced{4, 2, 0}, "busy"), Host: "mx.example.org", Addr: netip.MustParseAddr("192.0.2.1"), Due: time.Unix(3600, 0)},
		{Reply: smtp.Refuse(451, smtp.Enhanced{4, 4, 1}, "nobody there"), Due: time.Unix(7200, 0)}}
	for _, stage := range []policy.Stage{policy.StageDeferred, policy.StageBounced, policy.StageDelivered} {
		got := filtertest.Outbound(t, filtertest.Options{Filter: router()}, stage, a)
		want := []string{"INFO x@example.org 451 4.2.0 busy by mx.example.org 192.0.2.1 due=01:00", "INFO y@example.org 451 4.4.1 nobody there by   due=02:00"}
		if got.Err != nil || !got.Asked || !reflect.DeepEqual(got.Log, want) {
			t.Errorf("%s: got %+v, want %q", stage, got, want)
		}
	}
}
