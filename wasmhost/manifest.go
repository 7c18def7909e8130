package wasmhost

import (
	"encoding/json"
	"fmt"

	"github.com/penstock/penstock/guest-sdk/abi"
)

// manifest.go: what a module says of itself, in its custom section "mg1.manifest". It is
// optional, and the rest of it is for people; but a module that needs a newer gateway should
// hear so in those words, and not by the name of the first function that is missing.

// manifest is the part of the section that the host itself goes by.
type manifest struct {
	// MinMinor is the least minor version of the ABI that the module can do with.
	MinMinor int `json:"min_minor"`
}

// checkManifest returns an error if the module says that it needs another host. data is the
// section, empty if there is none.
func checkManifest(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("its section %s is not the JSON object it should be: %w", manifestSection, err)
	}
	if m.MinMinor > abi.Minor {
		return fmt.Errorf("it needs minor version %d of the ABI %s, this gateway has %d: update the gateway, or build the filter with an SDK of its age",
			m.MinMinor, abi.Module, abi.Minor)
	}
	return nil
}
