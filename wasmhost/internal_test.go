package wasmhost

import (
	"testing"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// The host has a function for every import of the ABI, and none besides.
func TestFunctionsAreTheABI(t *testing.T) {
	for _, imp := range abi.Imports() {
		if functions[imp.Name] == nil {
			t.Errorf("no function for %s", imp.Name)
		}
	}
	if got, want := len(functions), len(abi.Imports()); got != want {
		t.Errorf("%d functions, the ABI has %d imports", got, want)
	}
}

// A function of WASI is there once.
func TestWASIOnce(t *testing.T) {
	seen := make(map[string]bool)
	for _, f := range wasiFuncs {
		if seen[f.name] {
			t.Errorf("%s twice", f.name)
		}
		seen[f.name] = true
	}
}
