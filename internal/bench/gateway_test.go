//go:build linux

package bench

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/filters"
	"github.com/penstock/penstock/gateway"
	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// gateway_test.go: the systems that are measured.

// hostname is everybody's name.
const hostname = "mx.test"

// kind is a kind of system.
type kind struct {
	name  string
	start func(tb testing.TB, sink string, cert *peers.Certificate) *system
}

// kinds are those that relay. They are measured in turn.
var kinds = []kind{
	{"floor", func(tb testing.TB, sink string, _ *peers.Certificate) *system {
		return startChild(tb, setup{Role: roleFloor, Sink: sink})
	}},
	{"gateway", gatewayWith()},
	{"gateway-3tiny", gatewayWith(filterTiny, filterTiny, filterTiny)},
	{"gateway-3go", gatewayWith("helocheck", "rcptguard", "headertag")},
	{"postfix", startPostfix},
}

// discarding are those that throw mail away.
var discarding = []kind{
	{"gateway-func", gatewayWith(filterDiscardFunc)},
	{"gateway-tiny", gatewayWith(filterDiscardTiny)},
}

// Filters that are made here. All other names are those of package filters.
const (
	filterTiny        = "tiny"         // subscribes to every hook and has no objection
	filterDiscardTiny = "discard tiny" // is small, too
	filterDiscardFunc = "discard func" // is no WebAssembly
)

// configs of the filters that ship with the gateway: each does something.
var configs = map[string]string{
	"helocheck": `{"our_names": ["` + hostname + `"]}`,
	"rcptguard": `{"blocked": ["root@*"]}`,
	"headertag": `{"rules": [{"add": "X-Checked", "value": "yes"}]}`,
}

func gatewayWith(names ...string) func(testing.TB, string, *peers.Certificate) *system {
	return func(tb testing.TB, sink string, cert *peers.Certificate) *system {
		for _, n := range names {
			if _, ok := filters.Builtin(n); !ok && configs[n] != "" {
				peers.Missing(tb, "filter "+n, "run `make filters`")
			}
		}
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("penstock-bench-%d", os.Getpid()))
		tb.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.MkdirAll(dir, 0o700); err != nil {
			tb.Fatal(err)
		}
		return startChild(tb, setup{Role: roleGateway, Sink: sink, Filters: names, Dir: dir}.with(cert))
	}
}

// relay is the transport as the gateway's Relay, as in the program.
type relay struct{ *delivery.Transport }

func (r relay) Begin(ctx context.Context, backend string, from smtp.Sender, client smtp.Forwarded) (smtp.Transaction, error) {
	return r.Transport.BeginFor(ctx, backend, from, client)
}

// playGateway runs a gateway as the program would: with its log at info level in a file,
// and all limits at their defaults but for connections, of which the load needs many.
func playGateway(s setup) (addr string, err error) {
	out, err := os.Create(filepath.Join(s.Dir, "log"))
	if err != nil {
		return "", err
	}
	log := slog.New(slog.NewTextHandler(out, nil))
	chain, err := chainOf(s, log)
	if err != nil {
		return "", err
	}
	config, err := s.config()
	if err != nil {
		return "", err
	}
	transport, err := delivery.New(delivery.Options{LocalName: hostname, Log: log, Backends: map[string]delivery.BackendOptions{
		"sink": {Groups: [][]delivery.Endpoint{{{Network: "tcp", Address: s.Sink}}}, TLS: delivery.TLSOff, Connections: 100},
	}})
	if err != nil {
		return "", err
	}
	l := gateway.Listener{Name: "in", Addresses: []gateway.Address{{Network: "tcp", Address: "127.0.0.1:0"}}, TLS: gateway.TLSOff, Chain: "all",
		Connections: -1, ConnectionsPerIP: -1}
	switch {
	case config != nil && s.Implicit:
		l.TLS = gateway.TLSImplicit
	case config != nil:
		l.TLS = gateway.TLSStart
	}
	var to gateway.Relay = relay{transport}
	if s.Queue {
		if to, err = keeperOf(s, transport, log); err != nil {
			return "", err
		}
	}
	gw, err := gateway.New(gateway.Options{Hostname: hostname, Listeners: []gateway.Listener{l}, Relay: to,
		TLS: config, SpoolDir: s.Dir, Log: log, Overload: gateway.Overload{Sessions: -1}},
		gateway.Rules{
			Routes: []gateway.Route{{Domains: []string{"example.org"}, Backend: "sink", Queue: s.Queue, Recipients: gateway.Recipients{Accept: s.Queue}}},
			Chains: map[string]*policy.Chain{"all": chain},
		})
	if err != nil {
		return "", err
	}
	if err := gw.Listen(); err != nil {
		return "", err
	}
	go gw.Serve()
	return gw.Addr("in").String(), nil
}

func chainOf(s setup, log *slog.Logger) (*policy.Chain, error) {
	ctx := context.Background()
	rt, err := wasmhost.New(ctx, wasmhost.Options{CacheDir: filepath.Join(s.Dir, "cache"), Log: log})
	if err != nil {
		return nil, err
	}
	var links []policy.Link
	for i, name := range s.Filters {
		if name == filterDiscardFunc {
			links = append(links, policy.Link{Filter: policy.Func(name, policy.StagesOf(policy.StageMail), discard)})
			continue
		}
		m, err := rt.Load(ctx, name, module(name))
		if err != nil {
			return nil, err
		}
		f, err := m.Filter(ctx, wasmhost.FilterOptions{Name: fmt.Sprintf("%s%d", name, i), Config: []byte(configs[name]), Grants: guest.Everything()})
		if err != nil {
			return nil, err
		}
		links = append(links, policy.Link{Filter: f})
	}
	return policy.NewChain(links...), nil
}

func discard(context.Context, *policy.Event) (policy.Verdict, error) {
	return policy.Verdict{Action: policy.Discard}, nil
}

// module returns a filter's module.
func module(name string) []byte {
	switch name {
	case filterTiny:
		return wasmtest.Guest{}.Bytes()
	case filterDiscardTiny:
		return wasmtest.Guest{On: map[abi.Hook]wasmtest.Code{abi.HookMail: wasmtest.Say(abi.ActDiscard)}}.Bytes()
	}
	wasm, _ := filters.Builtin(name)
	return wasm
}
