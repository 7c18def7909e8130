package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/penstock/penstock/admin/api"
	"github.com/penstock/penstock/mail/smtp"
	"github.com/penstock/penstock/wasmhost/wasmtest"
)

// answerTo asks about a recipient in a session from an address of this machine.
func answerTo(t *testing.T, from, addr string) int {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	nc, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	code, err := askOn(t.Context(), nc)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// askOn asks about a recipient.
func askOn(ctx context.Context, nc net.Conn) (int, error) {
	c, err := smtp.NewClient(ctx, nc, smtp.ClientOptions{LocalName: "client.example.net"})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	from, _ := smtp.ParseAddress("alice@example.net")
	to, _ := smtp.ParseAddress("bob@example.org")
	rcpts, err := c.Envelope(ctx, smtp.Sender{Path: from}, []smtp.Recipient{{Path: to}})
	if err == nil && len(rcpts) == 1 {
		err = rcpts[0]
	}
	if err == nil {
		return 250, nil
	}
	if r, ok := errors.AsType[*smtp.Reply](err); ok && r.Cause == nil {
		return r.Code, nil
	}
	return 0, err
}

// TestBrokenFilter: a module that traps at every recipient. One client cannot have it
// switched off, many networks do; the operator sees it, and the next version begins anew.
func TestBrokenFilter(t *testing.T) {
	a := startAdministered(t)
	account := func(name string) (f api.FilterAccount) {
		t.Helper()
		if err := json.Unmarshal([]byte(a.must("read", "filter", "show", name, "--json")), &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	if code := answerTo(t, "127.0.0.1", a.addr["mx"]); code != 550 {
		t.Errorf("the first version: %d, want 550", code)
	}
	a.module("trap.wasm", rcptFilter(wasmtest.Trap(), ""))
	a.must("upload", "filter", "push", "trap.wasm", "--name", "gate")
	for i := range 60 {
		if code := answerTo(t, fmt.Sprintf("127.0.0.%d", i+2), a.addr["mx"]); code != 451 {
			t.Fatalf("session %d from one network: %d, want 451", i, code)
		}
	}
	if f := account("gate"); len(f.Broken) > 0 || f.Total.Failed != 60 || f.Total.Hooks[0].NotAsked != 0 {
		t.Fatalf("one network: %+v", f)
	}
	for i := range 80 {
		if code := answerTo(t, fmt.Sprintf("127.0.%d.2", i%20), a.addr["mx"]); code != 451 {
			t.Fatalf("session %d from 20 networks: %d, want 451", i, code)
		}
	}
	a.await("that it is broken", func(l map[string]any) bool {
		return l["msg"] == "filter is broken: on_broken answers until it works again" && l["filter"] == "gate" && l["chain"] == "inbound" &&
			l["stage"] == "rcpt" && l["level"] == "ERROR" && strings.Contains(fmt.Sprint(l["err"]), "unreachable")
	})
	f := account("gate")
	if len(f.Broken) != 1 || f.Broken[0].Chain != "inbound" || f.Broken[0].Hook != "rcpt" || f.Broken[0].Networks < 5 || f.Broken[0].Cause != "trap" || !strings.Contains(f.Broken[0].Error, "unreachable") {
		t.Errorf("broken: %+v", f.Broken)
	}
	h := f.Versions[0].Hooks[0]
	if h.Hook != "rcpt" || h.Broke != 1 || h.NotAsked < 40 || h.Calls+h.NotAsked != 140 || f.Versions[0].Failed != h.Calls || h.P99 <= 0 || h.P99 < h.P50 {
		t.Errorf("%+v", h)
	}
	if v := f.Versions[0]; h.Failures["trap"] != h.Calls || v.Memory == 0 || v.Boot <= 0 || v.Made == 0 {
		t.Errorf("figures of the host: %+v", v)
	}
	if v := account("helocheck").Total; v.CPU <= 0 || v.Boot <= 0 || v.Hooks[0].Hook != "mail" || v.Hooks[0].CPU != v.CPU || v.Hooks[0].Calls < 140 {
		t.Errorf("figures of helocheck: %+v", v)
	}
	if len(f.Versions) != 2 || f.Versions[1].Ended == nil || f.Versions[1].Hooks[0].Verdicts["reject"] != 1 {
		t.Errorf("versions: %+v", f.Versions)
	}
	out := a.must("read", "filter", "show")
	if !strings.Contains(out, "broken at inbound/rcpt") || !strings.Contains(out, "helocheck") {
		t.Errorf("filter show:\n%s", out)
	}
	out = a.must("read", "filter", "show", "gate")
	for _, want := range []string{"broken at rcpt in chain inbound since ", f.Versions[0].Digest[:len(digestPrefix)+12] + ", since", ", runs", ", until ", "tempfail ", "reject 1", "trap "} {
		if !strings.Contains(out, want) {
			t.Errorf("filter show gate lacks %q:\n%s", want, out)
		}
	}
	if out := a.must("read", "status"); !strings.Contains(out, "broken at rcpt") {
		t.Errorf("status:\n%s", out)
	}
	a.refused("no chain has run a filter called gote", 1, "read", "filter", "show", "gote")

	a.expect("a session that stays", a.fresh(), 451)
	a.module("good.wasm", rejects(553))
	a.must("upload", "filter", "push", "good.wasm", "--name", "gate")
	if code := answerTo(t, "127.0.0.1", a.addr["mx"]); code != 553 {
		t.Errorf("the next version: %d, want 553", code)
	}
	if f := account("gate"); len(f.Broken) > 0 || len(f.Versions) != 3 || f.Total.Calls < h.Calls+2 || f.Versions[1].Ended != nil {
		t.Errorf("the next version: %+v", f)
	}
}
