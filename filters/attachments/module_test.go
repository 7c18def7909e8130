package main

import (
	"testing"

	"github.com/penstock/penstock/internal/guests"
)

// module_test.go runs the tables of this folder again, with the filter as the module that
// ships.

func TestModule(t *testing.T) {
	load := guests.Loader(t, "attachments", guests.Build(t, "."))
	t.Run("testNames", func(t *testing.T) { testNames(t, load) })
	t.Run("testActions", func(t *testing.T) { testActions(t, load) })
}
