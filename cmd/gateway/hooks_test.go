package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/penstock/penstock/delivery"
	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/internal/peers"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/store"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// TestHooks sends mail to others through a gateway with the filter of examples/outbound-route in
// its delivery.chain: it is refused, sent by another host, or goes as ever; and what the filter
// cannot have keeps mail back.
func TestHooks(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector takes a minute to compile the module; make test runs it without")
	}
	l, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		peers.Missing(t, "127.0.0.2", err.Error())
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	sink := newSink(t, l)
	resolver := nameServer(t, `
plain.test.      MX 10 mx.plain.test.
mx.plain.test.   A  127.0.0.2
relayed.test.    MX 10 mx.relayed.test.
mx.relayed.test. A  127.0.0.3
relay.test.      A  127.0.0.2
`)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "outbound-route.wasm"), guests.Build(t, "../../examples/outbound-route"), 0o600); err != nil {
		t.Fatal(err)
	}
	yaml := strings.NewReplacer("RESOLVER", resolver, "PORT", port, "filters: {cache: $CACHE}", `
filters:
  cache: $CACHE
  dir: `+dir+`
  chains:
    out:
      - module: outbound-route
        grant: {route: {}}
        config: {relays: {relayed.test: relay.test}, never: [typo.test], sources: {nobody: none}, verify: [bank.test]}
`, "delivery:\n", "delivery:\n  chain: out\n").Replace(outboundConfig)
	g := startGateway(t, yaml)
	defer func() {
		if t.Failed() {
			t.Log(g.log())
		}
	}()
	raw := []byte("From: alice@example.net\r\nSubject: out\r\n\r\nhello\r\n")
	for _, tt := range []struct{ from, to, want string }{
		{"alice@example.net", "bob@plain.test", "alice@example.net bob@plain.test"},
		{"alice@example.net", "bob@relayed.test", "alice@example.net bob@relayed.test"}, // nobody is at 127.0.0.3
		{"carol@plain.test", "bob@typo.test", " carol@plain.test"},                      // a report
	} {
		c := dialSMTP(t, g.addr["mx"])
		if _, err := c.Envelope(t.Context(), smtp.Sender{Path: path(t, tt.from)}, []smtp.Recipient{{Path: path(t, tt.to)}}); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Data(t.Context(), strings.NewReader(string(raw))); err != nil {
			t.Fatal(err)
		}
		got := sink.wait(t)
		if got.envelope != tt.want {
			t.Errorf("to %s: got %q, want %q\n%s", tt.to, got.envelope, tt.want, got.content)
		}
		if strings.HasPrefix(tt.want, " ") && !strings.Contains(string(got.content), "mail to typo.test does not leave here") {
			t.Errorf("to %s: got a report\n%s", tt.to, got.content)
		}
	}
	for _, want := range []string{`"stage":"route","filter":"outbound-route","verdict":"reject","code":550`, `"line":"bounced rcpt=bob@typo.test`, `try=1"`} {
		if !strings.Contains(g.log(), want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

// chooser is a filter that says at route, by an import, a text, and at deliver an address.
func chooser(imp, text, address string) []byte {
	return wasmtest.Guest{
		Hooks: abi.Outward,
		On: map[abi.Hook]wasmtest.Code{
			abi.HookRoute:   wasmtest.Seq(wasmtest.Imports(imp, wasmtest.FreeAt, int64(len(text))), wasmtest.Drop(), wasmtest.Say(abi.ActContinue)),
			abi.HookDeliver: wasmtest.Seq(wasmtest.Imports("out_connect", wasmtest.FreeAt+1000, int64(len(address))), wasmtest.Drop(), wasmtest.Say(abi.ActContinue)),
			abi.HookBounced: wasmtest.Trap(),
		},
		Else: wasmtest.Say(abi.ActContinue),
		Data: map[uint32]string{wasmtest.FreeAt: text, wasmtest.FreeAt + 1000: address},
	}.Bytes()
}

// TestHooksChoose: what a filter chooses reaches the engine; what there is not is the filter's
// failure, and answered as such, or overlooked.
func TestHooksChoose(t *testing.T) {
	for _, tt := range []struct {
		imp, text, address string
		onError            config.OnError
		way                delivery.Way
		to                 string
		code               int
	}{
		{"out_source", "bulk", "192.0.2.1:26", "", delivery.Way{Source: "bulk"}, "192.0.2.1:26", 0},
		{"out_relay", "relay.example", "", "", delivery.Way{Relay: "relay.example"}, "invalid AddrPort", 0},
		{"out_relay", "mx:relay.example", "2001:db8::1", "", delivery.Way{Relay: "mx:relay.example"}, "[2001:db8::1]:0", 0},
		{"out_source", "none", "", "", delivery.Way{}, "", 451},
		{"out_relay", "mx:192.0.2.1", "", "", delivery.Way{}, "", 451},
		{"out_relay", "..", "", config.OnErrorReject, delivery.Way{}, "", 554},
		{"out_relay", "..", "192.0.2.1", config.OnErrorAccept, delivery.Way{}, "192.0.2.1:0", 0},
	} {
		h, end := hooksOf(t, chooser(tt.imp, tt.text, tt.address), config.Filter{OnError: config.OnErrors{config.DefaultHook: tt.onError},
			Grant: config.Grant{Route: config.RouteGrant{Given: true}}})
		o := outgoing(t)
		way, err := h.Route(t.Context(), o)
		code := 0
		if err != nil {
			code = smtp.ReplyOf(err).Code
		}
		if way != tt.way || code != tt.code {
			t.Errorf("%s %q: got %+v, %v", tt.imp, tt.text, way, err)
		}
		if turn, err := h.Deliver(t.Context(), o, nil); tt.code == 0 && (err != nil || turn.To.String() != tt.to) {
			t.Errorf("%s %q: to %q: got %v, %v", tt.imp, tt.text, tt.to, turn.To, err)
		}
		// A filter that fails where it is only told changes nothing.
		h.Bounced(t.Context(), o, []delivery.Fate{{Recipient: 1, Reply: smtp.Refuse(550, smtp.Enhanced{5, 1, 1}, "no")}})
		h.Delivered(t.Context(), o, nil)
		end()
	}
}

// TestHooksLast: the filters run until the last delivery, which comes after the last session,
// and then nothing goes out unasked.
func TestHooksLast(t *testing.T) {
	h, end := hooksOf(t, chooser("out_source", "bulk", ""), config.Filter{Grant: config.Grant{Route: config.RouteGrant{Given: true}}})
	if _, err := h.Route(t.Context(), outgoing(t)); err != nil {
		t.Fatal(err)
	}
	h.live().close() // with the sessions
	if way, err := h.Route(t.Context(), outgoing(t)); err != nil || way.Source != "bulk" {
		t.Errorf("after the sessions: got %+v, %v", way, err)
	}
	h.close()
	if _, err := h.Route(t.Context(), outgoing(t)); !errors.Is(err, errGone) || smtp.ReplyOf(err).Code != 451 {
		t.Errorf("after the deliveries: got %v", err)
	}
	h.close()
	(*chainHooks)(nil).close()
	end()
	if h := newChainHooks(&config.Config{}, nil, nil); h != nil {
		t.Error("hooks without a chain")
	}
}

// hooksOf returns hooks that ask a chain with one filter. end frees all.
func hooksOf(t *testing.T, wasm []byte, f config.Filter) (h *chainHooks, end func()) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	rt, err := wasmhost.New(ctx, wasmhost.Options{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "chooser.wasm")
	if err := os.WriteFile(file, wasm, 0o600); err != nil {
		t.Fatal(err)
	}
	f.Module = config.Module{Name: "chooser", File: file}
	cfg := &config.Config{Hostname: "mx.test", Filters: config.Filters{Chains: map[string][]config.Filter{"out": {f}}}}
	cfg.Delivery.Chain = "out"
	cfg.Delivery.Sources = []config.Source{{Name: "bulk"}}
	log := slog.New(slog.DiscardHandler)
	set, problems := loadChains(ctx, rt, newLedger(log, nil), newOutside(nil, notices{}, log), cfg)
	if set == nil {
		t.Fatal(problems)
	}
	h = newChainHooks(cfg, func() *chainSet { return set }, log)
	return h, func() {
		if h.close(); set.filters[0].users.Load() > 0 {
			set.close()
		}
		if err := rt.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}

// outgoing is an attempt for the second of two recipients.
func outgoing(t *testing.T) delivery.Outgoing {
	m := &store.Message{ID: "m1", Size: 100}
	for _, a := range []string{"a@example.org", "b@example.com"} {
		m.Recipients = append(m.Recipients, store.Recipient{Recipient: smtp.Recipient{Path: path(t, a)}})
	}
	return delivery.Outgoing{Message: m, Recipients: []int{1}, Target: "example.com", Try: 1}
}
