//go:build !race

package main

import (
	"context"
	"log/slog"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/tck"
	"github.com/penstock/penstock/internal/guests"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// The Go SDK as a module. (The race detector takes half a minute to compile it.)
func TestModule(t *testing.T) {
	ctx := context.WithoutCancel(t.Context())
	rt, err := wasmhost.New(ctx, wasmhost.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer rt.Close(ctx)
	m, err := rt.Load(ctx, "goguest", guests.Build(t, "."))
	if err != nil {
		t.Fatal(err)
	}
	tck.Run(t, tck.Subject{Minor: abi.Minor, Partial: true, Missing: missing, Load: func(config []byte, grants guest.Grants, log *slog.Logger) (policy.Filter, error) {
		return m.Filter(ctx, wasmhost.FilterOptions{Config: config, Grants: grants, Log: log, Ready: -1, Services: tck.World()})
	}})
}
