package main

import (
	"log/slog"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/guest-sdk/tck"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// The Go SDK, natively: it and the host's side of the ABI without WebAssembly.
func TestNative(t *testing.T) {
	tck.Run(t, tck.Subject{Minor: abi.Minor, Partial: true, Load: func(config []byte, grants guest.Grants, log *slog.Logger) (policy.Filter, error) {
		return filtertest.Load(newFilter(), guest.Options{Config: config, Grants: grants, Log: log})
	}})
}
