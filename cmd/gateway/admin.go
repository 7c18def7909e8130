package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/internal/metrics"
	"github.com/penstock/penstock/store"
)

// admin.go puts the running gateway behind the interfaces of package admin.

// newAdmin makes the admin API, if the configuration has one.
func (n *node) newAdmin() error {
	a := n.cfg.Admin
	if a.Tokens == "" {
		return nil
	}
	o := admin.Options{Network: a.Address.Network, Address: a.Address.Address, Tokens: string(a.Tokens),
		Gateway: watch{n}, Filters: filterStore{n}, Log: n.log}
	for _, h := range a.Hosts {
		o.Hosts = append(o.Hosts, string(h))
	}
	if d := n.cfg.Store.Driver; d == config.StoreEmbedded || d == config.StorePostgres {
		o.Queue = waiting{func() (store.Queue, *delivery.Engine) { return n.keeping.store.Queue(), n.keeping.engine }}
	}
	if o.Queue != nil {
		o.Reports = received{func() *tlsrpt.Inbox { return n.inbox }}
	}
	if a.Metrics == config.True {
		registry := metrics.New()
		if err := registry.Add(n.families()...); err != nil {
			return err
		}
		o.Metrics = registry.Handler()
	}
	var err error
	n.admin, err = admin.New(o)
	return err
}

// serveAdmin serves the admin API, if there is one, until it is shut down; what it returns
// is closed then. Mail does not depend on it.
func (n *node) serveAdmin() <-chan struct{} {
	done := make(chan struct{})
	if n.admin == nil {
		close(done)
		return done
	}
	go func() {
		defer close(done)
		if err := n.admin.Serve(); err != nil {
			n.log.Error("the admin API has ended; mail goes on", "err", err)
		}
	}()
	return done
}

// watch is a node to look at.
type watch struct{ n *node }

// Ready implements admin.Gateway.
func (w watch) Ready() bool {
	if w.n.stopping.Load() {
		return false
	}
	for _, l := range w.n.gw.Listeners() {
		if !l.Open {
			return false
		}
	}
	return true
}

// Status implements admin.Gateway.
func (w watch) Status() api.Status {
	n := w.n
	s := api.Status{
		Version: versionText(), Hostname: string(n.cfg.Hostname), Started: n.started.UTC(), Ready: w.Ready(), Load: n.gw.Load().Level,
		Counts:    w.counts(),
		Listeners: []api.Listener{}, Backends: w.backends(), Chains: w.chains(), Certificates: []api.Certificate{}, Managed: w.managed(),
		Nodes: n.beats.nodes(),
	}
	for _, l := range n.gw.Listeners() {
		al := api.Listener{Name: l.Name, Addresses: []string{}, TLS: string(l.TLS), Open: l.Open, Connections: l.Connections, TurnedAway: l.TurnedAway}
		for _, a := range l.Addrs {
			al.Addresses = append(al.Addresses, a.String())
		}
		s.Listeners = append(s.Listeners, al)
	}
	for _, e := range n.certs.Expiries() {
		s.Certificates = append(s.Certificates, api.Certificate{Names: e.Names, Expires: e.NotAfter.UTC()})
	}
	return s
}

// Accounts implements admin.Gateway.
func (w watch) Accounts() api.Accounts { return w.n.ledger.accounts() }

func (w watch) counts() api.Counts {
	s := &w.n.gw.Stats
	return api.Counts{
		Sessions: s.Sessions.Load(), Relayed: s.Relayed.Load(), Refused: s.Refused.Load(),
		Discarded: s.Discarded.Load(), Duplicates: s.Duplicates.Load(),
		Logins: s.Logins.Load(), LoginsFailed: s.LoginsFailed.Load(), EarlyTalkers: s.EarlyTalkers.Load(),
		BadProxy: s.BadProxy.Load(), Limited: s.Limited.Load(),
	}
}

func (w watch) managed() []api.Managed {
	list := []api.Managed{}
	for _, m := range w.n.certs.Managed() {
		am := api.Managed{Name: m.Name, LastError: printable(m.LastError)} // it may have what a CA said
		if !m.NextTry.IsZero() {
			next := m.NextTry.UTC()
			am.NextTry = &next
		}
		list = append(list, am)
	}
	return list
}

func (w watch) backends() []api.Backend {
	list := []api.Backend{}
	for _, b := range w.n.transport.Stats() {
		ab := api.Backend{Name: b.Name, Idle: b.Idle, Busy: b.Busy, Waiting: b.Waiting, Transactions: b.Transactions, Endpoints: []api.Endpoint{}}
		for _, e := range b.Endpoints {
			ab.Up = ab.Up || e.Up
			ae := api.Endpoint{Address: e.Endpoint.String(), Up: e.Up}
			if e.Err != nil {
				ae.Error = printable(oneLine(e.Err)) // it may have what a peer said
			}
			if !e.Retry.IsZero() {
				retry := e.Retry.UTC()
				ae.Retry = &retry
			}
			ab.Endpoints = append(ab.Endpoints, ae)
		}
		list = append(list, ab)
	}
	return list
}

func (w watch) chains() []api.Chain {
	set := w.n.live.Load().set
	list := []api.Chain{}
	for _, name := range sortedKeys(set.places) {
		c := api.Chain{Name: name, Filters: []api.Link{}}
		for _, p := range set.places[name] {
			c.Filters = append(c.Filters, api.Link{Name: p.filter.value.Name(), Module: p.Module.String(), Digest: p.digest.String(), OnError: p.OnError.String(), Grants: granted(p.Grant), Broken: brokenAt(p)})
		}
		list = append(list, c)
	}
	return list
}

// checkAdmin says what is wrong with the token file, and warns of what is not wrong enough, a
// folder for instance that no filter can be pushed to.
func checkAdmin(cfg *config.Config) config.Problems {
	if cfg.Admin.Tokens == "" {
		return nil
	}
	tokens, warnings, err := admin.ReadTokens(string(cfg.Admin.Tokens))
	if err != nil {
		return config.Problems{cfg.Problem("admin.tokens", oneLine(err))}
	}
	var problems config.Problems
	for _, w := range warnings {
		problems = append(problems, cfg.Warning("admin.tokens", w))
	}
	if len(tokens) == 0 && len(warnings) == 0 {
		problems = append(problems, cfg.Warning("admin.tokens", fmt.Sprintf("%s has no token: nobody is let in", cfg.Admin.Tokens)))
	}
	if dir := string(cfg.Filters.Dir); dir != "" {
		if why := noPush(dir); why != "" {
			problems = append(problems, cfg.Warning("filters.dir", why))
		}
	}
	return problems
}

// noPush says why no filter can be pushed to a folder; empty if one can. Nothing is written for
// that, and the gateway may run as a user who can do more or less.
func noPush(dir string) string {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return dir + " is not there; the first push makes it, if it can"
	case err != nil:
		return "no filter can be pushed: " + err.Error()
	case !info.IsDir():
		return "no filter can be pushed: " + dir + " is not a folder"
	case !writable(dir):
		return "no filter can be pushed by this user, who cannot write to " + dir
	}
	return ""
}
