//go:build !linux

package wasmhost

import "time"

// limitProcess does nothing on systems whose limits we have not tried: there the time that
// a child may take is bounded by compileWall alone, and its memory by what Go's collector
// aims at.
func limitProcess(time.Duration) error { return nil }
