package delivery

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/penstock/penstock/mail/smtp"
)

// source.go: who we are to a host. The address that we come from and the name that we give
// belong together: hosts look whether the name has the address.

// Source is an address, or one of each family, that connections are made from, and the names
// that go with it. The zero Source leaves the address to the system. It is a value and
// nothing about it changes from one connection to the next.
type Source struct {
	// Name is what others call it by. It may be empty.
	Name string
	// IPv4 and IPv6 are where connections to hosts of the family come from. The zero Addr
	// leaves it to the system.
	IPv4, IPv6 netip.Addr
	// HeloIPv4 and HeloIPv6 are the names to give in EHLO to hosts of the family, Helo the
	// one where these are empty.
	Helo, HeloIPv4, HeloIPv6 string
}

// Validate returns every problem, joined, or nil.
func (s Source) Validate() error {
	var errs []error
	if s.IPv4.IsValid() && !s.IPv4.Is4() {
		errs = append(errs, fmt.Errorf("source %s: %s is not an address of IPv4", s.Name, s.IPv4))
	}
	if s.IPv6.IsValid() && (!s.IPv6.Is6() || s.IPv6.Is4In6()) {
		errs = append(errs, fmt.Errorf("source %s: %s is not an address of IPv6", s.Name, s.IPv6))
	}
	for _, name := range []string{s.Helo, s.HeloIPv4, s.HeloIPv6} {
		if name == "" {
			continue
		}
		if _, err := smtp.ParseDomain(name); err != nil {
			errs = append(errs, fmt.Errorf("source %s: name to give: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}

// For returns the address to come from and the name to give to a host at an address. The
// zero Addr leaves the address to the system, which is also what is done with a host at the
// very address: such a connection could meet itself. An empty name is for the caller to fill
// in.
func (s Source) For(remote netip.Addr) (local netip.Addr, helo string) {
	remote = remote.Unmap()
	local, helo = s.IPv6, s.HeloIPv6
	if remote.Is4() {
		local, helo = s.IPv4, s.HeloIPv4
	}
	if helo == "" {
		helo = s.Helo
	}
	if local == remote {
		local = netip.Addr{}
	}
	return local, helo
}
