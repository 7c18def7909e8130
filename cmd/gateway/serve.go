package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/admin"
	"github.com/penstock/penstock/certs"
	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/delivery/tlsrpt"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/mail/auth"
	"github.com/penstock/penstock/resolver"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/wasmhost"
)

// configFlags are the flags of commands that read a configuration.
type configFlags struct {
	file string
	set  []string
}

func (f *configFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.file, "config", "c", "penstock.yaml", "configuration `file`")
	cmd.Flags().StringArrayVar(&f.set, "set", nil, "set one `key=value` over the file, as in --set log.level=debug")
}

// overrides are the --set flags.
func (f *configFlags) overrides() ([]config.Override, error) {
	var overrides []config.Override
	for _, s := range f.set {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return nil, usageError{fmt.Errorf("--set %s: want key=value", s)}
		}
		overrides = append(overrides, config.Override{Key: key, Value: value})
	}
	return overrides, nil
}

func printProblems(w io.Writer, problems config.Problems) {
	for _, p := range problems {
		fmt.Fprintln(w, p.String())
	}
}

func newServe() *cobra.Command {
	var flags configFlags
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: `Runs until SIGTERM or SIGINT, then finishes what was promised and ends. SIGHUP reads
routes, backends, filters and certificates anew, and takes all of it over or nothing;
sessions that run keep the routes and filters they began with.`,
		Example: `  gateway serve -c /etc/penstock/penstock.yaml
  PENSTOCK_LOG__LEVEL=debug gateway serve
  gateway serve --set log.format=json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), flags, cmd.ErrOrStderr()) },
	}
	flags.add(cmd)
	return cmd
}

func serve(ctx context.Context, flags configFlags, stderr io.Writer) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	overrides, err := flags.overrides()
	if err != nil {
		return err
	}
	load := func() (*config.Config, config.Problems) { return config.Load(flags.file, os.Environ(), overrides) }
	cfg, problems := load()
	printProblems(stderr, problems)
	if cfg == nil {
		return errReported
	}
	log := newLogger(cfg.Log, stderr)
	node, problems := newNode(ctx, cfg, log)
	if node == nil {
		printProblems(stderr, problems.Sorted(flags.file))
		return errReported
	}
	return node.run(ctx, hup, load)
}

// probeEvery is how often a backend that gets no mail is asked what it offers, so that
// clients can be offered the same.
const probeEvery = 5 * time.Minute

// node is a gateway with all its parts.
type node struct {
	cfg       *config.Config
	log       *slog.Logger
	certs     *certs.Store
	wasm      *wasmhost.Runtime
	transport *delivery.Transport
	store     store.Store   // nil without one
	keeping   *keeping      // nil without a store
	out       *outbound     // likewise
	inbox     *tlsrpt.Inbox // likewise
	signer    *auth.Signer
	outside   *outside
	beats     *beats // likewise
	doorman   *doorman
	names     *resolver.Resolver // nil if nobody asks
	sockets   *gateway.Sockets
	gw        *gateway.Gateway
	admin     *admin.Server // nil if it is off
	ledger    *ledger
	figures   filterFigures

	// What run looks at for changes.
	certFiles, moduleFiles, keyFiles follower

	started  time.Time
	stopping atomic.Bool
	live     atomic.Pointer[generation] // changed by who has the turn alone
	turn     chan struct{}              // a token: nobody changes rules or modules
}

// generation is the configuration in force and the chains made of it.
type generation struct {
	cfg *config.Config
	set *chainSet
}

// chains returns what returns the chains in force, nil if there is no admin API that could ask.
func (n *node) chains() func() *chainSet {
	if n.cfg.Admin.Tokens == "" {
		return nil
	}
	return n.inForce
}

// inForce returns the chains in force; nil before there are any.
func (n *node) inForce() *chainSet {
	if g := n.live.Load(); g != nil {
		return g.set
	}
	return nil
}

// change waits for the right to change what runs, which a reload, a push and a rollback
// have one at a time. done gives it back. The error is what a client is told.
func (n *node) change(ctx context.Context) (done func(), err error) {
	select {
	case <-n.turn:
	case <-ctx.Done():
		return nil, errEnding
	}
	done = func() { n.turn <- struct{}{} }
	if n.stopping.Load() {
		done()
		return nil, errEnding
	}
	return done, nil
}

// rulesOf is the routes and chains of a configuration; without chains it is nothing.
func rulesOf(cfg *config.Config, set *chainSet) gateway.Rules {
	if set == nil {
		return gateway.Rules{}
	}
	return gateway.Rules{Routes: routes(cfg), Chains: set.chains, Out: cfg.SendsOut(), Release: set.close}
}

// run serves until ctx ends, and reloads on hup. A reload compiles filters, which takes a
// while; it runs beside, one at a time, and gives up when the gateway is to end.
func (n *node) run(ctx context.Context, hup <-chan os.Signal, load func() (*config.Config, config.Problems)) error {
	administered := n.serveAdmin()
	if n.keeping != nil {
		n.out.start()
		n.keeping.run()
	}
	served := make(chan error, 1)
	go func() { served <- n.gw.Serve() }()
	n.log.Info("started", "hostname", string(n.cfg.Hostname), "version", versionText())
	daily := time.NewTicker(24 * time.Hour) // the kept default certificate grows old
	defer daily.Stop()
	often := time.NewTicker(usersEvery)
	defer often.Stop()
	follow := time.NewTicker(followEvery)
	defer follow.Stop()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var reloads sync.WaitGroup // and what else runs until ctx ends
	reloads.Go(func() {
		if err := n.certs.Run(ctx); err != nil {
			n.log.Error("certificates are not obtained", "err", err)
		}
	})
	if n.beats != nil {
		reloads.Go(func() { n.beats.run(ctx) })
	}
	if n.inbox != nil {
		reloads.Go(func() { n.inbox.Run(ctx) })
	}
	again := make(chan struct{}, 1) // a token: no reload runs
	again <- struct{}{}
	var asked, changed bool // a reload is due, or that of modules
	for {
		idle := again
		if !asked && !changed {
			idle = nil
		}
		select {
		case <-hup:
			asked = true
		case <-idle:
			all, modules := asked, changed
			asked, changed = false, false
			reloads.Go(func() {
				if all {
					n.reload(ctx, load)
				}
				if modules {
					n.reloadModules(ctx) // finds nothing if that has taken them over
				}
				again <- struct{}{}
			})
		case <-daily.C:
			n.reloadCertificates()
		case <-follow.C:
			cfg := n.live.Load().cfg
			changed = n.moduleFiles.look(modulePaths(cfg)) || changed
			if n.certFiles.look(certificatePaths(cfg)) {
				n.reloadCertificates()
			}
			if n.keyFiles.look(signingPaths(cfg)) {
				n.reloadKeys(cfg)
			}
		case <-often.C:
			n.doorman.reloadUsers()
			n.doorman.reloadSenders()
		case err := <-served:
			stop()
			return errors.Join(err, n.shutdown(&reloads, administered))
		case <-ctx.Done():
			return errors.Join(n.shutdown(&reloads, administered), <-served)
		}
	}
}

// reload takes a new configuration over, whole, or keeps the old one and says why.
func (n *node) reload(ctx context.Context, load func() (*config.Config, config.Problems)) {
	done, err := n.change(ctx)
	if err != nil {
		return // the gateway ends
	}
	defer done()
	cfg, problems := load()
	if cfg == nil {
		n.logProblems("configuration is not taken over", problems)
		return
	}
	set, more := loadChains(ctx, n.wasm, n.ledger, n.outside, cfg)
	rules := rulesOf(cfg, set)
	bo, moreStill := backends(cfg)
	co, evenMore := certOptions(cfg, n.log)
	keys, wrongKeys := signingKeys(cfg)
	problems = slices.Concat(problems, more, moreStill, evenMore, wrongKeys)
	if ctx.Err() != nil {
		if rules.Release != nil {
			rules.Release()
		}
		return // the gateway ends; whatever went wrong went wrong for that
	}
	if problems.Err() == nil {
		problems = append(problems, n.takeOver(cfg, rules, bo, co, keys)...)
	}
	if problems.Err() != nil {
		if rules.Release != nil {
			rules.Release()
		}
		n.logProblems("configuration is not taken over", problems)
		return
	}
	n.live.Store(&generation{cfg, set})
	if n.admin != nil {
		if err := n.admin.Reload(); err != nil {
			n.log.Error("admin: the old tokens are kept", "err", err)
		}
	}
	n.logProblems("configuration", problems)
	for _, key := range needRestart(n.cfg, cfg) {
		n.log.Warn("this change needs a restart", "key", key)
	}
	n.log.Info("reloaded: routes, backends, filters, certificates and keys that sign")
}

// takeOver makes a configuration count whose parts are ready, whole or not at all: the rules are
// prepared first and used last, the backends have been checked, and certificates are taken over
// in one step that may fail.
func (n *node) takeOver(cfg *config.Config, rules gateway.Rules, bo map[string]delivery.BackendOptions, co certs.Options, keys []auth.Key) config.Problems {
	prepared, err := n.gw.Prepare(rules)
	switch {
	case errors.Is(err, gateway.ErrNoChain):
		return config.Problems{cfg.Problem("listeners", oneLine(err)+"; a listener's chain changes with a restart")}
	case err != nil:
		return config.Problems{cfg.Problem("routes", oneLine(err))}
	}
	if err := n.certs.Update(co.Files, co.ACME); err != nil {
		prepared.Discard()
		return certProblems(cfg, err)
	}
	if err := n.signer.Use(keys); err != nil { // they have been read, so nothing is left to be wrong
		prepared.Discard()
		return config.Problems{cfg.Problem("delivery.dkim", oneLine(err))}
	}
	// Both have been shut down if they fail now, and nothing matters any more.
	if err := n.transport.Update(bo); err != nil {
		prepared.Discard()
		return config.Problems{cfg.Problem("backends", oneLine(err))}
	}
	if err := n.gw.Use(prepared); err != nil {
		return config.Problems{cfg.Problem("routes", oneLine(err))}
	}
	return nil
}

// needRestart names the keys that changed and that a reload does not take over.
func needRestart(old, cfg *config.Config) []string {
	var keys []string
	for key, same := range map[string]bool{
		"admin":                    reflect.DeepEqual(old.Admin, cfg.Admin),
		"hostname":                 old.Hostname == cfg.Hostname,
		"delivery":                 sameDelivery(old.Delivery, cfg.Delivery),
		"store":                    old.Store == cfg.Store,
		"overload":                 old.Overload == cfg.Overload,
		"listeners":                reflect.DeepEqual(old.Listeners, cfg.Listeners),
		"log":                      old.Log == cfg.Log,
		"filters.cache":            old.Filters.Cache == cfg.Filters.Cache,
		"certificates.min_version": old.Certificates.MinVersion == cfg.Certificates.MinVersion,
		"certificates.dir":         old.Certificates.Dir == cfg.Certificates.Dir,
		"shutdown_timeout":         old.ShutdownTimeout == cfg.ShutdownTimeout,
	} {
		if !same {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// sameDelivery tells whether two sections mean the same, but for keys, which a reload takes over.
func sameDelivery(a, b config.Delivery) bool {
	a.DKIM, b.DKIM = nil, nil
	return reflect.DeepEqual(a, b)
}

func (n *node) reloadCertificates() {
	if err := n.certs.Reload(); err != nil {
		n.log.Error("certificates: the old ones are kept where new ones are wrong", "err", err)
		return
	}
	n.log.Info("certificates: read again")
}

func (n *node) logProblems(msg string, problems config.Problems) {
	for _, p := range problems {
		if p.Warning {
			n.log.Warn(msg, "problem", p.String())
		} else {
			n.log.Error(msg, "problem", p.String())
		}
	}
}

// grace is what a shutdown has beyond its timeout to free things in order.
const grace = 5 * time.Second

// shutdown ends everything in order: no new mail, running mail to its reply, the admin API,
// backends, then filters. It returns a few seconds after its timeout at the latest: a guest that cannot be
// stopped must not keep the process.
func (n *node) shutdown(reloads *sync.WaitGroup, administered <-chan struct{}) error {
	n.stopping.Store(true)
	timeout := n.cfg.ShutdownTimeout
	n.log.Info("shutting down", "connections", n.gw.Connections(), "timeout", timeout)
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		// Both at once: what sessions bring now is kept for the next start.
		var deliveries sync.WaitGroup
		if n.keeping != nil {
			deliveries.Go(func() {
				if err := n.keeping.quiet(ctx); err != nil {
					n.log.Warn("some deliveries were cut off, and will be repeated", "timeout", timeout)
				}
			})
		}
		err := n.gw.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			n.log.Warn("some sessions were cut off", "timeout", timeout)
			err = nil
		}
		deliveries.Wait()
		reloads.Wait()
		n.close()
		<-administered
		done <- err
	}()
	counts := func() []any {
		stats := &n.gw.Stats
		return []any{"sessions", stats.Sessions.Load(), "relayed", stats.Relayed.Load(), "refused", stats.Refused.Load(),
			"discarded", stats.Discarded.Load(), "duplicates", stats.Duplicates.Load()}
	}
	select {
	case err := <-done:
		n.log.Info("stopped", counts()...)
		return err
	case <-time.After(timeout + grace):
		n.log.Error("stopped, although a filter does not return", counts()...)
		return errStuck
	}
}

var errStuck = errors.New("a filter did not return; it was left behind")

// close frees what newNode made, as far as it came.
func (n *node) close() {
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if n.admin != nil {
		// What it runs uses all else. A module that is being compiled cannot be stopped,
		// and must not take the time of the others.
		brief, cancel := context.WithTimeout(ctx, grace/2)
		defer cancel()
		if err := n.admin.Shutdown(brief); err != nil {
			n.log.Warn("requests to the admin API were cut off", "err", err)
		}
	}
	if n.transport != nil {
		if err := n.transport.Shutdown(ctx); err != nil {
			n.log.Warn("backend connections were cut off", "err", err)
		}
	}
	if n.keeping != nil {
		if err := n.keeping.quiet(ctx); err != nil {
			n.log.Error("deliveries did not end", "err", err)
		}
	}
	n.out.close()
	if n.store != nil { // who obtains certificates has ended: shutdown has waited for it
		if err := n.store.Close(); err != nil {
			n.log.Error("store did not close", "err", err)
		}
	}
	if n.names != nil {
		n.names.Close()
	}
	n.outside.close()
	n.sockets.Close()
	if n.wasm != nil {
		if err := n.wasm.Close(ctx); err != nil {
			n.log.Error("filters did not close", "err", err)
		}
	}
}
