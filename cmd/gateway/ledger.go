package main

import (
	"cmp"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/internal/metrics"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/account"
	"github.com/penstock/penstock/wasmhost"
)

// ledger.go: who keeps an eye on filters. Each place of a filter has a breaker, whose changes
// go to the log, and where somebody can ask, a seat in the books.

// ledger is the books on all filters. It is safe for concurrent use.
type ledger struct {
	log  *slog.Logger
	book *account.Book    // nil if nobody can ask
	live func() *chainSet // the chains in force; nil if there are none
}

// newLedger returns an empty ledger. live returns the chains in force; nil for a ledger that
// nobody can ask, which keeps no books.
func newLedger(log *slog.Logger, live func() *chainSet) *ledger {
	l := &ledger{log: log, live: live}
	if live != nil {
		l.book = account.New()
	}
	return l
}

// hostOf returns what reads the figures that the host of a filter has.
func hostOf(f *wasmhost.Filter) func() account.Host {
	return func() account.Host { return account.Host(f.Stats()) }
}

// enter gives the link of a filter a breaker and an account. leave is called when the filter
// runs no more.
func (l *ledger) enter(chain string, version digest, link *policy.Link, host func() account.Host) (leave func()) {
	name := link.Filter.Name()
	broke, leave := func(policy.Stage) {}, func() {}
	if l.book != nil {
		seat := l.book.Open(name, version.String(), host)
		link.Account, broke, leave = seat, seat.Broke, seat.Close
	}
	log := l.log.With("filter", name, "chain", chain, "version", shortDigest(version.String()))
	link.Breaker = policy.NewBreaker(func(c policy.BreakerChange) {
		if c.Open && c.Probes == 0 {
			broke(c.Stage)
		}
		logBreaker(log, c)
	})
	return leave
}

// logBreaker logs what a breaker does. A probe that fails says nothing new.
func logBreaker(log *slog.Logger, c policy.BreakerChange) {
	log = log.With("stage", c.Stage.String())
	if !c.Open {
		log.Info("filter works again", "probes", c.Probes)
		return
	}
	first, _, _ := strings.Cut(c.Err.Error(), "\n")
	log = log.With("cause", policy.CauseOf(c.Err), "retry", c.Retry, "err", first)
	if c.Probes > 0 {
		log.Debug("filter is still broken", "probes", c.Probes)
		return
	}
	log.Error("filter is broken: on_broken answers until it works again",
		"calls", c.Calls, "failures", c.Failures, "networks", c.Networks)
}

// broken returns what is broken in the chains in force, by the names of filters; those that
// are well have an empty list.
func (l *ledger) broken() map[string][]api.BrokenHook {
	all := make(map[string][]api.BrokenHook)
	if set := l.live(); set != nil {
		for _, chain := range sortedKeys(set.places) {
			for _, p := range set.places[chain] {
				name := p.filter.value.Name()
				all[name] = append(all[name], brokenHooks(chain, p.link.Breaker)...)
			}
		}
	}
	return all
}

func brokenHooks(chain string, breaker *policy.Breaker) []api.BrokenHook {
	list := []api.BrokenHook{}
	for _, b := range breaker.Broken() {
		first, _, _ := strings.Cut(b.Why.Err.Error(), "\n")
		list = append(list, api.BrokenHook{Chain: chain, Hook: b.Stage.String(), Since: b.Since.UTC(), NextProbe: b.Retry.UTC(), Probes: b.Why.Probes,
			Calls: b.Why.Calls, Failures: b.Why.Failures, Networks: b.Why.Networks, Cause: policy.CauseOf(b.Why.Err), Error: printable(first)})
	}
	return list
}

// brokenAt names the hooks at which a place is broken.
func brokenAt(p place) (hooks []string) {
	for _, b := range p.link.Breaker.Broken() {
		hooks = append(hooks, b.Stage.String())
	}
	return hooks
}

// accounts returns the books. What computes most comes first.
func (l *ledger) accounts() api.Accounts {
	list := []api.FilterAccount{}
	if l.book == nil {
		return api.Accounts{Filters: list}
	}
	broken := l.broken()
	for _, f := range l.book.Filters() {
		fa := api.FilterAccount{Name: f.Name, Total: versionAccount(f.Total), Versions: []api.VersionAccount{}, Broken: append([]api.BrokenHook{}, broken[f.Name]...)}
		for _, v := range f.Versions {
			fa.Versions = append(fa.Versions, versionAccount(v))
		}
		list = append(list, fa)
	}
	slices.SortStableFunc(list, func(a, b api.FilterAccount) int {
		return cmp.Or(cmp.Compare(b.Total.CPU, a.Total.CPU), cmp.Compare(b.Total.Time, a.Total.Time))
	})
	return api.Accounts{Filters: list}
}

func versionAccount(v account.Version) api.VersionAccount {
	h := v.Host
	va := api.VersionAccount{Digest: v.Version, Begun: v.Begun.UTC(), Hooks: []api.HookAccount{}, CPU: v.CPU().Seconds(),
		Boot: h.Boot.Seconds(), Ticks: h.Ticks, Waits: h.Waits, Waited: h.Waited.Seconds(), Memory: h.Memory,
		Instances: h.Live, Made: h.Made, Booted: h.Booted, Resets: h.Resets, Discarded: h.Discarded}
	if !v.Ended.IsZero() {
		ended := v.Ended.UTC()
		va.Ended = &ended
	}
	for _, s := range v.Stages {
		ha := api.HookAccount{Hook: s.Stage.String(), Calls: s.Calls, Verdicts: make(map[string]uint64), Failures: s.Failures,
			Broke: s.Broke, NotAsked: s.NotAsked, Edits: s.Edits, CPU: s.CPU.Seconds(), Time: s.Took.Sum().Seconds(),
			P50: s.Took.Quantile(0.5).Seconds(), P99: s.Took.Quantile(0.99).Seconds()}
		for action, n := range s.Verdicts {
			ha.Verdicts[action.String()] = n
		}
		va.Calls += s.Calls
		va.Failed += s.Failed()
		va.Time += ha.Time
		va.Hooks = append(va.Hooks, ha)
	}
	return va
}

// families are the figures of the filters, none without books.
func (l *ledger) families() []metrics.Family {
	if l.book == nil {
		return nil
	}
	filters := func(read func(f account.Filter, o *metrics.Out)) func(*metrics.Out) {
		return func(o *metrics.Out) {
			for _, f := range l.book.Filters() {
				read(f, o)
			}
		}
	}
	stages := func(read func(filter, stage string, s account.Stage, o *metrics.Out)) func(*metrics.Out) {
		return filters(func(f account.Filter, o *metrics.Out) {
			for _, s := range f.Total.Stages {
				read(f.Name, s.Stage.String(), s, o)
			}
		})
	}
	some := func(o *metrics.Out, n uint64, labels ...string) {
		if n > 0 {
			o.Value(float64(n), labels...)
		}
	}
	stage, filter := []string{"filter", "stage"}, []string{"filter"}
	host := func(name string, kind metrics.Kind, help string, read func(account.Host) float64) metrics.Family {
		return metrics.Family{Name: name, Kind: kind, Labels: filter, Help: help,
			Collect: filters(func(f account.Filter, o *metrics.Out) { o.Value(read(f.Total.Host), f.Name) })}
	}
	return []metrics.Family{{
		Name: "penstock_policy_calls_total", Labels: []string{"filter", "stage", "verdict"},
		Help: "Answers of filters; for one that failed, what on_error made of it.",
		Collect: stages(func(filter, stage string, s account.Stage, o *metrics.Out) {
			for action, n := range s.Verdicts {
				some(o, n, filter, stage, action.String())
			}
		}),
	}, {
		Name: "penstock_policy_failures_total", Labels: []string{"filter", "stage", "cause"},
		Help: "Failures of filters.",
		Collect: stages(func(filter, stage string, s account.Stage, o *metrics.Out) {
			for cause, n := range s.Failures {
				some(o, n, filter, stage, cause)
			}
		}),
	}, {
		Name: "penstock_policy_call_seconds", Kind: metrics.Durations, Labels: stage, Help: "How long the calls of filters took.",
		Collect: stages(func(filter, stage string, s account.Stage, o *metrics.Out) {
			if s.Calls > 0 {
				o.Histogram(s.Took, filter, stage)
			}
		}),
	}, {
		Name: "penstock_policy_edits_total", Labels: stage, Help: "Changes that filters made.",
		Collect: stages(func(filter, stage string, s account.Stage, o *metrics.Out) { some(o, s.Edits, filter, stage) }),
	}, {
		Name: "penstock_policy_broke_total", Labels: stage, Help: "How often filters were found broken.",
		Collect: stages(func(filter, stage string, s account.Stage, o *metrics.Out) { some(o, s.Broke, filter, stage) }),
	}, {
		Name: "penstock_policy_not_asked_total", Labels: stage, Help: "How often on_broken answered for a filter that was broken.",
		Collect: stages(func(filter, stage string, s account.Stage, o *metrics.Out) { some(o, s.NotAsked, filter, stage) }),
	}, {
		Name: "penstock_policy_broken_stages", Kind: metrics.Gauge, Labels: filter, Help: "Stages at which a filter is broken now, and not asked.",
		Collect: func(o *metrics.Out) {
			for name, list := range l.broken() {
				o.Value(float64(len(list)), name)
			}
		},
	}, {
		Name: "penstock_policy_version_info", Kind: metrics.Gauge, Labels: []string{"filter", "version"}, Help: "1 for each version of a filter that runs.",
		Collect: filters(func(f account.Filter, o *metrics.Out) {
			for _, v := range f.Versions {
				if v.Ended.IsZero() {
					o.Value(1, f.Name, shortDigest(v.Version))
				}
			}
		}),
	}, {
		Name: "penstock_wasmhost_cpu_seconds_total", Labels: stage, Help: "What filters computed.",
		Collect: filters(func(f account.Filter, o *metrics.Out) {
			for s, d := range f.Total.Host.CPU {
				o.Value(d.Seconds(), f.Name, s.String())
			}
		}),
	},
		host("penstock_wasmhost_boot_seconds_total", metrics.Counter, "What filters computed to start.", func(h account.Host) float64 { return h.Boot.Seconds() }),
		host("penstock_wasmhost_waits_total", metrics.Counter, "How often filters waited for something outside.", func(h account.Host) float64 { return float64(h.Waits) }),
		host("penstock_wasmhost_waited_seconds_total", metrics.Counter, "How long they did.", func(h account.Host) float64 { return h.Waited.Seconds() }),
		host("penstock_wasmhost_ticks_total", metrics.Counter, "How often the host looked whether a filter computes for too long.", func(h account.Host) float64 { return float64(h.Ticks) }),
		host("penstock_wasmhost_resets_total", metrics.Counter, "How often the memory of a filter was made as new.", func(h account.Host) float64 { return float64(h.Resets) }),
		host("penstock_wasmhost_discarded_total", metrics.Counter, "Instances of filters that were thrown away.", func(h account.Host) float64 { return float64(h.Discarded) }),
		host("penstock_wasmhost_instances", metrics.Gauge, "Instances of filters that there are.", func(h account.Host) float64 { return float64(h.Live) }),
		host("penstock_wasmhost_memory_bytes", metrics.Gauge, "The most memory that one instance of a filter has had.", func(h account.Host) float64 { return float64(h.Memory) }),
	}
}

// seconds writes a duration for people.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	switch {
	case d >= time.Second:
		d = d.Round(10 * time.Millisecond)
	case d >= time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	case d >= time.Microsecond:
		d = d.Round(100 * time.Nanosecond)
	}
	return d.String()
}
