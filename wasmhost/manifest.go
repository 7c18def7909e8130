package wasmhost

import (
	"fmt"

	"github.com/penstock/penstock/guest-sdk/abi"
	"github.com/penstock/penstock/guest-sdk/manifest"
)

// checkManifest returns an error if the manifest says that the module needs another host: a
// module that needs a newer gateway should hear so in those words, and not by the name of
// the first function that is missing. All else in it is for people. text is empty if there
// is none.
func checkManifest(text []byte) error {
	m, err := manifest.Parse(text)
	if err != nil {
		return fmt.Errorf("its section %s is not the JSON object it should be: %w", abi.ManifestSection, err)
	}
	if m.MinMinor > abi.Minor {
		return fmt.Errorf("it needs minor version %d of the ABI %s, this gateway has %d: update the gateway, or build the filter with an SDK of its age",
			m.MinMinor, abi.Module, abi.Minor)
	}
	return nil
}
