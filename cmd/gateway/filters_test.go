package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/penstock/penstock/internal/config"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// TestSharedFilters: a set made of another has the one new filter and shares the rest, which
// live until both are closed; one that cannot be made leaves nothing behind.
func TestSharedFilters(t *testing.T) {
	ctx := context.Background()
	rt, err := wasmhost.New(ctx, wasmhost.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close(ctx)
	dir := t.TempDir()
	var list []config.Filter
	for _, name := range []string{"a", "b"} {
		file := filepath.Join(dir, name+".wasm")
		if err := os.WriteFile(file, rejects(550), 0o644); err != nil { // of one binary
			t.Fatal(err)
		}
		list = append(list, config.Filter{Module: config.Module{Name: name, File: file}})
	}
	cfg := &config.Config{Filters: config.Filters{Dir: config.Path(dir), Chains: map[string][]config.Filter{"one": list, "two": list[1:], "none": nil}}}
	l := newLedger(slog.New(slog.DiscardHandler), func() *chainSet { return nil })
	first, problems := loadChains(ctx, rt, l, nil, cfg)
	if first == nil {
		t.Fatal(problems)
	}
	opens := func(step string, f *wasmhost.Filter, want bool) {
		t.Helper()
		in, err := f.Open(ctx, &policy.Session{})
		if (err == nil) != want {
			t.Errorf("%s: open: %v", step, err)
		}
		if err == nil {
			in.Close()
		}
	}
	if _, _, err := first.with(ctx, rt, list[0].Module.File, wasmtest.Guest{Init: wasmtest.Trap()}.Bytes()); err == nil || !strings.Contains(err.Error(), "chain one: ") {
		t.Errorf("a module that traps: %v", err)
	}
	second, changed, err := first.with(ctx, rt, filepath.Join(dir, ".", "a.wasm"), rejects(551))
	if err != nil || strings.Join(changed, " ") != "one" || len(second.chains) != 3 {
		t.Fatalf("%v %v", changed, err)
	}
	a, b, c := first.places["one"][0], first.places["one"][1], first.places["two"][0]
	a2, b2, c2 := second.places["one"][0], second.places["one"][1], second.places["two"][0]
	if a.filter == a2.filter || b.filter != b2.filter || c.filter != c2.filter || a.digest == a2.digest {
		t.Error("the wrong filters are shared")
	}
	first.close()
	opens("the old one after its set", a.filter.value, false)
	opens("a shared one after the first set", b.filter.value, true)
	opens("the new one", a2.filter.value, true)
	second.close()
	opens("a shared one after both sets", c.filter.value, false)
	if _, _, err := second.with(ctx, rt, list[0].Module.File, rejects(552)); err == nil {
		t.Error("a set is made of one that is closed")
	}
}

// loadFilter loads a configuration with one filter, of which it is given the keys.
func loadFilter(keys string) (*config.Config, config.Problems) {
	return config.Load("", nil, []config.Override{{Key: "hostname", Value: "mx.example.net"},
		{Key: "listeners", Value: "[{name: mx, address: ':25', chain: c, limits: {message_size: 1MiB}}]"},
		{Key: "routes", Value: "[{domains: [example.com], backend: b}]"}, {Key: "backends", Value: "{b: {addresses: ['smtp://10.0.0.5']}}"},
		{Key: "filters.chains", Value: "{c: [{module: a.wasm, " + keys + "}]}"}})
}

// TestLimitsAgree: the configuration takes what the host takes, up to the same caps, and says
// of each limit which it is.
func TestLimitsAgree(t *testing.T) {
	for _, tt := range []struct{ key, least, most, more string }{
		{"memory", "64KiB", "64MiB", "67108865"},
		{"stack", "16KiB", "512KiB", "524289"},
		{"log_lines", "1", "1000", "1001"},
		{"session_values", "1", "1MiB", "1048577"},
		{"boot", "1us", "1m", "61s"},
		{"cpu", "1us", "500ms", "501ms"},
		{"cpu_message", "1ms", "500ms", "501ms"},
		{"cpu_per_mib", "1us", "500ms", "501ms"},
		{"cpu_session", "1us", "5s", "5001ms"},
		{"wall", "1us", "1m", "61s"},
	} {
		for _, value := range []string{tt.least, tt.most} {
			cfg, problems := loadFilter("limits: {" + tt.key + ": " + value + "}")
			if cfg == nil {
				t.Errorf("%s: %s: %v", tt.key, value, problems)
				continue
			}
			l := cfg.Filters.Chains["c"][0].Limits
			o := wasmhost.FilterOptions{Limits: limitsOf(l), Boot: l.Boot}
			if err := o.Validate(); err != nil {
				t.Errorf("%s: %s is taken, but not by the host: %v", tt.key, value, err)
			}
		}
		_, problems := loadFilter("limits: {" + tt.key + ": " + tt.more + "}")
		if err := problems.Err(); err == nil || !strings.Contains(err.Error(), "limits."+tt.key) {
			t.Errorf("%s: %s: got %v, want it refused", tt.key, tt.more, err)
		}
	}
}

// TestLinesOf: each word for a filter's own lines is a level, and none is the log's.
func TestLinesOf(t *testing.T) {
	for word, want := range map[string]slog.Leveler{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn,
		"error": slog.LevelError, "off": guest.NoLines, "": nil} {
		if got := linesOf(config.FilterLog(word)); got != want {
			t.Errorf("%q: got %v, want %v", word, got, want)
		}
	}
}

// TestOnErrorByHook: what the configuration says, stage by stage. That it names the hooks as
// package policy does is shown too.
func TestOnErrorByHook(t *testing.T) {
	for _, hook := range config.Hooks() {
		if _, ok := policy.ParseStage(hook); !ok {
			t.Errorf("there is no stage %s", hook)
		}
	}
	fails := policy.Func("f", policy.AllStages, func(context.Context, *policy.Event) (policy.Verdict, error) {
		return policy.Verdict{}, errors.New("broken")
	})
	for _, tt := range []struct{ onError, onBroken, failed, broken string }{
		{"{}", "{}", "TTTTT", "TTTTT"},
		{"{default: accept, rcpt: reject}", "{}", "AARAA", "AARAA"},
		{"{helo: accept}", "reject", "ATTTT", "RRRRR"},
		{"reject", "{mail: accept, message: quarantine}", "RRRRR", "RARRQ"},
		{"{helo: reject}", "{default: accept, rcpt: tempfail}", "RTTTT", "AATAA"},
	} {
		cfg, problems := loadFilter("on_error: " + tt.onError + ", on_broken: " + tt.onBroken)
		if cfg == nil {
			t.Fatal(problems)
		}
		link, err := linkOf(cfg.Filters.Chains["c"][0])
		if err != nil {
			t.Fatal(err)
		}
		link.Filter, link.Breaker = fails, policy.NewBreaker(nil)
		chain := policy.NewChain(link)
		answer := func(stage policy.Stage, client byte) string {
			s := &policy.Session{Remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, client, 1}), 25)}
			a := chain.Open(s, nil).Decide(t.Context(), stage, &policy.Transaction{}).Action
			return map[policy.Action]string{policy.Continue: "A", policy.Tempfail: "T", policy.Reject: "R", policy.Quarantine: "Q"}[a]
		}
		failed, broken := "", ""
		for _, stage := range []policy.Stage{policy.StageHelo, policy.StageMail, policy.StageRcpt, policy.StageHeaders, policy.StageMessage} {
			failed += answer(stage, 0)
			for client := range byte(60) {
				answer(stage, client)
			}
			broken += answer(stage, 0)
		}
		if failed != tt.failed || broken != tt.broken {
			t.Errorf("on_error %s, on_broken %s: a failure is %s, a broken filter %s, want %s and %s", tt.onError, tt.onBroken, failed, broken, tt.failed, tt.broken)
		}
	}
}

// TestSharedEndsOnce: users come and go; the end is once, after the last, and nobody comes
// after it.
func TestSharedEndsOnce(t *testing.T) {
	for range 100 {
		var ends atomic.Int32
		s := share(1, func() { ends.Add(1) })
		var users sync.WaitGroup
		for range 8 {
			users.Go(func() {
				if s.acquire() {
					if ends.Load() != 0 {
						t.Error("used after its end")
					}
					s.release()
				}
			})
		}
		s.release()
		users.Wait()
		if n := ends.Load(); n != 1 || s.acquire() {
			t.Errorf("%d ends", n)
		}
	}
}
