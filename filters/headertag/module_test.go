package main

import (
	"testing"

	"github.com/penstock/penstock/internal/guests"
)

// module_test.go runs the tables of this folder again, with the filter as the module that
// ships.

func TestModule(t *testing.T) {
	load := guests.Loader(t, "headertag", guests.Build(t, "."))
	t.Run("testRules", func(t *testing.T) { testRules(t, load) })
}
