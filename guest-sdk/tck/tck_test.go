package tck_test

import (
	"log/slog"
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/tck"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
	"github.com/penstock/penstock/wasmhost"
)

// load is the way of the gateway to load a module.
func load(t *testing.T, wasm []byte) func([]byte, guest.Grants, *slog.Logger) (policy.Filter, error) {
	t.Helper()
	rt, err := wasmhost.New(t.Context(), wasmhost.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := rt.Load(t.Context(), "tck", wasm)
	if err != nil {
		t.Fatal(err)
	}
	return func(config []byte, grants guest.Grants, log *slog.Logger) (policy.Filter, error) {
		f, err := m.Filter(t.Context(), wasmhost.FilterOptions{Config: config, Log: log, Grants: grants, Services: tck.World()})
		if err != nil {
			return nil, err
		}
		t.Cleanup(f.Close)
		return f, nil
	}
}

// Our host, and a guest without an SDK.
func TestHost(t *testing.T) {
	tck.Run(t, tck.Subject{Load: load(t, tck.Guest()), Minor: abi.Minor})
}
