// Package filters has the filters that ship with Penstock. Each has a folder: the source,
// a README, and tests. The program filters/build makes WebAssembly modules of them, which
// become part of the gateway:
//
//	filters/NAME/main.go ── go run ./filters/build ──▶ filters/wasm/NAME.wasm ──▶ Builtin
//
// The modules are not kept in the repository. Without them the package compiles as well
// and has no filter.
package filters

import "embed"

// modules holds README.md and what the program build has put beside it.
//
//go:embed all:wasm
var modules embed.FS

// Names returns the names of the filters that ship with Penstock, built or not, sorted.
func Names() []string {
	return []string{"attachments", "bodymatch", "headertag", "helocheck", "rcptguard"}
}

// Builtin returns the module of a filter. ok is false if there is no such filter, or if it
// was not built when the program was. The octets are the caller's.
func Builtin(name string) (wasm []byte, ok bool) {
	for _, n := range Names() {
		if n == name {
			b, err := modules.ReadFile("wasm/" + name + ".wasm")
			return b, err == nil
		}
	}
	return nil, false
}
