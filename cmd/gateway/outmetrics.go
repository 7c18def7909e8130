package main

import (
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/internal/metrics"
	"github.com/penstock/penstock/resolver"
)

// outmetrics.go: the figures of what goes to hosts elsewhere. What became of the messages is
// among those of the queue.

// outFamilies are about the way to hosts elsewhere; none without a store.
func (n *node) outFamilies() []metrics.Family {
	if n.cfg.Store.Driver == config.StoreNone {
		return nil
	}
	of := func(read func(*outbound, *metrics.Out)) func(*metrics.Out) {
		return func(o *metrics.Out) {
			if n.out != nil {
				read(n.out, o)
			}
		}
	}
	return []metrics.Family{{
		Name: "penstock_resolver_validating", Kind: metrics.Gauge,
		Help:    "1 while the resolver validates and its word counts; 0 turns DANE off.",
		Collect: of(func(out *outbound, o *metrics.Out) { o.Value(truth(out.health.Validating())) }),
	}, {
		Name: "penstock_resolver_probes_total", Labels: []string{"result"},
		Help: "Questions whether the resolver validates, and whether they were answered.",
		Collect: of(func(out *outbound, o *metrics.Out) {
			s := out.health.State()
			o.Value(float64(s.Checks-s.Failures), "answered")
			o.Value(float64(s.Failures), "failed")
		}),
	}, {
		Name: "penstock_delivery_lookups_total", Labels: []string{"event"},
		Help:    "Look-ups in DNS for mail to hosts elsewhere, and what came of them.",
		Collect: of(func(out *outbound, o *metrics.Out) { lookups(out.dns.Stats(), o) }),
	}, {
		Name: "penstock_delivery_plans_total", Labels: []string{"result"},
		Help: "Plans where mail goes: kept ones that were used again, made, and failed.",
		Collect: of(func(out *outbound, o *metrics.Out) {
			var kept, made, failed uint64
			for _, p := range out.planners() {
				s := p.Stats()
				kept, made, failed = kept+s.Hits, made+s.Made, failed+s.Failed
			}
			o.Value(float64(kept), "kept")
			o.Value(float64(made), "made")
			o.Value(float64(failed), "failed")
		}),
	}, {
		Name: "penstock_mtasts_events_total", Labels: []string{"event"},
		Help: "Questions for policies of MTA-STS, and what came of them.",
		Collect: of(func(out *outbound, o *metrics.Out) {
			if out.sts == nil {
				return
			}
			s := out.sts.Stats()
			o.Value(float64(s.Lookups), "lookup")
			o.Value(float64(s.Hits), "hit")
			o.Value(float64(s.Shared), "shared")
			o.Value(float64(s.Fetches), "fetch")
			o.Value(float64(s.FetchErrors), "fetch_error")
			o.Value(float64(s.Invalid), "invalid")
			o.Value(float64(s.WebPKI), "webpki_invalid")
			o.Value(float64(s.Refreshed), "refreshed")
		}),
	}, {
		Name: "penstock_tlsrpt_sessions_total", Labels: []string{"result"},
		Help: "Sessions with hosts elsewhere that were counted for reports on TLS, or dropped for want of room.",
		Collect: of(func(out *outbound, o *metrics.Out) {
			if out.reporter == nil {
				return
			}
			s := &out.reporter.Stats
			o.Value(float64(s.Recorded.Load()-s.Dropped.Load()), "counted")
			o.Value(float64(s.Dropped.Load()), "dropped")
		}),
	}, {
		Name: "penstock_tlsrpt_reports_total", Labels: []string{"result"}, Help: "Reports on TLS by what became of them.",
		Collect: of(func(out *outbound, o *metrics.Out) {
			if out.reporter == nil {
				return
			}
			s := &out.reporter.Stats
			o.Value(float64(s.Sent.Load()), "sent")
			o.Value(float64(s.Failed.Load()), "failed")
		}),
	}}
}

// lookups gives the counters of a resolver.
func lookups(s resolver.Stats, o *metrics.Out) {
	o.Value(float64(s.Lookups), "lookup")
	o.Value(float64(s.Hits), "hit")
	o.Value(float64(s.Shared), "shared")
	o.Value(float64(s.Queries), "query")
	o.Value(float64(s.Streams), "stream")
	o.Value(float64(s.Timeouts), "timeout")
	o.Value(float64(s.Foreign), "foreign")
	o.Value(float64(s.Failures), "failure")
	o.Value(float64(s.Bogus), "bogus")
}
