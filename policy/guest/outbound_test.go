package guest_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// TestOutboundFields: the facts of an attempt, one by one.
func TestOutboundFields(t *testing.T) {
	for f, want := range map[abi.Field]string{
		abi.FieldQueueID: "c7", abi.FieldTarget: "example.com", abi.FieldTry: "\x02\x00\x00\x00\x00\x00\x00\x00",
		abi.FieldWay:   string(list("source=pool", "tls=required")),
		abi.FieldHops:  string(list("mx1.example.com\t10\t192.0.2.25,2001:db8::25\tdane\t", "mx2.example.com\t20\t\t\tno address")),
		abi.FieldFates: string(list("1700000000000000005\tmx1.example.com\t192.0.2.25\t451 4.2.0 later or never", "0\t\t\t550 5.1.1 no")),
	} {
		ask(t, abi.HookDeliver, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
			buf := make([]byte, 300)
			if n := g.Get(int32(f), -1+b2i(f == abi.FieldQueueID || f == abi.FieldTarget || f == abi.FieldTry), buf); n < 0 || string(buf[:n]) != want {
				t.Errorf("field %d: got %q, want %q", f, buf[:max(n, 0)], want)
			}
			return nil
		})
	}
}

func b2i(b bool) int32 {
	if b {
		return 1
	}
	return 0
}

// TestChoices: what a guest chooses, and what it may not.
func TestChoices(t *testing.T) {
	tx := ask(t, abi.HookRoute, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		for _, tt := range []struct {
			what      string
			got, want int32
		}{
			{"relay", g.OutRelay([]byte("relay.example:587")), 0},
			{"relay with a space", g.OutRelay([]byte("a b")), int32(abi.EINVAL)},
			{"long relay", g.OutRelay([]byte(strings.Repeat("a", abi.MaxRelay+1))), int32(abi.ELIMIT)},
			{"source", g.OutSource([]byte("")), 0},
			{"long source", g.OutSource([]byte(strings.Repeat("a", abi.MaxSource+1))), int32(abi.ELIMIT)},
			{"verify", g.OutTls(int32(abi.TLSVerify)), 0},
			{"opportunistic", g.OutTls(int32(abi.TLSOpportunistic)), int32(abi.EPERM)}, // it has the grant, but not for less
			{"off", g.OutTls(int32(abi.TLSOff)), int32(abi.EPERM)},
			{"no mode", g.OutTls(5), int32(abi.EINVAL)},
			{"no mode", g.OutTls(-1), int32(abi.EINVAL)},
			{"no mode", g.OutTls(256), int32(abi.EINVAL)},
		} {
			if tt.got != tt.want {
				t.Errorf("%s: got %d, want %d", tt.what, tt.got, tt.want)
			}
		}
		return nil
	})
	if got, want := tx.Outbound.Way, (policy.Way{Relay: "relay.example:587", TLS: policy.Verified}); got != want {
		t.Errorf("way: got %+v, want %+v", got, want)
	}

	weak := guest.NewEnv(guest.Options{Grants: guest.Grants{Route: &guest.RouteGrant{WeakerTLS: true}}})
	tx = askEnv(t, weak, abi.HookRoute, func(g *guest.Env, _ *policy.Event) error {
		if got := g.OutTls(int32(abi.TLSOff)); got != 0 {
			t.Errorf("off, granted: got %d", got)
		}
		return nil
	})
	if tx.Outbound.Way.TLS != policy.NoEncryption {
		t.Errorf("got %v", tx.Outbound.Way.TLS)
	}
}

// TestConnect: addresses that a guest may name; whether mail may go there is not its word.
func TestConnect(t *testing.T) {
	for text, want := range map[string]netip.AddrPort{
		"192.0.2.1:26": netip.MustParseAddrPort("192.0.2.1:26"), "192.0.2.1": netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), 0),
		"[2001:db8::1]:26": netip.MustParseAddrPort("[2001:db8::1]:26"), "2001:db8::1": netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), 0),
		"[2001:db8::1]": netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), 0), "127.0.0.1:25": netip.MustParseAddrPort("127.0.0.1:25"), "": {},
	} {
		tx := ask(t, abi.HookDeliver, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
			if got := g.OutConnect([]byte(text)); got != 0 {
				t.Errorf("%q: got %d", text, got)
			}
			return nil
		})
		if tx.Outbound.Way.To != want {
			t.Errorf("%q: got %v, want %v", text, tx.Outbound.Way.To, want)
		}
	}
	for _, text := range []string{"mx.example.com", "mx.example.com:25", "192.0.2.1:99999", "0127.0.0.1", "[192.0.2.1", "[fe80::1%eth0]:25", "fe80::1%eth0", ":25"} {
		ask(t, abi.HookDeliver, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
			if got := g.OutConnect([]byte(text)); got != int32(abi.EINVAL) {
				t.Errorf("%q: got %d, want EINVAL", text, got)
			}
			return nil
		})
	}
}
