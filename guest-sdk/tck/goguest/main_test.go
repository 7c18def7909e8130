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

// missing are imports that the SDK calls by itself, or that scripts cannot ask it for.
var missing = []string{"subscribe", "features", "config", "reply", "log", "metric", "metric_add", "part_info", "part_len",
	"match_set", "match", "hash", "rcpt_verdict", "dns", "http", "dsn", "submit", "wait"}

// The Go SDK, natively: it and the host's side of the ABI without WebAssembly.
func TestNative(t *testing.T) {
	tck.Run(t, tck.Subject{Minor: abi.Minor, Partial: true, Missing: missing, Load: func(config []byte, grants guest.Grants, log *slog.Logger) (policy.Filter, error) {
		return filtertest.Load(newFilter(), guest.Options{Config: config, Grants: grants, Log: log, Services: tck.World()})
	}})
}
