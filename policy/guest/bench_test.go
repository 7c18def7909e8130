package guest_test

import (
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// BenchmarkFrame is the cost of an event's frame.
func BenchmarkFrame(b *testing.B) {
	for _, h := range []abi.HookInfo{abi.HookTable()[0], abi.HookTable()[4], abi.HookTable()[5]} {
		b.Run("hook="+h.Name, func(b *testing.B) {
			ask(b, h.Hook, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
				mailbox := make([]byte, abi.MinMailbox)
				b.ReportAllocs()
				for b.Loop() {
					g.Frame(mailbox)
				}
				return nil
			})
		})
	}
}

// BenchmarkGet is the cost of a getter.
func BenchmarkGet(b *testing.B) {
	for _, f := range []struct {
		name  string
		field abi.Field
	}{{"helo", abi.FieldHelo}, {"client_ip", abi.FieldClientIP}, {"mail_from", abi.FieldMailFrom}, {"rcpts", abi.FieldRcpts}} {
		b.Run("field="+f.name, func(b *testing.B) {
			ask(b, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
				buf := make([]byte, 256)
				b.ReportAllocs()
				for b.Loop() {
					g.Get(int32(f.field), 0, buf)
				}
				return nil
			})
		})
	}
}

// BenchmarkHeaderWindows is the cost of reading a header section octet by octet: it must
// not be put together anew for each.
func BenchmarkHeaderWindows(b *testing.B) {
	ask(b, abi.HookMessage, guest.Options{}, func(g *guest.Env, _ *policy.Event) error {
		buf := make([]byte, 1)
		n := g.HdrRaw(0, nil)
		b.ReportAllocs()
		for b.Loop() {
			for off := range n {
				g.HdrRaw(off, buf)
			}
		}
		return nil
	})
}
