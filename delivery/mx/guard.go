package mx

import (
	"errors"
	"net/netip"
	"syscall"

	"github.com/penstock/penstock/internal/netguard"
)

// guard.go says which addresses mail may go to.

// Refused tells whether err comes from a Guard that refused an address.
func Refused(err error) bool { return errors.Is(err, netguard.ErrRefused) }

// GuardOptions are the settings of a Guard. The zero value lets mail go to public addresses
// that are not of this machine.
type GuardOptions struct {
	// AllowLocal lets mail go to this machine and the networks around it: loopback, private,
	// link-local and shared addresses, and those of our own interfaces.
	AllowLocal bool
	// AllowReserved lets mail go to what is set aside for documentation, benchmarks,
	// translation between IPv4 and IPv6, or the future.
	AllowReserved bool
	// Allow are networks to which mail may go although they are local or reserved.
	Allow []netip.Prefix
	// NAT64 are prefixes by which IPv6 leads to IPv4 in our network, beside 64:ff9b::/96. Their
	// addresses are judged by the IPv4 address that they carry, too. The lengths are those of
	// RFC 6052, Section 2.2.
	NAT64 []netip.Prefix
	// Machine returns the addresses of this machine. Nil asks the system. It is called now and
	// then, by one goroutine at a time.
	Machine func() ([]netip.Addr, error)
}

func (o GuardOptions) guard() guard {
	return guard{
		Allow: o.Allow, AllowLocal: o.AllowLocal, AllowReserved: o.AllowReserved, NAT64: o.NAT64,
		Machine: &netguard.Machine{List: o.Machine},
	}
}

// Validate returns every problem of the options, joined, or nil.
func (o GuardOptions) Validate() error { return o.guard().Validate() }

// Guard decides which addresses mail may go to. It is safe for concurrent use.
type Guard struct{ guard guard }

type guard = netguard.Guard

// NewGuard returns a Guard. Its error joins all problems of the options.
func NewGuard(o GuardOptions) (*Guard, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return &Guard{o.guard()}, nil
}

// PublicGuard returns a Guard with the default settings: it lets mail go to public addresses
// that are not of this machine.
func PublicGuard() *Guard { return &Guard{GuardOptions{}.guard()} }

// Check returns an error, of which Refused is true, if mail must not go to the address. It judges
// what the address is, and each address of IPv4 that one of IPv6 carries.
func (g *Guard) Check(a netip.Addr) error { return g.guard.Check(a) }

// Control is for the field of that name of a net.Dialer: it refuses what Check refuses, behind
// the last look-up.
func (g *Guard) Control(network, address string, c syscall.RawConn) error {
	return g.guard.Control(network, address, c)
}

// mine tells whether the address is a public one of this machine's, where that is refused. A
// private one is refused, too, but says nothing: others have the same, and mean theirs.
func (g *Guard) mine(a netip.Addr) bool { return g.guard.Mine(a) }
