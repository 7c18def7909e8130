package delivery

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/penstock/penstock/internal/parity"
)

// TestSource: each family has its own address and name, whatever was connected to before.
func TestSource(t *testing.T) {
	parity.Row(t, "MX-06", "MX-07", "MX-08", "MX-09", "MX-10", "MX-11", "MX-12")
	v4, v6 := netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")
	both := Source{IPv4: v4, IPv6: v6, Helo: "out.example", HeloIPv4: "v4.example"}
	for _, tt := range []struct {
		source Source
		remote string
		local  netip.Addr
		helo   string
	}{
		{both, "2001:db8::1", v6, "out.example"},
		{both, "192.0.2.1", v4, "v4.example"},
		{both, "2001:db8::1", v6, "out.example"}, // after IPv4 as before it
		{both, "::ffff:192.0.2.1", v4, "v4.example"},
		{both, "192.0.2.10", netip.Addr{}, "v4.example"}, // to ourselves
		{Source{IPv4: v4, HeloIPv6: "v6.example"}, "2001:db8::1", netip.Addr{}, "v6.example"},
		{Source{IPv6: v6}, "192.0.2.1", netip.Addr{}, ""},
		{Source{}, "192.0.2.1", netip.Addr{}, ""},
	} {
		if local, helo := tt.source.For(netip.MustParseAddr(tt.remote)); local != tt.local || helo != tt.helo {
			t.Errorf("%+v to %s: got %v %q, want %v %q", tt.source, tt.remote, local, helo, tt.local, tt.helo)
		}
	}
	err := Source{IPv4: v6, IPv6: v4, Helo: "a b", HeloIPv4: "-"}.Validate()
	for _, want := range []string{"of IPv4", "of IPv6", `"a b"`, `"-"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if err := both.Validate(); err != nil {
		t.Error(err)
	}
}
