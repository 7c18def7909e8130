package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/mtasts"
	"github.com/penstock/penstock/delivery/mx"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/resolver"
	"github.com/penstock/penstock/store"
)

// outbound.go wires what brings mail to hosts elsewhere: who is asked in DNS and whether that
// one validates, where policies of MTA-STS are kept, and what plans are made of them.
//
//	delivery: section ─▶ outboundSettings ─▶ outbound ─▶ Engine, gateway mx
//	                         (files read)      (runs)

// outboundSettings is the delivery section in the words of the packages, with what its files
// hold.
type outboundSettings struct {
	resolver    resolver.Options
	guard       mx.GuardOptions
	authorities *x509.CertPool // nil for those of the system
	proxy       *delivery.Proxy
	relay       *delivery.Relay // without its planner
	relayPort   uint16          // 0 for that of the section
	sources     []delivery.Source
	families    resolver.Families
}

// readOutbound reads the section, and says what is wrong with it.
func readOutbound(cfg *config.Config, log *slog.Logger) (outboundSettings, config.Problems) {
	d := cfg.Delivery
	var problems config.Problems
	fail := func(key string, err error) {
		problems = append(problems, cfg.Problem("delivery."+key, oneLine(err)))
	}
	s := outboundSettings{families: familiesOf(d.IPFamilies), sources: sourcesOf(d.Sources), guard: mx.GuardOptions{
		AllowLocal: d.BlockLocal == config.False, AllowReserved: d.BlockReserved == config.False,
	}}
	for _, p := range d.NAT64Prefixes {
		s.guard.NAT64 = append(s.guard.NAT64, p.Prefix)
	}
	var err error
	if s.resolver, err = resolverOptions(cfg, log); err != nil {
		fail("resolver.address", err)
	}
	// Mail can wait longer than a client that has called, and its questions are more.
	s.resolver.Budget, s.resolver.Inflight, s.resolver.Plain = 0, 0, d.DANE == config.DANEOff
	if d.Authorities != "" {
		if s.authorities, err = withSystem(string(d.Authorities)); err != nil {
			fail("authorities", err)
		}
	}
	if s.proxy, err = proxyOf(d); err != nil {
		fail("proxy", err)
	}
	if d.Relay.Host != "" {
		s.relay = &delivery.Relay{Host: d.Relay.Host, MX: d.Relay.MX, TLS: relayTLS(d.RelayTLS)}
		s.relayPort = uint16(d.Relay.Port)
	}
	return s, append(problems, warnUntrusted(cfg, s.resolver)...)
}

// warnUntrusted tells that what DANE needs cannot be had from the servers that are named.
func warnUntrusted(cfg *config.Config, o resolver.Options) config.Problems {
	d := cfg.Delivery
	trusted := slices.ContainsFunc(o.Servers, func(s resolver.Server) bool { return s.Authenticates() })
	if trusted || d.DANE == config.DANEOff || len(o.Servers) == 0 {
		return nil
	}
	if d.DANE == config.DANERequired {
		return config.Problems{cfg.Warning("delivery.dane", "required keeps back all mail for others: the resolver's word on DNSSEC does not count (delivery.resolver.trusted)")}
	}
	return config.Problems{cfg.Warning("delivery.dane", "no host is authenticated: the resolver's word on DNSSEC does not count (delivery.resolver.trusted); off says so")}
}

// relayTLS is what is asked of a relay beside what its own policies say.
func relayTLS(t config.RelayTLS) delivery.TLSMode {
	switch t {
	case config.RelayTLSRequired:
		return delivery.TLSRequired
	case config.RelayTLSVerify:
		return delivery.TLSVerify
	}
	return ""
}

func familiesOf(list []config.IPFamily) resolver.Families {
	v4, v6 := slices.Contains(list, config.IPv4), slices.Contains(list, config.IPv6)
	switch {
	case v4 && !v6:
		return resolver.IPv4
	case v6 && !v4:
		return resolver.IPv6
	}
	return resolver.Both
}

func sourcesOf(list []config.Source) []delivery.Source {
	var sources []delivery.Source
	for _, s := range list {
		sources = append(sources, delivery.Source{Name: s.Name, IPv4: s.IPv4.Addr, IPv6: s.IPv6.Addr,
			Helo: string(s.Helo), HeloIPv4: string(s.HeloIPv4), HeloIPv6: string(s.HeloIPv6)})
	}
	return sources
}

// withSystem returns the system's authorities and those of a file.
func withSystem(path string) (*x509.CertPool, error) {
	pem, err := readRegular(path, 16<<20)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("authorities of the system: %w", err)
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	return pool, nil
}

// proxyOf returns the proxy of the section; nil if it has none.
func proxyOf(d config.Delivery) (*delivery.Proxy, error) {
	if d.Proxy.Scheme == "" {
		return nil, nil
	}
	u := url.URL{Scheme: d.Proxy.Scheme, Host: d.Proxy.Address}
	if d.ProxyLogin.User != "" {
		if d.ProxyLogin.Password == "" {
			return nil, errors.New("proxy_login lacks the password")
		}
		password, err := passwordFile(string(d.ProxyLogin.Password))
		if err != nil {
			return nil, err
		}
		u.User = url.UserPassword(d.ProxyLogin.User, password)
	}
	return delivery.NewProxy(u.String(), delivery.ProxyOptions{Timeout: d.ConnectTimeout})
}

// outbound is who knows the way to hosts elsewhere. Who made it closes it.
type outbound struct {
	outboundSettings
	cfg     *config.Config
	log     *slog.Logger
	dns     *resolver.Resolver
	fresh   *resolver.Resolver // without a cache, to see what has changed; nil without MTA-STS
	health  *resolver.Health
	guarded *mx.Guard
	sts     *mtasts.Cache // nil if it is off
	planner *delivery.Planner
	relayed *delivery.Planner // that of the relay; nil without one
	// reporter counts how TLS went, and tells it; nil if that is off, or without a store.
	reporter *tlsrpt.Reporter
	hooks    *chainHooks // nil if no chain is asked

	stop    context.CancelFunc // ends what start began
	running sync.WaitGroup
}

// leading tells whether a node of a cluster is to do some work.
type leading func(work string) func(context.Context) (bool, error)

// newOutbound makes it. Without a store, policies are known until it is closed; lead may be nil
// then. The error is at a key of the section.
func newOutbound(cfg *config.Config, set outboundSettings, s store.Store, lead leading, log *slog.Logger) (*outbound, config.Problems) {
	o := &outbound{outboundSettings: set, cfg: cfg, log: log, stop: func() {}}
	for _, step := range []struct {
		key  string
		make func() error
	}{
		{"resolver.address", o.makeResolvers},
		{"block_local_addresses", o.makeGuard},
		{"mta_sts", func() error { return o.makePolicies(s, lead) }},
		{"dane", o.makePlanner},
	} {
		if err := step.make(); err != nil {
			o.close()
			return nil, config.Problems{cfg.Problem("delivery."+step.key, oneLine(err))}
		}
	}
	return o, nil
}

func (o *outbound) makeResolvers() (err error) {
	if o.dns, err = resolver.New(o.resolver); err != nil {
		return err
	}
	o.health = resolver.NewHealth(o.dns, resolver.HealthOptions{Name: string(o.cfg.Delivery.Resolver.Probe), Log: o.log})
	if o.cfg.Delivery.MTASTS == config.STSOff {
		return nil
	}
	fresh := o.resolver
	fresh.CacheSize, fresh.Plain, fresh.Log = -1, true, nil // the other one has said it
	o.fresh, err = resolver.New(fresh)
	return err
}

func (o *outbound) makeGuard() (err error) {
	o.guarded, err = mx.NewGuard(o.guard)
	return err
}

func (o *outbound) makePolicies(s store.Store, lead leading) (err error) {
	if o.cfg.Delivery.MTASTS == config.STSOff {
		return nil
	}
	so := mtasts.Options{DNS: o.dns, Fresh: o.fresh, Families: o.families, RootCAs: o.authorities, Check: o.guarded.Check, Log: o.log}
	so.Dial = o.dialWeb
	if s != nil {
		so.Store = delivery.PolicyStore(s.Policies())
	}
	if lead != nil {
		so.Lead = lead("mta-sts")
	}
	o.sts, err = mtasts.New(so)
	return err
}

// dialWeb connects to a web server whose address was let through, and holds it to that once more
// when it connects.
func (o *outbound) dialWeb(ctx context.Context, network, address string) (net.Conn, error) {
	if o.proxy != nil {
		return o.proxy.Dial(ctx, network, address)
	}
	d := net.Dialer{Control: o.guarded.Control}
	return d.DialContext(ctx, network, address)
}

// makePlanner makes the planners: of the hosts of others, and of a relay, which may be in a
// network of ours.
func (o *outbound) makePlanner() (err error) {
	po := o.planOptions()
	if o.planner, err = delivery.NewPlanner(po); err != nil || o.relay == nil {
		return err
	}
	po.MX.Guard, err = mx.NewGuard(mx.GuardOptions{AllowLocal: true, AllowReserved: true, NAT64: o.guard.NAT64})
	if err != nil {
		return err
	}
	if o.relayPort != 0 {
		po.Port = o.relayPort
	}
	o.relayed, err = delivery.NewPlanner(po)
	o.relay.Planner = o.relayed
	return err
}

func (o *outbound) planOptions() delivery.PlanOptions {
	d := o.cfg.Delivery
	po := delivery.PlanOptions{
		MX:   mx.Options{DNS: o.dns, Families: o.families, PreferIPv6: d.PreferIPv6 == config.True, Guard: o.guarded, Own: ownNames(o.cfg)},
		DANE: delivery.DANEMode(d.DANE), STSMode: delivery.STSMode(d.MTASTS), Both: d.Both == config.True, Validating: o.health.Validating,
		Port: uint16(d.Port), Log: o.log,
	}
	if o.sts != nil { // a nil *Cache would be no nil Policies
		po.STS = o.sts
	}
	return po
}

// ownNames are those under which mail reaches us.
func ownNames(cfg *config.Config) []string {
	names := []string{string(cfg.Hostname)}
	for _, n := range cfg.Certificates.Names {
		names = append(names, string(n))
	}
	for _, s := range cfg.Delivery.Sources {
		names = append(names, string(s.Helo), string(s.HeloIPv4), string(s.HeloIPv6))
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return n == "" })
}

// reports makes the reporter. mail puts a report into the queue.
func (o *outbound) reports(files store.Files, lead leading, mail func(context.Context, tlsrpt.Mail) error) error {
	t := o.cfg.Delivery.TLSRPT
	if t.Enabled == config.False {
		return nil
	}
	contact := string(t.Contact)
	if contact == "" {
		contact = "postmaster@" + string(o.cfg.Hostname)
	}
	from, err := smtp.ParseAddress(contact)
	if err != nil {
		return err
	}
	o.reporter, err = tlsrpt.New(tlsrpt.Options{Submitter: string(o.cfg.Hostname), Organization: t.Organization, From: from,
		Files: foundFiles{files}, DNS: o.dns, Mail: mail, Lead: lead("tlsrpt"), RootCAs: o.authorities, Check: o.guarded.Check, Dial: o.dialWeb, Log: o.log})
	return err
}

// foundFiles are the files of a store, with the error of a file system for what is not there.
type foundFiles struct{ store.Files }

// Read implements tlsrpt.Files.
func (f foundFiles) Read(ctx context.Context, name string) ([]byte, error) {
	data, err := f.Files.Read(ctx, name)
	return data, asNotExist(err)
}

// List implements tlsrpt.Files.
func (f foundFiles) List(ctx context.Context, folder string, recursive bool) ([]string, error) {
	names, err := f.Files.List(ctx, folder, recursive)
	return names, asNotExist(err)
}

func asNotExist(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// options are the Engine's; nil without a way out.
func (o *outbound) options() *delivery.OutboundOptions {
	if o == nil {
		return nil
	}
	eo := &delivery.OutboundOptions{
		Planner: o.planner, Relay: o.relay, Guard: o.guarded, Sources: o.sources, LocalName: string(o.cfg.Hostname),
		Secure: delivery.SecureOptions{Authorities: o.authorities}, ConnectTimeout: o.cfg.Delivery.ConnectTimeout,
		PreferIPv6: o.cfg.Delivery.PreferIPv6 == config.True,
	}
	if p := o.cfg.Delivery.Pace; !p.Off() {
		eo.Pace = delivery.Pace{Messages: p.Count, Per: p.Per}
	}
	if o.proxy != nil {
		eo.Dial = o.proxy.Dial
	}
	if o.reporter != nil {
		eo.Recorder = o.reporter
	}
	if o.hooks != nil { // a nil *chainHooks would be no nil Hooks
		eo.Hooks, eo.WeakerTLS = o.hooks, weakerTLS(o.cfg)
	}
	return eo
}

// start begins to watch the resolver, to look at policies again, and to report.
func (o *outbound) start() {
	if o == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	o.stop = stop
	o.running.Go(func() { o.health.Run(ctx) })
	if o.sts != nil {
		o.running.Go(func() { o.sts.Run(ctx) })
	}
	if o.reporter != nil {
		o.running.Go(func() { o.reporter.Run(ctx) })
	}
}

// close ends all that runs, and waits for it. It comes after the last delivery.
func (o *outbound) close() {
	if o == nil {
		return
	}
	o.stop()
	o.running.Wait()
	o.hooks.close()
	for _, p := range o.planners() {
		p.Close()
	}
	if o.sts != nil {
		o.sts.Close()
	}
	for _, r := range []*resolver.Resolver{o.fresh, o.dns} {
		if r != nil {
			r.Close()
		}
	}
}

// planners are those that were made.
func (o *outbound) planners() []*delivery.Planner {
	var list []*delivery.Planner
	if o.planner != nil {
		list = append(list, o.planner)
	}
	if o.relayed != nil {
		list = append(list, o.relayed)
	}
	return list
}

// leads is who asks a store whether this node is to do some work of all nodes.
func leads(c store.Cluster, node string) leading {
	return func(work string) func(context.Context) (bool, error) {
		return func(ctx context.Context) (bool, error) { return c.Lead(ctx, work, node, leadTime) }
	}
}

// leadTime is how long a node leads that does not say so again.
const leadTime = 5 * time.Minute
