//go:build !linux

package wasmhost

import "time"

// threadCPU knows nothing here: thread 0 stands for that, and time on the wall is taken.
func threadCPU() (cpu time.Duration, thread int) { return 0, 0 }
