package main

import (
	"testing"

	"github.com/penstock/penstock/guest-sdk/filtertest"
	"github.com/penstock/penstock/policy"
	"github.com/penstock/penstock/policy/guest"
)

// loader makes the filter with a configuration. The tables run with each kind of it.
type loader func(config string) (policy.Filter, error)

// native is the filter as compiled into the test.
func native(config string) (policy.Filter, error) {
	return filtertest.Load(newFilter(), guest.Options{Config: []byte(config)})
}

// must fails the test if the filter does not take the configuration.
func (load loader) must(t *testing.T, config string) policy.Filter {
	t.Helper()
	f, err := load(config)
	if err != nil {
		t.Fatalf("%s: %v", config, err)
	}
	return f
}
