package netguard

import (
	"net/netip"
	"slices"
	"testing"
)

// FuzzCarriers: by whatever way an address of IPv4 is written as one of IPv6, it gets no further
// than by itself, and by the ways that lead there today just as far.
func FuzzCarriers(f *testing.F) {
	for _, v4 := range []string{"8.8.8.8", "127.0.0.1", "10.0.0.1", "0.0.0.0", "255.255.255.255", "192.0.2.1", "169.254.169.254"} {
		b := netip.MustParseAddr(v4).As4()
		f.Add(b[:], uint8(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, switches uint8) {
		if len(b) < 4 {
			return
		}
		o := [4]byte(b)
		v4 := netip.AddrFrom4(o)
		g := Guard{AllowLocal: switches&1 != 0, AllowReserved: switches&2 != 0}
		alone := g.Check(v4) == nil
		last := func(prefix string) netip.Addr {
			a := netip.MustParseAddr(prefix).As16()
			copy(a[12:], o[:])
			return netip.AddrFrom16(a)
		}
		for _, a := range []netip.Addr{last("::ffff:0:0"), last("64:ff9b::"), last("2a00::5efe:0:0"), last("::ffff:0:0").WithZone("x")} {
			if got := g.Check(a) == nil; got != alone {
				t.Errorf("%s passes: %t, and %s: %t", v4, alone, a, got)
			}
		}
		var six, teredo [16]byte
		copy(six[:], []byte{0x20, 0x02, o[0], o[1], o[2], o[3]})
		copy(teredo[:], []byte{0x20, 0x01, 0, 0, 8, 8, 8, 8, 0, 0, 0, 0, ^o[0], ^o[1], ^o[2], ^o[3]})
		for _, a := range []netip.Addr{netip.AddrFrom16(six), netip.AddrFrom16(teredo), last("::ffff:0:0:0")} {
			if g.Check(a) == nil != (alone && g.AllowReserved) {
				t.Errorf("%s passes: %t, and %s does not follow", v4, alone, a)
			}
		}
		for _, bits := range []int{32, 40, 48, 56, 64, 96} {
			a := netip.MustParseAddr("2a00:1:2:3:4:5::").As16()
			at := slices.DeleteFunc([]int{bits / 8, bits/8 + 1, bits/8 + 2, bits/8 + 3, bits/8 + 4}, func(i int) bool { return i == 8 })
			for i := range o {
				a[at[i]] = o[i]
			}
			g := g
			g.NAT64 = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom16(a), bits).Masked()}
			if err := g.Validate(); err != nil {
				t.Fatal(err)
			}
			if got := g.Check(netip.AddrFrom16(a)) == nil; got != alone {
				t.Errorf("%s passes: %t, and in %s: %t", v4, alone, g.NAT64[0], got)
			}
		}
		if len(b) >= 16 {
			a := netip.AddrFrom16([16]byte(b))
			if g.Check(a) == nil && ClassOf(a) != Public && !g.AllowLocal && !g.AllowReserved {
				t.Errorf("%s is %s and passes", a, ClassOf(a))
			}
		}
	})
}
