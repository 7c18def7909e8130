package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/auth"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/wasmhost"
)

// build.go makes the parts of a gateway, in the order in which they need each other.

// newNode builds everything and opens the listeners. With an error among the problems the
// node is nil and nothing is left open.
func newNode(ctx context.Context, cfg *config.Config, log *slog.Logger) (*node, config.Problems) {
	b := &building{node: &node{cfg: cfg, log: log, started: time.Now(), turn: make(chan struct{}, 1)}}
	b.turn <- struct{}{}
	b.ledger = newLedger(log, b.chains())
	b.certFiles.begin(certificatePaths(cfg))
	b.moduleFiles.begin(modulePaths(cfg))
	b.keyFiles.begin(signingPaths(cfg))
	// Each step finds all that is wrong with its parts, and goes on as far as it can. The next
	// one needs all that is before it.
	for _, step := range []func(context.Context){b.foundations, b.engines, b.open} {
		if step(ctx); b.problems.Err() != nil {
			b.abandon()
			return nil, b.problems
		}
	}
	for _, name := range b.sockets.Unused() {
		log.Warn("the service manager opened a socket that no listener uses", "socket", name)
	}
	return b.node, b.problems
}

// building is a node that is being built.
type building struct {
	*node
	problems  config.Problems
	set       *chainSet
	rules     gateway.Rules
	used      bool // the gateway has the rules
	backends  map[string]delivery.BackendOptions
	listeners []gateway.Listener
	settings  outboundSettings
}

func (b *building) fail(key string, err error) {
	b.add(config.Problems{b.cfg.Problem(key, oneLine(err))})
}

func (b *building) add(problems config.Problems) { b.problems = append(b.problems, problems...) }

// abandon frees what was built.
func (b *building) abandon() {
	if b.rules.Release != nil && !b.used {
		b.rules.Release()
	}
	b.close()
}

// foundations are the store, the certificates, which are in it, and what runs filters.
func (b *building) foundations(ctx context.Context) {
	co, problems := certOptions(b.cfg, b.log)
	b.add(problems)
	if wrong := tryStore(b.cfg); wrong.Err() != nil {
		b.add(wrong)
	} else if opened, err := openStore(ctx, b.cfg, b.log); err != nil {
		b.fail("store", err)
	} else if opened != nil {
		b.store, co.Storage = opened, newCertStorage(opened.Files(), b.log)
	}
	var err error
	if b.certs, err = certs.New(co); err != nil {
		b.add(certProblems(b.cfg, err))
	}
	if b.wasm, err = newRuntime(ctx, wasmhost.Options{CacheDir: string(b.cfg.Filters.Cache), Log: b.log, Metrics: &b.figures}); err != nil {
		b.fail("filters", err)
	}
	if b.wasm != nil {
		b.prepare(ctx) // what is wrong there is found although something is wrong here
	}
}

// prepare reads what stands by itself: routes, filters, backends, listeners, and the admin API.
func (b *building) prepare(ctx context.Context) {
	n := b.node
	b.doorman = newDoorman(b.log)
	b.doorman.transport = func() *delivery.Transport { return n.transport }
	var err error
	keys, problems := signingKeys(b.cfg)
	b.add(problems)
	if b.signer, err = auth.NewSigner(keys); err != nil {
		b.fail("delivery.dkim", err)
		b.signer = new(auth.Signer)
	}
	b.doorman.signer = b.signer.Sign
	b.settings, problems = readOutbound(b.cfg, b.log)
	b.add(problems)
	if needsNames(b.cfg) && !problems.At("delivery.resolver.address") {
		if b.names, err = newResolver(b.cfg, b.log); err != nil {
			b.fail("delivery.resolver.address", err)
		}
	}
	if b.sockets, err = gateway.TakeSockets(); err != nil {
		b.fail("listeners", err)
	}
	b.outside = newOutside(b.store, notices{func() *keeping { return n.keeping }, func(p smtp.Path) (string, bool) { return n.gw.PublicBackend(p) }}, b.log)
	b.set, problems = loadChains(ctx, b.wasm, b.ledger, b.outside, b.cfg)
	b.add(problems)
	b.rules = rulesOf(b.cfg, b.set)
	b.backends, problems = backends(b.cfg)
	b.add(problems)
	b.listeners, problems = b.doorman.listeners(b.cfg)
	b.add(problems)
	if wrong := checkAdmin(b.cfg); wrong.Err() != nil {
		b.add(wrong)
	} else if err := b.newAdmin(); err != nil {
		b.fail("admin", err)
	}
}

// engines are what brings mail on: to backends at once, and what was stored.
func (b *building) engines(context.Context) {
	var err error
	if b.store != nil {
		if b.inbox, err = newInbox(b.store.Files(), b.log); err != nil {
			b.fail("store", err)
			return
		}
	}
	if b.transport, err = delivery.New(delivery.Options{LocalName: string(b.cfg.Hostname), Backends: b.backends, Handlers: handlers(b.inbox), ProbeEvery: probeEvery, Log: b.log}); err != nil {
		b.fail("backends", err)
		return
	}
	if b.store == nil {
		return
	}
	b.beats = newBeats(b.store.Cluster(), b.started, b.log)
	if !b.wayOut() {
		return
	}
	n := b.node
	if b.keeping, err = newKeeping(b.cfg, b.store, b.transport, b.out, b.signer, func(p smtp.Path) (string, bool) { return n.gw.Backend(p) }, b.log); err != nil {
		b.fail("store", err)
	}
}

// wayOut is what brings mail to hosts elsewhere. It is false if it cannot be had.
func (b *building) wayOut() bool {
	lead := leads(b.store.Cluster(), b.beats.name)
	var problems config.Problems
	b.out, problems = newOutbound(b.cfg, b.settings, b.store, lead, b.log)
	switch {
	case b.out != nil:
	case b.cfg.Delivery.Resolver.Address.Auto() && problems.At("delivery.resolver.address"):
		// Mail for backends needs nobody who knows names.
		b.log.Error("mail to others waits until the next start: no dns server was found, and delivery.resolver.address names none", "err", problems.Err())
		return true
	default:
		b.add(problems)
		return false
	}
	n := b.node
	b.out.hooks = newChainHooks(b.cfg, n.inForce, b.log)
	mail := func(ctx context.Context, m tlsrpt.Mail) error { return n.keeping.report(ctx, n.signer, m) }
	if err := b.out.reports(b.store.Files(), lead, mail); err != nil {
		b.fail("delivery.tlsrpt", err)
		return false
	}
	return true
}

// open makes the gateway and opens the listeners, those of the admin API too.
func (b *building) open(context.Context) {
	if b.admin != nil {
		if err := b.admin.Listen(); err != nil {
			b.fail("admin.address", err)
			return
		}
	}
	var err error
	if b.gw, err = gateway.New(b.gatewayOptions(), b.rules); err == nil {
		b.used = true
		b.live.Store(&generation{b.cfg, b.set})
		err = b.gw.Listen()
	}
	if err != nil {
		b.fail("listeners", err)
	}
}

func (b *building) gatewayOptions() gateway.Options {
	o := gateway.Options{
		Hostname: string(b.cfg.Hostname), Listeners: b.listeners, Relay: transportRelay{b.transport},
		TLS: b.certs.ServerConfig(), Sockets: b.sockets, Log: b.log,
		Overload: gateway.Overload{Sessions: b.cfg.Overload.Sessions, Memory: int64(b.cfg.Overload.Memory), Spool: int64(b.cfg.Overload.Spool)},
	}
	if b.keeping != nil {
		o.Relay = keepingRelay{transportRelay{b.transport}, b.keeping.engine}
	}
	if b.names != nil {
		o.LookUpName = nameOf(b.names)
	}
	return o
}
