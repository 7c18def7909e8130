package wasmhost_test

import (
	"strings"
	"testing"
)

// An instance is made as a clone of one that has booted, or boots itself. Whatever is said
// of instances holds for both; newRuntime goes by the name of the test.
const bootEach = "instances=booted"

// bothWays runs a test with instances of either kind.
func bothWays(t *testing.T, test func(t *testing.T)) {
	t.Run("instances=cloned", test)
	t.Run(bootEach, test)
}

// bootsEach tells whether the test wants instances that boot themselves.
func bootsEach(t testing.TB) bool { return strings.Contains(t.Name(), bootEach) }
