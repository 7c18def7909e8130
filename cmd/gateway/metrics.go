package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/internal/metrics"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/store/embedded"
)

// metrics.go is the table of the figures: what each is called, and where it is read. All of
// them are counted anyway. Those of the filters are in ledger.go and figures.go.

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// families returns the figures of n, which need not be whole yet.
func (n *node) families() []metrics.Family {
	return slices.Concat(n.gatewayFamilies(), n.loadFamilies(), n.recipientFamilies(), n.resolverFamilies(), n.deliveryFamilies(), n.queueFamilies(), n.outFamilies(), n.reportFamilies(), n.ledger.families(), n.figures.families(), []metrics.Family{{
		Name: "penstock_certs_first_expiry_timestamp_seconds", Kind: metrics.Gauge,
		Help: "When the first of the certificates that are shown ends, in seconds since 1970.",
		Collect: func(o *metrics.Out) {
			if all := n.certs.Expiries(); len(all) > 0 {
				o.Value(float64(all[0].NotAfter.Unix()))
			}
		},
	}, {
		Name: "penstock_certs_names", Kind: metrics.Gauge, Help: "Names that certificates are obtained for.",
		Collect: func(o *metrics.Out) { o.Value(float64(len(n.certs.Managed()))) },
	}, {
		Name: "penstock_certs_failing", Kind: metrics.Gauge, Help: "Those of them whose last try failed.",
		Collect: func(o *metrics.Out) {
			failing := 0
			for _, m := range n.certs.Managed() {
				if m.LastError != "" {
					failing++
				}
			}
			o.Value(float64(failing))
		},
	}})
}

// reportFamilies are about reports on TLS that others send; none without a store.
func (n *node) reportFamilies() []metrics.Family {
	if n.cfg.Store.Driver == config.StoreNone {
		return nil
	}
	return []metrics.Family{{
		Name: "penstock_tlsrpt_received_total", Labels: []string{"result"},
		Help: "Messages with reports of others on TLS that were taken, and messages to where those go that were refused.",
		Collect: func(o *metrics.Out) {
			if n.inbox != nil {
				o.Value(float64(n.inbox.Stats.Taken.Load()), "taken")
				o.Value(float64(n.inbox.Stats.Refused.Load()), "refused")
			}
		},
	}}
}

// queueFamilies are about the queue; none without a store.
func (n *node) queueFamilies() []metrics.Family {
	if n.cfg.Store.Driver == config.StoreNone {
		return nil
	}
	stats := func(read func(s *delivery.EngineStats, o *metrics.Out)) func(*metrics.Out) {
		return func(o *metrics.Out) {
			if n.keeping != nil {
				read(&n.keeping.engine.Stats, o)
			}
		}
	}
	return []metrics.Family{{
		Name: "penstock_delivery_recipients_total", Labels: []string{"result"}, Help: "Recipients of kept messages by what became of them in an attempt.",
		Collect: stats(func(s *delivery.EngineStats, o *metrics.Out) {
			o.Value(float64(s.Delivered.Load()), "delivered")
			o.Value(float64(s.Failed.Load()), "failed")
			o.Value(float64(s.Deferred.Load()), "deferred")
		}),
	}, {
		Name: "penstock_delivery_attempts_total", Help: "Attempts to deliver kept messages.",
		Collect: stats(func(s *delivery.EngineStats, o *metrics.Out) { o.Value(float64(s.Attempts.Load())) }),
	}, {
		Name: "penstock_delivery_reports_total", Help: "Reports to senders that were put into the queue.",
		Collect: stats(func(s *delivery.EngineStats, o *metrics.Out) { o.Value(float64(s.Reports.Load())) }),
	}, {
		Name: "penstock_delivery_leases_lost_total", Help: "Attempts whose outcome could not be recorded, so that a message may be sent again.",
		Collect: stats(func(s *delivery.EngineStats, o *metrics.Out) { o.Value(float64(s.LeaseLost.Load())) }),
	}, {
		Name: "penstock_delivery_outbound", Kind: metrics.Gauge, Labels: []string{"what"},
		Help: "Mail to others: sets of hosts that are known, connections at work and kept, addresses that are left alone because nobody answers there, destinations whose hosts are looked up.",
		Collect: func(o *metrics.Out) {
			if n.keeping == nil {
				return
			}
			s, ok := n.keeping.engine.OutboundStats()
			if !ok {
				return
			}
			o.Value(float64(s.Sites), "sites")
			o.Value(float64(s.Connections-s.Idle), "busy")
			o.Value(float64(s.Idle), "idle")
			o.Value(float64(s.Dead), "dead")
			o.Value(float64(s.Looking), "looking")
		},
	}, {
		Name: "penstock_store_recipients", Kind: metrics.Gauge, Labels: []string{"state"}, Help: "Recipients in the queue.",
		Collect: func(o *metrics.Out) {
			if n.keeping == nil {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			c, err := n.keeping.store.Queue().Count(ctx)
			if err != nil {
				return // a gap says so
			}
			o.Value(float64(c.Recipients[store.Waiting]), "waiting")
			o.Value(float64(c.Recipients[store.Held]), "held")
			o.Value(float64(c.Leased), "leased")
		},
	}, {
		Name: "penstock_store_up", Kind: metrics.Gauge, Help: "1 while the store can keep messages.",
		Collect: func(o *metrics.Out) {
			if n.keeping == nil {
				return
			}
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			o.Value(truth(n.keeping.store.Health(ctx) == nil))
		},
	}, {
		Name: "penstock_store_syncs_total", Help: "Syncs of files and folders of the store in a folder.",
		Collect: n.folder(func(s embedded.Stats, o *metrics.Out) { o.Value(float64(s.Syncs)) }),
	}, {
		Name: "penstock_store_corrupt_total", Help: "Messages that did not fit their checksum and were set aside.",
		Collect: n.folder(func(s embedded.Stats, o *metrics.Out) { o.Value(float64(s.Corrupt)) }),
	}, {
		Name: "penstock_store_reopened_total", Help: "How often the disk failed and came back.",
		Collect: n.folder(func(s embedded.Stats, o *metrics.Out) { o.Value(float64(s.Reopened)) }),
	}, {
		Name: "penstock_store_free_bytes", Kind: metrics.Gauge, Help: "Room on the disk of the store.",
		Collect: n.folder(func(s embedded.Stats, o *metrics.Out) {
			if s.Free >= 0 {
				o.Value(float64(s.Free))
			}
		}),
	}}
}

// folder reads the figures of a store in a folder; one in a database has its own.
func (n *node) folder(read func(embedded.Stats, *metrics.Out)) func(*metrics.Out) {
	return func(o *metrics.Out) {
		if n.keeping == nil {
			return
		}
		if s, ok := n.keeping.store.(*embedded.Store); ok {
			read(s.Stats(), o)
		}
	}
}

func (n *node) gatewayFamilies() []metrics.Family {
	return []metrics.Family{{
		Name: "penstock_gateway_sessions_total", Help: "Sessions that were begun, greeted or not. XCLIENT begins another.",
		Collect: func(o *metrics.Out) { o.Value(float64(n.gw.Stats.Sessions.Load())) },
	}, {
		Name: "penstock_gateway_messages_total", Labels: []string{"result"},
		Help: "Messages by what became of them after DATA.",
		Collect: func(o *metrics.Out) {
			o.Value(float64(n.gw.Stats.Relayed.Load()), "relayed")
			o.Value(float64(n.gw.Stats.Refused.Load()), "refused")
			o.Value(float64(n.gw.Stats.Discarded.Load()), "discarded")
			o.Value(float64(n.gw.Stats.Kept.Load()), "kept")
		},
	}, {
		Name: "penstock_gateway_duplicates_total", Help: "Messages that some recipients got although the client was told 451.",
		Collect: func(o *metrics.Out) { o.Value(float64(n.gw.Stats.Duplicates.Load())) },
	}, {
		Name: "penstock_gateway_logins_total", Labels: []string{"result"}, Help: "Logins of clients.",
		Collect: func(o *metrics.Out) {
			o.Value(float64(n.gw.Stats.Logins.Load()), "ok")
			o.Value(float64(n.gw.Stats.LoginsFailed.Load()), "failed")
		},
	}, {
		Name: "penstock_gateway_early_talkers_total", Help: "Clients that spoke before the greeting.",
		Collect: func(o *metrics.Out) { o.Value(float64(n.gw.Stats.EarlyTalkers.Load())) },
	}, {
		Name: "penstock_gateway_bad_proxy_total", Help: "Connections whose PROXY header was missing or made no sense.",
		Collect: func(o *metrics.Out) { o.Value(float64(n.gw.Stats.BadProxy.Load())) },
	}, {
		Name: "penstock_gateway_limited_total", Help: "Connections and messages that a rate refused.",
		Collect: func(o *metrics.Out) { o.Value(float64(n.gw.Stats.Limited.Load())) },
	}, {
		Name: "penstock_gateway_open_connections", Kind: metrics.Gauge, Labels: []string{"listener"},
		Help: "Connections that are open now.",
		Collect: func(o *metrics.Out) {
			for _, l := range n.gw.Listeners() {
				o.Value(float64(l.Connections), l.Name)
			}
		},
	}, {
		Name: "penstock_gateway_turned_away_total", Labels: []string{"listener"},
		Help: "Connections that found all of limits.connections taken. They are no sessions.",
		Collect: func(o *metrics.Out) {
			for _, l := range n.gw.Listeners() {
				o.Value(float64(l.TurnedAway), l.Name)
			}
		},
	}, {
		Name: "penstock_gateway_untracked_total", Labels: []string{"listener"},
		Help: "What was held to no rate because there was no place to remember it.",
		Collect: func(o *metrics.Out) {
			for _, l := range n.gw.Listeners() {
				o.Value(float64(l.Untracked), l.Name)
			}
		},
	}, {
		Name: "penstock_gateway_listener_up", Kind: metrics.Gauge, Labels: []string{"listener"},
		Help: "1 while the listener takes connections.",
		Collect: func(o *metrics.Out) {
			for _, l := range n.gw.Listeners() {
				o.Value(truth(l.Open), l.Name)
			}
		},
	}}
}

func (n *node) loadFamilies() []metrics.Family {
	resource := []string{"resource"}
	uses := func(o *metrics.Out, of func(gateway.Use) int64) {
		l := n.gw.Load()
		o.Value(float64(of(l.Sessions)), "sessions")
		o.Value(float64(of(l.Memory)), "memory")
		o.Value(float64(of(l.Spool)), "spool")
	}
	return []metrics.Family{{
		Name: "penstock_gateway_load_level", Kind: metrics.Gauge,
		Help:    "0 is normal, 1 stressed (time limits are short), 2 full (new sessions are turned away).",
		Collect: func(o *metrics.Out) { o.Value(float64(n.gw.Load().Rank)) },
	}, {
		Name: "penstock_gateway_load_used", Kind: metrics.Gauge, Labels: resource,
		Help:    "What is used: open sessions, octets of memory, octets of messages under way.",
		Collect: func(o *metrics.Out) { uses(o, func(u gateway.Use) int64 { return u.Used }) },
	}, {
		Name: "penstock_gateway_load_limit", Kind: metrics.Gauge, Labels: resource,
		Help:    "How much of it there is; 0 or less is no limit.",
		Collect: func(o *metrics.Out) { uses(o, func(u gateway.Use) int64 { return u.Limit }) },
	}, {
		Name: "penstock_gateway_load_refused_total", Labels: []string{"what"}, Help: "What was turned away for lack of room.",
		Collect: func(o *metrics.Out) {
			l := n.gw.Load()
			o.Value(float64(l.RefusedSessions), "session")
			o.Value(float64(l.RefusedMessages), "message")
		},
	}, {
		Name: "penstock_gateway_load_changes_total", Labels: []string{"level"}, Help: "How often the load came to a level.",
		Collect: func(o *metrics.Out) {
			l := n.gw.Load()
			o.Value(float64(l.BecameNormal), "normal")
			o.Value(float64(l.BecameStressed), "stressed")
			o.Value(float64(l.BecameFull), "full")
		},
	}}
}

// recipientFamilies have series for backends whose recipients are known by a list or by callouts.
func (n *node) recipientFamilies() []metrics.Family {
	return []metrics.Family{{
		Name: "penstock_gateway_listed_recipients", Kind: metrics.Gauge, Labels: []string{"backend"},
		Help: "Entries of the backend's list of recipients.",
		Collect: func(o *metrics.Out) {
			for _, r := range n.gw.Recipients() {
				o.Value(float64(r.Listed), r.Backend)
			}
		},
	}, {
		Name: "penstock_gateway_callouts_total", Labels: []string{"backend", "event"},
		Help: "Recipients whose answer was remembered, questions that were asked, those that failed, and recipients that were taken for an old answer.",
		Collect: func(o *metrics.Out) {
			for _, r := range n.gw.Recipients() {
				o.Value(float64(r.Remembered), r.Backend, "remembered")
				o.Value(float64(r.Asked), r.Backend, "asked")
				o.Value(float64(r.Failed), r.Backend, "failed")
				o.Value(float64(r.Stale), r.Backend, "stale")
			}
		},
	}}
}

// resolverFamilies have no series where nobody asks for names.
func (n *node) resolverFamilies() []metrics.Family {
	return []metrics.Family{{
		Name: "penstock_resolver_events_total", Labels: []string{"event"},
		Help: "Look-ups in DNS, and what came of them.",
		Collect: func(o *metrics.Out) {
			if n.names == nil {
				return
			}
			lookups(n.names.Stats(), o)
		},
	}, {
		Name: "penstock_resolver_cache_bytes", Kind: metrics.Gauge, Help: "About what the answers in the cache take.",
		Collect: func(o *metrics.Out) {
			if n.names != nil {
				o.Value(float64(n.names.Stats().CacheBytes))
			}
		},
	}}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (n *node) deliveryFamilies() []metrics.Family {
	backend := []string{"backend"}
	return []metrics.Family{{
		Name: "penstock_delivery_backend_up", Kind: metrics.Gauge, Labels: backend,
		Help: "1 while one of the backend's addresses answers, as far as was tried.",
		Collect: func(o *metrics.Out) {
			for _, b := range (watch{n}).backends() {
				o.Value(truth(b.Up), b.Name)
			}
		},
	}, {
		Name: "penstock_delivery_open_connections", Kind: metrics.Gauge, Labels: []string{"backend", "state"},
		Help: "Connections to the backend: idle, busy; waiting are transactions without one.",
		Collect: func(o *metrics.Out) {
			for _, b := range n.transport.Stats() {
				o.Value(float64(b.Idle), b.Name, "idle")
				o.Value(float64(b.Busy), b.Name, "busy")
				o.Value(float64(b.Waiting), b.Name, "waiting")
			}
		},
	}, {
		Name: "penstock_delivery_transactions_total", Labels: backend, Help: "Transactions that were begun, since the backend was last changed.",
		Collect: func(o *metrics.Out) {
			for _, b := range n.transport.Stats() {
				o.Value(float64(b.Transactions), b.Name)
			}
		},
	}, {
		Name: "penstock_delivery_events_total", Labels: []string{"backend", "event"},
		Help: "What happened to the connections of a backend, since it was last changed.",
		Collect: func(o *metrics.Out) {
			for _, b := range n.transport.Stats() {
				o.Value(float64(b.Dialled), b.Name, "dialled")
				o.Value(float64(b.Failures), b.Name, "failed")
				o.Value(float64(b.Reused), b.Name, "reused")
				o.Value(float64(b.Lost), b.Name, "lost")
				o.Value(float64(b.Waited), b.Name, "waited")
				o.Value(float64(b.Refused), b.Name, "refused")
			}
		},
	}}
}
