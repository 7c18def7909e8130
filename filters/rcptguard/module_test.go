package main

import (
	"testing"

	"github.com/penstock/penstock/internal/guests"
)

// module_test.go runs the tables of this folder again, with the filter as the module that
// ships.

func TestModule(t *testing.T) {
	load := guests.Loader(t, "rcptguard", guests.Build(t, "."))
	t.Run("testRecipients", func(t *testing.T) { testRecipients(t, load) })
}
