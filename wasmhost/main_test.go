package wasmhost_test

import (
	"os"
	"testing"

	"github.com/penstock/penstock/internal/leak"
)

func TestMain(m *testing.M) {
	if status, ok := childStatus(); ok {
		os.Exit(status)
	}
	leak.Main(m)
}
